"""Whose weights call what how: torchvision's, timm's, Keras's and Caffe's names and layouts beside ours.

Every table is derived from `Architecture.layers()`; nothing is listed by hand but how a source counts and names.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from vggkit.data.preprocessing import CAFFE_MEAN, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vggkit.design.architecture import Architecture, Head
from vggkit.design.layers import Layer

Source = Literal["torchvision", "timm", "keras", "caffe"]
SOURCES: tuple[Source, ...] = get_args(Source)

HEADS: dict[Source, Head] = {"torchvision": "adaptive", "timm": "conv", "keras": "flatten", "caffe": "flatten"}
"""What each source does between the last block and its classes."""

_FAMILY = ("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")
NETWORKS: dict[Source, tuple[str, ...]] = {
    "torchvision": _FAMILY,
    "timm": _FAMILY,
    "keras": ("vgg16", "vgg19"),
    "caffe": ("vgg16", "vgg19"),
}
"""The networks that each source publishes."""

OPTIONAL_SUFFIX = ".num_batches_tracked"
"""Files from before torch 0.4.1 have no such counters; they start from 0."""


@dataclass(frozen=True)
class Entry:
    """One tensor of ours in somebody else's file."""

    name: str
    """There."""
    shape: tuple[int, ...]
    """There."""
    to_ours: Callable[[Tensor], Tensor]
    """From that shape to ours."""


def preprocessing_of(source: Source, channels: int = 3) -> Preprocessing:
    """What must be done to an image before a network with the weights of `source` sees it, as its publisher says.

    For `channels` of 1, means and standard deviations are the averages over the three.
    """
    mean, std, options = IMAGENET_MEAN, IMAGENET_STD, {}
    if source in ("keras", "caffe"):
        mean, std, options = CAFFE_MEAN, (1.0, 1.0, 1.0), {"order": "bgr", "scale": 255.0}
    preprocessing = Preprocessing(224, 3, mean, std, resize="crop", crop_fraction=0.875, **options)  # type: ignore[arg-type]
    return preprocessing.for_channels(channels)


def architecture_of(source: Source, network: str, in_channels: int = 3, num_classes: int = 1000) -> Architecture:
    """The architecture of a published network: `network` of `source`, with the head of that source."""
    return Architecture.parse(network, in_channels=in_channels, num_classes=num_classes, head=HEADS[source])


def entries(source: Source, architecture: Architecture) -> dict[str, Entry]:
    """Where in a file of `source` each tensor of `VGG(architecture)` lies, by its key in our `state_dict()`."""
    table: dict[str, Entry] = {}
    for layer, prefix in _named(source, architecture):
        ours = f"{layer.part}.{layer.name}" if layer.part.startswith("block") else layer.name
        weight, bias = ("kernel", "bias") if source == "keras" else ("weight", "bias")
        separator = "/" if source == "keras" else "."
        if layer.kind == "bn":
            for key in ("weight", "bias", "running_mean", "running_var"):
                table[f"{ours}.{key}"] = Entry(f"{prefix}.{key}", (layer.outputs,), _as_it_is)
            table[f"{ours}{OPTIONAL_SUFFIX}"] = Entry(f"{prefix}{OPTIONAL_SUFFIX}", (), _as_it_is)
            continue
        table[f"{ours}.weight"] = _weight_entry(source, architecture, layer, f"{prefix}{separator}{weight}")
        table[f"{ours}.bias"] = Entry(f"{prefix}{separator}{bias}", (layer.outputs,), _as_it_is)
    return table


def best_match(names: Mapping[str, tuple[int, ...]]) -> tuple[Source, str] | None:
    """The source and network whose names are most like `names`; None if none is like them at all."""
    scores, found = {}, set(names)
    for source in SOURCES:
        for network in NETWORKS[source]:
            expected = {entry.name for entry in entries(source, architecture_of(source, network)).values()}
            scores[source, network] = len(expected & found) / len(expected | found)
    best = max(scores, key=lambda key: scores[key])
    return best if scores[best] > 0 else None


def channels_and_classes(source: Source, network: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """The input channels and the classes that the file's own first and last weights say, 3 and 1000 if none does."""
    table = list(entries(source, architecture_of(source, network)).values())
    first, last = shapes.get(table[0].name, ()), shapes.get(table[-1].name, ())
    channels = (first[2] if source == "keras" else first[1]) if len(first) == 4 else 3
    return channels, last[0] if len(last) == 1 else 1000


def _named(source: Source, architecture: Architecture) -> Iterator[tuple[Layer, str]]:
    """Each layer that has parameters, and what `source` calls it."""
    index, connected = 0, 0
    last = len(architecture.hidden)
    for layer in architecture.layers():
        is_in_block = layer.part.startswith("block")
        if is_in_block and layer.kind in ("conv", "bn"):
            block, _, number = layer.name.removeprefix("conv").partition("_")
            yield (
                layer,
                {
                    "torchvision": f"features.{index}",
                    "timm": f"features.{index}",
                    "keras": f"block{block}_conv{number}",
                    "caffe": layer.name,
                }[source],
            )
        elif layer.kind in ("conv", "fc"):
            yield (
                layer,
                {
                    "torchvision": f"classifier.{3 * connected}",  # a ReLU and a dropout between two
                    "timm": "head.fc" if connected == last else f"pre_logits.fc{connected + 1}",
                    "keras": "predictions" if connected == last else f"fc{connected + 1}",
                    "caffe": layer.name,
                }[source],
            )
            connected += 1
        index += is_in_block


def _weight_entry(source: Source, architecture: Architecture, layer: Layer, name: str) -> Entry:
    outputs, inputs, size = layer.outputs, layer.inputs, layer.kernel_size
    is_in_block = layer.part.startswith("block")
    is_first = layer.part == f"fc{len(architecture.blocks) + 1}"
    ours = (outputs, inputs, size, size) if layer.kind == "conv" else (outputs, inputs)
    if source == "keras":
        if is_in_block:
            return Entry(name, (size, size, inputs, outputs), lambda kernel: kernel.permute(3, 2, 0, 1))
        if is_first:
            # Rows in height-width-channel order; ours are channel-height-width.
            channels = architecture.blocks[-1].channels
            side = math.isqrt(inputs // channels)
            return Entry(
                name,
                (inputs, outputs),
                lambda kernel: kernel.view(side, side, channels, outputs).permute(3, 2, 0, 1).reshape(ours),
            )
        return Entry(name, (inputs, outputs), Tensor.t)
    if is_in_block or (source == "timm" and name != "head.fc.weight"):
        return Entry(name, ours, _as_it_is)
    return Entry(name, (outputs, inputs * size * size), lambda weight: weight.reshape(ours))


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
