"""Search for the best network under a budget.

Successive halving, one trial at a time (Jamieson & Talwalkar, arXiv 1502.07943; Li et al., arXiv 1810.05934): once a
design is among the best third of its rung, it is trained three times as long, from its checkpoint and on its schedule.
Otherwise a new design is begun, in turns a random one and a neighbour of one of the best (as in Real et al., arXiv
1802.01548). Designs are selected on images held out of training; the test set is used once, by the winner.
"""

import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vggkit.data.files import read_regular, write_whole
from vggkit.data.samples import ArrayImages
from vggkit.data.sources import open_data
from vggkit.design.memory import OptimizerState, training_memory
from vggkit.design.table import Table
from vggkit.engines.accelerate import accelerate
from vggkit.errors import DivergedError, RecipeError, RunError
from vggkit.lab.answers import interval_text
from vggkit.lab.bench import classifies, random_images, settled_seconds
from vggkit.lab.designs import Budget, blocks_of, drawn, nearby, sized
from vggkit.lab.doctor import examine, first_batch
from vggkit.lab.kept import FOUND, LOG, SEARCH, from_json, make_folder, read_json, refused
from vggkit.lab.pareto import Panel, front_plot
from vggkit.lab.report import Code, Heading, Part, Picture
from vggkit.lab.statistics import Interval, mean_interval, pareto_front
from vggkit.networks.baselines import build
from vggkit.training.hardware import choose_device, describe_hardware
from vggkit.training.loop import train
from vggkit.training.progress import clock
from vggkit.training.recipe import Recipe
from vggkit.training.run_data import splits_of

PROMOTED, RUNGS = 3, 3
"""One of this many designs is promoted, to be trained this many times as long; and the number of rungs."""
PARENTS = 3
"""Number of the best designs whose neighbours are tried."""
DRAWN = 5_000
"""Designs that are drawn at most; more than a search of a day tries."""
VALIDATION = 5_000
"""Training images that are held out for selection, at most a fifth of them; image files have their own holdout."""


@dataclass(frozen=True)
class Trial:
    """A design and its result after a number of epochs."""

    notation: str
    epochs: int
    """0 if it was ruled out before training."""
    accuracy: float
    """Top-1 on the held-out images; 0 if training diverged."""
    ruled_out: str = ""
    """The reason; empty if it was trained."""
    seconds: float = 0.0
    """Wall time since the previous trial, without that before a kill."""


class Finalist(NamedTuple):
    """A design that was trained to the last rung."""

    notation: str
    accuracy: float
    """Top-1 on the held-out images."""
    parameters: int
    macs: int
    milliseconds: float
    """To classify one image on this machine."""
    is_on_front: bool = False
    """Whether it is on the Pareto front of accuracy, parameters, MACs and milliseconds."""


@dataclass(frozen=True)
class Found:
    """The result of a search."""

    recipe: Recipe
    """Of the winner, for all training images."""
    finalists: tuple[Finalist, ...]
    """The best first."""
    test_accuracies: tuple[float, ...]
    """Of the winner, by seed."""
    num_designs: int
    """Trained designs."""
    num_ruled_out: int
    """Designs that the doctor or the measured time ruled out."""
    seconds: float
    """Of the search, without the winner's final runs."""
    hardware: str

    @property
    def test_accuracy(self) -> Interval:
        """Mean and 95% interval over the seeds."""
        return mean_interval(self.test_accuracies)

    def table(self) -> Table:
        """The finalists, with the Pareto front, and the winner's accuracy."""
        rows = [
            (notation, f"{accuracy:.4f}", f"{parameters:,}", f"{macs:,}", f"{ms:.2f}", "*" * is_on_front)
            for notation, accuracy, parameters, macs, ms, is_on_front in self.finalists
        ]
        tried = f"{self.num_designs} designs trained in {clock(self.seconds)}, {self.num_ruled_out} ruled out before"
        seeds = len(self.test_accuracies)
        over = f"mean and 95% interval over seeds 0 to {seeds - 1}" if seeds > 1 else "one run, from seed 0"
        notes = [
            f"*: on the Pareto front of accuracy, parameters, MACs and ms for one image, on {self.hardware}",
            f"the winner, {self.recipe.architecture}, is the best of {tried}",
            f"on the test set: {interval_text(self.test_accuracy)}, {over}",
        ]
        return Table(("network", "accuracy", "parameters", "MACs", "ms", "front"), [rows], 1, "", notes)

    def plot(self) -> str:
        """The finalists' accuracy against each cost, with the Pareto fronts, as SVG."""
        names, accuracies, parameters, macs, milliseconds, _ = zip(*self.finalists, strict=True)
        costs = {"MACs": macs, "parameters": parameters, f"ms for one image, {self.hardware}": milliseconds}
        return front_plot(names, accuracies, [Panel(label, values, is_cost=True) for label, values in costs.items()])

    def report(self, command: str) -> list[Part]:
        """The parts of a report; `command` reproduces it."""
        picture = Picture(self.plot(), "Accuracy of the finalists on the images that were chosen on, and the fronts.")
        return [picture, self.table(), Heading("Made by"), Code(command)]

    def to_json(self) -> dict[str, Any]:
        """The result, for JSON."""
        finalists = [finalist._asdict() for finalist in self.finalists]
        return {**vars(self), "recipe": asdict(self.recipe), "finalists": finalists}


def search(
    base: Recipe,
    budget: Budget,
    folder: Path,
    *,
    seconds: float,
    seeds: int = 3,
    device: str | None = None,
    now: Callable[[], float] = time.perf_counter,
    say: Callable[[str], None] = lambda line: None,
) -> Found | None:
    """Search for `seconds` for the best network of VGG blocks within `budget`.

    Args:
        base: the recipe, without the network; its epochs are those of the last rung.
        budget: the limits.
        folder: of this search alone; finished trials in it are not repeated.
        seconds: after which no trial is begun, those of earlier calls included and the winner's final runs not.
        seeds: final runs of the winner, on all training images.
        device: as for `train`.
        now: the clock for `seconds`.
        say: called with a line for each trial, and the time left.

    Returns:
        The result; None if a signal stopped the search, after which the same call resumes.

    Raises:
        ArchitectureError: no network is within the budget.
        RunError: the recipe does not fit its data, `folder` belongs to another search, or no network learns within
            the limits.
    """
    if seeds < 1:
        raise RecipeError(f"expected seeds from 1, got {seeds}")
    space = Space(base, budget, choose_device(device))
    log = Log(folder, {"base": asdict(base), "budget": asdict(budget)})
    rungs = sorted({max(1, base.epochs // PROMOTED**left) for left in range(RUNGS)})
    begin = now()
    while step := _next_trial(log.trials, rungs, space, is_over=log.seconds + log.longest(rungs[-1]) >= seconds):
        notation, epochs = step
        best = max((trial.accuracy for trial in log.trials), default=0)
        result = f"best accuracy {best:.4f}" if best else "no accuracy yet"
        say(f"{clock(max(0, seconds - log.seconds))} left, {result}: training {notation} to epoch {epochs}")
        trial = _run_trial(space, notation, epochs, folder / notation.replace(" ", "-"), device)
        if trial is None:
            return None
        log.add(replace(trial, seconds=now() - begin))
        begin = now()
    finalists = space.finalists([trial for trial in log.trials if trial.epochs == rungs[-1]])
    winner = replace(space.recipe(finalists[0].notation), name="found", validation=0)
    accuracies = []
    for seed in range(seeds):
        say(f"the winner, {winner.architecture}, on all training images from seed {seed}")
        # Its folder has the name of the network, as a search with more time may have another winner.
        run_folder = folder / f"winner-{winner.architecture.replace(' ', '-')}-{seed}"
        run = train(winner.changed(seed=seed), resume=run_folder, device=device, progress=False)
        if run.stopped_by is not None:
            return None
        accuracies.append(run.history[-1].test_accuracy)
    write_whole(folder / FOUND, winner.to_json().encode() + b"\n")
    num_ruled_out = sum(not trial.epochs for trial in log.trials)
    num_designs = len({trial.notation for trial in log.trials}) - num_ruled_out
    hardware = describe_hardware(space.device)
    return Found(winner, finalists, tuple(accuracies), num_designs, num_ruled_out, log.seconds, hardware)


class Space:
    """The designs within a budget for the images of a recipe; raises as `drawn`."""

    def __init__(self, base: Recipe, budget: Budget, device: torch.device) -> None:
        self.budget, self.device, self._source = budget, device, open_data(base.data)
        is_array = isinstance(self._source.train, ArrayImages)
        validation = base.validation or (min(VALIDATION, len(self._source.train) // 5) if is_array else 0)
        self._base = base.changed(hidden=(), head="gap", validation=validation)
        splits_of(self._base, self._source)  # raises before the first trial
        channels = base.in_channels(self._source.channels)
        self._data_sizes = {"in_channels": channels, "num_classes": len(self._source.classes)}
        self._sizes = {"image_size": base.image_size, **self._data_sizes}
        self._drawn = [design.notation for design in drawn(budget, DRAWN, base.seed, **self._sizes)]

    def recipe(self, notation: str) -> Recipe:
        """The recipe of a design."""
        return self._base.changed(architecture=notation)

    @cached_property
    def _batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        network, count = self.recipe("1x8_bn").network(**self._data_sizes), min(64, len(self._source.train))
        return first_batch(self._source, network, count, self._base.seed, self._base.bad_images)

    def new_design(self, trials: Sequence[Trial], parents: Sequence[str]) -> str | None:
        """An untried design, every other time a neighbour of one of `parents`; None if none is left."""
        tried = {trial.notation for trial in trials}
        draws = random.Random(f"{self._base.seed} {len(tried)}")  # noqa: S311
        near = nearby(draws.choice(parents), self.budget, draws, **self._sizes) if parents and len(tried) % 2 else None
        candidates = [near.notation, *self._drawn] if near else self._drawn
        return next((notation for notation in candidates if notation not in tried and self._fits(notation)), None)

    def _fits(self, notation: str) -> bool:
        limit, recipe = self.budget.memory_bytes, self.recipe(notation)
        state: OptimizerState = "momentum" if recipe.momentum else recipe.optimizer
        network = recipe.network(**self._data_sizes)
        return limit is None or training_memory(network, recipe.batch_size, optimizer=state).peak_bytes <= limit

    def ruled_out(self, notation: str) -> str:
        """Why a design is not trained: the doctor's verdict or its time; empty if it is worth training."""
        recipe = self.recipe(notation)
        torch.manual_seed(recipe.seed)
        how: dict[str, Any] = {name: getattr(recipe, name) for name in ("optimizer", "learning_rate", "momentum")}
        verdict = examine(build(recipe.network(**self._data_sizes), recipe.init), *self._batch, **how).verdict
        if verdict not in ("learns", "slow"):
            return verdict
        limit = self.budget.milliseconds
        return f"{ms:.3g} ms" if limit is not None and (ms := self._milliseconds(notation)) > limit else ""

    def finalists(self, trials: Sequence[Trial]) -> tuple[Finalist, ...]:
        """The designs of `trials`, of the last rung, that are fast enough, the best first."""
        limit, measured = self.budget.milliseconds, list[Finalist]()
        for trial in sorted(trials, key=lambda trial: -trial.accuracy):
            _, parameters, macs = sized(blocks_of(trial.notation), **self._sizes)
            ms = self._milliseconds(trial.notation)
            measured.append(Finalist(trial.notation, trial.accuracy, parameters, macs, ms))
        fast = [finalist for finalist in measured if limit is None or finalist.milliseconds <= limit]
        if not fast:
            got = f"{min(finalist.milliseconds for finalist in measured):.3g} ms at least" if measured else "none"
            raise RunError(
                f"expected a network that learns within the limits, got {got}, try higher ones or more --time"
            )
        is_on_front = pareto_front([(f.accuracy, -f.parameters, -f.macs, -f.milliseconds) for f in fast])
        return tuple(f._replace(is_on_front=is_on) for f, is_on in zip(fast, is_on_front, strict=True))

    def _milliseconds(self, notation: str) -> float:
        network = self.recipe(notation).network(**self._data_sizes)
        net = accelerate(build(network).to(self.device).eval())
        return 1000 * settled_seconds(classifies(net, random_images(network, 1, self.device)), self.device)


def _next_trial(trials: Sequence[Trial], rungs: Sequence[int], space: Space, is_over: bool) -> tuple[str, int] | None:
    """The next design to train and its last epoch; None at the end of the search.

    When the time is over and no design has reached the last rung, the best one is still trained to it.
    """
    ranked = sorted(trials, key=lambda trial: -trial.accuracy)
    names = {epochs: [trial.notation for trial in ranked if trial.epochs == epochs] for epochs in rungs}
    for lower, upper in reversed(list(pairwise(rungs))):
        for notation in names[lower][: 1 if is_over else len(names[lower]) // PROMOTED]:
            if notation not in names[upper]:
                return notation, upper
        if is_over and names[upper]:
            return None
    if is_over:
        return None
    best = [notation for epochs in reversed(rungs) for notation in names[epochs]][:PARENTS]
    new = space.new_design(trials, best)
    return (new, rungs[0]) if new is not None else _next_trial(trials, rungs, space, is_over=True)


def _run_trial(space: Space, notation: str, epochs: int, run: Path, device: str | None) -> Trial | None:
    """Train a design to the end of `epochs`, from its last checkpoint; None if a signal stopped it."""
    if not run.exists() and (reason := space.ruled_out(notation)):
        return Trial(notation, 0, 0.0, reason)
    try:
        trained = train(space.recipe(notation), resume=run, until_epoch=epochs, device=device, progress=False)
    except DivergedError:
        return Trial(notation, epochs, 0.0)
    if len(trained.history) < epochs:
        return None
    return Trial(notation, epochs, trained.history[epochs - 1].test_accuracy)


class Log:
    """The finished trials, in a file with a JSON line for each; a line cut short by a kill is ignored."""

    def __init__(self, folder: Path, request: Mapping[str, Any]) -> None:
        """Of the search in `folder`, which is begun if it is new; raises `RunError` if it belongs to another search."""
        self._path, self.trials, plan = folder / LOG, list[Trial](), folder / SEARCH
        if not os.path.lexists(plan):
            make_folder(folder, "search")
            write_whole(plan, json.dumps(request, indent=1).encode())
        elif read_json(plan, "the plan of a search") != json.loads(json.dumps(request)):
            raise RunError(f"expected the search that {folder} was begun with, got another one, try another --runs")
        if os.path.lexists(self._path):
            what = "the log of a search"
            try:
                lines = read_regular(self._path).decode().splitlines(keepends=True)
                entries = [json.loads(line) for line in lines if line.endswith("\n")]
                self.trials = [from_json(Trial, values, self._path, what) for values in entries]
                for trial in self.trials:
                    blocks_of(trial.notation)  # raises for any text that is no notation, as it becomes a path
            except (OSError, ValueError, RecursionError):
                raise refused(self._path, what) from None

    @property
    def seconds(self) -> float:
        """The time of all trials."""
        return sum(trial.seconds for trial in self.trials)

    def longest(self, epochs: int) -> float:
        """The time of the longest trial to the end of `epochs`, for which time is reserved."""
        return max((trial.seconds for trial in self.trials if trial.epochs == epochs), default=0.0)

    def add(self, trial: Trial) -> None:
        """Add `trial` durably."""
        self.trials.append(trial)
        write_whole(self._path, "".join(json.dumps(asdict(entry)) + "\n" for entry in self.trials).encode())
