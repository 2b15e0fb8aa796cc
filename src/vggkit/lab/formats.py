"""One trained network in every format that it can have here: size, time, accuracy, and how far its outputs are off."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vggkit.data.images import fitted
from vggkit.data.preprocessing import Preprocessing
from vggkit.engines.accelerate import accelerate
from vggkit.errors import DataError, ExportError, UserError, one_line
from vggkit.inference.classes import matched_classes
from vggkit.inference.export import export, source_for
from vggkit.inference.export_formats import FORMATS, Run, quiet, rgb_in_0_1
from vggkit.inference.export_int8 import Int8, seconds_in_turns
from vggkit.inference.predict import AnyModel, load_classifier
from vggkit.training.hardware import describe_hardware

EXPORTED: dict[str, tuple[str, Int8 | None]] = {
    "ONNX": ("net.onnx", None),
    "ONNX, int8": ("int8.onnx", "all"),
    "ONNX, int8 head": ("head.onnx", "head"),
    "torch.export": ("net.pt2", None),
    "OpenVINO": ("net.xml", None),
    "timm": ("net", None),
}
BATCH = 32
"""Images whose outputs are compared together."""


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
    how, source = classifier.preprocessing, source_for(classifier, data, needs_training=False)
    read = source.held_out.reader(0, 0)
    samples = [read(position) for position in range(min(images, len(source.held_out)))]
    pixels = torch.from_numpy(np.stack([fitted(sample.content, how, sample.name) for sample in samples]))
    file = Path(classifier.source)
    size = file.stat().st_size if file.is_file() else sum(p.nbytes for p in classifier.net.parameters())
    ways = {"vggkit": _Way(classifier.fast, how, size), "PyTorch": _Way(classifier.net, how, size)}
    left_out = dict[str, str]()
    try:
        for head in ("bfloat16", "int8"):
            ways[f"vggkit, head {head}"] = _Way(accelerate(classifier.net, head=head), how, size)
    except UserError as error:
        left_out["vggkit with a narrow head"] = one_line(error)
    with tempfile.TemporaryDirectory(prefix="vgg-formats-") as folder, quiet():
        for format_name, (name, int8) in EXPORTED.items():
            say(f"{format_name}: exporting")
            path = Path(folder) / name
            try:
                made = export(classifier, path, data, int8=int8, max_drop=100)
            except (UserError, ExportError) as error:
                left_out[format_name] = one_line(error)
                continue
            taken = how if path.suffix else rgb_in_0_1(how)
            size = sum(file["bytes"] for file in made.manifest["files"].values())
            ways[format_name] = _Way(FORMATS[path.suffix].open(path), taken, size)
        say("forward passes in turns")
        timed = pixels[torch.arange(batch_size) % len(pixels)]
        batches = {name: way.taken.scaled(timed).contiguous() for name, way in ways.items()}
        runs: dict[str, Callable[[], object]] = {
            name: (lambda way=way, x=batches[name]: way.run(x))  # type: ignore[misc]
            for name, way in ways.items()
        }
        seconds = seconds_in_turns(runs, repeats)
        outputs = {name: _outputs(way, pixels) for name, way in ways.items()}
    try:
        matches = matched_classes(classifier.classes, source.classes)
        labels = np.array([-1 if (match := matches[s.label]) is None else match for s in samples])
    except DataError:  # then the network's classes are others
        labels = np.array([-1])
    plain = outputs["PyTorch"]
    rows = [
        FormatSpeed(
            name,
            way.file_bytes,
            tuple(seconds[name]),
            None if (labels < 0).all() else float((outputs[name].argmax(dim=1).numpy() == labels)[labels >= 0].mean()),
            ((outputs[name] - plain).abs().max() / plain.abs().max()).item(),
        )
        for name, way in ways.items()
    ]
    measured_on = f"{len(samples):,} {source.held_out_name} images of {source.name}"
    return Formats(tuple(rows), left_out, measured_on, describe_hardware(torch.device("cpu")))


def _outputs(way: _Way, pixels: Tensor) -> Tensor:
    """The logits, (images, classes)."""
    return torch.cat([way.run(way.taken.scaled(some).contiguous()) for some in pixels.split(BATCH)])
