"""The errors of vggkit, each one line (expected, got, try), and the one way to print text that is not ours."""

import difflib
import os
from collections.abc import Iterable
from typing import Any, ClassVar

ERROR_CHARACTERS = 1_000
"""The length of the longest error message that is printed."""


class VggkitError(Exception):
    """The base of every error that vggkit raises on purpose; its message is one line."""

    exit_code: ClassVar[int] = 1
    """What `vgg` exits with: 2 for a user's mistake, 1 for a failure."""


class UserError(VggkitError, ValueError):
    """Something that the user asked for or passed in cannot be."""

    exit_code = 2


class ArchitectureError(UserError):
    """A network that cannot be built; the message says where in the notation it goes wrong."""


class RecipeError(UserError):
    """A recipe with a field that is unknown or has a value out of range."""


class DataError(UserError):
    """Data that is missing, damaged or not in the format that its name promises."""


class WeightsError(UserError):
    """A weight file that is missing, damaged or of an unknown kind."""


class RunError(UserError):
    """A run that cannot start with this folder, device or set of flags."""


class KernelError(UserError):
    """The compiled kernels are not available on this machine."""


class LoadingError(VggkitError, RuntimeError):
    """Loading batches failed for a reason other than a bad image, such as a disk that hangs."""


class CheckpointError(VggkitError, RuntimeError):
    """A checkpoint could not be written or read."""


class ExportError(VggkitError, RuntimeError):
    """What was exported does not give the answers of the network that it was made from."""


class DivergedError(VggkitError, RuntimeError):
    """The loss, the gradients or the outputs of a run are no longer finite. Every process of a run raises it."""


class LostError(VggkitError, RuntimeError):
    """The other processes of a run have ended or do not answer."""


def check_type(value: object, kinds: Any, expected: str, example: str) -> None:
    """Raise `UserError` unless `value`, the argument of a public function, is an instance of `kinds`."""
    if not isinstance(value, kinds):
        raise UserError(f"expected {expected}, got {type(value).__name__}, try {example}")


def check_utf8(path: str | os.PathLike[str]) -> None:
    """Raise `UserError` unless the name of a file to write is UTF-8, as the libraries that write it take names."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"expected a name in UTF-8, got {shown(path, 500)}, try another one") from None


def shown(text: str | bytes | os.PathLike[str], limit: int = 80) -> str:
    r"""`text` from a file, a file name or a user, safe to print: one line of at most `limit` characters.

    Control characters and escape sequences, line breaks, marks that change the direction of writing, and bytes that are
    no UTF-8 are written as Python escapes. Text that was escaped before stays as it is.

    >>> shown("cat\x1b[31m\u202e.png"), shown("x" * 100, limit=6)
    ('cat\\x1b[31m\\u202e.png', 'xxx...')
    """
    name = os.fsdecode(text)[: limit + 1]  # a text of many megabytes is cut before it is looked at
    if not name.isprintable():
        name = "".join(c if c.isprintable() else _escaped(c) for c in name)
    return name if len(name) <= limit else name[: limit - 3] + "..."


def one_line(error: BaseException, limit: int = ERROR_CHARACTERS) -> str:
    """The message of `error` in one line that is safe to print, or the error's type if it has no message."""
    return shown(" ".join(str(error)[: 4 * limit].split()) or type(error).__name__, limit)


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `word` was probably meant to be: misspelt, cut short or given by its initials.

    Exchanged letters come first, then the likest name, and of names equally like, that of the nearest characters.

    >>> nearest("--epoch", ["--epoch-images", "--epochs"])
    '--epochs'
    >>> nearest("--tpo", ["--std", "--top"])
    '--top'
    >>> nearest("qiuck", ["quick", "d2l"]), nearest("--lr", ["--workers", "--learning-rate"]), nearest("x", ["vgg16"])
    ('quick', '--learning-rate', None)
    >>> [nearest(word, ["vgg11", "vgg16", "vgg19"]) for word in ("vgg1l", "vgg61", "vgg18")]
    ['vgg11', 'vgg16', 'vgg19']
    """
    asked = _plain(word[:60])
    known = {_plain(name): name for name in sorted(names, key=len)}
    for plain, name in known.items():
        if len(asked) > 1 and (plain.startswith(asked) or asked == "".join(part[:1] for part in plain.split("-"))):
            return name

    def likeness(plain: str) -> tuple[bool, float, int]:
        distance = sum(abs(ord(a) - ord(b)) for a, b in zip(asked, plain, strict=False))
        return sorted(asked) == sorted(plain), difflib.SequenceMatcher(None, asked, plain).ratio(), -distance

    best = max(known, key=likeness, default="")
    has_same_letters, ratio, _ = likeness(best)
    return known[best] if best and (has_same_letters or ratio >= 0.75) else None


def _plain(name: str) -> str:
    """`name` without what is often mistyped: case, dashes, and the letters that look like digits."""
    return name.lower().replace("_", "-").strip("-").translate(str.maketrans("lio", "110"))


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # os.fsdecode's stand-in for a byte that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
