"""A trained network to a file for another runtime, which must give the network's answers before the file is there."""

import copy
import hashlib
import json
import math
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

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
from vggkit.inference.export_int8 import Int8, check_max_drop, compared, quantize
from vggkit.inference.predict import AnyModel, Classifier, class_logits, load_classifier
from vggkit.version import __version__

BATCHES = (1, 2, 7)
"""Images together, with each of which an exported file is tried."""
TOLERANCE, PREPARED_TOLERANCE = 1e-4, 1e-2
"""The largest difference that is taken for rounding, as a share of the largest output. With the preprocessing in the
graph it is larger, since a pixel of a resized image may differ by one or two of 255 levels."""


@dataclass(frozen=True, repr=False)
class Exported:
    """A file that was written, and what is known of it."""

    path: Path
    manifest: dict[str, Any]
    """What `<path>.json` holds: what goes in and comes out, preprocessing, classes, hashes, versions and checks."""

    def __repr__(self) -> str:
        known = self.manifest
        worst = max(known["checks"], key=lambda check: check["largest_difference"])
        size = sum(file["bytes"] for file in known["files"].values()) / 1e6
        runtime, version = list(known["versions"].items())[-1]
        same = "same top-1, " * all(check["same_top1"] for check in known["checks"])
        lines = [
            f"{shown(self.path, 500)}: {size:,.1f} MB, {known['output']} for {known['input']}",
            f"{runtime} {version} on {known['checked_on']}, {len(known['checks'])} batches: {same}"
            f"largest difference {worst['largest_difference']:.1e} of {worst['largest_output']:.3g}",
        ]
        if int8 := known.get("int8"):
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
    """Write a trained network for another runtime, once that runtime has given the network's answers on real images.

    It is given 1, 2 and 7 images together, in two sizes if the network takes any. `<path>.json` says what came of it.

    Args:
        model: a classifier, or what `load_classifier` takes.
        path: `.onnx` for ONNX; `.pt2` for `torch.export`; `.xml` for OpenVINO, which puts a `.bin` beside it; a name
            without a suffix for a new folder that `timm.create_model("local-dir:...")` takes.
        data: images to try it on, see `open_data`; by default those of the run, or else the sample of Fashion-MNIST.
            With `int8` its training images give the ranges, and what is kept out of them the accuracy.
        with_preprocessing: take uint8 (batch, height, width, 3), RGB of any size, and give probabilities; without it,
            take what `Preprocessing` gives, float32 (batch, channels, height, width), and give logits.
        int8: `all` for 8-bit weights in every layer of an ONNX file, `head` in the fully connected layers alone.
        max_drop: points of top-1, hundredths of the images, that int8 may lose.

    Raises:
        UserError: there is no such format, it cannot hold this network, or its package is not installed.
        DataError, WeightsError: `data` or `model` is not there, or is damaged.
        ExportError: the runtime's answers differ, or int8 loses more than it may; nothing was written.
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
        trials = trials[:1]  # timm's head slides over a larger map
    subject = Subject(classifier, with_preprocessing, trials[-1].inputs[:2])
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder, quiet(), torch.no_grad():
        made = Path(folder) / path.name
        kind.write(subject, made)
        measured = {}
        if int8:
            quantize(made.rename(made.with_name("whole.onnx")), made, classifier, source, int8)
            measured["int8"] = {"layers": int8, **compared(kind.open(made), classifier, source, max_drop)}
        tolerance = PREPARED_TOLERANCE if with_preprocessing else math.inf if int8 else TOLERANCE
        checks = _checked(kind, made, trials, tolerance)
        files = {str(file.relative_to(folder)): _hash(file) for file in Path(folder).rglob("*") if file.is_file()}
        for part in sorted(Path(folder).iterdir()):  # of OpenVINO's two files the .bin comes first
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
        **measured,
    }
    write_whole(path.with_name(f"{path.name}.json"), json.dumps(manifest, indent=2).encode())
    return Exported(path, manifest)


def check_export_path(path: Path) -> None:
    """Raise `UserError` unless something can be exported to `path`."""
    if path.suffix == ".safetensors":
        raise UserError(f"expected a format of another library, got {path}, try 'vgg weights convert'")
    check_utf8(path)
    is_taken = path.is_dir() if path.suffix else os.path.lexists(path)
    if path.suffix not in FORMATS or path.name in FORMATS or is_taken or not path.parent.is_dir():
        known = ", ".join(filter(None, FORMATS))
        raise UserError(
            f"expected a {known} file or a new folder for timm, in a folder that exists, got {shown(path, 500)}"
        )


@dataclass(frozen=True)
class _Trial:
    """Images of one size, as a graph takes them, and what the plain network makes of them."""

    inputs: Tensor
    expected: Tensor


def source_for(classifier: Classifier, data: str | os.PathLike[str] | None, needs_training: bool) -> ImageSource:
    """The images to try a file on, and with `needs_training` others for its ranges."""
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
    """The first images that are not for training, in colour; from the start again if there are too few."""
    images = source.held_out
    read, count = images.reader(0, 0), min(max(BATCHES), len(images))
    samples = [read(position) for position in range(count)]
    some = [decoded(sample.content, 3, sample.name) for sample in samples]
    return [some[number % count] for number in range(max(BATCHES))]


@torch.no_grad()
def _trials(
    classifier: Classifier, images: list[Image.Image], taken: Preprocessing, with_preprocessing: bool
) -> list[_Trial]:
    """The images in the network's size, and in a larger one whose sides are no multiples, where a graph takes any.

    A graph without preprocessing takes them as `taken` says.
    """
    net, how, side = classifier.net, classifier.preprocessing, classifier.preprocessing.image_size
    is_free = with_preprocessing or not net.takes_one_size
    trials = []
    for width, height in [(side, side), (side * 3 // 2 + 1, side * 5 // 4)][: 1 + is_free]:
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


def _checked(kind: Format, made: Path, trials: list[_Trial], tolerance: float) -> list[dict[str, Any]]:
    """What the runtime of `kind` makes of each batch; raises `ExportError` if it is something else than expected."""
    run, checks = kind.open(made), list[dict[str, Any]]()
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
            checks.append(
                {
                    "batch": list(inputs.shape),
                    "largest_difference": difference,
                    "largest_output": largest,
                    "same_top1": agrees,
                }
            )
    return checks


def _hash(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
