"""The folder of a run: made once, locked while it is trained, held to its recipe."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from vggkit.data.files import sync_folder, write_whole
from vggkit.errors import RunError
from vggkit.training.recipe import Recipe

RECIPE, MODEL, BEST = "recipe.json", "model.safetensors", "best.safetensors"
LOCK_SECONDS = 10.0
"""How long the processes of a run that was killed may take to end."""


def read_recipe(run: Path) -> Recipe:
    """The recipe of a run; raises `RunError`."""
    try:
        return Recipe.from_json((run / RECIPE).read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"expected a run folder with its {RECIPE}, got {run}: {reason}") from None


def with_whole_paths(recipe: Recipe) -> Recipe:
    """`recipe` with the paths in it from the root, so that they are found from elsewhere too.

    Links in them stay: one may lead elsewhere when the run goes on, to the same images.
    """
    named: dict[str, str] = {field: getattr(recipe, field) for field in ("data", "warm_start", "pretrained")}
    whole: dict[str, Any] = {
        field: os.path.abspath(path)  # noqa: PTH100 (Path.resolve would follow the links)
        for field, path in named.items()
        if path and Path(path).exists()
    }
    return replace(recipe, **whole)


def check_same(recipe: Recipe, run: Path) -> None:
    """Raise `RunError` if `recipe` is not the one of `run`, but for where the data lies: that may have moved.

    Whether it is the same data, the fingerprint in the checkpoint says.
    """
    kept = replace(read_recipe(run), data=recipe.data)
    for field in fields(Recipe):
        expected, got = getattr(kept, field.name), getattr(recipe, field.name)
        if expected != got:
            raise RunError(
                f"expected {field.name} {expected!r}, which the recipe of {run} decides, got {got!r}, "
                "try without the flag, or a new run with --out"
            )


def check_unfinished(run: Path) -> None:
    """Raise `RunError` if `run`, which has no checkpoint, is finished: it would be trained anew over its weights."""
    if (run / MODEL).exists():
        raise RunError(
            f"expected a run with checkpoints to go on from, got {run}, which has a {MODEL} and none, as version 0.2 "
            "leaves it, try a new run with --out"
        )


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """Hold `folder` for this process alone; raises `RunError` if another one has it for long."""
    import fcntl  # which only POSIX systems have

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        last = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > last:
                    raise RunError(f"expected a run that nobody trains, got {folder}, which is in use") from None
                time.sleep(0.1)
            except OSError:  # a file system without locks
                break
        yield folder
    finally:
        os.close(descriptor)


def begin(recipe: Recipe, out: str | Path | None) -> Path:
    """A new run folder with its recipe: `out`, or `runs/<name>-<number>`; raises `RunError`."""
    numbered = (Path("runs") / f"{recipe.name}-{number}" for number in range(1, 100_000))
    for folder in [Path(out)] if out is not None else numbered:
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True)  # fails if it exists, also when two runs start at once
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(f"expected a folder that can be made, got {folder}: {error.strerror}") from None
        write_whole(folder / RECIPE, recipe.to_json().encode() + b"\n")
        for made in new:
            sync_folder(made.parent)
        return folder
    raise RunError(
        f"expected a run folder that does not exist yet, got {out}, try another --out, or --resume {out} to go on"
    )


def begin_or_find(recipe: Recipe, run: Path) -> Path:
    """The folder `run` if it is a run of `recipe`, else a new run there; raises `RunError`."""
    if run.is_dir() and all(path.name.startswith(f".{RECIPE}-") for path in run.iterdir()):
        shutil.rmtree(run)  # begun, and killed before its recipe was written
    if not run.exists():
        return begin(recipe, run)
    check_same(recipe, run)
    return run
