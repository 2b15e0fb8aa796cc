"""The curves of a run from its `metrics.jsonl`, which grows while it is read."""

import contextlib
import json
from pathlib import Path
from typing import Any

from vggkit.errors import RunError, shown
from vggkit.training.run_folder import read_recipe
from vggkit.weights.runs import METRICS

MAX_POINTS = 500
"""Of a series that is sent to the page."""
MAX_BYTES = 2**26
EPOCH = (
    "epoch", "step", "train_loss", "train_accuracy", "test_accuracy", "test_loss", "learning_rate",
    "examples_per_second", "elapsed_seconds",
)  # fmt: skip


class Metrics:
    """What has been read of a run's metrics so far; a damaged line is passed over."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._file: tuple[int, int] | None = None
        self._offset = 0
        self._steps: list[tuple[int, float, float]] = []
        self._epochs: list[dict[str, Any]] = []
        self._confusion: dict[str, Any] | None = None

    def read(self) -> dict[str, Any]:
        """The curves up to now, in at most 500 points, and how far the run is."""
        path = self._run / METRICS
        with contextlib.suppress(OSError), path.open("rb") as file:
            found = path.stat()
            if self._file != (found.st_ino, found.st_dev) or found.st_size < self._offset:  # written anew by --resume
                self._file, self._offset, self._steps, self._epochs = (found.st_ino, found.st_dev), 0, [], []
                self._confusion = None
            file.seek(self._offset)
            whole, newline, _ = file.read(MAX_BYTES).rpartition(b"\n")
            self._offset += len(whole + newline)
            for line in whole.splitlines():
                with contextlib.suppress(ValueError, TypeError, LookupError, RecursionError, ArithmeticError):
                    self._take(json.loads(line))
        columns = list(zip(*thinned(self._steps), strict=True)) or [(), (), ()]
        return {
            "version": f"{self._file}-{self._offset}",
            "steps": dict(zip(("step", "loss", "accuracy"), columns, strict=True)),
            "epochs": thinned(self._epochs),
            "confusion": self._confusion,
            **self._progress(),
        }

    def _take(self, values: dict[str, Any]) -> None:
        if values["event"] == "step":
            step, loss, accuracy = int(values["step"]), values["train_loss"], values["train_accuracy"]
            while self._steps and self._steps[-1][0] >= step:  # after a kill these steps were taken again
                self._steps.pop()
            if isinstance(loss, float) and isinstance(accuracy, float):
                self._steps.append((step, loss, accuracy))
        elif values["event"] == "epoch" and all(type(values[name]) is int for name in ("epoch", "step")):
            while self._epochs and self._epochs[-1]["epoch"] >= values["epoch"]:
                self._epochs.pop()
            self._epochs.append({name: values.get(name) for name in EPOCH})
        elif values["event"] == "confusion":
            size = len(values["classes"])
            counts = [[int(count) for count in row[:size]] for row in values["counts"][:size]]
            if [len(row) for row in counts] == [size] * size:
                self._confusion = {"epoch": int(values["epoch"]), "counts": counts}
                self._confusion["classes"] = [shown(str(name)) for name in values["classes"]]

    def _progress(self) -> dict[str, Any]:
        """How far the run is, and how long it will take if it goes on as it did: known from the first epoch on."""
        step = max([row[0] for row in self._steps[-1:]] + [epoch["step"] for epoch in self._epochs[-1:]], default=0)
        told: dict[str, Any] = {"step": step, "total_steps": None, "seconds_left": None, "num_epochs": None}
        with contextlib.suppress(RunError):
            told["num_epochs"] = read_recipe(self._run).epochs
        last = self._epochs[-1] if self._epochs else None
        if last and told["num_epochs"] and last["step"] >= last["epoch"] > 0:
            told["total_steps"] = last["step"] // last["epoch"] * told["num_epochs"]
            if isinstance(last["elapsed_seconds"], float):
                told["seconds_left"] = last["elapsed_seconds"] / last["step"] * (told["total_steps"] - step)
        return told


def thinned(rows: list[Any]) -> list[Any]:
    """At most 500 of `rows`, evenly spread, the last one among them."""
    if len(rows) <= MAX_POINTS:
        return rows
    return [rows[index * (len(rows) - 1) // (MAX_POINTS - 1)] for index in range(MAX_POINTS)]
