"""The engines that a machine has, and turning from one to another."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from vggkit.engines import kernels
from vggkit.engines.convolution import engine

try:
    kernels.library()
    NO_KERNELS = ""
except kernels.KernelError as error:
    NO_KERNELS = str(error)

needs_kernels = pytest.mark.skipif(bool(NO_KERNELS), reason=NO_KERNELS)
COMPILED = pytest.param("compiled", marks=needs_kernels)
NARROW = pytest.param(
    "narrow",
    marks=pytest.mark.skipif(
        bool(NO_KERNELS) or platform.machine() != "x86_64", reason=NO_KERNELS or "AVX-512 is of x86 processors"
    ),
)


@contextmanager
def chosen(name: str) -> Iterator[None]:
    """Within, `name` computes; `narrow` is compiled as for a processor without AVX-512."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VGGKIT_ENGINE", "compiled" if name == "narrow" else name)
        if name == "narrow":
            patch.setattr(kernels, "FLAGS", (*kernels.FLAGS, "-mno-avx512f"))
        forget()
        try:
            yield
        finally:
            forget()


def forget() -> None:
    kernels.library.cache_clear()
    engine.cache_clear()


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Within, torch computes with `number` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
