"""How fast is vggkit on a CUDA GPU, beside PyTorch eager and compiled?

    python benchmarks/gpu_speed.py [--cases TEXT ...] [--repeats 5] [--save]
    python benchmarks/gpu_speed.py --device cpu --quick

Measures training as `vgg train` takes its steps, and inference as `vgg predict` does. The peers are torch's own layers
in channels_last under bfloat16 autocast, eager and compiled by torch.compile, with the same fused optimizer. All take
turns in one process, on random images on the device. `start_seconds` is the time until the first step is done, which
includes capturing for vggkit and compiling for torch.compile. The same run measures the chapter's code, data included.
`share_of_product_rate` is the operations of a step (2 per MAC, forward once and backward twice) over the measured rate
of a large bfloat16 matrix product.
Prints a JSON line for each case.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from measuring import Case as ChapterCase
from measuring import digits, parser, row_header, save_row, spread
from torch import nn
from train_speed import run_chapter

from vggkit import Architecture, Recipe, accelerate, build, costs
from vggkit.design.scaling import backward_macs
from vggkit.engines import gpu
from vggkit.lab.bench import Step, classifies, product_flops_per_second, synchronize, trains, turn_seconds
from vggkit.training.hardware import choose_device
from vggkit.training.step import make_optimizer, train_step


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

    @property
    def architecture(self) -> Architecture:
        fields = ("in_channels", "num_classes", "image_size", "hidden")
        return Architecture.parse(self.network, **{name: getattr(self, name) for name in fields})


CASES = (
    Case("vgg11/4", True, in_channels=1, num_classes=10),
    Case("vgg11_bn/4", True, 32, in_channels=1, num_classes=10, hidden=(), optimizer="adamw"),
    Case("vgg16", True, batch_size=256),
    Case("vgg16", False, batch_size=256),
    Case("vgg16", False, batch_size=1),
)
QUICK = tuple(Case("1x8 1x8", is_training, 16, 4, hidden=(8,)) for is_training in (True, False))
"""To try it in seconds on a CPU."""


def main() -> None:
    flags = parser(__doc__, repeats=5)
    flags.add_argument("--cases", nargs="+", default=[""], help="parts of the names of the cases wanted")
    flags.add_argument("--device", default="cuda")
    flags.add_argument("--quick", action="store_true", help="small networks, to try it")
    given = flags.parse_args()
    device = choose_device(given.device)
    rate = product_flops_per_second(device)
    for case in QUICK if given.quick else CASES:
        if any(text in case.name for text in given.cases):
            measured = measure(case, device, given.repeats)
            macs = costs(case.architecture).total.macs
            macs += backward_macs(case.architecture, 1) if case.is_training else 0
            speeds = measured["examples_per_second"].items()
            row = {
                **row_header(device, given.repeats),
                **vars(case),
                "bfloat16_product_flops_per_second": digits(rate),
                **measured,
                "share_of_product_rate": {way: round(2 * macs * speed["median"] / rate, 3) for way, speed in speeds},
            }
            save_row("gpu_speed", row, given.save)


@torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
def measure(case: Case, device: torch.device, repeats: int) -> dict[str, Any]:
    """Examples/s, seconds until the first step is done, and the peak of memory, of each way."""
    on_gpu = device.type == "cuda"
    steps, starts, peaks = {}, {}, {}
    for way in ("vggkit", "PyTorch", *["PyTorch compiled"] * on_gpu):
        before = 0
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        begin = time.perf_counter()
        steps[way] = made(case, way, device)
        for _ in range(3 if way == "vggkit" and not case.is_training else 1):  # a third pass is replayed
            steps[way]()
        synchronize(device)
        starts[way] = round(time.perf_counter() - begin, 2)
        peaks[way] = round((torch.cuda.max_memory_allocated() - before) / 1e6) if on_gpu else None
    turns: dict[str, list[float]] = {way: [] for way in steps}
    for _ in range(repeats):
        for way, step in steps.items():
            turns[way].append(case.batch_size / turn_seconds(step, device, steps_at_once=10))
    if case == CASES[0]:
        steps.clear()
        chapter = ChapterCase(case.network, case.image_size, case.batch_size)
        turns["the chapter's way"] = [run_chapter(chapter, device, None)["examples_per_second"]]
    return {
        "examples_per_second": {way: spread(values) for way, values in turns.items()},
        "start_seconds": starts,
        "peak_megabytes": peaks,
    }


def made(case: Case, way: str, device: torch.device) -> Step:
    """A step of `case` on one batch, by a network of its own."""
    torch.manual_seed(0)
    with device:
        net = build(case.architecture).train(case.is_training)
        x = torch.rand(case.batch_size, case.in_channels, case.image_size, case.image_size)
        labels = torch.randint(case.num_classes, (case.batch_size,))
        rate = torch.full((), 1e-4)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = x.contiguous(memory_format=torch.channels_last)
    forward: nn.Module = accelerate(net) if way == "vggkit" else net
    if way == "PyTorch compiled":
        forward = torch.compile(net)  # type: ignore[assignment]
    if not case.is_training:
        return classifies(forward, x)
    optimizer = make_optimizer(replace(Recipe.named("d2l"), optimizer=case.optimizer), net)  # type: ignore[arg-type]
    if way != "vggkit":
        return trains(forward, optimizer, x, labels)
    step = lambda: train_step(forward, optimizer, x, labels, rate)  # noqa: E731
    return gpu.capture_step(step, net, optimizer, []) if device.type == "cuda" else step


if __name__ == "__main__":
    main()
