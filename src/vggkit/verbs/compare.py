"""`vgg compare`: trained networks side by side."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from vggkit.data.files import write_whole
from vggkit.errors import UserError
from vggkit.verbs.terminal import Out, check_out, parse_flags, print_json


@dataclass(frozen=True)
class Flags:
    """Compare trained networks on the same images.

    Examples:
      vgg compare runs/quick-1 runs/quick-2
      vgg compare runs/a runs/b.safetensors --data photos/test -o compared.html
    """

    models: Positional[tuple[Path, ...]]
    """Two or more run folders or weight files."""
    data: str | None = None
    """Images to measure on; if not given, those that the first run was evaluated on."""
    out: Out[Path | None] = None
    """A .html or .md file to write a report to."""
    scatter: Path | None = None
    """A .svg file for the plot of accuracy against throughput."""
    csv: bool = False
    """Print CSV with timm's column names instead of a table."""
    json: bool = False
    """Print JSON instead of a table."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps; if not given, a GPU if there is one."""


def run(arguments: list[str]) -> None:
    """Run the verb."""
    flags = parse_flags("compare", Flags, arguments)
    if flags.csv and flags.json:
        raise UserError("expected --csv or --json, got both, try one of them")
    if flags.out is not None:
        check_out(flags.out, ".html", ".md", reads=(*flags.models, flags.data))
    if flags.scatter is not None:
        check_out(flags.scatter, ".svg", flag="--scatter", reads=(*flags.models, flags.data))

    from vggkit.data.sources import open_data
    from vggkit.lab.compare import compare
    from vggkit.lab.report import write_report

    data = open_data(flags.data, holdout=0) if flags.data else None
    comparison = compare(flags.models, data, flags.device)
    if flags.scatter is not None:
        write_whole(flags.scatter, comparison.scatter().encode())
    if flags.out is not None:
        write_report(flags.out, "Networks compared", comparison.report(shlex.join(["vgg", "compare", *arguments])))
    if flags.json:
        print_json(comparison.to_json())
    elif flags.csv:
        print(comparison.to_csv(), end="")
    else:
        differences = comparison.differences()
        print(comparison.table(), *([f"\n{differences}"] if differences is not None else []), sep="\n")
