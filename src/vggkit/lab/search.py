"""The best network under a budget: designs are drawn, trained a little, and the better ones trained on.

Successive halving (Jamieson & Talwalkar, arXiv 1502.07943): of the designs of a rung the best third is trained three
times as long, from its checkpoint, on the schedule that it began. What is chosen is chosen on images kept out of
training; the test set is touched once, by the winner.
"""

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vggkit.data.files import read_regular, write_whole
from vggkit.data.samples import ArrayImages
from vggkit.data.sources import open_data
from vggkit.design.network import costs
from vggkit.engines.accelerate import accelerate
from vggkit.errors import DivergedError, RecipeError, RunError
from vggkit.lab.bench import classifies, turn_seconds
from vggkit.lab.designs import Budget, Design, drawn
from vggkit.lab.kept import made, make_folder, read_json, refused
from vggkit.lab.statistics import Interval, mean_interval, pareto_front
from vggkit.lab.trials import epoch_seconds
from vggkit.networks.baselines import build
from vggkit.training.hardware import choose_device, describe_hardware
from vggkit.training.loop import train
from vggkit.training.progress import clock
from vggkit.training.recipe import Recipe

PROMOTED = 3
"""One of so many designs is trained on, so many times as long."""
RUNGS = 3
SEARCH, LOG, FOUND = "search.json", "log.jsonl", "found.json"
VALIDATION = 5_000
"""Of the last training images, kept out to choose on, at most a fifth; image files have a holdout of their own."""


@dataclass(frozen=True)
class Trial:
    """A design after some of its epochs."""

    notation: str
    epochs: int
    accuracy: float
    """Top-1 on the images kept out of training; 0 if it diverged."""
    seconds: float


@dataclass(frozen=True)
class Finalist:
    """A design that was trained to the end of the schedule."""

    design: Design
    accuracy: float
    """Top-1 on the images that were chosen on."""
    milliseconds: float
    """To classify one image on this machine."""
    is_on_front: bool
    """Whether no other finalist is as accurate with as few MACs, parameters and milliseconds."""


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
    """That were tried."""
    seconds: float
    hardware: str

    @property
    def test_accuracy(self) -> Interval:
        """Mean and 95% interval over the seeds."""
        return mean_interval(self.test_accuracies)

    def to_json(self) -> dict[str, Any]:
        """All that was found, for JSON."""
        finalists = [{**vars(each), "design": each.design._asdict()} for each in self.finalists]
        return {**vars(self), "recipe": asdict(self.recipe), "finalists": finalists}


def search(
    base: Recipe,
    budget: Budget,
    folder: Path,
    *,
    seconds: float,
    seeds: int = 3,
    device: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Found | None:
    """The best network of VGG blocks inside `budget` that can be found in `seconds`.

    Args:
        base: how they are trained: all but the network. Its epochs are those of the last rung.
        budget: the limits.
        folder: of this search alone; what is in it is not done again.
        seconds: decides how many designs are tried, by the measured time of a step of one of them.
        seeds: runs of the winner, on all training images.
        device: as `train` takes it.
        say: is told of each trial.

    Returns:
        What was found; None if a signal stopped the search, which the same call goes on with.

    Raises:
        ArchitectureError: no network is inside the budget.
        RunError: `folder` is of another search.
    """
    if seeds < 1:
        raise RecipeError(f"expected seeds from 1, got {seeds}")
    begin = time.perf_counter()
    chosen = choose_device(device)
    recipes = _planned(base, budget, folder, seconds, chosen, say)
    log = Log(folder / LOG)
    designs = {recipe.architecture: recipe for recipe in recipes}
    alive, number = list(designs), 0
    total = sum(_rung_sizes(len(designs)))
    for rung in range(RUNGS):
        epochs = max(1, base.epochs // PROMOTED ** (RUNGS - 1 - rung))
        for notation in alive:
            number += 1
            trial = log.trials.get((notation, epochs))
            if trial is None:
                say(f"trial {number} of {total}: {notation} to epoch {epochs}")
                trial = _trained(designs[notation], epochs, folder / notation.replace(" ", "-"), device)
                if trial is None:
                    return None
                log.add(trial)
        alive.sort(key=lambda notation: -log.trials[notation, epochs].accuracy)
        if rung < RUNGS - 1:
            alive = alive[: max(1, len(alive) // PROMOTED)]
    finalists = _finalists(alive, designs, log, base.epochs, chosen)
    winner = replace(designs[finalists[0].design.notation], name="found", validation=0)
    accuracies = []
    for seed in range(seeds):
        say(f"the winner, {winner.architecture}, on all training images from seed {seed}")
        run = train(winner.changed(seed=seed), resume=folder / f"winner-{seed}", device=device, progress=False)
        if run.stopped_by is not None:
            return None
        accuracies.append(run.history[-1].test_accuracy)
    write_whole(folder / FOUND, winner.to_json().encode() + b"\n")
    spent = sum(trial.seconds for trial in log.trials.values()) + time.perf_counter() - begin
    return Found(winner, finalists, tuple(accuracies), len(designs), spent, describe_hardware(chosen))


def _rung_sizes(num_designs: int) -> list[int]:
    sizes = [num_designs]
    while len(sizes) < RUNGS:
        sizes.append(max(1, sizes[-1] // PROMOTED))
    return sizes


def _planned(
    base: Recipe, budget: Budget, folder: Path, seconds: float, device: torch.device, say: Callable[[str], None]
) -> list[Recipe]:
    """The recipes to try, as many as `seconds` allow; those of `folder`, if it is of this search."""
    asked = {"base": asdict(base), "budget": asdict(budget), "seconds": seconds}
    path, what = folder / SEARCH, "the plan of a search"
    if os.path.lexists(path):
        kept = read_json(path, what)
        if not isinstance(kept, dict) or kept.get("asked") != json.loads(json.dumps(asked)):
            raise RunError(f"expected the search that {folder} was begun with, got another one, try another --runs")
        try:
            return [Recipe.from_json(json.dumps(values)) for values in kept["recipes"]]
        except (ValueError, KeyError, TypeError):
            raise refused(path, what) from None
    make_folder(folder, "search")
    source = open_data(base.data)
    network = base.network(in_channels=source.channels, num_classes=len(source.classes))
    options = {
        "image_size": base.image_size, "in_channels": network.in_channels, "num_classes": network.num_classes,
    }  # fmt: skip
    kept_out = min(VALIDATION, len(source.train) // 5) if isinstance(source.train, ArrayImages) else base.validation
    shape = base.changed(hidden=(), head="gap", validation=kept_out)
    examples = [shape.changed(architecture=design.notation) for design in drawn(budget, 5, base.seed + 1, **options)]
    epoch = sum(epoch_seconds(recipe, source, device) for recipe in examples) / len(examples)
    most = 1
    while _search_epochs(most + 1, base.epochs) * epoch < seconds and most < 10_000:
        most += 1
    say(f"{most} designs in {clock(seconds)}: an epoch takes {epoch:.1f} s")
    recipes = [shape.changed(architecture=design.notation) for design in drawn(budget, most, base.seed, **options)]
    values = {"asked": asked, "recipes": [asdict(recipe) for recipe in recipes]}
    write_whole(path, json.dumps(values, indent=1).encode())
    return recipes


def _search_epochs(num_designs: int, epochs: int) -> float:
    """Epochs of all rungs together, each of which goes on from the one before."""
    ends = [epochs / float(PROMOTED**left) for left in reversed(range(RUNGS))]
    lengths = [end - before for end, before in zip(ends, [0, *ends], strict=False)]
    return sum(size * length for size, length in zip(_rung_sizes(num_designs), lengths, strict=True))


def _trained(recipe: Recipe, epochs: int, run: Path, device: str | None) -> Trial | None:
    """`recipe` trained to the end of `epochs`, from where it stopped; None if a signal stopped it."""
    begin = time.perf_counter()
    try:
        trained = train(recipe, resume=run, until_epoch=epochs, device=device, progress=False)
    except DivergedError:
        return Trial(recipe.architecture, epochs, 0.0, time.perf_counter() - begin)
    if len(trained.history) < epochs:
        return None
    accuracy = trained.history[epochs - 1].test_accuracy
    return Trial(recipe.architecture, epochs, accuracy, time.perf_counter() - begin)


class Log:
    """The trials that are done, in a file of a JSON line for each; a line that a kill cut short counts for nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.trials: dict[tuple[str, int], Trial] = {}
        if os.path.lexists(path):
            try:
                lines = read_regular(path).decode().splitlines(keepends=True)
                kept = [json.loads(line) for line in lines if line.endswith("\n")]
            except (OSError, ValueError, RecursionError):
                raise refused(path, "the log of a search") from None
            for values in kept:
                trial = made(Trial, values, path, "the log of a search")
                self.trials[trial.notation, trial.epochs] = trial

    def add(self, trial: Trial) -> None:
        """Remember `trial`, durably."""
        self.trials[trial.notation, trial.epochs] = trial
        lines = [json.dumps(asdict(each)) + "\n" for each in self.trials.values()]
        write_whole(self._path, "".join(lines).encode())


def _finalists(
    alive: Iterable[str], designs: dict[str, Recipe], log: Log, epochs: int, device: torch.device
) -> tuple[Finalist, ...]:
    """The designs of the last rung, the best first, with their time on this machine."""
    measured = []
    for notation in alive:
        network = designs[notation].network(in_channels=1, num_classes=10)
        total = costs(network).total
        net = accelerate(build(network).to(device).eval())
        image = torch.rand(1, 1, network.image_size, network.image_size, device=device)
        step = classifies(net, image)
        turn_seconds(step, device)  # to warm up
        milliseconds = 1000 * turn_seconds(step, device)
        design = Design(notation, total.parameters, total.macs)
        measured.append((design, log.trials[notation, epochs].accuracy, milliseconds))

    places = [(accuracy, -design.macs, -design.parameters, -time) for design, accuracy, time in measured]
    return tuple(Finalist(*values, is_on) for values, is_on in zip(measured, pareto_front(places), strict=True))
