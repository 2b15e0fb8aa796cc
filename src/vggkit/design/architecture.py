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


