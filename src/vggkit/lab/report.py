"""Reports as one self-contained HTML file or as Markdown."""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggkit.data.files import write_whole
from vggkit.design.table import Table
from vggkit.errors import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --line: #d5d9df; --card: #ffffff }
@media (prefers-color-scheme: dark) { :root { --line: #444b55 } }
body { font: 1rem/1.55 system-ui, sans-serif; max-width: 54rem; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: break-word }
p:empty { display: none } h1 { font-size: 1.6rem; line-height: 1.25 } h2 { font-size: 1.2rem; margin: 2rem 0 .6rem }
.wide { overflow-x: auto; margin: 1.5rem 0 } figure { margin: 1.5rem 0 }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; min-width: 100% }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap }
td:first-child, th:first-child { position: sticky; left: 0; background: Canvas; padding-left: 0 }
figcaption, small { font-size: .85rem; opacity: .8 } small { display: block; margin-top: .5rem }
svg { max-width: 100%; height: auto; border-radius: .4rem } svg:not(.themed) { background: var(--card) }
pre { overflow-x: auto; padding: .6rem .8rem; border: 1px solid var(--line); border-radius: .4rem; font-size: .85rem }
@media (max-width: 40rem) {
  body { margin: 1rem auto } h1 { font-size: 1.35rem } th, td { padding: .3rem .45rem }
  table { font-size: .8rem } td:first-child { white-space: normal; min-width: 6.5rem }
}
@media print {
  :root { color-scheme: light; --line: #d5d9df } body { margin: 0; max-width: none; font-size: 10.5pt }
  .wide { overflow: visible } table { font-size: 7.5pt } th, td { padding: .25rem .4rem }
  pre { white-space: pre-wrap } figure, table, pre { break-inside: avoid } h2 { break-after: avoid }
}
"""


@dataclass(frozen=True)
class Heading:
    """A second-level heading."""

    words: str


@dataclass(frozen=True)
class Code:
    """A command or a program."""

    words: str


@dataclass(frozen=True)
class Picture:
    """An SVG picture with its caption."""

    svg: str
    words: str


Part = str | Heading | Code | Picture | Table
"""A str is a paragraph."""


def as_svg(figure: "Figure") -> str:
    """A figure as a reproducible SVG element with selectable text, dark on light or light on dark as the browser is."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vggkit", "font.family": "sans-serif"}):
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=metadata, transparent=True)
    text = buffer.getvalue()
    ink = 'class="themed" style="color-scheme: light dark; color: CanvasText; fill: CanvasText"'
    return f"<svg {ink} {text[text.index('<svg') + 5 :]}".replace("#000000", "currentColor")


def write_report(path: Path, title: str, parts: Sequence[Part], **others: Callable[[], str]) -> None:
    """Write a report to `path` in the format of its suffix: .html, .md, or one of `others`, such as `svg=plot`."""
    formats = {"html": lambda: to_html(title, parts), "md": lambda: to_markdown(title, parts), **others}
    write_whole(path, formats[path.suffix[1:]]().encode("utf-8", "backslashreplace"))


def csv_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """One or more rows with the same columns as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_html(title: str, parts: Sequence[Part], language: str = "en") -> str:
    """The report as one HTML page, light or dark as the browser is; it loads and runs nothing."""
    body = "\n".join(map(_html, parts))
    return (
        f'<!doctype html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _html(part: Part) -> str:
    if isinstance(part, Heading):
        return f"<h2>{escape(part.words)}</h2>"
    if isinstance(part, Code):
        return f"<pre>{escape(part.words)}</pre>"
    if isinstance(part, Picture):
        return f"<figure>{part.svg}<figcaption>{escape(part.words)}</figcaption></figure>"
    if isinstance(part, Table):
        return f'<div class="wide">{part._repr_html_()}</div>'
    return f"<p>{escape(part)}</p>"


def to_markdown(title: str, parts: Sequence[Part]) -> str:
    """The report as Markdown; of a picture only the caption is kept."""
    return "\n\n".join([f"# {_escaped(title)}", *map(_markdown, parts)]) + "\n"


def _markdown(part: Part) -> str:
    if isinstance(part, Heading):
        return f"## {_escaped(part.words)}"
    if isinstance(part, Code):
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", part.words)), default=0))
        return "\n".join([fence, *(shown(line, 10_000) for line in part.words.splitlines()), fence])
    if isinstance(part, Picture):
        return f"*{_escaped(part.words)}*"
    if isinstance(part, Table):
        rows = [part.header, ["-" if i < part.left_aligned else "-:" for i in range(len(part.header))]]
        rows += [row for section in part.sections for row in section]
        lines = ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in rows]
        title, notes = [_escaped(part.title)] * bool(part.title), map(_escaped, part.notes)
        return "\n\n".join([*title, "\n".join(lines), *notes])
    return _escaped(part)


def _escaped(words: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", words)
