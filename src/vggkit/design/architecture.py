"""What a network is: blocks of convolutions, then fully connected layers, as frozen, validated data.

Source: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
arXiv 1409.1556, Table 1.
"""

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast, get_args

LayerKind = Literal["conv", "bn", "relu", "lrn", "pool", "flatten", "fc", "dropout"]
Norm = Literal["none", "batch"]
Init = Literal["kaiming", "xavier", "paper", "torch"]
"""How the weights start; `vggkit.init_weights` says what each name means."""

# Far above any network in use, and low enough that no count below overflows 64 bits.
MAX_CONVOLUTIONS = 1_000
MAX_HIDDEN_LAYERS = 100
MAX_WIDTH = 65_536  # channels, hidden units, classes, pixels along a side
MAX_KERNEL_SIZE = 255
MAX_LAYER_WEIGHTS = 2**40
MAX_NOTATION_CHARACTERS = 10_000

FAMILY = {
    "vgg11": "1x64 1x128 2x256 2x512 2x512",
    "vgg11_lrn": "1x64+lrn 1x128 2x256 2x512 2x512",
    "vgg13": "2x64 2x128 2x256 2x512 2x512",
    "vgg16c": "2x64 2x128 3x256k3,3,1 3x512k3,3,1 3x512k3,3,1",
    "vgg16": "2x64 2x128 3x256 3x512 3x512",
    "vgg19": "2x64 2x128 4x256 4x512 4x512",
}
"""The named convolutional parts; the paper's Table 1 calls them A, A-LRN, B, C, D and E."""

PAPER_LETTERS = {"a": "vgg11", "a-lrn": "vgg11_lrn", "b": "vgg13", "c": "vgg16c", "d": "vgg16", "e": "vgg19"}

_BLOCK = re.compile(
    r"(?P<num_convs>[0-9]+)x(?P<channels>[0-9]+)"
    r"(?:k(?P<kernels>[0-9]+(?:,[0-9]+(?![0-9x]))*))?"  # the comma before '2x512' ends a kernel list
    r"(?P<lrn>\+lrn)?(?=[ ,]|$)",
    re.IGNORECASE,
)


class ArchitectureError(ValueError):
    """A network that cannot be; the message is one line: what was expected, what came, where, what to try."""


@dataclass(frozen=True)
class Layer:
    """One layer under its canonical name, with what it takes to build it or to count its costs."""

    name: str
    """`conv3_2`, `bn3_2`, `relu3_2`, `lrn1`, `pool3`, `flatten`, `fc6`, `relu6`, `drop6`, ..."""
    kind: LayerKind
    part: str
    """The row of the paper's table it belongs to: `block3`, or the fully connected layer, `fc6`."""
    inputs: int
    """Channels in; for `fc`, features in."""
    outputs: int
    """Channels out; for `fc`, features out."""
    kernel_size: int = 1

    @property
    def weights(self) -> int:
        """The weights of a convolution or fully connected layer, biases excluded; 0 for other kinds."""
        return self.inputs * self.outputs * self.kernel_size**2 if self.kind in ("conv", "fc") else 0


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
        _check_int("number of convolutions in a block", self.num_convs, 1, MAX_CONVOLUTIONS)
        _check_int("channels", self.channels, 1, MAX_WIDTH)
        sizes = self.kernel_size if isinstance(self.kernel_size, tuple | list) else (self.kernel_size,)
        for size in sizes:
            _check_int("kernel size", size, 1, MAX_KERNEL_SIZE)
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
            raise ArchitectureError(f"expected lrn to be True or False, got {self.lrn!r}")
        # One spelling for one block, so that equal blocks compare equal.
        object.__setattr__(self, "kernel_size", sizes[0] if len(set(sizes)) == 1 else tuple(sizes))

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
            yield Layer(f"conv{index}_{i}", "conv", part, channels, self.channels, size)
            channels = self.channels
            if norm == "batch":
                yield Layer(f"bn{index}_{i}", "bn", part, channels, channels)
            yield Layer(f"relu{index}_{i}", "relu", part, channels, channels)
            if i == 1 and self.lrn:
                yield Layer(f"lrn{index}", "lrn", part, channels, channels)
        yield Layer(f"pool{index}", "pool", part, channels, channels, 2)


@dataclass(frozen=True)
class Architecture:
    """A network of VGG blocks, flattened into fully connected layers: everything that decides its shape.

    Every value is checked when the architecture is made; nothing is allocated.
    A value that cannot be raises `ArchitectureError`.

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
    """Height and width of the input, in pixels; each block halves it, rounding down."""
    hidden: tuple[int, ...] = (4096, 4096)
    """Widths of the hidden fully connected layers; may be empty."""
    dropout: float = 0.5
    """Probability of dropping a hidden unit in training, 0 to below 1."""
    norm: Norm = "none"
    """`batch`: batch normalisation between every convolution and its ReLU."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(_as_block(block) for block in _as_tuple("blocks", self.blocks)))
        object.__setattr__(self, "hidden", _as_tuple("hidden", self.hidden))
        if not self.blocks:
            raise ArchitectureError("expected at least one block, got none, try '1x64'")
        num_convs = sum(block.num_convs for block in self.blocks)
        if num_convs > MAX_CONVOLUTIONS:
            raise ArchitectureError(f"expected at most {MAX_CONVOLUTIONS} convolutions, got {num_convs}")
        _check_int("in_channels", self.in_channels, 1, MAX_WIDTH)
        _check_int("num_classes", self.num_classes, 1, MAX_WIDTH)
        _check_int("image_size", self.image_size, 1, MAX_WIDTH)
        if self.image_size >> len(self.blocks) == 0:
            raise ArchitectureError(
                f"expected an image_size of at least {2 ** len(self.blocks)} for {len(self.blocks)} blocks, each "
                f"of which halves it, got {self.image_size}: nothing is left after pool{self.image_size.bit_length()}"
            )
        if len(self.hidden) > MAX_HIDDEN_LAYERS:
            raise ArchitectureError(f"expected at most {MAX_HIDDEN_LAYERS} hidden layers, got {len(self.hidden)}")
        for width in self.hidden:
            _check_int("hidden width", width, 1, MAX_WIDTH)
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ArchitectureError(f"expected a dropout of at least 0 and below 1, got {self.dropout!r}")
        object.__setattr__(self, "dropout", float(self.dropout))
        if self.norm not in get_args(Norm):
            raise ArchitectureError(f"expected norm to be one of {', '.join(get_args(Norm))}, got {self.norm!r}")
        for layer in self.layers():
            if layer.weights > MAX_LAYER_WEIGHTS:
                raise ArchitectureError(
                    f"expected at most {MAX_LAYER_WEIGHTS} weights in a layer, got {layer.weights} in {layer.name} "
                    f"({layer.inputs} to {layer.outputs})"
                )

    @classmethod
    def parse(cls, text: str, **options: Any) -> "Architecture":
        """The architecture that a name or the notation describes.

        Args:
            text: a name (`vgg16`, `vgg11_bn`, the paper's `A-LRN`) or blocks (`1x64 2x128k5 3x256k3,3,1+lrn`),
                separated by spaces or commas; `_bn` and `/4` may follow either.
            options: the other fields of `Architecture`; `norm` is what the text says.

        Raises:
            ArchitectureError: one line that says what was expected, what was found and at which character.

        >>> Architecture.parse("vgg11/4", in_channels=1, num_classes=10).blocks[0]
        Block(num_convs=1, channels=16, kernel_size=3, lrn=False)
        >>> Architecture.parse("1x64 2y128")
        Traceback (most recent call last):
        ...
        vggkit.design.architecture.ArchitectureError: '1x64 2y128', character 6: expected a block such as 2x128,
        got '2y128'
        """
        if not isinstance(text, str):
            raise ArchitectureError(f"expected a name or a notation as text, got {text!r}")
        if len(text) > MAX_NOTATION_CHARACTERS:
            raise ArchitectureError(
                f"{_shown(text)}: expected at most {MAX_NOTATION_CHARACTERS} characters, got {len(text)}"
            )
        body, divisor, norm = text.strip(), 1, "none"
        for _ in range(2):  # `_bn` and `/4`, in either order
            head, slash, digits = body.rpartition("/")
            if norm == "none" and body[-3:].lower() == "_bn":
                norm, body = "batch", body[:-3].rstrip()
            elif slash and divisor == 1:
                place = text.find(body) + len(head) + 2
                divisor = _checked_number(text, digits.strip(), place, "a divisor", MAX_WIDTH)
                body = head.rstrip()
        name = PAPER_LETTERS.get(body.lower(), body.lower())
        blocks = _parse_blocks(FAMILY[name], FAMILY[name]) if name in FAMILY else _parse_blocks(text, body)
        if options.setdefault("norm", norm) != norm and norm == "batch":
            raise ArchitectureError(f"{_shown(text)} has batch norm, got norm={options['norm']!r} beside it")
        for block in blocks:
            if block.channels % divisor:
                raise ArchitectureError(
                    f"{_shown(text)}: expected a divisor of all channels, got /{divisor} for {block.channels}"
                )
        return cls(tuple(replace(b, channels=b.channels // divisor) for b in blocks), **options)

    @property
    def notation(self) -> str:
        """The convolutional part as text; `parse` gives the same one back."""
        return " ".join(block.notation for block in self.blocks) + ("_bn" if self.norm == "batch" else "")

    @property
    def name(self) -> str:
        """The shortest name: the family's (`vgg16_bn`, `vgg11/4`) where there is one, else the notation."""
        suffix = "_bn" if self.norm == "batch" else ""
        for name, notation in FAMILY.items():
            widest = _parse_blocks(notation, notation)
            divisor, remainder = divmod(widest[0].channels, self.blocks[0].channels)
            if remainder == 0 and self.blocks == tuple(replace(b, channels=b.channels // divisor) for b in widest):
                return name + suffix + (f"/{divisor}" if divisor > 1 else "")
        return self.notation

    def layers(self) -> Iterator[Layer]:
        """Every layer in order: the one description that costs, modules, names and drawings derive from."""
        channels, size = self.in_channels, self.image_size
        for index, block in enumerate(self.blocks, start=1):
            yield from block.layers(channels, index, self.norm)
            channels, size = block.channels, size // 2
        index = len(self.blocks) + 1  # five blocks make the paper's fc6, fc7, fc8
        features = channels * size * size
        yield Layer("flatten", "flatten", f"fc{index}", channels, features)
        for width in self.hidden:
            part = f"fc{index}"
            yield Layer(part, "fc", part, features, width)
            yield Layer(f"relu{index}", "relu", part, width, width)
            yield Layer(f"drop{index}", "dropout", part, width, width)
            features, index = width, index + 1
        yield Layer(f"fc{index}", "fc", f"fc{index}", features, self.num_classes)

    def to_json(self) -> str:
        """This architecture as one line of JSON; `from_json` gives an equal one back."""
        fields = asdict(self)
        del fields["blocks"], fields["norm"]  # the notation holds both
        return json.dumps({"notation": self.notation, **fields})

    @classmethod
    def from_json(cls, text: str) -> "Architecture":
        """The architecture that `to_json` wrote, checked as if typed by hand; raises `ArchitectureError`."""
        try:
            fields = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise ArchitectureError(f"expected an architecture as JSON, got {_shown(str(text))}: {error}") from None
        expected = {"notation", "in_channels", "num_classes", "image_size", "hidden", "dropout"}
        if not isinstance(fields, dict) or set(fields) != expected:
            got = ", ".join(sorted(map(str, fields))) if isinstance(fields, dict) else type(fields).__name__
            raise ArchitectureError(f"expected the keys {', '.join(sorted(expected))}, got {_shown(got)}")
        return cls.parse(fields.pop("notation"), **fields)


def _check_int(what: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        is_endless = isinstance(value, int) and abs(value) > 2**64  # Python refuses to write out the longest
        got = "a number beyond 64 bits" if is_endless else _shown(repr(value), quote=False)
        raise ArchitectureError(f"expected {what} from {least} to {most}, got {got}")


def _as_tuple(what: str, value: object) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        raise ArchitectureError(f"expected {what} as a tuple, got {value!r}")
    return tuple(value)


def _as_block(value: object) -> Block:
    if isinstance(value, Block):
        return value
    if isinstance(value, tuple | list) and len(value) == 2:
        return Block(cast(int, value[0]), cast(int, value[1]))
    raise ArchitectureError(f"expected a Block or a pair (num_convs, channels), got {value!r}")


def _shown(text: str, quote: bool = True) -> str:
    short = text if len(text) <= 60 else text[:57] + "..."
    return repr(short) if quote else short


def _checked_number(text: str, digits: str, place: int, what: str, most: int) -> int:
    """The number from 1 to `most` that `digits`, which stand in `text` at the character `place`, say."""
    # int() of a text of thousands of digits is slow, then refused by Python itself: length comes first.
    if not re.fullmatch(r"[0-9]{1,9}", digits) or not 1 <= int(digits) <= most:
        raise ArchitectureError(
            f"{_shown(text)}, character {place}: expected {what} from 1 to {most}, got {_shown(digits, quote=False)}"
        )
    return int(digits)


def _parse_blocks(text: str, body: str) -> list[Block]:
    """The blocks of `body`, a part of `text`, to whose characters the errors point."""
    offset = text.find(body)
    blocks: list[Block] = []
    position = 0
    while True:
        while position < len(body) and body[position] in " ,":
            position += 1
        if position == len(body):
            break
        match = _BLOCK.match(body, position)
        if match is None:
            raise ArchitectureError(_not_a_block(text, body, position, offset, bool(blocks)))
        num_convs, channels = (
            _checked_number(text, match[group], offset + match.start(group) + 1, what, most)
            for group, what, most in (
                ("num_convs", "a number of convolutions", MAX_CONVOLUTIONS),
                ("channels", "channels", MAX_WIDTH),
            )
        )
        kernels = [int(k) if len(k) < 9 else MAX_KERNEL_SIZE + 1 for k in (match["kernels"] or "3").split(",")]
        try:
            block = Block(num_convs, channels, tuple(kernels), lrn=match["lrn"] is not None)
        except ArchitectureError as error:
            place = offset + match.start("kernels") + 1
            raise ArchitectureError(f"{_shown(text)}, character {place}: {error}") from None
        blocks.append(block)
        position = match.end()
    if not blocks:
        raise ArchitectureError(f"expected a name such as vgg16 or blocks such as '1x64 2x128', got {_shown(text)}")
    return blocks


def _not_a_block(text: str, body: str, position: int, offset: int, is_list: bool) -> str:
    found = re.split(r"[ ,]", body[position:], maxsplit=1)[0]
    if is_list or re.match(r"[0-9]", found):
        return f"{_shown(text)}, character {offset + position + 1}: expected a block such as 2x128, got {_shown(found)}"
    close = difflib.get_close_matches(found.lower()[:60], FAMILY, n=1)
    hint = f"try {close[0]}" if close else f"the names are {', '.join(FAMILY)}"
    return (
        f"{_shown(text)}, character {offset + position + 1}: expected a name such as vgg16 or blocks such as "
        f"'1x64 2x128', got {_shown(found)}, {hint}"
    )
