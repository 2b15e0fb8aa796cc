"""How fast a network trains or classifies on this machine, compared with plain PyTorch.

Each implementation has its own process, because on a CPU the allocation of memory decides much of the speed. They take
turns, so that disturbances of the machine affect all alike.
"""

import contextlib
import ctypes
import functools
import gc
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggkit.design.network import Network, costs
from vggkit.design.scaling import backward_macs
from vggkit.engines import cpu, gpu
from vggkit.engines.accelerate import Accelerated, accelerate, describe_engine, engine_name
from vggkit.errors import RunError
from vggkit.networks.baselines import build
from vggkit.training.hardware import choose_device, describe_hardware, keep_freed_memory, use_huge_pages
from vggkit.training.recipe import Recipe
from vggkit.training.step import make_optimizer, train_step
from vggkit.weights.files import AnyNetwork

Way = Literal["vggkit", "PyTorch channels_last", "PyTorch"]
Step = Callable[[], object]
TURN_SECONDS = 0.5


@dataclass(frozen=True)
class Speed:
    """The speed of one implementation of a network."""

    way: Way
    """`vggkit`, as `vgg train` and `vgg predict` run it, or torch's modules in either memory layout."""
    examples_per_second: tuple[float, ...]
    """One value for each turn; loading of data is not included."""
    share_of_product_rate: float
    """Median FLOP/s, by the definition of the layers, over the rate of a large matrix product; it may exceed 1, as fast
    algorithms do fewer operations."""
    peak_bytes: int
    """Peak resident memory beyond that of the process before the network was made; on CUDA, torch's peak allocation."""
    convolutions: str
    """The engine of the convolutions: `compiled, 7 of 8`, or `torch` for all."""

    @property
    def median(self) -> float:
        """Examples/s."""
        return statistics.median(self.examples_per_second)


@dataclass(frozen=True)
class Bench:
    """The speed of every implementation of a network, and what it was measured on."""

    speeds: tuple[Speed, ...]
    product_flops_per_second: float
    """The rate of a large matrix product in float32, or on CUDA in bfloat16, as training uses there."""
    hardware: str
    not_compiled: str
    """Why the convolutions for this CPU are not compiled; empty if they are."""


def bench(
    network: Network,
    batch_size: int,
    *,
    training: bool,
    repeats: int = 5,
    device: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Bench:
    """Train or classify random images in turns of half a second or three steps, after a turn to warm up.

    All implementations are in memory at once.

    Args:
        network: the network, with its image size.
        batch_size: images in a step.
        training: measure training steps, else forward passes.
        repeats: turns of each implementation.
        device: as `torch.device` takes it; a CUDA GPU if there is one, else the CPU.
        say: called with each line of progress.

    Raises:
        ValueError: `batch_size` or `repeats` is below 1, or `VGGKIT_ENGINE` names no engine.
        RunError: there is no such device, or a process ended, perhaps for lack of memory.
    """
    for name, value in (("batch_size", batch_size), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"expected {name} from 1, got {value}")
    torch_device = choose_device(device)
    engine_name()  # checks it
    ways: tuple[Way, ...] = get_args(Way)
    turns: dict[Way, list[_Turn]] = {way: [] for way in ways}
    with ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        processes = {way: stack.enter_context(ProcessPoolExecutor(1, context)) for way in ways}

        def take_turn(way: Way) -> _Turn:
            case = (way, network, batch_size, training, str(torch_device), torch.get_num_threads())
            try:
                return processes[way].submit(_next_turn, *case).result()
            except BrokenProcessPool:
                raise RunError(f"expected {way} to end its turn, got an ended process, try a smaller batch") from None

        for way in ways:
            say(f"{way}: warming up")
            take_turn(way)
        for number, way in itertools.product(range(1, repeats + 1), ways):
            turns[way].append(take_turn(way))
            say(f"turn {number} of {repeats}, {way}: {batch_size / turns[way][-1].seconds:,.1f} examples/s")
    macs = costs(network, batch_size).total.macs + (backward_macs(network, batch_size) if training else 0)
    rate = product_flops_per_second(torch_device)
    speeds = []
    for way in ways:
        seconds, last = [turn.seconds for turn in turns[way]], turns[way][-1]
        share = 2 * macs / statistics.median(seconds) / rate
        speeds.append(Speed(way, tuple(batch_size / s for s in seconds), share, last.peak_bytes, last.convolutions))
    not_compiled = cpu.why_not_compiled() if torch_device.type == "cpu" else ""
    return Bench(tuple(speeds), rate, describe_hardware(torch_device), not_compiled)


class _Turn(NamedTuple):
    seconds: float
    """The median of its steps."""
    peak_bytes: int
    """Up to now; see `Speed`."""
    convolutions: str


def _next_turn(*case: Any) -> _Turn:
    return next(_turns(*case))


@functools.cache  # each process keeps its network from turn to turn
def _turns(
    way: Way, network: Network, batch_size: int, training: bool, device_name: str, threads: int
) -> Iterator[_Turn]:
    torch.set_num_threads(threads)
    device, before_bytes = choose_device(device_name), resident_bytes("VmRSS")
    if way == "vggkit":
        use_huge_pages()
        keep_freed_memory(costs(network, batch_size).total.activation_bytes)
    step, convolutions = _step(way, network, batch_size, training, device)
    while True:
        seconds, peak_bytes = turn_seconds(step, device), max(0, resident_bytes("VmHWM") - before_bytes)
        if device.type == "cuda":
            peak_bytes = torch.cuda.max_memory_allocated(device)
        yield _Turn(seconds, peak_bytes, convolutions)


def _step(way: Way, network: Network, batch_size: int, training: bool, device: torch.device) -> tuple[Step, str]:
    """A step on random images, and the engine of its convolutions."""
    torch.manual_seed(0)
    net, x, labels = with_random_images(network, batch_size, device, by_channel=way == "PyTorch")
    net.train(training)
    fast = accelerate(net)
    convolutions = _convolution_engine(fast) if way == "vggkit" else "torch"
    if not training:
        return classifies(fast if way == "vggkit" else net, x), convolutions
    if way == "vggkit":
        return trains_by(Recipe.named("d2l"), fast, x, labels), convolutions
    return trains(net, torch.optim.SGD(net.parameters(), lr=1e-4), x, labels), convolutions


def with_random_images(
    network: Network, batch_size: int, device: torch.device, *, by_channel: bool = False
) -> tuple[AnyNetwork, Tensor, Tensor]:
    """A new network, a batch of random images for it and their labels, channels_last unless `by_channel`."""
    layout = torch.contiguous_format if by_channel else torch.channels_last
    net = build(network, "torch").to(device)
    net.to(memory_format=layout)  # type: ignore[call-overload]
    x = random_images(network, batch_size, device)
    labels = torch.randint(network.num_classes, (batch_size,), device=device)
    return net, x.contiguous(memory_format=layout), labels


def random_images(network: Network, batch_size: int, device: torch.device) -> Tensor:
    """Standard normal noise, (batch_size, channels, height, width), of the size that `network` takes."""
    return torch.randn(batch_size, network.in_channels, network.image_size, network.image_size, device=device)


def trains_by(recipe: Recipe, fast: Accelerated, x: Tensor, labels: Tensor) -> Step:
    """A training step of `fast` on one batch, as in `train`, with a learning rate too low to diverge."""
    optimizer, rate = make_optimizer(recipe, fast.net), torch.full((), 1e-6, device=x.device)
    step = functools.partial(train_step, fast, optimizer, x, labels, rate, recipe.label_smoothing)
    return gpu.capture_step(step, fast.net, optimizer, []) if x.is_cuda else step


def _convolution_engine(fast: Accelerated) -> str:
    names = {name for name, layer in fast.net.named_modules() if isinstance(layer, nn.Conv2d)}
    chosen = [choice.engine for choice in describe_engine(fast) if choice.layer in names]
    return f"compiled, {chosen.count('vggkit')} of {len(chosen)}" if "vggkit" in chosen else "torch"


def classifies(net: nn.Module, x: Tensor) -> Step:
    """A forward pass of `net` on `x`."""

    @torch.no_grad()
    def step() -> None:
        with gpu.half(x):
            net(x)

    return step


def trains(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor) -> Step:
    """A training step of `net` on one batch in plain PyTorch."""

    def step() -> None:
        with gpu.half(x):
            loss = F.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def turn_seconds(step: Step, device: torch.device, steps_at_once: int = 1) -> float:
    """The median seconds of a step over a turn; `device` is synchronised after each `steps_at_once` steps."""
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < TURN_SECONDS:
        begin = time.perf_counter()
        for _ in range(steps_at_once):
            step()
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds) / steps_at_once


def settled_seconds(step: Step, device: torch.device) -> float:
    """`turn_seconds` after a turn to warm up."""
    turn_seconds(step, device)
    return turn_seconds(step, device)


def resident_bytes(field: str) -> int:
    """Resident memory of this process: current (VmRSS) or peak (VmHWM); 0 if the system does not report it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), 0)


def reset_peak_memory(device: torch.device) -> int:
    """Restart the measurement of the peak memory; returns the bytes in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # elsewhere than on Linux, the peak stays that of the process
        ctypes.CDLL(None).malloc_trim(0)  # returns freed memory to the system
        Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes("VmRSS")


def peak_memory_bytes(device: torch.device) -> int:
    """The peak memory in bytes since `reset_peak_memory`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_bytes("VmHWM")


def product_flops_per_second(device: torch.device) -> float:
    """FLOP/s of a large matrix product, by the fastest library that torch includes."""
    n = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    products: list[Step] = [lambda: a @ b]
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    return 2 * n**3 / min(turn_seconds(product, device) for product in products)


def synchronize(device: torch.device) -> None:
    """Wait until `device` has finished all work submitted to it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
