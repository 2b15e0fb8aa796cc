"""The best network under a budget: designs are trained a little, and the better ones trained on.

Successive halving, one trial at a time (Jamieson & Talwalkar, arXiv 1502.07943; Li et al., arXiv 1810.05934): as soon
as a design is among the best third of its rung, it is trained three times as long, from its checkpoint and on the
schedule that it began. Else a new design is begun: every other one is drawn from all, the others are neighbours of the
best (as in Real et al., arXiv 1802.01548). What is chosen is chosen on images kept out of training; the test set is
touched once, by the winner.
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
from vggkit.lab.answers import written
from vggkit.lab.bench import classifies, settled_seconds
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
"""The best of so many designs is trained on, so many times as long; and how often."""
PARENTS = 3
"""The best designs so far, whose neighbours are tried."""
DRAWN = 5_000
"""At most so many designs are drawn from all; a search of a day does not come to the end of them."""
VALIDATION = 5_000
"""Of the last training images, kept out to choose on, at most a fifth; image files have a holdout of their own."""


@dataclass(frozen=True)
class Trial:
    """A design after some of its epochs."""

    notation: str
    epochs: int
    """0 if it was ruled out before it was trained."""
    accuracy: float
    """Top-1 on the images kept out of training; 0 if it diverged."""
    ruled_out: str = ""
    """Why it was."""
    seconds: float = 0.0
    """Since the trial before; those that a kill took are not in it."""


class Finalist(NamedTuple):
    """A design that was trained to the end of the schedule."""

    notation: str
    accuracy: float
    """Top-1 on the images that were chosen on."""
    parameters: int
    macs: int
    milliseconds: float
    """To classify one image on this machine."""
    is_on_front: bool = False
    """Whether no other finalist is as accurate with as few parameters, MACs and milliseconds."""


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    recipe: Recipe
    """Of the winner, to train anew on all training images."""
    finalists: tuple[Finalist, ...]
    """The best first."""
    test_accuracies: tuple[float, ...]
    """Of the winner, a run for each seed."""
    num_designs: int
    """That were trained."""
    num_ruled_out: int
    """That were not, since the doctor or a measured time ruled them out."""
    seconds: float
    """Of the search, without the winner's runs."""
    hardware: str

    @property
    def test_accuracy(self) -> Interval:
        """Mean and 95% interval over the seeds."""
        return mean_interval(self.test_accuracies)

    def table(self) -> Table:
        """The finalists, those on the Pareto front marked, and how well the winner does."""
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
            f"on the test set: {written(self.test_accuracy)}, {over}",
        ]
        return Table(("network", "accuracy", "parameters", "MACs", "ms", "front"), [rows], 1, "", notes)

    def plot(self) -> str:
        """The finalists' accuracy against each cost, with the Pareto fronts, as an SVG picture."""
        names, accuracies, parameters, macs, milliseconds, _ = zip(*self.finalists, strict=True)
        costs = {"MACs": macs, "parameters": parameters, f"ms for one image, {self.hardware}": milliseconds}
        return front_plot(names, accuracies, [Panel(label, values, is_cost=True) for label, values in costs.items()])

    def report(self, command: str) -> list[Part]:
        """The parts of a report; `command` makes it again."""
        picture = Picture(self.plot(), "Accuracy of the finalists on the images that were chosen on, and the fronts.")
        return [picture, self.table(), Heading("Made by"), Code(command)]

    def to_json(self) -> dict[str, Any]:
        """All that was found, for JSON."""
        finalists = [each._asdict() for each in self.finalists]
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
    """The best network of VGG blocks inside `budget` that can be found in `seconds`.

    Args:
        base: how they are trained: all but the network. Its epochs are those of the last rung.
        budget: the limits.
        folder: of this search alone; what is in it is not done again.
        seconds: after which no trial is begun, those before it was gone on with included; the winner's own runs come
            on top.
        seeds: runs of the winner, on all training images.
        device: as `train` takes it.
        now: the clock by which `seconds` are counted.
        say: is told of each trial, and the time left.

    Returns:
        What was found; None if a signal stopped the search, which the same call goes on with.

    Raises:
        ArchitectureError: no network is inside the budget.
        RunError: the recipe does not fit its data; `folder` is of another search; or no network can be trained within
            the limits.
    """
    if seeds < 1:
        raise RecipeError(f"expected seeds from 1, got {seeds}")
    space = Space(base, budget, choose_device(device))
    log = Log(folder, {"base": asdict(base), "budget": asdict(budget)})
    rungs = sorted({max(1, base.epochs // PROMOTED**left) for left in range(RUNGS)})
    begin = now()
    while chosen := _next(log.trials, rungs, space, is_over=log.seconds + log.longest(rungs[-1]) >= seconds):
        best = max((trial.accuracy for trial in log.trials), default=0)
        say(f"{clock(max(0, seconds - log.seconds))} left, best {best:.4f}: {chosen[0]} to epoch {chosen[1]}")
        trial = _tried(space, *chosen, folder / chosen[0].replace(" ", "-"), device)
        if trial is None:
            return None
        log.add(replace(trial, seconds=now() - begin))
        begin = now()
    finalists = space.finalists([trial for trial in log.trials if trial.epochs == rungs[-1]])
    winner = replace(space.recipe(finalists[0].notation), name="found", validation=0)
    accuracies = []
    for seed in range(seeds):
        say(f"the winner, {winner.architecture}, on all training images from seed {seed}")
        kept = folder / f"winner-{winner.architecture.replace(' ', '-')}-{seed}"  # more time may find another one
        run = train(winner.changed(seed=seed), resume=kept, device=device, progress=False)
        if run.stopped_by is not None:
            return None
        accuracies.append(run.history[-1].test_accuracy)
    write_whole(folder / FOUND, winner.to_json().encode() + b"\n")
    ruled_out = sum(not trial.epochs for trial in log.trials)
    num_designs = len({trial.notation for trial in log.trials}) - ruled_out
    hardware = describe_hardware(space.device)
    return Found(winner, finalists, tuple(accuracies), num_designs, ruled_out, log.seconds, hardware)


class Space:
    """The designs inside a budget for the images of a recipe, and what is asked of each; see `drawn` for an error."""

    def __init__(self, base: Recipe, budget: Budget, device: torch.device) -> None:
        self.budget, self.device, self._source = budget, device, open_data(base.data)
        is_array = isinstance(self._source.train, ArrayImages)
        kept_out = base.validation or (min(VALIDATION, len(self._source.train) // 5) if is_array else 0)
        self._base = base.changed(hidden=(), head="gap", validation=kept_out)
        splits_of(self._base, self._source)  # before a trial
        channels = base.in_channels(self._source.channels)
        self._labels = {"in_channels": channels, "num_classes": len(self._source.classes)}
        self._sizes = {"image_size": base.image_size, **self._labels}
        self._drawn = [design.notation for design in drawn(budget, DRAWN, base.seed, **self._sizes)]

    def recipe(self, notation: str) -> Recipe:
        """The recipe of a design."""
        return self._base.changed(architecture=notation)

    @cached_property
    def _batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        network, count = self.recipe("1x8_bn").network(**self._labels), min(64, len(self._source.train))
        return first_batch(self._source, network, count, self._base.seed, self._base.bad_images)

    def new_design(self, trials: Sequence[Trial], parents: Sequence[str]) -> str | None:
        """A design that no trial has: a neighbour of one of `parents` every other time; None if there is no other."""
        tried = {trial.notation for trial in trials}
        draws = random.Random(f"{self._base.seed} {len(tried)}")  # noqa: S311
        near = nearby(draws.choice(parents), self.budget, draws, **self._sizes) if parents and len(tried) % 2 else None
        candidates = [*([near.notation] if near else []), *self._drawn]
        return next((notation for notation in candidates if notation not in tried and self._fits(notation)), None)

    def _fits(self, notation: str) -> bool:
        """Whether a training step has the memory."""
        limit, recipe = self.budget.memory_bytes, self.recipe(notation)
        state: OptimizerState = "momentum" if recipe.momentum else recipe.optimizer
        network = recipe.network(**self._labels)
        return limit is None or training_memory(network, recipe.batch_size, optimizer=state).peak_bytes <= limit

    def ruled_out(self, notation: str) -> str:
        """Why a design is not worth training: what the doctor says, or its time; empty if it is."""
        recipe = self.recipe(notation)
        torch.manual_seed(recipe.seed)
        how: dict[str, Any] = {name: getattr(recipe, name) for name in ("optimizer", "learning_rate", "momentum")}
        verdict = examine(build(recipe.network(**self._labels), recipe.init), *self._batch, **how).verdict
        if verdict not in ("learns", "slow"):
            return verdict
        limit = self.budget.milliseconds
        return f"{ms:.3g} ms" if limit is not None and (ms := self._milliseconds(notation)) > limit else ""

    def finalists(self, trials: Sequence[Trial]) -> tuple[Finalist, ...]:
        """The designs of the last rung that are fast enough, the best first, with their time on this machine."""
        measured = [
            Finalist(trial.notation, trial.accuracy, *sized(blocks_of(trial.notation), **self._sizes)[1:], ms)
            for trial in sorted(trials, key=lambda trial: -trial.accuracy)
            for ms in [self._milliseconds(trial.notation)]
        ]
        limit = self.budget.milliseconds
        inside = [each for each in measured if limit is None or each.milliseconds <= limit]
        if not inside:
            got = f"{min(each.milliseconds for each in measured):.3g} ms at least" if measured else "none"
            raise RunError(
                f"expected a network that learns within the limits, got {got}, try higher ones or more --time"
            )
        are_on = pareto_front([(each.accuracy, *(-cost for cost in each[2:5])) for each in inside])
        return tuple(each._replace(is_on_front=is_on) for each, is_on in zip(inside, are_on, strict=True))

    def _milliseconds(self, notation: str) -> float:
        network = self.recipe(notation).network(**self._labels)
        net = accelerate(build(network).to(self.device).eval())
        shape = (1, network.in_channels, network.image_size, network.image_size)
        step = classifies(net, torch.rand(shape, device=self.device))
        return 1000 * settled_seconds(step, self.device)


def _next(trials: Sequence[Trial], rungs: Sequence[int], space: Space, is_over: bool) -> tuple[str, int] | None:
    """The design to train, and to the end of which epoch; None at the end of the search.

    When its time is over, the best of the rung below the last is still trained to the end, and then no other.
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
    return (new, rungs[0]) if new is not None else _next(trials, rungs, space, is_over=True)


def _tried(space: Space, notation: str, epochs: int, run: Path, device: str | None) -> Trial | None:
    """The design trained to the end of `epochs`, from where it stopped; None if a signal stopped it."""
    if not run.exists() and (reason := space.ruled_out(notation)):
        return Trial(notation, 0, 0.0, reason)
    try:
        trained = train(space.recipe(notation), resume=run, until_epoch=epochs, device=device, progress=False)
    except DivergedError:
        return Trial(notation, epochs, 0.0)
    return (
        Trial(notation, epochs, trained.history[epochs - 1].test_accuracy) if len(trained.history) >= epochs else None
    )


class Log:
    """The trials that are done, in a file of a JSON line for each; a line that a kill cut short counts for nothing."""

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        """Of the search in `folder`, which is begun if it is new; raises `RunError` if it is of another search."""
        self._path, self.trials, plan = folder / LOG, list[Trial](), folder / SEARCH
        if not os.path.lexists(plan):
            make_folder(folder, "search")
            write_whole(plan, json.dumps(asked, indent=1).encode())
        elif read_json(plan, "the plan of a search") != json.loads(json.dumps(asked)):
            raise RunError(f"expected the search that {folder} was begun with, got another one, try another --runs")
        if os.path.lexists(self._path):
            what = "the log of a search"
            try:
                lines = read_regular(self._path).decode().splitlines(keepends=True)
                kept = [json.loads(line) for line in lines if line.endswith("\n")]
                self.trials = [from_json(Trial, values, self._path, what) for values in kept]
                for trial in self.trials:
                    blocks_of(trial.notation)  # no other text is a path or a network
            except (OSError, ValueError, RecursionError):
                raise refused(self._path, what) from None

    @property
    def seconds(self) -> float:
        """What the trials took together."""
        return sum(trial.seconds for trial in self.trials)

    def longest(self, epochs: int) -> float:
        """What the longest trial to the end of `epochs` took, so that time is left for another one."""
        return max((trial.seconds for trial in self.trials if trial.epochs == epochs), default=0.0)

    def add(self, trial: Trial) -> None:
        """Remember `trial`, durably."""
        self.trials.append(trial)
        write_whole(self._path, "".join(json.dumps(asdict(each)) + "\n" for each in self.trials).encode())
