"""The compiled kernels, `winograd.cpp` and `fully_connected.cpp`, built at first use if there is a C++ compiler.

The library is cached under a name that depends on source, compiler and processor, since machines may share a home
folder. It computes in the threads of torch's OpenMP.
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vggkit.data.files import user_cache, write_all, write_whole
from vggkit.errors import KernelError, one_line

FOLDER = Path(__file__).parent
SOURCES = sorted(FOLDER.glob("*.cpp"))
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp")
COMPILERS = ("g++", "c++", "clang++")
MAX_LIBRARY_BYTES = 2**20
LANES = 16  # float32 in the widest vector register; numbers of channels must be a multiple of it
MAX_CHANNELS = 65536  # length of the zeros that the kernels read outside a map

_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int, "l": ctypes.c_long}
_ARGUMENTS = {
    "convolve": "ppi iiiii plll i pp ii pp iii",
    "weight_gradient": "p ppi iiiii pp iii",
    "fully_connected": "ppipp ill p i",
    "sparse_product": "pll pll lll ppp i",
}


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernels, built if missing or damaged in the user's cache; raises `KernelError`."""
    try:
        cxx = shlex.split(os.environ.get("CXX", ""))
        compilers = [cxx] if cxx else [[name] for name in COMPILERS if os.name == "posix" and shutil.which(name)]
        if not compilers:
            raise KernelError(f"expected a Unix with a C++ compiler, got none of {', '.join(COMPILERS)}")
        folder = _private_folder(user_cache() / "kernels")
        paths = {folder / _library_name(compiler): compiler for compiler in compilers}
        return _load(next(filter(None, map(_cached_library, paths)), None) or _build(folder, paths))
    except KernelError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no home folder; ValueError: a quote in CXX
        raise KernelError(f"expected a compiler and a cache for the kernels, got: {one_line(error)[:200]}") from None


def _private_folder(path: Path) -> Path:
    """`path` without links, created if missing; raises `KernelError` if others can exchange its content.

    Folders are checked from the root down, so that nobody else can rename one that is checked.
    """
    path = Path(os.path.realpath(path))
    for folder in (*reversed(path.parents), path):
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        forbidden_mode = 0o002 if _is_private_group(status.st_gid) else 0o022
        if status.st_mode & stat.S_ISVTX and folder != path:
            forbidden_mode = 0  # sticky, as /tmp: others cannot rename its entries
        is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid in (os.geteuid(), Path("/").stat().st_uid)
        if not is_ours or status.st_mode & forbidden_mode:
            raise KernelError(f"expected a folder that only you can write, got {folder}, try chmod go-w")
    return path


def _is_private_group(number: int) -> bool:
    """Whether a group is the user's private one, which the umask of many systems lets write."""
    import grp
    import pwd

    with suppress(KeyError):
        return grp.getgrgid(number)[::3] == (pwd.getpwuid(os.geteuid()).pw_name, [])
    return False


def _library_name(compiler: list[str]) -> str:
    """The file name of the library for this source, compiler and processor."""
    version = subprocess.run([*compiler, "--version"], stdin=subprocess.DEVNULL, capture_output=True).stdout
    processor = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else platform.processor()
    lines = re.findall("^(?:model name|flags|Features|CPU implementer|CPU part).*", processor, re.MULTILINE)
    texts = (*FLAGS, *compiler, platform.platform(), *sorted(set(lines or [processor])))
    code = [path.read_bytes() for path in (*SOURCES, FOLDER / "kernels.h")]
    digest = hashlib.sha256(b"\0".join([*code, version, *(text.encode() for text in texts)]))
    return f"kernels-{digest.hexdigest()[:32]}.so"


def _cached_library(path: Path) -> bytes:
    """The library at `path`, which follows its digest; empty if missing, damaged or another user's."""
    with suppress(OSError), os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status, digest, code = os.fstat(file.fileno()), file.read(32), file.read()
        if (status.st_uid, status.st_mode & 0o022, digest) == (os.geteuid(), 0, hashlib.sha256(code).digest()):
            return code
    return b""


def _build(folder: Path, compilers: dict[Path, list[str]]) -> bytes:
    """Build the library by the first compiler that can, and store it at its path; raises `KernelError`, `OSError`."""
    for path, compiler in compilers.items():
        with tempfile.TemporaryDirectory(dir=folder) as build_folder:
            built = Path(build_folder, path.name)
            built.write_bytes(bytes(MAX_LIBRARY_BYTES))  # fails on a full disk, before the compiler does
            command = [*compiler, *FLAGS, *map(str, SOURCES), "-o", str(built)]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            code = b"" if done.returncode else built.read_bytes()
        if any(code):
            write_whole(path, hashlib.sha256(code).digest() + code)
            return code
        output = done.stderr[:200] or (f"exit code {done.returncode}" if done.returncode else "no library")
        reason = next((line for line in done.stderr.splitlines() if "error" in line), output)
    raise KernelError(f"expected {' '.join(compiler)} to build the kernels, got: {reason[:300]}")


def _load(code: bytes) -> ctypes.CDLL:
    """Load the verified bytes, not the file again, and declare the arguments of the functions."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("vggkit-kernels")  # stays open: dlopen caches by name
        write_all(descriptor, code)
        kernels = ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    else:
        with tempfile.NamedTemporaryFile(suffix=".so", buffering=0) as file:  # private to the user
            file.write(code)
            kernels = ctypes.CDLL(file.name)
    for name, types in _ARGUMENTS.items():
        function = getattr(kernels, f"vggkit_{name}")
        function.argtypes = [_TYPES[letter] for letter in types.replace(" ", "")]
        function.errcheck = _raise_memory_error
    return kernels


def _raise_memory_error(has_failed: int, function: Any, _arguments: Any) -> None:
    if has_failed:
        raise MemoryError(f"{function.__name__} got no memory for what it keeps in the cache")


def can_read(*tensors_and_shapes: tuple[Tensor | None, tuple[int, ...]]) -> bool:
    """Whether the kernels can read each tensor, unless None: strided float32 on the CPU of the given shape.

    Subclasses of `Tensor`, and what pruning or conversion puts in its place, cannot be read.
    """
    return all(
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.shape == shape
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.layout == torch.strided
        and not tensor.is_neg()
        for tensor, shape in tensors_and_shapes
        if tensor is not None
    )


def convolve(
    x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None, relu: bool, pool: bool, keeps_codes: bool
) -> tuple[Tensor, Tensor | None]:
    """`pool(relu(scale * conv(x, weight) + bias))` of a 3x3 convolution with stride and padding 1 and a 2x2 max pool.

    `x` (images, inputs, height, width) and `weight` (outputs, inputs, 3, 3) are float32; outputs are a multiple of 16,
    and inputs too unless they are at most 4. `scale` and `bias` are (outputs,).

    Returns the output, channels last, and if `keeps_codes`, for the backward pass, the position of each pooled value in
    its window: uint8, 0 to 3 by rows, or 4 if ReLU made it zero.
    """
    x, weight = channels_last(x), channels_last(weight)
    scale, bias = (None if tensor is None else tensor.contiguous() for tensor in (scale, bias))
    (images, inputs, height, width), outputs = x.shape, len(weight)
    y = _empty(x, (images, outputs, height // 2, width // 2) if pool else (images, outputs, height, width))
    codes = torch.empty_like(y, dtype=torch.uint8) if pool and keeps_codes else None
    sizes = (images, height, width, inputs, outputs)
    weights = (_address(weight), 1, 9 * inputs, inputs, False)
    tail = (_address(scale), _address(bias), relu, pool, _address(y), _address(codes))
    library().vggkit_convolve(_address(x), *_gate_arguments(None), *sizes, *weights, *tail, *_schedule(*sizes))
    return y, codes


def input_gradient(dy: Tensor, gate: Tensor | None, weight: Tensor, height: int, width: int) -> Tensor:
    """The gradient of the height x width input of `convolve` from that of its output; all channels last.

    `gate` says where gradients pass: the output of a ReLU, the codes of a pool, or None for everywhere.
    """
    images, (outputs, inputs) = len(dy), weight.shape[:2]
    dx = _empty(dy, (images, inputs, height, width))
    sizes = (images, height, width, outputs, inputs)
    weights, tail = (_address(weight), 9 * inputs, 1, inputs, True), (None, None, False, False, _address(dx), None)
    library().vggkit_convolve(_address(dy), *_gate_arguments(gate), *sizes, *weights, *tail, *_schedule(*sizes))
    return dx


def weight_gradient(x: Tensor, dy: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradients of `weight` and `bias` of `convolve`, from that of its output; see `input_gradient`."""
    (images, inputs, height, width), outputs = x.shape, dy.shape[1]
    sizes = (images, height, width, inputs, outputs)
    groups = -(-inputs // GROUP) * -(-outputs // GROUP)
    # A function of the shape, so that sums do not depend on the number of threads.
    splits = max(1, min(WEIGHT_TASKS // groups, images * height * width // PIXELS_PER_SPLIT))
    dw, db = x.new_empty(splits, outputs, 3, 3, inputs), x.new_zeros(splits, outputs)
    how = (splits, GROUP, torch.get_num_threads())
    library().vggkit_weight_gradient(
        _address(x), _address(dy), *_gate_arguments(gate), *sizes, _address(dw), _address(db), *how
    )
    dw, db = (dw.sum(dim=0), db.sum(dim=0)) if splits > 1 else (dw[0], db[0])
    return dw.permute(0, 3, 1, 2), db


def fully_connected(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None = None) -> Tensor:
    """`(x @ weight.T) * scale + bias` for few images.

    `x` (images, inputs), `bias` and `scale` (outputs,) are float32; `weight` (outputs, inputs) is float32, bfloat16 or
    int8.
    """
    (images, inputs), outputs = x.shape, len(weight)
    x, weight, bias = x.contiguous(), weight.contiguous(), None if bias is None else bias.contiguous()
    y = x.new_empty(images, outputs)
    weights = (_address(weight), weight.itemsize, _address(scale), _address(bias))
    library().vggkit_fully_connected(
        _address(x), *weights, images, inputs, outputs, _address(y), torch.get_num_threads()
    )
    return y


def sparse_product(a: Tensor, b: Tensor) -> Tensor | None:
    """`a @ b` of float32 matrices; None unless `a` has enough zeros (from ReLU and dropout) for it to be faster."""
    (rows, depth), columns = a.shape, b.shape[1]
    if min(rows, depth) < MIN_DEPTH or columns < MIN_COLUMNS or not can_read((a, a.shape), (b, (depth, columns))):
        return None
    sample = a[::8]
    if int(sample.count_nonzero()) > MAX_DENSITY * sample.numel():
        return None
    c, entries = a.new_empty(rows, columns), a.new_empty(rows, depth, 2)
    ends = torch.empty(rows, depth // MIN_DEPTH + 1, dtype=torch.int32, device=a.device)
    work = (_address(entries), _address(ends), _address(c), torch.get_num_threads())
    library().vggkit_sparse_product(_address(a), *a.stride(), _address(b), *b.stride(), rows, depth, columns, *work)
    return c


MAX_DENSITY, MIN_DEPTH, MIN_COLUMNS = 0.4, 32, 1024
"""Where `sparse_product` is faster than oneDNN's product; the measurements are in `docs/decisions.md`."""
PANEL = 32  # a task computes a multiple of this many outputs; the kernel computes 32 or 16 at a time
GROUP, WEIGHT_TASKS, PIXELS_PER_SPLIT = 64, 32, 4096


def _schedule(images: int, height: int, width: int, inputs: int, outputs: int) -> tuple[int, int, int]:
    """Chunks of tiles, outputs of a task, and threads: equal tasks, at least one for each thread."""
    threads = torch.get_num_threads()
    tiles = images * -(-height // 4) * -(-width // 4)
    chunks = -(-tiles // max(32, min(126, 2**15 // inputs)))
    chunks = min(tiles, -(-chunks // threads) * threads) if tiles >= 32 * threads else chunks
    panels = -(-outputs // PANEL)
    return chunks, -(-panels // min(panels, -(-threads // chunks))) * PANEL, threads


def channels_last(x: Tensor) -> Tensor:
    """`x` with its channels contiguous in memory."""
    return x if x.permute(0, 2, 3, 1).is_contiguous() else x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _gate_arguments(gate: Tensor | None) -> tuple[int | None, int]:
    """The address of a gate, and its kind in `winograd.cpp`: 0 open, 1 relu, 2 pool."""
    return _address(gate), 0 if gate is None else 2 if gate.dtype == torch.uint8 else 1


def _empty(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An uninitialised channels_last tensor of the type and device of `like`."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
