"""`vgg experiment`: answer a question by training recipes side by side."""

import ast
import csv
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from json import dumps
from pathlib import Path
from typing import Any, get_type_hints

from tyro.conf import Positional

from vggkit.errors import UserError, nearest, shown
from vggkit.lab.experiments import EXPERIMENTS, Equal, Experiment, Size, named_experiment, varied
from vggkit.training.recipe import Recipe
from vggkit.verbs.terminal import DONE, RESUMABLE, Out, check_out, given, parse_flags, print_json, print_to_stderr


@dataclass(frozen=True)
class Flags:
    """Answer a question by training recipes side by side.

    Examples:
      vgg experiment resolution -o resolution.html
      vgg experiment --vary image_size=32,64 "architecture=1x16 1x32_bn,lenet"
    """

    name: Positional[str | None] = None
    """The question: resolution, alexnet-vgg, deep-or-wide, kernel-size, head, batch-norm, initialisation or family;
    with --vary your own."""
    vary: tuple[str, ...] = ()
    """Fields of the recipe with their values, FIELD=VALUE,VALUE; all combinations are trained. A value with a comma is
    put in double quotes, as in CSV: 'architecture="2x16k3,1",lenet'."""
    recipe: str | None = None
    """The recipe that --vary changes; quick if not given."""
    data: str | None = None
    """Data to use instead of the recipe's or the question's."""
    epochs: int | None = None
    """Epochs instead of those of the recipe or the question."""
    seeds: int | None = None
    """Runs of each recipe; 3 or 5 if not given."""
    equal: Equal | None = None
    """With --vary: the quantity in which all recipes equal the first: epochs (if not given); images seen in training or
    seconds of training, both to whole epochs; or macs of an image or parameters, by scaling the channels."""
    size: Size | None = None
    """How much a named question trains: its widths and epochs; minutes if not given."""
    out: Out[Path | None] = None
    """A .html, .md, .csv, .json or .svg file to write the answer to."""
    runs: Path | None = None
    """Folder of the runs, from which a stopped command resumes; experiments/<name> if not given."""
    ray: str = ""
    """Address of a Ray cluster to run the trials on, or auto; every machine needs access to the folder of the runs."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps; if not given, a GPU if there is one."""
    data_dir: Path | None = None
    """Folder to search for Fashion-MNIST first."""
    list: bool = False
    """List the named questions."""
    json: bool = False
    """Print JSON instead of a table."""


def run(arguments: list[str]) -> int:
    """Run the verb; the exit code is 75 if a signal stopped it, after which the same command resumes."""
    flags = parse_flags("experiment", Flags, arguments)
    if flags.list:
        for name, question in EXPERIMENTS.items():
            print(f"{name:<15} {question.words}")
        return DONE
    experiment = _experiment(flags)
    folder = flags.runs or Path("experiments") / experiment.name
    if flags.out is not None:
        check_out(flags.out, ".html", ".md", ".csv", ".json", ".svg", reads=(flags.data, flags.recipe))

    from vggkit.lab.answers import answered
    from vggkit.lab.report import write_report
    from vggkit.lab.trials import run_experiment

    options: dict[str, Any] = {"device": flags.device, "data_dir": flags.data_dir, "ray": flags.ray}
    plan, outcomes = run_experiment(experiment, folder, **options, say=print_to_stderr, progress=True)
    if outcomes is None:
        print(f"stopped; go on with the same command, or --runs {shown(folder, 500)}")
        return RESUMABLE
    answer = answered(plan, outcomes)
    if flags.out is not None:
        parts = answer.report(shlex.join(["vgg", "experiment", *arguments]))
        as_json = dumps(answer.to_json(), indent=1, allow_nan=False) + "\n"
        others = {"csv": answer.to_csv, "json": lambda: as_json, "svg": answer.plot}
        write_report(flags.out, experiment.question, parts, **others)
    print_json(answer.to_json()) if flags.json else print(answer.table())
    return DONE


def _experiment(flags: Flags) -> Experiment:
    """The experiment that the flags name, or describe by --vary."""
    if (flags.name is None) == (not flags.vary):
        raise UserError("expected the name of a question or --vary FIELD=VALUE,VALUE, try vgg experiment --list")
    changes = given(epochs=flags.epochs, data=flags.data)
    if flags.name is not None:
        if flags.recipe or flags.equal:
            raise UserError(f"expected --vary with --recipe and --equal, got {flags.name}, which has its own")
        experiment = named_experiment(flags.name, flags.size or "minutes")
        recipes = {label: recipe.changed(**changes) for label, recipe in experiment.recipes.items()}
        return replace(experiment, recipes=recipes, **given(seeds=flags.seeds))
    grid = _grid(flags, changes)
    base = Recipe.named(flags.recipe or "quick", **changes)
    names = [name for name, values in grid.items() if len(values) > 1]
    question = f"{base.name}: which {' and '.join(names).replace('_', ' ')}?"
    options = given(seeds=flags.seeds, equal=flags.equal)
    return Experiment("-".join(names), question, varied(base, grid), **options)


def _grid(flags: Flags, changes: Mapping[str, object]) -> dict[str, list[object]]:
    """The values of each field in --vary; raises `UserError` for a field that another flag decides too."""
    if flags.size is not None:
        raise UserError("expected --size with the name of a question, got --vary, try --epochs or --vary architecture=")
    fields = list(map(_field_values, flags.vary))
    grid = dict(fields)
    if twice := [name for index, (name, _) in enumerate(fields) if name in dict(fields[:index])]:
        raise UserError(f"expected each field once in --vary, got {twice[0]} twice")
    if both := sorted(grid.keys() & changes.keys()):
        raise UserError(f"expected {both[0]} in --vary or as --{both[0]}, got both")
    if "seed" in grid:
        raise UserError("expected --seeds, which gives the seeds of all recipes, got seed in --vary")
    if flags.equal in ("images", "seconds") and "epochs" in grid:
        raise UserError(
            f"expected other fields in --vary with --equal {flags.equal}, which decides the epochs, got epochs"
        )
    return grid


def _field_values(text: str) -> tuple[str, list[object]]:
    """The field and the values in the text FIELD=VALUE,VALUE."""
    name, _, values = text.partition("=")
    name, kinds = name.replace("-", "_"), get_type_hints(Recipe)
    if name not in kinds or not values:
        close = nearest(name, kinds)
        hint = f", try {close}=..." if close and name not in kinds else ""
        raise UserError(f"expected FIELD=VALUE,VALUE with a field of the recipe, got '{shown(text)}'{hint}")
    try:
        return name, [_value(kinds[name], value) for value in next(csv.reader([values]))]
    except csv.Error:
        raise UserError(f"expected values as in one line of CSV, got '{shown(text)}'") from None


def _value(kind: object, text: str) -> object:
    """`text` as a value of type `kind`, or as it is if it is none; the recipe checks it."""
    if kind == tuple[int, ...]:
        return tuple(int(part) if part.isdecimal() and len(part) < 10 else part for part in text.split())
    if kind in (int, float, bool) and len(text) < 100:
        try:
            return ast.literal_eval(text.capitalize() if kind is bool else text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # all of literal_eval's errors
            return text
    return text
