"""`vgg search`: find the best network under a budget."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from vggkit.errors import UserError, shown
from vggkit.lab.designs import Budget
from vggkit.lab.kept import FOUND
from vggkit.training.recipe import Recipe
from vggkit.verbs.terminal import DONE, RESUMABLE, Out, check_out, parse_flags, print_json, print_to_stderr

COUNTS: dict[str, float] = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}
SECONDS: dict[str, float] = {"": 1, "s": 1, "min": 60, "h": 3_600}


@dataclass(frozen=True)
class Flags:
    """Find the best network of VGG blocks under a budget.

    Examples:
      vgg search --max-params 600k --max-macs 30M --time 30min
      vgg search --max-params 50k --max-milliseconds 2 --data photos -o found.html
    """

    max_params: str | None = None
    """Most parameters, such as 600k."""
    max_macs: str | None = None
    """Most MACs of an image, such as 30M."""
    max_memory_mb: float | None = None
    """Largest peak memory of a training step in MB, as vgg describe predicts it for the recipe's batch size."""
    max_milliseconds: float | None = None
    """Most milliseconds to classify one image, measured on this machine."""
    time: str = "30min"
    """How long to search, such as 90s, 30min or 2h, without the winner's final runs. A resumed search may be given
    more."""
    recipe: str = "quick"
    """The recipe by which networks are trained, whatever its own network."""
    data: str | None = None
    """Data to use instead of the recipe's."""
    epochs: int = 9
    """Epochs of the longest trials; the shortest have a ninth."""
    seed: int = 0
    """Seed of the choice of networks."""
    seeds: int = 3
    """Number of final runs of the winner on all training images."""
    runs: Path | None = None
    """Folder of the search, from which a stopped command resumes; searches/<recipe> if not given."""
    out: Out[Path | None] = None
    """A .html or .md file to write a report to, or a .svg file for its plot."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps; if not given, a GPU if there is one."""
    json: bool = False
    """Print JSON instead of a table."""


def run(arguments: list[str]) -> int:
    """Run the verb; the exit code is 75 if a signal stopped it, after which the same command resumes."""
    flags = parse_flags("search", Flags, arguments)
    if flags.out is not None:
        check_out(flags.out, ".html", ".md", ".svg", reads=(flags.data,))
    counts = [None if text is None else int(_number(text, COUNTS)) for text in (flags.max_params, flags.max_macs)]
    if counts == [None, None]:
        raise UserError("expected --max-params or --max-macs, such as 600k and 30M, got neither")
    memory_bytes = None if flags.max_memory_mb is None else 1e6 * flags.max_memory_mb
    budget = Budget(counts[0], counts[1], memory_bytes, flags.max_milliseconds)
    changes = {"epochs": flags.epochs, "seed": flags.seed} | ({"data": flags.data} if flags.data else {})
    base, seconds = Recipe.named(flags.recipe, **changes), _number(flags.time, SECONDS)
    folder = flags.runs or Path("searches") / base.name

    from vggkit.lab.report import write_report
    from vggkit.lab.search import search

    options = {"seconds": seconds, "seeds": flags.seeds, "device": flags.device, "say": print_to_stderr}
    result = search(base, budget, folder, **options)  # type: ignore[arg-type]
    if result is None:
        print(f"stopped; go on with the same command, or --runs {shown(folder, 500)}")
        return RESUMABLE
    if flags.out is not None:
        parts = result.report(shlex.join(["vgg", "search", *arguments]))
        write_report(flags.out, "Networks found under a budget", parts, svg=result.plot)
    if flags.json:
        print_json(result.to_json())
    else:
        print(result.table())
        print(f"{shown(folder / FOUND, 500)} is its recipe, for vgg train --recipe")
    return DONE


def _number(text: str, units: dict[str, float]) -> float:
    """The value of a text such as `600k`, `1.5M` or `30min`."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([a-z]*)", text.strip().lower())
    if not match or match[2] not in units:
        raise UserError(f"expected a number such as 30{list(units)[-2]}, got {shown(repr(text))}")
    return float(match[1]) * units[match[2]]
