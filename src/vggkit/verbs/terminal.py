"""What the verbs share: flags in, texts and tables out, exit codes. Imports no torch."""

import contextlib
import inspect
import io
import itertools
import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin

import tyro
from tyro.conf import CascadeSubcommandArgs, DisallowNone, FlagCreatePairsOff, arg

from vggkit.design.table import Table
from vggkit.errors import ERROR_CHARACTERS, UserError, nearest, shown

FlagsOfVerb = TypeVar("FlagsOfVerb")

DONE, FAILED, USER_ERROR, RESUMABLE, INTERRUPTED = 0, 1, 2, 75, 130
"""Exit codes; 75 is EX_TEMPFAIL of sysexits.h: stopped by a signal with a checkpoint, to be run again."""

METAVARS = {
    "model": "MODEL", "warm_start": "MODEL", "resume": "RUN", "recipe": "RECIPE", "images": "IMAGE", "data": "DATA",
    "networks": "NETWORK", "architecture": "NETWORK", "hidden": "INT", "device": "DEVICE", "memory": "SIZE",
    "data_dir": "DIR", "out": "PATH", "plot": "FILE",
}  # fmt: skip
"""What flags and arguments of these names take, in the help of every verb."""


def parse_flags(
    verb: str, flags: type[FlagsOfVerb], arguments: list[str], default: FlagsOfVerb | None = None
) -> FlagsOfVerb:
    """The flags of a verb; raises `UserError` if they are wrong, in one line where tyro draws a box.

    With a `default` of its own, which may be true, a switch can be set both ways, by --flip and --no-flip.
    """
    names = prepare(flags)
    config = (DisallowNone, CascadeSubcommandArgs, *(() if default else (FlagCreatePairsOff,)))
    # Neither is a terminal, so that help has no colours.
    printed, errors = (io.TextIOWrapper(io.BytesIO(), sys.stdout.encoding, "backslashreplace") for _ in range(2))
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
            parsed: tuple[FlagsOfVerb, list[str]] = tyro.cli(
                flags,
                prog=f"vgg {verb}",
                description=inspect.cleandoc(flags.__doc__ or ""),
                args=arguments,
                return_unknown_args=True,
                config=config,
                **given(default=default),
            )
    except SystemExit as leaving:
        if not leaving.code:  # --help
            print("\n".join(line if len(line) <= 80 else textwrap.fill(line, 80) for line in _lines(printed)))
            raise
    else:
        if parsed[1]:
            raise UserError(_unknown(verb, parsed[1][0], names))
        return parsed[0]
    # A title, then (a rule where the box is plain ASCII) the message, a rule, and where to find help.
    _title, *lines = (line.strip("│╭╮╰╯ ") for line in _lines(errors))
    body = itertools.dropwhile(lambda line: not line.strip("─-"), lines)
    message = " ".join(itertools.takewhile(lambda line: line.strip("─-"), body)).removesuffix(".")
    raise UserError(f"{message.removeprefix('Error parsing fields: ')}, try 'vgg {verb} --help'")


def _unknown(verb: str, word: str, names: list[str]) -> str:
    """What is wrong with `word`, which is no flag of the verb, and what was probably meant."""
    is_flag = word.startswith("-")
    close = nearest(
        word.partition("=")[0].replace("_", "-"), [name for name in names if name.startswith("-") == is_flag]
    )
    if not is_flag and "--architecture" in names:  # `vgg train vgg11_bn`
        close = f"--architecture '{shown(word)}'"
    return f"expected flags of vgg {verb}, got '{shown(word)}', try {close or f'vgg {verb} --help'}"


def prepare(flags: type) -> list[str]:
    """Give each flag of a dataclass its metavar, and hide defaults that say nothing; returns the flags' names.

    A field whose type is a dataclass adds the flags of that; one of several is a choice of subcommands, whose names are
    returned too.
    """
    names = []
    for field in fields(flags):
        owner = next(kind for kind in flags.__mro__ if field.name in inspect.get_annotations(kind))
        hint = owner.__annotations__[field.name]
        kind, marks = (hint.__origin__, hint.__metadata__) if hasattr(hint, "__metadata__") else (hint, ())
        nested = [part for part in (kind, *get_args(kind)) if is_dataclass(part)]
        for part in nested:
            names += [*prepare(cast(type, part)), *([cast(type, part).__name__.lower()] if len(nested) > 1 else [])]
        if not nested:
            names.append("--" + field.name.replace("_", "-"))
        if _STYLE in marks:
            continue
        metavar = METAVARS.get(field.name)
        if metavar and any(get_origin(part) is tuple for part in (kind, *get_args(kind))):
            metavar += " ..."
        style = arg(name="") if nested else arg(metavar=metavar, help_behavior_hint=_shown_default)
        owner.__annotations__[field.name] = Annotated[(kind, _STYLE, style, *marks)]  # the verb's own marks win
    return names


def _lines(stream: io.TextIOWrapper) -> list[str]:
    stream.seek(0)
    return [line.rstrip() for line in stream]


def _shown_default(default: str) -> str:
    return "" if default in ("", "None", "False") else f"(default: {default})"


_STYLE = object()
"""Marks a field that was prepared."""


def given(**options: Any) -> dict[str, Any]:
    """The `options` that are not None: those that the user gave."""
    return {name: value for name, value in options.items() if value is not None}


def check_out(path: Path | None, *suffixes: str, flag: str = "--out") -> Path:
    """`path`, if a file of one of `suffixes` can be written there; raises `UserError`, before any work is done."""
    if path is None or path.suffix not in suffixes or path.is_dir() or not path.parent.is_dir():
        raise UserError(f"expected a {' or '.join(suffixes)} file in a folder that exists for {flag}, got {path}")
    return path


def print_to_stderr(line: str) -> None:
    """Print `line` to stderr at once, safely."""
    print(shown(line, ERROR_CHARACTERS), file=sys.stderr, flush=True)


def print_json(value: object) -> None:
    """`value` as one line of JSON; NaN, which JSON has not, is refused."""
    print(json.dumps(value, allow_nan=False))


def print_table(header: Sequence[str], sections: Sequence[Sequence[Sequence[str]]], left_aligned: int) -> None:
    """A table with a rule between its sections; the first `left_aligned` columns are texts."""
    print(Table(header, sections, left_aligned))
