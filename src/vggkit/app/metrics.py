"""The curves of a run from its `metrics.jsonl`, which grows while it is read."""

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from vggkit.data.files import open_regular
from vggkit.errors import RunError, shown
from vggkit.training.run_folder import epoch_in, is_count, is_loss, is_number, read_recipe
from vggkit.training.run_state import overall_speed
from vggkit.weights.runs import METRICS

MAX_POINTS = 500
"""Of a series that is sent to the page."""
MAX_BYTES = 2**26


class Metrics:
    """What has been read of a run's metrics so far; a damaged line is passed over."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._file: tuple[int, int] | None = None
        self._offset = 0
        self._steps: list[tuple[int, float | None, float]] = []
        self._epochs: list[dict[str, Any]] = []
        self._confusion: dict[str, Any] | None = None

    def read(self) -> dict[str, Any]:
        """The curves up to now, in at most 500 points, and how far the run is."""
        with contextlib.suppress(OSError), open_regular(self._run / METRICS) as file:
            found = os.fstat(file.fileno())
            if self._file != (found.st_ino, found.st_dev) or found.st_size < self._offset:  # written anew by --resume
                self._file, self._offset, self._steps, self._epochs = (found.st_ino, found.st_dev), 0, [], []
                self._confusion = None
            file.seek(self._offset)
            content = file.read(MAX_BYTES)
            end = content.rfind(b"\n") + 1
            self._offset += end or (len(content) // MAX_BYTES) * MAX_BYTES  # no line of metrics is as long
            for line in content[:end].splitlines():
                with contextlib.suppress(
                    ValueError, TypeError, LookupError, AttributeError, RecursionError, ArithmeticError
                ):
                    self._take(json.loads(line))
        columns = list(zip(*thinned(self._steps), strict=True)) or [(), (), ()]
        return {
            "version": f"{self._file}-{self._offset}",
            "steps": dict(zip(("step", "loss", "accuracy"), columns, strict=True)),
            "epochs": thinned(self._epochs),
            "confusion": self._confusion,
            "examples_per_second": overall_speed(self._epochs) if self._epochs else None,
            **self._progress(),
        }

    def _take(self, values: dict[str, Any]) -> None:
        if epoch := epoch_in(values):
            while self._epochs and self._epochs[-1]["epoch"] >= epoch.epoch:  # after a kill it was trained again
                self._epochs.pop()
            self._epochs.append({name: _told(value) for name, value in vars(epoch).items()})
        elif values["event"] == "step":
            step, loss, accuracy = (values[name] for name in ("step", "train_loss", "train_accuracy"))
            if is_count(step) and is_loss(loss) and is_number(accuracy):
                while self._steps and self._steps[-1][0] >= step:
                    self._steps.pop()
                self._steps.append((step, _told(loss), accuracy))
        elif values["event"] == "confusion":
            size = len(values["classes"])
            counts = [row[:size] for row in values["counts"][:size]]
            is_square = [len(row) for row in counts] == [size] * size
            if is_square and all(map(is_count, [values["epoch"], *(count for row in counts for count in row)])):
                classes = [shown(str(name)) for name in values["classes"]]
                self._confusion = {"epoch": values["epoch"], "counts": counts, "classes": classes}

    def _progress(self) -> dict[str, Any]:
        """How far the run is, and how long it will take if it goes on as it did: known from the first epoch on."""
        step = max([row[0] for row in self._steps[-1:]] + [epoch["step"] for epoch in self._epochs[-1:]], default=0)
        told: dict[str, Any] = {"step": step, "total_steps": None, "seconds_left": None, "num_epochs": None}
        with contextlib.suppress(RunError):
            told["num_epochs"] = read_recipe(self._run).epochs
        last = self._epochs[-1] if self._epochs else None
        if last and told["num_epochs"] and last["step"] >= last["epoch"] > 0:
            told["total_steps"] = last["step"] // last["epoch"] * told["num_epochs"]
            told["seconds_left"] = last["elapsed_seconds"] / last["step"] * (told["total_steps"] - step)
        return told


def _told(value: float | None) -> float | None:
    """A loss as JSON has it: None if it has diverged."""
    return value if value is not None and math.isfinite(value) else None


def thinned(rows: list[Any]) -> list[Any]:
    """At most 500 of `rows`, evenly spread, the last one among them."""
    if len(rows) <= MAX_POINTS:
        return rows
    return [rows[index * (len(rows) - 1) // (MAX_POINTS - 1)] for index in range(MAX_POINTS)]
