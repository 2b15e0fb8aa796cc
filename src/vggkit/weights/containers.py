"""Weight files of any format as names, shapes and tensors. No code in a file is run; no header is trusted.

Formats: safetensors; PyTorch's `.pth`, by `torch.load(weights_only=True)`; NumPy's `.npz`; Keras's HDF5 and `.keras`;
the blocks of an ONNX file.
"""

import io
import math
import os
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from vggkit.data.files import why_not_a_file
from vggkit.data.samples import IMAGE_SUFFIXES
from vggkit.errors import WeightsError, shown
from vggkit.weights.onnx import onnx_arrays

MAX_TENSORS = 10_000  # far above any network that can be built
MAX_VALUES = 2**28
"""In all tensors of a file, or its size in bytes if that is more; twice VGG-19. Compression, HDF5's fill values and
strides of 0 let a file of a few kilobytes ask for any amount of memory."""

MAX_CHUNK_VALUES = 2**20  # in an HDF5 chunk, which is decompressed whole even if the tensor is smaller
MAX_GROUP_DEPTH = 5  # in HDF5: Keras nests three deep, and five if a network is a layer of another
_KERAS_WEIGHTS = "model.weights.h5"  # in a `.keras` file, which is a zip archive
_KERAS_OPTIMIZERS = ("/optimizer", "/optimizer_weights")  # HDF5 groups with the state of the optimizer
_KERAS_NETWORKS = ("model_weights", "vgg16", "vgg19")  # HDF5 groups of layers in files from before Keras 3
NETWORK_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
"""Keys of the network in checkpoints with several state dicts."""

_LEGACY_PICKLES = 5  # magic number, protocol, system, the state dict, its storages
_NUMBERS = ("Float", "Half", "BFloat16", "Double", "Long", "Int")
_STATE_DICT_GLOBALS = {
    *("collections OrderedDict", "torch Size", "torch device"),
    "collections Counter",  # the milestones of a learning rate schedule
    "torch._utils _rebuild_tensor",  # of torchvision's oldest files
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"{module} {kind}Storage" for module in ("torch", "torch.cuda") for kind in _NUMBERS),
}
"""The globals that a pickle may use. torch's own list is longer, and includes a bytearray of any size."""

_MARKUP = {b"<": "a web page or another text in HTML or XML", b"{": "a text in JSON", b"[": "a text in JSON"}


class Stored(NamedTuple):
    """A tensor in an open weight file."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@contextmanager
def open_container(path: str | os.PathLike[str]) -> Iterator[tuple[dict[str, Stored], dict[str, str]]]:
    """Open the weight file at `path`, whose first bytes decide the format.

    Yields:
        The tensors by name, not read yet, and the metadata, which only safetensors has.

    Raises:
        WeightsError: the file is missing, damaged, or holds something else than tensors. The file is named, also in a
            `WeightsError` from the body of the `with`.
    """
    path = Path(path)
    try:
        if reason := why_not_a_file(path):
            tries = "'vgg runs' for runs, 'vgg weights' for names of published weights"
            raise WeightsError(f"expected a run or a weight file, got {reason}, try {tries}")
        if path.name.lower().endswith(IMAGE_SUFFIXES):
            raise WeightsError("expected a run or a weight file, got an image, try the model first, then the images")
        with ExitStack() as stack:
            tensors, metadata = _guarded(_open_format, path, stack)
            if len(tensors) > MAX_TENSORS:
                raise WeightsError(f"expected at most {MAX_TENSORS} tensors, got {len(tensors)}")
            num_values = sum(math.prod(stored.shape) for stored in tensors.values())
            if num_values > (limit := max(MAX_VALUES, path.stat().st_size)):
                raise WeightsError(f"expected at most {limit:,} values in a file of this size, got {num_values:,}")
            yield (
                {name: stored._replace(read=partial(_guarded, stored.read)) for name, stored in tensors.items()},
                metadata,
            )
    except WeightsError as error:
        raise WeightsError(f"{shown(path, limit=200)}: {error}") from None


def _guarded(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function` with any exception, which a damaged file may cause in a library, turned into `WeightsError`."""
    try:
        return function(*arguments)
    except WeightsError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsError(f"expected a whole weight file, got: {shown(reason, limit=120)}, try another copy") from None


def _open_format(path: Path, stack: ExitStack) -> tuple[dict[str, Stored], dict[str, str]]:
    with path.open("rb") as file:
        start = file.read(64)
        # First, since a safetensors file starts with eight arbitrary bytes, its length.
        if start[7:9] == b"\0{":
            return _safetensors(path, stack)
        if description := _describe_other_file(start):
            raise WeightsError(f"expected a weight file, got {description}")
        if start.startswith(b"\x89HDF\r\n\x1a\n"):
            return _hdf5(path, stack), {}
        if start.startswith(b"\x80"):  # a pickle, as torch wrote before version 1.6
            file.seek(0)
            for _ in range(_LEGACY_PICKLES):
                _check_pickle(file)
            return _pth(path, mmap=False), {}
    if start.startswith(b"\x08"):  # the version that an ONNX file begins with
        arrays = onnx_arrays(path.read_bytes())
        return {name: Stored(array.shape, partial(_from_numpy, array)) for name, array in arrays.items()}, {}
    if not start.startswith(b"PK"):
        return _safetensors(path, stack)
    archive = stack.enter_context(zipfile.ZipFile(path))
    pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
    is_keras = _KERAS_WEIGHTS in archive.namelist()
    if not pickles and not is_keras:
        return _npz(archive), {}
    # Neither compresses; a compressed member could expand to any size.
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        what = "Keras" if is_keras else "torch.save"
        raise WeightsError(f"expected a file of {what}, which compresses nothing, got compressed parts")
    if is_keras:
        return _hdf5(io.BytesIO(archive.read(_KERAS_WEIGHTS)), stack), {}
    for name in pickles:
        with archive.open(name) as member:
            _check_pickle(member)
    return _pth(path, mmap=True), {}


def _describe_other_file(start: bytes) -> str | None:
    """What a file without weights is according to its first bytes, and what to try; None if it may have weights."""
    text = start.removeprefix(b"\xef\xbb\xbf").strip()
    if text.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, try 'git lfs pull' where it came from"
    is_text = text.isascii() and text.decode().replace("\n", "").isprintable()
    what = "an empty file" if not text else _MARKUP.get(text[:1]) or (f"the text '{shown(text)}'" if is_text else "")
    return f"{what}, try downloading the file itself" if what else None


def _safetensors(path: Path, stack: ExitStack) -> tuple[dict[str, Stored], dict[str, str]]:
    file = stack.enter_context(safe_open(path, framework="pt"))
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
    tensors = {name: Stored(shape, partial(file.get_tensor, name)) for name, shape in shapes.items()}
    return tensors, dict(file.metadata() or {})


def _check_pickle(file: Any) -> None:
    """Read a pickle without running it; raises `WeightsError` if it uses more than a state dict needs."""
    for opcode, argument, _ in pickletools.genops(file):
        is_known = argument in _STATE_DICT_GLOBALS if opcode.name == "GLOBAL" else True
        if not is_known or opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            what = shown(str(argument)) if argument else opcode.name
            raise WeightsError(
                f"expected a state dict of tensors alone, got a pickle that asks for {what}, "
                "try torch.save(net.state_dict(), path) where it was made"
            )


def _pth(path: Path, mmap: bool) -> dict[str, Stored]:
    state = _state_dict(torch.load(path, map_location="cpu", weights_only=True, mmap=mmap))
    # Cloned, as the mapped file may change.
    return {name: Stored(tuple(value.shape), partial(Tensor.clone, value)) for name, value in state.items()}


def _state_dict(loaded: object) -> dict[str, Tensor]:
    """The state dict in a result of `torch.load`: the object itself, or a dict at any depth of a checkpoint."""
    state_dicts: dict[str, dict[str, Tensor]] = {}
    todo, seen, first_other = [("", loaded)], set[int](), ""
    while todo:
        where, value = todo.pop()
        if not isinstance(value, dict) or id(value) in seen:  # a dict can contain itself
            continue
        seen.add(id(value))
        items = dict.copy(value)  # a subclass may override methods
        others = [(name, v) for name, v in items.items() if type(v) not in (Tensor, nn.Parameter)]
        if items and not others and all(isinstance(name, str) for name in items):
            state_dicts.setdefault(where, items)
        elif others:
            first_other = first_other or f": '{shown(str(others[0][0]))}' is a {type(others[0][1]).__name__}"
            todo += [(name, v) for name, v in others if isinstance(name, str)]
    if len(state_dicts) == 1:
        return next(iter(state_dicts.values()))
    for key in NETWORK_KEYS:
        if key in state_dicts:
            return state_dicts[key]
    names = shown(", ".join(sorted(state_dicts)))
    got = f"several: {names}" if state_dicts else f"a {type(loaded).__name__}{first_other}"
    raise WeightsError(f"expected a state dict of tensors, got {got}, try torch.save(net.state_dict(), path)")


def _npz(archive: zipfile.ZipFile) -> dict[str, Stored]:
    def read(member: zipfile.ZipInfo) -> Tensor:
        with archive.open(member) as file:
            return _from_numpy(np.lib.format.read_array(file, allow_pickle=False))

    tensors = {}
    for member in archive.infolist():
        name = shown(member.filename)
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):  # headers of other versions are not limited to 65,535 bytes
                raise WeightsError(f"expected an array of .npy version 1.0 as '{name}', got {version}")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            _check_dtype(name, dtype)
            if member.file_size != file.tell() + math.prod(shape) * dtype.itemsize:
                raise WeightsError(f"expected an array of {shape} as '{name}', got {member.file_size} bytes")
        tensors[member.filename.removesuffix(".npy")] = Stored(shape, partial(read, member))
    return tensors


def _hdf5(file: Path | io.BytesIO, stack: ExitStack) -> dict[str, Stored]:
    try:
        import h5py
    except ImportError:
        raise WeightsError("expected h5py to read HDF5, got no such package, try pip install 'vggkit[keras]'") from None
    tensors: dict[str, Stored] = {}
    # Not visititems, which crashes on groups that are nested ten thousand deep.
    todo, num_visited = [(stack.enter_context(h5py.File(file, "r")), "", 0)], 0
    while todo:
        group, layer, depth = todo.pop()
        # Keras 3 keeps a layer's name in an attribute; before, the outermost group had the layer's name.
        name = group.attrs.get("name")
        layer = name if isinstance(name, str) else layer
        for key in group:
            num_visited += 1
            where = shown(f"{group.name.rstrip('/')}/{key}")
            if num_visited > MAX_TENSORS or depth > MAX_GROUP_DEPTH:  # hard links allow any number of paths
                raise WeightsError(f"expected groups and tensors as Keras nests them, got '{where}' among others")
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):  # other links may lead to any file
                raise WeightsError(f"expected the data of '{where}' in this file, got a link")
            if where in _KERAS_OPTIMIZERS:
                continue
            if not isinstance(group[key], h5py.Dataset):
                todo.append((group[key], layer or key * (key not in _KERAS_NETWORKS), depth + 1))
                continue
            name = f"{layer}/{'bias' if group[key].ndim == 1 else 'kernel'}"
            if name in tensors:
                raise WeightsError(f"expected one '{shown(name)}', got a second, '{where}'")
            tensors[name] = _dataset(group[key], where)
    return tensors


def _dataset(dataset: Any, where: str) -> Stored:
    if dataset.external or dataset.is_virtual:
        raise WeightsError(f"expected the data of '{where}' in this file, got another's")
    _check_dtype(where, dataset.dtype)
    if dataset.chunks and math.prod(dataset.chunks) > max(dataset.size, MAX_CHUNK_VALUES):
        raise WeightsError(f"expected chunks no larger than '{where}', got {dataset.chunks}")
    return Stored(tuple(dataset.shape), lambda: _from_numpy(dataset[()]))


def _check_dtype(name: str, dtype: np.dtype[Any]) -> None:
    """Raise `WeightsError` unless values are numbers of at most 8 bytes; one of another type may have any size."""
    if dtype.kind not in "fi" or dtype.itemsize > 8:
        raise WeightsError(f"expected floats or integers as '{name}', got {shown(str(dtype))}")


def _from_numpy(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
