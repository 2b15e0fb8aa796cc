"""The errors of vggkit, each one line (expected, got, try), and safe printing of text from files and users."""

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
    """An argument or a request of the user is invalid."""

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
    """An exported network does not give the same outputs as the original."""


class DivergedError(VggkitError, RuntimeError):
    """The loss, gradients or outputs of a run are not finite. Every process of the run raises it."""


class LostError(VggkitError, RuntimeError):
    """The other processes of a run have ended or do not answer."""


def check_type(value: object, kinds: Any, expected: str, example: str) -> None:
    """Raise `UserError` unless `value`, the argument of a public function, is an instance of `kinds`."""
    if not isinstance(value, kinds):
        raise UserError(f"expected {expected}, got {type(value).__name__}, try {example}")


def check_utf8(path: str | os.PathLike[str]) -> None:
    """Raise `UserError` unless `path` is valid UTF-8, which the libraries that write files require."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"expected a name in UTF-8, got {shown(path, 500)}, try another one") from None


def shown(text: str | bytes | os.PathLike[str], limit: int = 80) -> str:
    r"""`text` from a file, a file name or a user, safe to print: one line of at most `limit` characters.

    Control characters, escape sequences, line breaks, bidirectional marks and bytes that are not UTF-8 become Python
    escapes.

    >>> shown("cat\x1b[31m\u202e.png"), shown("x" * 100, limit=6)
    ('cat\\x1b[31m\\u202e.png', 'xxx...')
    """
    name = os.fsdecode(text)[: limit + 1]  # cut first: the text may have many megabytes
    if not name.isprintable():
        name = "".join(c if c.isprintable() else _escaped(c) for c in name)
    return name if len(name) <= limit else name[: limit - 3] + "..."


def one_line(error: BaseException, limit: int = ERROR_CHARACTERS) -> str:
    """The message of `error` in one line that is safe to print, or the error's type if it has no message."""
    return shown(" ".join(str(error)[: 4 * limit].split()) or type(error).__name__, limit)


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `word` probably misspells, abbreviates or gives by its initials.

    A name with the same letters comes first, then the most similar one; ties go to the nearest characters.

    >>> nearest("--epoch", ["--epoch-images", "--epochs"])
    '--epochs'
    >>> nearest("--tpo", ["--std", "--top"])
    '--top'
    >>> nearest("qiuck", ["quick", "d2l"]), nearest("--lr", ["--workers", "--learning-rate"]), nearest("x", ["vgg16"])
    ('quick', '--learning-rate', None)
    >>> [nearest(word, ["vgg11", "vgg16", "vgg19"]) for word in ("vgg1l", "vgg61", "vgg18")]
    ['vgg11', 'vgg16', 'vgg19']
    """
    target = _normalized(word[:60])
    candidates = {_normalized(name): name for name in sorted(names, key=len)}
    for candidate, name in candidates.items():
        initials = "".join(part[:1] for part in candidate.split("-"))
        if len(target) > 1 and (candidate.startswith(target) or target == initials):
            return name

    def similarity(candidate: str) -> tuple[bool, float, int]:
        distance = sum(abs(ord(a) - ord(b)) for a, b in zip(target, candidate, strict=False))
        return sorted(target) == sorted(candidate), difflib.SequenceMatcher(None, target, candidate).ratio(), -distance

    best = max(candidates, key=similarity, default="")
    has_same_letters, ratio, _ = similarity(best)
    return candidates[best] if best and (has_same_letters or ratio >= 0.75) else None


def _normalized(name: str) -> str:
    """`name` in lower case, without outer dashes, and with digits for the letters that look like them."""
    return name.lower().replace("_", "-").strip("-").translate(str.maketrans("lio", "110"))


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # os.fsdecode's surrogate for a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
