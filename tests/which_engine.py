"""Whether this machine has the compiled kernels, and turning from them to others."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from vggkit.engines import kernels
from vggkit.engines.cpu import why_not_compiled
from vggkit.errors import KernelError

NO_KERNELS = why_not_compiled()
needs_kernels = pytest.mark.skipif(bool(NO_KERNELS), reason=NO_KERNELS)
COMPILED = pytest.param("compiled", marks=needs_kernels)
NARROW = pytest.param(
    "narrow",
    marks=pytest.mark.skipif(
        bool(NO_KERNELS) or platform.machine() != "x86_64", reason=NO_KERNELS or "AVX-512 is of x86 processors"
    ),
)


def no_library():
    raise KernelError("turned off by the test")


@contextmanager
def chosen(name: str) -> Iterator[None]:
    """Within, `name` computes: `compiled`, `narrow` (compiled as for a processor without AVX-512) or `torch`."""
    with pytest.MonkeyPatch.context() as patch:
        if name == "narrow":
            patch.setattr(kernels, "FLAGS", (*kernels.FLAGS, "-mno-avx512f"))
        forget()
        if name == "torch":
            patch.setattr(kernels, "library", no_library)
        try:
            yield
        finally:
            patch.undo()
            forget()


def forget() -> None:
    kernels.library.cache_clear()
    why_not_compiled.cache_clear()


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Within, torch computes with `number` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
