"""A trained network in one safetensors file: its weights, and in the metadata all it takes to use them."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from vggkit.data.files import why_not_a_file, write_whole
from vggkit.design.baselines import network_from_json
from vggkit.design.block import ArchitectureError
from vggkit.networks.baselines import BaselineNetwork, build
from vggkit.networks.vgg import VGG


class WeightsError(ValueError):
    """A weight file that is missing, damaged, or not ours; the message is one line."""


def save_weights(path: Path, net: VGG | BaselineNetwork, metadata: Mapping[str, str]) -> None:
    """Write `net` and `metadata` (texts by name) to `path`, whole or not at all.

    The metadata gets `architecture`, as JSON, beside what is given.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    write_whole(path, save(tensors, {**metadata, "architecture": net.architecture.to_json()}))


def load_weights(path: Path, device: str | torch.device = "cpu") -> tuple[VGG | BaselineNetwork, dict[str, str]]:
    """The network that `save_weights` wrote, in evaluation mode, and its metadata.

    The architecture in the metadata is built without memory first, and compared with the tensors that the file
    really has, so that no header decides what is allocated.

    Raises:
        WeightsError: one line that names the file, and the key where there is one.
    """
    if found := why_not_a_file(path):
        raise WeightsError(f"{path}: expected a weight file, got {found}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            if "architecture" not in metadata:
                raise WeightsError(f"{path}: expected vggkit's metadata with an 'architecture', got {sorted(metadata)}")
            with torch.device("meta"):
                net = build(network_from_json(metadata["architecture"]), init="torch")
            expected, got = net.state_dict(), set(file.keys())
            for name in sorted(expected.keys() ^ got):
                raise WeightsError(f"{path}: {'missing' if name in expected else 'unexpected'} tensor {name!r}")
            for name, tensor in expected.items():
                header = file.get_slice(name)
                if tuple(header.get_shape()) != tuple(tensor.shape):
                    raise WeightsError(
                        f"{path}: expected {name!r} of shape {tuple(tensor.shape)}, got {tuple(header.get_shape())}"
                    )
            tensors = {name: file.get_tensor(name) for name in expected}
    except ArchitectureError as error:
        raise WeightsError(f"{path}: {error}") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: expected a whole safetensors file, got: {error}") from None
    for name, tensor in tensors.items():
        if tensor.dtype != expected[name].dtype:
            raise WeightsError(f"{path}: expected {name!r} as {expected[name].dtype}, got {tensor.dtype}")
    net.load_state_dict(tensors, assign=True)
    return net.to(device).to(memory_format=torch.channels_last).eval(), metadata  # type: ignore[call-overload]


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
