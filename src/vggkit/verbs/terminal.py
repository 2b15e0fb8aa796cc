"""What the verbs share: flags in, texts and tables out, exit codes. Imports no torch."""

import contextlib
import io
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
from tyro.conf import DisallowNone, FlagCreatePairsOff

from vggkit.design.table import Table
from vggkit.errors import UserError

FlagsOfVerb = TypeVar("FlagsOfVerb")

DONE, FAILED, USER_ERROR, RESUMABLE, INTERRUPTED = 0, 1, 2, 75, 130
"""Exit codes; 75 is EX_TEMPFAIL of sysexits.h: stopped by a signal with a checkpoint, to be run again."""


def parse_flags(
    verb: str, flags: type[FlagsOfVerb], arguments: list[str], default: FlagsOfVerb | None = None
) -> FlagsOfVerb:
    """The flags of a verb; raises `UserError` if they are wrong, in one line where tyro draws a box.

    With a `default` of its own, which may be true, a switch can be set both ways, by --flip and --no-flip.
    """
    keywords: dict[str, Any] = (
        {"config": (DisallowNone, FlagCreatePairsOff)}
        if default is None
        else {"config": (DisallowNone,), "default": default}
    )
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed: FlagsOfVerb = tyro.cli(flags, prog=f"vgg {verb}", args=arguments, **keywords)
        return parsed
    except SystemExit as leaving:
        if not leaving.code:  # --help
            raise
    # A title, then (a rule where the box is plain ASCII) the message, a rule, and where to find help.
    _title, *lines = (line.strip("│╭╮╰╯ ") for line in errors.getvalue().splitlines())
    body = itertools.dropwhile(lambda line: not line.strip("─-"), lines)
    message = " ".join(itertools.takewhile(lambda line: line.strip("─-"), body))
    raise UserError(f"{message.removeprefix('Error parsing fields: ')}, try 'vgg {verb} --help'")


def given(**options: Any) -> dict[str, Any]:
    """The `options` that are not None: those that the user gave."""
    return {name: value for name, value in options.items() if value is not None}


def check_out(path: Path | None, *suffixes: str, flag: str = "--out") -> Path:
    """`path`, if a file of one of `suffixes` can be written there; raises `UserError`, before any work is done."""
    if path is None or path.suffix not in suffixes or path.is_dir() or not path.parent.is_dir():
        raise UserError(f"expected a {' or '.join(suffixes)} file in a folder that exists for {flag}, got {path}")
    return path


def print_to_stderr(line: str) -> None:
    """Print `line` to stderr at once."""
    print(line, file=sys.stderr, flush=True)


def print_json(value: object) -> None:
    """`value` as one line of JSON; NaN, which JSON has not, is refused."""
    print(json.dumps(value, allow_nan=False))


def print_table(header: Sequence[str], sections: Sequence[Sequence[Sequence[str]]], left_aligned: int) -> None:
    """A table with a rule between its sections; the first `left_aligned` columns are texts."""
    print(Table(header, sections, left_aligned))
