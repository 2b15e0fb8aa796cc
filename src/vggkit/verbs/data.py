"""`vgg data`: the data sets, and how to get them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from vggkit.verbs.terminal import DONE, parse_flags, print_json, print_table, print_to_stderr


@dataclass(frozen=True)
class Flags:
    """List the data sets and where they lie; 'vgg data fetch fashion-mnist' gets it."""

    action: Positional[Literal["list", "fetch"]] = "list"
    """list, or fetch."""
    name: Positional[str] = "fashion-mnist"
    """What to fetch."""
    data_dir: Path | None = None
    """Where to look for Fashion-MNIST first."""
    json: bool = False
    """Print JSON instead of a table."""


def run(arguments: list[str]) -> int:
    """Run the verb; returns the exit code."""
    flags = parse_flags("data", Flags, arguments)
    from vggkit.data import fashion_mnist

    if flags.action == "fetch":
        if flags.name != fashion_mnist.FULL_NAME:
            raise fashion_mnist.DataError(f"expected {fashion_mnist.FULL_NAME} to fetch, got {flags.name!r}")
        print(fashion_mnist.fetch(print_to_stderr))
        return DONE
    known = []
    for name in (fashion_mnist.FULL_NAME, fashion_mnist.SAMPLE_NAME):
        try:
            place = (
                fashion_mnist.find(flags.data_dir) if name == fashion_mnist.FULL_NAME else fashion_mnist.SAMPLE_PLACE
            )
            fashion_mnist.verify(name, place)
            where, state = str(place), "verified"
        except fashion_mnist.DataError as error:
            where, state = "", str(error)
        known.append({"name": name, "where": where, "state": state})
    if flags.json:
        print_json(known)
    else:
        print_table(("name", "where", "state"), [[tuple(row.values()) for row in known]], left_aligned=3)
    return DONE
