"""One trained network in every format: file size, time, accuracy, and the difference of its outputs."""

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
"""Batch size of the comparison of outputs; small, as a runtime may keep the memory of a batch."""


@dataclass(frozen=True)
class FormatSpeed:
    """The measurements of one format."""

    format: str
    file_bytes: int
    seconds: tuple[float, ...]
    """The time of each forward pass of a batch."""
    top1: float | None
    """Top-1 accuracy, 0 to 1; None if the data has none of the network's classes."""
    largest_difference: float
    """Of the logits from those of PyTorch, relative to the largest logit."""


@dataclass(frozen=True)
class Formats:
    """The measurements of all formats, and what they were measured on."""

    rows: tuple[FormatSpeed, ...]
    left_out: dict[str, str]
    """Formats that could not be measured, with the reasons."""
    measured_on: str
    hardware: str


class _Runner(NamedTuple):
    run: Run
    preprocessing: Preprocessing
    file_bytes: int

    def forward_pass(self, pixels: Tensor) -> Callable[[], Tensor]:
        """A forward pass on uint8 images, which are prepared beforehand."""
        return partial(self.run, self.preprocessing.scaled(pixels).contiguous())


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
        batch_size: images of a timed forward pass.
        images: the most held-out images to measure top-1 and the differences on.
        repeats: forward passes of each format, in turns.
        say: called with each line of progress.

    Raises:
        ValueError: `batch_size`, `images` or `repeats` is below 1.
        DataError, WeightsError: `data` or `model` is missing or damaged.
    """
    for name, value in (("batch_size", batch_size), ("images", images), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"expected {name} from 1, got {value}")
    classifier = load_classifier(model)
    classifier.check_has_classes()
    source = source_for(classifier, data, needs_training=False)
    pixels, labels = _held_out_images(classifier, source, images)
    runners, left_out = dict[str, _Runner](), dict[str, str]()
    with tempfile.TemporaryDirectory(prefix="vgg-formats-") as folder, quiet():
        for name, make_runner in _runner_makers(classifier, Path(folder), data).items():
            say(f"{name}: preparing")
            try:
                runners[name] = make_runner()
            except (UserError, ExportError) as error:
                left_out[name] = one_line(error)
        say("forward passes in turns")
        timed = pixels[torch.arange(batch_size) % len(pixels)]
        seconds = seconds_in_turns({name: r.forward_pass(timed) for name, r in runners.items()}, repeats)
        logits = {n: torch.cat([r.forward_pass(x)() for x in pixels.split(BATCH)]) for n, r in runners.items()}
    rows = [
        FormatSpeed(name, r.file_bytes, tuple(seconds[name]), *_compared(logits[name], logits["PyTorch"], labels))
        for name, r in runners.items()
    ]
    measured_on = f"{len(pixels):,} {source.held_out_name} images of {source.name}"
    return Formats(tuple(rows), left_out, measured_on, describe_hardware(torch.device("cpu")))


def _held_out_images(classifier: Classifier, source: ImageSource, images: int) -> tuple[Tensor, Tensor]:
    """The first held-out images, uint8 as the network sees them, and their labels; -1 for a class that it lacks."""
    how, read = classifier.preprocessing, source.held_out.reader(0, 0)
    samples = [read(position) for position in range(min(images, len(source.held_out)))]
    pixels = np.stack([fitted(sample.content, how, sample.name) for sample in samples])
    try:
        matches = matched_classes(classifier.classes, source.classes)
    except DataError:  # none of the classes is known
        matches = [None] * len(source.classes)
    known = [matches[sample.label] for sample in samples]
    return torch.from_numpy(pixels), torch.tensor([-1 if label is None else label for label in known])


def _runner_makers(
    classifier: Classifier, folder: Path, data: str | os.PathLike[str] | None
) -> dict[str, Callable[[], _Runner]]:
    """For each format, a function that makes its runner; exports are written into `folder`."""
    net, how, file = classifier.net, classifier.preprocessing, Path(classifier.source)
    size = file.stat().st_size if file.is_file() else sum(p.nbytes for p in net.parameters())

    def exported(name: str, int8: Int8 | None) -> _Runner:
        kind = FORMATS[Path(name).suffix]
        if kind.missing:
            raise UserError(f"needs {kind.missing}, try {to_install(kind.missing)}")
        files = export(classifier, folder / name, data, int8=int8, max_drop=100).manifest["files"].values()
        taken = how if Path(name).suffix else rgb_in_0_1(how)
        return _Runner(kind.open(folder / name), taken, sum(file["bytes"] for file in files))

    return {
        "vggkit": lambda: _Runner(classifier.fast, how, size),
        "PyTorch": lambda: _Runner(net, how, size),
        "vggkit, head bfloat16": lambda: _Runner(accelerate(net, head="bfloat16"), how, size),
        "vggkit, head int8": lambda: _Runner(accelerate(net, head="int8"), how, size),
        **{format_name: partial(exported, *arguments) for format_name, arguments in EXPORTED.items()},
    }


def _compared(logits: Tensor, plain: Tensor, labels: Tensor) -> tuple[float | None, float]:
    """The top-1 accuracy, and the largest difference from `plain`, relative to its largest logit."""
    is_known = labels >= 0
    is_right = (logits.argmax(dim=1) == labels)[is_known]
    top1 = is_right.double().mean().item() if is_known.any() else None
    return top1, ((logits - plain).abs().max() / plain.abs().max()).item()
