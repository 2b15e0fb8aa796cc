"""What does each choice in our CPU training step bring?

    python benchmarks/cpu_step.py [--sizes 224 96 32] [--repeats 5] [--save]

Times the `d2l` recipe's step (VGG-11/4, batch 128, random images) as it is and with one choice undone at a time, in
turn, each in a process of its own: 4 KiB pages instead of huge ones; freed memory given back; torch's own
convolutions; torch's own fully connected layers and dropout instead of oneDNN's products and packed draws; ReLU before
the pool and not in place; grey images in torch's usual strides, which a convolution takes for NCHW; NCHW throughout.
What the last three bring to torch's own convolutions, VGGKIT_ENGINE=torch before the command says. Also the rate of
one fully connected product (batch 128, 4096 to 4096), forward and both backward ones, by MKL and by oneDNN.
Prints one JSON line for each size; --save adds it to benchmarks/results/cpu_step.jsonl.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from measuring import row_header, save_row, spread
from torch import Tensor

from vggkit import Recipe, costs
from vggkit.data.preprocessing import _channels_last
from vggkit.engines.convolution import Conv2d
from vggkit.engines.fully_connected import Dropout, Linear, _product, use_fast_cpu
from vggkit.networks.baselines import build
from vggkit.training import hardware, step

UNDONE = (
    "nothing",
    "huge pages",
    "kept memory",
    "fast convolutions",
    "fast fully connected",
    "pool first, in place",
    "strides of grey images",
    "channels_last",
)
STEPS = {224: (1, 2), 96: (2, 5), 32: (5, 25)}  # warm-up, timed
BATCH_SIZE = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 96, 32], choices=list(STEPS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--undone", choices=UNDONE, help="measure once (used by the program itself)")
    flags = parser.parse_args()
    if flags.undone is not None:
        print(step_seconds(flags.sizes[0], flags.undone))
        return
    for size in flags.sizes:
        seconds: dict[str, list[float]] = {undone: [] for undone in UNDONE}
        for _ in range(flags.repeats):
            for undone, values in seconds.items():
                command = [sys.executable, __file__, "--undone", undone, "--sizes", str(size)]
                values.append(float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))
        ours = seconds["nothing"]
        save_row(
            "cpu_step",
            {
                **row_header(torch.device("cpu"), flags.repeats),
                "network": "vgg11/4",
                "image_size": size,
                "batch_size": BATCH_SIZE,
                "step_seconds": spread(ours),
                "slower_without": {
                    undone: spread([a / b for a, b in zip(values, ours, strict=True)])
                    for undone, values in seconds.items()
                    if undone != "nothing"
                },
                "fc_product_gflops_per_second": product_rates(),
            },
            flags.save,
        )


def step_seconds(size: int, undone: str) -> float:
    """Median seconds of a step at `size` with one choice undone."""
    if undone != "huge pages":
        hardware.use_huge_pages()
    torch.manual_seed(0)
    recipe = replace(Recipe.named("d2l"), image_size=size)
    arch = recipe.network(1, 10)
    if undone != "kept memory":
        hardware.keep_freed_memory(costs(arch, BATCH_SIZE).total.activation_bytes)
    net = build(arch, recipe.init)
    use_fast_cpu(net)
    slow = {"fast convolutions": (Conv2d,), "fast fully connected": (Linear, Dropout)}.get(undone, ())
    for module in net.modules():
        if isinstance(module, slow):
            module.is_fast = False
    if undone == "pool first, in place":
        for block in list(net)[:5]:
            block.register_forward_hook(lambda *_: None)  # whoever is watched goes the plain way
    x = torch.rand(BATCH_SIZE, 1, size, size)
    if undone != "channels_last":
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if undone != "strides of grey images":
            x = _channels_last(x)
    optimizer = step.make_optimizer(recipe, net)
    labels = torch.randint(0, 10, (BATCH_SIZE,))
    warm_up, count = STEPS[size]
    seconds = []
    for index in range(warm_up + count):
        start = time.perf_counter()
        step.train_step(net, optimizer, x, labels, recipe.learning_rate)
        if index >= warm_up:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def product_rates() -> dict[str, dict[str, float]]:
    """GFLOP/s of the three products of a fully connected layer, by each library."""
    x, weight, gradient = (torch.randn(n, 4096) for n in (BATCH_SIZE, 4096, BATCH_SIZE))

    def rate(product: Callable[[], Tensor]) -> float:
        seconds = []
        for index in range(13):
            start = time.perf_counter()
            product()
            if index >= 3:
                seconds.append(time.perf_counter() - start)
        return round(2 * BATCH_SIZE * 4096**2 / statistics.median(seconds) / 1e9)

    return {
        "MKL": {
            "forward": rate(lambda: x @ weight.t()),
            "input gradient": rate(lambda: gradient @ weight),
            "weight gradient": rate(lambda: gradient.t() @ x),
        },
        "oneDNN": {
            "forward": rate(lambda: _product(x, weight)),
            "input gradient": rate(lambda: _product(gradient, weight.t())),
            "weight gradient": rate(lambda: _product(gradient.t(), x.t())),
        },
    }


if __name__ == "__main__":
    main()
