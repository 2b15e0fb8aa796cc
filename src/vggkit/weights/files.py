"""Weight files: ours, with all in the metadata that it takes to use them, and everybody else's."""

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from vggkit.data.files import write_whole
from vggkit.data.imagenet import class_names
from vggkit.design.network import Network, network_from_json
from vggkit.errors import ArchitectureError, WeightsError
from vggkit.networks.baselines import BaselineNetwork, build
from vggkit.networks.vgg import VGG
from vggkit.weights.containers import Container, open_container
from vggkit.weights.surgery import PADDING_KEY, is_folded, pad_with_values, with_head
from vggkit.weights.translation import (
    NETWORKS,
    OPTIONAL_SUFFIX,
    SOURCES,
    architecture_of,
    best_match,
    channels_and_classes,
    entries,
    preprocessing_of,
)

__all__ = ["WeightsError", "load_weights", "metadata_list", "save_torchvision", "save_weights"]

AnyNetwork = VGG | BaselineNetwork

PIECE_BYTES = 2**20
"""What is hashed and written together stays in a core's cache between the two."""


def save_weights(path: Path, net: AnyNetwork, metadata: Mapping[str, str]) -> None:
    """Write `net` and `metadata` (texts by name) to `path`, whole or not at all.

    The metadata gets `architecture`, as JSON, beside what is given.

    Raises:
        WeightsError: the parameters are not float32, which is what a file holds.
    """
    for name, parameter in net.named_parameters():
        if parameter.dtype != torch.float32:
            raise WeightsError(f"expected {name!r} as float32, got {parameter.dtype}, try net.float()")
    tensors = {name: tensor.detach().cpu() for name, tensor in net.state_dict().items()}
    write_whole(path, weights_bytes(tensors, net.architecture, metadata))


def weights_bytes(tensors: Mapping[str, Tensor], architecture: Network, metadata: Mapping[str, str]) -> bytes:
    """What `save_weights` writes, for the state dict of a network, on the CPU."""
    return b"".join(safetensors_pieces(tensors, {**metadata, "architecture": architecture.to_json()}))


def safetensors_pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The safetensors file of float32 and int64 tensors on the CPU, without a copy of those that are contiguous.

    Equal tensors and metadata are equal files; safetensors itself writes metadata in a random order.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # so all are aligned
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


def load_weights(path: Path, device: str | torch.device = "cpu") -> tuple[AnyNetwork, dict[str, str]]:
    """The network in a weight file, in evaluation mode, and its metadata.

    Takes what `save_weights` wrote, and the VGG networks of torchvision and timm (`.pth`, `.safetensors`), Keras
    Applications (HDF5, with the top) and Caffe (a state dict or `.npz` under Caffe's layer names). Which it is, its
    own tensors say. For these, the metadata holds `source`, `classes` and `preprocessing` as their publisher has them.

    The network is built without memory first, and compared with the tensors that the file really has, so that no
    header decides what is allocated.

    Raises:
        WeightsError: one line that names the file, and the key where there is one.
    """
    with open_container(path) as container:
        try:
            if "architecture" in container.metadata:
                net, metadata = _ours(container)
            else:
                net, metadata = _translated(container)
        except ArchitectureError as error:
            raise WeightsError(str(error)) from None
    return net.to(device).to(memory_format=torch.channels_last).eval(), metadata  # type: ignore[call-overload]


def save_torchvision(path: Path, net: VGG) -> None:
    """Write the weights of `net` under torchvision's names, for its own `load_state_dict`: .safetensors or .pth.

    Raises:
        WeightsError: torchvision has no such network, or `path` has another suffix.
    """
    arch = net.architecture
    if path.suffix not in (".safetensors", ".pth"):
        raise WeightsError(f"expected a .safetensors or .pth file for torchvision's names, got {path}")
    names = NETWORKS["torchvision"]
    adaptive = with_head(net, "adaptive").state_dict() if arch.head != "gap" else {}
    expected = [architecture_of("torchvision", name, arch.in_channels, arch.num_classes) for name in names]
    match = next((other for other in expected if (other.blocks, other.norm) == (arch.blocks, arch.norm)), None)
    table = entries("torchvision", match) if match is not None else {}
    if {key: tuple(value.shape) for key, value in adaptive.items()} != {k: entry.shape for k, entry in table.items()}:
        folded = " with folded preprocessing" if is_folded(net) else ""
        raise WeightsError(
            f"expected one of torchvision's networks ({', '.join(names)}) with its layers fc6 to fc8 and "
            f"nothing folded in, got {arch.name}{folded}"
        )
    tensors = {entry.name: adaptive[key].detach().cpu().contiguous() for key, entry in table.items()}
    if path.suffix == ".safetensors":
        write_whole(path, save(tensors))
    else:
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        write_whole(path, buffer.getvalue())


def _ours(container: Container) -> tuple[AnyNetwork, dict[str, str]]:
    with torch.device("meta"):
        net = build(network_from_json(container.metadata["architecture"]), init="torch")
        if isinstance(net, VGG) and PADDING_KEY in container.shapes:
            pad_with_values(net)
    expected = net.state_dict()
    _check(container, {name: tuple(tensor.shape) for name, tensor in expected.items()})
    tensors = {name: container.read(name) for name in expected}
    for name, tensor in tensors.items():
        if tensor.dtype != expected[name].dtype:
            raise WeightsError(f"expected {name!r} as {expected[name].dtype}, got {tensor.dtype}")
    net.load_state_dict(tensors, assign=True)
    return net, dict(container.metadata)


def _translated(container: Container) -> tuple[VGG, dict[str, str]]:
    match = best_match(container.shapes)
    if match is None:
        few = ", ".join(repr(name[:60]) for name in sorted(container.shapes)[:3]) or "none"
        raise WeightsError(f"expected the tensors of vggkit, {', '.join(SOURCES)}, got {few}")
    source, network = match
    arch = architecture_of(source, network, *channels_and_classes(source, network, container.shapes))
    table = entries(source, arch)
    old = {key for key, entry in table.items() if key.endswith(OPTIONAL_SUFFIX) and entry.name not in container.shapes}
    _check(container, {entry.name: entry.shape for key, entry in table.items() if key not in old})
    with torch.device("meta"):
        net = VGG(arch, init="torch")
    tensors = {key: torch.tensor(0) if key in old else _float32(container, entry.name) for key, entry in table.items()}
    net.load_state_dict({key: table[key].to_ours(t).contiguous() for key, t in tensors.items()}, assign=True)
    metadata = {"source": f"{source}/{network}"}
    if arch.in_channels in (1, 3):
        metadata["preprocessing"] = preprocessing_of(source, arch.in_channels).to_json()
    metadata["classes"] = json.dumps(class_names(arch.num_classes))
    return net, metadata


def _check(container: Container, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `WeightsError`, which names the first key, unless the file has these tensors, of these shapes."""
    for name in sorted(expected.keys() ^ container.shapes.keys()):
        raise WeightsError(f"{'missing' if name in expected else 'unexpected'} tensor {name[:200]!r}")
    for name, shape in expected.items():
        if container.shapes[name] != shape:
            raise WeightsError(f"expected {name!r} of shape {shape}, got {container.shapes[name]}")


def _float32(container: Container, name: str) -> Tensor:
    tensor = container.read(name)
    if name.endswith(OPTIONAL_SUFFIX):
        return tensor.long()
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):  # what float32 holds without a loss
        raise WeightsError(f"expected {name!r} as float32, float16 or bfloat16, got {tensor.dtype}")
    return tensor.float()


def metadata_list(metadata: Mapping[str, str], key: str) -> list[str]:
    """The list of texts that `metadata` holds as JSON under `key`; raises `WeightsError` for anything else."""
    try:
        value = json.loads(metadata[key])
    except (KeyError, ValueError, RecursionError):
        value = None
    # Only what a terminal shows as it is: no escape sequences, no line breaks.
    if not isinstance(value, list) or not all(isinstance(item, str) and item.isprintable() for item in value):
        got = repr(metadata.get(key))[:80]
        raise WeightsError(f"expected a list of printable texts as {key!r} in the metadata, got {got}")
    return value
