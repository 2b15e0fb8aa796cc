"""What makes VGG fast on a CUDA GPU: layout, precision, compilation, graphs?

    python benchmarks/gpu_speed.py [--cases TEXT ...] [--repeats 5] [--save]
    python benchmarks/gpu_speed.py --device cpu --quick

VGG-11/4 training as the chapter's recipe has it (224 pixels, batch 128, one grey channel), and VGG-16 training and
inference on RGB: each in NCHW and channels_last, in float32, tf32 and bfloat16 (autocast), eager and compiled, and
with the whole step as one CUDA graph. Random images, made before; every variant in a process of its own, in turns by
chance. The chapter's way, data included, is measured in the same run.
`share_of_product_rate` is the operations of a step (2 per MAC, forward once and backward twice) over the measured rate
of a large bfloat16 matrix product.
Aims for a Hopper card, written before the first row: 25,000 examples/s and 10 times the chapter's way for VGG-11/4;
45% of the matrix product rate for VGG-16's training in bfloat16.
Prints a JSON line for each case; --save adds it to benchmarks/results/gpu_speed.jsonl.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from measuring import Case as ChapterCase
from measuring import row_header, save_row, spread
from torch import Tensor
from torch.nn import functional as F
from train_speed import peak_megabytes, run_chapter

from vggkit import VGG, Architecture, costs
from vggkit.design.scaling import backward_macs
from vggkit.lab.bench import product_flops_per_second, synchronize
from vggkit.training.hardware import choose_device


@dataclass(frozen=True)
class Case:
    network: str
    is_training: bool
    image_size: int = 224
    batch_size: int = 128
    in_channels: int = 3
    num_classes: int = 1000

    @property
    def name(self) -> str:
        return f"{self.network} {'training' if self.is_training else 'inference'} batch {self.batch_size}"


CASES = (
    Case("vgg11/4", True, in_channels=1, num_classes=10),
    Case("vgg16", True, batch_size=256),
    Case("vgg16", False, batch_size=256),
    Case("vgg16", False, batch_size=1),
)
QUICK = (Case("1x8 1x8", True, 16, 4), Case("1x8 1x8", False, 16, 4))
"""To try it in seconds on a CPU."""
PRECISIONS, LAYOUTS, HOWS = ("float32", "tf32", "bfloat16"), ("NCHW", "channels_last"), ("eager", "compiled", "graph")
WARM_UP, STEPS = 10, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=[""], help="parts of the names of the cases wanted")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small networks, eager, to try it")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    device = choose_device(flags.device)
    if flags.one is not None:
        case, variant = Case(**json.loads(flags.one[0])), flags.one[1]
        print(json.dumps(measure(case, variant, device)))
        return
    rate = product_flops_per_second(device)
    for case in QUICK if flags.quick else CASES:
        if not any(text in case.name for text in flags.cases):
            continue
        variants = [f"{precision} {layout} {how}" for precision in PRECISIONS for layout in LAYOUTS for how in HOWS]
        if flags.quick:
            variants = [variant for variant in variants if "float32" in variant and "eager" in variant]
        if case.network == "vgg11/4":
            variants.append("chapter")
        turns: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
        for _ in range(flags.repeats):
            for variant in random.sample(variants, len(variants)):
                command = [sys.executable, __file__, "--device", flags.device, "--one", json.dumps(vars(case)), variant]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                turns[variant].append(json.loads(done.stdout.splitlines()[-1]))
        arch = architecture(case)
        macs = costs(arch).total.macs + (backward_macs(arch, 1) if case.is_training else 0)
        rates = {variant: [turn["examples_per_second"] for turn in some] for variant, some in turns.items()}
        row = {
            **row_header(device, flags.repeats),
            **vars(case),
            "bfloat16_product_flops_per_second": float(f"{rate:.3g}"),
            "examples_per_second": {variant: spread(values) for variant, values in rates.items()},
            "share_of_product_rate": {
                variant: round(2 * macs * statistics.median(values) / rate, 3) for variant, values in rates.items()
            },
            "peak_megabytes": {variant: max(t["peak_megabytes"] for t in some) for variant, some in turns.items()},
        }
        save_row("gpu_speed", row, flags.save)


def architecture(case: Case) -> Architecture:
    return Architecture.parse(
        case.network, in_channels=case.in_channels, num_classes=case.num_classes, image_size=case.image_size
    )


def measure(case: Case, variant: str, device: torch.device) -> dict[str, float]:
    """Examples/s of one variant, and its peak of memory."""
    if variant == "chapter":
        return run_chapter(ChapterCase(case.network, case.image_size, case.batch_size), device, None)
    precision, layout, how = variant.split()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    format_ = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    net: Any = VGG(architecture(case))
    net.to(device).to(memory_format=format_).train(case.is_training)
    x = torch.rand(case.batch_size, case.in_channels, case.image_size, case.image_size, device=device)
    x = x.contiguous(memory_format=format_)
    labels = torch.randint(case.num_classes, (case.batch_size,), device=device)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, fused=True)
    forward: Callable[[Tensor], Tensor] = torch.compile(net) if how == "compiled" else net
    autocast = torch.autocast(
        device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=how != "graph"
    )

    def train() -> None:
        optimizer.zero_grad(set_to_none=how != "graph")
        with autocast:
            logits = forward(x)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    @torch.no_grad()
    def classify() -> None:
        with autocast:
            forward(x)

    step = train if case.is_training else classify
    if how == "graph":
        step = captured(step)
    for _ in range(WARM_UP):
        step()
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(STEPS):
        step()
    synchronize(device)
    seconds = time.perf_counter() - begin
    return {"examples_per_second": case.batch_size * STEPS / seconds, "peak_megabytes": peak_megabytes(device)}


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """The whole step as one CUDA graph, after some steps beside, as torch wants it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


if __name__ == "__main__":
    main()
