"""How much speed does a busy process on the same machine cost, and how much do sleeping threads regain?

    python benchmarks/busy.py [--repeats 3] [--save]

The busy process keeps one core at work. With `spin`, torch's threads wait for each other in a loop; `chosen` is what
training and the fast engine do (`vggkit.engines.waiting`). Each figure is examples/s over some seconds: on the idle
machine; beside the busy process from its start on, which includes the time to notice it; and from 10 seconds after it
has gone. Run it on an otherwise idle machine. Goals: `chosen` loses at most 3% on the idle machine, and keeps at least
0.55 of its speed beside one busy process on two cores.
Prints a JSON line for each case. To try it, lower the `--seconds` of each figure.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

os.environ["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))  # before torch reads it

import torch
from measuring import parser, row_header, save_row, spread

from vggkit import VGG, Recipe, accelerate, build
from vggkit.engines import waiting
from vggkit.training.hardware import choose_device, keep_freed_memory, use_huge_pages
from vggkit.training.step import make_optimizer, train_step


def main() -> None:
    flags = parser(__doc__, repeats=3)
    flags.add_argument("--seconds", type=float, default=5.0)
    given = flags.parse_args()
    use_huge_pages()
    keep_freed_memory(0)
    for name, (call, batch_size) in {"quick, a training step": training(), "vgg16, inference": inference()}.items():
        speed(call, batch_size, None, given.seconds)  # warm-up
        found: dict[str, list[float]] = {}
        for _ in range(given.repeats):
            for way in ("spin", "chosen"):
                for state, examples_per_second in measured(call, batch_size, way, given.seconds):
                    found.setdefault(f"{way}, {state}", []).append(examples_per_second)
        row = {"case": name, "batch_size": batch_size, **{key: spread(values) for key, values in found.items()}}
        save_row("busy", {**row_header(choose_device("cpu"), given.repeats), **row}, given.save)


def training() -> tuple[Callable[[], object], int]:
    recipe = Recipe.named("quick")
    net = build(recipe.network(1, 10), recipe.init).train()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fast, optimizer = accelerate(net), make_optimizer(recipe, net)
    x, labels = torch.randn(128, 32, 32, 1).permute(0, 3, 1, 2), torch.randint(10, (128,))
    return lambda: train_step(fast, optimizer, x, labels, 1e-4), 128


def inference() -> tuple[Callable[[], object], int]:
    fast = accelerate(VGG("vgg16").eval())
    x = torch.randn(1, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    return torch.no_grad()(lambda: fast(x)), 1


def measured(call: Callable[[], object], batch_size: int, way: str, seconds: float) -> Iterator[tuple[str, float]]:
    """The states of the machine and the examples/s in each."""
    kind = (way, call) if way == "chosen" else None
    yield "idle", speed(call, batch_size, kind, seconds)
    with neighbour():
        yield "beside a busy process", speed(call, batch_size, kind, 2 * seconds)
    speed(call, batch_size, kind, 2 * seconds)
    yield "after it has gone", speed(call, batch_size, kind, seconds)


def speed(call: Callable[[], object], batch_size: int, kind: object, seconds: float) -> float:
    """Examples/s of `call` over some seconds; a `kind` chooses how threads wait, without one they spin."""
    if kind is None:
        waiting.let_sleep(False)
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        with waiting.watched(kind, batch_size) if kind is not None else waiting.left_alone():
            call()
        calls += 1
    return calls * batch_size / (time.perf_counter() - start)


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
