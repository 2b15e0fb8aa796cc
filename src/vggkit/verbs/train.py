"""`vgg train`: a recipe to a run folder."""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import OmitArgPrefixes

from vggkit.training.recipe import Recipe
from vggkit.verbs.terminal import DONE, FAILED, INTERRUPTED, parse_flags, print_to_stderr


@dataclass(frozen=True)
class Flags:
    """Train a network into a new run folder. Without flags: the quick recipe on Fashion-MNIST."""

    fields: OmitArgPrefixes[Recipe]
    recipe: str = "quick"
    """The named recipe that the other flags change."""
    out: Path | None = None
    """The run folder, which must not exist yet; runs/<name>-<number> if not given."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps; a GPU, if there is one, if not given."""
    data_dir: Path | None = None
    """Where to look for Fashion-MNIST first."""


def run(arguments: list[str]) -> int:
    """Run the verb; returns the exit code."""
    # The recipe comes first, so that --help shows its values as the defaults of the other flags.
    named = "quick"
    for argument, following in itertools.pairwise([*arguments, ""]):
        if argument == "--recipe" and following:
            named = following
        elif argument.startswith("--recipe="):
            named = argument.removeprefix("--recipe=")
    flags = parse_flags("train", Flags, arguments, Flags(Recipe.named(named), named))

    from vggkit.data import fashion_mnist
    from vggkit.training.loop import DivergedError, train

    if flags.fields.data == fashion_mnist.FULL_NAME and flags.data_dir is None:
        _find_or_fetch()
    try:
        run = train(flags.fields, out=flags.out, device=flags.device, data_dir=flags.data_dir)
    except DivergedError as error:
        print(f"vgg train: {error}", file=sys.stderr)
        return FAILED
    if run.interrupted:
        print(f"stopped by Ctrl-C after {len(run.history)} of {run.recipe.epochs} epochs; what was learned is saved")
    if flags.fields.data == fashion_mnist.SAMPLE_NAME:
        print_to_stderr(fashion_mnist.SAMPLE_WARNING)
    print(run.summary)
    print(run.folder)
    return INTERRUPTED if run.interrupted else DONE


def _find_or_fetch() -> None:
    from vggkit.data import fashion_mnist

    try:
        fashion_mnist.find()
    except fashion_mnist.DataError:
        fashion_mnist.fetch(print_to_stderr)
