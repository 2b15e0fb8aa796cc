"""LeNet and AlexNet as the book defines them, for comparison with VGG networks.

Sources: LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998, as the book modernises it;
Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012, without its two halves
and without local response normalisation.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from vggkit.design.drawing import drawing
from vggkit.design.layers import MAX_WIDTH, Layer, LayerKind, check_int, check_one_of
from vggkit.design.notation import BaselineName

# Channels, kernel size, stride, padding, and whether a pool follows.
_CONVOLUTIONS = {
    "lenet": ((6, 5, 1, 2, True), (16, 5, 1, 0, True)),
    "alexnet": (
        (96, 11, 4, 1, True),
        (256, 5, 1, 2, True),
        (384, 3, 1, 1, False),
        (384, 3, 1, 1, False),
        (256, 3, 1, 1, True),
    ),
}
_HIDDEN = {"lenet": (120, 84), "alexnet": (4096, 4096)}
_IMAGE_SIZE = {"lenet": 28, "alexnet": 224}
_MIN_IMAGE_SIZE = {"lenet": 14, "alexnet": 65}  # the last pool leaves one pixel


@dataclass(frozen=True)
class Baseline:
    """One of the book's other networks, for images of one size; checked on creation as `Architecture` is.

    >>> [layer.name for layer in Baseline.named("lenet").layers()][:6]
    ['conv1', 'sigmoid1', 'pool1', 'conv2', 'sigmoid2', 'pool2']
    """

    name: BaselineName
    image_size: int
    """Height and width of the input, in pixels; the network takes no other size."""
    in_channels: int = 1
    num_classes: int = 10

    def __post_init__(self) -> None:
        check_one_of("a baseline", self.name, BaselineName)
        check_int("in_channels", self.in_channels, 1, MAX_WIDTH)
        check_int("num_classes", self.num_classes, 1, MAX_WIDTH)
        check_int(f"an image_size for {self.name}", self.image_size, _MIN_IMAGE_SIZE[self.name], MAX_WIDTH)

    @classmethod
    def named(cls, name: str, **options: Any) -> "Baseline":
        """The network called `name`; the image size is the book's (28 for LeNet, 224 for AlexNet) unless given."""
        key = name.strip().lower()
        return cls(key, **{"image_size": _IMAGE_SIZE.get(key, 0), **options})  # type: ignore[arg-type]

    @property
    def dropout(self) -> float:
        """Probability of dropping a hidden unit of AlexNet; LeNet has no dropout layer."""
        return 0.5

    @property
    def min_image_size(self) -> int:
        """The only size that it takes."""
        return self.image_size

    def layers(self) -> Iterator[Layer]:
        """Every layer in order."""
        is_lenet, channels, size = self.name == "lenet", self.in_channels, self.image_size
        activation: LayerKind = "sigmoid" if is_lenet else "relu"
        index = 1
        for width, kernel_size, stride, padding, pools in _CONVOLUTIONS[self.name]:
            part = f"conv{index}"
            layers = [Layer(part, "conv", part, channels, width, kernel_size, stride, padding)]
            layers.append(Layer(f"{activation}{index}", activation, part, width, width))
            if pools:
                kind: LayerKind = "avgpool" if is_lenet else "pool"
                layers.append(Layer(f"pool{index}", kind, part, width, width, 2 if is_lenet else 3, stride=2))
            for layer in layers:
                yield layer
                size = layer.output_size(size)
            channels, index = width, index + 1
        features = channels * size**2
        yield Layer("flatten", "flatten", f"fc{index}", channels, features)
        for width in _HIDDEN[self.name]:
            part = f"fc{index}"
            yield Layer(part, "fc", part, features, width)
            yield Layer(f"{activation}{index}", activation, part, width, width)
            if not is_lenet:
                yield Layer(f"drop{index}", "dropout", part, width, width)
            features, index = width, index + 1
        yield Layer(f"fc{index}", "fc", f"fc{index}", features, self.num_classes)

    def _repr_svg_(self) -> str:
        """A notebook shows the drawing."""
        return drawing([self])

    def to_json(self) -> str:
        """This network as one line of JSON, which `network_from_json` reads back."""
        values = asdict(self)
        return json.dumps({"baseline": values.pop("name"), **values})
