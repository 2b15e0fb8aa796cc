"""`vgg runs`: the runs in a folder as a table, damaged ones included."""

import contextlib
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from vggkit.data.files import why_not_a_file
from vggkit.design.table import Table
from vggkit.errors import RunError, UserError, shown
from vggkit.training.run_folder import RECIPE, read_epochs, read_recipe, state_of
from vggkit.training.run_state import EpochMetrics, overall_speed
from vggkit.verbs.terminal import parse_flags, print_json, print_to_stderr
from vggkit.weights.runs import METRICS


@dataclass(frozen=True)
class Flags:
    """List the runs in a folder, the newest first.

    Examples:
      vgg runs
      vgg runs /data/runs --json
    """

    folder: Positional[Path] = Path("runs")
    """A folder with run folders, or one run folder."""
    json: bool = False
    """Print JSON instead of a table."""


def run(arguments: list[str]) -> None:
    """Run the verb."""
    flags = parse_flags("runs", Flags, arguments)
    if not flags.folder.is_dir():
        reason = why_not_a_file(flags.folder) or "a file"
        raise UserError(f"expected a folder with runs, got {flags.folder}: {reason}, try 'vgg train' or another folder")
    runs = [_summary(path) for path in (flags.folder, *flags.folder.iterdir()) if os.path.lexists(path / RECIPE)]
    runs.sort(key=lambda run: (run["age_seconds"], run["run"]))
    if flags.json:
        print_json(runs)
    elif runs:
        print(_table(runs))
    else:
        print_to_stderr(f"no runs in {flags.folder}")


def _summary(path: Path) -> dict[str, Any]:
    """The figures of a run from its files; None for what is missing or invalid in them."""
    recipe: dict[str, Any] = {}
    epochs, written, state, error = list[EpochMetrics](), time.time(), "damaged", None
    with contextlib.suppress(RunError, OSError):
        metrics = path / METRICS
        written = (metrics if metrics.exists() else path).stat().st_mtime
        recipe = asdict(read_recipe(path))
        epochs = read_epochs(path, recipe["epochs"])
        state, error = state_of(path)
    last = epochs[-1] if epochs else None
    return {
        "run": os.fspath(path),
        "recipe": recipe.get("name"),
        "network": recipe.get("architecture"),
        "data": recipe.get("data"),
        "state": state,
        "error": error,
        "epochs_done": last and last.epoch,
        "epochs": recipe.get("epochs"),
        "accuracy": last and last.test_accuracy,
        "examples_per_second": overall_speed(map(vars, epochs)) if epochs else None,
        "age_seconds": max(0, round(time.time() - written)),
    }


def _table(runs: list[dict[str, Any]]) -> Table:
    """A table as wide as the terminal, at least 80 columns; long names of runs and data are cut to fit."""
    header = ("run", "recipe", "data", "state", "epochs", "acc", "examples/s", "age")
    rows = [_row(run) for run in runs]
    name_width, _, data_width, *_ = widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    other_width = sum(widths) + len(widths) - 1 - name_width - data_width
    room = max(24, max(80, shutil.get_terminal_size().columns) - other_width)
    name_width = min(name_width, room - min(data_width, 13))
    rows = [
        (_path_end(run, name_width), recipe, _path_end(data, room - name_width), *rest)
        for run, recipe, data, *rest in rows
    ]
    notes = [f"{shown(run['run'], 200)} {run['error']}" for run in runs if run["error"]]
    return Table(header, [rows], 4, notes=notes)


def _row(run: dict[str, Any]) -> tuple[str, ...]:
    seconds, accuracy, speed = run["age_seconds"], run["accuracy"], run["examples_per_second"]
    unit, name = next((u, n) for u, n in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")) if seconds >= u or u == 1)
    return (
        *(shown(run[key] or "?", limit) for key, limit in (("run", 200), ("recipe", 8), ("data", 200), ("state", 8))),
        f"{run['epochs_done'] or 0}/{run['epochs'] or '?'}",
        "" if accuracy is None else f"{accuracy:.3f}",
        "" if speed is None else f"{speed:,.0f}",
        f"{seconds // unit} {name}",
    )


def _path_end(text: str, width: int) -> str:
    """The end of `text`, in which paths differ, in at most `width` characters."""
    return text if len(text) <= width else "..." + text[3 - width :]
