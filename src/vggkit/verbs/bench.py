"""`vgg bench`: how fast is a network on this machine, against PyTorch as it comes?"""

import statistics
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from tyro.conf import Positional

from vggkit.design.table import Table
from vggkit.verbs.network import NetworkFlags
from vggkit.verbs.terminal import parse_flags, print_json, print_to_stderr


@dataclass(frozen=True)
class Flags:
    """Measure how fast a network is here, against PyTorch as it comes.

    Examples:
      vgg bench vgg16 --batch-size 1
      vgg bench vgg11/4 --train --image-size 64 --batch-size 32
    """

    architecture: Positional[str]
    """A name (vgg16, vgg11_bn/4, lenet, alexnet) or blocks (1x64 2x128)."""
    network: NetworkFlags = field(default_factory=NetworkFlags)
    train: bool = False
    """Forward, backward and update; forward alone if not given."""
    batch_size: int = 8
    """Images in a step."""
    repeats: int = 5
    """Turns of each way."""
    device: str | None = None
    """cuda, mps or cpu; the first of them that is there if not given."""
    json: bool = False
    """Print JSON instead of a table."""


def run(arguments: list[str]) -> None:
    """Run the verb."""
    flags = parse_flags("bench", Flags, arguments)
    network = flags.network.network(flags.architecture)
    from vggkit.lab.bench import bench

    what = "training" if flags.train else "inference"
    title = f"{network.name}, {network.image_size} px, batch {flags.batch_size}, {what}"
    options: dict[str, Any] = {"training": flags.train, "repeats": flags.repeats, "device": flags.device}
    try:
        result = bench(network, flags.batch_size, say=_show_live, **options)
    finally:
        _show_live("")
    ours = result.speeds[0]
    ratios = {
        speed.way: [a / b for a, b in zip(ours.examples_per_second, speed.examples_per_second, strict=True)]
        for speed in result.speeds[1:]
    }
    if flags.json:
        measured = {name: getattr(network, name) for name in ("image_size", "in_channels", "num_classes")}
        measured |= {"network": network.name, "batch_size": flags.batch_size, "training": flags.train}
        print_json({**measured, **asdict(result), "examples_per_second_over": ratios})
        return
    rows = [
        (
            speed.way,
            f"{speed.median:,.3g}" if speed.median < 100 else f"{speed.median:,.0f}",
            f"{1000 * flags.batch_size / speed.median:,.1f}",
            f"{speed.share_of_product_rate:.0%}",
            f"{speed.peak_bytes / 1e6:,.0f}",
            _spread(ratios[speed.way]) if speed.way in ratios else "",
        )
        for speed in result.speeds
    ]
    notes = [
        result.hardware,
        f"matrix product {result.product_flops_per_second / 1e9:,.0f} GFLOP/s; vggkit's convolutions: "
        f"{ours.convolutions}",
        f"median of {flags.repeats} turn{'s' * (flags.repeats > 1)}, without data; peak MB: beyond the process's own",
        "of rate: the network's operations as defined, over those of a matrix product",
        "vggkit is: median and range of the turns' ratios",
    ]
    print(Table(("way", "examples/s", "ms a step", "of rate", "peak MB", "vggkit is"), [rows], 1, title, notes))
    if result.not_compiled:
        print_to_stderr(f"convolutions are not compiled, and slower: {result.not_compiled}")


def _show_live(line: str) -> None:
    """Show `line` in place of the one before, on a terminal alone."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line[:79]}", end="", file=sys.stderr, flush=True)


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
