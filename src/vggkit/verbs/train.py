"""`vgg train`: train by a recipe into a run folder."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from vggkit.errors import DataError, LostError, UserError, shown
from vggkit.training.recipe import Recipe
from vggkit.training.run_folder import RECIPE, read_recipe
from vggkit.training.stopping import signals_handled
from vggkit.verbs.terminal import DONE, RESUMABLE, check_workers, parse_flags, print_to_stderr, values_of
from vggkit.weights.runs import MODEL


@dataclass(frozen=True)
class Flags:
    """Train a network into a run folder.

    Examples:
      vgg train --recipe d2l --epochs 1
      vgg train --data photos --bad-images skip --out runs/photos
    """

    fields: Annotated[Recipe, arg(name="recipe")]
    """The recipe: all that decides the run. The defaults are those of the named recipe."""
    recipe: str = "quick"
    """quick, five-minutes, best, d2l, d2l-1.0, gluon, paper, finetune or a .json file of a recipe; the other flags
    change it."""
    out: Annotated[Path | None, arg(metavar="DIR")] = None
    """The run folder, which must not exist yet; runs/<name>-<number> if not given."""
    resume: Path | None = None
    """A run folder to resume from; if it does not exist, the run is begun, given --recipe or a flag of a recipe."""
    more_epochs: int | None = None
    """With --resume RUN: begin a new run of this many epochs, with a new schedule, from the weights of RUN."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps; if not given, a GPU if there is one."""
    data_dir: Path | None = None
    """Folder to search for Fashion-MNIST first."""
    save_seconds: float = 50.0
    """Seconds between checkpoints; a run is also saved when it is stopped, and at its end."""
    workers: int | None = None
    """Threads that decode image files ahead; half of the cores, at most 16, if not given."""
    engine: Literal["fast", "eager", "torch"] | None = None
    """fast: the fastest that this machine offers; eager: no captured graphs; torch: torch's own layers."""


@signals_handled()  # before the slow imports, during which an interrupt could be lost
def run(arguments: list[str]) -> int:
    """Run the verb; the exit code is 75 if a signal stopped the run, which --resume continues."""
    flags = _parsed(arguments)
    _check(flags)
    recipe, resume = flags.fields, flags.resume
    if flags.more_epochs is not None and resume is not None:
        recipe, resume = recipe.continued(resume, flags.more_epochs), None

    from vggkit.data import fashion_mnist

    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
    if recipe.data == fashion_mnist.FULL_NAME and flags.data_dir is None and is_alone:
        try:
            fashion_mnist.find()
        except DataError:
            fashion_mnist.fetch(print_to_stderr)
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
    if run.leads and run.stopped_by is not None:
        finished = f"{len(run.history)} of {run.recipe.epochs} epochs"
        program = "vgg train" if is_alone else "torchrun ... -m vggkit train"
        print(f"stopped by {run.stopped_by} after {finished}; go on with: {program} --resume {shown(run.folder, 500)}")
    elif run.leads:
        print(run.summary, shown(run.folder, 500), sep="\n")
    return DONE if run.stopped_by is None else RESUMABLE


def _parsed(arguments: list[str]) -> Flags:
    """Parse the flags; the defaults of the recipe's are those of the named recipe, or of the run to resume."""
    (named,), (resumed,) = ((values_of(flag, arguments) or [""])[:1] for flag in ("--recipe", "--resume"))
    default = read_recipe(Path(named)) if named.endswith(".json") else Recipe.named(named or "quick")
    if resumed and not (Path(resumed) / RECIPE).is_file():
        flags = {"--recipe", *(f"--{field.name.replace('_', '-')}" for field in fields(Recipe))}
        given = (word.partition("=")[0].replace("_", "-").replace("--no-", "--", 1) for word in arguments)
        if flags.isdisjoint(given):
            raise UserError(f"expected a run folder, got {resumed}: nothing there, try it with --recipe, to begin it")
    elif resumed and not named:
        default = read_recipe(Path(resumed))
    return parse_flags("train", Flags, arguments, Flags(default, named or "quick"))


def _check(flags: Flags) -> None:
    if flags.more_epochs is not None and (flags.resume is None or not (flags.resume / MODEL).is_file()):
        raise UserError(f"expected --resume with a finished run for --more-epochs, got {flags.resume}")
    if flags.out is not None and flags.resume is not None and flags.more_epochs is None:
        raise UserError("expected one of --out (a new run) and --resume (one to go on with), got both")
    if not flags.save_seconds > 0:
        raise UserError(f"expected --save-seconds above 0, got {flags.save_seconds}")
    check_workers(flags.workers)
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0 and flags.resume is None:
        raise UserError(
            "expected --resume with torchrun's --max-restarts, so that a restarted run finds its folder, "
            "try --resume runs/NAME with --recipe"
        )
