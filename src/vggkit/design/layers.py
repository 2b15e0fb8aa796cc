"""A VGG block and the layers of every network as frozen, validated data."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from vggkit.errors import ArchitectureError, shown

LayerKind = Literal[
    "conv", "bn", "relu", "sigmoid", "lrn", "pool", "avgpool", "adaptive", "fit", "flatten", "fc", "dropout"
]
"""`pool`: max pooling. `adaptive`: average pooling to `kernel_size`. `fit`: enlarges smaller maps to `kernel_size`."""
Norm = Literal["none", "batch"]

# Far above any network in use, and low enough that no count overflows 64 bits.
MAX_CONVOLUTIONS = 1_000
MAX_WIDTH = 65_536  # channels, hidden units, classes, pixels along a side
MAX_KERNEL_SIZE = 255
MAX_LAYER_WEIGHTS = 2**40


@dataclass(frozen=True)
class Layer:
    """One layer under its canonical name, with what building it and counting its costs requires."""

    name: str
    """`conv3_2`, `bn3_2`, `relu3_2`, `lrn1`, `pool3`, `avgpool`, `flatten`, `fc6`, `relu6`, `drop6`, ..."""
    kind: LayerKind
    part: str
    """The row of the paper's table it belongs to: `block3`, or the fully connected layer, `fc6`."""
    inputs: int
    """Channels in; for `fc`, features in."""
    outputs: int
    """Channels out; for `fc` and `flatten`, features out."""
    kernel_size: int = 1
    stride: int = 1
    padding: int = 0

    @property
    def weights(self) -> int:
        """The weights of a convolution or fully connected layer, biases excluded; 0 for other kinds."""
        return self.inputs * self.outputs * self.kernel_size**2 if self.kind in ("conv", "fc") else 0

    def output_size(self, size: int) -> int:
        """Height and width of the output for a map of `size`; 1 for features; below 1 if the map is too small."""
        match self.kind:
            case "conv" | "pool" | "avgpool":
                return (size + 2 * self.padding - self.kernel_size) // self.stride + 1
            case "adaptive":
                return self.kernel_size
            case "fit":
                return max(size, self.kernel_size)
            case "flatten" | "fc":
                return 1
            case _:
                return size


class AnyNetwork(Protocol):
    """A network that costs and drawings can take: `Architecture` or `Baseline`."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def in_channels(self) -> int: ...  # noqa: D102
    @property
    def image_size(self) -> int: ...  # noqa: D102
    @property
    def num_classes(self) -> int: ...  # noqa: D102

    def layers(self) -> Iterator[Layer]:
        """Every layer in order."""


@dataclass(frozen=True)
class Block:
    """A VGG block: convolutions of one width, each followed by a ReLU, then a 2x2 max pool of stride 2.

    Convolutions have stride 1 and are padded by half their kernel, so that only the pool changes the size.

    >>> Block(3, 256, (3, 3, 1)).notation
    '3x256k3,3,1'
    """

    num_convs: int
    """1 to 1000."""
    channels: int
    """Output channels of every convolution of the block, 1 to 65536."""
    kernel_size: int | tuple[int, ...] = 3
    """Odd, 1 to 255: one for all convolutions, or one for each."""
    lrn: bool = False
    """A local response normalisation after the first ReLU (the paper's A-LRN)."""

    def __post_init__(self) -> None:
        check_int("a number of convolutions", self.num_convs, 1, MAX_CONVOLUTIONS)
        check_int("channels", self.channels, 1, MAX_WIDTH)
        sizes = self.kernel_size if isinstance(self.kernel_size, tuple | list) else (self.kernel_size,)
        for size in sizes:
            check_int("kernel size", size, 1, MAX_KERNEL_SIZE)
            if size % 2 == 0:
                raise ArchitectureError(
                    f"expected an odd kernel size (an even one cannot be centred), got {size}, "
                    f"try {size - 1} or {size + 1}"
                )
        if len(sizes) not in (1, self.num_convs):
            raise ArchitectureError(
                f"expected one kernel size or one for each of the {self.num_convs} convolutions, got {len(sizes)}"
            )
        if not isinstance(self.lrn, bool):
            raise ArchitectureError(f"expected lrn to be True or False, got {short_repr(self.lrn)}")
        # Normalised, so that equal blocks compare equal.
        object.__setattr__(self, "kernel_size", sizes[0] if len(set(sizes)) == 1 else tuple(sizes))

    def __getitem__(self, index: int) -> int:
        """`block[0]`, `block[1]`: a block of 3x3 convolutions as the book's pair `(num_convs, channels)`."""
        if self.kernel_size != 3 or self.lrn:
            raise ArchitectureError(f"expected a block that a pair can describe, got {self.notation}")
        return (self.num_convs, self.channels)[index]

    @property
    def kernel_sizes(self) -> tuple[int, ...]:
        """The kernel size of each convolution, in order."""
        return (self.kernel_size,) * self.num_convs if isinstance(self.kernel_size, int) else self.kernel_size

    @property
    def notation(self) -> str:
        """The block as text: `<convs>x<channels>`, with `k<sizes>` and `+lrn` where it has them."""
        sizes = self.kernel_size if isinstance(self.kernel_size, tuple) else (self.kernel_size,)
        kernels = "" if sizes == (3,) else "k" + ",".join(map(str, sizes))
        return f"{self.num_convs}x{self.channels}{kernels}{'+lrn' if self.lrn else ''}"

    def layers(self, in_channels: int, index: int = 1, norm: Norm = "none") -> Iterator[Layer]:
        """The layers of this block when it is the `index`-th, counted from 1, of a network."""
        part, channels = f"block{index}", in_channels
        for i, size in enumerate(self.kernel_sizes, start=1):
            yield Layer(f"conv{index}_{i}", "conv", part, channels, self.channels, size, padding=size // 2)
            channels = self.channels
            if norm == "batch":
                yield Layer(f"bn{index}_{i}", "bn", part, channels, channels)
            yield Layer(f"relu{index}_{i}", "relu", part, channels, channels)
            if i == 1 and self.lrn:
                yield Layer(f"lrn{index}", "lrn", part, channels, channels)
        yield Layer(f"pool{index}", "pool", part, channels, channels, 2, stride=2)


def check_int(what: str, value: object, least: int, most: int) -> None:
    """Raise `ArchitectureError` unless `value` is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ArchitectureError(f"expected {what} from {least} to {most}, got {short_repr(value)}")


def check_number(what: str, value: object, least: float, most: float) -> None:
    """Raise `ArchitectureError` unless `value` is a number from `least` to `most`; NaN is rejected."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ArchitectureError(f"expected {what} from {least:g} to {most:g}, got {short_repr(value)}")


def short_repr(value: object) -> str:
    """`repr(value)` for an error message, shortened and safe to print."""
    try:
        return shown(repr(value))
    except ValueError:  # Python limits the digits of an integer's repr
        return "a number beyond 64 bits"


def check_one_of(what: str, value: object, allowed: Any) -> None:
    """Raise `ArchitectureError` unless `value` is one of the `Literal` `allowed`."""
    if value not in get_args(allowed):
        raise ArchitectureError(f"expected {what} to be one of {', '.join(get_args(allowed))}, got {short_repr(value)}")


def as_tuple(what: str, value: object) -> tuple[Any, ...]:
    """A tuple or list as a tuple; raises `ArchitectureError` for anything else."""
    if not isinstance(value, tuple | list):
        raise ArchitectureError(f"expected {what} as a tuple, got {short_repr(value)}")
    return tuple(value)


def as_block(value: object) -> Block:
    """A `Block` or the book's pair as a `Block`; raises `ArchitectureError` for anything else."""
    if isinstance(value, Block):
        return value
    if isinstance(value, tuple | list) and len(value) == 2:
        return Block(value[0], value[1])
    raise ArchitectureError(f"expected a Block or a pair (num_convs, channels), got {short_repr(value)}")
