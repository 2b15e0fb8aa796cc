"""What the runs of an experiment say: a table, a sentence for each comparison, a picture, and the files of a report."""

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggkit.data.files import write_whole
from vggkit.design.costs import Sum
from vggkit.design.network import costs
from vggkit.design.table import Table
from vggkit.errors import shown
from vggkit.lab.report import Code, Heading, Part, Picture, as_svg, to_html, to_markdown
from vggkit.lab.statistics import Interval, mean_interval
from vggkit.lab.trials import Outcome, Plan
from vggkit.training.progress import clock

MEAN, SEED = "#4c78a8", "#e45756"


@dataclass(frozen=True)
class Row:
    """One recipe over its seeds."""

    label: str
    architecture: str
    cost: Sum
    """Of one image."""
    accuracy: Interval | None
    """Over the seeds that did not diverge; None if all did."""
    num_seeds: int
    num_diverged: int
    against: str
    """The label that it is compared with; empty for one that nothing else is measured by."""
    difference: Interval | None
    """Its accuracy less the other's, over the seeds that both ended."""
    seconds: float
    """Of a run, the median."""
    examples_per_second: float | None
    """In training, the median."""
    peak_bytes: int | None

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `not decided`."""
        if self.difference is None or not self.difference.is_decided:
            return "not decided"
        return "better" if self.difference.mean > 0 else "worse"


@dataclass(frozen=True)
class Answer:
    """An experiment with what was measured."""

    plan: Plan
    outcomes: Sequence[Outcome]
    rows: tuple[Row, ...]

    @property
    def sentences(self) -> list[str]:
        """A sentence for each comparison, which the numbers support."""
        said = []
        for row in (row for row in self.rows if row.against):
            if row.difference is None:
                said.append(f"{row.label} diverged, or {row.against} did.")
            elif row.difference.is_decided:
                better = row.difference if row.difference.mean > 0 else -row.difference
                said.append(f"{row.label} is {row.verdict} than {row.against} by {written(better)}.")
            else:
                said.append(f"{row.label} against {row.against}: not decided ({written(row.difference, signed=True)}).")
        return said

    def table(self, with_words: bool = True) -> Table:
        """A line for each recipe; the question and its answer stand around it if `with_words`."""
        header = ("recipe", "params", "MACs", "accuracy", "difference", "examples/s", "s", "MB")
        lines = [
            (
                row.label,
                short(row.cost.parameters),
                short(row.cost.macs),
                written(row.accuracy) if row.accuracy else "diverged",
                written(row.difference, signed=True) if row.difference else "",
                f"{row.examples_per_second:,.0f}" if row.examples_per_second else "",
                f"{row.seconds:,.0f}",
                f"{row.peak_bytes / 1e6:,.0f}" if row.peak_bytes else "",
            )
            for row in self.rows
        ]
        experiment, seconds = self.plan.experiment, sum(outcome.seconds for outcome in self.outcomes)
        notes = [
            *(self.sentences if with_words else ()),
            f"mean and 95% interval over seeds 0 to {experiment.seeds - 1}; differences paired by seed; "
            f"equal {experiment.equal}",
            f"measured on {self.plan.hardware} in {clock(seconds)}, predicted {clock(self.plan.total_seconds)}",
        ]
        return Table(header, [lines], 1, experiment.question if with_words else "", notes)

    def to_json(self) -> dict[str, Any]:
        """All that was measured, for JSON."""
        experiment = self.plan.experiment
        return {
            "name": experiment.name,
            "question": experiment.question,
            "equal": experiment.equal,
            "seeds": experiment.seeds,
            "hardware": self.plan.hardware,
            "predicted_seconds": self.plan.total_seconds,
            "seconds": sum(outcome.seconds for outcome in self.outcomes),
            "sentences": self.sentences,
            "rows": [_as_json(row) for row in self.rows],
            "trials": [vars(outcome) for outcome in self.outcomes],
        }

    def to_csv(self) -> str:
        """A line for each trial."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(vars(self.outcomes[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(vars(outcome) for outcome in self.outcomes)
        return text.getvalue()

    def plot(self) -> str:
        """The accuracies with their intervals, and every seed as a dot, as an SVG picture."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 1.4 + 0.35 * len(self.rows)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(self.rows):
            values = [o.accuracy for o in self.outcomes if o.label == row.label and o.accuracy is not None]
            axes.plot(values, [place] * len(values), "o", color=SEED, markersize=4)
            if row.accuracy is not None:
                half = row.accuracy.high - row.accuracy.mean if _finite(row.accuracy) else 0
                axes.errorbar(row.accuracy.mean, place, xerr=half, fmt="|", color=MEAN, markersize=14, capsize=3)
        names = [shown(row.label + " (diverged)" * (row.accuracy is None)) for row in self.rows]
        axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel("accuracy: mean and 95% interval; every seed as a dot")
        return as_svg(figure)


def answered(plan: Plan, outcomes: Sequence[Outcome]) -> Answer:
    """What `outcomes`, all of `plan`'s, say."""
    experiment = plan.experiment
    first = next(iter(experiment.recipes))
    rows = []
    for label, recipe in experiment.recipes.items():
        own = {outcome.seed: outcome for outcome in outcomes if outcome.label == label}
        reference = experiment.against.get(label, first)
        is_compared = label not in experiment.against.values() and label != reference
        other = {outcome.seed: outcome for outcome in outcomes if outcome.label == reference}
        ended = [outcome.accuracy for outcome in own.values() if outcome.accuracy is not None]
        differences = [
            own[seed].accuracy - other[seed].accuracy  # type: ignore[operator]
            for seed in own
            if own[seed].accuracy is not None and other[seed].accuracy is not None
        ]
        speeds = [outcome.examples_per_second for outcome in own.values() if outcome.examples_per_second]
        peaks = [outcome.peak_bytes for outcome in own.values() if outcome.peak_bytes]
        network = recipe.network(in_channels=1, num_classes=10)
        rows.append(
            Row(
                label,
                network.name,
                costs(network).total,
                mean_interval(ended) if ended else None,
                len(own),
                len(own) - len(ended),
                reference if is_compared else "",
                mean_interval(differences) if is_compared and differences else None,
                statistics.median(outcome.seconds for outcome in own.values()),
                statistics.median(speeds) if speeds else None,
                max(peaks) if peaks else None,
            )
        )
    return Answer(plan, outcomes, tuple(rows))


def written(interval: Interval, signed: bool = False) -> str:
    """`0.912 ±0.007`, the mean and half of the interval; the value alone if there is one."""
    value = format(interval.mean, "+.3f" if signed else ".3f")
    return f"{value} ±{interval.high - interval.mean:.3f}" if _finite(interval) else value


def short(count: int) -> str:
    """A count in three digits: `61.7k`, `138M`."""
    unit, name = next((u, n) for u, n in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")) if count >= u or u == 1)
    return f"{count / unit:.3g}{name}"


def _finite(interval: Interval | None) -> tuple[float, ...]:
    """The bounds; none if they are infinite."""
    return (interval.low, interval.high) if interval is not None and math.isfinite(interval.low) else ()


def _as_json(row: Row) -> dict[str, Any]:
    """JSON has no infinite numbers: the bounds of one value are null."""

    def bounds(interval: Interval | None) -> dict[str, float | None] | None:
        if interval is None:
            return None
        low, high = _finite(interval) or (None, None)
        return {"mean": interval.mean, "low": low, "high": high}

    measured = {name: value for name, value in vars(row).items() if name not in ("cost", "accuracy", "difference")}
    return {
        **measured,
        "parameters": row.cost.parameters,
        "macs": row.cost.macs,
        "accuracy": bounds(row.accuracy),
        "difference": bounds(row.difference),
        "verdict": row.verdict if row.against else None,
    }


def written_report(answer: Answer, path: Path, command: str) -> None:
    """Write the answer to `path`, in the form that its suffix says: .html, .md, .csv, .json or .svg.

    Args:
        answer: what was measured.
        path: is replaced.
        command: makes the report again.
    """
    experiment = answer.plan.experiment
    parts: list[Part] = [
        *answer.sentences,
        Picture(answer.plot(), "Accuracy of each recipe: the mean over seeds with its 95% interval, and every seed."),
        answer.table(with_words=False),
        Heading("Made by"),
        Code(command),
    ]
    forms: dict[str, Callable[[], str]] = {
        ".html": lambda: to_html(experiment.question, parts),
        ".md": lambda: to_markdown(experiment.question, parts),
        ".csv": answer.to_csv,
        ".json": lambda: json.dumps(answer.to_json(), indent=1, allow_nan=False) + "\n",
        ".svg": answer.plot,
    }
    write_whole(path, forms[path.suffix]().encode("utf-8", "backslashreplace"))
