"""Trained networks side by side: what differs, what each costs and reaches, and whether the difference is luck."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from vggkit.data.images import FittedImage
from vggkit.data.samples import ImageSource
from vggkit.design.costs import Sum
from vggkit.design.network import costs
from vggkit.design.table import Table
from vggkit.errors import RunError, UserError, shown
from vggkit.inference.evaluate import data_of_run, evaluate
from vggkit.inference.evaluation import Evaluation
from vggkit.inference.predict import Classifier, load_classifier
from vggkit.inference.significance import mcnemar
from vggkit.lab.answers import short
from vggkit.lab.bench import classifies, turn_seconds
from vggkit.lab.pareto import Panel, front_plot, labelled
from vggkit.lab.report import Code, Heading, Part, Picture, as_svg, csv_of
from vggkit.lab.statistics import pareto_front
from vggkit.training.hardware import choose_device, describe_hardware
from vggkit.training.recipe import Recipe
from vggkit.training.run_folder import read_epochs, read_recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPEED_BATCH, TURNS = 64, 5
DISAGREEMENTS = 20


@dataclass(frozen=True, eq=False)
class Compared:
    """One network."""

    name: str
    classifier: Classifier
    recipe: Recipe | None
    """Of a run; None for a weight file alone."""
    curve: dict[int, float]
    """The accuracy after each epoch of a run."""
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

    @cached_property
    def cost(self) -> Sum:
        """Of one image."""
        return costs(self.classifier.net.architecture).total

    def figures(self) -> dict[str, Any]:
        """What timm's tables of results and of speed say of a network, by the names of their columns."""
        top1, top5 = 100 * self.evaluation.accuracy, 100 * self.evaluation.top5
        return {
            "model": self.name,
            "img_size": self.classifier.net.architecture.image_size,
            "top1": round(top1, 3),
            "top1_err": round(100 - top1, 3),
            "top5": round(top5, 3),
            "top5_err": round(100 - top5, 3),
            "param_count": round(self.cost.parameters / 1e6, 4),
            "infer_samples_per_sec": round(self.examples_per_second, 1),
            "infer_step_time": round(1000 * SPEED_BATCH / self.examples_per_second, 3),
            "infer_batch_size": SPEED_BATCH,
            "infer_gmacs": round(self.cost.macs / 1e9, 4),
        }


@dataclass(frozen=True)
class Comparison:
    """Networks measured on the same images."""

    networks: tuple[Compared, ...]
    data: ImageSource
    """What they were measured on."""
    hardware: str

    def table(self) -> Table:
        """Costs, accuracy with its 95% interval, and speed."""
        header = ("model", "px", "params", "MACs", "top-1", "95%", "top-5", "examples/s", "front")
        rows = [
            (
                each.name,
                str(each.classifier.net.architecture.image_size),
                short(each.cost.parameters),
                short(each.cost.macs),
                f"{each.evaluation.accuracy:.4f}",
                "{:.3f} to {:.3f}".format(*each.evaluation.interval),
                f"{each.evaluation.top5:.4f}",
                f"{each.examples_per_second:,.0f} ({min(each.turns):,.0f} to {max(each.turns):,.0f})",
                "*" if each in self.front else "",
            )
            for each in self.networks
        ]
        notes = [
            *(pair["sentence"] for pair in self.pairs),
            f"on the {len(self.networks[0].evaluation.labels):,} {self.networks[0].evaluation.measured_on}",
            f"examples/s: batches of {SPEED_BATCH}, median of {TURNS} turns and their range, {self.hardware}",
            "*: no other is as accurate and as fast",
        ]
        return Table(header, [rows], 1, "", notes)

    @cached_property
    def front(self) -> list[Compared]:
        """The Pareto front: the networks to which no other is as accurate and as fast and better in one."""
        places = [(each.evaluation.accuracy, each.examples_per_second) for each in self.networks]
        return [each for each, is_on in zip(self.networks, pareto_front(places), strict=True) if is_on]

    @property
    def pairs(self) -> list[dict[str, Any]]:
        """For each pair what McNemar's test says of the images that only one of the two gets right."""
        # The images come in the same order, whatever the order of the classes.
        return [_pair(first, second) for first, second in combinations(self.networks, 2)]

    def differences(self) -> Table | None:
        """The fields in which the runs' recipes differ; None if there are no two runs or no difference."""
        recipes = {each.name: asdict(each.recipe) for each in self.networks if each.recipe is not None}
        fields = next(iter(recipes.values()), {})
        rows = [(name, *(_plain(recipe[name]) for recipe in recipes.values())) for name in fields]
        rows = [row for row in rows if len(set(row[1:])) > 1]
        return Table(("recipe", *recipes), [rows], len(recipes) + 1) if rows else None

    def disagreements(self) -> list[tuple[int, str, list[str]]]:
        """The first images that some get right and some not: position, class, and what each takes it for."""
        first = self.networks[0].evaluation
        right = np.stack([each.is_right for each in self.networks])
        chosen = np.flatnonzero(right.any(0) & ~right.all(0))[:DISAGREEMENTS].tolist()
        names = [[each.evaluation.classes[each.evaluation.predicted[i]] for each in self.networks] for i in chosen]
        return [(i, first.classes[first.labels[i]], taken) for i, taken in zip(chosen, names, strict=True)]

    def to_csv(self) -> str:
        """A line for each network, see `Compared.figures`."""
        return csv_of([each.figures() for each in self.networks])

    def to_json(self) -> dict[str, Any]:
        """All that was measured, for JSON."""
        models = [
            {
                **each.figures(),
                "architecture": each.classifier.net.architecture.name,
                "parameters": each.cost.parameters,
                "macs": each.cost.macs,
                "accuracy": each.evaluation.accuracy,
                "interval": each.evaluation.interval,
                "recipe": asdict(each.recipe) if each.recipe is not None else None,
                "is_on_front": each in self.front,
            }
            for each in self.networks
        ]
        measured_on = self.networks[0].evaluation.measured_on
        return {"data": measured_on, "hardware": self.hardware, "models": models, "pairs": self.pairs}

    def scatter(self) -> str:
        """Accuracy against throughput, circles for parameters, and the Pareto front, as an SVG picture."""
        label = f"examples/s, batches of {SPEED_BATCH}, {self.hardware}"
        panel = Panel(label, [each.examples_per_second for each in self.networks], is_cost=False)
        accuracies = [each.evaluation.accuracy for each in self.networks]
        sizes = [each.cost.parameters for each in self.networks]
        return front_plot([each.name for each in self.networks], accuracies, [panel], sizes)

    def curves(self) -> str | None:
        """The accuracy of each run over its epochs, as an SVG picture; None without runs."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        runs = [each for each in self.networks if each.curve]
        for each in runs:
            axes.plot(*zip(*sorted(each.curve.items()), strict=True), ".-", label=labelled(each.name))
        axes.set(xlabel="epoch", ylabel="accuracy on what the run was evaluated on")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend()
        return as_svg(figure) if runs else None

    def faces(self) -> "Figure":
        """The images of `disagreements` as the first network sees them, with what each network takes them for."""
        from matplotlib.figure import Figure

        wrong, classifier = self.disagreements(), self.networks[0].classifier
        num_rows = -(-len(wrong) // 5)
        figure = Figure(figsize=(8, num_rows * (1.6 + 0.15 * len(self.networks))), layout="constrained")
        read, fit = self.data.held_out.reader(0, 0), FittedImage(classifier.preprocessing)
        for number, axes in enumerate(figure.subplots(num_rows, 5, squeeze=False).flat):
            axes.axis("off")
            if number < len(wrong):
                index, name, taken = wrong[number]
                pixels = fit(read(index), 0, index).transpose(1, 2, 0).squeeze()
                axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
                said = [f"{place}: {other}" for place, other in enumerate(taken, 1) if other != name]
                axes.set_title("\n".join(map(labelled, [f"{index}, {name}", *said])), fontsize=8)
        return figure

    def report(self, command: str) -> list[Part]:
        """The parts of a report; `command` makes it again."""
        parts: list[Part] = [self.table(), Picture(self.scatter(), "Accuracy against throughput; area: parameters.")]
        differences, wrong, curves = self.differences(), self.disagreements(), self.curves()
        if curves is not None:
            parts += [Heading("The runs"), Picture(curves, "Accuracy after each epoch.")]
        if differences is not None:
            parts += [Heading("What differs in the recipes"), differences]
        if wrong:
            rows = [(str(index), name, *taken) for index, name, taken in wrong]
            header = ("image", "class", *(each.name for each in self.networks))
            parts.append(Heading("The first images on which they disagree"))
            if len(self.data.held_out) == len(self.networks[0].evaluation.labels):  # none was left out
                parts.append(Picture(as_svg(self.faces()), "Number and class; below, who takes it for something else."))
            parts.append(Table(header, [rows], len(header)))
        return [*parts, Heading("Made by"), Code(command)]


def compare(models: Sequence[str | Path], data: ImageSource | None = None, device: str | None = None) -> Comparison:
    """Evaluate `models`, run folders or weight files, on the same images, and measure how fast each is here.

    Args:
        models: at least two.
        data: what to measure on; by default what the first run among them was evaluated on.
        device: as `train` takes it.

    Raises:
        UserError: fewer than two models, no data, or models that do not know the same classes.
    """
    if len(models) < 2:
        raise UserError(f"expected at least 2 models to compare, got {len(models)}")
    recipes = [_recipe_of(Path(model)) for model in models]
    classifiers = [load_classifier(model, choose_device(device)) for model in models]
    if data is None:
        runs = [model for model, recipe in zip(models, recipes, strict=True) if recipe is not None]
        if not runs:
            raise UserError(f"expected --data with weight files alone, got {shown(str(models[0]))}")
        data = data_of_run(Path(runs[0]))
    evaluations = [evaluate(classifier, data) for classifier in classifiers]
    first = evaluations[0]
    for model, each in zip(models, evaluations, strict=True):
        if set(each.classes) != set(first.classes) or len(each.labels) != len(first.labels):
            raise UserError(f"expected models of the same classes, got others in {shown(str(model))}")
    names, turns = [shown(str(model), 200) for model in models], _speeds(classifiers)
    curves = [_curve(Path(model), recipe) for model, recipe in zip(models, recipes, strict=True)]
    columns = zip(names, classifiers, recipes, curves, evaluations, turns, strict=True)
    return Comparison(tuple(Compared(*each) for each in columns), data, describe_hardware(classifiers[0].device))


def _recipe_of(model: Path) -> Recipe | None:
    try:
        return read_recipe(model if model.is_dir() else model.parent)
    except RunError:
        return None


def _curve(model: Path, recipe: Recipe | None) -> dict[int, float]:
    epochs = read_epochs(model if model.is_dir() else model.parent, recipe.epochs) if recipe is not None else []
    return {epoch.epoch: epoch.test_accuracy for epoch in epochs}


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
    only_first, only_second = (int((a.is_right & ~b.is_right).sum()) for a, b in ((first, second), (second, first)))
    p = mcnemar(only_first, only_second)
    better, worse = (first, second) if only_first > only_second else (second, first)
    counts = f"{only_first} and {only_second} images right alone, McNemar's p "
    counts += f"{p:.2g}" if p >= 1e-4 else "below 0.0001"
    verdict = f"{first.name} against {second.name}: not decided"
    if p < 0.05:
        verdict = f"{better.name} is better than {worse.name}"
    found = {"only_first": only_first, "only_second": only_second, "p": p, "sentence": f"{verdict} ({counts})."}
    return {"models": [first.name, second.name], **found}
