"""Plots of accuracy against costs: a circle with a name for each network, and the Pareto front."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from vggkit.errors import shown
from vggkit.lab.answers import short_count
from vggkit.lab.report import as_svg
from vggkit.lab.statistics import pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

OTHER_COLOUR, FRONT_COLOUR = "#4c78a8", "#e45756"
MAX_RADIUS, MIN_RADIUS = 20.0, 4.0
"""Of circles, in points."""
FONT_SIZE, RINGS = 9, 12
"""The size of the names in points, and the distances from its circle at which a place is sought."""
MAX_CHARACTERS = 40
"""Of a name in a plot."""
MAX_NAMES = 12
"""Of more networks, only those on the front are named."""


@dataclass(frozen=True)
class Panel:
    """The quantity that the accuracy is plotted against."""

    label: str
    values: Sequence[float]
    """Above 0, one for each network."""
    is_cost: bool
    """Whether smaller is better."""


def front_plot(
    names: Sequence[str], accuracies: Sequence[float], panels: Sequence[Panel], sizes: Sequence[float] | None = None
) -> str:
    """Panels one below the other, as SVG; the areas of the circles are proportional to `sizes`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.6 + 4.4 * len(panels)), dpi=72, layout="constrained")  # a pixel is a point
    radii = (
        [max(MIN_RADIUS, MAX_RADIUS * math.sqrt(size / max(sizes))) for size in sizes] if sizes else [5.0] * len(names)
    )
    drawn = []
    for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False).flat, panels, strict=True):
        places = list(zip(panel.values, accuracies, strict=True))
        is_front = pareto_front([(accuracy, -value if panel.is_cost else value) for value, accuracy in places])
        axes.set(xlabel=shown(panel.label, 200), ylabel="accuracy")
        axes.set_xscale("log" if max(panel.values) > 10 * min(panel.values) else "linear")
        axes.xaxis.set_major_formatter(lambda value, _: short_count(value))
        front = sorted(place for place, is_on in zip(places, is_front, strict=True) if is_on)
        axes.plot(*zip(*front, strict=True), "--", color=FRONT_COLOUR, linewidth=1)
        colours = [FRONT_COLOUR if is_on else OTHER_COLOUR for is_on in is_front]
        axes.scatter(*zip(*places, strict=True), s=[math.pi * r**2 for r in radii], c=colours, alpha=0.6, linewidths=0)
        axes.margins(0.25)
        axes.grid(alpha=0.3)
        are_all_named = len(names) <= MAX_NAMES
        labels = [shortened(n) if is_on or are_all_named else "" for n, is_on in zip(names, is_front, strict=True)]
        drawn.append((axes, labels, places, radii))
    figure.draw_without_rendering()  # fixes the layout, on which the places of the names depend
    for panel_parts in drawn:
        _draw_names(*panel_parts)
    return as_svg(figure)


def labelled(name: str) -> str:
    """`name` as a label in matplotlib, where dollars would mark mathematics."""
    return shortened(name).replace("$", r"\$")


def shortened(name: str) -> str:
    """`name`, cut to its end if it is long, as paths differ there."""
    return shown(name if len(name) <= MAX_CHARACTERS else "..." + name[3 - MAX_CHARACTERS :])


def _draw_names(
    axes: "Axes", names: Sequence[str], places: Sequence[tuple[float, float]], radii: Sequence[float]
) -> None:
    """Draw each name as near to its circle as possible, within the axes and over no circle and no other name."""
    from rich.cells import cell_len

    centres = axes.transData.transform(places)
    occupied = [_box(centre, radius, radius) for centre, radius in zip(centres, radii, strict=True)]
    directions = [(math.cos(turn * math.pi / 4), math.sin(turn * math.pi / 4)) for turn in (2, 6, 0, 4, 1, 3, 7, 5)]
    for name, place, centre, radius in zip(names, places, centres, radii, strict=True):
        if not name:
            continue
        half_width, half_height = 0.31 * FONT_SIZE * cell_len(name), 0.6 * FONT_SIZE
        for ring, (x, y) in product(range(RINGS), directions):
            distance = radius + 2 + ring * FONT_SIZE
            shift = x * (distance + half_width), y * (distance + half_height)
            box = _box(centre + shift, half_width, half_height)
            if axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max) and not box.count_overlaps(occupied):
                break
        occupied.append(box)
        line = {"arrowstyle": "-", "color": "grey", "linewidth": 0.5, "shrinkA": 0, "shrinkB": radius} if ring else None
        style: dict[str, Any] = {"textcoords": "offset points", "arrowprops": line, "ha": "center", "va": "center"}
        axes.annotate(name, place, shift, fontsize=FONT_SIZE, parse_math=False, **style).set_in_layout(False)


def _box(centre: Any, half_width: float, half_height: float) -> "Bbox":
    from matplotlib.transforms import Bbox

    x, y = centre
    return Bbox([(x - half_width, y - half_height), (x + half_width, y + half_height)])
