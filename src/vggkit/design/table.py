"""A table of figures that prints as text and shows in a notebook as HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from vggkit.errors import shown


@dataclass(frozen=True)
class Table:
    """Rows of texts below a header. Texts may come from untrusted files; `vggkit.errors.shown` makes them safe.

    >>> print(Table(("layer", "shape"), [[("conv1_1", "64x224x224")], [("total", "")]]))
    layer        shape
    ------------------
    conv1_1 64x224x224
    <BLANKLINE>
    total
    """

    header: Sequence[str]
    sections: Sequence[Sequence[Sequence[str]]]
    """Lists of rows; an empty line separates the sections."""
    left_aligned: int = 1
    """How many columns, from the left, are left-aligned; the others are right-aligned."""
    title: str = ""
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        from rich.cells import cell_len, set_cell_size  # a Chinese character takes two columns of a terminal

        sections = [[[shown(cell, limit=200) for cell in row] for row in rows] for rows in self.sections]
        rows = [self.header, *(row for section in sections for row in section)]
        widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]

        def line(row: Sequence[str]) -> str:
            cells = [
                set_cell_size(cell, width) if column < self.left_aligned else " " * (width - cell_len(cell)) + cell
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            return " ".join(cells).rstrip()

        lines = [shown(self.title, limit=200)] if self.title else []
        lines += [line(self.header), "-" * (sum(widths) + len(widths) - 1)]
        for index, section in enumerate(sections):
            lines += [""] * (index > 0) + [line(row) for row in section]
        return "\n".join([*lines, *self.notes])

    def _repr_html_(self) -> str:
        def row(cells: Sequence[str], tag: str) -> str:
            sides = ["left" if column < self.left_aligned else "right" for column in range(len(cells))]
            written = (f'<{tag} align="{side}">{escape(cell)}</{tag}>' for cell, side in zip(cells, sides, strict=True))
            return f"<tr>{''.join(written)}</tr>"

        bodies = "".join(f"<tbody>{''.join(row(cells, 'td') for cells in rows)}</tbody>" for rows in self.sections)
        title, notes = escape(self.title), "<br>".join(map(escape, self.notes))
        return f"<p>{title}</p><table><thead>{row(self.header, 'th')}</thead>{bodies}</table><small>{notes}</small>"
