"""Export of a trained network to a file for another runtime, verified in that runtime before it is written."""

import copy
import hashlib
import json
import math
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vggkit.data.fashion_mnist import SAMPLE_NAME
from vggkit.data.files import sync_folder, write_whole
from vggkit.data.images import decoded, fitted, pixels_of
from vggkit.data.preprocessing import Preprocessing
from vggkit.data.samples import ImageSource
from vggkit.data.sources import open_data
from vggkit.errors import ExportError, UserError, check_type, check_utf8, shown
from vggkit.inference.evaluate import data_of_run
from vggkit.inference.export_formats import FORMATS, Format, Subject, quiet, rgb_in_0_1
from vggkit.inference.export_int8 import Int8, check_max_drop, compare_accuracy, quantize
from vggkit.inference.predict import AnyModel, Classifier, class_logits, load_classifier
from vggkit.version import __version__

BATCHES = (1, 2, 7)
"""Batch sizes with which an exported file is verified."""
TOLERANCE, PREPARED_TOLERANCE = 1e-4, 1e-2
"""The largest difference that counts as rounding, relative to the largest output; larger with the preprocessing in the
graph, as a pixel of a resized image may differ by one or two of 255 levels."""


@dataclass(frozen=True, repr=False)
class Exported:
    """An exported file with its manifest."""

    path: Path
    manifest: dict[str, Any]
    """The content of `<path>.json`: inputs, outputs, preprocessing, classes, hashes, versions and checks."""

    def __repr__(self) -> str:
        manifest, checks = self.manifest, self.manifest["checks"]
        worst = max(checks, key=lambda check: check["largest_difference"])
        size = sum(file["bytes"] for file in manifest["files"].values()) / 1e6
        runtime, version = list(manifest["versions"].items())[-1]
        same = "same top-1, " * all(check["same_top1"] for check in checks)
        lines = [
            f"{shown(self.path, 500)}: {size:,.1f} MB, {manifest['output']} for {manifest['input']}",
            f"{runtime} {version} on {manifest['checked_on']}, {len(checks)} batches: {same}"
            f"largest difference {worst['largest_difference']:.1e} of {worst['largest_output']:.3g}",
        ]
        if int8 := manifest.get("int8"):
            lines.append(
                f"int8 on {int8['measured_on']}: top-1 {int8['top1_float32']:.2%} to {int8['top1_int8']:.2%} "
                f"(McNemar's p {int8['mcnemar_p']:.2g}); one image in {int8['int8_ms']:.2f} ms, in "
                f"{int8['float32_ms']:.2f} ms by vggkit in float32"
            )
        return "\n".join(lines)


def export(
    model: AnyModel,
    path: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    *,
    with_preprocessing: bool = False,
    int8: Int8 | None = None,
    max_drop: float = 0.5,
) -> Exported:
    """Write a trained network for another runtime, once that runtime has given the network's outputs on real images.

    It is verified on batches of 1, 2 and 7 images, of two sizes if the network takes any size; `<path>.json` holds the
    results.

    Args:
        model: a classifier, or what `load_classifier` takes.
        path: `.onnx` for ONNX; `.pt2` for `torch.export`; `.xml` for OpenVINO, with a `.bin` beside it; a name without
            a suffix for a new folder for `timm.create_model("local-dir:...")`.
        data: images to verify it on, see `open_data`; by default those of the run, else the sample of Fashion-MNIST.
            With `int8`, it is calibrated on the training images, and its accuracy measured on the held-out ones.
        with_preprocessing: the graph takes uint8 (batch, height, width, 3), RGB of any size, and gives probabilities;
            otherwise it takes float32 (batch, channels, height, width), as from `Preprocessing`, and gives logits.
        int8: 8-bit weights of an ONNX file, in `all` layers or in the fully connected `head` only.
        max_drop: percentage points of top-1 that int8 may lose.

    Raises:
        UserError: an unknown format, one that cannot hold this network, or one whose package is not installed.
        DataError, WeightsError: `data` or `model` is missing or damaged.
        ExportError: the runtime's outputs differ, or int8 loses too much; nothing was written.
    """
    check_type(path, str | os.PathLike, "a path to export to", "export(model, 'model.onnx')")
    path = Path(path)
    check_export_path(path)
    check_max_drop(max_drop)
    kind = FORMATS[path.suffix]
    if with_preprocessing and not path.suffix:
        raise UserError("expected timm's folder without preprocessing in the graph, as its config.json states it")
    if int8 is not None and (int8 not in get_args(Int8) or path.suffix != ".onnx" or with_preprocessing):
        raise UserError(f"expected int8 as all or head, for .onnx without preprocessing in the graph, got {int8!r}")
    versions = {"vggkit": __version__, "torch": str(torch.__version__)} | kind.versions()
    classifier = load_classifier(model)
    classifier.check_has_classes()
    if classifier.device.type != "cpu":
        classifier = replace(classifier, net=copy.deepcopy(classifier.net).cpu())
    source = source_for(classifier, data, int8 is not None)
    taken = classifier.preprocessing if path.suffix else rgb_in_0_1(classifier.preprocessing)
    trials = _trials(classifier, _first_images(source), taken, with_preprocessing)
    if not path.suffix and getattr(classifier.net.architecture, "head", "") != "conv":
        trials = trials[:1]  # timm's head slides over a larger map, as ours does only with the head conv
    subject = Subject(classifier, with_preprocessing, trials[-1].inputs[:2])
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder, quiet(), torch.no_grad():
        unverified = Path(folder) / path.name
        kind.write(subject, unverified)
        int8_results = {}
        if int8:
            quantize(unverified.rename(unverified.with_name("float32.onnx")), unverified, classifier, source, int8)
            comparison = compare_accuracy(kind.open(unverified), classifier, source, max_drop)
            int8_results["int8"] = {"layers": int8, **comparison}
        tolerance = PREPARED_TOLERANCE if with_preprocessing else math.inf if int8 else TOLERANCE
        checks = _verify(kind, unverified, trials, tolerance)
        files = {str(file.relative_to(folder)): _hash(file) for file in Path(folder).rglob("*") if file.is_file()}
        for part in sorted(Path(folder).iterdir()):  # OpenVINO's .bin before its .xml
            os.rename(part, path.parent / part.name)  # noqa: PTH104
    sync_folder(path.parent)
    manifest = {
        "files": files,
        "format": kind.name,
        **subject.description,
        "weights": _hash(Path(classifier.source)) if Path(classifier.source).is_file() else None,
        "versions": versions,
        "checked_on": f"{max(BATCHES)} images of {source.name}",
        "checks": checks,
        **int8_results,
    }
    write_whole(path.with_name(f"{path.name}.json"), json.dumps(manifest, indent=2).encode())
    return Exported(path, manifest)


def check_export_path(path: Path) -> None:
    """Raise `UserError` unless `path` is one for an export, and can be written."""
    if path.suffix == ".safetensors":
        raise UserError(f"expected a format of another library, got {path}, try 'vgg weights convert'")
    check_utf8(path)
    is_taken = path.is_dir() if path.suffix else os.path.lexists(path)
    if path.suffix not in FORMATS or path.name in FORMATS or is_taken or not path.parent.is_dir():
        known = ", ".join(filter(None, FORMATS))
        raise UserError(
            f"expected a {known} file or a new folder for timm, in a folder that exists, got {shown(path, 500)}"
        )


class _Trial(NamedTuple):
    """Inputs of one image size, and the outputs of the plain network for them."""

    inputs: Tensor
    expected: Tensor


def source_for(classifier: Classifier, data: str | os.PathLike[str] | None, needs_training: bool) -> ImageSource:
    """The data to verify a file on, with training images for calibration if `needs_training`."""
    path = Path(classifier.source)
    if data is not None:
        source = open_data(data) if needs_training else open_data(data, holdout=0)
    elif path.with_name("recipe.json").is_file():
        source = data_of_run(path)
    elif needs_training:
        raise UserError("expected data with training images to calibrate int8, got none, try --calibrate DATA")
    else:
        source = open_data(SAMPLE_NAME)
    if needs_training and "train" not in source.splits:
        raise UserError(f"expected training images to calibrate int8, got {source}, try --calibrate DATA")
    return source


def _first_images(source: ImageSource) -> list[Image.Image]:
    """The first held-out images, in colour; repeated if there are too few."""
    images = source.held_out
    read, count = images.reader(0, 0), min(max(BATCHES), len(images))
    samples = [read(position) for position in range(count)]
    return [decoded(samples[i % count].content, 3, samples[i % count].name) for i in range(max(BATCHES))]


@torch.no_grad()
def _trials(
    classifier: Classifier, images: list[Image.Image], taken: Preprocessing, with_preprocessing: bool
) -> list[_Trial]:
    """The images in the network's size and, if the graph takes any size, in a larger one of no multiple of it.

    Inputs of a graph without preprocessing are normalised by `taken`.
    """
    net, how, side = classifier.net, classifier.preprocessing, classifier.preprocessing.image_size
    takes_any_size = with_preprocessing or not net.takes_one_size
    trials = []
    for width, height in [(side, side), (side * 3 // 2 + 1, side * 5 // 4)][: 1 + takes_any_size]:
        colour = [image.resize((width, height), Image.Resampling.BILINEAR) for image in images]
        if with_preprocessing:
            inputs = torch.from_numpy(np.stack([np.asarray(image) for image in colour]))
            fit = torch.from_numpy(np.stack([fitted(image, how) for image in colour]))
            trials.append(_Trial(inputs, class_logits(net, how.scaled(fit), how).softmax(dim=1)))
        else:
            pixels = np.stack([pixels_of(decoded(image, how.channels, "an image")) for image in colour])
            colours = torch.from_numpy(pixels) / 255
            trials.append(_Trial(taken.normalize(colours).contiguous(), net(how.normalize(colours))))
    return trials


def _verify(kind: Format, path: Path, trials: list[_Trial], tolerance: float) -> list[dict[str, Any]]:
    """Compare the outputs of the runtime with the expected ones by batch; raises `ExportError` if they differ."""
    run, checks = kind.open(path), list[dict[str, Any]]()
    for trial in trials:
        largest = trial.expected.abs().max().item()
        for count in BATCHES:
            inputs, expected = trial.inputs[:count], trial.expected[:count]
            outputs = run(inputs)
            difference = (outputs - expected).abs().max().item()
            agrees = bool((outputs.argmax(dim=1) == expected.argmax(dim=1)).all())
            if not ((agrees or tolerance == math.inf) and difference <= tolerance * largest):
                raise ExportError(
                    f"expected {kind.packages[-1]} to give the network's outputs, got a difference of {difference:.2g} "
                    f"of {largest:.3g}{'' if agrees else ' and another top-1'} for a batch of {tuple(inputs.shape)}, "
                    "and wrote nothing, try another format"
                )
            check = {"batch": list(inputs.shape), "largest_difference": difference, "largest_output": largest}
            checks.append({**check, "same_top1": agrees})
    return checks


def _hash(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
