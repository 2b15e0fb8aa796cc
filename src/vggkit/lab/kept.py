"""The files that the lab keeps in its folders, read without trust in what they hold. Imports no torch."""

import json
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from vggkit.data.files import read_regular
from vggkit.errors import RunError

EXPERIMENT, OUTCOME = "experiment.json", "outcome.json"
SEARCH, LOG, FOUND = "search.json", "log.jsonl", "found.json"

Kept = TypeVar("Kept")
MAX_NUMBER = 10**15
"""The largest number that a file may hold, in bytes, steps or seconds."""


def read_json(path: Path, what: str) -> Any:
    """The JSON in a regular file; raises `RunError` with `what` as what was expected."""
    try:
        return json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError):
        raise refused(path, what) from None


def from_json(kind: type[Kept], values: Any, path: Path, what: str) -> Kept:
    """A dataclass with the fields of a JSON object from `path`; raises `RunError` for a value of another type."""
    kinds = get_type_hints(kind)
    if not isinstance(values, dict) or values.keys() != kinds.keys():
        raise refused(path, what)
    for name, hint in kinds.items():
        allowed, value = get_args(hint) or (hint,), values[name]
        is_of_type = type(value) in allowed or (type(value) is int and float in allowed)
        if not is_of_type or (isinstance(value, int | float) and not abs(value) < MAX_NUMBER):
            raise refused(path, what)
    return kind(**values)


def refused(path: Path, what: str) -> RunError:
    """The error for a file whose content vggkit did not write."""
    return RunError(f"expected {what}, got something else in {path}, try another --runs")


def make_folder(folder: Path, what: str) -> None:
    """Make `folder` if it is missing; raises `RunError` if that fails or it holds anything."""
    if folder.is_dir() and any(folder.iterdir()):
        raise RunError(f"expected a folder of this {what} or a new one, got {folder}, try another --runs")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"expected a folder for the {what}, got {folder}: {error.strerror}") from None
