"""One trained network in every format that it can have here: size, time, accuracy, and how far its outputs are off."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vggkit.data.images import fitted
from vggkit.data.preprocessing import Preprocessing
from vggkit.data.samples import ImageSource
from vggkit.engines.accelerate import accelerate
from vggkit.errors import DataError, ExportError, UserError, one_line
from vggkit.inference.classes import matched_classes
from vggkit.inference.export import export, source_for
from vggkit.inference.export_formats import FORMATS, Run, quiet, rgb_in_0_1, to_install
from vggkit.inference.export_int8 import Int8, seconds_in_turns
from vggkit.inference.predict import AnyModel, Classifier, load_classifier
from vggkit.training.hardware import describe_hardware

EXPORTED: dict[str, tuple[str, Int8 | None]] = {
    "ONNX": ("net.onnx", None),
    "ONNX, int8": ("int8.onnx", "all"),
    "ONNX, int8 head": ("head.onnx", "head"),
    "torch.export": ("net.pt2", None),
    "OpenVINO": ("net.xml", None),
    "timm": ("net", None),
}
BATCH = 8
"""Images whose outputs are compared together; a runtime may keep the memory for them."""


@dataclass(frozen=True)
class FormatSpeed:
    """One format."""

    format: str
    file_bytes: int
    seconds: tuple[float, ...]
    """Of each forward pass of a batch."""
    top1: float | None
    """The share of the images that is classified right, 0 to 1; None if the data has none of the network's classes."""
    largest_difference: float
    """Of the logits from those of the plain network, as a share of the largest."""


@dataclass(frozen=True)
class Formats:
    """All formats, and what they were measured on."""

    rows: tuple[FormatSpeed, ...]
    left_out: dict[str, str]
    """Why, by format."""
    measured_on: str
    hardware: str


class _Way(NamedTuple):
    run: Run
    taken: Preprocessing
    file_bytes: int

    def ready(self, pixels: Tensor) -> Callable[[], Tensor]:
        """A forward pass on some images, which are prepared for it."""
        return partial(self.run, self.taken.scaled(pixels).contiguous())


@torch.no_grad()
def bench_formats(
    model: AnyModel,
    data: str | os.PathLike[str] | None = None,
    *,
    batch_size: int = 1,
    images: int = 200,
    repeats: int = 15,
    say: Callable[[str], None] = lambda line: None,
) -> Formats:
    """Export a network to every format into a temporary folder, and measure each in its own runtime on the CPU.

    Args:
        model: a classifier, or what `load_classifier` takes.
        data: see `export`; int8 is left out without training images.
        batch_size: images that are timed together.
        images: of those not trained on, which top-1 and the differences are measured on, at most.
        repeats: forward passes of each format, in turns.
        say: told of what is being done.

    Raises:
        ValueError: `batch_size`, `images` or `repeats` below 1.
        DataError, WeightsError: `data` or `model` is not there, or is damaged.
    """
    for name, value in (("batch_size", batch_size), ("images", images), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"expected {name} from 1, got {value}")
    classifier = load_classifier(model)
    classifier.check_has_classes()
    source = source_for(classifier, data, needs_training=False)
    pixels, labels = _read(classifier, source, images)
    ways, left_out = dict[str, _Way](), dict[str, str]()
    with tempfile.TemporaryDirectory(prefix="vgg-formats-") as folder, quiet():
        for name, made in _makers(classifier, Path(folder), data).items():
            say(f"{name}: preparing")
            try:
                ways[name] = made()
            except (UserError, ExportError) as error:
                left_out[name] = one_line(error)
        say("forward passes in turns")
        timed = pixels[torch.arange(batch_size) % len(pixels)]
        seconds = seconds_in_turns({name: way.ready(timed) for name, way in ways.items()}, repeats)
        outputs = {n: torch.cat([way.ready(some)() for some in pixels.split(BATCH)]) for n, way in ways.items()}
    rows = [
        FormatSpeed(name, way.file_bytes, tuple(seconds[name]), *_judged(outputs[name], outputs["PyTorch"], labels))
        for name, way in ways.items()
    ]
    measured_on = f"{len(pixels):,} {source.held_out_name} images of {source.name}"
    return Formats(tuple(rows), left_out, measured_on, describe_hardware(torch.device("cpu")))


def _read(classifier: Classifier, source: ImageSource, images: int) -> tuple[Tensor, Tensor]:
    """The first images kept out, as the network takes them, and their labels; -1 for a class that it does not know."""
    how, read = classifier.preprocessing, source.held_out.reader(0, 0)
    samples = [read(position) for position in range(min(images, len(source.held_out)))]
    pixels = np.stack([fitted(sample.content, how, sample.name) for sample in samples])
    try:
        matches = matched_classes(classifier.classes, source.classes)
    except DataError:  # the network's classes are others
        matches = [None] * len(source.classes)
    known = [matches[sample.label] for sample in samples]
    return torch.from_numpy(pixels), torch.tensor([-1 if label is None else label for label in known])


def _makers(classifier: Classifier, folder: Path, data: str | os.PathLike[str] | None) -> dict[str, Callable[[], _Way]]:
    """For each way, what makes it ready; an export goes into `folder`."""
    net, how, file = classifier.net, classifier.preprocessing, Path(classifier.source)
    size = file.stat().st_size if file.is_file() else sum(p.nbytes for p in net.parameters())

    def exported(name: str, int8: Int8 | None) -> _Way:
        kind = FORMATS[Path(name).suffix]
        if kind.missing:
            raise UserError(f"needs {kind.missing}, try {to_install(kind.missing)}")
        made = export(classifier, folder / name, data, int8=int8, max_drop=100)
        taken = how if Path(name).suffix else rgb_in_0_1(how)
        return _Way(kind.open(folder / name), taken, sum(one["bytes"] for one in made.manifest["files"].values()))

    return {
        "vggkit": lambda: _Way(classifier.fast, how, size),
        "PyTorch": lambda: _Way(net, how, size),
        "vggkit, head bfloat16": lambda: _Way(accelerate(net, head="bfloat16"), how, size),
        "vggkit, head int8": lambda: _Way(accelerate(net, head="int8"), how, size),
        **{format_name: partial(exported, *given) for format_name, given in EXPORTED.items()},
    }


def _judged(logits: Tensor, plain: Tensor, labels: Tensor) -> tuple[float | None, float]:
    """The share of images that is classified right, and the largest difference from `plain`."""
    is_known = labels >= 0
    is_right = (logits.argmax(dim=1) == labels)[is_known]
    top1 = is_right.double().mean().item() if is_known.any() else None
    return top1, ((logits - plain).abs().max() / plain.abs().max()).item()
