"""Explanations, units and filters as PNG files."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vggkit.data.files import as_png
from vggkit.errors import shown
from vggkit.inference.explain import Explanation
from vggkit.inference.explain_names import SIGNED
from vggkit.inference.explain_units import Patch, Pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL_INCHES = 2.6
BRIGHTEST = 0.995
"""The quantile of a map's absolute values that gets the full colour; with the maximum, one pixel could dim the rest."""
TITLE_CHARACTERS = 40
OPACITY = 0.7
"""Opacity of an overlay where the map is strongest."""


def explanations_picture(rows: Sequence[Sequence[Explanation]], verdicts: Sequence[str] = ()) -> bytes:
    """A PNG file: for each row, of one image and class, the image, then overlay and map of each explanation.

    The rows have the same length; `verdicts` are lines below the picture.
    """
    columns = 1 + 2 * len(rows[0])
    height = (PANEL_INCHES + 0.45) * len(rows) + 0.1 + 0.25 * len(verdicts)
    figure = _figure(PANEL_INCHES * columns + len(rows[0]), height)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        first = row[0]
        title = f"{shown(first.label, 30)} {first.probability:.1%}\n{shown(Path(first.image).name, 30)}"
        _show(axes[0], first.pixels, title)
        for explanation, overlay, alone in zip(row, axes[1::2], axes[2::2], strict=True):
            _draw_map(figure, overlay, alone, explanation)
    figure.supxlabel("\n".join(shown(line, 200) for line in verdicts), fontsize=8, x=0.01, ha="left", parse_math=False)
    return as_png(figure)


def _draw_map(figure: "Figure", overlay: Any, alone: Any, explanation: Explanation) -> None:
    """Draw a map over its image into the axes `overlay`, and by itself into the axes `alone`."""
    heat, is_signed = explanation.heat, explanation.method in SIGNED
    limit = float(np.quantile(np.abs(heat), BRIGHTEST)) or float(np.abs(heat).max()) or 1.0
    style = {"cmap": "RdBu_r" if is_signed else "inferno", "vmin": -limit if is_signed else 0, "vmax": limit}
    where = f" at {explanation.layer}" if explanation.layer else ""
    _show(overlay, explanation.pixels.mean(axis=2), explanation.method + where)
    overlay.imshow(heat, alpha=OPACITY * np.clip(np.abs(heat) / limit, 0, 1), **style)
    image = alone.imshow(heat, **style)
    _show(alone, None, textwrap.fill(explanation.blank, TITLE_CHARACTERS))
    if explanation.blank:
        return
    bar = figure.colorbar(image, ax=alone, shrink=0.75, pad=0.02, extend="both" if is_signed else "max")
    bar.ax.tick_params(labelsize=6)
    bar.ax.yaxis.get_offset_text().set_fontsize(6)


def unit_picture(unit: str, pixels: Pixels, patches: Sequence[Patch], source: str = "") -> bytes:
    """A PNG file: the image that maximises a unit, and the patches of a data set that excite it most."""
    columns = 1 + bool(patches)
    figure = _figure(4.2 * columns, 4.4)
    parts = figure.subfigures(1, columns, squeeze=False)[0]
    _show(parts[0].subplots(), pixels, f"maximises {shown(unit, 40)}")
    if patches:
        parts[1].suptitle(f"excite it most: {shown(source, 60)}", fontsize=9, parse_math=False)
        grid = parts[1].subplots(3, 3).flat
        for axes in grid:
            axes.axis("off")
        for axes, patch in zip(parts[1].axes, patches, strict=False):
            _show(axes, patch.pixels, f"{patch.value:.3f}")
    return as_png(figure)


def filters_picture(title: str, filters: npt.NDArray[np.float32]) -> bytes:
    """A PNG file: each of `first_filters` as a small image, grey unless it has 3 channels."""
    columns = math.ceil(math.sqrt(len(filters) * 2))
    rows = math.ceil(len(filters) / columns)
    figure = _figure(0.55 * columns, 0.6 * rows + 0.4)
    figure.suptitle(shown(title, 90), fontsize=9, parse_math=False)
    for axes in (grid := figure.subplots(rows, columns, squeeze=False)).flat:
        axes.axis("off")
    for axes, values in zip(grid.flat, filters, strict=False):
        _show(axes, values if values.shape[2] == 3 else values.mean(axis=2), "", 1.0)
    return as_png(figure)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _show(axes: Any, pixels: npt.NDArray[Any] | None, title: str, white: float = 255) -> None:
    """Draw an image without axes, grey if it has one channel."""
    axes.axis("off")
    axes.set_title(title, fontsize=8, parse_math=False)
    if pixels is not None:
        axes.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=white, interpolation="nearest")
