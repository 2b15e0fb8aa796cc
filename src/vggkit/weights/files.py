"""Weight files to networks and back: vggkit's own, with architecture and metadata, and those of other libraries."""

import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save
from torch import Tensor

from vggkit.data.files import write_whole
from vggkit.data.imagenet import class_names
from vggkit.design.network import network_from_json
from vggkit.errors import ArchitectureError, WeightsError, check_type, shown
from vggkit.networks.baselines import BaselineNetwork, build
from vggkit.networks.vgg import VGG
from vggkit.weights import translation
from vggkit.weights.containers import Stored, open_container
from vggkit.weights.preparation import GUESSED
from vggkit.weights.published import PUBLISHED
from vggkit.weights.surgery import PADDING_KEY, is_folded, pad_with_values, with_head

AnyNetwork = VGG | BaselineNetwork

PIECE_BYTES = 2**20  # small enough to stay in a core's cache between hashing and writing


def save_weights(path: str | os.PathLike[str], net: AnyNetwork, metadata: Mapping[str, str] | None = None) -> None:
    """Write `net`, its architecture as JSON and `metadata` (texts by name) to `path` atomically.

    Raises:
        WeightsError: the folder of `path` is missing, or parameters are not float32.
    """
    check_type(path, str | os.PathLike, "a path to write weights to", "save_weights(path, net)")
    check_type(net, AnyNetwork, "a network of vggkit to save", "save_weights(path, net)")
    check_type(metadata, Mapping | None, "metadata of texts by name", "{'classes': '[...]'}")
    if not all(isinstance(text, str) for text in dict(metadata or {}).values()):
        raise WeightsError(f"expected metadata of texts, got {shown(repr(metadata))}, try json.dumps")
    if Path(path).is_dir() or not Path(path).parent.is_dir():
        raise WeightsError(f"expected a file in a folder that exists, got {shown(path, 500)}, try another path")
    for name, parameter in net.named_parameters():
        if parameter.dtype != torch.float32:
            raise WeightsError(f"expected {name!r} as float32, got {parameter.dtype}, try net.float()")
    tensors = {name: tensor.detach().cpu() for name, tensor in net.state_dict().items()}
    metadata = {**(metadata or {}), "architecture": net.architecture.to_json()}
    write_whole(Path(path), b"".join(safetensors_pieces(tensors, metadata)))


def safetensors_pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """A safetensors file of float32 and int64 tensors on the CPU, in pieces; contiguous tensors are not copied.

    Deterministic, unlike safetensors itself, which writes metadata in a random order.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # for alignment
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        dtype = {torch.float32: "F32", torch.int64: "I64"}[tensors[name].dtype]
        header[name] = {"dtype": dtype, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        content = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(content), PIECE_BYTES):
            yield content[start : start + PIECE_BYTES]


def load_weights(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> tuple[AnyNetwork, dict[str, str]]:
    """The network in a weight file, in evaluation mode, and its metadata.

    Reads files of `save_weights`, and those of other libraries that docs/weights.md lists, recognised by their tensors.
    For the latter, the metadata holds `source`, `classes`, `preprocessing` and `preprocessing_guessed_from`, the source
    with these names. Without a VGG's fully connected layers there are no `classes`; the network gets the head `gap`
    with zeros for one class, and the layers of its blocks can be used.

    Raises:
        WeightsError: names the file and, where applicable, the tensor.
    """
    check_type(path, str | os.PathLike, "the path of a weight file", "load_weights('vgg16.pth')")
    with open_container(path) as (stored, metadata):
        tensors = {plain: stored[name] for plain, name in translation.plain_names(stored).items()}
        try:
            net, metadata = _load_own(tensors, metadata) if "architecture" in metadata else _load_foreign(tensors)
        except ArchitectureError as error:
            raise WeightsError(str(error)) from None
    if Path(path) in {entry.path for entry in PUBLISHED.values()}:
        metadata.pop(GUESSED, None)
    return net.to(device).to(memory_format=torch.channels_last).eval(), metadata  # type: ignore[call-overload]


def save_torchvision(path: str | os.PathLike[str], net: VGG) -> None:
    """Write `net` to a .safetensors or .pth file for torchvision's `load_state_dict`; raises `WeightsError`."""
    path = Path(path)
    if path.suffix not in (".safetensors", ".pth"):
        raise WeightsError(f"expected a .safetensors or .pth file for torchvision's names, got {path}")
    _, tensors = published_as("torchvision", net)
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    write_whole(path, save(tensors) if path.suffix == ".safetensors" else buffer.getvalue())


def published_as(source: Literal["torchvision", "timm"], net: VGG) -> tuple[str, dict[str, Tensor]]:
    """The name of `net` in `source`, and its CPU tensors as `source` has them; raises `WeightsError` if it has none."""
    arch, names = net.architecture, translation.NETWORKS[source]
    state = with_head(net, translation.HEADS[source]).state_dict() if arch.head != "gap" else {}
    sizes = {key: value.numel() for key, value in state.items()}  # together with the biases' they determine the shapes
    options = {"in_channels": arch.in_channels, "num_classes": arch.num_classes}
    for name in names:
        table = translation.entries(source, translation.architecture_of(source, name, **options))
        if {key: math.prod(entry.shape) for key, entry in table.items()} == sizes:
            return name, {
                entry.name: state[key].detach().cpu().reshape(entry.shape).contiguous() for key, entry in table.items()
            }
    folded = " with folded preprocessing" if is_folded(net) else ""
    raise WeightsError(
        f"expected one of {source}'s networks ({', '.join(names)}) with its layers fc6 to fc8 and "
        f"nothing folded in, got {arch.name}{folded}"
    )


def _load_own(tensors: dict[str, Stored], metadata: dict[str, str]) -> tuple[AnyNetwork, dict[str, str]]:
    with torch.device("meta"):
        net = build(network_from_json(metadata["architecture"]), init="torch")
        if isinstance(net, VGG) and PADDING_KEY in tensors:
            pad_with_values(net)
    table = {name: translation.Entry(name, tuple(tensor.shape)) for name, tensor in net.state_dict().items()}
    net.load_state_dict(_read_tensors(tensors, table, net.architecture.name), assign=True)
    return net, metadata


def _load_foreign(tensors: dict[str, Stored]) -> tuple[VGG, dict[str, str]]:
    preprocessing, first = None, tensors.get("classifier.0.bias")
    if first is not None and first.read().isnan().all():  # torchvision's IMAGENET1K_FEATURES
        tensors = {name: stored for name, stored in tensors.items() if not name.startswith("classifier.")}
        preprocessing = translation.FEATURES_ONLY
    match = translation.match_source({name: stored.shape for name, stored in tensors.items()})
    if match is None:
        few = ", ".join(sorted(tensors)[:3]) or "none"
        raise WeightsError(
            f"expected the tensors of vggkit, {', '.join(translation.SOURCES)}, got {shown(few)}, "
            "try save_weights for a network of vggkit, the state dict alone for another one"
        )
    source, arch = match.source, match.architecture
    if source == "keras" and arch.head == "gap":  # a custom top, which is not a VGG's, is ignored
        tensors = {name: stored for name, stored in tensors.items() if name.startswith("block")}
    state = _read_tensors(tensors, match.table, f"{source}/{arch.name}")
    with torch.device("meta"):
        net = VGG(arch, init="torch")
    missing = {key: torch.zeros(t.shape, dtype=t.dtype) for key, t in net.state_dict().items() if key not in state}
    net.load_state_dict(state | missing, assign=True)
    classes = class_names(arch.num_classes) if arch.head != "gap" else []
    metadata = {"source": f"{source}/{arch.name}", "classes": json.dumps(classes)}
    if arch.in_channels in (1, 3):
        preprocessing = preprocessing or translation.preprocessing_of(source, arch.image_size)
        metadata |= {"preprocessing": preprocessing.for_channels(arch.in_channels).to_json(), GUESSED: source}
    return net, metadata


def _read_tensors(
    tensors: Mapping[str, Stored], table: Mapping[str, translation.Entry], network: str
) -> dict[str, Tensor]:
    """The tensors of `table` in vggkit's names, shapes and types; raises `WeightsError` unless all fit."""
    expected = {entry.name for entry in table.values()}
    optional = {name for name in expected if name.endswith(translation.OPTIONAL_SUFFIX)}
    for name in sorted((expected ^ tensors.keys()) - optional):
        if name in expected:
            raise WeightsError(f"expected the tensors of {network}, got no '{shown(name)}', try a whole file of it")
        raise WeightsError(f"expected the tensors of {network}, got '{shown(name)}' too, try a file without it")
    for entry in table.values():
        if entry.name in tensors and (got := tensors[entry.name].shape) != entry.shape:
            raise WeightsError(f"expected '{shown(entry.name)}' of shape {entry.shape}, got {got}")
    return {key: entry.to_ours(_read_tensor(tensors, entry.name)).contiguous() for key, entry in table.items()}


def _read_tensor(tensors: Mapping[str, Stored], name: str) -> Tensor:
    """A tensor as int64 if it is a counter, otherwise as finite float32."""
    if name.endswith(translation.OPTIONAL_SUFFIX):
        return tensors[name].read().long() if name in tensors else torch.tensor(0)
    tensor = tensors[name].read()
    if not tensor.is_floating_point():
        raise WeightsError(f"expected '{shown(name)}' as floats, got {tensor.dtype}, try one without quantization")
    tensor = tensor.float()
    # The sum needs a single pass, but may overflow.
    if not (tensor.sum().isfinite() or tensor.isfinite().all()):
        raise WeightsError(f"expected finite values as '{shown(name)}', got NaN or infinite ones, try another copy")
    return tensor


def metadata_list(metadata: Mapping[str, str], key: str) -> list[str]:
    """The list of printable texts under `key` in `metadata`, as JSON; raises `WeightsError` for anything else."""
    try:
        value = json.loads(metadata[key])
    except (KeyError, ValueError, RecursionError):
        value = None
    if not isinstance(value, list) or not all(isinstance(item, str) and item.isprintable() for item in value):
        got = shown(metadata.get(key, "none"))
        raise WeightsError(f"expected a list of printable texts as {key!r} in the metadata, got {got}")
    return value
