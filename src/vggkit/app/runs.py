"""The runs of a folder: list, start, stop, resume and follow them.

Training is a process of its own, which continues without the page; runs started in a terminal are shown and stopped
like those of the page. A run is known by the name of its folder, which is looked up among the existing folders.
"""

import contextlib
import json
import os
import signal
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vggkit.app.commands import Started
from vggkit.app.metrics import Metrics
from vggkit.data.fashion_mnist import FULL_NAME, SAMPLE_NAME
from vggkit.errors import RunError, UserError, one_line, shown
from vggkit.training.recipe import RECIPES, Recipe
from vggkit.training.run_folder import RECIPE, new_run_folder, read_recipe, state_of
from vggkit.weights.runs import METRICS, MODEL, checkpoints_of

SAVE_SECONDS = 10
"""Between checkpoints, so that the page has a recent network to look at."""
MAX_STARTED = 4
"""Runs of the page that train at once."""


class Runs:
    """The runs and weight files in a folder, and the data sets to train on."""

    def __init__(self, folder: Path, data: tuple[Path, ...] = ()) -> None:
        self.folder = folder.absolute()
        self.data = {FULL_NAME: FULL_NAME, SAMPLE_NAME: SAMPLE_NAME}
        """The value of `--data` for each data set, by its name on the page."""
        for path in data:
            self.data[path.name if path.name not in self.data else str(path)] = str(path.absolute())
        self._started: dict[str, Started] = {}
        self._metrics: dict[str, Metrics] = {}
        self._lock = threading.Lock()

    def path_of(self, name: object) -> Path:
        """The run or weight file called `name`; raises `UserError`."""
        path = self._paths().get(name) if isinstance(name, str) else None
        if path is None:
            raise UserError(f"expected a run or a weight file of {self.folder}, got {shown(str(name))}")
        return path

    def data_of(self, name: object) -> str:
        """The value of `--data` for the data set called `name`; raises `UserError`."""
        if not isinstance(name, str) or name not in self.data:
            raise UserError(f"expected data of {', '.join(self.data)}, got {shown(str(name))}")
        return self.data[name]

    def listed(self) -> list[dict[str, Any]]:
        """The name, state and recipe of each run and weight file, and whether it has weights to look at."""
        defaults = {"recipe": None, "has_weights": False}
        return [{"name": name, **defaults, **self._described(name, path)} for name, path in self._paths().items()]

    def _recipe(self, body: dict[str, Any]) -> Recipe:
        """The recipe of a request, which has names for data and runs; raises `UserError`."""
        values = body.get("recipe")
        if not isinstance(values, dict):
            raise UserError("expected the fields of a recipe, got something else")
        paths = {"data": self.data_of(values.get("data"))}
        for field in ("warm_start", "pretrained", "continues"):
            paths[field] = str(self.path_of(values[field])) if values.get(field) else ""
        return Recipe.from_json(json.dumps(values | paths))

    def check(self, body: dict[str, Any]) -> dict[str, Any]:
        """The error of a recipe, None if it is valid."""
        try:
            self._recipe(body)
        except ValueError as error:
            return {"error": one_line(error)}
        return {"error": None}

    def start(self, body: dict[str, Any]) -> dict[str, Any]:
        """Create a run folder with a recipe and start `vgg train` there; returns the name of the run."""
        recipe = self._recipe(body)
        with self._lock:
            self._check_room()
            with new_run_folder(recipe, runs=self.folder) as path:
                pass
            return self._launch(path)

    def resume(self, body: dict[str, Any]) -> dict[str, Any]:
        """Resume a stopped run; returns its name."""
        path = self.path_of(body.get("run"))
        name = name_of(path.name)
        with self._lock:
            if (state := self._state(name, path)["state"]) in ("file", "starting", "training"):
                what = "a weight file" if state == "file" else "a run that goes on"
                raise RunError(f"expected a run that has stopped, got {name}, {what}, try another run")
            self._check_room()
            return self._launch(path)

    def stop(self, body: dict[str, Any]) -> dict[str, Any]:
        """Ask a run, of the page or of a terminal, to end with a checkpoint after the current step."""
        name = body.get("run")
        with self._lock:
            started = self._started.get(name) if isinstance(name, str) else None
        if started and started.is_running:
            started.stop()
        elif process_id := _trainer_of(self.path_of(name)):
            os.kill(process_id, signal.SIGTERM)
        else:
            raise RunError(f"expected a run that this machine trains, got {shown(str(name))}, try Ctrl-C where it runs")
        return {"name": name}

    def followed(self, names: list[str]) -> dict[str, dict[str, Any]]:
        """The curves and the state of runs, by name; without missing and unreadable ones."""
        paths, answers = self._paths(), {}
        for name in filter(paths.get, names):
            path = paths[name]
            with contextlib.suppress(OSError):
                has_weights = self._has_weights(path)
                answers[name] = {**self._state(name, path), "has_weights": has_weights, **self._curves(name, path)}
        return answers

    def _curves(self, name: str, path: Path) -> dict[str, Any]:
        with self._lock:
            return self._metrics.setdefault(name, Metrics(path)).read()

    def _check_room(self) -> None:
        running = [name for name, started in self._started.items() if started.is_running]
        if len(running) >= MAX_STARTED:
            raise RunError(f"expected at most {MAX_STARTED} runs at once, got {', '.join(running)}, try to stop one")

    def _launch(self, path: Path) -> dict[str, Any]:
        name = name_of(path.name)
        self._started[name] = Started("train", "--resume", str(path), "--save-seconds", str(SAVE_SECONDS))
        return {"name": name}

    def _paths(self) -> dict[str, Path]:
        """Each run and weight file by its name, the newest first."""
        modified = {}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            with contextlib.suppress(OSError):  # removed meanwhile
                if os.path.lexists(path / RECIPE) or (path.suffix == ".safetensors" and path.is_file()):
                    modified[path] = path.lstat().st_mtime
        return {name_of(path.name): path for path in sorted(modified, key=modified.__getitem__, reverse=True)}

    def _described(self, name: str, path: Path) -> dict[str, Any]:
        try:
            state, has_weights = self._state(name, path), self._has_weights(path)
            if path.is_file():
                return {**state, "has_weights": has_weights}
            recipe, curves = asdict(read_recipe(path)), self._curves(name, path)
        except (RunError, OSError):
            return {"state": "damaged", "error": None}
        latest = {name: curves[name] for name in ("held_out", "examples_per_second")}
        last = next(reversed(curves["epochs"]), None)
        return {**state, "recipe": recipe, "has_weights": has_weights, "last": last, **latest}

    @staticmethod
    def _has_weights(path: Path) -> bool:
        return path.is_file() or (path / MODEL).is_file() or bool(checkpoints_of(path))

    def _state(self, name: str, path: Path) -> dict[str, Any]:
        """The state (file, starting, training, stopped, finished or failed) and its error; raises `OSError`."""
        started = self._started.get(name)
        if path.is_file():
            return {"state": "file", "error": None}
        if started and started.is_running:
            return {"state": "training" if (path / METRICS).exists() else "starting", "error": None}
        state, error = state_of(path)
        if state == "stopped" and started and (error := started.error):
            state = "failed"
        return {"state": state, "error": error}


def name_of(name: str) -> str:
    """The name of a folder or file on the page: printable, without commas, which separate names in a query."""
    return shown(name, 10_000).replace(",", "\\x2c")


def _trainer_of(run: Path) -> int | None:
    """The id of the process that holds the lock of a run folder; None if unknown, as on other systems than Linux."""
    try:
        status, lines = run.stat(), Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    inode = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for _, kind, _, mode, process_id, locked, *_ in map(str.split, lines):
        if (kind, mode, locked) == ("FLOCK", "WRITE", inode) and int(process_id) > 0:
            return int(process_id)
    return None


def recipes() -> dict[str, Any]:
    """The named recipes, and the fields of a recipe; see `described_fields`."""
    from vggkit.app.fields import described_fields

    return {"recipes": {name: asdict(recipe) for name, recipe in RECIPES.items()}, "fields": described_fields()}
