"""LeNet and AlexNet as the book defines them, for comparison with VGG networks.

Sources: LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998, as the book modernises it;
Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012, without its two halves
and without local response normalisation.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vggkit.design.drawing import drawing
from vggkit.design.layers import MAX_WIDTH, Layer, LayerKind, check_int, check_one_of
from vggkit.errors import ArchitectureError

BaselineName = Literal["lenet", "alexnet"]

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


@dataclass(frozen=True)
class Baseline:
    """One of the book's other networks, for images of any size; checked as `Architecture` is.

    >>> [layer.name for layer in Baseline.named("lenet").layers()][:6]
    ['conv1', 'sigmoid1', 'pool1', 'conv2', 'sigmoid2', 'pool2']
    """

    name: BaselineName
    image_size: int
    """Height and width of the input, in pixels; the network takes no other size."""
    in_channels: int = 1
    """Channels of the input image."""
    num_classes: int = 10
    """Outputs of the last fully connected layer."""

    def __post_init__(self) -> None:
        check_one_of("a baseline", self.name, BaselineName)
        for field in ("in_channels", "num_classes", "image_size"):
            check_int(field, getattr(self, field), 1, MAX_WIDTH)
        if self._map_sizes()[-1] < 1:
            sizes = range(self.image_size, MAX_WIDTH)
            least = next(n for n in sizes if self._map_sizes(n)[-1] >= 1)
            raise ArchitectureError(
                f"expected an image_size of at least {least} for {self.name}, got {self.image_size}"
            )

    @classmethod
    def named(cls, name: str, **options: Any) -> "Baseline":
        """The network called `name`; the image size is the book's (28 for LeNet, 224 for AlexNet) unless given."""
        key = name.strip().lower()
        return cls(key, **{"image_size": _IMAGE_SIZE.get(key, 0), **options})  # type: ignore[arg-type]

    @property
    def dropout(self) -> float:
        """Probability of dropping a hidden unit: AlexNet's; LeNet has no dropout."""
        return 0.5

    @property
    def min_image_size(self) -> int:
        """The only size that it takes."""
        return self.image_size

    def layers(self) -> Iterator[Layer]:
        """Every layer in order."""
        yield from self._convolutional()
        index = len(_CONVOLUTIONS[self.name]) + 1
        channels = _CONVOLUTIONS[self.name][-1][0]
        features = channels * self._map_sizes()[-1] ** 2
        yield Layer("flatten", "flatten", f"fc{index}", channels, features)
        for width in _HIDDEN[self.name]:
            part = f"fc{index}"
            yield Layer(part, "fc", part, features, width)
            yield Layer(f"{self._activation}{index}", self._activation, part, width, width)
            if self.name == "alexnet":
                yield Layer(f"drop{index}", "dropout", part, width, width)
            features, index = width, index + 1
        yield Layer(f"fc{index}", "fc", f"fc{index}", features, self.num_classes)

    @property
    def _activation(self) -> LayerKind:
        return "sigmoid" if self.name == "lenet" else "relu"

    def _convolutional(self) -> Iterator[Layer]:
        channels = self.in_channels
        for index, (width, kernel_size, stride, padding, pools) in enumerate(_CONVOLUTIONS[self.name], start=1):
            part = f"conv{index}"
            yield Layer(part, "conv", part, channels, width, kernel_size, stride, padding)
            yield Layer(f"{self._activation}{index}", self._activation, part, width, width)
            if pools and self.name == "lenet":
                yield Layer(f"pool{index}", "avgpool", part, width, width, 2, 2)
            elif pools:
                yield Layer(f"pool{index}", "pool", part, width, width, 3, 2)
            channels = width

    def _map_sizes(self, image_size: int | None = None) -> list[int]:
        sizes = [self.image_size if image_size is None else image_size]
        for layer in self._convolutional():
            sizes.append(layer.output_size(sizes[-1]))
        return sizes

    def _repr_svg_(self) -> str:
        """A notebook shows the drawing."""
        return drawing([self])

    def to_json(self) -> str:
        """This network as one line of JSON, which `network_from_json` reads back."""
        values = asdict(self)
        return json.dumps({"baseline": values.pop("name"), **values})
