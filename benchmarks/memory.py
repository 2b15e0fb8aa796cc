"""Does training take as much memory as `training_memory` predicts?

    python benchmarks/memory.py [--cases vgg11/4 ...] [--device cpu] [--repeats 3] [--save]

Each case runs two training steps on random images, in a new process each time. On a CPU it compares resident memory:
the peak of the process, minus what was resident before the network was built, with torch's libraries loaded and warmed
up by a step of a tiny network, and huge pages as in training. It measures once with freed memory returned at once, so
that only the libraries' workspace remains, and once as glibc behaves by default, which keeps some of what is freed. The
layers are torch's own, which the prediction describes; this engine's kernels keep less. On CUDA it compares
`torch.cuda.max_memory_allocated`, in bfloat16, with torch's layers and with the engine's.
Prints a JSON line for each case. The case `quick`, which takes seconds, runs only if you name it, and only in the first
of the two ways.
"""

import ctypes
import sys
from dataclasses import dataclass, replace

import torch
from measuring import in_own_process, parser, resident_bytes, row_header, save_row, spread

from vggkit import Recipe, accelerate, as_network, build, training_memory
from vggkit.design.memory import OptimizerState
from vggkit.design.network import Network
from vggkit.engines import cpu, gpu
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
"""Still much larger than what libraries take."""
FREED = ("given back", "kept by glibc")
LAYERS = ("torch's layers", "own kernels")
"""On CUDA."""
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def main() -> None:
    flags = parser(__doc__, repeats=3)
    flags.add_argument("--cases", nargs="+", choices=["quick", *sorted({case.network for case in CASES})])
    flags.add_argument("--device")
    given = flags.parse_args()
    device = hardware.choose_device(given.device)
    cases = [case for case in CASES if given.cases is None or case.network in given.cases]
    ways: tuple[str, ...] = LAYERS if device.type == "cuda" else FREED
    if given.cases == ["quick"]:
        cases, ways = [QUICK], ways[:1]
    for freed in ways:
        for case in cases:
            predicted = predicted_bytes(case, device)
            measured = [in_own_process(measured_bytes, case, device, freed) for _ in range(given.repeats)]
            row = {
                **row_header(device, given.repeats),
                **vars(case),
                "dtype": "bfloat16" if device.type == "cuda" else "float32",
                "freed_memory": freed,
                "predicted_bytes": predicted,
                "measured_bytes": spread(measured),
                "predicted_over_measured": spread([predicted / num_bytes for num_bytes in measured]),
            }
            save_row("memory", row, given.save)


def predicted_bytes(case: Case, device: torch.device) -> int:
    """The peak of a step of `case`."""
    return training_memory(
        network(case),
        case.batch_size,
        dtype="bfloat16" if device.type == "cuda" else "float32",
        optimizer=case.optimizer,
        recompute=case.recompute,
    ).peak_bytes


def measured_bytes(case: Case, device: torch.device, freed: str) -> int:
    """The peak of two steps of `case`; once in a process."""
    if freed == "given back" and sys.platform == "linux":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
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


def train(case: Case, device: torch.device, **options: tuple[int, ...]) -> None:
    """Two steps, as `vggkit.train` takes them: the optimizer's state is there in the second."""
    net = build(network(case, **options), init="torch").to(device)
    net.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    fast = accelerate(net, recompute=case.recompute)
    recipe = replace(Recipe.named("d2l"), momentum=0.9 if case.optimizer == "momentum" else 0.0)
    if case.optimizer == "adamw":
        recipe = replace(recipe, optimizer="adamw")
    optimizer = step.make_optimizer(recipe, net)
    shape = (case.batch_size, case.image_size, case.image_size, case.in_channels)
    x = torch.rand(shape, device=device).permute(0, 3, 1, 2)  # channels_last, with one channel too
    labels = torch.zeros(case.batch_size, dtype=torch.long, device=device)
    for _ in range(2):
        step.train_step(fast, optimizer, x, labels, learning_rate=0.0)


def network(case: Case, **options: tuple[int, ...]) -> Network:
    """What is trained."""
    of_case = {name: getattr(case, name) for name in ("in_channels", "num_classes", "image_size")}
    return as_network(case.network, **of_case, **options)


if __name__ == "__main__":
    main()
