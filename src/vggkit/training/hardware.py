"""The device that a run is on: which one, what it is called, and how a process gets memory on a CPU."""

import contextlib
import ctypes
import os
import platform
import re
import sys
from pathlib import Path

import torch

from vggkit.errors import RunError, nearest, shown

KEPT_MEMORY_BYTES = 2**30
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def choose_device(name: str | None) -> torch.device:
    """The device called `name`; None for the first CUDA GPU, else Apple's GPU, else the CPU.

    Raises:
        RunError: this machine has no such device.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device("cuda:0" if name == "cuda" else name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = re.split(r"[.:] |\n", str(error))[0][:120]
        close = nearest(name, ("cpu", "cuda", "mps"))
        known = close if close and close != name.partition(":")[0] else "cpu"
        raise RunError(f"expected a device of this machine, got {shown(repr(name))} ({reason}), try {known}") from None
    return device


def describe_hardware(device: torch.device) -> str:
    """What a figure measured on `device` was measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*\S)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    model = named[1] if named else platform.processor() or platform.machine()
    if device.type == "mps":
        return f"{model}, mps"
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'s' * (threads > 1)}, {capability}"


def use_huge_pages() -> None:
    """Ask torch for 2 MiB pages: at 224 pixels half of a CPU step is otherwise spent on page faults.

    torch reads the variable once, at the first tensor; where that has been made, nothing changes.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed_memory(activation_bytes: int) -> None:
    """Let glibc keep what a step frees for the next step, which otherwise maps, zeroes and unmaps it anew.

    Only where the activations of a step are small: kept memory is memory used.
    """
    if activation_bytes < KEPT_MEMORY_BYTES and sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
