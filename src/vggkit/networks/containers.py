"""Weight files as names, shapes and tensors, whatever wrote them; a header decides nothing, and nothing is unpickled.

safetensors; PyTorch's `.pth`, by `torch.load(weights_only=True)`; NumPy's `.npz`; and HDF5, as Keras writes it.
"""

import pickle  # for the name of its error alone
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vggkit.data.files import why_not_a_file

MAX_TENSORS = 10_000
"""Far above any network that can be built; a file that lists more is refused."""


class WeightsError(ValueError):
    """A weight file that is missing, damaged, or of no known kind; the message is one line."""


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
        WeightsError: in one line that names the file: it is missing, damaged, too new, or holds other things than
            tensors. Also for what `read` meets inside the `with`.
    """
    if found := why_not_a_file(path):
        raise WeightsError(f"{path}: expected a weight file, got {found}")
    try:
        with ExitStack() as stack:
            yield _opened(path, stack)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except (SafetensorError, OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: expected a whole weight file, got: {_printable(reason)}") from None


def _opened(path: Path, stack: ExitStack) -> Container:
    with path.open("rb") as file:
        start = file.read(9)
    if start.endswith(b"{"):  # behind eight bytes of length, which may read like the start of any other kind
        return _safetensors(path, stack)
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return _hdf5(path, stack)
    if start.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        if any(member.filename.endswith("data.pkl") for member in members):
            # torch.save stores; a compressed member could grow to any size.
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise WeightsError("expected a file of torch.save, which compresses nothing, got compressed parts")
            return _pth(path, mmap=True)
        return _npz(path, stack)
    if start.startswith(b"\x80"):  # a pickle, as torch wrote before version 1.6
        return _pth(path, mmap=False)
    return _safetensors(path, stack)


def _safetensors(path: Path, stack: ExitStack) -> Container:
    file = stack.enter_context(safe_open(path, framework="pt"))
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
    return Container("safetensors", _checked(shapes), file.get_tensor, dict(file.metadata() or {}))


def _pth(path: Path, mmap: bool) -> Container:
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # the restricted unpickler raises almost anything for a hostile file
        # What UnpicklingError says is how to load it unrestricted, which we never do.
        reason = (
            "" if isinstance(error, pickle.UnpicklingError) else f": {_printable(str(error).partition(chr(10))[0])}"
        )
        raise WeightsError(f"expected a whole file of tensors, got objects or damage{reason}") from None
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"expected a state dict, got {type(loaded).__name__}")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise WeightsError(f"expected a dense tensor under {_printable(str(name))!r}, got {type(value).__name__}")
    return Container(
        "pth", _checked({name: tuple(value.shape) for name, value in loaded.items()}), lambda name: loaded[name].clone()
    )


def _npz(path: Path, stack: ExitStack) -> Container:
    archive = stack.enter_context(zipfile.ZipFile(path))
    shapes = {}
    for member in archive.namelist():
        with archive.open(member) as file:
            try:
                version = np.lib.format.read_magic(file)
                header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = header(file)
            except ValueError as error:
                raise WeightsError(
                    f"expected an array as {_printable(member)!r}, got: {_printable(str(error))}"
                ) from None
        if dtype.hasobject:
            raise WeightsError(f"expected numbers as {_printable(member)!r}, got Python objects")
        shapes[member.removesuffix(".npy")] = shape

    def read(name: str) -> Tensor:
        with archive.open(f"{name}.npy") as file:
            try:
                array = np.lib.format.read_array(file, allow_pickle=False)
            except ValueError as error:
                raise WeightsError(f"expected a whole array as {name!r}, got: {error}") from None
        return _from_numpy(name, array)

    return Container("npz", _checked(shapes), read)


def _hdf5(path: Path, stack: ExitStack) -> Container:
    try:
        import h5py
    except ImportError:
        raise WeightsError("expected h5py to read HDF5, got no such package, try 'pip install vggkit[keras]'") from None
    datasets: dict[str, Any] = {}

    def walk(group: Any, layer: str, depth: int) -> None:
        if depth > 5:  # Keras nests three deep
            raise WeightsError(f"expected groups as Keras nests them, got {_printable(group.name)!r}")
        # Keras 3 keeps a layer's name in an attribute; before, the outermost group had it as its own name.
        named = group.attrs.get("name")
        layer = named if isinstance(named, str) else layer
        for key in group:
            kind = group.get(key, getlink=True)
            where = f"{group.name.rstrip('/')}/{key}"
            if not isinstance(kind, h5py.HardLink):  # a link may lead to any file
                raise WeightsError(f"expected the data of {_printable(where)!r} in this file, got a link")
            item = group[key]
            if isinstance(item, h5py.Group):
                walk(item, layer or key, depth + 1)
                continue
            if item.external or item.is_virtual:
                raise WeightsError(f"expected the data of {_printable(where)!r} in this file, got another's")
            name = f"{layer}/{'bias' if item.ndim == 1 else 'kernel'}"
            if name in datasets:
                raise WeightsError(f"expected one {name!r}, got a second, {_printable(where)!r}")
            datasets[name] = item

    walk(stack.enter_context(h5py.File(path, "r")), "", 0)
    shapes = {name: tuple(dataset.shape) for name, dataset in datasets.items()}
    return Container("hdf5", _checked(shapes), lambda name: _from_numpy(name, datasets[name][()]))


def _from_numpy(name: str, array: Any) -> Tensor:
    if array.dtype.kind not in "fi":
        raise WeightsError(f"expected numbers as {name!r}, got {array.dtype}")
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)))


def _checked(shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[int, ...]]:
    if len(shapes) > MAX_TENSORS:
        raise WeightsError(f"expected at most {MAX_TENSORS} tensors, got {len(shapes)}")
    return shapes


def _printable(text: str) -> str:
    """`text` from a file or an error, short, without what would steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)[:120]
