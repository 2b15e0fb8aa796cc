"""The folder of a run, its lock, and the files in it."""

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from vggkit.data.files import open_regular, sync_folder, why_not_a_file, write_whole
from vggkit.errors import ERROR_CHARACTERS, RunError, one_line, shown
from vggkit.training.recipe import Recipe
from vggkit.training.run_state import EpochMetrics
from vggkit.weights.runs import CHECKPOINTS, METRICS, MODEL

RECIPE, BEST = "recipe.json", "best.safetensors"
DIVERGED = "diverged"  # the event in metrics.jsonl
MAX_RECIPE_BYTES = 2**20
MAX_COUNT, MAX_NUMBER = 2**53, 1e38
"""Bounds of values in metrics.jsonl: integers that JavaScript represents exactly; about the largest float32."""
MAX_METRICS_BYTES = 2**26  # how much of metrics.jsonl is read: about that of a run of a million epochs
LOCK_SECONDS = 10.0  # how long the processes of a killed run may hold the lock


def read_recipe(run: Path) -> Recipe:
    """The recipe of a run folder or in a .json file; raises `RunError`."""
    path = run if run.suffix == ".json" and not run.is_dir() else run / RECIPE
    try:
        reason = why_not_a_file(path)
        if reason is None:
            with path.open("rb") as file:
                content = file.read(MAX_RECIPE_BYTES + 1)
            if len(content) <= MAX_RECIPE_BYTES:
                return Recipe.from_json(content.decode())
            reason = f"more than {MAX_RECIPE_BYTES:,} bytes"
    except (OSError, ValueError) as error:
        reason = (error.strerror or "") if isinstance(error, OSError) else one_line(error)
    what = "a recipe" if path == run else f"a run folder with its {RECIPE}"
    raise RunError(f"expected {what}, got {run}: {reason}")


def with_whole_paths(recipe: Recipe) -> Recipe:
    """`recipe` with absolute paths. Links are not resolved: they may point elsewhere when the run is resumed."""
    whole: dict[str, Any] = {
        field: os.path.abspath(path)  # noqa: PTH100 (Path.resolve would follow the links)
        for field in ("data", "warm_start", "pretrained", "continues")
        if (path := getattr(recipe, field)) and Path(path).exists()
    }
    return replace(recipe, **whole)


def read_epochs(run: Path, num_epochs: int) -> list[EpochMetrics]:
    """The epochs in the metrics of a run, in order; other lines are ignored."""
    epochs, metrics, lines = dict[int, EpochMetrics](), run / METRICS, list[bytes]()
    if metrics.is_file():
        with metrics.open("rb") as file:
            lines = file.read(MAX_METRICS_BYTES).splitlines()
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
            epoch = epoch_in(json.loads(line))
            if epoch is not None and epoch.epoch <= num_epochs:
                epochs[epoch.epoch] = epoch  # a killed run logs an epoch again
    return [epochs[number] for number in sorted(epochs)]


def epoch_in(values: dict[str, Any]) -> EpochMetrics | None:
    """The epoch in a line of metrics, None for other lines; raises any error of a wrong type, key or number."""
    if values["event"] != "epoch":
        return None
    names = {field.name for field in fields(EpochMetrics)} & values.keys()
    epoch = EpochMetrics(**{name: values[name] for name in names})
    is_possible = (
        all(is_loss(value) if name.endswith("loss") else is_number(value) for name, value in vars(epoch).items())
        and is_count(epoch.epoch) and is_count(epoch.step) and epoch.epoch > 0 and 0 <= epoch.test_accuracy <= 1
        and 0 < epoch.train_seconds < 1e12 and 0 <= epoch.examples_per_second * epoch.train_seconds < 1e15
    )  # fmt: skip
    return epoch if is_possible else None


def is_count(value: object) -> bool:
    """Whether a value in the metrics can be a step, an epoch or a number of images."""
    return type(value) is int and 0 <= value <= MAX_COUNT


def is_number(value: Any) -> bool:
    """Whether a value in the metrics is a finite number of bounded size."""
    return type(value) in (int, float) and abs(value) <= MAX_NUMBER


def is_loss(value: Any) -> bool:
    """Whether a value in the metrics can be a loss: a number, or after divergence NaN, infinity or `null`."""
    return value is None or is_number(value) or (type(value) is float and not math.isfinite(value))


@contextmanager
def new_run_folder(
    recipe: Recipe, out: str | os.PathLike[str] | None = None, runs: Path = Path("runs")
) -> Iterator[Path]:
    """Create and lock a run folder with its recipe: `out` or `<runs>/<name>-<number>`; raises `RunError`."""
    for number in itertools.count(1):
        folder = runs / f"{recipe.name}-{number}" if out is None else Path(out)
        try:
            _make_folder(folder)
            break
        except FileExistsError:
            if out is not None:
                raise _exists_error(folder) from None
    with _locked(folder):
        if os.path.lexists(folder / RECIPE):  # created by --resume in between
            raise _exists_error(folder)
        write_whole(folder / RECIPE, recipe.to_json().encode() + b"\n")
        yield folder


@contextmanager
def resumed_run_folder(recipe: Recipe, run: Path) -> Iterator[Path]:
    """Lock the folder of a run of `recipe`, which may be empty or missing; raises `RunError`."""
    if not run.is_dir():
        try:
            _make_folder(run)
        except FileExistsError:  # created concurrently, a file, or a dangling link
            if not run.is_dir():
                raise RunError(f"expected a run folder, got {run}: {why_not_a_file(run) or 'a file'}") from None
    with _locked(run) as names:
        leftovers = [name for name in names if name.startswith(f".{RECIPE}-")]  # from a kill while writing
        if set(names) <= {*leftovers, "lost+found"}:  # the latter at the root of a file system
            write_whole(run / RECIPE, recipe.to_json().encode() + b"\n")
        _check_same(recipe, run)
        if (run / CHECKPOINTS).is_symlink():
            raise RunError(
                f"expected {run / CHECKPOINTS} as a folder, got a link: old checkpoints are removed there, "
                "which may be another run's; try a link to the whole run"
            )
        yield run


def _make_folder(folder: Path) -> None:
    """Create `folder` and its parents durably; raises `RunError`, or `FileExistsError` if `folder` exists."""
    try:
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True)
        for created in new:
            sync_folder(created.parent)
    except OSError as error:
        if isinstance(error, FileExistsError) and os.path.lexists(folder):  # not: a parent is a file
            raise
        raise RunError(f"expected a folder that can be made, got {folder}: {error.strerror}") from None


@contextmanager
def _locked(folder: Path) -> Iterator[list[str]]:
    """Lock `folder` and yield the names in it; raises `RunError` if another process keeps the lock."""
    with ExitStack() as stack:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, descriptor)
            deadline = time.monotonic() + LOCK_SECONDS
            while not _try_lock(descriptor):
                if time.monotonic() > deadline:
                    raise RunError(f"expected a run that no other process trains, got {folder}, which is in use")
                time.sleep(0.1)
            names = [path.name for path in folder.iterdir()]
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(0, "no permission to write")
        except OSError as error:
            raise RunError(f"expected a run folder to write in, got {folder}: {error.strerror}") from None
        yield names


def is_locked(run: Path) -> bool:
    """Whether a process is training `run`."""
    descriptor = os.open(run, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return not _try_lock(descriptor, shared=True)
    finally:
        os.close(descriptor)


def state_of(run: Path) -> tuple[str, str | None]:
    """The state of a run (training, finished, failed or stopped) and why it failed; raises `OSError`."""
    if is_locked(run):
        return "training", None
    if (run / MODEL).is_file():
        return "finished", None
    reason = why_failed(run)
    return ("failed", reason) if reason else ("stopped", None)


def why_failed(run: Path) -> str | None:
    """How the training of a run diverged, by the last line of its metrics; None if it did not."""
    damages = (OSError, ValueError, TypeError, LookupError, RecursionError)
    with contextlib.suppress(*damages), open_regular(run / METRICS) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 8 * ERROR_CHARACTERS))
        last = json.loads(file.readlines()[-1])
        if last["event"] == DIVERGED:
            return f"diverged: {shown(last['reason'], ERROR_CHARACTERS)}"
    return None


def _try_lock(descriptor: int, shared: bool = False) -> bool:
    import fcntl  # POSIX only

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _exists_error(folder: Path) -> RunError:
    return RunError(
        f"expected a run folder that does not exist yet, got {folder}, try another --out, or --resume {folder} to go on"
    )


def _check_same(recipe: Recipe, run: Path) -> None:
    """Raise `RunError` if `recipe` differs from that of `run` in more than the path of the data, which may move.

    The fingerprint in the checkpoint identifies the data.
    """
    saved = replace(read_recipe(run), data=recipe.data)
    for field in fields(Recipe):
        expected, got = getattr(saved, field.name), getattr(recipe, field.name)
        if expected != got:
            raise RunError(
                f"expected {field.name} {expected!r:.80}, which the recipe of {run} decides, got "
                f"{got!r:.80}, try without --{field.name.replace('_', '-')} or --recipe, whichever was given, or a new "
                "run with --out"
            )
