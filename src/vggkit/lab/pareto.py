"""Accuracy against what it costs as a picture: a circle for each network, its name beside it, and the Pareto front."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggkit.errors import shown
from vggkit.lab.report import as_svg
from vggkit.lab.statistics import pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OTHER, FRONT = "#4c78a8", "#e45756"
LARGEST, SMALLEST = 20.0, 4.0
"""Radii of circles, in points."""
MOST_NAMES = 12
"""If there are more networks, only those on the front are named."""


@dataclass(frozen=True)
class Panel:
    """What the accuracy is drawn against."""

    label: str
    values: Sequence[float]
    """Above 0, one for each network."""
    is_cost: bool
    """Whether less is better."""


def front_plot(
    names: Sequence[str], accuracies: Sequence[float], panels: Sequence[Panel], sizes: Sequence[float] | None = None
) -> str:
    """Panels one below the other as an SVG picture; the areas of the circles are proportional to `sizes`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.6 + 4.4 * len(panels)), dpi=72, layout="constrained")  # so that a pixel is a point
    radii = [max(SMALLEST, LARGEST * math.sqrt(size / max(sizes))) for size in sizes] if sizes else [5.0] * len(names)
    drawn = []
    for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False).flat, panels, strict=True):
        places = list(zip(panel.values, accuracies, strict=True))
        is_front = pareto_front([(accuracy, -value if panel.is_cost else value) for value, accuracy in places])
        axes.set(xlabel=shown(panel.label, 200), ylabel="accuracy")
        if max(panel.values) > 10 * min(panel.values):
            axes.set_xscale("log")
        front = sorted(place for place, is_on in zip(places, is_front, strict=True) if is_on)
        axes.plot(*zip(*front, strict=True), "--", color=FRONT, linewidth=1)
        colours = [FRONT if is_on else OTHER for is_on in is_front]
        axes.scatter(*zip(*places, strict=True), s=[math.pi * r**2 for r in radii], c=colours, alpha=0.6, linewidths=0)
        axes.margins(0.25)
        axes.grid(alpha=0.3)
        named = [name if is_on or len(names) <= MOST_NAMES else "" for name, is_on in zip(names, is_front, strict=True)]
        drawn.append((axes, named, places, radii))
    figure.draw_without_rendering()  # decides where everything is
    for each in drawn:
        _put_names(*each)
    return as_svg(figure)


def _put_names(
    axes: "Axes", names: Sequence[str], places: Sequence[tuple[float, float]], radii: Sequence[float]
) -> None:
    """Write each name as near to its circle as there is room: over no circle, no other name, and within the axes."""
    from matplotlib.transforms import Bbox

    at = axes.transData.transform(places)
    taken: list[Any] = [Bbox([(x - r, y - r), (x + r, y + r)]) for (x, y), r in zip(at, radii, strict=True)]
    for name, place, radius in zip(names, places, radii, strict=True):
        if not name:
            continue
        text = axes.annotate(
            shown(name, 40), place, xytext=(0, 0), textcoords="offset points", ha="center", va="center",
            fontsize=9, parse_math=False, arrowprops={"arrowstyle": "-", "color": "grey", "linewidth": 0.5, "shrinkB": 0},
        )  # fmt: skip
        text.set_in_layout(False)
        own = text.get_window_extent()
        half = (own.width / 2 + 2, own.height / 2 + 1)
        for ring in range(12):
            for turn in (2, 6, 0, 4, 1, 3, 5, 7):
                across, up = math.cos(turn * math.pi / 4), math.sin(turn * math.pi / 4)
                reach = radius + 3 + 9 * ring
                text.set_position((across * (reach + half[0]), up * (reach + half[1])))
                box = text.get_window_extent().padded(2)
                lies_in = (
                    axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 and axes.bbox.y0 < box.y0 and box.y1 < axes.bbox.y1
                )
                if lies_in and not box.count_overlaps(taken):
                    break
            else:
                continue
            break
        taken.append(text.get_window_extent())
