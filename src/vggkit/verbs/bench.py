"""`vgg bench`: how fast a network runs on this machine, compared with plain PyTorch."""

import statistics
import sys
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from vggkit.design.table import Table
from vggkit.errors import UserError, shown
from vggkit.verbs.network import NetworkFlags
from vggkit.verbs.terminal import parse_flags, print_json, print_to_stderr

if TYPE_CHECKING:
    from vggkit.lab.bench import Bench


@dataclass(frozen=True)
class Flags:
    """Measure how fast a network is here, against PyTorch as it comes.

    Examples:
      vgg bench vgg16 --batch-size 1
      vgg bench runs/quick-1 --formats --batch-size 1
    """

    architecture: Positional[str]
    """A name (vgg16, vgg11_bn/4, lenet, alexnet) or blocks (1x64 2x128); with --formats a run or a weight file."""
    network: NetworkFlags = field(default_factory=NetworkFlags)
    train: bool = False
    """Measure training steps; forward passes if not given."""
    batch_size: int = 8
    """Images in a step."""
    repeats: int = 5
    """Measurements of each implementation, in turns."""
    device: str | None = None
    """cuda, mps or cpu; if not given, the first of them that this machine has."""
    formats: bool = False
    """Measure a trained network on the CPU: in vggkit, in PyTorch and in every format that vgg export writes."""
    data: str | None = None
    """With --formats: images to measure on, as for vgg train --data; the run's own if not given."""
    num_images: int = 200
    """With --formats: the most held-out images to measure top-1 and the differences of the outputs on."""
    json: bool = False
    """Print JSON instead of a table."""


def run(arguments: list[str]) -> None:
    """Run the verb."""
    flags = parse_flags("bench", Flags, arguments)
    if flags.formats:
        _run_formats(flags)
        return
    if flags.data is not None:
        raise UserError("expected --formats with --data, got --data alone, try --formats")
    network = flags.network.network(flags.architecture)
    from vggkit.lab.bench import bench

    what = "training" if flags.train else "inference"
    title = f"{network.name}, {network.image_size} px, batch {flags.batch_size}, {what}"
    options: dict[str, Any] = {"training": flags.train, "repeats": flags.repeats, "device": flags.device}
    try:
        result = bench(network, flags.batch_size, say=_show_live, **options)
    finally:
        _show_live("")
    ours, *others = result.speeds
    ratios: dict[str, list[float]] = {
        other.way: [a / b for a, b in zip(ours.examples_per_second, other.examples_per_second, strict=True)]
        for other in others
    }
    if flags.json:
        measured = {name: getattr(network, name) for name in ("image_size", "in_channels", "num_classes")}
        measured |= {"network": network.name, "batch_size": flags.batch_size, "training": flags.train}
        print_json({**measured, **asdict(result), "examples_per_second_over": ratios})
        return
    print(_speed_table(result, ratios, title, flags))
    if result.not_compiled:
        print_to_stderr(f"convolutions are not compiled, and slower: {result.not_compiled}")


def _speed_table(result: "Bench", ratios: dict[str, list[float]], title: str, flags: Flags) -> Table:
    rows = [
        (
            speed.way,
            _rate(speed.median),
            f"{1000 * flags.batch_size / speed.median:,.1f}",
            f"{speed.share_of_product_rate:.0%}",
            f"{speed.peak_bytes / 1e6:,.0f}",
            _median_and_range(ratios[speed.way]) if speed.way in ratios else "",
        )
        for speed in result.speeds
    ]
    notes = [
        result.hardware,
        f"matrix product {result.product_flops_per_second / 1e9:,.0f} GFLOP/s; vggkit's convolutions: "
        f"{result.speeds[0].convolutions}",
        f"median of {flags.repeats} turn{'s' * (flags.repeats > 1)}, without data; peak MB: beyond the process's own",
        "of rate: the network's operations as defined, over those of a matrix product",
        "vggkit is: median and range of the turns' ratios",
    ]
    return Table(("way", "examples/s", "ms a step", "of rate", "peak MB", "vggkit is"), [rows], 1, title, notes)


def _run_formats(flags: Flags) -> None:
    """Measure a trained network in every export format, and print the table."""
    if flags.train or flags.device not in (None, "cpu"):
        raise UserError("expected inference on the CPU for --formats, got --train or a GPU, try without")
    from vggkit.inference.predict import load_classifier
    from vggkit.lab.formats import bench_formats
    from vggkit.training.hardware import use_huge_pages

    use_huge_pages()
    classifier = load_classifier(flags.architecture, report=print_to_stderr)
    options = {"batch_size": flags.batch_size, "images": flags.num_images, "repeats": max(flags.repeats, 5)}
    try:
        result = bench_formats(classifier, flags.data, **options, say=_show_live)
    finally:
        _show_live("")
    if flags.json:
        print_json({"model": classifier.source, "batch_size": flags.batch_size, **asdict(result)})
        return
    rows = []
    for row in result.rows:
        median = statistics.median(row.seconds)
        top1 = "-" if row.top1 is None else f"{row.top1:.1%}"
        speed = (f"{1000 * median:,.2f}", _rate(flags.batch_size / median))
        rows.append((row.format, f"{row.file_bytes / 1e6:,.1f}", *speed, top1, f"{row.largest_difference:.0e}"))
    notes = [
        result.hardware,
        f"top-1 and the largest difference of the logits, as a share of the largest: {result.measured_on}",
        f"ms: the median of {options['repeats']} forward passes, in turns",
        *(f"not measured: {name}, {shown(why, 200)}" for name, why in result.left_out.items()),
    ]
    title = f"{shown(classifier.source, 500)}, batch {flags.batch_size}"
    columns = ("format", "MB on disk", "ms", "examples/s", "top-1", "largest difference")
    print(Table(columns, [rows], 1, title, notes))


def _show_live(line: str) -> None:
    """Replace the last line of stderr by `line`, if stderr is a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line[:79]}", end="", file=sys.stderr, flush=True)


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def _median_and_range(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
