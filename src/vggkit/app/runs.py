"""The runs of a folder: listed, started, stopped, resumed, and followed while they go on.

A run belongs to nobody: training is a process of its own, which goes on without the page, and a run of a terminal is
seen as one of ours is. The page knows a run by its folder's name, which is looked up among the folders that are there.
"""

import atexit
import contextlib
import json
import os
import shutil
import signal
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vggkit.app.commands import Started
from vggkit.app.metrics import Metrics
from vggkit.data.fashion_mnist import FULL_NAME, SAMPLE_NAME
from vggkit.errors import RunError, UserError, one_line, shown
from vggkit.training.recipe import RECIPES, Recipe
from vggkit.training.run_folder import RECIPE, is_locked, read_recipe
from vggkit.weights.runs import MODEL, checkpoints_of

SAVE_SECONDS = 10
"""From one checkpoint to the next, so that there is something to look at."""
MAX_STARTED = 4
"""Runs that the page lets go on at once."""


class Runs:
    """The runs and weight files in a folder, and what can be trained on."""

    def __init__(self, folder: Path, data: tuple[Path, ...] = ()) -> None:
        self.folder = folder.absolute()
        self.data = {FULL_NAME: FULL_NAME, SAMPLE_NAME: SAMPLE_NAME}
        """What to train on, by the name that the page has for it."""
        for path in data:
            self.data[path.name if path.name not in self.data else str(path)] = str(path.absolute())
        self._own = Path(tempfile.mkdtemp(prefix="vgg-app-"))
        atexit.register(shutil.rmtree, self._own, ignore_errors=True)
        self._started: dict[str, Started] = {}
        self._metrics: dict[str, Metrics] = {}
        self._lock = threading.Lock()

    def path_of(self, name: object) -> Path:
        """The run or the weight file called `name`, if there is one; raises `UserError`."""
        found = self._found().get(name) if isinstance(name, str) else None
        if found is None:
            raise UserError(f"expected a run or a weight file of {self.folder}, got {shown(str(name))}")
        return found

    def data_of(self, name: object) -> str:
        """What `--data` takes for the data set called `name`; raises `UserError`."""
        if not isinstance(name, str) or name not in self.data:
            raise UserError(f"expected data of {', '.join(self.data)}, got {shown(str(name))}")
        return self.data[name]

    def listed(self) -> list[dict[str, Any]]:
        """Every run and weight file: its name, its state, its recipe, and whether there are weights to look at."""
        found = self._found()
        with self._lock:
            starting = [name for name in self._started if name not in found]
        nothing = {"recipe": None, "has_weights": False}
        return [{"name": name, **nothing, **self._state(name, self.folder / name)} for name in starting] + [
            {"name": name, **nothing, **self._described(name, path)} for name, path in found.items()
        ]

    def recipe_from(self, asked: dict[str, Any]) -> Recipe:
        """The recipe of a request, whose data and runs are names that the page was given; raises `UserError`."""
        values = asked.get("recipe")
        if not isinstance(values, dict):
            raise UserError("expected the fields of a recipe, got something else")
        known = {"data": self.data_of(values.get("data"))}
        for field in ("warm_start", "pretrained", "continues"):
            known[field] = str(self.path_of(values[field])) if values.get(field) else ""
        return Recipe.from_json(json.dumps(values | known))

    def check(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What is wrong with a recipe that is being typed; None if nothing is."""
        try:
            self.recipe_from(asked)
        except ValueError as error:
            return {"error": one_line(error)}
        return {"error": None}

    def start(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Begin a run of the recipe that is asked for, as `vgg train` does; gives its name."""
        recipe = self.recipe_from(asked)
        with self._lock:
            self._check_room()
            taken = {*self._started, *(path.name for path in self.folder.glob("*"))}
            folder = next(name for n in range(1, 10**6) if (name := f"{recipe.name}-{n}") not in taken)
            file, name = self._own / f"{folder}.json", known_as(folder)
            file.write_text(recipe.to_json())
            self._launch(name, "--recipe", str(file), "--out", str(self.folder / folder))
        return {"name": name}

    def resume(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Go on with a run that was stopped; gives its name."""
        path = self.path_of(asked.get("run"))
        name = known_as(path.name)
        with self._lock:
            if (state := self._state(name, path)["state"]) in ("file", "starting", "training"):
                what = "a weight file" if state == "file" else "a run that goes on"
                raise RunError(f"expected a run that has stopped, got {name}, {what}, try another run")
            self._check_room()
            self._launch(name, "--resume", str(path))
        return {"name": name}

    def stop(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Ask a run, of the page or of a terminal, to end after its step, with a checkpoint."""
        name = asked.get("run")
        with self._lock:
            started = self._started.get(name) if isinstance(name, str) else None
        if started and started.goes_on:
            started.stop()
        elif number := trainer_of(self.path_of(name)):
            os.kill(number, signal.SIGTERM)
        else:
            raise RunError(f"expected a run that this machine trains, got {shown(str(name))}, try Ctrl-C where it runs")
        return {"name": name}

    def followed(self, names: list[str]) -> dict[str, dict[str, Any]]:
        """The curves and the state of some runs, by name; without those that are not there or cannot be read."""
        found, answers = self._found(), {}
        for name in names:
            if name in found or name in self._started:
                path = found.get(name, self.folder / name)
                with contextlib.suppress(OSError):
                    has_weights = self._has_weights(path)
                    answers[name] = {**self._state(name, path), "has_weights": has_weights, **self._curves(name, path)}
        return answers

    def _curves(self, name: str, path: Path) -> dict[str, Any]:
        with self._lock:
            return self._metrics.setdefault(name, Metrics(path)).read()

    def _check_room(self) -> None:
        going_on = [name for name, started in self._started.items() if started.goes_on]
        if len(going_on) >= MAX_STARTED:
            raise RunError(f"expected at most {MAX_STARTED} runs at once, got {', '.join(going_on)}, try to stop one")

    def _launch(self, name: str, *arguments: str) -> None:
        self._started[name] = Started("train", *arguments, "--save-seconds", str(SAVE_SECONDS))

    def _found(self) -> dict[str, Path]:
        """Every run and weight file that can be looked into, the newest first."""
        written = {}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            with contextlib.suppress(OSError):  # it was removed meanwhile
                if os.path.lexists(path / RECIPE) or (path.suffix == ".safetensors" and path.is_file()):
                    written[path] = path.lstat().st_mtime
        return {known_as(path.name): path for path in sorted(written, key=written.__getitem__, reverse=True)}

    def _described(self, name: str, path: Path) -> dict[str, Any]:
        try:
            state, has_weights = self._state(name, path), self._has_weights(path)
            if path.is_file():
                return {**state, "has_weights": has_weights}
            recipe, curves = asdict(read_recipe(path)), self._curves(name, path)
        except (RunError, OSError):
            return {"state": "damaged", "error": None}
        known = {"last": next(reversed(curves["epochs"]), None), "examples_per_second": curves["examples_per_second"]}
        return {**state, "recipe": recipe, "has_weights": has_weights, **known}

    @staticmethod
    def _has_weights(path: Path) -> bool:
        return path.is_file() or (path / MODEL).is_file() or bool(checkpoints_of(path))

    def _state(self, name: str, path: Path) -> dict[str, Any]:
        """Whether a run is starting, training, stopped, finished or has failed, and why; raises `OSError`."""
        started, state, error = self._started.get(name), "stopped", None
        if path.is_file():
            state = "file"
        elif started and started.goes_on:
            state = "training" if path.is_dir() else "starting"
        elif path.is_dir() and is_locked(path):
            state = "training"
        elif (path / MODEL).is_file():
            state = "finished"
        elif started and (error := started.error):
            state = "failed"
        return {"state": state, "error": error}


def known_as(name: str) -> str:
    """What the page calls a folder or a file: printable, and without the comma that stands between names."""
    return shown(name, 10_000).replace(",", "\\x2c")


def trainer_of(run: Path) -> int | None:
    """The process that holds the lock of a run folder, as Linux tells it; None if it tells of none."""
    try:
        found, lines = run.stat(), Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for _, kind, _, mode, number, held, *_ in map(str.split, lines):
        if (kind, mode, held) == ("FLOCK", "WRITE", place) and int(number) > 0:
            return int(number)
    return None


def recipes() -> dict[str, Any]:
    """The named recipes, and of each field its kind, its choices, its help and where it belongs."""
    from vggkit.app.fields import described_fields

    return {"recipes": {name: asdict(recipe) for name, recipe in RECIPES.items()}, "fields": described_fields()}
