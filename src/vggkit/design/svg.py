"""The few elements of SVG that drawings are made of, as text; all lengths are SVG's pixels, to two decimals."""

import math
from collections.abc import Sequence
from html import escape

FONT = "Helvetica, Arial, sans-serif"
SMALL, TITLE = 11, 18
"""The two sizes of type, in pixels; titles are bold."""
INK, MUTED = "#1f2937", "#64707f"

# Shares of the type's size. No character of DejaVu Sans, the widest of the usual sans-serif fonts, is wider.
_NARROW, _MEDIUM, _WIDE, _BOLD = 0.45, 0.66, 1.0, 1.12
_WIDTHS = dict.fromkeys(" ,.:;()/|-filrtI", _NARROW) | dict.fromkeys("abcdeghknopqsuvxyz0123456789_", _MEDIUM)
_WIDTHS["×"] = 0.84


def text_width(words: str, size: int = SMALL) -> float:
    """Pixels that `words` takes at most, in whatever sans-serif font the reader has."""
    return sum(_WIDTHS.get(character, _WIDE) for character in words) * size * (_BOLD if size == TITLE else 1)


def text(x: float, y: float, words: str, *, fill: str = INK, anchor: str = "start", size: int = SMALL) -> str:
    """`words` on the baseline `y`; `anchor` is what lies at `x`: `start`, `middle` or `end`."""
    style = f' font-size="{size}" font-weight="bold"' if size == TITLE else ""
    style += f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{number(x)}" y="{number(y)}" fill="{fill}"{style}>{escape(words)}</text>'


def centred(x: float, y: float, words: str, tail: str = "", fill: str = INK) -> list[str]:
    """`words`, then `tail` in grey, around `x`: two texts, since CairoSVG centres each part of one by itself."""
    if not tail:
        return [text(x, y, words, fill=fill, anchor="middle")]
    x += (text_width(words) - text_width(tail)) / 2
    return [text(x - 2, y, words, fill=fill, anchor="end"), text(x + 2, y, tail, fill=MUTED)]


def rect(
    x: float, y: float, width: float, height: float, fill: str, *, stroke: str = "", radius: int = 0, dashes: str = ""
) -> str:
    """A rectangle from its upper left corner."""
    place = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
    corners = f' rx="{radius}"' if radius else ""
    return f'<rect {place} fill="{fill}"{corners}{_outline(stroke, dashes)}/>'


def polygon(points: Sequence[tuple[float, float]], fill: str, *, stroke: str = "") -> str:
    """A polygon through `points`."""
    corners = " ".join(f"{number(x)},{number(y)}" for x, y in points)
    return f'<polygon points="{corners}" fill="{fill}"{_outline(stroke)}/>'


def hinted(hint: str, elements: Sequence[str]) -> list[str]:
    """`elements` as one thing, which a browser explains by `hint` when it is pointed at."""
    return [f"<g><title>{escape(hint)}</title>", *elements, "</g>"]


def moved(x: float, y: float, elements: Sequence[str]) -> list[str]:
    """`elements` moved right by `x` and down by `y`."""
    return [f'<g transform="translate({number(x)} {number(y)})">', *elements, "</g>"]


def document(width: float, height: float, title: str, description: str, elements: Sequence[str]) -> str:
    """A whole SVG file; `title` and `description` are for readers who do not see it."""
    size = f'width="{math.ceil(width)}" height="{math.ceil(height)}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {math.ceil(width)} {math.ceil(height)}" {size} '
            f'role="img" font-family="{FONT}" font-size="{SMALL}">',
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(description)}</desc>",
            *elements,
            "</svg>\n",
        ]
    )


def mixed(colour: str, other: str, share: float) -> str:
    """`colour` with a `share` of `other`, 0 to 1; all are written `#rrggbb`."""
    pairs = zip(bytes.fromhex(colour[1:]), bytes.fromhex(other[1:]), strict=True)
    return "#" + bytes(round(a + (b - a) * share) for a, b in pairs).hex()


def number(value: float) -> str:
    """`value` to two decimals, without zeros that say nothing."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _outline(stroke: str, dashes: str = "") -> str:
    if not stroke:
        return ""
    return f' stroke="{stroke}" stroke-width="0.75" stroke-linejoin="round"' + (
        f' stroke-dasharray="{dashes}"' if dashes else ""
    )
