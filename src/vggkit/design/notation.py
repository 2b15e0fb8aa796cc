"""The notation of blocks, the named family, and the errors for texts that are neither.

Source of the family: Simonyan & Zisserman, arXiv 1409.1556, Table 1.
"""

import difflib
import re
from dataclasses import replace

from vggkit.design.layers import MAX_CONVOLUTIONS, MAX_KERNEL_SIZE, MAX_WIDTH, Block, Norm, written
from vggkit.errors import ArchitectureError, shown

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


def parse(text: str) -> tuple[tuple[Block, ...], Norm]:
    """The blocks and the norm of a name or a notation; raises `ArchitectureError`."""
    if not isinstance(text, str):
        raise ArchitectureError(f"expected a name or a notation as text, got {written(text)}")
    if len(text) > MAX_NOTATION_CHARACTERS:
        raise ArchitectureError(
            f"'{shown(text)}': expected at most {MAX_NOTATION_CHARACTERS} characters, got {len(text)}"
        )
    body, divisor = text.strip(), 1
    norm: Norm = "none"
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
    for block in blocks:
        if block.channels % divisor:
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


def _checked_number(text: str, digits: str, place: int, what: str, most: int) -> int:
    """The number from 1 to `most` that `digits` are; they stand at the character `place` of `text`."""
    # int() of a text of thousands of digits is slow, then refused by Python itself: length comes first.
    if not re.fullmatch(r"[0-9]{1,9}", digits) or not 1 <= int(digits) <= most:
        raise ArchitectureError(
            f"'{shown(text)}', character {place}: expected {what} from 1 to {most}, got {shown(digits)}"
        )
    return int(digits)


def _parse_blocks(text: str, body: str) -> list[Block]:
    """The blocks of `body`, which is a part of `text`; errors point to characters of `text`."""
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
            raise ArchitectureError(f"'{shown(text)}', character {place}: {error}") from None
        blocks.append(block)
        position = match.end()
    if not blocks:
        raise ArchitectureError(f"expected a name such as vgg16 or blocks such as '1x64 2x128', got '{shown(text)}'")
    return blocks


def _not_a_block(text: str, body: str, position: int, offset: int, is_list: bool) -> str:
    found = re.split(r"[ ,]", body[position:], maxsplit=1)[0]
    where = f"'{shown(text)}', character {offset + position + 1}"
    if is_list or re.match(r"[0-9]", found):
        return f"{where}: expected a block such as 2x128, got '{shown(found)}'"
    close = difflib.get_close_matches(found.lower()[:60], FAMILY, n=1)
    hint = f"try {close[0]}" if close else f"the names are {', '.join(FAMILY)}"
    return f"{where}: expected a name such as vgg16 or blocks such as '1x64 2x128', got '{shown(found)}', {hint}"
