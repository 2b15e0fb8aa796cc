"""Is the memory that training takes what `training_memory` predicts?

    python benchmarks/memory.py [--cases vgg11/4 ...] [--device cpu] [--repeats 3] [--save]

Each case runs two steps of training on random images, each time in a process of its own. On a CPU it compares resident
memory: the most of the process, less what was resident before the network was built, with torch's libraries loaded
and warm from a step of a tiny network; huge pages as in training. Once with freed memory given back at once, where
what is left over is the libraries' workspace, and once as glibc does by itself, which keeps some of what is freed.
Layers are torch's own, of which the prediction is; this engine's kernels keep less. On CUDA it compares
`torch.cuda.max_memory_allocated`, in bfloat16, with torch's layers and with the engine's.
Prints one JSON line for each case; --save adds it to benchmarks/results/memory.jsonl.
"""

import argparse
import ctypes
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from measuring import row_header, save_row, spread

from vggkit import Recipe, as_network
from vggkit.data.preprocessing import _channels_last
from vggkit.design.memory import Dtype, OptimizerState, training_memory
from vggkit.design.network import Network
from vggkit.engines import cpu, gpu
from vggkit.engines.accelerate import accelerate
from vggkit.networks.baselines import build
from vggkit.training import hardware, step


@dataclass(frozen=True)
class Case:
    network: str
    batch_size: int
    in_channels: int = 1
    num_classes: int = 10
    image_size: int = 224
    optimizer: OptimizerState = "sgd"
    recompute: bool = False


CASES = (
    Case("vgg11/4", 128),
    Case("vgg11/4", 128, recompute=True),
    Case("vgg11_bn/4", 128, optimizer="adamw"),
    Case("vgg16", 8, 3, 1000, optimizer="momentum"),
    Case("vgg16", 8, 3, 1000, recompute=True),
    Case("alexnet", 128),
)
QUICK = Case("vgg11/4", 16, 3, 10, 128)
"""For a test: seconds, and still much larger than what libraries take."""
FREED = ("given back", "kept by glibc")
LAYERS = ("torch's layers", "own kernels")
"""On CUDA."""
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=sorted({case.network for case in CASES}))
    parser.add_argument("--device")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--case", help="measure one case once (used by the program itself)")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="float32", help="of that case")
    parser.add_argument("--freed", choices=(*FREED, *LAYERS), default=FREED[0], help="memory of that case")
    flags = parser.parse_args()
    device = hardware.choose_device(flags.device)
    if flags.case is not None:
        case = QUICK if flags.case == "quick" else CASES[int(flags.case)]
        if flags.freed == "given back" and sys.platform == "linux":
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
        predicted, measured = predicted_bytes(case, flags.dtype), measured_bytes(case, device, flags.freed)
        print(json.dumps({"predicted": predicted, "measured": measured}))
        return
    ways = [("float32", freed) for freed in FREED]
    if device.type == "cuda":
        ways = [("bfloat16", layers) for layers in LAYERS]
    for dtype, freed in ways:
        for index, case in enumerate(CASES):
            if flags.cases is not None and case.network not in flags.cases:
                continue
            command = [sys.executable, __file__, "--case", str(index), "--dtype", dtype, "--device", str(device)]
            command += ["--freed", freed]
            runs = [
                json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
                for _ in range(flags.repeats)
            ]
            predicted = runs[0]["predicted"]
            row = {
                **row_header(device, flags.repeats),
                **vars(case),
                "dtype": dtype,
                "freed_memory": freed,
                "predicted_bytes": predicted,
                "measured_bytes": spread([run["measured"] for run in runs]),
                "predicted_over_measured": spread([predicted / run["measured"] for run in runs]),
            }
            save_row("memory", row, flags.save)


def predicted_bytes(case: Case, dtype: Dtype) -> int:
    """The peak of a step of `case`."""
    return training_memory(
        network(case), case.batch_size, dtype=dtype, optimizer=case.optimizer, recompute=case.recompute
    ).peak_bytes


def measured_bytes(case: Case, device: torch.device, freed: str) -> int:
    """The peak of two steps of `case`; once in a process."""
    hardware.use_huge_pages()
    if freed != "own kernels":
        for module, name in ((cpu, "why_not_compiled"), (gpu, "why_no_kernels")):
            setattr(module, name, lambda: "turned off")
    train(replace(case, network="1x4_bn", image_size=32, batch_size=8, recompute=False), device, hidden=(8,))
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        train(case, device)
        return torch.cuda.max_memory_allocated(device) - before
    before = resident_bytes("VmRSS")
    train(case, device)
    return resident_bytes("VmHWM") - before


def resident_bytes(field: str) -> int:
    """Of this process: `VmRSS` now, `VmHWM` the most so far. Linux only."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status[field].split()[0])


def train(case: Case, device: torch.device, **options: tuple[int, ...]) -> None:
    """Two steps, as `vggkit.train` takes them: the optimizer's state is there in the second."""
    arch = network(case, **options)
    net = build(arch, init="torch").to(device)
    net.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    fast = accelerate(net, recompute=case.recompute)
    recipe = replace(Recipe.named("d2l"), momentum=0.9 if case.optimizer == "momentum" else 0.0)
    if case.optimizer == "adamw":
        recipe = replace(recipe, optimizer="adamw")
    optimizer = step.make_optimizer(recipe, net)
    shape = (case.batch_size, case.in_channels, case.image_size, case.image_size)
    x = _channels_last(torch.rand(shape, device=device))
    labels = torch.zeros(case.batch_size, dtype=torch.long, device=device)
    for _ in range(2):
        step.train_step(fast, optimizer, x, labels, learning_rate=0.0)


def network(case: Case, **options: tuple[int, ...]) -> Network:
    """What is trained."""
    return as_network(
        case.network,
        in_channels=case.in_channels,
        num_classes=case.num_classes,
        image_size=case.image_size,
        **options,
    )


if __name__ == "__main__":
    main()
