"""Names, layouts and preprocessing of torchvision's, timm's, Keras's and Caffe's VGG weights.

Every table is derived from `Architecture.layers()` and a source's rules for numbering and naming layers.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor

from vggkit.data.preprocessing import CAFFE_MEAN, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vggkit.design.architecture import Architecture, Head
from vggkit.design.layers import Layer

Source = Literal["torchvision", "timm", "keras", "caffe"]
SOURCES: tuple[Source, ...] = get_args(Source)

HEADS: dict[Source, Head] = {"torchvision": "adaptive", "timm": "conv", "keras": "flatten", "caffe": "flatten"}

_FAMILY = ("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")
NETWORKS: dict[Source, tuple[str, ...]] = {
    "torchvision": _FAMILY,
    "timm": _FAMILY,
    "keras": ("vgg16", "vgg19"),
    "caffe": ("vgg16", "vgg19"),
}

OPTIONAL_SUFFIX = ".num_batches_tracked"  # counters, missing in files from before torch 0.4.1, which then start from 0

FEATURES_ONLY = Preprocessing(224, 3, (0.48235, 0.45882, 0.40784), (1 / 255,) * 3, resize="crop", crop_fraction=0.875)
"""The preprocessing of torchvision's `VGG16_Weights.IMAGENET1K_FEATURES`."""

_WRAPPERS = {"module", "_orig_mod"}
"""What DataParallel, DistributedDataParallel and torch.compile add to the names of tensors."""

_CLASSIFIER = re.compile(r"^classifier\.(?:([0-9]{1,4})\.)?(?=\w+$)")


class Entry(NamedTuple):
    """A tensor in a file of another library: its name and shape there, and its conversion to vggkit's layout."""

    name: str
    shape: tuple[int, ...]
    to_ours: Callable[[Tensor], Tensor] = lambda tensor: tensor


class Match(NamedTuple):
    """The network of another library that matches the tensors of a file best."""

    source: Source
    architecture: Architecture
    """With channels, widths and classes from the file's shapes; `gap` with one class if there is no top."""
    table: dict[str, Entry]
    """The tensors that the file must hold, by vggkit's names; those of the blocks if there is no top."""


def preprocessing_of(source: Source, image_size: int = 224, channels: int = 3) -> Preprocessing:
    """The preprocessing that `source` states for its weights; means and stds are averaged for 1 channel."""
    published = replace(FEATURES_ONLY, image_size=image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    if source in ("keras", "caffe"):
        published = replace(published, mean=CAFFE_MEAN, std=(1.0, 1.0, 1.0), order="bgr", scale=255.0)
    return published.for_channels(channels)


def architecture_of(source: Source, network: str, **options: Any) -> Architecture:
    """The published `network` of `source`, with the head of that source and other `options` of `Architecture`."""
    return Architecture.parse(network, **{"head": HEADS[source], **options})


def entries(source: Source, architecture: Architecture) -> dict[str, Entry]:
    """The entry in a file of `source` for each key of `VGG(architecture).state_dict()`."""
    table: dict[str, Entry] = {}
    for layer, prefix in _source_names(source, architecture):
        ours = f"{layer.part}.{layer.name}" if layer.part.startswith("block") else layer.name
        if layer.kind == "bn":
            for key in ("weight", "bias", "running_mean", "running_var"):
                table[f"{ours}.{key}"] = Entry(f"{prefix}.{key}", (layer.outputs,))
            table[f"{ours}{OPTIONAL_SUFFIX}"] = Entry(f"{prefix}{OPTIONAL_SUFFIX}", ())
            continue
        table[f"{ours}.weight"] = _weight_entry(source, architecture, layer, prefix)
        table[f"{ours}.bias"] = Entry(f"{prefix}{'/' if source == 'keras' else '.'}bias", (layer.outputs,))
    return table


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """The names in a file, by the names of torchvision, timm, Keras, Caffe or vggkit for the same tensors.

    Wrappers and a common prefix are removed. `0.weight`, from torchvision's `features` saved alone, gets that prefix;
    the layers of a `classifier` are renumbered like torchvision's, in order.

    >>> plain_names(["net.features.module.0.weight", "net.classifier.1.bias", "net.classifier.4.bias"]).keys()
    dict_keys(['features.0.weight', 'classifier.0.bias', 'classifier.3.bias'])
    """
    parts = {name: [part for part in name.split(".") if part not in _WRAPPERS] for name in names}
    while (
        all(len(path) > 2 for path in parts.values())
        and len({path[0] for path in parts.values()}) == 1
        and best_match(map(".".join, parts.values())) is None
    ):
        parts = {name: path[1:] for name, path in parts.items()}
    prefix = "features." if all("".join(path[:1]).isdecimal() for path in parts.values()) else ""
    joined = {name: prefix + ".".join(path) for name, path in parts.items()}
    numbers = sorted({int(match[1] or 0) for match in map(_CLASSIFIER.match, joined.values()) if match})
    plain = {
        _CLASSIFIER.sub(lambda match: f"classifier.{3 * numbers.index(int(match[1] or 0))}.", text): name
        for name, text in joined.items()
    }
    return plain if len(plain) == len(parts) else {name: name for name in parts}


def match_source(shapes: Mapping[str, tuple[int, ...]]) -> Match | None:
    """The network of another library that matches the names in a file best; None if nothing matches."""
    best = best_match(shapes)
    if best is None:
        return None
    source, network = best
    published = architecture_of(source, network)
    table = entries(source, published)
    first = shapes.get(next(iter(table.values())).name, ())
    options: dict[str, Any] = {"in_channels": first[2 if source == "keras" else 1] if len(first) == 4 else 3}
    names = [entry.name for key, entry in table.items() if not key.startswith("block")]
    if source == "torchvision":  # often replaced by more or fewer layers
        names = [f"classifier.{3 * (i // 2)}.{'bias' if i % 2 else 'weight'}" for i in range(len(shapes))]
    if not shapes.keys() & set(names):
        arch = architecture_of(source, network, head="gap", num_classes=1, **options)
        table = {key: entry for key, entry in entries(source, arch).items() if key.startswith("block")}
        return Match(source, arch, table)
    weight = shapes.get(names[0], ())
    side = published.pooled_size  # of the map before the first fully connected layer
    if len(weight) == (4 if source == "timm" else 2):
        inputs = weight[0 if source == "keras" else 1]
        side = max(1, weight[2] if source == "timm" else math.isqrt(inputs // published.blocks[-1].channels))
    options["image_size"] = side << len(published.blocks)
    if published.head != "flatten":
        options["pooled_size"] = side
    if widths := [shapes[name][0] for name in names[1::2] if len(shapes.get(name, ())) == 1]:
        options |= {"hidden": tuple(widths[:-1]), "num_classes": widths[-1]}
    arch = architecture_of(source, network, **options)
    return Match(source, arch, entries(source, arch))


def best_match(names: Iterable[str]) -> tuple[Source, str] | None:
    """The source and network with the highest Jaccard similarity of names; None if it is 0."""
    given = set(names)
    scores = {key: len(known & given) / len(known | given) for key, known in _published_names().items()}
    best = max(scores, key=lambda key: scores[key])
    return best if scores[best] > 0 else None


@cache
def _published_names() -> dict[tuple[Source, str], frozenset[str]]:
    return {
        (source, network): frozenset(e.name for e in entries(source, architecture_of(source, network)).values())
        for source in SOURCES
        for network in NETWORKS[source]
    }


def _source_names(source: Source, architecture: Architecture) -> Iterator[tuple[Layer, str]]:
    """Each layer with parameters and its name in files of `source`."""
    index, connected = 0, 0
    for layer in architecture.layers():
        is_in_block, is_last = layer.part.startswith("block"), connected == len(architecture.hidden)
        if is_in_block and layer.kind in ("conv", "bn"):
            block, _, number = layer.name.removeprefix("conv").partition("_")
            names = {"keras": f"block{block}_conv{number}", "caffe": layer.name}
            yield layer, names.get(source, f"features.{index}")
        elif layer.kind in ("conv", "fc"):
            names = {
                "torchvision": f"classifier.{3 * connected}",  # a ReLU and a dropout between two
                "timm": "head.fc" if is_last else f"pre_logits.fc{connected + 1}",
                "keras": "predictions" if is_last else f"fc{connected + 1}",
                "caffe": layer.name,
            }
            yield layer, names[source]
            connected += 1
        index += is_in_block


def _weight_entry(source: Source, architecture: Architecture, layer: Layer, prefix: str) -> Entry:
    outputs, inputs, size = layer.outputs, layer.inputs, layer.kernel_size
    is_in_block = layer.part.startswith("block")
    ours = (outputs, inputs, size, size) if layer.kind == "conv" else (outputs, inputs)
    if source == "keras":
        name = f"{prefix}/kernel"
        if is_in_block:
            return Entry(name, (size, size, inputs, outputs), lambda kernel: kernel.permute(3, 2, 0, 1))
        if layer.part != f"fc{len(architecture.blocks) + 1}":
            return Entry(name, (inputs, outputs), Tensor.t)
        # The first one's rows are in height-width-channel order, torch's in channel-height-width order.
        channels = architecture.blocks[-1].channels
        map_shape = (math.isqrt(inputs // channels),) * 2 + (channels, outputs)
        return Entry(name, (inputs, outputs), lambda rows: rows.view(map_shape).permute(3, 2, 0, 1).reshape(ours))
    if is_in_block or (source == "timm" and prefix != "head.fc"):
        return Entry(f"{prefix}.weight", ours)
    return Entry(f"{prefix}.weight", (outputs, inputs * size * size), lambda weight: weight.reshape(ours))
