"""Initialising a network from a trained one: a deeper network from a shallow one, or the same for other classes.

Source: arXiv 1409.1556, section 3.1: the first four convolutions and the fully connected layers come from a trained
configuration A, the layers between are drawn at random. Of A these convolutions are conv1_1, conv2_1, conv3_1 and
conv3_2, which B, D and E have under the same names and in the same shapes.
"""

from collections.abc import Collection

import torch

from vggkit.design.architecture import Architecture
from vggkit.errors import check_type
from vggkit.networks.baselines import BaselineNetwork
from vggkit.networks.vgg import VGG

NUM_CONVOLUTIONS = 4


def last_layer(net: VGG | BaselineNetwork) -> str:
    """The name of the module that outputs the logits, such as `fc8`.

    >>> last_layer(VGG(Architecture.parse("vgg11/16", image_size=32, hidden=(8,))))
    'fc7'
    """
    name = [layer.name for layer in net.architecture.layers() if layer.weights][-1]
    return next(str(path) for path, _ in net.named_modules() if path.rpartition(".")[2] == name)


def transfer(net: VGG | BaselineNetwork, source: VGG | BaselineNetwork) -> tuple[str, ...]:
    """Copy all layers of `source` except the last into `net`; returns and raises what `warm_start` does."""
    layers = {key.split(".")[-2] for n in (net, source) for key in n.state_dict()}
    return _copy(net, source, layers - {last_layer(n).rpartition(".")[2] for n in (net, source)})


def warm_start(net: VGG | BaselineNetwork, source: VGG | BaselineNetwork) -> tuple[str, ...]:
    """Copy the first four convolutions and all fully connected layers of `source` into `net`, by name.

    The batch norms after these convolutions are copied too, statistics included, if both networks have them.

    Returns:
        The names of the layers copied, in order.

    Raises:
        ValueError: `net` lacks a layer or has it in another shape; nothing is copied.

    >>> A, E = (Architecture.parse(name, image_size=32, hidden=(8,)) for name in ("vgg11/16", "vgg19/16"))
    >>> warm_start(VGG(E, "torch"), VGG(A))
    ('conv1_1', 'conv2_1', 'conv3_1', 'conv3_2', 'fc6', 'fc7')
    """
    for network in (net, source):
        check_type(network, VGG | BaselineNetwork, "a network", "warm_start(net, load_weights('vgg11.safetensors')[0])")
    arch, trained = net.architecture, source.architecture
    if isinstance(arch, Architecture) and isinstance(trained, Architecture) and len(arch.blocks) != len(trained.blocks):
        raise ValueError(
            f"expected a warm start from a network of {len(arch.blocks)} blocks, as {arch.name} has, got "
            f"{trained.name} of {len(trained.blocks)}, try a source whose blocks have the same widths"
        )
    names = [layer.name for layer in trained.layers()]
    first = [name for name in names if name.startswith("conv")][:NUM_CONVOLUTIONS]
    norms = {name.replace("conv", "bn") for name in first}.intersection(names, (layer.name for layer in arch.layers()))
    return _copy(net, source, {*first, *norms, *(name for name in names if name.startswith("fc"))})


def _copy(net: VGG | BaselineNetwork, source: VGG | BaselineNetwork, layers: Collection[str]) -> tuple[str, ...]:
    """Copy the tensors of `layers`, which must have the same shapes in both networks."""
    states = [{tuple(key.split(".")[-2:]): tensor for key, tensor in n.state_dict().items()} for n in (net, source)]
    targets, sources = ({".".join(key): state[key] for key in state if key[0] in layers} for state in states)
    for name in targets | sources:
        expected, got = (tuple(tensors[name].shape) if name in tensors else "none" for tensors in (targets, sources))
        if got != expected:
            raise ValueError(
                f"expected {name} in the shape that {net.architecture.name} has, {expected}, got {got} from "
                f"{source.architecture.name}, try a source with the same blocks, --hidden, --head, --pooled-size and "
                "--image-size, and without folded preprocessing"
            )
    with torch.no_grad():
        for name, tensor in sources.items():
            targets[name].copy_(tensor)  # shares memory with `net`
    return tuple(dict.fromkeys(name.partition(".")[0] for name in sources))
