"""How fast a network trains or classifies on this machine, against PyTorch as it comes.

Each way has a process of its own, since how a process gets its memory decides much on a CPU; they take turns, so that
what disturbs the machine disturbs all of them alike.
"""

import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

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

Way = Literal["vggkit", "PyTorch channels_last", "PyTorch"]
Step = Callable[[], object]
TURN_SECONDS = 0.5


@dataclass(frozen=True)
class Speed:
    """One way through one network."""

    way: Way
    """`vggkit`, as `vgg train` and `vgg predict` run; torch's own modules in either layout of memory."""
    examples_per_second: tuple[float, ...]
    """Of each turn; data excluded."""
    share_of_product_rate: float
    """Operations of convolutions as they are defined, by the median, over the rate of a large matrix product. More
    than 1 is possible where the arithmetic is cheaper than its definition."""
    peak_bytes: int
    """Of resident memory, beyond what the process held before the network was made; on CUDA of what torch allocated."""
    convolutions: str
    """What computes the convolutions, and how many of them: `compiled, 7 of 8`; or `torch` for all."""

    @property
    def median(self) -> float:
        """Examples/s."""
        return statistics.median(self.examples_per_second)


@dataclass(frozen=True)
class Bench:
    """All ways through one network, and what they were measured on."""

    speeds: tuple[Speed, ...]
    product_flops_per_second: float
    """Of a large matrix product in float32; on CUDA in bfloat16, in which training computes there."""
    hardware: str
    not_compiled: str
    """Why this CPU's convolutions are not compiled, if they are not."""


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

    All ways are in memory at once, each in a process of its own.

    Args:
        network: what to measure, with the size of its images.
        batch_size: images in a step.
        training: forward, backward and update, or forward alone.
        repeats: turns of each way.
        device: as `torch.device` takes it; a CUDA GPU if there is one, else the CPU.
        say: is told what is being measured, and each turn's speed.

    Raises:
        ValueError: a batch_size or a number of repeats below 1; or `VGGKIT_ENGINE` names no engine.
        RunError: there is no such device; or a process ended, perhaps for lack of memory.
    """
    for name, value in (("batch_size", batch_size), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"expected {name} from 1, got {value}")
    chosen = choose_device(device)
    engine_name()  # checks it
    ways: tuple[Way, ...] = get_args(Way)
    context = multiprocessing.get_context("spawn")
    turns: dict[Way, list[float]] = {way: [] for way in ways}
    with ExitStack() as stack:
        processes = {way: stack.enter_context(ProcessPoolExecutor(1, context)) for way in ways}

        def asked(way: Way, function: Callable[..., Any], *arguments: object) -> Any:
            try:
                return processes[way].submit(function, *arguments).result()
            except BrokenProcessPool:
                raise RunError(f"expected {way} to end its turn, got an ended process, try a smaller batch") from None

        for way in ways:  # one at a time
            say(f"{way}: warming up")
            asked(way, _begin, way, network, batch_size, training, str(chosen), torch.get_num_threads())
            asked(way, _turn)
        for turn, way in itertools.product(range(1, repeats + 1), ways):
            turns[way].append(asked(way, _turn))
            say(f"turn {turn} of {repeats}, {way}: {batch_size / turns[way][-1]:,.1f} examples/s")
        ends = {way: asked(way, _end) for way in ways}
    macs = costs(network, batch_size).total.macs + (backward_macs(network, batch_size) if training else 0)
    rate = product_flops_per_second(chosen)
    speeds = [
        Speed(
            way, tuple(batch_size / s for s in turns[way]), 2 * macs / statistics.median(turns[way]) / rate, *ends[way]
        )
        for way in ways
    ]
    not_compiled = cpu.why_not_compiled() if chosen.type == "cpu" else ""
    return Bench(tuple(speeds), rate, describe_hardware(chosen), not_compiled)


_step: Step
_device: torch.device
_convolutions: str
_before_bytes: int


def _begin(way: Way, network: Network, batch_size: int, training: bool, device: str, threads: int) -> None:
    """Make ready, in a process of its own."""
    global _step, _device, _convolutions, _before_bytes
    torch.set_num_threads(threads)
    _device = choose_device(device)
    _before_bytes = _resident_bytes("VmRSS")
    is_ours = way == "vggkit"
    if is_ours:
        use_huge_pages()
        keep_freed_memory(costs(network, batch_size).total.activation_bytes)
    torch.manual_seed(0)
    net: Any = build(network, "torch").to(_device).train(training)
    x = torch.randn(batch_size, network.in_channels, network.image_size, network.image_size, device=_device)
    labels = torch.randint(network.num_classes, (batch_size,), device=_device)
    if way != "PyTorch":
        net.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    fast = accelerate(net)
    _convolutions = _convolved_by(fast) if is_ours else "torch"
    recipe = Recipe.named("d2l")
    if not training:
        forward = fast if is_ours else _as_it_comes(net)
        _step = classifies(forward, x)
    elif is_ours:
        ours = make_optimizer(recipe, net)
        _step = lambda: train_step(fast, ours, x, labels, learning_rate=1e-4)  # noqa: E731
    else:
        plain = _as_it_comes(net)
        theirs = torch.optim.SGD(plain.parameters(), lr=1e-4)
        _step = trains(plain, theirs, x, labels)


def _convolved_by(fast: Accelerated) -> str:
    """What computes the convolutions of the network, and how many of them."""
    names = {name for name, layer in fast.net.named_modules() if isinstance(layer, nn.Conv2d)}
    chosen = [choice.engine for choice in describe_engine(fast) if choice.layer in names]
    return f"compiled, {chosen.count('vggkit')} of {len(chosen)}" if "vggkit" in chosen else "torch"


def _as_it_comes(net: nn.Module) -> nn.Sequential:
    """The same layers one after the other, each as torch runs it."""
    return nn.Sequential(*(module for module in net.modules() if not list(module.children())))


def classifies(net: nn.Module, x: Tensor) -> Step:
    """One forward pass of `net` over `x`."""

    @torch.no_grad()
    def step() -> None:
        with gpu.half(x):
            net(x)

    return step


def trains(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor) -> Step:
    """One training step of `net` on one batch, as a program of PyTorch's writes it."""

    def step() -> None:
        with gpu.half(x):
            loss = F.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _turn() -> float:
    return turn_seconds(_step, _device)


def turn_seconds(step: Step, device: torch.device, steps_at_once: int = 1) -> float:
    """Median seconds of a step, over as many as fit into a turn, 3 times `steps_at_once` at least.

    `device` is waited for after each `steps_at_once`.
    """
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < TURN_SECONDS:
        begin = time.perf_counter()
        for _ in range(steps_at_once):
            step()
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds) / steps_at_once


def _end() -> tuple[int, str]:
    """The peak of memory, and what convolved."""
    if _device.type == "cuda":
        return torch.cuda.max_memory_allocated(_device), _convolutions
    return max(0, _resident_bytes("VmHWM") - _before_bytes), _convolutions


def _resident_bytes(what: str) -> int:
    """Of this process: now (VmRSS) or at most so far (VmHWM); 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(what)), 0)


def product_flops_per_second(device: torch.device) -> float:
    """Operations/s of a large matrix product, by the faster of the libraries that torch brings."""
    n = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    products: list[Callable[[], object]] = [lambda: a @ b]
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    return 2 * n**3 / min(median_seconds(product, device) for product in products)


def median_seconds(function: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Median wall time of `function` after three calls to warm up."""
    for _ in range(3):
        function()
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        begin = time.perf_counter()
        function()
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
