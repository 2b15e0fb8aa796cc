"""The chapter's exercises: what `vgg experiment` and `vgg chapter` have measured of them, and measuring one here."""

import os
import threading
from pathlib import Path
from typing import Any

from vggkit.app.commands import Started
from vggkit.errors import RunError, UserError, shown
from vggkit.lab.experiments import EXPERIMENTS

MOST_KEPT = 100
"""Chapters whose folders are looked through."""


class Exercises:
    """The exercises in a folder of experiments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._lock = threading.Lock()
        self._measured: tuple[str, Started] | None = None

    def listed(self) -> list[dict[str, str]]:
        """The name and the question of each."""
        return [{"name": name, "question": question.words} for name, question in EXPERIMENTS.items()]

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What has been measured of an exercise: its answer, or how many trials of it have ended.

        Raises:
            RunError: what is in its folder was not written there by an experiment.
        """
        from vggkit.lab.answers import answered
        from vggkit.lab.trials import EXPERIMENT, read_outcomes, read_plan

        name, found = _name_of(asked), {"trials": 0, "ended": 0}
        chapters = sorted(self.folder.glob(f"chapter-*/{name}"))[:MOST_KEPT]
        for folder in (self.folder / name, *chapters):
            if not os.path.lexists(folder / EXPERIMENT):
                continue
            plan = read_plan(folder)
            runs, outcomes = plan.runs(folder), read_outcomes(plan, folder)
            if len(outcomes) == len(runs):
                answer = answered(plan, [outcomes[trial] for trial in runs])
                hardware = sorted({outcome.hardware for outcome in outcomes.values()})
                where = str(folder.relative_to(self.folder.parent))
                told = {"shared": answer.shared, "folder": where, "hardware": hardware}
                return {**answer.to_json(), **told, **self._state(name)}
            if folder.parent == self.folder or not found["trials"]:
                found = {"trials": len(runs), "ended": len(outcomes)}
        return {"name": name, **found, **self._state(name)}

    def measure(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Begin `vgg experiment` on an exercise, or go on with it; one at a time."""
        name = _name_of(asked)
        with self._lock:
            if self._measured is not None and self._measured[1].goes_on:
                raise RunError(
                    f"expected one exercise at a time, got {name} beside {self._measured[0]}, try to stop it"
                )
            self._measured = (name, Started("experiment", name, "--runs", str(self.folder / name)))
        return {"name": name}

    def stop(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Ask the exercise that this page measures to end after its step; the same exercise goes on from there."""
        name = _name_of(asked)
        with self._lock:
            if self._measured is None or self._measured[0] != name or not self._measured[1].goes_on:
                raise RunError(f"expected an exercise that this page measures, got {name}")
            self._measured[1].stop()
        return {"name": name}

    def _state(self, name: str) -> dict[str, Any]:
        """Whether this page measures the exercise, and how that failed."""
        measured = self._measured
        if measured is None or measured[0] != name:
            return {"is_measuring": False, "error": None}
        return {"is_measuring": measured[1].goes_on, "error": measured[1].error}


def _name_of(asked: dict[str, Any]) -> str:
    name = asked.get("name")
    if not isinstance(name, str) or name not in EXPERIMENTS:
        raise UserError(f"expected an exercise of {', '.join(EXPERIMENTS)}, got {shown(str(name))}")
    return name
