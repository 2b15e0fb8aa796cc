"""`vgg search`: the best network under a budget."""

import re
from dataclasses import dataclass
from pathlib import Path

from vggkit.design.table import Table
from vggkit.errors import UserError, shown
from vggkit.lab.designs import Budget
from vggkit.training.recipe import Recipe
from vggkit.verbs.terminal import DONE, RESUMABLE, parse_flags, print_json, print_to_stderr

COUNTS: dict[str, float] = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}
SECONDS: dict[str, float] = {"": 1, "s": 1, "min": 60, "h": 3_600}


@dataclass(frozen=True)
class Flags:
    """Find the best network of VGG blocks under a budget.

    Examples:
      vgg search --max-params 600k --max-macs 30M --time 30min
      vgg search --max-params 50k --data photos --runs searches/photos
    """

    max_params: str | None = None
    """Parameters at most, such as 600k."""
    max_macs: str | None = None
    """MACs of an image at most, such as 30M."""
    time: str = "30min"
    """How long to search, such as 90s, 30min or 2h; decides how many networks are tried."""
    recipe: str = "quick"
    """How they are trained: all but the network."""
    data: str | None = None
    """Other data than the recipe's."""
    epochs: int = 9
    """Of the longest trials; the shortest have a ninth."""
    seed: int = 0
    """Of the networks that are drawn."""
    seeds: int = 3
    """Runs of the winner on all training images."""
    runs: Path | None = None
    """The folder of the search, and where to go on from; searches/<recipe> if not given."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps; a GPU, if there is one, if not given."""
    json: bool = False
    """Print JSON instead of a table."""


def run(arguments: list[str]) -> int:
    """Run the verb; returns the exit code: 75 if a signal stopped it, after which the same command goes on."""
    flags = parse_flags("search", Flags, arguments)
    limits = [None if text is None else int(_number(text, COUNTS)) for text in (flags.max_params, flags.max_macs)]
    if limits == [None, None]:
        raise UserError("expected --max-params or --max-macs, such as 600k and 30M, got neither")
    changes = {"epochs": flags.epochs, "seed": flags.seed} | ({"data": flags.data} if flags.data else {})
    base, seconds = Recipe.named(flags.recipe, **changes), _number(flags.time, SECONDS)
    folder = flags.runs or Path("searches") / base.name

    from vggkit.lab.answers import written
    from vggkit.lab.search import FOUND, search

    found = search(
        base,
        Budget(*limits),
        folder,
        seconds=seconds,
        seeds=flags.seeds,
        device=flags.device,
        say=print_to_stderr,
    )
    if found is None:
        print(f"stopped; go on with the same command, or --runs {shown(folder, 500)}")
        return RESUMABLE
    rows = [
        (
            each.design.notation,
            f"{each.accuracy:.4f}",
            f"{each.design.parameters:,}",
            f"{each.design.macs:,}",
            f"{each.milliseconds:.2f}",
            "*" if each.is_on_front else "",
        )
        for each in found.finalists
    ]
    if flags.json:
        print_json(found.to_json())
        return DONE
    print(Table(("network", "accuracy", "parameters", "MACs", "ms", "front"), [rows], 1))
    print(
        f"the winner of {found.num_designs} networks, {found.recipe.architecture}, on the test set: "
        f"{written(found.test_accuracy)}, mean and 95% interval over {flags.seeds} seed{'s' * (flags.seeds > 1)}"
    )
    print(f"{shown(folder / FOUND, 500)} is its recipe, for vgg train --recipe; measured on {found.hardware}")
    return DONE


def _number(text: str, units: dict[str, float]) -> float:
    """`600k`, `1.5M`, `30min` as a number of the smallest unit."""
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([a-z]*)", text.strip().lower())
    if not found or found[2] not in units:
        raise UserError(f"expected a number such as 30{list(units)[-2]}, got {shown(repr(text))}")
    return float(found[1]) * units[found[2]]
