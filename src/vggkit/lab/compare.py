"""Trained networks side by side: what differs, what each costs and reaches, and whether the difference is luck."""

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from vggkit.data.samples import ImageSource
from vggkit.design.costs import Sum
from vggkit.design.network import costs
from vggkit.design.table import Table
from vggkit.errors import RunError, UserError, shown
from vggkit.inference.evaluate import Evaluation, data_of_run, evaluate
from vggkit.inference.predict import Classifier, load_classifier
from vggkit.lab.answers import short
from vggkit.lab.bench import classifies, turn_seconds
from vggkit.lab.report import Code, Heading, Part, Picture, as_svg
from vggkit.lab.statistics import mcnemar, pareto_front
from vggkit.training.hardware import choose_device, describe_hardware
from vggkit.training.recipe import Recipe
from vggkit.training.run_folder import read_recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPEED_BATCH, TURNS = 64, 5
DISAGREEMENTS = 20


@dataclass(frozen=True)
class Compared:
    """One network."""

    name: str
    classifier: Classifier
    recipe: Recipe | None
    """Of a run; None for a weight file alone."""
    evaluation: Evaluation
    turns: tuple[float, ...]
    """Examples/s of each turn, in batches of 64 images that are in memory; all networks take turns."""

    @property
    def examples_per_second(self) -> float:
        """The median of the turns."""
        return statistics.median(self.turns)

    @property
    def is_right(self) -> npt.NDArray[np.bool_]:
        """(images,): whether each was classified right, in this network's own order of the classes."""
        return np.equal(self.evaluation.predicted, self.evaluation.labels)

    @property
    def cost(self) -> Sum:
        """Of one image."""
        return costs(self.classifier.net.architecture).total


@dataclass(frozen=True)
class Comparison:
    """Networks measured on the same images."""

    networks: tuple[Compared, ...]
    data: str
    """What they were measured on."""
    hardware: str

    def table(self) -> Table:
        """Costs, accuracy with its 95% interval, and speed."""
        header = ("model", "px", "params", "MACs", "accuracy", "95%", "examples/s", "front")
        front = self.front
        rows = [
            (
                each.name,
                str(each.classifier.net.architecture.image_size),
                short(each.cost.parameters),
                short(each.cost.macs),
                f"{each.evaluation.accuracy:.4f}",
                "{:.3f} to {:.3f}".format(*each.evaluation.interval),
                f"{each.examples_per_second:,.0f} ({min(each.turns):,.0f} to {max(each.turns):,.0f})",
                "*" if each in front else "",
            )
            for each in self.networks
        ]
        notes = [*self.sentences, f"on {self.data}"]
        notes.append(f"examples/s: batches of {SPEED_BATCH}, median of {TURNS} turns and their range, {self.hardware}")
        notes.append("*: no other is as accurate and as fast")
        return Table(header, [rows], 1, "", notes)

    @property
    def front(self) -> list[Compared]:
        """The Pareto front: the networks to which no other is as accurate and as fast and better in one."""
        places = [(each.evaluation.accuracy, each.examples_per_second) for each in self.networks]
        return [each for each, is_on in zip(self.networks, pareto_front(places), strict=True) if is_on]

    @property
    def sentences(self) -> list[str]:
        """For each pair what McNemar's test says of the images that only one of the two gets right."""
        return [_sentence(first, second) for first, second in combinations(self.networks, 2)]

    def differences(self) -> Table | None:
        """The fields in which the runs' recipes differ; None if there are no two runs or no difference."""
        runs = [each for each in self.networks if each.recipe is not None]
        recipes = [asdict(each.recipe) for each in runs if each.recipe is not None]
        fields = [
            name for name in (recipes[0] if recipes else ()) if len({str(recipe[name]) for recipe in recipes}) > 1
        ]
        rows = [(name, *(_plain(recipe[name]) for recipe in recipes)) for name in fields]
        return Table(("recipe", *(each.name for each in runs)), [rows], len(runs) + 1) if rows else None

    def disagreements(self) -> list[tuple[int, str, list[str]]]:
        """The first images that some get right and some not: position, class, and what each takes it for."""
        first = self.networks[0].evaluation
        right = np.stack([each.is_right for each in self.networks])
        chosen = np.flatnonzero(right.any(0) & ~right.all(0))[:DISAGREEMENTS]
        return [
            (
                int(index),
                first.classes[first.labels[index]],
                [each.evaluation.classes[each.evaluation.predicted[index]] for each in self.networks],
            )
            for index in chosen
        ]

    def to_csv(self) -> str:
        """A line for each network, with the names of timm's tables of results and of speed."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = "model img_size top1 top1_err param_count infer_gmacs infer_batch_size infer_samples_per_sec"
        writer.writerow(names.split())
        for each in self.networks:
            top1, total = 100 * each.evaluation.accuracy, each.cost
            size = each.classifier.net.architecture.image_size
            counts = (round(total.parameters / 1e6, 2), round(total.macs / 1e9, 3), SPEED_BATCH)
            writer.writerow(
                [each.name, size, round(top1, 3), round(100 - top1, 3), *counts, round(each.examples_per_second, 1)]
            )
        return text.getvalue()

    def to_json(self) -> dict[str, Any]:
        """All that was measured, for JSON."""
        front = self.front
        return {
            "data": self.data,
            "hardware": self.hardware,
            "models": [
                {
                    "model": each.name,
                    "architecture": each.classifier.net.architecture.name,
                    "parameters": each.cost.parameters,
                    "macs": each.cost.macs,
                    "accuracy": each.evaluation.accuracy,
                    "interval": each.evaluation.interval,
                    "examples_per_second": each.examples_per_second,
                    "recipe": asdict(each.recipe) if each.recipe is not None else None,
                    "is_on_front": each in front,
                }
                for each in self.networks
            ],
            "pairs": [
                {"models": [first.name, second.name], **_pair(first, second)}
                for first, second in combinations(self.networks, 2)
            ],
        }

    def scatter(self) -> str:
        """Accuracy against throughput, circles for parameters, and the Pareto front, as an SVG picture."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5), layout="constrained")
        axes: Axes = figure.subplots()
        most = max(each.cost.parameters for each in self.networks)
        for each in self.networks:
            place = (each.examples_per_second, each.evaluation.accuracy)
            axes.scatter(*place, s=max(10, 1_500 * each.cost.parameters / most), alpha=0.6)
            name = shown(each.name, 40)
            axes.annotate(name, place, xytext=(0, 8), textcoords="offset points", ha="center", parse_math=False)
        front = sorted((each.examples_per_second, each.evaluation.accuracy) for each in self.front)
        axes.plot(*zip(*front, strict=True), "--", color="grey", linewidth=1)
        axes.set(xlabel=f"examples/s, batches of {SPEED_BATCH}, {self.hardware}", ylabel="accuracy")
        axes.margins(0.25)
        axes.grid(alpha=0.3)
        return as_svg(figure)

    def report(self, command: str) -> list[Part]:
        """The parts of a report; `command` makes it again."""
        parts: list[Part] = [self.table(), Picture(self.scatter(), "Accuracy against throughput; area: parameters.")]
        differences, wrong = self.differences(), self.disagreements()
        if differences is not None:
            parts += [Heading("What differs in the recipes"), differences]
        if wrong:
            rows = [(str(index), name, *taken) for index, name, taken in wrong]
            header = ("image", "class", *(each.name for each in self.networks))
            parts += [Heading("The first images on which they disagree"), Table(header, [rows], len(header))]
        return [*parts, Heading("Made by"), Code(command)]


def compare(models: Sequence[str | Path], data: ImageSource | None = None, device: str | None = None) -> Comparison:
    """Evaluate `models`, run folders or weight files, on the same images, and measure how fast each is here.

    Args:
        models: at least two.
        data: what to measure on; by default what the first one's run was evaluated on.
        device: as `train` takes it.

    Raises:
        UserError: fewer than two models, or models that do not know the same classes.
    """
    if len(models) < 2:
        raise UserError(f"expected at least 2 models to compare, got {len(models)}")
    found = []
    for model in models:
        classifier, recipe = load_classifier(model, choose_device(device)), _recipe_of(Path(model))
        if data is None:
            data = _data_of(recipe, model)
        evaluation = evaluate(classifier, data)
        found.append((shown(str(model), 200), classifier, recipe, evaluation))
    speeds = _speeds([classifier for _, classifier, _, _ in found])
    networks = [Compared(*each, turns) for each, turns in zip(found, speeds, strict=True)]
    first = networks[0].evaluation
    for each in networks[1:]:
        if set(each.evaluation.classes) != set(first.classes) or len(each.evaluation.labels) != len(first.labels):
            raise UserError(f"expected models of the same classes, got others in {shown(each.name)}")
    return Comparison(tuple(networks), first.measured_on, describe_hardware(networks[0].classifier.device))


def _recipe_of(model: Path) -> Recipe | None:
    try:
        return read_recipe(model if model.is_dir() else model.parent)
    except RunError:
        return None


def _data_of(recipe: Recipe | None, model: str | Path) -> ImageSource:
    if recipe is None:
        raise UserError(f"expected --data with a weight file alone, got {shown(str(model))}")
    return data_of_run(Path(model))


def _speeds(classifiers: Sequence[Classifier]) -> list[tuple[float, ...]]:
    """Examples/s of each, in turns, so that what disturbs the machine disturbs all alike; the first turn warms up."""
    steps = []
    for classifier in classifiers:
        network = classifier.net.architecture
        shape = (SPEED_BATCH, network.in_channels, network.image_size, network.image_size)
        steps.append((classifies(classifier.fast, torch.rand(shape, device=classifier.device)), classifier.device))
    turns = [[SPEED_BATCH / turn_seconds(*step) for step in steps] for _ in range(TURNS + 1)]
    return list(zip(*turns[1:], strict=True))


def _plain(value: object) -> str:
    """A value of a recipe as its flag takes it."""
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple | list) else str(value)


def _pair(first: Compared, second: Compared) -> dict[str, Any]:
    # The images come in the same order, whatever the order of the classes.
    only_first, only_second = (int((a.is_right & ~b.is_right).sum()) for a, b in ((first, second), (second, first)))
    return {"only_first": only_first, "only_second": only_second, "p": mcnemar(only_first, only_second)}


def _sentence(first: Compared, second: Compared) -> str:
    pair = _pair(first, second)
    better, worse = (first, second) if pair["only_first"] > pair["only_second"] else (second, first)
    p = f"{pair['p']:.2g}" if pair["p"] >= 1e-4 else "below 0.0001"
    counts = f"{pair['only_first']} and {pair['only_second']} images right alone, McNemar's p {p}"
    if pair["p"] < 0.05:
        return f"{better.name} is better than {worse.name} ({counts})."
    return f"{first.name} against {second.name}: not decided ({counts})."
