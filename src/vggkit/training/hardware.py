"""The device of a run: choosing and describing it, and memory allocation on a CPU."""

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
    """The device called `name`, by default a CUDA GPU, else Apple's GPU, else the CPU; raises `RunError`."""
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
        hint = close if close and close != name.partition(":")[0] else "cpu"
        raise RunError(f"expected a device of this machine, got {shown(repr(name))} ({reason}), try {hint}") from None
    return device


def describe_hardware(device: torch.device) -> str:
    """The name of `device` for a report of measurements, with threads and instruction set for a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*: (.*\S)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    model = match[1] if match else platform.processor() or platform.machine()
    if device.type == "mps":
        return f"{model}, mps"
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'s' * (threads > 1)}, {capability}"


def use_huge_pages() -> None:
    """Ask torch for 2 MiB pages: at 224 pixels page faults otherwise take half of a CPU step.

    torch reads the variable once, at its first tensor; later calls have no effect.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed_memory(activation_bytes: int) -> None:
    """Let glibc keep the memory that a step frees, instead of mapping and zeroing it again in the next one.

    Only if the activations of a step are small: kept memory counts as used.
    """
    if activation_bytes < KEPT_MEMORY_BYTES and sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
