"""The processes of a run, as torchrun starts them: rank, collectives and data-parallel training."""

import ctypes
import datetime
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from vggkit.engines.accelerate import Accelerated
from vggkit.errors import LostError, RunError
from vggkit.training.hardware import choose_device
from vggkit.training.recipe import Compression

JOIN_SECONDS = 120  # timeout for the processes to start, which may import torch from a slow disk
SETUP_SECONDS = 600  # timeout before the first step, while data and weights are read
STEP_SECONDS = 25  # timeout in a step, after which the run ends with an error

POWERSGD_RANK = 4
POWERSGD_START_STEP = 10  # uncompressed steps at the start: torch requires at least 2, until its buckets are final

_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Team:
    """The processes of a run, seen from one of them."""

    device: torch.device
    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None  # for the collectives of a step, with a short timeout
    setup_group: dist.ProcessGroup | None = None  # for the collectives before the first step

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def sum_(self, values: Tensor) -> Tensor:
        """Sum `values` over all processes, in place, and return them."""
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def from_leader(self, value: _Value) -> _Value:
        """The leader's `value`, in every process."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0, group=self.setup_group, device=self.device)
        return values[0]

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite `tensors` by the leader's values, in place."""
        for tensor in tensors if self.size > 1 else ():
            dist.broadcast(tensor, src=0, group=self.group)

    def wait(self) -> None:
        """Wait for all processes with the long timeout: the leader may be writing a file."""
        if self.size > 1:
            dist.barrier(group=self.setup_group)

    def data_parallel(self, net: Accelerated, compression: Compression) -> nn.Module:
        """`net` with a backward pass that averages gradients over all processes; `net` itself for one process."""
        if self.size == 1:
            return net
        parallel = DistributedDataParallel(net, process_group=self.group, gradient_as_bucket_view=True)
        _settle_buckets(parallel, net)
        if compression == "bf16":
            parallel.register_comm_hook(self.group, _bf16)
        elif compression == "powersgd":
            state = powerSGD_hook.PowerSGDState(
                self.group, matrix_approximation_rank=POWERSGD_RANK, start_powerSGD_iter=POWERSGD_START_STEP
            )
            on_gpu = self.device.type == "cuda"
            parallel.register_comm_hook(state, powerSGD_hook.powerSGD_hook if on_gpu else powersgd_over_gloo)
        return parallel


def _settle_buckets(parallel: DistributedDataParallel, net: Accelerated) -> None:
    """Make torch form its final buckets now instead of after the first step.

    The order in which the gradients of three or more processes are added depends on the buckets, so the first step of
    a resumed run must have those of an unbroken run.
    """
    training = [module.training for module in net.modules()]
    architecture = net.net.architecture
    shape = (architecture.in_channels, architecture.image_size, architecture.image_size)
    net.eval()  # without dropout and batch statistics
    parallel(next(net.parameters()).new_zeros(1, *shape)).sum().backward()
    for module, was_training in zip(net.modules(), training, strict=True):
        module.training = was_training


def _bf16(group: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """Torch's hook under another name: torch refuses its own with gloo, which supports bfloat16 too."""
    return default_hooks.bf16_compress_hook(group, bucket)


def powersgd_over_gloo(state: powerSGD_hook.PowerSGDState, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """Torch's hook, awaited: otherwise gloo's threads start its later all-reduces in any order of the buckets."""
    future = powerSGD_hook.powerSGD_hook(state, bucket)
    future.wait()
    return future


@contextmanager
def join_team(device: str | None) -> Iterator[Team]:
    """Join the processes that torchrun started; without torchrun, the team is this process alone.

    `device` is as for `choose_device`; with several processes, `cuda` or None is each one's own GPU.

    Raises:
        RunError: the device does not exist, or is one GPU for several processes.
        LostError: another process has ended, or timed out.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Team(choose_device(device))
        return
    if device is not None and ":" in device:
        raise RunError(f"expected cpu or cuda with {size} processes, which have a GPU each, got {device!r}")
    if device == "cuda" or (device is None and torch.cuda.is_available()):
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    chosen = choose_device(device or "cpu")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    join, setup, step = (datetime.timedelta(seconds=s) for s in (JOIN_SECONDS, SETUP_SECONDS, STEP_SECONDS))
    try:
        if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
            # SIGTERM when torchrun is killed, which would leave its processes behind.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        store, rank, size = next(rendezvous("env://", timeout=join))
        # After a restart, torchrun's store still holds the addresses of the earlier processes.
        store = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=join)
        groups = [dist.new_group(timeout=timeout, backend=backend) for timeout in (step, setup)]
        yield Team(chosen, rank, size, *groups)
        # Not after an error: others may wait in a collective, which fails when this process ends.
        dist.destroy_process_group()
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or re.search("gloo|pair closure", str(error))):
            raise
        first_line = str(error).strip().partition("\n")[0]
        without_place = re.sub(r".*\[\S+\.\w+:\d+\] *", "", first_line)
        cause = without_place.partition(". ")[0].rstrip(".")  # and without advice
        raise LostError(f"lost the other processes: {cause}") from error
