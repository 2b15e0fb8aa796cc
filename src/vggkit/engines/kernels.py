"""The compiled kernels, `winograd.cpp` and `fully_connected.cpp`, built at first use if there is a C++ compiler.

The library is kept in the user's cache under a name that the source, the compiler and the processor determine: one home
folder may serve many machines. It computes in the threads of torch's own OpenMP.
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
ROOM_BYTES = 2**20
"""More than the library takes."""
LANES = 16
"""What the numbers of channels must be a multiple of: a vector register holds at most this many float32."""
MAX_CHANNELS = 65536
"""The kernels have this many zeros to read outside a map."""

_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int, "l": ctypes.c_long}
_ARGUMENTS = {
    "convolve": "ppi iiiii plll i pp ii pp iii",
    "weight_gradient": "p ppi iiiii pp iii",
    "fully_connected": "ppipp ill p i",
    "sparse_product": "pll pll lll ppp i",
}


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernels, built if the user's cache does not have them whole.

    Raises:
        KernelError: there is no compiler, or it fails; the cache has no room, or others can write there.
    """
    try:
        named = shlex.split(os.environ.get("CXX", ""))
        compilers = [named] if named else [[name] for name in COMPILERS if os.name == "posix" and shutil.which(name)]
        if not compilers:
            raise KernelError(f"expected a Unix with a C++ compiler, got none of {', '.join(COMPILERS)}")
        folder = _private_folder(user_cache() / "kernels")
        paths = {folder / _name(compiler): compiler for compiler in compilers}
        return _loaded(next(filter(None, map(_code, paths)), None) or _build(folder, paths))
    except KernelError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no home folder; ValueError: a quote in CXX
        raise KernelError(f"expected a compiler and a cache for the kernels, got: {one_line(error)[:200]}") from None


def _private_folder(path: Path) -> Path:
    """`path` without links, created if missing; raises `KernelError` if others can exchange what is in it.

    Each folder is checked before the one inside it, whose name nobody else can then give to something else.
    """
    path = Path(os.path.realpath(path))
    for folder in (*reversed(path.parents), path):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        others = 0o002 if _is_own_group(found.st_gid) else 0o022
        if found.st_mode & stat.S_ISVTX and folder != path:
            others = 0  # as in /tmp, where nobody can rename what is another's
        is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid in (os.geteuid(), Path("/").stat().st_uid)
        if not is_ours or found.st_mode & others:
            raise KernelError(f"expected a folder that only you can write, got {folder}, try chmod go-w")
    return path


def _is_own_group(number: int) -> bool:
    """Whether a group is the private one that many systems give each user, and let write by their umask."""
    import grp
    import pwd

    with suppress(KeyError):
        return grp.getgrgid(number)[::3] == (pwd.getpwuid(os.geteuid()).pw_name, [])
    return False


def _name(compiler: list[str]) -> str:
    """The name of the library for this source, compiler and processor."""
    version = subprocess.run([*compiler, "--version"], stdin=subprocess.DEVNULL, capture_output=True).stdout
    processor = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else platform.processor()
    lines = re.findall("^(?:model name|flags|Features|CPU implementer|CPU part).*", processor, re.MULTILINE)
    texts = (*FLAGS, *compiler, platform.platform(), *sorted(set(lines or [processor])))
    code = [path.read_bytes() for path in (*SOURCES, FOLDER / "kernels.h")]
    digest = hashlib.sha256(b"\0".join([*code, version, *(text.encode() for text in texts)]))
    return f"kernels-{digest.hexdigest()[:32]}.so"


def _code(path: Path) -> bytes:
    """The library that stands at `path` behind its digest; empty if missing, damaged or somebody else's."""
    with suppress(OSError), os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        found, digest, code = os.fstat(file.fileno()), file.read(32), file.read()
        if (found.st_uid, found.st_mode & 0o022, digest) == (os.geteuid(), 0, hashlib.sha256(code).digest()):
            return code
    return b""


def _build(folder: Path, compilers: dict[Path, list[str]]) -> bytes:
    """The library, compiled by the first compiler that can, and stored at its path; raises `KernelError`, `OSError`."""
    for path, compiler in compilers.items():
        with tempfile.TemporaryDirectory(dir=folder) as made:
            built = Path(made, path.name)
            built.write_bytes(bytes(ROOM_BYTES))  # a full disk is found before anything is compiled
            command = [*compiler, *FLAGS, *map(str, SOURCES), "-o", str(built)]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            code = b"" if done.returncode else built.read_bytes()
        if any(code):
            write_whole(path, hashlib.sha256(code).digest() + code)
            return code
        told = done.stderr[:200] or (f"exit code {done.returncode}" if done.returncode else "no library")
        wrong = next((line for line in done.stderr.splitlines() if "error" in line), told)
    raise KernelError(f"expected {' '.join(compiler)} to build the kernels, got: {wrong[:300]}")


def _loaded(code: bytes) -> ctypes.CDLL:
    """The library, whose functions know their arguments: what was checked is loaded, and no name of a file."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("vggkit-kernels")  # stays open: dlopen knows by the name what is loaded already
        write_all(descriptor, code)
        kernels = ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    else:
        with tempfile.NamedTemporaryFile(suffix=".so", buffering=0) as file:  # which the user alone can read
            file.write(code)
            kernels = ctypes.CDLL(file.name)
    for name, types in _ARGUMENTS.items():
        function = getattr(kernels, f"vggkit_{name}")
        function.argtypes = [_TYPES[letter] for letter in types.replace(" ", "")]
        function.errcheck = _check
    return kernels


def _check(lacked_memory: int, function: Any, _arguments: Any) -> None:
    if lacked_memory:
        raise MemoryError(f"{function.__name__} got no memory for what it keeps in the cache")


def can_read(*given: tuple[Tensor | None, tuple[int, ...]]) -> bool:
    """Whether the kernels can read the memory of these tensors, each given with the shape that it must have, or None.

    They cannot read a subclass of a tensor, nor one that was pruned, moved, converted or stored in another way.
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
    """`pool(relu(scale * conv(x, weight) + bias))` of a 3x3 convolution with stride and padding 1 and a 2x2 max pool.

    `x` (images, inputs, height, width) and `weight` (outputs, inputs, 3, 3) are float32; outputs are a multiple of 16,
    and inputs too unless they are at most 4. `scale` and `bias` are (outputs,).

    Returns the output, channels last, and if `is_kept` says that a backward pass will ask for it, the place of each
    pooled value in its window: uint8, 0 to 3 by rows, or 4 if ReLU cut it off.
    """
    x, weight = channels_last(x), channels_last(weight)
    scale, bias = (None if tensor is None else tensor.contiguous() for tensor in (scale, bias))
    (images, inputs, height, width), outputs = x.shape, len(weight)
    y = _empty(x, (images, outputs, height // 2, width // 2) if pool else (images, outputs, height, width))
    codes = torch.empty_like(y, dtype=torch.uint8) if pool and is_kept else None
    sizes = (images, height, width, inputs, outputs)
    weights = (_at(weight), 1, 9 * inputs, inputs, False)
    tail = (_at(scale), _at(bias), relu, pool, _at(y), _at(codes))
    library().vggkit_convolve(_at(x), *_gate(None), *sizes, *weights, *tail, *_schedule(*sizes))
    return y, codes


def input_gradient(dy: Tensor, gate: Tensor | None, weight: Tensor, height: int, width: int) -> Tensor:
    """The gradient of the input of `convolve`, of height x width, from that of its output; all channels last.

    `gate` says where gradients pass: the output of a ReLU, the places that a pool kept, or None for everywhere.
    """
    images, (outputs, inputs) = len(dy), weight.shape[:2]
    dx = _empty(dy, (images, inputs, height, width))
    sizes = (images, height, width, outputs, inputs)
    weights, tail = (_at(weight), 9 * inputs, 1, inputs, True), (None, None, False, False, _at(dx), None)
    library().vggkit_convolve(_at(dy), *_gate(gate), *sizes, *weights, *tail, *_schedule(*sizes))
    return dx


def weight_gradient(x: Tensor, dy: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradients of `weight` and `bias` of `convolve`, from that of its output; see `input_gradient`."""
    (images, inputs, height, width), outputs = x.shape, dy.shape[1]
    sizes = (images, height, width, inputs, outputs)
    groups = -(-inputs // GROUP) * -(-outputs // GROUP)
    # By the shape alone, so that the sums are the same for any number of threads.
    splits = max(1, min(WEIGHT_TASKS // groups, images * height * width // PIXELS_PER_SPLIT))
    dw, db = x.new_empty(splits, outputs, 3, 3, inputs), x.new_zeros(splits, outputs)
    how = (splits, GROUP, torch.get_num_threads())
    library().vggkit_weight_gradient(_at(x), _at(dy), *_gate(gate), *sizes, _at(dw), _at(db), *how)
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
    weights = (_at(weight), weight.itemsize, _at(scale), _at(bias))
    library().vggkit_fully_connected(_at(x), *weights, images, inputs, outputs, _at(y), torch.get_num_threads())
    return y


def sparse_product(a: Tensor, b: Tensor) -> Tensor | None:
    """`a @ b` of float32 matrices, or None unless `a` has so many zeros (as ReLU and dropout leave) that it pays."""
    (rows, depth), columns = a.shape, b.shape[1]
    if min(rows, depth) < MIN_DEPTH or columns < MIN_COLUMNS or not can_read((a, a.shape), (b, (depth, columns))):
        return None
    some = a[::8]
    if int(some.count_nonzero()) > MAX_DENSITY * some.numel():
        return None
    c, entries = a.new_empty(rows, columns), a.new_empty(rows, depth, 2)
    ends = torch.empty(rows, depth // MIN_DEPTH + 1, dtype=torch.int32, device=a.device)
    work = (_at(entries), _at(ends), _at(c), torch.get_num_threads())
    library().vggkit_sparse_product(_at(a), *a.stride(), _at(b), *b.stride(), rows, depth, columns, *work)
    return c


MAX_DENSITY, MIN_DEPTH, MIN_COLUMNS = 0.4, 32, 1024
"""Where `sparse_product` is faster than oneDNN's product; the measurements are in `docs/decisions.md`."""
PANEL = 32
"""Outputs that a task has a multiple of; the kernel computes so many, or half of them, at a time."""
GROUP, WEIGHT_TASKS, PIXELS_PER_SPLIT = 64, 32, 4096


def _schedule(images: int, height: int, width: int, inputs: int, outputs: int) -> tuple[int, int, int]:
    """Chunks of tiles, outputs of a task, and threads: a task for each thread or more, all of them alike."""
    threads = torch.get_num_threads()
    tiles = images * -(-height // 4) * -(-width // 4)
    chunks = -(-tiles // max(32, min(126, 2**15 // inputs)))
    chunks = min(tiles, -(-chunks // threads) * threads) if tiles >= 32 * threads else chunks
    panels = -(-outputs // PANEL)
    return chunks, -(-panels // min(panels, -(-threads // chunks))) * PANEL, threads


def channels_last(x: Tensor) -> Tensor:
    """`x`, with its channels side by side in memory."""
    return x if x.permute(0, 2, 3, 1).is_contiguous() else x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _gate(gate: Tensor | None) -> tuple[int | None, int]:
    """Where a gate lies, and the number of its kind in `winograd.cpp`: open, relu, pool."""
    return _at(gate), 0 if gate is None else 2 if gate.dtype == torch.uint8 else 1


def _empty(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Channels last, of the type and device of `like`, whatever the process's defaults are."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
