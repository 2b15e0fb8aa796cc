"""`vgg runs`: the runs in a folder, as a table. Foreign and damaged folders may lie among them."""

import contextlib
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from vggkit.data.files import why_not_a_file
from vggkit.errors import RunError, UserError, shown
from vggkit.training.run_folder import CHECKPOINTS, METRICS, MODEL, RECIPE, is_locked, read_recipe
from vggkit.verbs.terminal import DONE, parse_flags, print_json, print_table, print_to_stderr

TAIL_BYTES = 2**16
"""How much of the end of metrics.jsonl is searched for the last epoch."""


@dataclass(frozen=True)
class Flags:
    """List the runs in a folder, the newest first.

    Examples:
      vgg runs
      vgg runs /data/runs --json
    """

    folder: Positional[Path] = Path("runs")
    """The folder that holds the run folders, or one run folder."""
    json: bool = False
    """Print JSON instead of a table."""


def run(arguments: list[str]) -> int:
    """Run the verb; returns the exit code."""
    flags = parse_flags("runs", Flags, arguments)
    if not flags.folder.is_dir():
        reason = why_not_a_file(flags.folder) or "a file"
        raise UserError(f"expected a folder with runs, got {flags.folder}: {reason}, try 'vgg train' or another folder")
    listed = [_described(path) for path in (flags.folder, *flags.folder.iterdir()) if os.path.lexists(path / RECIPE)]
    listed.sort(key=lambda run: (run["age_seconds"], run["run"]))
    if flags.json:
        print_json(listed)
    elif listed:
        header = ("run", "recipe", "network", "data", "state", "epochs", "accuracy", "examples/s", "age")
        print_table(header, [[_row(run) for run in listed]], left_aligned=5)
    else:
        print_to_stderr(f"no runs in {flags.folder}")
    return DONE


def _described(path: Path) -> dict[str, Any]:
    """A run as its files say it: a value is None where they do not say it, or say what cannot be."""
    recipe: dict[str, Any] = {}
    epoch: dict[str, Any] = {}
    written, state = time.time(), "damaged"
    with contextlib.suppress(RunError, OSError):
        metrics = path / METRICS
        written = (metrics if metrics.exists() else path).stat().st_mtime
        recipe, epoch = asdict(read_recipe(path)), _last_epoch(metrics)
        has_checkpoint = any((path / CHECKPOINTS).glob("step-*/SHA256SUMS"))
        state = "finished" if (path / MODEL).is_file() else "stopped" if has_checkpoint else "begun"
        state = "training" if is_locked(path) else state
    done, accuracy, speed = (epoch.get(name) for name in ("epoch", "test_accuracy", "examples_per_second"))
    return {
        "run": os.fspath(path),
        "recipe": recipe.get("name"),
        "network": recipe.get("architecture"),
        "data": recipe.get("data"),
        "state": state,
        "epochs_done": done if type(done) is int and 0 < done <= recipe["epochs"] else None,
        "epochs": recipe.get("epochs"),
        "accuracy": accuracy if isinstance(accuracy, float) and 0 <= accuracy <= 1 else None,
        "examples_per_second": speed if isinstance(speed, float) and math.isfinite(speed) else None,
        "age_seconds": max(0, round(time.time() - written)),
    }


def _last_epoch(metrics: Path) -> dict[str, Any]:
    """The newest line of an epoch in `metrics`, whatever else is in that file."""
    if metrics.is_file():
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).splitlines()
        for line in reversed(lines):
            with contextlib.suppress(ValueError, RecursionError):
                values = json.loads(line)
                if isinstance(values, dict) and values.get("event") == "epoch":
                    return values
    return {}


def _row(run: dict[str, Any]) -> tuple[str, ...]:
    seconds, accuracy, speed = run["age_seconds"], run["accuracy"], run["examples_per_second"]
    unit, name = next((u, n) for u, n in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")) if seconds >= u or u == 1)
    return (
        run["run"],
        *(shown(run[key] or "?", limit=40) for key in ("recipe", "network", "data", "state")),
        f"{run['epochs_done'] or 0}/{run['epochs'] or '?'}",
        "" if accuracy is None else f"{accuracy:.3f}",
        "" if speed is None else f"{speed:,.0f}",
        f"{seconds // unit} {name}",
    )
