"""A network as data: blocks of convolutions, then a head of fully connected layers.

Source: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
arXiv 1409.1556, Table 1; the head as convolutions is its section 3.2.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from vggkit.design.drawing import drawing
from vggkit.design.layers import (
    MAX_CONVOLUTIONS,
    MAX_KERNEL_SIZE,
    MAX_LAYER_WEIGHTS,
    MAX_WIDTH,
    Block,
    Layer,
    LayerKind,
    Norm,
    as_block,
    as_tuple,
    check_int,
    check_one_of,
    short_repr,
)
from vggkit.design.notation import name_of, parse
from vggkit.errors import ArchitectureError, shown

Init = Literal["kaiming", "xavier", "paper", "torch"]
"""How weights are initialised; see `vggkit.init_weights`."""

Head = Literal["flatten", "adaptive", "conv", "gap"]
"""How the last map becomes classes; see `Architecture.head`."""

MAX_HIDDEN_LAYERS = 100
POOLED_SIZE = 7  # the `pooled_size` of every published VGG network


@dataclass(frozen=True)
class Architecture:
    """A network of VGG blocks and a head. Every value is checked on creation; raises `ArchitectureError`.

    >>> arch = Architecture(((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)))
    >>> arch.name, arch == Architecture.parse("vgg11")
    ('vgg11', True)
    """

    blocks: tuple[Block, ...]
    """The convolutional part; the book's `(num_convs, channels)` pairs are taken too."""
    in_channels: int = 3
    """Channels of the input image: 1 for grey, 3 for RGB."""
    num_classes: int = 1000
    """Outputs of the last fully connected layer."""
    image_size: int = 224
    """Height and width of the input in pixels; each block halves it, rounding down. The head `flatten` takes only this
    size; with the other heads, costs and drawings assume it."""
    hidden: tuple[int, ...] = (4096, 4096)
    """Widths of the hidden fully connected layers; empty with `gap`."""
    dropout: float = 0.5
    """Probability of dropping a hidden unit in training, 0 to below 1."""
    norm: Norm = "none"
    """`batch`: batch normalisation between every convolution and its ReLU."""
    head: Head = "flatten"
    """`flatten`: the last map, flattened, goes into the first fully connected layer (the book's; one size of input).
    `adaptive`: the map is first averaged to `pooled_size` (torchvision's; any size of input).
    `conv`: the fully connected layers as convolutions, the first with a kernel of `pooled_size`, then the mean of
    the class map (the paper's dense evaluation; any size of input).
    `gap`: the mean of the map, one fully connected layer (any size of input)."""
    pooled_size: int = POOLED_SIZE
    """Height and width of the first fully connected layer's input, with `adaptive` and `conv`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(as_block(block) for block in as_tuple("blocks", self.blocks)))
        object.__setattr__(self, "hidden", as_tuple("hidden", self.hidden))
        check_int("the number of convolutions", sum(block.num_convs for block in self.blocks), 1, MAX_CONVOLUTIONS)
        check_int("in_channels", self.in_channels, 1, MAX_WIDTH)
        check_int("num_classes", self.num_classes, 1, MAX_WIDTH)
        check_int("image_size", self.image_size, 1, MAX_WIDTH)
        if self.map_size == 0:
            raise ArchitectureError(
                f"expected an image_size of at least {2 ** len(self.blocks)} for {len(self.blocks)} blocks, each "
                f"of which halves it, got {self.image_size}: nothing is left after pool{self.image_size.bit_length()}"
            )
        check_int("the number of hidden layers", len(self.hidden), 0, MAX_HIDDEN_LAYERS)
        for width in self.hidden:
            check_int("hidden width", width, 1, MAX_WIDTH)
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ArchitectureError(f"expected a dropout of at least 0 and below 1, got {short_repr(self.dropout)}")
        object.__setattr__(self, "dropout", float(self.dropout))
        check_one_of("norm", self.norm, Norm)
        check_one_of("head", self.head, Head)
        check_int("pooled_size", self.pooled_size, 1, MAX_KERNEL_SIZE)
        if self.head == "gap" and self.hidden:
            raise ArchitectureError(
                f"expected no hidden layers with the head gap, got {short_repr(self.hidden)}, "
                "try the head flatten, or hidden=()"
            )
        if self.head in ("flatten", "gap") and self.pooled_size != POOLED_SIZE:
            raise ArchitectureError(
                f"expected a pooled_size only with the heads adaptive and conv, got {self.pooled_size} with {self.head}"
            )
        for layer in self.layers():
            check_int(f"the number of weights of {layer.name}", layer.weights, 0, MAX_LAYER_WEIGHTS)

    @classmethod
    def parse(cls, text: str, **options: Any) -> "Architecture":
        """The architecture that a name or the notation describes.

        Args:
            text: a name (`vgg16`, `vgg11_bn`, the paper's `A-LRN`) or blocks (`1x64 2x128k5 3x256k3,3,1+lrn`),
                separated by spaces or commas; `_bn` and `/4` may follow either.
            options: the other fields of `Architecture`. Without `hidden`, the head `gap` has no hidden layers.

        Raises:
            ArchitectureError: the text or a field is wrong; the message gives the character.

        >>> Architecture.parse("vgg11/4", in_channels=1, num_classes=10).blocks[0]
        Block(num_convs=1, channels=16, kernel_size=3, lrn=False)
        >>> Architecture.parse("1x64 2y128")
        Traceback (most recent call last):
        ...
        vggkit.errors.ArchitectureError: '1x64 2y128', character 6: expected a block such as 2x128,
        got '2y128'
        """
        blocks, norm = parse(text)
        if options.setdefault("norm", norm) != norm and norm == "batch":
            raise ArchitectureError(f"'{shown(text)}' has batch norm, got norm={short_repr(options['norm'])} beside it")
        if options.get("head") == "gap":
            options.setdefault("hidden", ())
        return cls(blocks, **options)

    @property
    def notation(self) -> str:
        """The convolutional part as text, which `parse` reads back."""
        return " ".join(block.notation for block in self.blocks) + ("_bn" if self.norm == "batch" else "")

    @property
    def name(self) -> str:
        """The shortest name: the family's (`vgg16_bn`, `vgg11/4`) where there is one, else the notation."""
        name = name_of(self.blocks)
        if name is None:
            return self.notation
        head, slash, divisor = name.partition("/")
        return head + ("_bn" if self.norm == "batch" else "") + slash + divisor

    @property
    def map_size(self) -> int:
        """Pixels along a side of the last block's output."""
        return self.image_size >> len(self.blocks)

    @property
    def min_image_size(self) -> int:
        """The smallest image side that the network takes; the head `flatten` takes only `image_size`."""
        return self.image_size if self.head == "flatten" else 2 ** len(self.blocks)

    def layers(self) -> Iterator[Layer]:
        """Every layer in order; costs, modules, names and drawings all derive from this list."""
        channels = self.in_channels
        for index, block in enumerate(self.blocks, start=1):
            yield from block.layers(channels, index, self.norm)
            channels = block.channels
        yield from self._head_layers(channels)

    def _head_layers(self, channels: int) -> Iterator[Layer]:
        index = len(self.blocks) + 1  # five blocks make the paper's fc6, fc7, fc8
        part, features, kernel_size = f"fc{index}", channels, 1
        kind: LayerKind = "conv" if self.head == "conv" else "fc"
        if kind == "conv":
            kernel_size = self.pooled_size
            yield Layer("fit", "fit", part, channels, channels, kernel_size)
        else:
            size = {"flatten": self.map_size, "adaptive": self.pooled_size, "gap": 1}[self.head]
            if self.head != "flatten":
                yield Layer("avgpool", "adaptive", part, channels, channels, size)
            features = channels * size * size
            yield Layer("flatten", "flatten", part, channels, features)
        for width in self.hidden:
            yield Layer(part, kind, part, features, width, kernel_size)
            yield Layer(f"relu{index}", "relu", part, width, width)
            yield Layer(f"drop{index}", "dropout", part, width, width)
            features, kernel_size, index = width, 1, index + 1
            part = f"fc{index}"
        yield Layer(part, kind, part, features, self.num_classes, kernel_size)
        if kind == "conv":
            yield Layer("avgpool", "adaptive", part, self.num_classes, self.num_classes, 1)
            yield Layer("flatten", "flatten", part, self.num_classes, self.num_classes)

    def _repr_svg_(self) -> str:
        """A notebook shows the drawing."""
        return drawing([self])

    def to_json(self) -> str:
        """This architecture as one line of JSON, which `from_json` reads back."""
        values = asdict(self)
        del values["blocks"], values["norm"]  # the notation holds both
        return json.dumps({"notation": self.notation, **values})

    @classmethod
    def from_json(cls, text: str) -> "Architecture":
        """The architecture that `to_json` wrote, checked in full; raises `ArchitectureError`.

        `head` and `pooled_size` may be missing, as in files of version 0.1.
        """
        try:
            values = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise ArchitectureError(f"expected an architecture as JSON, got {short_repr(text)}: {error}") from None
        known = {"notation", *(field.name for field in fields(cls))} - {"blocks", "norm"}
        required = known - {"head", "pooled_size"}
        if not isinstance(values, dict) or not required <= set(values) <= known:
            got = sorted(values) if isinstance(values, dict) else values
            raise ArchitectureError(f"expected the keys {', '.join(sorted(required))}, got {short_repr(got)}")
        return cls.parse(values.pop("notation"), **values)
