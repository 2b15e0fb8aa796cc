"""The runs of an experiment, one after the other: predicted, begun, gone on with, and what came of each."""

import contextlib
import ctypes
import gc
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from vggkit.data.files import write_whole
from vggkit.data.samples import ImageSource
from vggkit.data.sources import open_data
from vggkit.design.network import Network, costs
from vggkit.design.scaling import backward_macs
from vggkit.engines import gpu
from vggkit.engines.accelerate import accelerate
from vggkit.errors import DivergedError, RunError, shown
from vggkit.lab.bench import resident_bytes, turn_seconds
from vggkit.lab.experiments import Experiment, matched
from vggkit.lab.kept import made, make_folder, read_json, refused
from vggkit.networks.baselines import build
from vggkit.training.hardware import choose_device, describe_hardware
from vggkit.training.loop import train
from vggkit.training.progress import clock
from vggkit.training.recipe import Recipe
from vggkit.training.step import make_optimizer, train_step

EXPERIMENT, OUTCOME = "experiment.json", "outcome.json"
SET_UP_SECONDS = 1.5
"""What a run takes beside its steps and evaluations: building, the first step, checkpoints, the curves."""


@dataclass(frozen=True)
class Outcome:
    """What came of a trial: a run of one recipe from one seed."""

    label: str
    seed: int
    accuracy: float | None
    """Top-1 on the images kept out of training, after the last epoch; None if training diverged."""
    train_loss: float | None
    """Of the last epoch."""
    seconds: float
    """Wall time of the whole trial."""
    examples_per_second: float | None
    """In training, data included."""
    peak_bytes: int | None
    """Memory at most, beyond what the process held before: resident on a CPU, allocated on a GPU."""
    diverged: str = ""
    """How, if it did."""


@dataclass(frozen=True)
class Plan:
    """An experiment made ready for a machine: all that its runs need to know."""

    experiment: Experiment
    """Its recipes have the channels and epochs with which what is to be equal is equal."""
    predicted_seconds: Mapping[str, float]
    """Of a run of each recipe, from its costs and a measured step."""
    hardware: str

    @property
    def total_seconds(self) -> float:
        """The prediction for all runs."""
        return self.experiment.seeds * sum(self.predicted_seconds.values())


def run_experiment(
    experiment: Experiment,
    folder: Path,
    *,
    device: str | None = None,
    data_dir: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> tuple[Plan, list[Outcome] | None]:
    """Train every recipe of `experiment` from every seed, each in a run folder within `folder`.

    A trial that was stopped is gone on with, exactly; a finished one is not run again; one that diverges is a result.

    Args:
        experiment: what is to be run.
        folder: of this experiment alone; made if it is missing.
        device: as `train` takes it.
        data_dir: where to look for Fashion-MNIST first.
        say: is told what is run, and the time left.
        progress: show each run's own progress too.

    Returns:
        What was planned, and the outcomes, seed by seed; None instead of them if a signal stopped it.

    Raises:
        RunError: `folder` is of another experiment.
    """
    plan = _planned(experiment, folder, choose_device(device), data_dir, say)
    trials = [(label, seed) for seed in range(experiment.seeds) for label in experiment.recipes]
    outcomes: list[Outcome] = []
    predicted, spent = 0.0, 0.0
    for number, (label, seed) in enumerate(trials):
        run, recipe = folder / f"{number:03}", replace(plan.experiment.recipes[label], seed=seed)
        outcome = _read_outcome(run, label, seed)
        if outcome is None:
            left = sum(plan.predicted_seconds[label] for label, _ in trials[number:])
            left *= spent / predicted if predicted else 1
            say(f"trial {number + 1} of {len(trials)}: {label}, seed {seed}, in {run}; about {clock(left)} left")
            begin = time.perf_counter()
            outcome = _trial(label, recipe, run, device, data_dir, progress)
            if outcome is None:
                return plan, None
            predicted += plan.predicted_seconds[label]
            spent += time.perf_counter() - begin
            write_whole(run / OUTCOME, json.dumps(asdict(outcome), indent=1).encode())
        outcomes.append(outcome)
    return plan, outcomes


def _planned(
    experiment: Experiment,
    folder: Path,
    device: torch.device,
    data_dir: Path | None,
    say: Callable[[str], None],
) -> Plan:
    """The plan in `folder`, or a new one, which is written there."""
    path = folder / EXPERIMENT
    if os.path.lexists(path):
        return _kept_plan(experiment, path)
    make_folder(folder, "experiment")
    say("measuring a step of each recipe")
    first = next(iter(experiment.recipes.values()))
    recipes = dict(experiment.recipes)
    if experiment.equal in ("macs", "parameters"):
        recipes = {label: matched(recipe, first, experiment.equal) for label, recipe in recipes.items()}
    sources = {recipe.data: open_data(recipe.data, data_dir=data_dir) for recipe in recipes.values()}
    epochs = {label: epoch_seconds(recipe, sources[recipe.data], device) for label, recipe in recipes.items()}
    if experiment.equal == "seconds":
        budget = next(iter(epochs.values())) * first.epochs
        recipes = {
            label: recipe.changed(epochs=max(1, round(budget / epochs[label]))) for label, recipe in recipes.items()
        }
    predicted = {label: SET_UP_SECONDS + recipe.epochs * epochs[label] for label, recipe in recipes.items()}
    plan = Plan(replace(experiment, recipes=recipes), predicted, describe_hardware(device))
    values = {
        "asked": json.loads(experiment.to_json()),
        "recipes": {label: asdict(recipe) for label, recipe in recipes.items()},
        "predicted_seconds": predicted,
        "hardware": plan.hardware,
    }
    write_whole(path, json.dumps(values, indent=1).encode())
    return plan


def _kept_plan(experiment: Experiment, path: Path) -> Plan:
    """The plan in `path`, which may differ from what is asked only in what `equal` decides."""
    what = "the plan of an experiment"
    kept = read_json(path, what)
    if not isinstance(kept, dict) or kept.keys() != {"asked", "recipes", "predicted_seconds", "hardware"}:
        raise refused(path, what)
    if kept["asked"] != json.loads(experiment.to_json()):
        raise RunError(
            f"expected the experiment that {path.parent} was begun with, got another one, try another --runs"
        )
    try:
        recipes = {label: Recipe.from_json(json.dumps(values)) for label, values in kept["recipes"].items()}
        predicted = {label: float(seconds) for label, seconds in kept["predicted_seconds"].items()}
        same = {
            label: replace(recipe, epochs=asked.epochs, architecture=asked.architecture) == asked
            for (label, recipe), asked in zip(recipes.items(), experiment.recipes.values(), strict=True)
        }
    except (ValueError, AttributeError, TypeError):
        raise refused(path, what) from None
    are_known = list(recipes) == list(predicted) == list(experiment.recipes) and all(same.values())
    if not are_known or not all(0 < seconds < 1e12 for seconds in predicted.values()):
        raise refused(path, what)
    if experiment.equal == "epochs" and recipes != dict(experiment.recipes):
        raise refused(path, what)
    return Plan(replace(experiment, recipes=recipes), predicted, shown(str(kept["hardware"])))


def epoch_seconds(recipe: Recipe, source: ImageSource, device: torch.device) -> float:
    """The predicted time of an epoch of `recipe` on `source`, its evaluation included, from a measured step.

    Loading is not in it: images in memory cost next to nothing, files may cost more.
    """
    channels = {"data": source.channels, "grey": 1, "rgb": 3}[recipe.channels]
    network = recipe.network(in_channels=channels, num_classes=len(source.classes))
    step = step_seconds(recipe, network, device)
    forward, backward = costs(network).total.macs, backward_macs(network, 1)
    image_seconds = step / recipe.batch_size
    return image_seconds * (len(source.train) + len(source.held_out) * forward / (forward + backward))


def step_seconds(recipe: Recipe, network: Network, device: torch.device) -> float:
    """The median time of a step of training on random images, data excluded."""
    net = build(network, recipe.init).to(device).train()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fast, optimizer = accelerate(net), make_optimizer(recipe, net)
    x = torch.rand(recipe.batch_size, network.in_channels, network.image_size, network.image_size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(network.num_classes, (recipe.batch_size,), device=device)
    rate = torch.full((), 1e-6, device=device)
    step: Callable[[], object] = lambda: train_step(fast, optimizer, x, labels, rate)  # noqa: E731
    if device.type == "cuda":
        step = gpu.capture_step(lambda: train_step(fast, optimizer, x, labels, rate), net, optimizer, [])
    turn_seconds(step, device)  # to warm up
    return turn_seconds(step, device)


def _trial(
    label: str, recipe: Recipe, run: Path, device_name: str | None, data_dir: Path | None, progress: bool
) -> Outcome | None:
    """Train, from the start or where it stopped; None if a signal stopped it."""
    before = _restarted_peak(device := choose_device(device_name))
    begin = time.perf_counter()
    try:
        trained = train(recipe, resume=run, device=device_name, data_dir=data_dir, progress=progress)
    except DivergedError as error:
        return Outcome(label, recipe.seed, None, None, time.perf_counter() - begin, None, None, str(error))
    if trained.stopped_by is not None:
        return None
    last = trained.history[-1]
    return Outcome(
        label,
        recipe.seed,
        last.test_accuracy,
        last.train_loss,
        max(last.elapsed_seconds, time.perf_counter() - begin),
        trained.examples_per_second,
        max(0, _peak(device) - before),
    )


def _restarted_peak(device: torch.device) -> int:
    """Bytes of memory in use now, from which the peak is counted anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # where this is no Linux, the peak is that of the process
        ctypes.CDLL(None).malloc_trim(0)  # what the trial before has freed
        Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_bytes("VmHWM")


def _read_outcome(run: Path, label: str, seed: int) -> Outcome | None:
    path, what = run / OUTCOME, "the outcome of a trial"
    if not os.path.lexists(path):
        return None
    outcome = made(Outcome, read_json(path, what), path, what)
    if (outcome.label, outcome.seed) != (label, seed) or not 0 <= (outcome.accuracy or 0) <= 1 or outcome.seconds < 0:
        raise refused(path, what)
    return outcome
