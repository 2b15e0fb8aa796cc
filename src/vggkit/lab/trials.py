"""The trials of an experiment: planned, run or resumed, here or on a Ray cluster, and their outcomes."""

import contextlib
import importlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from vggkit.data.files import write_whole
from vggkit.data.samples import ImageSource
from vggkit.data.sources import open_data
from vggkit.design.architecture import Architecture
from vggkit.design.network import Network, costs
from vggkit.design.scaling import backward_macs
from vggkit.engines.accelerate import accelerate
from vggkit.errors import DivergedError, RunError, VggkitError, one_line, shown
from vggkit.lab.bench import peak_memory_bytes, reset_peak_memory, settled_seconds, trains_by, with_random_images
from vggkit.lab.experiments import Experiment, fitted
from vggkit.lab.kept import EXPERIMENT, OUTCOME, from_json, make_folder, read_json, refused
from vggkit.lab.pace import Pace, shown_live
from vggkit.training.hardware import choose_device, describe_hardware, keep_freed_memory
from vggkit.training.loop import train
from vggkit.training.progress import clock
from vggkit.training.recipe import Recipe
from vggkit.training.run_data import splits_of

SET_UP_SECONDS = 1.5
"""The time of a run besides its steps and evaluations: building, the first step, checkpoints, the curves."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a trial: a run of one recipe from one seed."""

    label: str
    seed: int
    hardware: str
    accuracy: float | None
    """Top-1 on the held-out images after the last epoch; None if training diverged."""
    train_loss: float | None
    """Of the last epoch."""
    seconds: float
    """Wall time of the whole trial."""
    examples_per_second: float | None
    """In training, including the loading of data."""
    peak_bytes: int | None
    """Peak memory beyond that of the process before: resident on a CPU, allocated on a GPU."""
    diverged: str = ""
    """The error, if training diverged."""


@dataclass(frozen=True)
class Chosen:
    """The part of a recipe's runs that depends on the data, this machine and what the experiment holds equal."""

    architecture: str
    epochs: int
    steps: int
    """Of a run."""
    in_channels: int
    num_classes: int
    predicted_seconds: float
    """Of a run, from its costs and a measured step."""


@dataclass(frozen=True)
class Plan:
    """An experiment, ready to run."""

    experiment: Experiment
    chosen: Mapping[str, Chosen]
    """By label."""

    def recipe(self, label: str, seed: int = 0) -> Recipe:
        """The recipe of a trial."""
        chosen = self.chosen[label]
        changes = {"architecture": chosen.architecture, "epochs": chosen.epochs, "seed": seed}
        return self.experiment.recipes[label].changed(**changes)

    def network(self, label: str) -> Network:
        """The network of a trial."""
        chosen = self.chosen[label]
        return self.recipe(label).network(in_channels=chosen.in_channels, num_classes=chosen.num_classes)

    def runs(self, folder: Path) -> dict[tuple[str, int], Path]:
        """The run folder of each trial, by label and seed, in the order of running."""
        trials = product(range(self.experiment.seeds), self.experiment.recipes)
        return {(label, seed): folder / f"{number:03}" for number, (seed, label) in enumerate(trials)}

    @property
    def total_seconds(self) -> float:
        """The predicted time of all trials, one after another."""
        return self.experiment.seeds * sum(chosen.predicted_seconds for chosen in self.chosen.values())


def run_experiment(
    experiment: Experiment,
    folder: Path,
    *,
    device: str | None = None,
    data_dir: Path | None = None,
    ray: str = "",
    say: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> tuple[Plan, list[Outcome] | None]:
    """Train every recipe of `experiment` from every seed, each in a run folder within `folder`.

    A stopped trial is resumed exactly, a finished one is not repeated, and one that diverges is a result.

    Args:
        experiment: the experiment.
        folder: of this experiment alone; made if missing. All machines of a cluster need access to it.
        device: as for `train`.
        data_dir: where to look for Fashion-MNIST first.
        ray: the address of a Ray cluster that runs the trials, or `auto`; if empty, they run here, one after another.
        say: called with the prediction and with the outcome of each trial.
        progress: show live progress over all trials, if stderr is a terminal.

    Returns:
        The plan, and the outcomes, seed by seed; None instead of these if a signal stopped it.

    Raises:
        RunError: `folder` belongs to another experiment, or there is no such cluster.
    """
    folder = folder.absolute()
    with _ray_runner(ray, device, say) if ray else contextlib.nullcontext(_run_here) as run_tasks:
        if not os.path.lexists(folder / EXPERIMENT):
            say("measuring a step of each recipe")
        ((_, plan),) = run_tasks([partial(_plan, experiment, folder, device, data_dir)])
        runs, outcomes = plan.runs(folder), read_outcomes(plan, folder)
        todo = [trial for trial in runs if trial not in outcomes]
        chosen = {trial: plan.chosen[trial[0]] for trial in todo}
        pace = Pace({runs[trial]: (c.predicted_seconds, c.steps) for trial, c in chosen.items()})
        say(f"{len(todo)} of {len(runs)} trials to run in {shown(folder, 500)}, predicted {clock(pace.seconds_left)}")
        tasks = [partial(_run_trial, trial[0], plan.recipe(*trial), runs[trial], device, data_dir) for trial in todo]
        try:
            with shown_live(pace) if progress else contextlib.nullcontext(False) as is_live:
                for index, outcome in run_tasks(tasks):
                    outcomes[todo[index]] = outcome
                    pace.end(runs[todo[index]])
                    result = "diverged" if outcome.accuracy is None else f"accuracy {outcome.accuracy:.4f}"
                    line = f"{outcome.label}, seed {outcome.seed}: {result} in {clock(outcome.seconds)}"
                    say(line if is_live else f"{line}; {pace}")  # a live bar shows the pace itself
        except InterruptedError:
            return plan, None
    return plan, [outcomes[trial] for trial in runs]


def _plan(experiment: Experiment, folder: Path, device_name: str | None, data_dir: Path | None) -> Plan:
    """The plan in `folder`; a new one is made and written there if there is none."""
    path = folder / EXPERIMENT
    if os.path.lexists(path):
        plan = read_plan(folder)
        if plan.experiment != experiment or [*plan.experiment.recipes] != [*experiment.recipes]:
            raise RunError(f"expected the experiment that {folder} was begun with, got another one, try another --runs")
        return plan
    make_folder(folder, "experiment")
    plan = Plan(experiment, _choose(experiment, choose_device(device_name), data_dir))
    values = {"asked": json.loads(experiment.to_json()), "chosen": {k: vars(v) for k, v in plan.chosen.items()}}
    write_whole(path, json.dumps(values, indent=1).encode())
    return plan


def read_plan(folder: Path) -> Plan:
    """The plan of the experiment in `folder`; raises `RunError`."""
    path, what = folder / EXPERIMENT, "the plan of an experiment"
    stored = read_json(path, what)
    if not isinstance(stored, dict) or stored.keys() != {"asked", "chosen"} or not isinstance(stored["chosen"], dict):
        raise refused(path, what)
    chosen = {label: from_json(Chosen, values, path, what) for label, values in stored["chosen"].items()}
    try:
        experiment = stored["asked"]
        recipes = {label: Recipe.from_json(json.dumps(recipe)) for label, recipe in experiment["recipes"].items()}
        unmatched = tuple(experiment["unmatched"])
        plan = Plan(Experiment(**{**experiment, "recipes": recipes, "unmatched": unmatched}), chosen)
        for label in recipes:
            plan.network(label)  # checks its values
    except (VggkitError, LookupError, TypeError, AttributeError):
        raise refused(path, what) from None
    if any(c.steps < 1 or c.predicted_seconds <= 0 for c in chosen.values()):
        raise refused(path, what)
    return plan


def read_outcomes(plan: Plan, folder: Path) -> dict[tuple[str, int], Outcome]:
    """The outcomes of the finished trials of `plan`, by label and seed; raises `RunError`."""
    runs = plan.runs(folder).items()
    return {trial: outcome for trial, run in runs if (outcome := _read_outcome(run, *trial)) is not None}


def _choose(experiment: Experiment, device: torch.device, data_dir: Path | None) -> dict[str, Chosen]:
    """The epochs and channels that make the recipes equal as the experiment demands, and the time of a run."""
    opened = cache(partial(open_data, data_dir=data_dir))
    sources = {
        label: opened(r.data, holdout=r.holdout, seed=r.seed, stream=r.stream, epoch_images=r.epoch_images)
        for label, r in experiment.recipes.items()
    }
    unscaled = {label: _network(recipe, sources[label]) for label, recipe in experiment.recipes.items()}
    networks, recipes = fitted(experiment, unscaled), dict(experiment.recipes)
    for label, network in networks.items():
        if isinstance(network, Architecture) and network != unscaled[label]:
            recipes[label] = recipes[label].changed(architecture=network.notation)
    images = {label: _image_counts(recipe, sources[label])[0] for label, recipe in recipes.items()}
    seconds = {label: epoch_seconds(recipe, sources[label], device) for label, recipe in recipes.items()}
    if experiment.equal in ("images", "seconds"):
        per_epoch: Mapping[str, float] = images if experiment.equal == "images" else seconds
        for label, reference in experiment.adapted.items():
            epochs = recipes[reference].epochs * per_epoch[reference] / per_epoch[label]
            recipes[label] = recipes[label].changed(epochs=max(1, round(epochs)))
    return {
        label: Chosen(
            recipe.architecture,
            recipe.epochs,
            recipe.epochs * -(-images[label] // recipe.batch_size),
            networks[label].in_channels,
            networks[label].num_classes,
            SET_UP_SECONDS + recipe.epochs * seconds[label],
        )
        for label, recipe in recipes.items()
    }


def _network(recipe: Recipe, source: ImageSource) -> Network:
    return recipe.network(in_channels=recipe.in_channels(source.channels), num_classes=len(source.classes))


def _image_counts(recipe: Recipe, source: ImageSource) -> tuple[int, int]:
    """The number of images in an epoch and in its evaluation; raises `RunError` or `DataError`, as `train` does."""
    (train_images, held_out), _ = splits_of(recipe, source)
    return len(train_images), len(held_out)


def epoch_seconds(recipe: Recipe, source: ImageSource, device: torch.device) -> float:
    """The predicted time of an epoch of `recipe` on `source`, its evaluation included, from a measured step.

    Loading of data is not included: it takes next to no time for images in memory, but may for files.
    """
    network, (train_images, held_out_images) = _network(recipe, source), _image_counts(recipe, source)
    batch_size = min(recipe.batch_size, train_images)
    keep_freed_memory(costs(network, batch_size).total.activation_bytes)  # as `train` does
    net, x, labels = with_random_images(network, batch_size, device)
    step_seconds = settled_seconds(trains_by(recipe, accelerate(net.train()), x, labels), device)
    forward, backward = costs(network).total.macs, backward_macs(network, 1)
    evaluations = held_out_images * (2 if recipe.test_flip else 1)
    return step_seconds / batch_size * (train_images + evaluations * forward / (forward + backward))


def _run_trial(label: str, recipe: Recipe, run: Path, device_name: str | None, data_dir: Path | None) -> Outcome:
    """Train or resume a trial, and write its outcome; raises `InterruptedError` if a signal stops it."""
    if (finished := _read_outcome(run, label, recipe.seed)) is not None:  # Ray may repeat a finished task
        return finished
    device = choose_device(device_name)
    before, begin = reset_peak_memory(device), time.perf_counter()
    diverged, accuracy, loss, speed, peak_bytes, seconds = "", None, None, None, None, 0.0
    try:
        trained = train(recipe, resume=run, device=device_name, data_dir=data_dir, progress=False)
        if trained.stopped_by is not None:
            raise InterruptedError(trained.stopped_by)
        last, speed = trained.history[-1], trained.examples_per_second
        accuracy, loss, seconds = last.test_accuracy, last.train_loss, last.elapsed_seconds
        peak_bytes = max(0, peak_memory_bytes(device) - before)
    except DivergedError as error:
        diverged = str(error)
    seconds = max(seconds, time.perf_counter() - begin)  # a resumed run has some from before
    hardware = describe_hardware(device)
    outcome = Outcome(label, recipe.seed, hardware, accuracy, loss, seconds, speed, peak_bytes, diverged)
    write_whole(run / OUTCOME, json.dumps(vars(outcome), indent=1).encode())
    return outcome


def _read_outcome(run: Path, label: str, seed: int) -> Outcome | None:
    path, what = run / OUTCOME, "the outcome of a trial"
    if not os.path.lexists(path):
        return None
    outcome = from_json(Outcome, read_json(path, what), path, what)
    if (outcome.label, outcome.seed) != (label, seed) or not 0 <= (outcome.accuracy or 0) <= 1 or outcome.seconds < 0:
        raise refused(path, what)
    return outcome


TaskRunner = Callable[[Sequence[Callable[[], Any]]], Iterator[tuple[int, Any]]]
"""Runs tasks; yields the position and the result of each when it has ended."""


def _run_here(tasks: Sequence[Callable[[], Any]]) -> Iterator[tuple[int, Any]]:
    return enumerate(task() for task in tasks)


@contextlib.contextmanager
def _ray_runner(address: str, device: str | None, say: Callable[[str], None]) -> Iterator[TaskRunner]:
    """Within, run tasks on the Ray cluster at `address`, which repeats a task if its machine fails.

    Each task gets a GPU, or as many CPUs as torch has threads here, so that its numbers are those of a run here.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise RunError("expected ray for --ray, got none, try pip install 'vggkit[cluster]'") from None
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RunError(f"expected a Ray cluster at {shown(address)}, got: {one_line(error, 200)}") from None
    try:
        on_gpu = device.startswith("cuda") if device else ray.cluster_resources().get("GPU", 0) > 0
        threads = torch.get_num_threads()
        options = {"num_gpus": 1} if on_gpu else {"num_cpus": threads}
        max_cpus = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        if not on_gpu and max_cpus < threads:
            say(f"waiting: a trial asks for {threads} CPUs, no machine of the cluster has them, try OMP_NUM_THREADS=1")
        remote = ray.remote(**options, retry_exceptions=[InterruptedError])(_with_threads)

        def run_tasks(tasks: Sequence[Callable[[], Any]]) -> Iterator[tuple[int, Any]]:
            running = {remote.remote(task, threads): index for index, task in enumerate(tasks)}
            while running:
                (done,), _ = ray.wait(list(running))
                yield running.pop(done), ray.get(done)

        yield run_tasks
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise RunError(f"expected Ray to end each trial, got: {one_line(error, 200)}, try the same command") from None
    finally:
        ray.shutdown()


def _with_threads(task: Callable[[], Any], threads: int) -> Any:
    torch.set_num_threads(threads)
    return task()
