"""What the layers of a network make of an image: their maps, and one output of a convolution taken apart."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vggkit.app.addresses import pixels_address, png_address
from vggkit.design.layers import Layer
from vggkit.errors import UserError, shown

if TYPE_CHECKING:
    from torch import Tensor

    from vggkit.data.samples import ImageSource
    from vggkit.inference.predict import Classifier

MAX_METHODS = 4
SHOWN_VALUES = 16
SEARCHED_IMAGES = 1_000
"""Of a data set, the first ones, among which patches that excite a unit are looked for."""
SHOWN_INPUTS = 4
"""Input channels of a convolution that are shown, those that give most to the sum."""


def outputs(classifier: "Classifier", content: bytes, layer: object) -> dict[str, Any]:
    """What a layer puts out: maps, the most active one first, or single values, in one picture.

    A map goes from its least, black, to its most; values all go from the least of them to the most.
    """
    import torch

    from vggkit.inference.features import features

    at = _layer_of(classifier, layer)
    (found,) = features(classifier, content, [at.name])[at.name].float().cpu()
    if found.shape[1:] in ((), (1, 1)) and not at.part.startswith("block"):
        return _values(classifier, at, found.flatten())
    activity = found.clamp(min=0).mean((1, 2))
    order = activity.argsort(descending=True)
    low, high = found.amin((1, 2)), found.amax((1, 2))
    levels = _levels(found, low[:, None, None], high[:, None, None])[order]
    count, height, width = levels.shape
    columns = math.ceil(math.sqrt(count))
    sheet = torch.zeros(-(-count // columns) * columns, height, width, dtype=torch.uint8)
    sheet[:count] = levels
    sheet = sheet.view(-1, columns, height, width).transpose(1, 2).reshape(-1, columns * width)
    facts = {"mean": activity, "least": low, "most": high}
    return {
        "picture": pixels_address(sheet.numpy()),
        "columns": columns,
        "size": [height, width],
        "maps": [
            {"channel": channel, **{name: values[channel].item() for name, values in facts.items()}}
            for channel in order.tolist()
        ],
    }


def _values(classifier: "Classifier", layer: Layer, found: "Tensor") -> dict[str, Any]:
    """The outputs of a fully connected layer: all of them row by row, and the largest ones as numbers."""
    import torch

    columns = math.ceil(math.sqrt(len(found)))
    sheet = torch.zeros(-(-len(found) // columns) * columns, dtype=torch.uint8)
    sheet[: len(found)] = _levels(found, found.min(), found.max())
    last = [each.name for each in classifier.net.architecture.layers() if each.kind in ("fc", "conv")][-1]
    return {
        "picture": pixels_address(sheet.view(-1, columns).numpy()),
        "count": len(found),
        "least": found.min().item(),
        "most": found.max().item(),
        "largest": [
            {
                "unit": index,
                "label": classifier.classes[index] if layer.name == last else "",
                "value": found[index].item(),
            }
            for index in found.argsort(descending=True)[:SHOWN_VALUES].tolist()
        ],
    }


def _levels(values: "Tensor", low: "Tensor", high: "Tensor") -> "Tensor":
    return (255 * (values - low) / (high - low).clamp(min=1e-12)).byte()


def unit(classifier: "Classifier", content: bytes, asked: dict[str, Any]) -> dict[str, Any]:
    """One output of a convolution: windows, weights and products of the inputs that give most, and what comes of it."""
    import torch

    from vggkit.inference.features import features

    layer = _layer_of(classifier, asked.get("layer"))
    if layer.kind != "conv" or not layer.part.startswith("block"):
        raise UserError(f"expected a convolution of a block, got {layer.name}")
    before, after = _around(classifier, layer)
    found = features(classifier, content, [name for name in (before, layer.name, *after) if name])
    (_, x) = next(classifier.inputs(content))
    source = (found[before] if before else x)[0].float().cpu()
    channel, y, x_at = _place(asked, found[layer.name].shape[1:])
    weights = _weights(classifier, layer.name)
    half = layer.kernel_size // 2
    padded = torch.nn.functional.pad(source.double(), (half, half, half, half))
    windows = padded[:, y : y + layer.kernel_size, x_at : x_at + layer.kernel_size]
    sums = (windows * weights[0][channel].double()).sum((1, 2))
    chosen = sums.abs().argsort(descending=True)[:SHOWN_INPUTS].tolist()
    rest = sums.sum() - sums[chosen].sum()
    return {
        "inputs": [
            {
                "channel": index,
                "window": windows[index].tolist(),
                "weights": weights[0][channel, index].tolist(),
                "sum": sums[index].item(),
            }
            for index in chosen
        ],
        "shown": sums[chosen].sum().item(),
        "num_inputs": len(sums),
        "rest": rest.item(),
        "bias": weights[1][channel].item(),
        "total": (sums.sum() + weights[1][channel]).item(),
        "output": found[layer.name][0, channel, y, x_at].item(),
        "after": [
            {"layer": name, "value": found[name][0, channel, y, x_at].item()}
            if found[name].shape == found[layer.name].shape
            else {"layer": name, "value": _pooled(found[name], channel, y, x_at)}
            for name in after
        ],
    }


def heat(classifier: "Classifier", content: bytes, asked: dict[str, Any]) -> dict[str, Any]:
    """What in an image speaks for its most probable class, by several methods, as `vgg explain` draws it."""
    from vggkit.inference.explain import explain
    from vggkit.inference.explain_check import check
    from vggkit.inference.explain_pictures import explanations_picture

    methods = asked.get("methods")
    if not isinstance(methods, list) or not 1 <= len(methods) <= MAX_METHODS:
        raise UserError(f"expected 1 to {MAX_METHODS} methods, got another request")
    found = [explain(classifier, content, method) for method in methods]
    verdicts = [one.blank or check(classifier, one).verdict for one in found] if asked.get("check") is True else []
    return {
        "picture": png_address(explanations_picture([found])),
        "label": found[0].label,
        "probability": found[0].probability,
        "maps": [{"method": one.method, "layer": one.layer} for one in found],
        "verdicts": verdicts,
    }


def exciting(classifier: "Classifier", source: "ImageSource", unit: str) -> dict[str, Any]:
    """What a unit looks for, as `vgg explain --unit`: the image that excites it most, and patches of `source`."""
    from vggkit.inference.evaluate import default_split
    from vggkit.inference.explain_units import exciting_patches, maximised

    split = default_split(source)
    images = source.splits[split]
    read, count = images.reader(0, 0), min(SEARCHED_IMAGES, len(images))
    patches = exciting_patches(classifier, unit, (read(index).content for index in range(count)))
    return {
        "maximised": pixels_address(maximised(classifier, unit)),
        "patches": [{"picture": pixels_address(patch.pixels), "value": patch.value} for patch in patches],
        "images": count,
        "split": split,
        "data": source.name,
    }


def _layer_of(classifier: "Classifier", name: object) -> Layer:
    """The layer called `name`; raises `UserError`."""
    layers = {layer.name: layer for layer in classifier.net.architecture.layers()}
    if not isinstance(name, str) or name not in layers:
        raise UserError(f"expected a layer of the network, got {shown(str(name))}")
    return layers[name]


def _around(classifier: "Classifier", layer: Layer) -> tuple[str | None, list[str]]:
    """The layer before `layer`, if there is one, and those after it up to the next convolution."""
    layers = list(classifier.net.architecture.layers())
    at = layers.index(layer)

    def following() -> Iterator[str]:
        for each in layers[at + 1 :]:
            if each.part != layer.part or each.kind == "conv":
                return
            yield each.name

    return layers[at - 1].name if at else None, list(following())


def _place(asked: dict[str, Any], shape: "tuple[int, ...]") -> tuple[int, ...]:
    place = tuple(asked.get(name) for name in ("channel", "y", "x"))
    if not all(type(at) is int and 0 <= at < size for at, size in zip(place, shape, strict=True)):
        raise UserError(f"expected channel, y and x within {tuple(shape)}, got {shown(str(place))}")
    return tuple(int(at) for at in place if at is not None)


def _weights(classifier: "Classifier", layer: str) -> "tuple[Tensor, Tensor]":
    module = next(each for name, each in classifier.net.named_modules() if name.endswith(f".{layer}"))
    return module.weight.detach().float().cpu(), module.bias.detach().float().cpu()


def _pooled(output: "Tensor", channel: int, y: int, x: int) -> float | None:
    """The value of the pool that the place is in; None at an odd edge, which no pool covers."""
    y, x = y // 2, x // 2
    is_covered = y < output.shape[2] and x < output.shape[3]
    return float(output[0, channel, y, x]) if is_covered else None
