"""How fast is a CUDA GPU with vggkit, beside PyTorch eager and compiled?

    python benchmarks/gpu_speed.py [--cases TEXT ...] [--repeats 5] [--save]
    python benchmarks/gpu_speed.py --device cpu --quick

Training as `vgg train` takes its steps, and inference as `vgg predict` does: beside them torch's own layers in
channels_last under bfloat16 autocast, eager and by torch.compile, with the same fused optimizer. Random images on the
device; the ways take turns in one process, each turn half a second or ten steps. `start_seconds` is what passes until
the first step is done: capturing for vggkit, compiling for torch.compile. The chapter's way, data included, is measured
in the same run. `share_of_product_rate` is the operations of a step (2 per MAC, forward once and backward twice) over
the measured rate of a large bfloat16 matrix product.
Prints a JSON line for each case; --save adds it to benchmarks/results/gpu_speed.jsonl.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from measuring import Case as ChapterCase
from measuring import row_header, save_row, spread
from torch import Tensor, nn
from torch.nn import functional as F
from train_speed import run_chapter

from vggkit import Recipe, accelerate, build, costs
from vggkit.design.architecture import Architecture
from vggkit.design.scaling import backward_macs
from vggkit.engines import gpu
from vggkit.lab.bench import product_flops_per_second, synchronize
from vggkit.training.hardware import choose_device
from vggkit.training.step import autocast, make_optimizer, train_step


@dataclass(frozen=True)
class Case:
    network: str
    is_training: bool
    image_size: int = 224
    batch_size: int = 128
    in_channels: int = 3
    num_classes: int = 1000
    hidden: tuple[int, ...] = (4096, 4096)
    optimizer: str = "sgd"

    @property
    def name(self) -> str:
        kind = "training" if self.is_training else "inference"
        return f"{self.network} {self.image_size} px {kind} batch {self.batch_size}"


CASES = (
    Case("vgg11/4", True, in_channels=1, num_classes=10),
    Case("vgg11_bn/4", True, 32, in_channels=1, num_classes=10, hidden=(), optimizer="adamw"),
    Case("vgg16", True, batch_size=256),
    Case("vgg16", False, batch_size=256),
    Case("vgg16", False, batch_size=1),
)
QUICK = (Case("1x8 1x8", True, 16, 4), Case("1x8 1x8", False, 16, 4))
"""To try it in seconds on a CPU."""
TURN_SECONDS, TURN_STEPS = 0.5, 10

Step = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=[""], help="parts of the names of the cases wanted")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small networks, to try it")
    parser.add_argument("--save", action="store_true")
    flags = parser.parse_args()
    device = choose_device(flags.device)
    rate = product_flops_per_second(device)
    for case in QUICK if flags.quick else CASES:
        if any(text in case.name for text in flags.cases):
            measured = measure(case, device, flags.repeats)
            macs = costs(architecture(case)).total.macs
            macs += backward_macs(architecture(case), 1) if case.is_training else 0
            shares = {
                way: round(2 * macs * rates["median"] / rate, 3)
                for way, rates in measured["examples_per_second"].items()
            }
            row = {
                **row_header(device, flags.repeats),
                **vars(case),
                "bfloat16_product_flops_per_second": float(f"{rate:.3g}"),
                **measured,
                "share_of_product_rate": shares,
            }
            save_row("gpu_speed", row, flags.save)


def architecture(case: Case) -> Architecture:
    return Architecture.parse(
        case.network,
        in_channels=case.in_channels,
        num_classes=case.num_classes,
        image_size=case.image_size,
        hidden=case.hidden,
    )


@torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
def measure(case: Case, device: torch.device, repeats: int) -> dict[str, Any]:
    """Examples/s, seconds until the first step is done, and the peak of memory, of each way."""
    steps, starts, peaks = {}, {}, {}
    for way in ("vggkit", "PyTorch", "PyTorch compiled"):
        if way == "PyTorch compiled" and device.type != "cuda":
            continue
        begin = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        steps[way] = made(case, way, device)
        for _ in range(3 if way == "vggkit" and not case.is_training else 1):  # a third pass is replayed
            steps[way]()
        synchronize(device)
        starts[way] = round(time.perf_counter() - begin, 2)
        if device.type == "cuda":
            peaks[way] = round((torch.cuda.max_memory_allocated() - before) / 1e6)
    turns: dict[str, list[float]] = {way: [] for way in steps}
    for _ in range(repeats):
        for way, step in steps.items():
            turns[way].append(case.batch_size / turn(step, device))
    if case == CASES[0]:
        steps.clear()
        chapter = ChapterCase(case.network, case.image_size, case.batch_size)
        turns["the chapter's way"] = [run_chapter(chapter, device, None)["examples_per_second"]]
    return {
        "examples_per_second": {way: spread(values) for way, values in turns.items()},
        "start_seconds": starts,
        "peak_megabytes": peaks,
    }


def turn(step: Step, device: torch.device) -> float:
    """Seconds of a step, the mean of as many as fill a turn."""
    synchronize(device)
    begin, count = time.perf_counter(), 0
    while count < TURN_STEPS or time.perf_counter() - begin < TURN_SECONDS:
        step()
        count += 1
        if count % TURN_STEPS == 0:
            synchronize(device)
    synchronize(device)
    return (time.perf_counter() - begin) / count


def made(case: Case, way: str, device: torch.device) -> Step:
    """A step of `case` on one batch, by a network of its own."""
    torch.manual_seed(0)
    with device:
        net = build(architecture(case)).train(case.is_training)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.rand(case.batch_size, case.in_channels, case.image_size, case.image_size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(case.num_classes, (case.batch_size,), device=device)
    forward: nn.Module = accelerate(net) if way == "vggkit" else net
    if way == "PyTorch compiled":
        forward = torch.compile(net)  # type: ignore[assignment]
    if not case.is_training:
        return lambda: classified(forward, x)
    recipe = replace(Recipe.named("d2l"), optimizer=case.optimizer)  # type: ignore[arg-type]
    optimizer = make_optimizer(recipe, net)
    if way != "vggkit":
        return lambda: trained(forward, optimizer, x, labels)
    rate = torch.full((), 1e-4, device=device)
    step = lambda: train_step(forward, optimizer, x, labels, rate)  # noqa: E731
    return gpu.capture_step(step, net, optimizer, []) if device.type == "cuda" else step


@torch.no_grad()
def classified(forward: nn.Module, x: Tensor) -> Tensor:
    with autocast(x.device):
        logits: Tensor = forward(x)
    return logits


def trained(forward: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor) -> None:
    with autocast(x.device):
        loss = F.cross_entropy(forward(x), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


if __name__ == "__main__":
    main()
