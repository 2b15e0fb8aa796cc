"""What the verbs share: flags in, JSON and lines out, exit codes. Imports no torch."""

import contextlib
import inspect
import io
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterable
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import tyro
from docstring_parser import parse_from_object
from tyro.conf import DisallowNone, FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from vggkit.errors import ERROR_CHARACTERS, UserError, VggkitError, nearest, shown

FlagsOfVerb = TypeVar("FlagsOfVerb")

Out = Annotated[FlagsOfVerb, arg(aliases=["-o"])]
"""A flag for the file to write, with the short form -o."""

DONE, FAILED, USER_ERROR, RESUMABLE, INTERRUPTED = 0, 1, 2, 75, 130
"""Exit codes; 75 is EX_TEMPFAIL of sysexits.h: stopped by a signal with a checkpoint, to be run again."""

METAVARS = {
    "data": "DATA", "model": "MODEL", "models": "MODEL", "ensemble": "MODEL", "warm_start": "MODEL",
    "pretrained": "MODEL", "resume": "RUN", "continues": "RUN", "networks": "NETWORK", "architecture": "NETWORK",
    "images": "IMAGE", "image": "IMAGE", "like": "IMAGE", "content": "CONTENT", "style": "STYLE", "layers": "LAYER",
    "classes": "CLASS", "unit": "LAYER:NUMBER", "memory": "SIZE", "max_params": "COUNT", "max_macs": "COUNT",
    "data_dir": "DIR", "folder": "DIR", "runs": "DIR", "export": "DIR", "host": "ADDRESS", "ray": "ADDRESS",
    "exercises": "QUESTION", "vary": "FIELD=VALUE,VALUE",
}  # fmt: skip
"""Metavars by name of the flag; that of another path is FILE, of a text its name, and of a number its type."""


def parse_flags(
    verb: str, flags: type[FlagsOfVerb], arguments: list[str], default: FlagsOfVerb | None = None
) -> FlagsOfVerb:
    """Parse the flags of a verb; a mistake raises `UserError` with one line instead of tyro's box.

    Args:
        verb: its name, for messages.
        flags: the dataclass of its flags. If it has actions and `arguments` name none, the first action is parsed.
        arguments: the words after the verb.
        default: values to start from. As a switch may then be on, each has two forms, --flip and --no-flip.
    """
    actions = actions_of(flags)
    if actions and arguments[:1] not in (["-h"], ["--help"]):
        names_one = arguments and not arguments[0].startswith("-")
        name, *rest = arguments if names_one else [next(iter(actions)), *arguments]
        if name not in actions:
            close = nearest(name, actions) or f"vgg {verb} --help"
            raise UserError(f"expected one of {', '.join(actions)}, got '{shown(name)}', try {close}")
        return flags(parse_flags(f"{verb} {name}", actions[name], rest))  # type: ignore[call-arg]
    known = prepare(cast(type, flags))
    if default is not None:
        known = known | {f"--no-{name[2:]}": () for name, takes in known.items() if not takes}
    _check_words(verb, arguments, known)
    # Neither stream is a terminal, so that the help has no colours. tyro knows UTF-8 in lower case only.
    encoding = (sys.stdout.encoding or "utf-8").lower()
    printed, errors = (io.TextIOWrapper(io.BytesIO(), encoding, "backslashreplace") for _ in range(2))
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
            parsed: tuple[FlagsOfVerb, list[str]] = tyro.cli(
                flags,
                prog=f"vgg {verb}",
                description=inspect.cleandoc(flags.__doc__ or ""),
                args=arguments,
                return_unknown_args=True,
                config=(DisallowNone, OmitArgPrefixes, *(() if default else (FlagCreatePairsOff,))),
                **given(default=default),
            )
    except SystemExit as leaving:
        if not leaving.code:  # --help
            width = shutil.get_terminal_size().columns  # tyro wraps its boxes to it, but not the usage
            print("\n".join(line if len(line) <= width else textwrap.fill(line, width) for line in _lines(printed)))
            raise
    else:
        if parsed[1]:
            raise UserError(_unknown(verb, parsed[1][0], known))
        return parsed[0]
    raise UserError(_refused(verb, flags.__doc__ or "", _lines(errors), arguments, known))


def _check_words(verb: str, arguments: list[str], known: dict[str, tuple[str, ...]]) -> None:
    """Raise `UserError` for what tyro accepts or explains badly: unknown or repeated flags, and empty values."""
    seen = set[str]()
    for previous, word in zip(["", *arguments], arguments, strict=False):
        name, equals, _ = word.replace("_", "-").partition("=")
        is_flag = re.match("-[a-zA-Z-]", name) and name not in ("-h", "--help")
        if is_flag and (name not in known or (equals and not known[name])):
            raise UserError(_unknown(verb, word, known))
        if is_flag and name in seen and known[name][:1] and known[name][0].endswith(" ..."):  # the last would win
            raise UserError(f"expected {name} once, with all of its values, got it twice")
        seen.add(name)
        if not word or re.fullmatch("--[a-z_-]+=", word):  # an empty path would mean the current folder
            flag = (word or previous).removesuffix("=")
            target = f" for {shown(flag)}" if flag.startswith("-") else ""
            raise UserError(f"expected a value{target}, got an empty text, try 'vgg {verb} --help'")


@cache
def prepare(flags: type) -> dict[str, tuple[str, ...]]:
    """Set the metavar and help text of each flag of a dataclass, and hide defaults such as None and False.

    This is done here because some of the dataclasses, such as the recipe, know nothing of command lines.

    Returns:
        For each flag and argument, by name: its metavar, or its choices, or nothing for a switch.
    """
    known: dict[str, tuple[str, ...]] = {}
    # The docstrings are parsed here because tyro keeps the line breaks of indented ones.
    bases = (base for base in reversed(flags.__mro__) if is_dataclass(base))
    texts = {text.arg_name: text.description or "" for base in bases for text in parse_from_object(base).params}
    for name, hint in get_type_hints(flags, include_extras=True).items():
        kind, *marks = (hint.__origin__, *hint.__metadata__) if get_origin(hint) is Annotated else (hint,)
        parts = (kind, *get_args(kind))
        if nested := [part for part in parts if is_dataclass(part)]:
            for part in nested:
                known |= prepare(cast(type, part))
            continue
        element = kind
        while get_origin(element) not in (None, Literal):  # the int of int | None and of tuple[int, ...]
            element = next(part for part in get_args(element) if part is not NoneType)
        metavar = None
        if element is not bool and not get_args(element):
            is_tuple = any(get_origin(part) is tuple for part in parts)
            default = "FILE" if element is Path else (name if element is str else element.__name__).upper()
            metavar = METAVARS.get(name, default) + " ..." * is_tuple
        is_argument = Positional in marks
        shown_metavar = f"[{metavar}]" if metavar and is_argument and hasattr(flags, name) else metavar
        help_text = " ".join(texts.get(name, "").split())
        style = arg(metavar=shown_metavar, help=help_text, help_behavior_hint=_shown_default)
        flags.__annotations__[name] = Annotated[(kind, style, *marks)]  # the verb's own marks come last, and win
        aliases = [alias for mark in marks for alias in getattr(mark, "aliases", None) or ()]
        for flag in (name if is_argument else "--" + name.replace("_", "-"), *aliases):
            known[flag] = get_args(element) or ((metavar,) if metavar else ())
    return known


def actions_of(flags: type) -> dict[str, type]:
    """The dataclasses of a verb's actions, such as `fetch` of `vgg data`, by name; empty without actions."""
    return {part.__name__.lower(): part for part in get_args(flags.__annotations__.get("action"))}


def values_of(flag: str, arguments: list[str]) -> list[str]:
    """The values of `flag` where it occurs last in `arguments`; empty if it does not."""
    values: list[str] = []
    for index, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == flag:
            following = itertools.takewhile(lambda word: not word.startswith("-"), arguments[index + 1 :])
            values = [value] if equals else list(following)
    return values


def _unknown(verb: str, word: str, known: dict[str, tuple[str, ...]]) -> str:
    """The error message for `word`, an unknown flag or a word too many, with the flag that was probably meant."""
    close = None
    if word.startswith("-"):
        close = nearest(word.partition("=")[0], [name for name in known if name.startswith("-")])
    elif "--recipe" in known:
        close = _missing_training_flag(word)
    return f"expected flags of vgg {verb}, got '{shown(word)}', try {close or f'vgg {verb} --help'}"


def _missing_training_flag(word: str) -> str | None:
    """`word` with its flag, for `vgg train photos`, `vgg train quick` and `vgg train vgg11_bn`."""
    from vggkit.design.network import as_network
    from vggkit.training.recipe import RECIPES

    if os.path.lexists(word):
        return f"--data '{shown(word, limit=500)}'"
    if recipe := nearest(word, RECIPES):
        return f"--recipe {recipe}"
    with contextlib.suppress(VggkitError):
        as_network(word)
        return f"--architecture '{shown(word)}'"
    return None


def _refused(verb: str, docs: str, box: list[str], arguments: list[str], known: dict[str, tuple[str, ...]]) -> str:
    """The error in tyro's `box` as one line: expected, got, try."""
    # The box holds a title, (where it is plain ASCII, a rule,) the message, a rule, and where to find help.
    _title, *lines = (line[2:].rstrip("│ ") for line in box)
    body = itertools.dropwhile(lambda line: not line.strip(" ─-"), lines)
    rows = list(itertools.takewhile(lambda line: line.strip(" ─-"), body))
    message = " ".join(map(str.strip, rows))
    if message.startswith("Missing from"):
        missing = [row.split(", ")[-1].strip() for row in rows if re.match(r" {4}\S", row)]
        examples = re.findall(rf"^ *(vgg {verb} .*)$", docs, re.MULTILINE)
        return f"expected {' and '.join(missing)}, got none, try '{examples[0]}'"
    named = re.search(r"(?:for argument '|^Error parsing )(?:-o/)?([\w-]+)", message)
    if named is None or named[1] not in known:
        message = message.removesuffix(".").removeprefix("Error parsing fields: ")
        return message if ", try " in message else f"{message}, try 'vgg {verb} --help'"
    name, takes = named[1], known[named[1]]
    wrong = [value for value in values_of(name, arguments) if value not in takes]
    got = wrong or re.findall("invalid choice '(.*?)'", message)
    close = nearest(got[0], takes) if got and len(takes) > 1 else None
    got_text = f"'{shown(' '.join(got))}'" if got else "none"
    expected = "one of " * (len(takes) > 1) + ", ".join(takes) + f" for {name}" * name.startswith("-")
    return f"expected {expected}, got {got_text}, try {close or f'vgg {verb} --help'}"


def _lines(stream: io.TextIOWrapper) -> list[str]:
    stream.seek(0)
    return [line.rstrip() for line in stream]


def _shown_default(default: str) -> str:
    return "" if default in ("", "''", "None", "False") else f"(default: {default})"


def given(**options: Any) -> dict[str, Any]:
    """The `options` that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def check_out(path: Path, *suffixes: str, flag: str = "--out", reads: Iterable[object] = ()) -> None:
    """Raise `UserError`, before any work is done, unless a file of one of `suffixes` can be written at `path`.

    For `reads` and `flag` see `check_kept`.
    """
    expected = f"expected a {' or '.join(suffixes)} file in a folder that exists for {flag}, got {path}"
    if path.suffix not in suffixes or path.is_dir() or not path.parent.is_dir():
        raise UserError(expected)
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"{expected}: {error.strerror}") from None
    check_kept(path, reads, flag)


def check_kept(path: Path, reads: Iterable[object], flag: str = "--out") -> None:
    """Raise `UserError` if writing a file at `path` would replace a file of a run, or change what the verb reads.

    Args:
        path: where a file would be written.
        reads: files, runs and folders of images that the verb reads; other names and None are ignored.
        flag: by which the user named `path`.
    """
    from vggkit.lab.kept import EXPERIMENT, FOUND, LOG, OUTCOME, SEARCH
    from vggkit.training.run_folder import BEST, RECIPE
    from vggkit.weights.runs import FILES, MODEL, SUMS

    place = Path(os.path.realpath(path))
    marks_of_runs = (RECIPE, SUMS, EXPERIMENT, SEARCH)
    files_of_runs = (*marks_of_runs, *FILES, MODEL, BEST, "curves.png", OUTCOME, FOUND, LOG)
    if place.name in files_of_runs and any((place.parent / name).is_file() for name in marks_of_runs):
        raise UserError(f"expected a new file for {flag}, got a file of a run: {path}, try another folder")
    exists = os.path.exists  # unlike Path.exists it takes a name too long for any file
    for source in map(str, filter(None, reads)):
        from vggkit.data.folders import holds_runs  # which needs NumPy: a verb that only writes starts without

        weights = [f"{source}/{MODEL}", f"{source}/{BEST}"]
        if exists(path) and any(exists(file) and path.samefile(file) for file in (source, *weights)):
            raise UserError(f"expected a new file for {flag}, got one that is read: {path}, try another name")
        is_data_folder = exists(f"{source}/.") and not any(map(exists, weights)) and not holds_runs(source)
        if is_data_folder and Path(os.path.realpath(source)) in place.parents:
            raise UserError(f"expected a file outside of {source}, which is read, for {flag}, got {path}")


def check_workers(workers: int | None) -> None:
    """Raise `UserError` unless `workers` is a valid number of threads that decode images."""
    if workers is not None and not 0 <= workers <= 1024:
        raise UserError(f"expected --workers from 0 to 1024, got {workers}")


def print_to_stderr(line: str) -> None:
    """Print `line` to stderr at once, escaped as by `shown`."""
    print(shown(line, ERROR_CHARACTERS), file=sys.stderr, flush=True)


def print_json(value: object) -> None:
    """Print `value` as one line of JSON; raises `ValueError` for NaN, which JSON does not have."""
    print(json.dumps(value, allow_nan=False))
