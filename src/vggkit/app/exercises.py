"""The chapter's exercises: answers that `vgg experiment` and `vgg chapter` have measured, and measuring one."""

import os
import threading
from pathlib import Path
from typing import Any

from vggkit.app.commands import Started
from vggkit.app.metrics import Metrics
from vggkit.errors import RunError, UserError, shown
from vggkit.lab.experiments import EXPERIMENTS

MAX_CHAPTERS = 100
"""Folders of chapters that are searched."""


class Exercises:
    """The exercises whose experiments are in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._lock = threading.Lock()
        self._measuring: tuple[str, Started] | None = None

    def listed(self) -> list[dict[str, str]]:
        """The name and the question of each exercise."""
        return [{"name": name, "question": question.words} for name, question in EXPERIMENTS.items()]

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """How far the page's own experiment on an exercise is, and all measured answers, its own first.

        Raises:
            RunError: a folder was not written by an experiment.
        """
        from vggkit.lab.answers import answered
        from vggkit.lab.kept import EXPERIMENT
        from vggkit.lab.trials import read_outcomes, read_plan

        name, answers = _name_in(body), []
        progress: dict[str, Any] = {"trials": 0, "ended": 0, "now": "", "share": 0.0}
        chapters = sorted(self.folder.glob(f"chapter-*/{name}"))[:MAX_CHAPTERS]
        for folder in (self.folder / name, *chapters):
            if not os.path.lexists(folder / EXPERIMENT):
                continue
            plan = read_plan(folder)
            runs, outcomes = plan.runs(folder), read_outcomes(plan, folder)
            todo = [trial for trial in runs if trial not in outcomes]
            if folder.parent == self.folder:
                progress |= {"trials": len(runs), "ended": len(outcomes)}
                for label, seed in todo[:1]:
                    part = Metrics(runs[label, seed]).read()["step"] / plan.chosen[label].steps
                    progress |= {"now": f"{label}, seed {seed}", "share": (len(outcomes) + part) / len(runs)}
            if not todo:
                answer = answered(plan, [outcomes[trial] for trial in runs])
                epochs = sorted({chosen.epochs for chosen in plan.chosen.values()})
                measured = {
                    "data": sorted({Path(plan.recipe(label).data).name for label in plan.chosen}),
                    "epochs": epochs if len(epochs) < 3 else [epochs[0], epochs[-1]],
                    "hardware": sorted({outcome.hardware for outcome in outcomes.values()}),
                    "folder": str(folder.relative_to(self.folder.parent)),
                    "shared": answer.shared,
                }
                answers.append(answer.to_json() | measured)
        return {"name": name, **progress, "answers": answers, **self._state(name)}

    def measure(self, body: dict[str, Any]) -> dict[str, Any]:
        """Start `vgg experiment` on an exercise, or continue it; one exercise at a time."""
        name = _name_in(body)
        with self._lock:
            if self._measuring is not None and self._measuring[1].is_running:
                raise RunError(
                    f"expected one exercise at a time, got {name} beside {self._measuring[0]}, try to stop it"
                )
            self._measuring = (name, Started("experiment", name, "--runs", str(self.folder / name)))
        return {"name": name}

    def stop(self, body: dict[str, Any]) -> dict[str, Any]:
        """Ask the exercise being measured to end after the current step; `measure` continues from there."""
        name = _name_in(body)
        with self._lock:
            if self._measuring is None or self._measuring[0] != name or not self._measuring[1].is_running:
                raise RunError(f"expected an exercise that this page measures, got {name}")
            self._measuring[1].stop()
        return {"name": name}

    def _state(self, name: str) -> dict[str, Any]:
        """Whether this page is measuring the exercise, and its error if that failed."""
        measuring = self._measuring
        if measuring is None or measuring[0] != name:
            return {"is_measuring": False, "error": None}
        return {"is_measuring": measuring[1].is_running, "error": measuring[1].error}


def _name_in(body: dict[str, Any]) -> str:
    name = body.get("name")
    if not isinstance(name, str) or name not in EXPERIMENTS:
        raise UserError(f"expected an exercise of {', '.join(EXPERIMENTS)}, got {shown(str(name))}")
    return name
