"""Trained networks side by side: recipes, costs, speed, and accuracy with tests of significance."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vggkit.data.images import FittedImage
from vggkit.data.samples import ImageSource
from vggkit.design.costs import Sum
from vggkit.design.network import costs
from vggkit.design.table import Table
from vggkit.errors import RunError, UserError, shown
from vggkit.inference.evaluate import data_of_run, evaluate
from vggkit.inference.evaluation import Evaluation, mcnemar
from vggkit.inference.predict import Classifier, load_classifier
from vggkit.lab.answers import short_count
from vggkit.lab.bench import classifies, random_images, turn_seconds
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
"""At most this many images on which networks disagree are shown."""


@dataclass(frozen=True, eq=False)
class Compared:
    """A network and its measurements."""

    name: str
    classifier: Classifier
    recipe: Recipe | None
    """None for a weight file without a run."""
    curve: dict[int, float]
    """The accuracy of the run by epoch."""
    evaluation: Evaluation
    turns: tuple[float, ...]
    """Examples/s of each turn, in batches of 64 images in memory; the networks take turns."""

    @property
    def examples_per_second(self) -> float:
        """The median of the turns."""
        return statistics.median(self.turns)

    @property
    def is_right(self) -> npt.NDArray[np.bool_]:
        """(images,): whether each image was classified right."""
        return np.equal(self.evaluation.predicted, self.evaluation.labels)

    @cached_property
    def cost(self) -> Sum:
        """The costs of one image."""
        return costs(self.classifier.net.architecture).total

    def figures(self) -> dict[str, Any]:
        """The columns of timm's tables of results and of speed, by their names."""
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
    hardware: str

    def table(self) -> Table:
        """Costs, accuracy with its 95% interval, and speed of each network."""
        header = ("model", "px", "params", "MACs", "top-1", "95%", "top-5", "examples/s", "front")
        rows = [
            (
                net.name,
                str(net.classifier.net.architecture.image_size),
                short_count(net.cost.parameters),
                short_count(net.cost.macs),
                f"{net.evaluation.accuracy:.4f}",
                "{:.3f} to {:.3f}".format(*net.evaluation.interval),
                f"{net.evaluation.top5:.4f}",
                f"{net.examples_per_second:,.0f} ({min(net.turns):,.0f} to {max(net.turns):,.0f})",
                "*" if net in self.front else "",
            )
            for net in self.networks
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
        """The networks on the Pareto front of accuracy and speed."""
        places = [(net.evaluation.accuracy, net.examples_per_second) for net in self.networks]
        return [net for net, is_on in zip(self.networks, pareto_front(places), strict=True) if is_on]

    @property
    def pairs(self) -> list[dict[str, Any]]:
        """McNemar's test of each pair of networks, on the images that only one of the two gets right."""
        return [_pair(first, second) for first, second in combinations(self.networks, 2)]

    def differences(self) -> Table | None:
        """The fields in which the recipes of the runs differ; None if there are none."""
        recipes = {net.name: asdict(net.recipe) for net in self.networks if net.recipe is not None}
        names = next(iter(recipes.values()), {})
        rows = [(name, *(_flag_value(recipe[name]) for recipe in recipes.values())) for name in names]
        rows = [row for row in rows if len(set(row[1:])) > 1]
        return Table(("recipe", *recipes), [rows], len(recipes) + 1) if rows else None

    def disagreements(self) -> list[tuple[int, str, list[str]]]:
        """The first images that only some networks get right: position, class, and the class that each predicts."""
        first = self.networks[0].evaluation
        right = np.stack([net.is_right for net in self.networks])
        chosen = np.flatnonzero(right.any(0) & ~right.all(0))[:DISAGREEMENTS].tolist()
        evaluations = [net.evaluation for net in self.networks]
        return [(i, first.classes[first.labels[i]], [e.classes[e.predicted[i]] for e in evaluations]) for i in chosen]

    def to_csv(self) -> str:
        """The `figures` of each network as CSV."""
        return csv_of([net.figures() for net in self.networks])

    def to_json(self) -> dict[str, Any]:
        """The measurements, for JSON."""
        models = [
            {
                **net.figures(),
                "architecture": net.classifier.net.architecture.name,
                "parameters": net.cost.parameters,
                "macs": net.cost.macs,
                "accuracy": net.evaluation.accuracy,
                "interval": net.evaluation.interval,
                "recipe": asdict(net.recipe) if net.recipe is not None else None,
                "is_on_front": net in self.front,
            }
            for net in self.networks
        ]
        measured_on = self.networks[0].evaluation.measured_on
        return {"data": measured_on, "hardware": self.hardware, "models": models, "pairs": self.pairs}

    def scatter(self) -> str:
        """Accuracy against throughput with the Pareto front, as SVG; the areas of the circles are the parameters."""
        label = f"examples/s, batches of {SPEED_BATCH}, {self.hardware}"
        panel = Panel(label, [net.examples_per_second for net in self.networks], is_cost=False)
        accuracies = [net.evaluation.accuracy for net in self.networks]
        sizes = [net.cost.parameters for net in self.networks]
        return front_plot([net.name for net in self.networks], accuracies, [panel], sizes)

    def curves(self) -> str | None:
        """The accuracy of each run over its epochs, as SVG; None without runs."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        runs = [net for net in self.networks if net.curve]
        for net in runs:
            axes.plot(*zip(*sorted(net.curve.items()), strict=True), ".-", label=labelled(net.name))
        axes.set(xlabel="epoch", ylabel="accuracy on what the run was evaluated on")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend()
        return as_svg(figure) if runs else None

    def disagreements_figure(self) -> "Figure":
        """The images of `disagreements` as the first network sees them, with the wrong predictions."""
        from matplotlib.figure import Figure

        images, classifier = self.disagreements(), self.networks[0].classifier
        num_rows = -(-len(images) // 5)
        figure = Figure(figsize=(8, num_rows * (1.6 + 0.15 * len(self.networks))), layout="constrained")
        read, fit = self.data.held_out.reader(0, 0), FittedImage(classifier.preprocessing)
        for number, axes in enumerate(figure.subplots(num_rows, 5, squeeze=False).flat):
            axes.axis("off")
            if number < len(images):
                index, name, predictions = images[number]
                pixels = fit(read(index), 0, index).transpose(1, 2, 0).squeeze()
                axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
                wrong = [f"{place}: {other}" for place, other in enumerate(predictions, 1) if other != name]
                axes.set_title("\n".join(map(labelled, [f"{index}, {name}", *wrong])), fontsize=8)
        return figure

    def report(self, command: str) -> list[Part]:
        """The parts of a report; `command` reproduces it."""
        parts: list[Part] = [self.table(), Picture(self.scatter(), "Accuracy against throughput; area: parameters.")]
        differences, disagreements, curves = self.differences(), self.disagreements(), self.curves()
        if curves is not None:
            parts += [Heading("The runs"), Picture(curves, "Accuracy after each epoch.")]
        if differences is not None:
            parts += [Heading("What differs in the recipes"), differences]
        if disagreements:
            rows = [(str(index), name, *predictions) for index, name, predictions in disagreements]
            header = ("image", "class", *(net.name for net in self.networks))
            parts.append(Heading("The first images on which they disagree"))
            if len(self.data.held_out) == len(self.networks[0].evaluation.labels):  # no image was left out
                caption = "Number and class; below, who takes it for something else."
                parts.append(Picture(as_svg(self.disagreements_figure()), caption))
            parts.append(Table(header, [rows], len(header)))
        return [*parts, Heading("Made by"), Code(command)]


def compare(models: Sequence[str | Path], data: ImageSource | None = None, device: str | None = None) -> Comparison:
    """Evaluate `models`, run folders or weight files, on the same images, and measure how fast each is here.

    Args:
        models: at least two.
        data: images to measure on; by default those that the first run among the models was evaluated on.
        device: as for `train`.

    Raises:
        UserError: fewer than two models, no data, or models with different classes.
    """
    if len(models) < 2:
        raise UserError(f"expected at least 2 models to compare, got {len(models)}")
    recipes, curves = zip(*(_recipe_and_curve(Path(model)) for model in models), strict=True)
    classifiers = [load_classifier(model, choose_device(device)) for model in models]
    if data is None:
        runs = [model for model, recipe in zip(models, recipes, strict=True) if recipe is not None]
        if not runs:
            raise UserError(f"expected --data with weight files alone, got {shown(str(models[0]))}")
        data = data_of_run(Path(runs[0]))
    evaluations = [evaluate(classifier, data) for classifier in classifiers]
    first = evaluations[0]
    for model, evaluation in zip(models, evaluations, strict=True):
        if set(evaluation.classes) != set(first.classes) or len(evaluation.labels) != len(first.labels):
            raise UserError(f"expected models of the same classes, got others in {shown(str(model))}")
    names = [shown(str(model), 200) for model in models]
    networks = map(Compared, names, classifiers, recipes, curves, evaluations, _speeds(classifiers))
    return Comparison(tuple(networks), data, describe_hardware(classifiers[0].device))


def _recipe_and_curve(model: Path) -> tuple[Recipe | None, dict[int, float]]:
    """The recipe of a run and its accuracy by epoch; None and nothing for a weight file without a run."""
    folder = model if model.is_dir() else model.parent
    try:
        recipe = read_recipe(folder)
    except RunError:
        return None, {}
    return recipe, {epoch.epoch: epoch.test_accuracy for epoch in read_epochs(folder, recipe.epochs)}


def _speeds(classifiers: Sequence[Classifier]) -> list[tuple[float, ...]]:
    """Examples/s of each classifier in each turn; a first turn to warm up is left out."""
    batches = [random_images(c.net.architecture, SPEED_BATCH, c.device) for c in classifiers]
    steps = [(classifies(c.fast, x), c.device) for c, x in zip(classifiers, batches, strict=True)]
    turns = [[SPEED_BATCH / turn_seconds(*step) for step in steps] for _ in range(TURNS + 1)]
    return list(zip(*turns[1:], strict=True))


def _flag_value(value: object) -> str:
    """A value of a recipe as its flag takes it."""
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple | list) else str(value)


def _pair(first: Compared, second: Compared) -> dict[str, Any]:
    only_first, only_second = (int((a.is_right & ~b.is_right).sum()) for a, b in ((first, second), (second, first)))
    p, named = mcnemar(only_first, only_second), (only_first, only_second)
    verdict = f"{first.name} against {second.name}: not decided"
    if p < 0.05:
        better, worse = (first, second) if only_first > only_second else (second, first)
        verdict, named = f"{better.name} is better than {worse.name}", (max(named), min(named))
    p_text = f"{p:.2g}" if p >= 1e-4 else "below 0.0001"
    sentence = f"{verdict} ({named[0]} and {named[1]} images right alone, McNemar's p {p_text})."
    counts = {"only_first": only_first, "only_second": only_second}
    return {"models": [first.name, second.name], **counts, "p": p, "sentence": sentence}
