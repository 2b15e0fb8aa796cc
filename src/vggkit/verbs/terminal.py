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

Short = Annotated[FlagsOfVerb, arg(aliases=["-o"])]
"""A flag for the file to write, which -o names too."""

FOLDERS_OF_RUNS = ("recipe.json", "SHA256SUMS", "experiment.json", "search.json")
"""What marks the folder of a run, of a checkpoint, of an experiment and of a search."""
FILES_OF_RUNS = (
    *FOLDERS_OF_RUNS, "metrics.jsonl", "curves.png", "model.safetensors", "best.safetensors", "network.safetensors",
    "optimizer.safetensors", "state.json", "outcome.json", "found.json", "log.jsonl",
)  # fmt: skip
"""What these folders hold, which no verb but the one that made the folder writes."""

DONE, FAILED, USER_ERROR, RESUMABLE, INTERRUPTED = 0, 1, 2, 75, 130
"""Exit codes; 75 is EX_TEMPFAIL of sysexits.h: stopped by a signal with a checkpoint, to be run again."""

METAVARS = {
    "model": "MODEL", "warm_start": "MODEL", "pretrained": "MODEL", "resume": "RUN", "continues": "RUN", "name": "NAME",
    "networks": "NETWORK", "architecture": "NETWORK", "recipe": "RECIPE", "layers": "LAYER", "device": "DEVICE",
    "images": "IMAGE", "data": "DATA", "memory": "SIZE", "data_dir": "DIR", "folder": "DIR", "out": "FILE",
    "plot": "FILE", "models": "MODEL", "max_params": "COUNT", "max_macs": "COUNT", "time": "TIME", "runs": "DIR",
    "vary": "FIELD=VALUE,VALUE", "exercises": "QUESTION", "content": "CONTENT", "style": "STYLE", "image": "IMAGE",
    "like": "IMAGE", "layer": "LAYER", "scatter": "FILE", "host": "ADDRESS", "certificate": "FILE", "key": "FILE",
    "ray": "ADDRESS", "export": "DIR", "classes": "CLASS", "unit": "LAYER:NUMBER",
    "ensemble": "MODEL", "mistakes": "FILE", "reliability": "FILE", "predictions": "FILE",
    "fit_temperature": "FILE",
}  # fmt: skip
"""What flags and arguments of these names take, in the help of every verb; the others take numbers."""


def parse_flags(
    verb: str, flags: type[FlagsOfVerb], arguments: list[str], default: FlagsOfVerb | None = None
) -> FlagsOfVerb:
    """The flags of a verb; raises `UserError` if they are wrong, in one line where tyro draws a box.

    With a `default` of its own, which may be true, a switch can be set both ways, by --flip and --no-flip. A verb that
    has actions does the first of them if `arguments` name none.
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
    seen = set[str]()
    for word in arguments:
        name, equals, _ = word.replace("_", "-").partition("=")
        is_flag = re.match("-[a-zA-Z-]", name) and name not in ("-h", "--help")
        if is_flag and (name not in known or (equals and not known[name])):
            raise UserError(_unknown(verb, word, known))
        if is_flag and name in seen and known[name][:1] and known[name][0].endswith(" ..."):  # the last would win
            raise UserError(f"expected {name} once, with all of its values, got it twice")
        seen.add(name)
    for flag, word in zip(["", *arguments], arguments, strict=False):
        if not word or re.fullmatch("--[a-z_-]+=", word):  # an empty path would mean the current folder
            of = f" for {shown((word or flag).removesuffix('='))}" if (word or flag).startswith("-") else ""
            raise UserError(f"expected a value{of}, got an empty text, try 'vgg {verb} --help'")
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
                config=(DisallowNone, OmitArgPrefixes, *(() if default else (FlagCreatePairsOff,))),
                **given(default=default),
            )
    except SystemExit as leaving:
        if not leaving.code:  # --help
            width = shutil.get_terminal_size().columns  # tyro fits its boxes to it, but not the usage
            print("\n".join(line if len(line) <= width else textwrap.fill(line, width) for line in _lines(printed)))
            raise
    else:
        if parsed[1]:
            raise UserError(_unknown(verb, parsed[1][0], known))
        return parsed[0]
    raise UserError(_refused(verb, flags.__doc__ or "", _lines(errors), arguments, known))


@cache
def prepare(flags: type) -> dict[str, tuple[str, ...]]:
    """Give each flag of a dataclass its metavar, and hide defaults that say nothing.

    The dataclasses cannot say it themselves: that of a recipe, for one, knows nothing of command lines.

    Returns:
        The names of flags and arguments, and what each takes: its metavar, its choices, or nothing.
    """
    known: dict[str, tuple[str, ...]] = {}
    # tyro itself keeps the line breaks of a text that is indented.
    bases = (base for base in reversed(flags.__mro__) if is_dataclass(base))
    texts = {text.arg_name: text.description or "" for base in bases for text in parse_from_object(base).params}
    for name, hint in get_type_hints(flags, include_extras=True).items():
        whole, *marks = (hint.__origin__, *hint.__metadata__) if get_origin(hint) is Annotated else (hint,)
        parts = (whole, *get_args(whole))
        if nested := [part for part in parts if is_dataclass(part)]:
            for part in nested:
                known |= prepare(cast(type, part))
            continue
        kind = whole
        while get_origin(kind) not in (None, Literal):  # of int | None and tuple[int, ...], the int
            kind = next(part for part in get_args(kind) if part is not NoneType)
        metavar = None
        if kind is not bool and not get_args(kind):
            is_tuple = any(get_origin(part) is tuple for part in parts)
            metavar = METAVARS.get(name, kind.__name__.upper()) + " ..." * is_tuple
        is_argument = Positional in marks
        shown_metavar = f"[{metavar}]" if metavar and is_argument and hasattr(flags, name) else metavar
        told = " ".join(texts.get(name, "").split())
        style = arg(metavar=shown_metavar, help=told, help_behavior_hint=_shown_default)
        flags.__annotations__[name] = Annotated[(whole, style, *marks)]  # the verb's own marks win
        aliases = [alias for mark in marks for alias in getattr(mark, "aliases", None) or ()]
        for flag in (name if is_argument else "--" + name.replace("_", "-"), *aliases):
            known[flag] = get_args(kind) or ((metavar,) if metavar else ())
    return known


def actions_of(flags: type) -> dict[str, type]:
    """The dataclasses that the field `action` of a verb may be, by their names on the command line."""
    return {part.__name__.lower(): part for part in get_args(flags.__annotations__.get("action"))}


def values_of(flag: str, arguments: list[str]) -> list[str]:
    """The words that `arguments` give to `flag`, the last time that it is there."""
    values: list[str] = []
    for index, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == flag:
            following = itertools.takewhile(lambda word: not word.startswith("-"), arguments[index + 1 :])
            values = [value] if equals else list(following)
    return values


def _unknown(verb: str, word: str, known: dict[str, tuple[str, ...]]) -> str:
    """What is wrong with `word`, which is no flag of the verb, and what was probably meant."""
    close = None
    if word.startswith("-"):
        close = nearest(word.partition("=")[0], [name for name in known if name.startswith("-")])
    elif "--recipe" in known:
        close = _meant_to_train(word)
    return f"expected flags of vgg {verb}, got '{shown(word)}', try {close or f'vgg {verb} --help'}"


def _meant_to_train(word: str) -> str | None:
    """The flag that `vgg train photos`, `vgg train quick` and `vgg train vgg11_bn` lack."""
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
    """What tyro's `box` says, in one line: what was expected, what came, what to try."""
    # A title, then (a rule where the box is plain ASCII) the message, a rule, and where to find help.
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
    got = values_of(name, arguments) or re.findall("invalid choice '(.*?)'", message)
    close = nearest(got[0], takes) if got and len(takes) > 1 else None
    told = f"'{shown(' '.join(got))}'" if got else "none"
    what = "one of " * (len(takes) > 1) + ", ".join(takes) + f" for {name}" * name.startswith("-")
    return f"expected {what}, got {told}, try {close or f'vgg {verb} --help'}"


def _lines(stream: io.TextIOWrapper) -> list[str]:
    stream.seek(0)
    return [line.rstrip() for line in stream]


def _shown_default(default: str) -> str:
    return "" if default in ("", "''", "None", "False") else f"(default: {default})"


def given(**options: Any) -> dict[str, Any]:
    """The `options` that are not None: those that the user gave."""
    return {name: value for name, value in options.items() if value is not None}


def check_out(path: Path, *suffixes: str, flag: str = "--out", reads: Iterable[object] = ()) -> None:
    """Raise `UserError`, before any work is done, unless a file of one of `suffixes` can be written at `path`.

    Nothing of a run and nothing of what the verb `reads`, see `check_kept`, may be lost by it.
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
    """Raise `UserError` if a file written at `path` replaces one of a run, or changes what is read.

    Args:
        path: where a file would be written.
        reads: files, runs and folders of images that the verb reads; names of what is no file, and None, are ignored.
        flag: by which the user named `path`.
    """
    place = Path(os.path.realpath(path))
    if place.name in FILES_OF_RUNS and any((place.parent / name).is_file() for name in FOLDERS_OF_RUNS):
        raise UserError(f"expected a new file for {flag}, got a file of a run: {path}, try another folder")
    exists = os.path.exists  # of a path too long to be one too
    for one in map(str, filter(None, reads)):
        weights = [f"{one}/model.safetensors", f"{one}/best.safetensors"]
        if exists(path) and any(exists(known) and path.samefile(known) for known in (one, *weights)):
            raise UserError(f"expected a new file for {flag}, got one that is read: {path}, try another name")
        is_run = any(map(exists, (*weights, f"{one}/recipe.json")))
        if exists(f"{one}/.") and not is_run and Path(os.path.realpath(one)) in place.parents:
            raise UserError(f"expected a file outside of {one}, which is read, for {flag}, got {path}")


def check_workers(workers: int | None) -> None:
    """Raise `UserError` unless so many threads can decode images."""
    if workers is not None and not 0 <= workers <= 1024:
        raise UserError(f"expected --workers from 0 to 1024, got {workers}")


def print_to_stderr(line: str) -> None:
    """Print `line` to stderr at once, safely."""
    print(shown(line, ERROR_CHARACTERS), file=sys.stderr, flush=True)


def print_json(value: object) -> None:
    """`value` as one line of JSON; NaN, which JSON has not, is refused."""
    print(json.dumps(value, allow_nan=False))
