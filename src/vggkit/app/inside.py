"""Inside a network: the maps of a layer, one output of a convolution as its sum, heat maps, what excites a unit."""

import itertools
import math
from typing import TYPE_CHECKING, Any, cast

from vggkit.app.addresses import file_address, pixels_address
from vggkit.design.layers import Layer
from vggkit.errors import UserError, shown

if TYPE_CHECKING:
    from torch import Tensor

    from vggkit.data.samples import ImageSource
    from vggkit.inference.predict import Classifier

MAX_METHODS = 4
SHOWN_VALUES = 16
SEARCHED_IMAGES = 1_000
"""Images of a data set, from its first on, that are searched for patches."""
SHOWN_INPUTS = 4
"""Input channels that are shown of a convolution: those with the largest terms."""


def outputs(classifier: "Classifier", content: bytes, layer_name: object) -> dict[str, Any]:
    """The outputs of a layer in one picture: its maps, the most active first, or the values of a vector.

    Each map is scaled from its least value (black) to its largest; the values of a vector share one scale.
    """
    from vggkit.inference.features import features

    layer = _layer(classifier, layer_name)
    (y,) = features(classifier, content, [layer.name])[layer.name].float().cpu()
    if y.shape[1:] in ((), (1, 1)) and not layer.part.startswith("block"):
        return _vector(classifier, layer, y.flatten())
    activity = y.clamp(min=0).mean((1, 2))
    order = activity.argsort(descending=True)
    least, most = y.amin((1, 2)), y.amax((1, 2))
    maps = _levels(y, least[:, None, None], most[:, None, None])[order]
    height, width = maps.shape[1:]
    rows, columns = _grid(maps)
    picture = rows.transpose(1, 2).reshape(-1, columns * width)
    statistics = {"mean": activity, "least": least, "most": most}
    return {
        "picture": pixels_address(picture.numpy()),
        "columns": columns,
        "size": [height, width],
        "maps": [
            {"channel": channel, **{name: values[channel].item() for name, values in statistics.items()}}
            for channel in order.tolist()
        ],
    }


def _vector(classifier: "Classifier", layer: Layer, y: "Tensor") -> dict[str, Any]:
    """The values of a fully connected layer, row by row, and the largest of them as numbers."""
    last = [layer.name for layer in classifier.net.architecture.layers() if layer.kind in ("fc", "conv")][-1]
    rows, _ = _grid(_levels(y, y.min(), y.max()))
    return {
        "picture": pixels_address(rows.numpy()),
        "count": len(y),
        "least": y.min().item(),
        "most": y.max().item(),
        "largest": [
            {"unit": unit, "label": classifier.classes[unit] if layer.name == last else "", "value": y[unit].item()}
            for unit in y.argsort(descending=True)[:SHOWN_VALUES].tolist()
        ],
    }


def _levels(values: "Tensor", least: "Tensor", most: "Tensor") -> "Tensor":
    return (255 * (values - least) / (most - least).clamp(min=1e-12)).byte()


def _grid(cells: "Tensor") -> "tuple[Tensor, int]":
    """(cells, ...) as (rows, columns, ...), about as many rows as columns, filled up with zeros; and the columns."""
    columns = math.ceil(math.sqrt(len(cells)))
    grid = cells.new_zeros(-(-len(cells) // columns) * columns, *cells.shape[1:])
    grid[: len(cells)] = cells
    return grid.unflatten(0, (-1, columns)), columns


def unit(classifier: "Classifier", content: bytes, body: dict[str, Any]) -> dict[str, Any]:
    """One output of a convolution as a sum: windows, weights and products of its largest terms, and what follows."""
    from torch.nn.functional import pad

    from vggkit.inference.features import features

    layer = _layer(classifier, body.get("layer"))
    if layer.kind != "conv" or not layer.part.startswith("block"):
        raise UserError(f"expected a convolution of a block, got {layer.name}")
    before, after = _neighbours(classifier, layer)
    maps = features(classifier, content, [name for name in (before, layer.name, *after) if name])
    (_, image) = next(classifier.inputs(content))
    channel, y, x = _position(body, maps[layer.name].shape[1:])
    conv = next(module for name, module in classifier.net.named_modules() if name.endswith(f".{layer.name}"))
    weight, bias = conv.weight[channel].detach().float().cpu(), conv.bias[channel].item()
    size = layer.kernel_size
    padded = pad((maps[before] if before else image)[0].double().cpu(), (size // 2,) * 4)
    windows = padded[:, y : y + size, x : x + size]
    terms = (windows * weight.double()).sum((1, 2))
    largest = terms.abs().argsort(descending=True)[:SHOWN_INPUTS].tolist()
    shown_sum = terms[largest].sum().item()
    return {
        "inputs": [
            {
                "channel": index,
                "window": windows[index].tolist(),
                "weights": weight[index].tolist(),
                "sum": terms[index].item(),
            }
            for index in largest
        ],
        "shown": shown_sum,
        "num_inputs": len(terms),
        "rest": terms.sum().item() - shown_sum,
        "bias": bias,
        "total": terms.sum().item() + bias,
        "output": maps[layer.name][0, channel, y, x].item(),
        "after": [
            {"layer": name, "value": _value_at(maps[name][0, channel], y, x, maps[layer.name].shape[2:])}
            for name in after
        ],
    }


def heat(classifier: "Classifier", content: bytes, body: dict[str, Any]) -> dict[str, Any]:
    """Heat maps of the most probable class by several methods, each drawn as by `vgg explain`."""
    from vggkit.inference.explain import explain
    from vggkit.inference.explain_check import check
    from vggkit.inference.explain_pictures import explanations_picture

    methods = body.get("methods")
    if not isinstance(methods, list) or not 1 <= len(methods) <= MAX_METHODS:
        raise UserError(f"expected 1 to {MAX_METHODS} methods, got another request")
    explanations = [explain(classifier, content, method) for method in methods]
    is_checked = body.get("check") is True
    return {
        "label": explanations[0].label,
        "probability": explanations[0].probability,
        "is_mirrored": classifier.preprocessing.test_flip,
        "maps": [
            {
                "method": explanation.method,
                "layer": explanation.layer,
                "picture": file_address(explanations_picture([[explanation]])),
                "verdict": (explanation.blank or check(classifier, explanation).verdict) if is_checked else "",
            }
            for explanation in explanations
        ],
    }


def exciting(classifier: "Classifier", source: "ImageSource", unit: str) -> dict[str, Any]:
    """The image that excites a unit most, and patches of `source` that do, as by `vgg explain --unit`."""
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


def _layer(classifier: "Classifier", name: object) -> Layer:
    layers = {layer.name: layer for layer in classifier.net.architecture.layers()}
    if not isinstance(name, str) or name not in layers:
        raise UserError(f"expected a layer of the network, got {shown(str(name))}")
    return layers[name]


def _neighbours(classifier: "Classifier", conv: Layer) -> tuple[str | None, list[str]]:
    """The layer before a convolution, None for the first one, and those between it and the next in its block."""
    layers = list(classifier.net.architecture.layers())
    index = layers.index(conv)
    after = itertools.takewhile(lambda layer: layer.part == conv.part and layer.kind != "conv", layers[index + 1 :])
    return layers[index - 1].name if index else None, [layer.name for layer in after]


def _position(body: dict[str, Any], shape: "tuple[int, ...]") -> list[int]:
    position = [body.get(name) for name in ("channel", "y", "x")]
    if not all(type(index) is int and 0 <= index < size for index, size in zip(position, shape, strict=True)):
        raise UserError(f"expected channel, y and x within {tuple(shape)}, got {shown(str(tuple(position)))}")
    return cast(list[int], position)


def _value_at(channel: "Tensor", y: int, x: int, conv_size: "tuple[int, ...]") -> float | None:
    """The value over output (y, x) of the convolution; after a pool None at an odd edge, which no window covers."""
    if channel.shape != conv_size:
        y, x = y // 2, x // 2
    return channel[y, x].item() if y < channel.shape[0] and x < channel.shape[1] else None
