"""Weight files as names, shapes and tensors, whatever wrote them; a header decides nothing, and nothing is unpickled.

safetensors; PyTorch's `.pth`, by `torch.load(weights_only=True)`; NumPy's `.npz`; and HDF5, as Keras writes it.
"""

import math
import pickletools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from vggkit.data.files import why_not_a_file
from vggkit.errors import WeightsError

MAX_TENSORS = 10_000
"""Far above any network that can be built; a file that lists more is refused."""

MAX_CHUNK_VALUES = 2**20
"""Of HDF5, which unpacks a whole chunk for a tensor that may be smaller."""

_LEGACY_PICKLES = 5  # magic number, protocol, system, the state dict, its storages
_STATE_DICT_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor",  # of torchvision's oldest files
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(
        f"{module} {kind}Storage"
        for module in ("torch", "torch.cuda")
        for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int")
    ),
}
"""What a state dict is pickled from. torch's own list is longer: a bytearray of any size is on it."""


@dataclass(frozen=True)
class Container:
    """An open weight file."""

    kind: str
    """`safetensors`, `pth`, `npz` or `hdf5`."""
    shapes: Mapping[str, tuple[int, ...]]
    """What each tensor's header says; nothing is read or allocated yet."""
    read: Callable[[str], Tensor]
    """The tensor of that name, of the shape that its header says."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Of safetensors; empty for the others."""


@contextmanager
def open_container(path: Path) -> Iterator[Container]:
    """The weight file at `path`, told by its first bytes, not by its name.

    Raises:
        WeightsError: in one line that names the file: it is missing, damaged, or holds other things than tensors.
            Also for what `read` meets, and in front of any `WeightsError` raised inside the `with`.
    """
    if found := why_not_a_file(path):
        raise WeightsError(
            f"{path}: expected a weight file, got {found}, try a trained run, a weight file or a name of 'vgg weights'"
        )
    try:
        with ExitStack() as stack:
            container = _whole(_opened, path, stack)
            if len(container.shapes) > MAX_TENSORS:
                raise WeightsError(f"expected at most {MAX_TENSORS} tensors, got {len(container.shapes)}")
            yield replace(container, read=lambda name: _whole(container.read, name))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None


def _whole(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns; whatever it raises is a damaged or hostile file, and these make libraries raise all."""
    try:
        return function(*arguments)
    except WeightsError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsError(f"expected a whole weight file, got: {_printable(reason)}") from None


def _opened(path: Path, stack: ExitStack) -> Container:
    with path.open("rb") as file:
        start = file.read(9)
        if start.endswith(b"{"):  # behind eight bytes of length, which may read like the start of any other kind
            return _safetensors(path, stack)
        if start.startswith(b"\x89HDF\r\n\x1a\n"):
            return _hdf5(path, stack)
        if start.startswith(b"\x80"):  # a pickle, as torch wrote before version 1.6
            file.seek(0)
            for _ in range(_LEGACY_PICKLES):
                _check_pickle(file)
            return _pth(path, mmap=False)
    if start.startswith(b"PK"):
        archive = stack.enter_context(zipfile.ZipFile(path))
        pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
        if not pickles:
            return _npz(archive)
        # torch.save stores; a compressed member could grow to any size.
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise WeightsError("expected a file of torch.save, which compresses nothing, got compressed parts")
        for name in pickles:
            with archive.open(name) as member:
                _check_pickle(member)
        return _pth(path, mmap=True)
    return _safetensors(path, stack)


def _safetensors(path: Path, stack: ExitStack) -> Container:
    file = stack.enter_context(safe_open(path, framework="pt"))
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
    return Container("safetensors", shapes, file.get_tensor, dict(file.metadata() or {}))


def _check_pickle(file: Any) -> None:
    """Read past a pickle, running nothing; raises `WeightsError` if it is made of more than a state dict is."""
    for opcode, argument, _ in pickletools.genops(file):
        is_known = argument in _STATE_DICT_GLOBALS if opcode.name == "GLOBAL" else True
        if not is_known or opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            what = _printable(str(argument)) if argument else opcode.name
            raise WeightsError(f"expected a state dict of tensors alone, got a pickle that asks for {what}")


def _pth(path: Path, mmap: bool) -> Container:
    loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    if not isinstance(loaded, dict):
        raise WeightsError(f"expected a state dict, got {type(loaded).__name__}")
    state = dict.copy(loaded)  # a pickle may have given the object methods of its own
    for name, value in state.items():
        is_plain = type(value) in (Tensor, nn.Parameter) and not value.is_meta and value.layout == torch.strided
        if not isinstance(name, str) or not is_plain:
            raise WeightsError(f"expected a dense tensor under {_printable(str(name))!r}, got {type(value).__name__}")
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    return Container("pth", shapes, lambda name: Tensor.clone(state[name]))  # not a map of a file that may change


def _npz(archive: zipfile.ZipFile) -> Container:
    shapes = {}
    for member in archive.infolist():
        with archive.open(member) as file:
            shape, dtype, header_bytes = _npy_header(file, member.filename)
        _check_dtype(member.filename, dtype)
        if member.file_size != header_bytes + math.prod(shape) * dtype.itemsize:
            raise WeightsError(
                f"expected a whole array as {_printable(member.filename)!r}, got {member.file_size} bytes"
            )
        shapes[member.filename.removesuffix(".npy")] = shape

    def read(name: str) -> Tensor:
        with archive.open(f"{name}.npy") as file:
            return _from_numpy(np.lib.format.read_array(file, allow_pickle=False))

    return Container("npz", shapes, read)


def _npy_header(file: Any, name: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type and bytes of the header of version 1.0, which has at most 65,535; the others have no such bound."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise WeightsError(f"expected an array of .npy version 1.0 as {_printable(name)!r}, got {version}")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype, file.tell()


def _hdf5(path: Path, stack: ExitStack) -> Container:
    try:
        import h5py
    except ImportError:
        raise WeightsError("expected h5py to read HDF5, got no such package, try 'pip install vggkit[keras]'") from None
    datasets: dict[str, Any] = {}
    visited = 0

    def walk(group: Any, layer: str, depth: int) -> None:
        nonlocal visited
        if depth > 5:  # Keras nests three deep
            raise WeightsError(f"expected groups as Keras nests them, got {_printable(group.name)!r}")
        # Keras 3 keeps a layer's name in an attribute; before, the outermost group had it as its own name.
        named = group.attrs.get("name")
        layer = named if isinstance(named, str) else layer
        for key in group:
            visited += 1
            where = f"{group.name.rstrip('/')}/{key}"
            if visited > MAX_TENSORS:
                raise WeightsError(f"expected at most {MAX_TENSORS} groups and tensors, got more")
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):  # a link may lead to any file
                raise WeightsError(f"expected the data of {_printable(where)!r} in this file, got a link")
            item = group[key]
            if isinstance(item, h5py.Group):
                walk(item, layer or key, depth + 1)
                continue
            if item.external or item.is_virtual:
                raise WeightsError(f"expected the data of {_printable(where)!r} in this file, got another's")
            _check_dtype(where, item.dtype)
            if item.chunks and math.prod(item.chunks) > max(item.size, MAX_CHUNK_VALUES):
                raise WeightsError(f"expected chunks no larger than {_printable(where)!r}, got {item.chunks}")
            name = f"{layer}/{'bias' if item.ndim == 1 else 'kernel'}"
            if name in datasets:
                raise WeightsError(f"expected one {name!r}, got a second, {_printable(where)!r}")
            datasets[name] = item

    walk(stack.enter_context(h5py.File(path, "r")), "", 0)
    shapes = {name: tuple(dataset.shape) for name, dataset in datasets.items()}
    return Container("hdf5", shapes, lambda name: _from_numpy(datasets[name][()]))


def _check_dtype(name: str, dtype: np.dtype[Any]) -> None:
    """Before anything is read: a type may be of any size, too."""
    if dtype.kind not in "fi" or dtype.itemsize > 8:
        raise WeightsError(f"expected floats or integers as {_printable(name)!r}, got {_printable(str(dtype))}")


def _from_numpy(array: Any) -> Tensor:
    native = np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(native).reshape(array.shape)


def _printable(text: str) -> str:
    """`text` from a file or an error, short, without what would steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)[:120]
