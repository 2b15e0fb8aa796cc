"""From which map on is a convolution faster by Winograd's way? One layer at a time, forward.

    python benchmarks/winograd_layers.py [--save]

Compares the compiled convolution with bias and ReLU with torch's own in channels_last, for maps of few pixels, where
it is decided, at several batch sizes and widths. `gain` is what `Conv2d.pays` computes, which takes the layer from
`MIN_GAIN` on; `ratio` is torch's median time over ours, of turns of each.
Prints a JSON line for each layer; --save adds it to benchmarks/results/winograd_layers.jsonl.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from measuring import row_header, save_row
from torch.nn import functional as F

from vggkit.networks.winograd import MIN_GAIN, POINTS, _Convolution, _tiles
from vggkit.training.hardware import use_huge_pages

WIDTHS, SIDES, BATCHES = (64, 512), (2, 3, 4, 6, 7, 8, 10, 14, 28), (1, 8, 128)
REPEATS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true")
    flags = parser.parse_args()
    use_huge_pages()
    for width in WIDTHS:
        for batch_size in BATCHES:
            for side in SIDES:
                if batch_size * side**2 <= 8 * 28**2:
                    row = measure(width, side, batch_size)
                    save_row("winograd_layers", {**row_header(torch.device("cpu"), REPEATS), **row}, flags.save)


@torch.no_grad()
def measure(width: int, side: int, batch_size: int) -> dict[str, object]:
    """One layer of as many inputs as outputs."""
    x = torch.randn(batch_size, width, side, side).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(width, width, 3, 3).contiguous(memory_format=torch.channels_last)
    bias = torch.randn(width)
    ways: tuple[Callable[[], object], ...] = (
        lambda: _Convolution.apply(x, weight, None, bias, True, False),  # type: ignore[no-untyped-call]
        lambda: F.relu_(F.conv2d(x, weight, bias, padding=1)),
    )
    ours, theirs = zip(*[[seconds(way) for way in ways] for _ in range(REPEATS)], strict=True)
    gain = 9 * side**2 / (POINTS * _tiles(side)) ** 2
    return {
        "channels": width,
        "side": side,
        "batch_size": batch_size,
        "gain": round(gain, 2),
        "is_taken": gain >= MIN_GAIN,
        "milliseconds": float(f"{1000 * statistics.median(ours):.3g}"),
        "torch_milliseconds": float(f"{1000 * statistics.median(theirs):.3g}"),
        "ratio": round(statistics.median(b / a for a, b in zip(ours, theirs, strict=True)), 2),
    }


def seconds(way: Callable[[], object]) -> float:
    """Of one call, after one to warm up, the mean of as many as take 20 ms."""
    way()
    begin, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - begin) < 0.02:
        way()
        count += 1
    return passed / count


if __name__ == "__main__":
    main()
