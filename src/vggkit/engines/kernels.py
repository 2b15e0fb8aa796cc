"""The compiled kernels, `winograd.cpp` and `fully_connected.cpp`: built at first use where there is a C++ compiler.

The library is kept in the user's cache, under a name that the source, the compiler and the processor decide: a home
folder may be seen by many machines. It computes in the threads of torch's own OpenMP.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import secrets
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from vggkit.data.files import user_cache
from vggkit.errors import KernelError

FOLDER = Path(__file__).parent
SOURCES = ("winograd.cpp", "fully_connected.cpp")
HEADERS = ("kernels.h",)
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp")
COMPILERS = ("g++", "c++", "clang++")
COMPILE_SECONDS = 120
LANES = 16
"""What the numbers of channels must be a multiple of: a vector register holds at most so many float32."""
MAX_CHANNELS = 65536
"""As many zeros there are to read outside a map."""

Gate = Literal["open", "relu", "pool"]
_GATES: dict[Gate, int] = {"open": 0, "relu": 1, "pool": 2}
_Pointer, _Int, _Long = ctypes.c_void_p, ctypes.c_int, ctypes.c_long


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled convolutions, built unless they are in the user's cache.

    Raises:
        KernelError: there is no compiler, it fails, or the library does not load.
    """
    if os.name != "posix":
        raise KernelError(f"expected a system with dlopen, got {platform.system()}")
    found = [[name] for name in COMPILERS if shutil.which(name)]
    if os.environ.get("CXX"):
        found = [shlex.split(os.environ["CXX"])]
    error = KernelError(f"expected a C++ compiler, got none of {', '.join(COMPILERS)}")
    for compiler in found:
        try:
            return _typed(_loaded(compiler, _cached(compiler)))
        except KernelError as wrong:
            error = wrong
        except (OSError, RuntimeError, IndexError) as wrong:  # RuntimeError: there is no home folder
            error = KernelError(f"expected {' '.join(compiler)} to build the kernels, got: {str(wrong)[:200]}")
    raise error


def _typed(kernels: ctypes.CDLL) -> ctypes.CDLL:
    """The library, whose functions know their arguments."""
    maps, ints = [_Pointer] * 2 + [_Int], [_Int] * 5
    sums = [_Pointer] * 2
    kernels.vggkit_convolve.argtypes = [
        *maps, *ints, _Pointer, *[_Long] * 3, _Int, *[_Pointer] * 2, _Int, _Int, *[_Pointer] * 2, *[_Int] * 3
    ]  # fmt: skip
    kernels.vggkit_convolve_image.argtypes = [
        _Pointer, *ints, *[_Pointer] * 3, _Int, _Int, *[_Pointer] * 2, _Int
    ]  # fmt: skip
    kernels.vggkit_weight_gradient.argtypes = [_Pointer, *maps, *ints, *sums, *[_Int] * 3]
    kernels.vggkit_weight_gradient_image.argtypes = [_Pointer, *maps, *ints, *sums, *[_Int] * 2]
    kernels.vggkit_fully_connected.argtypes = [*[_Pointer] * 3, _Int, _Long, _Long, _Pointer, _Int]
    for function in ("convolve", "convolve_image", "weight_gradient", "weight_gradient_image", "fully_connected"):
        getattr(kernels, f"vggkit_{function}").restype = _Int
        getattr(kernels, f"vggkit_{function}").errcheck = _check
    return kernels


def _check(lacked_memory: int, function: Any, _arguments: Any) -> None:
    if lacked_memory:
        raise MemoryError(f"{function.__name__} got no memory for what it keeps in the cache")


def _loaded(compiler: list[str], path: Path) -> ctypes.CDLL:
    """The library at `path`, built unless it is there and whole; raises `KernelError` and `OSError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for owned in (path.parent, path):
        if owned.exists() and (owned.stat().st_uid != os.geteuid() or owned.stat().st_mode & 0o022):
            raise KernelError(f"expected what only you own and can write, got {owned}, try deleting it")
    if path.exists():
        with contextlib.suppress(OSError):  # damaged: built again
            return ctypes.CDLL(str(path))
    _build(compiler, path)
    return ctypes.CDLL(str(path))


def _cached(compiler: list[str]) -> Path:
    """Where the library for this source, compiler and processor is; raises `KernelError` and `OSError`."""
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=COMPILE_SECONDS).stdout
    except subprocess.SubprocessError as error:
        raise KernelError(f"expected a C++ compiler, got: {str(error)[:200]}") from None
    texts = (*FLAGS, *compiler, platform.platform(), *sorted(_processor()))
    code = [(FOLDER / name).read_bytes() for name in (*SOURCES, *HEADERS)]
    digest = hashlib.sha256(b"\0".join([*code, version, *(text.encode() for text in texts)]))
    return user_cache() / "kernels" / f"kernels-{digest.hexdigest()[:32]}.so"


def _processor() -> set[str]:
    """What says which instructions there are, on x86 and on ARM."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else [platform.processor()]
    names = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return {line for line in lines if line.startswith(names)} or set(lines[:1])


def _build(compiler: list[str], path: Path) -> None:
    """Compile the library to `path`, whole or not at all; raises `KernelError` and `OSError`."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        command = [*compiler, *FLAGS, *[str(FOLDER / name) for name in SOURCES], "-o", str(temporary)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
        if done.returncode:
            wrong = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            raise KernelError(f"expected {' '.join(compiler)} to build the kernels, got: {wrong[:300]}")
        temporary.chmod(0o700)
        with temporary.open("rb") as library:
            os.fsync(library.fileno())  # a name without its content would be loaded, and end the process
        temporary.replace(path)
    except subprocess.SubprocessError as error:
        raise KernelError(f"expected {' '.join(compiler)} to build the kernels, got: {str(error)[:200]}") from None
    finally:
        temporary.unlink(missing_ok=True)


def is_watched() -> bool:
    """Whether somebody watches or transforms torch's operators, of which the kernels are none.

    torch.compile, jit, torch.func, forward-mode derivatives, dispatch modes and autocast do.
    """
    return bool(
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or forward_ad._current_level >= 0
    )


def can_read(*given: tuple[Tensor | None, tuple[int, ...]]) -> bool:
    """Whether the kernels, which read memory that they are not told of, may be given these tensors, if not None.

    Each comes with the shape that it must have. What is not what it seems (a subclass of a tensor, one that was pruned,
    moved, converted or stored in another way) is torch's.
    """
    return all(
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.shape == shape
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.layout == torch.strided
        and not tensor.is_neg()
        for tensor, shape in given
        if tensor is not None
    )


def convolve(
    x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None, relu: bool, pool: bool, is_kept: bool
) -> tuple[Tensor, Tensor | None]:
    """`pool(relu(scale * conv(x, weight) + bias))`, a 3x3 convolution with stride and padding 1.

    Args:
        x: float32 (images, inputs, height, width), channels last; inputs are a multiple of 16, or at most 4.
        weight: float32 (outputs, inputs, 3, 3), channels last; outputs are a multiple of 16.
        scale: float32 (outputs,).
        bias: float32 (outputs,).
        relu: whether to cut off what is negative.
        pool: whether to take the maximum of each whole 2x2 window.
        is_kept: whether a backward pass will want to know where the maxima were.

    Returns:
        The output, channels last, and for a pool whose backward pass may come the place of each maximum in its
        window, 0 to 3 by rows, or 4 where ReLU cut it off: uint8, as the output.
    """
    images, inputs, height, width = x.shape
    outputs = weight.shape[0]
    shape = (images, outputs, height // 2, width // 2) if pool else (images, outputs, height, width)
    y = _empty(x, shape)
    codes = torch.empty_like(y, dtype=torch.uint8) if pool and is_kept else None
    sizes = (images, height, width, inputs, outputs)
    tail = (_at(scale), _at(bias), relu, pool, _at(y), _at(codes))
    if inputs % LANES:
        library().vggkit_convolve_image(_at(x), *sizes, _at(weight), *tail, torch.get_num_threads())
    else:
        strides = (1, 9 * inputs, inputs)
        library().vggkit_convolve(_at(x), None, 0, *sizes, _at(weight), *strides, False, *tail, *_schedule(*sizes))
    return y, codes


def input_gradient(dy: Tensor, gate: Tensor | None, kind: Gate, weight: Tensor, height: int, width: int) -> Tensor:
    """The gradient of the input of `convolve`, of height x width, from that of its output."""
    images, (outputs, inputs) = len(dy), weight.shape[:2]
    dx = _empty(dy, (images, inputs, height, width))
    sizes = (images, height, width, outputs, inputs)
    arguments = (_at(weight), 9 * inputs, 1, inputs, True, None, None, False, False, _at(dx), None, *_schedule(*sizes))
    library().vggkit_convolve(_at(dy), _at(gate), _GATES[kind], *sizes, *arguments)
    return dx


def weight_gradient(x: Tensor, dy: Tensor, gate: Tensor | None, kind: Gate) -> tuple[Tensor, Tensor]:
    """The gradients of `weight` and `bias` of `convolve`, from that of its output."""
    images, inputs, height, width = x.shape
    outputs = dy.shape[1]
    sizes = (images, height, width, inputs, outputs)
    groups = -(-inputs // GROUP) * -(-outputs // GROUP)
    # By the shape alone, so that the sums are the same for any number of threads.
    splits = max(1, min(WEIGHT_TASKS // groups, images * height * width // PIXELS_PER_SPLIT))
    dw, db = x.new_empty(splits, outputs, 3, 3, inputs), x.new_zeros(splits, outputs)
    arguments = (_at(x), _at(dy), _at(gate), _GATES[kind], *sizes, _at(dw), _at(db), splits)
    if inputs % LANES:
        library().vggkit_weight_gradient_image(*arguments, torch.get_num_threads())
    else:
        library().vggkit_weight_gradient(*arguments, GROUP, torch.get_num_threads())
    dw, db = (dw.sum(dim=0), db.sum(dim=0)) if splits > 1 else (dw[0], db[0])
    return dw.permute(0, 3, 1, 2), db


def fully_connected(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias` of float32 (images, inputs), (outputs, inputs) and (outputs,), for few images."""
    (images, inputs), outputs = x.shape, len(weight)
    x, weight = x.contiguous(), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    y = torch.empty((images, outputs), dtype=x.dtype, device=x.device)
    sizes = (images, inputs, outputs)
    library().vggkit_fully_connected(_at(x), _at(weight), _at(bias), *sizes, _at(y), torch.get_num_threads())
    return y


PANEL = 32
"""Outputs that a task has a multiple of; the kernel computes so many, or half of them, at a time."""
GROUP = 64
WEIGHT_TASKS = 32
PIXELS_PER_SPLIT = 4096


def _schedule(images: int, height: int, width: int, inputs: int, outputs: int) -> tuple[int, int, int]:
    """Chunks of tiles, outputs of a task, and threads: a task for each thread or more, all of them alike."""
    threads = torch.get_num_threads()
    tiles = images * -(-height // 4) * -(-width // 4)
    chunks = -(-tiles // max(32, min(126, 2**15 // inputs)))
    chunks = min(tiles, -(-chunks // threads) * threads) if tiles >= 32 * threads else chunks
    panels = -(-outputs // PANEL)
    groups = min(panels, -(-threads // chunks))
    return chunks, -(-panels // groups) * PANEL, threads


def _empty(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Channels last, of the type and device of `like`, whatever the process's defaults are."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
