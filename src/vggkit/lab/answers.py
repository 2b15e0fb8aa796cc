"""The results of an experiment: a table, a sentence for each comparison, a plot and a report."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vggkit.design.costs import Sum
from vggkit.design.network import costs
from vggkit.design.table import Table
from vggkit.errors import shown
from vggkit.lab.report import Code, Heading, Part, Picture, as_svg, csv_of
from vggkit.lab.statistics import Interval, mean_interval
from vggkit.lab.trials import Outcome, Plan
from vggkit.training.progress import clock

MEAN_COLOUR, SEED_COLOUR = "#4c78a8", "#e45756"
SHARED_FIELDS = ("data", "architecture", "image_size", "epochs", "batch_size", "optimizer", "learning_rate", "schedule")
"""Fields of a recipe that are reported if they are the same in all recipes."""


@dataclass(frozen=True)
class Row:
    """The trials of one recipe, over all seeds."""

    label: str
    cost: Sum
    """Of one image."""
    trials: tuple[Outcome, ...]
    """By seed."""
    against: str
    """The label of its reference; empty if it is one itself."""
    difference: Interval | None
    """Its accuracy minus the reference's, paired over the seeds for which both converged."""

    @property
    def accuracy(self) -> Interval | None:
        """Over the seeds that did not diverge; None if all did."""
        accuracies = [trial.accuracy for trial in self.trials if trial.accuracy is not None]
        return mean_interval(accuracies) if accuracies else None

    @property
    def seconds(self) -> float:
        """The median wall time of a run."""
        return statistics.median(trial.seconds for trial in self.trials)

    @property
    def examples_per_second(self) -> float | None:
        """The median throughput in training."""
        speeds = [trial.examples_per_second for trial in self.trials if trial.examples_per_second]
        return statistics.median(speeds) if speeds else None

    @property
    def peak_bytes(self) -> int | None:
        """The largest peak memory of a run."""
        return max((trial.peak_bytes for trial in self.trials if trial.peak_bytes), default=None)

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `not decided`."""
        if self.difference is None or not self.difference.is_decided:
            return "not decided"
        return "better" if self.difference.mean > 0 else "worse"

    @property
    def sentence(self) -> str:
        """The result of the comparison in a sentence."""
        if self.difference is None:
            return f"{self.label} diverged, or {self.against} did."
        if self.verdict == "not decided":
            return f"{self.label} against {self.against}: not decided ({interval_text(self.difference, signed=True)})."
        better = self.difference if self.verdict == "better" else -self.difference
        return f"{self.label} is {self.verdict} than {self.against} by {interval_text(better)}."

    def to_json(self) -> dict[str, Any]:
        """The measurements for JSON; an infinite bound, that of a single value, is null."""

        def bounds(interval: Interval) -> dict[str, float | None]:
            return {name: value if math.isfinite(value) else None for name, value in asdict(interval).items()}

        return {
            "label": self.label,
            "parameters": self.cost.parameters,
            "macs": self.cost.macs,
            "accuracy": self.accuracy and bounds(self.accuracy),
            "against": self.against,
            "difference": self.difference and bounds(self.difference),
            "verdict": self.verdict if self.against else None,
            "examples_per_second": self.examples_per_second,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
        }


@dataclass(frozen=True)
class Answer:
    """An experiment with its results."""

    plan: Plan
    outcomes: Sequence[Outcome]
    rows: tuple[Row, ...]

    @property
    def sentences(self) -> list[str]:
        """The result of each comparison in a sentence."""
        return [row.sentence for row in self.rows if row.against]

    @property
    def shared(self) -> str:
        """The `SHARED_FIELDS` that are the same in all recipes, in a sentence."""
        recipes = [self.plan.recipe(label) for label in self.plan.experiment.recipes]
        distinct = {name: {getattr(recipe, name) for recipe in recipes} for name in SHARED_FIELDS}
        shared = (f"{name.replace('_', ' ')} {values.pop()}" for name, values in distinct.items() if len(values) == 1)
        return f"All: {', '.join(shared)}."

    def table(self, with_words: bool = True) -> Table:
        """A row for each recipe; `with_words` also the question and the sentences."""
        header = ("recipe", "accuracy", "difference", "params", "MACs", "examples/s", "s", "MB")
        rows = [
            (
                row.label,
                interval_text(row.accuracy) if row.accuracy else "diverged",
                interval_text(row.difference, signed=True) if row.difference else "",
                short_count(row.cost.parameters),
                short_count(row.cost.macs),
                f"{row.examples_per_second:,.0f}" if row.examples_per_second else "",
                f"{row.seconds:,.0f}",
                f"{row.peak_bytes / 1e6:,.0f}" if row.peak_bytes else "",
            )
            for row in self.rows
        ]
        experiment, hardware = self.plan.experiment, {outcome.hardware for outcome in self.outcomes}
        seconds = sum(outcome.seconds for outcome in self.outcomes)
        over = f"mean and 95% interval over seeds 0 to {experiment.seeds - 1}; differences paired by seed"
        if experiment.seeds == 1:
            over = "one run of each, from seed 0"
        notes = [
            *([*self.sentences, self.shared] if with_words else ()),
            f"{over}; equal {experiment.equal}",
            "params, MACs: of one image; examples/s, s: of a run, the median; MB: memory at most",
            f"measured on {' and '.join(sorted(hardware))} in {clock(seconds)}, "
            f"predicted {clock(self.plan.total_seconds)}",
        ]
        return Table(header, [rows], 1, experiment.question if with_words else "", notes)

    def to_json(self) -> dict[str, Any]:
        """The measurements, for JSON."""
        experiment = self.plan.experiment
        return {
            **{name: getattr(experiment, name) for name in ("name", "question", "equal", "seeds")},
            "predicted_seconds": self.plan.total_seconds,
            "seconds": sum(outcome.seconds for outcome in self.outcomes),
            "sentences": self.sentences,
            "rows": [row.to_json() for row in self.rows],
            "trials": [vars(outcome) for outcome in self.outcomes],
        }

    def to_csv(self) -> str:
        """The trials as CSV."""
        return csv_of([vars(outcome) for outcome in self.outcomes])

    def report(self, command: str) -> list[Part]:
        """The parts of a report; `command` reproduces it."""
        words = "the mean over seeds with its 95% interval, and every seed"
        words = f"Accuracy of each recipe: {words if self.plan.experiment.seeds > 1 else 'one run of each'}."
        picture, table = Picture(self.plot(), words), self.table(with_words=False)
        return [*self.sentences, picture, table, self.shared, Heading("Made by"), Code(command)]

    def plot(self) -> str:
        """The accuracies with their intervals, and every seed as a dot, as SVG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.4, 0.9 + 0.5 * len(self.rows)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(self.rows):
            values = [trial.accuracy for trial in row.trials if trial.accuracy is not None]
            axes.plot(values, [place] * len(values), "o", color=SEED_COLOUR, markersize=4)
            if row.accuracy is not None and math.isfinite(row.accuracy.high):  # infinite for a single run
                half = row.accuracy.high - row.accuracy.mean
                axes.errorbar(row.accuracy.mean, place, xerr=half, fmt="|", color=MEAN_COLOUR, markersize=14, capsize=3)
            name = shown(row.label, 60) + " (diverged)" * (not values)
            # The name stands within the axes, above its values, so that a long one does not narrow them.
            axes.annotate(name, (0, place), (4, 11), ("axes fraction", "data"), "offset points", parse_math=False)
        over = ": mean and 95% interval; every seed as a dot" if self.plan.experiment.seeds > 1 else " of one run"
        axes.set(xlabel=f"accuracy{over}", yticks=())
        axes.set_ylim(len(self.rows) - 0.6, -0.75)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["left", "right", "top"]].set_visible(False)
        return as_svg(figure)


def answered(plan: Plan, outcomes: Sequence[Outcome]) -> Answer:
    """The answer that all outcomes of `plan` give."""
    accuracies = {(outcome.label, outcome.seed): outcome.accuracy for outcome in outcomes}

    def row(label: str) -> Row:
        reference = plan.experiment.reference(label)
        pairs = [(accuracies[label, seed], accuracies[reference, seed]) for seed in range(plan.experiment.seeds)]
        differences = [a - b for a, b in pairs if a is not None and b is not None]
        return Row(
            label,
            costs(plan.network(label)).total,
            tuple(outcome for outcome in outcomes if outcome.label == label),
            reference if reference != label else "",
            mean_interval(differences) if reference != label and differences else None,
        )

    return Answer(plan, outcomes, tuple(row(label) for label in plan.experiment.recipes))


def interval_text(interval: Interval, signed: bool = False) -> str:
    """The mean and half of the interval, `0.912 ±0.007`; the mean alone if the interval is infinite.

    Both have at least 3 decimals, and up to 6 if it takes more to tell the nearer bound from 0.

    >>> interval_text(Interval(0.0074, 0.0003, 0.0145), signed=True)
    '+0.0074 ±0.0071'
    """
    mean, half, digits = interval.mean, interval.high - interval.mean, 3
    while round(abs(mean), digits) == round(half, digits) and digits < 6 and half:
        digits += 1
    value = f"{mean:{'+' if signed else ''}.{digits}f}"
    return f"{value} ±{half:.{digits}f}" if math.isfinite(half) else value


def short_count(count: int) -> str:
    """A count with three significant digits: `61.7k`, `138M`."""
    unit, name = next((u, n) for u, n in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")) if count >= u or u == 1)
    return f"{count / unit:.3g}{name}"
