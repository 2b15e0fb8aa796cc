"""The notation of blocks and the named family.

Source of the family: Simonyan & Zisserman, arXiv 1409.1556, Table 1.
"""

import re
from dataclasses import replace
from typing import Literal, get_args

from vggkit.design.layers import Block, Norm, short_repr
from vggkit.errors import ArchitectureError, nearest, shown

MAX_NOTATION_CHARACTERS = 10_000

BaselineName = Literal["lenet", "alexnet"]
"""Networks without a notation; see `vggkit.design.baselines`."""

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

_NUMBER = "[0-9]{1,4000}"  # Python reads no number of more than 4,300 digits
_BLOCK = re.compile(
    rf"(?P<num_convs>{_NUMBER})x(?P<channels>{_NUMBER})"
    rf"(?:k(?P<kernels>{_NUMBER}(?:,{_NUMBER}(?![0-9x]))*))?"  # the comma before '2x512' ends a kernel list
    r"(?P<lrn>\+lrn)?(?=[ ,]|$)",
    re.IGNORECASE,
)


def parse(text: str) -> tuple[tuple[Block, ...], Norm]:
    """The blocks and the norm of a name or a notation; raises `ArchitectureError`."""
    if not isinstance(text, str):
        raise ArchitectureError(f"expected a name or a notation as text, got {short_repr(text)}")
    if len(text) > MAX_NOTATION_CHARACTERS:
        raise ArchitectureError(
            f"'{shown(text)}': expected at most {MAX_NOTATION_CHARACTERS} characters, got {len(text)}"
        )
    body, divisor = text.strip(), 1
    norm: Norm = "none"
    for _ in range(2):  # `_bn` and `/4`, in either order
        head, _slash, digits = body.rpartition("/")
        if norm == "none" and body[-3:].lower() == "_bn":
            norm, body = "batch", body[:-3].rstrip()
        elif divisor == 1 and re.fullmatch(f" *{_NUMBER}", digits) and head:
            divisor, body = int(digits), head.rstrip()
    name = PAPER_LETTERS.get(body.lower(), body.lower())
    blocks = _parse_blocks(FAMILY.get(name, body), text)
    for block in blocks:
        if not divisor or block.channels % divisor:
            raise ArchitectureError(
                f"'{shown(text)}': expected a divisor of all channels, got /{divisor} for {block.channels}"
            )
    return tuple(replace(block, channels=block.channels // divisor) for block in blocks), norm


def name_of(blocks: tuple[Block, ...]) -> str | None:
    """The name of `blocks` in the family (`vgg16`, `vgg11/4`), if they have one."""
    for name, notation in FAMILY.items():
        widest = _parse_blocks(notation, notation)
        divisor, remainder = divmod(widest[0].channels, blocks[0].channels)
        if remainder == 0 and blocks == tuple(replace(b, channels=b.channels // divisor) for b in widest):
            return name + (f"/{divisor}" if divisor > 1 else "")
    return None


def _parse_blocks(body: str, text: str) -> list[Block]:
    """The blocks of `body`, a part of `text` or the notation of its name; errors give the position in `text`."""
    blocks: list[Block] = []
    rest = body.lstrip(" ,")
    while rest:
        where = f"'{shown(text)}', character {max(text.find(body), 0) + len(body) - len(rest) + 1}"
        match = _BLOCK.match(rest)
        if match is None:
            word = re.split("[ ,]", rest, maxsplit=1)[0]
            raise ArchitectureError(f"{where}: {_syntax_error(word, is_name=not blocks and not word[0].isdigit())}")
        kernels = tuple(map(int, (match["kernels"] or "3").split(",")))
        try:
            block = Block(int(match["num_convs"]), int(match["channels"]), kernels, lrn=match["lrn"] is not None)
        except ArchitectureError as error:
            raise ArchitectureError(f"{where}: {error}") from None
        blocks.append(block)
        rest = rest[match.end() :].lstrip(" ,")
    if not blocks:
        raise ArchitectureError(f"expected a name such as vgg16 or blocks such as '1x64 2x128', got '{shown(text)}'")
    return blocks


def _syntax_error(word: str, is_name: bool) -> str:
    if not is_name:
        return f"expected a block such as 2x128, got '{shown(word)}'"
    names = [*FAMILY, *get_args(BaselineName)]
    close = nearest(word, names)
    hint = f"try {close}" if close else f"the names are {', '.join(names)}"
    return f"expected a name such as vgg16 or blocks such as '1x64 2x128', got '{shown(word)}', {hint}"
