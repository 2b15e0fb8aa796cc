"""From which map on is a convolution faster by Winograd's way? One layer at a time, forward.

    python benchmarks/winograd_layers.py [--save]

Compares the engine's convolution with bias and ReLU with torch's own in channels_last, for maps of few pixels, where
it is decided, at several batch sizes and widths. `gain` is what `convolution.pays` computes, which takes the layer from
`MIN_GAIN` on, and without a compiler from `PLAIN_MIN_CHANNELS` on; `ratio` is torch's median time over ours, of turns
of each.
Prints a JSON line for each layer; --save adds it to benchmarks/results/winograd_layers.jsonl.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from measuring import row_header, save_row
from torch import nn
from torch.nn import functional as F

from vggkit.engines.convolution import fused, gain, pays
from vggkit.training.hardware import use_huge_pages

WIDTHS, SIDES, BATCHES = (64, 128, 256, 512), (2, 3, 4, 6, 7, 8, 10, 14, 28, 56), (1, 8, 128)
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
    conv = nn.Conv2d(width, width, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ways: tuple[Callable[[], object], ...] = (
        lambda: fused(conv, x, None, True, False),
        lambda: F.relu_(F.conv2d(x, conv.weight, conv.bias, padding=1)),
    )
    ours, theirs = zip(*[[seconds(way) for way in ways] for _ in range(REPEATS)], strict=True)
    return {
        "channels": width,
        "side": side,
        "batch_size": batch_size,
        "gain": round(gain(side, side), 2),
        "is_taken": pays(conv, x),
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
