"""A drawing as PNG or PDF, painted by matplotlib, which needs no system library."""

import io
import re
from typing import Any
from xml.etree import ElementTree

from vggkit.design import svg

POINTS_PER_INCH = 72  # a pixel of the drawing is a point of the figure
SCALE = 2  # pixels of a PNG file for each pixel of the drawing
MAX_PIXELS, MAX_SIDE_PIXELS = 50_000_000, 32_000  # limits of a PNG file; a larger drawing is scaled down


def rendered(picture: str, suffix: str) -> bytes:
    """An SVG text from `drawing` as the content of a `.png` or `.pdf` file."""
    from matplotlib.figure import Figure

    root = ElementTree.fromstring(picture)  # noqa: S314 (our own text)
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    figure = Figure(figsize=(width / POINTS_PER_INCH, height / POINTS_PER_INCH))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), frame_on=False, xticks=(), yticks=())
    _paint(axes, root, 0, 0)
    scale = min(SCALE, (MAX_PIXELS / (width * height)) ** 0.5, MAX_SIDE_PIXELS / max(width, height))
    content = io.BytesIO()
    metadata = {"CreationDate": None} if suffix == ".pdf" else {}
    figure.savefig(content, format=suffix[1:], dpi=POINTS_PER_INCH * scale, transparent=True, metadata=metadata)
    return content.getvalue()


def _paint(axes: Any, node: ElementTree.Element, x: float, y: float) -> None:
    """Paint the children of `node`, whose origin is at (`x`, `y`)."""
    for child in node:
        tag = child.tag.rpartition("}")[2]
        if tag == "g":
            dx, dy = map(float, re.findall(r"[-\d.]+", child.get("transform", "0 0")))
            _paint(axes, child, x + dx, y + dy)
        elif tag == "text":
            left, baseline = x + float(child.get("x", 0)), y + float(child.get("y", 0))
            style = {"fontsize": child.get("font-size", svg.SMALL), "fontweight": child.get("font-weight", "normal")}
            side = {"start": "left", "middle": "center", "end": "right"}[child.get("text-anchor", "start")]
            axes.text(
                left, baseline, child.text, color=child.get("fill"), ha=side, va="baseline", parse_math=False, **style
            )
        elif tag in ("rect", "polygon"):
            axes.add_patch(_patch(child, tag, x, y))


def _patch(node: ElementTree.Element, tag: str, x: float, y: float) -> Any:
    from matplotlib.patches import FancyBboxPatch, Polygon

    style: dict[str, Any] = {
        "facecolor": node.get("fill"),
        "edgecolor": node.get("stroke", "none"),
        "linewidth": float(node.get("stroke-width", 0)),
        "joinstyle": "round",
    }
    if tag == "polygon":
        points = [tuple(map(float, point.split(","))) for point in node.get("points", "").split()]
        return Polygon([(x + px, y + py) for px, py in points], closed=True, **style)
    left, top, width, height = (float(node.get(key, 0)) for key in ("x", "y", "width", "height"))
    radius = min(float(node.get("rx", 0)), width / 2, height / 2)
    corners = f"round,pad=0,rounding_size={radius}" if radius else "square,pad=0"
    return FancyBboxPatch((x + left, y + top), width, height, boxstyle=corners, **style)
