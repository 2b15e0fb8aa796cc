"""What does saving cost a run at the default interval?

    python benchmarks/saving.py [--cases quick vgg11/4 vgg16] [--repeats 5] [--save]

Each repeat takes the same number of training steps twice, once with a checkpoint begun before the first and once
without, in an order drawn by chance; there are enough steps for the checkpoint to be on the disk before the last one
ends. `stall_seconds` is the snapshot, in which training waits; `durable_seconds` is from its begin until the sums are
on the disk; `lost_while_written` is the share of that time, without the stall, that the steps lost; `lost_seconds` is
all that the steps with a checkpoint took longer, the stall among it; `share` is that over the default interval. The
goal is a share under 0.02. `first_cpu_seconds` is the processor time of the first checkpoint, written without training
beside it.

Predicted before the first row, from a snapshot and a write timed alone: the snapshot copies at 5 GB/s; a writing
thread takes a core for 0.6 s per GB of SHA-256 and 1 s more per GB for the copy into the page cache, of which two
cores that both train lose half. So at the default interval 0.007 s or a share of 0.0001 for the quick recipe's network
(7 MB with AdamW's moments), 0.17 s or 0.003 for VGG-11/4 at 224 pixels (170 MB, no momentum), and 1.1 s or 0.022 for
VGG-16 with momentum (1.1 GB), at the edge of the goal; with one core about twice that.
"""

import argparse
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from measuring import row_header, save_row, spread

from vggkit import Recipe
from vggkit.engines.accelerate import accelerate
from vggkit.networks.baselines import build
from vggkit.training.checkpoint import SAVE_SECONDS, Saver, checkpoint_path
from vggkit.training.hardware import choose_device, use_huge_pages
from vggkit.training.run_state import RunState
from vggkit.training.step import make_optimizer, train_step
from vggkit.weights.files import AnyNetwork


@dataclass(frozen=True)
class Case:
    recipe: Recipe
    in_channels: int = 1
    num_classes: int = 10


CASES = {
    "quick": Case(Recipe.named("quick")),
    "vgg11/4": Case(Recipe.named("d2l")),
    "vgg16": Case(replace(Recipe.named("d2l"), architecture="vgg16", batch_size=8, momentum=0.9), 3, 1000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=sorted(CASES), default=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true")
    flags = parser.parse_args()
    use_huge_pages()
    device = choose_device("cpu")
    for name in flags.cases:
        row = measure(CASES[name], flags.repeats, device)
        save_row("saving", {**row_header(device, flags.repeats), "case": name, **row}, flags.save)


def measure(case: Case, repeats: int, device: torch.device) -> dict[str, object]:
    recipe = case.recipe
    net, optimizer, step = training(case, device)
    step_seconds = statistics.median(seconds_of(step) for _ in range(4))
    stalls, durables, slower, lost = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(Path(folder), SAVE_SECONDS)

        def save(number: int) -> float:
            state = RunState(asdict(recipe), {}, step=number)
            saver.save(net, optimizer, state, b"", {})
            return time.perf_counter()

        begin, cpu_begin = time.perf_counter(), time.process_time()
        save(1)
        saver.finish()
        cpu_seconds = time.process_time() - cpu_begin
        # Alone it took so long; beside training on all cores it takes up to twice that.
        num_steps = 1 + int(2 * (time.perf_counter() - begin) / step_seconds)
        size = sum(file.stat().st_size for file in checkpoint_path(Path(folder), 1).iterdir())
        for number in range(2, repeats + 2):
            took: dict[bool, float] = {}
            for saves in random.sample((False, True), 2):
                begin = time.perf_counter()
                ended: list[float] = []
                if saves:
                    stalls.append(save(number) - begin)
                    watcher = threading.Thread(target=wait, args=(saver, ended))
                    watcher.start()
                for _ in range(num_steps):
                    step()
                took[saves] = time.perf_counter() - begin
                if saves:
                    watcher.join()
                    saver.finish()
                    durables.append(ended[0] - begin)
            lost.append(took[True] - took[False])
            written_seconds = min(durables[-1], took[True]) - stalls[-1]
            slower.append((lost[-1] - stalls[-1]) / written_seconds)
    return {
        "architecture": recipe.architecture,
        "image_size": recipe.image_size,
        "batch_size": recipe.batch_size,
        "checkpoint_bytes": size,
        "first_cpu_seconds": float(f"{cpu_seconds:.3g}"),
        "num_steps": num_steps,
        "step_seconds": float(f"{step_seconds:.3g}"),
        "stall_seconds": spread(stalls),
        "durable_seconds": spread(durables),
        "lost_while_written": spread(slower),
        "lost_seconds": spread(lost),
        "interval_seconds": SAVE_SECONDS,
        "share": spread([seconds / SAVE_SECONDS for seconds in lost]),
    }


def training(case: Case, device: torch.device) -> tuple[AnyNetwork, torch.optim.Optimizer, Callable[[], object]]:
    """A network, its optimizer, and a step of training on one batch of random images."""
    recipe = case.recipe
    net = build(recipe.network(case.in_channels, case.num_classes), init="torch").to(device)
    net.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    fast = accelerate(net)
    optimizer = make_optimizer(recipe, net)
    shape = (recipe.batch_size, case.in_channels, recipe.image_size, recipe.image_size)
    x = torch.rand(shape).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(case.num_classes, (recipe.batch_size,))
    return net, optimizer, lambda: train_step(fast, optimizer, x, labels, learning_rate=1e-4)


def wait(saver: Saver, ended: list[float]) -> None:
    """Wait until a checkpoint is written, and note when that was."""
    saver.wait()
    ended.append(time.perf_counter())


def seconds_of(step: Callable[[], object]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
