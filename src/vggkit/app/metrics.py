"""The curves of a run, read from its growing `metrics.jsonl`."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

from vggkit.data.files import open_regular
from vggkit.errors import RunError, shown
from vggkit.training.run_folder import epoch_in, is_count, is_loss, is_number, read_recipe
from vggkit.training.run_state import overall_speed
from vggkit.weights.runs import METRICS

MAX_POINTS = 500
"""Of a curve that is sent to the page."""
MAX_BYTES = 2**26
"""Read at once; a longer line is skipped."""
TAIL_BYTES = 4096


class Metrics:
    """The metrics of a run read so far; damaged lines are skipped."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._restart()

    def _restart(self) -> None:
        self._offset = 0
        self._tail = b""  # of what has been read; another one there means a rewritten file
        self._steps: list[tuple[int, float | None, float]] = []
        self._epochs: list[dict[str, Any]] = []
        self._confusion: dict[str, Any] | None = None
        self._held_out: str | None = None

    def read(self) -> dict[str, Any]:
        """The curves up to now, in at most `MAX_POINTS` points each, and the progress of the run."""
        with contextlib.suppress(OSError), open_regular(self._run / METRICS) as file:
            file.seek(self._offset - len(self._tail))
            if file.read(len(self._tail)) != self._tail:
                self._restart()
                file.seek(0)
            content = file.read(MAX_BYTES)
            end = content.rfind(b"\n") + 1
            size = end or (len(content) // MAX_BYTES) * MAX_BYTES
            self._offset += size
            self._tail = content[:size][-TAIL_BYTES:] or self._tail
            for line in content[:end].splitlines():
                with contextlib.suppress(
                    ValueError, TypeError, LookupError, AttributeError, RecursionError, ArithmeticError
                ):
                    self._add(json.loads(line))
        columns = list(zip(*thinned(self._steps), strict=True)) or [(), (), ()]
        return {
            "steps": dict(zip(("step", "loss", "accuracy"), columns, strict=True)),
            "epochs": thinned(self._epochs),
            "confusion": self._confusion,
            "examples_per_second": overall_speed(self._epochs) if self._epochs else None,
            **self._progress(),
        }

    def _add(self, event: dict[str, Any]) -> None:
        if epoch := epoch_in(event):
            while self._epochs and self._epochs[-1]["epoch"] >= epoch.epoch:  # after a kill it was trained again
                self._epochs.pop()
            self._epochs.append({name: _finite(value) for name, value in vars(epoch).items()})
        elif event["event"] == "step":
            step, loss, accuracy = (event[name] for name in ("step", "train_loss", "train_accuracy"))
            if is_count(step) and is_loss(loss) and is_number(accuracy):
                while self._steps and self._steps[-1][0] >= step:
                    self._steps.pop()
                self._steps.append((step, _finite(loss), accuracy))
        elif event.get("evaluated_on") in ("test", "validation"):
            self._held_out = event["evaluated_on"]
        elif event["event"] == "confusion":
            size = len(event["classes"])
            counts = [row[:size] for row in event["counts"][:size]]
            is_square = [len(row) for row in counts] == [size] * size
            if is_square and all(map(is_count, [event["epoch"], *(count for row in counts for count in row)])):
                classes = [shown(str(name)) for name in event["classes"]]
                self._confusion = {"epoch": event["epoch"], "counts": counts, "classes": classes}

    def _progress(self) -> dict[str, Any]:
        """The progress of the run and, after its first epoch, the time left at its mean speed."""
        step = max([row[0] for row in self._steps[-1:]] + [epoch["step"] for epoch in self._epochs[-1:]], default=0)
        progress: dict[str, Any] = {"step": step, "total_steps": None, "seconds_left": None, "num_epochs": None}
        progress["held_out"] = self._held_out or "test"
        with contextlib.suppress(RunError):
            recipe = read_recipe(self._run)
            progress["num_epochs"] = recipe.epochs
            if recipe.validation:
                progress["held_out"] = "validation"
        last = self._epochs[-1] if self._epochs else None
        if last and progress["num_epochs"] and last["step"] >= last["epoch"] > 0:
            progress["total_steps"] = last["step"] // last["epoch"] * progress["num_epochs"]
            progress["seconds_left"] = last["elapsed_seconds"] / last["step"] * (progress["total_steps"] - step)
        return progress


def _finite(value: float | None) -> float | None:
    """None for a value that JSON cannot hold, such as a diverged loss."""
    return value if value is not None and math.isfinite(value) else None


def thinned(rows: list[Any]) -> list[Any]:
    """At most `MAX_POINTS` of `rows`, evenly spread, the first and the last among them."""
    if len(rows) <= MAX_POINTS:
        return rows
    return [rows[index * (len(rows) - 1) // (MAX_POINTS - 1)] for index in range(MAX_POINTS)]
