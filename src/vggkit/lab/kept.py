"""What the lab keeps in its folders, read as a stranger may have left it."""

import json
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from vggkit.data.files import read_regular
from vggkit.errors import RunError

Kept = TypeVar("Kept")
MOST = 10**15
"""No number that is kept is higher: bytes, steps, seconds."""


def read_json(path: Path, what: str) -> Any:
    """The JSON in a regular file; raises `RunError`, which says that `what` was expected."""
    try:
        return json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError):
        raise refused(path, what) from None


def made(kind: type[Kept], values: Any, path: Path, what: str) -> Kept:
    """A dataclass of plain fields from a JSON object of `path`; raises `RunError` if a value is of another kind."""
    kinds = get_type_hints(kind)
    if not isinstance(values, dict) or values.keys() != kinds.keys():
        raise refused(path, what)
    for name, hint in kinds.items():
        allowed, value = get_args(hint) or (hint,), values[name]
        is_of_kind = type(value) in allowed or (type(value) is int and float in allowed)
        if not is_of_kind or (isinstance(value, int | float) and not abs(value) < MOST):
            raise refused(path, what)
    return kind(**values)


def refused(path: Path, what: str) -> RunError:
    """The error for a file that is not what was written there."""
    return RunError(f"expected {what}, got something else in {path}, try another --runs")


def make_folder(folder: Path, what: str) -> None:
    """Make `folder` if it is missing; raises `RunError` if it cannot be made or holds anything, which is not ours."""
    if folder.is_dir() and any(folder.iterdir()):
        raise RunError(f"expected a folder of this {what} or a new one, got {folder}, try another --runs")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"expected a folder for the {what}, got {folder}: {error.strerror}") from None
