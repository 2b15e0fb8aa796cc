"""The few elements of SVG that drawings are made of, as text; all lengths are SVG's pixels, to two decimals."""

import math
from collections.abc import Sequence
from html import escape

FONT = "Helvetica, Arial, sans-serif"
SMALL, TITLE = 11, 18  # the two sizes of type, in pixels; titles are bold
INK, MUTED = "#1f2937", "#64707f"

# Widths as shares of the font size: upper bounds for DejaVu Sans, the widest of the usual sans-serif fonts.
_NARROW, _MEDIUM, _WIDE, _BOLD = 0.45, 0.66, 1.0, 1.12
_WIDTHS = dict.fromkeys(" ,.:;()/|-filrtI", _NARROW) | dict.fromkeys("abcdeghknopqsuvxyz0123456789_", _MEDIUM)
_WIDTHS["×"] = 0.84


def text_width(words: str, size: int = SMALL) -> float:
    """An upper bound in pixels for the width of `words` in any usual sans-serif font."""
    return sum(_WIDTHS.get(character, _WIDE) for character in words) * size * (_BOLD if size == TITLE else 1)


def element(tag: str, *children: str, **attributes: str | float) -> str:
    """An element: `children` are elements or escaped text, `_` stands for `-`, and an empty attribute is left out."""
    values = {key.replace("_", "-"): v if isinstance(v, str) else number(v) for key, v in attributes.items()}
    start = " ".join([tag, *(f'{key}="{value}"' for key, value in values.items() if value)])
    return f"<{start}>{''.join(children)}</{tag}>" if children else f"<{start}/>"


def text(x: float, y: float, words: str, *, fill: str = INK, anchor: str = "", size: int = SMALL) -> str:
    """`words` on the baseline `y`; `anchor` says which point is at `x`: their start, `middle` or `end`."""
    style: dict[str, str | float] = {"font_size": size, "font_weight": "bold"} if size == TITLE else {}
    return element("text", escape(words), x=x, y=y, fill=fill, **style, text_anchor=anchor)


def centred(x: float, y: float, words: str, tail: str = "", fill: str = INK) -> str:
    """`words`, then `tail` in grey, around `x`: two texts, since CairoSVG centres each part of one by itself."""
    if not tail:
        return text(x, y, words, fill=fill, anchor="middle")
    x += (text_width(words) - text_width(tail)) / 2
    return text(x - 2, y, words, fill=fill, anchor="end") + text(x + 2, y, tail, fill=MUTED)


def rect(x: float, y: float, width: float, height: float, fill: str, *, stroke: str = "", radius: int = 0) -> str:
    """A rectangle with its upper left corner at (`x`, `y`)."""
    place: dict[str, str | float] = {"x": x, "y": y, "width": width, "height": height}
    return element("rect", **place, fill=fill, rx=radius or "", **_outline(stroke))


def polygon(points: Sequence[tuple[float, float]], fill: str, *, stroke: str = "") -> str:
    """A polygon through `points`."""
    corners = " ".join(f"{number(x)},{number(y)}" for x, y in points)
    return element("polygon", points=corners, fill=fill, **_outline(stroke))


def with_tooltip(tooltip: str, *elements: str) -> str:
    """`elements` as a group with a tooltip."""
    return element("g", element("title", escape(tooltip)), *elements)


def translated(x: float, y: float, elements: Sequence[str]) -> str:
    """`elements` translated right by `x` and down by `y`."""
    return element("g", *elements, transform=f"translate({number(x)} {number(y)})")


def document(width: float, height: float, title: str, description: str, elements: Sequence[str]) -> str:
    """A whole SVG file; `title` and `description` are for screen readers."""
    width, height = math.ceil(width), math.ceil(height)
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
    start += f'role="img" font-family="{FONT}" font-size="{SMALL}">'
    words = [element("title", escape(title)), element("desc", escape(description))]
    return "\n".join([start, *words, *elements, "</svg>\n"])


def blend(colour: str, other: str, share: float) -> str:
    """`colour` with a `share` of `other`, 0 to 1; all are written `#rrggbb`."""
    pairs = zip(bytes.fromhex(colour[1:]), bytes.fromhex(other[1:]), strict=True)
    return "#" + bytes(round(a + (b - a) * share) for a, b in pairs).hex()


def number(value: float) -> str:
    """`value` to two decimals, without trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _outline(stroke: str) -> dict[str, str | float]:
    return {"stroke": stroke, "stroke_width": 0.75, "stroke_linejoin": "round"} if stroke else {}
