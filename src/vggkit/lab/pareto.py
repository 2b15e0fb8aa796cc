"""Accuracy against what it costs as a picture: a circle for each network, its name beside it, and the Pareto front."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from vggkit.errors import shown
from vggkit.lab.answers import short
from vggkit.lab.report import as_svg
from vggkit.lab.statistics import pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

OTHER, FRONT = "#4c78a8", "#e45756"
LARGEST, SMALLEST = 20.0, 4.0
"""Radii of circles, in points."""
FONT_SIZE, RINGS = 9, 12
"""Of the names, in points; and how many times that a name may be away from its circle."""
MOST_CHARACTERS = 40
"""Of a name in a picture."""
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
        axes.set_xscale("log" if max(panel.values) > 10 * min(panel.values) else "linear")
        axes.xaxis.set_major_formatter(lambda value, _: short(value))
        front = sorted(place for place, is_on in zip(places, is_front, strict=True) if is_on)
        axes.plot(*zip(*front, strict=True), "--", color=FRONT, linewidth=1)
        colours = [FRONT if is_on else OTHER for is_on in is_front]
        axes.scatter(*zip(*places, strict=True), s=[math.pi * r**2 for r in radii], c=colours, alpha=0.6, linewidths=0)
        axes.margins(0.25)
        axes.grid(alpha=0.3)
        are_all_named = len(names) <= MOST_NAMES
        named = [shortened(n) if is_on or are_all_named else "" for n, is_on in zip(names, is_front, strict=True)]
        drawn.append((axes, named, places, radii))
    figure.draw_without_rendering()  # decides where everything is
    for each in drawn:
        _put_names(*each)
    return as_svg(figure)


def labelled(name: str) -> str:
    """`name` as a label of matplotlib's, which takes dollars for mathematics."""
    return shortened(name).replace("$", r"\$")


def shortened(name: str) -> str:
    """The end of a long path, which is what tells one run from another."""
    return shown(name if len(name) <= MOST_CHARACTERS else "..." + name[3 - MOST_CHARACTERS :])


def _put_names(
    axes: "Axes", names: Sequence[str], places: Sequence[tuple[float, float]], radii: Sequence[float]
) -> None:
    """Write each name as near to its circle as there is room: over no circle, no other name, and within the axes."""
    from rich.cells import cell_len

    at = axes.transData.transform(places)
    taken = [_around(centre, radius, radius) for centre, radius in zip(at, radii, strict=True)]
    turns = [(math.cos(turn * math.pi / 4), math.sin(turn * math.pi / 4)) for turn in (2, 6, 0, 4, 1, 3, 7, 5)]
    for name, place, centre, radius in zip(names, places, at, radii, strict=True):
        if not name:
            continue
        half = 0.31 * FONT_SIZE * cell_len(name), 0.6 * FONT_SIZE
        for ring, (across, up) in product(range(RINGS), turns):
            reach = radius + 2 + ring * FONT_SIZE
            shift = across * (reach + half[0]), up * (reach + half[1])
            box = _around(centre + shift, *half)
            if axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max) and not box.count_overlaps(taken):
                break
        taken.append(box)
        line = {"arrowstyle": "-", "color": "grey", "linewidth": 0.5, "shrinkA": 0, "shrinkB": radius} if ring else None
        how: dict[str, Any] = {
            "textcoords": "offset points",
            "arrowprops": line,
            "fontsize": FONT_SIZE,
            "parse_math": False,
        }
        axes.annotate(name, place, shift, ha="center", va="center", **how).set_in_layout(False)


def _around(centre: Any, half_width: float, half_height: float) -> "Bbox":
    from matplotlib.transforms import Bbox

    x, y = centre
    return Bbox([(x - half_width, y - half_height), (x + half_width, y + half_height)])
