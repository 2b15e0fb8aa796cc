"""`vgg train`: a recipe to a run folder."""

import itertools
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes

from vggkit.errors import DataError, LostError, UserError, shown
from vggkit.training.recipe import Recipe
from vggkit.training.stopping import signals_handled
from vggkit.verbs.terminal import DONE, RESUMABLE, parse_flags, print_to_stderr


@dataclass(frozen=True)
class Flags:
    """Train a network into a run folder.

    Examples:
      vgg train --recipe d2l --epochs 1
      vgg train --data photos --bad-images skip --out runs/photos
    """

    fields: OmitArgPrefixes[Recipe]
    """The recipe: all that decides the run. The defaults are those of the named recipe."""
    recipe: str = "quick"
    """quick, d2l, d2l-1.0, gluon, paper or finetune; the other flags change it."""
    out: Path | None = None
    """The run folder, which must not exist yet; runs/<name>-<number> if not given."""
    resume: Path | None = None
    """A run folder to go on from; where there is none, the run is begun, if --recipe or a flag of a recipe is given."""
    more_epochs: int | None = None
    """With --resume RUN: begin a new run of so many epochs, with a schedule of its own, from the weights of RUN."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps; a GPU, if there is one, if not given."""
    data_dir: Path | None = None
    """Where to look for Fashion-MNIST first."""
    save_seconds: float = 50.0
    """Seconds from one checkpoint to the next; a run is also saved when it is stopped, and at its end."""
    workers: int | None = None
    """Threads that decode image files ahead; half of the cores, at most 16, if not given."""
    engine: Literal["fast", "eager", "torch"] | None = None
    """fast: all that this machine can do; eager: nothing captured ahead; torch: torch's own layers."""


@signals_handled()  # before the slow imports, in which an interrupt could be lost
def run(arguments: list[str]) -> int:
    """Run the verb; returns the exit code: 75 for a run that a signal stopped, which --resume goes on with."""
    # The recipe comes first, so that --help shows its values as the defaults of the other flags.
    named, resumed = (_value_of(flag, arguments) for flag in ("--recipe", "--resume"))
    default = Recipe.named(named or "quick")
    if resumed and not named and _has_recipe(Path(resumed)):
        from vggkit.training.run_folder import read_recipe

        default = read_recipe(Path(resumed))
    elif resumed and not _has_recipe(Path(resumed)) and not _names_a_recipe(arguments):
        raise UserError(f"expected a run folder, got {resumed}: nothing there, try it with --recipe, to begin it")
    flags = parse_flags("train", Flags, arguments, Flags(default, named or "quick"))
    _check(flags)
    recipe, resume = flags.fields, flags.resume
    if flags.more_epochs is not None and resume is not None:
        recipe, resume = recipe.continued(resume, flags.more_epochs), None

    from vggkit.data import fashion_mnist

    if recipe.data == fashion_mnist.FULL_NAME and flags.data_dir is None and not _in_team():
        _find_or_fetch()
    from vggkit.training.loop import train

    try:
        run = train(
            recipe,
            out=flags.out,
            resume=resume,
            device=flags.device,
            data_dir=flags.data_dir,
            save_seconds=flags.save_seconds,
            num_workers=flags.workers,
            engine=flags.engine,
        )
    except LostError as error:
        raise LostError(f"{error}; go on with --resume {resume or flags.out or 'RUN'}") from None
    if not run.leads:
        return DONE if run.stopped_by is None else RESUMABLE
    if run.stopped_by is not None:
        finished = f"{len(run.history)} of {run.recipe.epochs} epochs"
        is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
        program = "vgg train" if is_alone else "torchrun ... -m vggkit train"
        print(f"stopped by {run.stopped_by} after {finished}; go on with: {program} --resume {shown(run.folder, 500)}")
        return RESUMABLE
    if recipe.data == fashion_mnist.SAMPLE_NAME:
        print_to_stderr(fashion_mnist.SAMPLE_WARNING)
    print(run.summary)
    print(shown(run.folder, 500))
    return DONE


def _in_team() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _value_of(flag: str, arguments: list[str]) -> str | None:
    value = None
    for argument, following in itertools.pairwise([*arguments, ""]):
        if argument == flag and following:
            value = following
        elif argument.startswith(f"{flag}="):
            value = argument.removeprefix(f"{flag}=")
    return value


def _has_recipe(run: Path) -> bool:
    return (run / "recipe.json").is_file()


def _names_a_recipe(arguments: list[str]) -> bool:
    """Whether `arguments` say what to train: a recipe, or one of its fields."""
    flags = {"--recipe", *(f"--{field.name.replace('_', '-')}" for field in fields(Recipe))}
    return any(
        argument.partition("=")[0].replace("_", "-").replace("--no-", "--", 1) in flags for argument in arguments
    )


def _check(flags: Flags) -> None:
    from vggkit.training.run_folder import MODEL

    if flags.more_epochs is not None and (flags.resume is None or not (flags.resume / MODEL).is_file()):
        raise ValueError(f"expected --resume with a finished run for --more-epochs, got {flags.resume}")
    if flags.out is not None and flags.resume is not None and flags.more_epochs is None:
        raise ValueError("expected one of --out (a new run) and --resume (one to go on with), got both")
    if not flags.save_seconds > 0:
        raise ValueError(f"expected --save-seconds above 0, got {flags.save_seconds}")
    if flags.workers is not None and not 0 <= flags.workers <= 1024:
        raise ValueError(f"expected --workers from 0 to 1024, got {flags.workers}")
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0 and flags.resume is None:
        raise ValueError(
            "expected --resume with torchrun's --max-restarts, so that a restarted run finds its folder, "
            "try --resume runs/NAME with --recipe"
        )


def _find_or_fetch() -> None:
    from vggkit.data import fashion_mnist

    try:
        fashion_mnist.find()
    except DataError:
        fashion_mnist.fetch(print_to_stderr)
