"""A network that starts from a trained one: a deeper one from a shallow one, as the paper's did, or for other classes.

Source: arXiv 1409.1556, section 3.1: the first four convolutions and the fully connected layers come from a trained
configuration A, the layers between are drawn at random. Of A these convolutions are conv1_1, conv2_1, conv3_1 and
conv3_2, which B, D and E have under the same names and in the same shapes.
"""

import torch

from vggkit.design.architecture import Architecture
from vggkit.networks.baselines import BaselineNetwork
from vggkit.networks.vgg import VGG

NUM_CONVOLUTIONS = 4


def last_layer(net: VGG | BaselineNetwork) -> str:
    """The name of the module whose outputs are the classes, such as `fc8`.

    >>> last_layer(VGG(Architecture.parse("vgg11/16", image_size=32, hidden=(8,))))
    'fc7'
    """
    name = [layer.name for layer in net.architecture.layers() if layer.weights][-1]
    paths = [path for path, _ in net.named_modules() if path.rpartition(".")[2] == name]
    return str(paths[0])


def transfer(net: VGG | BaselineNetwork, source: VGG | BaselineNetwork) -> tuple[str, ...]:
    """Copy all of `source` but its last layer into `net`, in place: the same network for other classes.

    Returns:
        The names of the modules copied, in order.

    Raises:
        ValueError: a tensor that one of them lacks or has in another shape; nothing is copied then.
    """
    own, other = net.state_dict(), source.state_dict()
    heads = tuple(f"{last_layer(n)}." for n in (net, source))
    kept = {key: tensor for key, tensor in other.items() if not key.startswith(heads)}
    expected = {key: tensor.shape for key, tensor in own.items() if not key.startswith(heads)}
    for key in expected | kept:
        shapes = [tuple(state[key].shape) if key in state else "none" for state in (own, other)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"expected weights of {net.architecture.name}, whose {key} is {shapes[0]}, got {shapes[1]} from "
                f"{source.architecture.name}, try its own --architecture, --hidden, --head and --pooled-size"
            )
    net.load_state_dict(kept, strict=False)
    return tuple(dict.fromkeys(key.rpartition(".")[0].rpartition(".")[2] for key in kept))


def warm_start(net: VGG | BaselineNetwork, source: VGG | BaselineNetwork) -> tuple[str, ...]:
    """Copy the first four convolutions and all fully connected layers of `source` into `net`, by name.

    The batch norms behind these convolutions are copied too, statistics included, where both networks have them.
    All else in `net` stays as it is, and everything does if an error is raised.

    Returns:
        The names of the layers copied, in order.

    Raises:
        ValueError: a layer that `net` lacks or has in another shape; both shapes are named.

    >>> A, E = (Architecture.parse(name, image_size=32, hidden=(8,)) for name in ("vgg11/16", "vgg19/16"))
    >>> warm_start(VGG(E, "torch"), VGG(A))
    ('conv1_1', 'conv2_1', 'conv3_1', 'conv3_2', 'fc6', 'fc7')
    """
    own, other = net.architecture, source.architecture
    if isinstance(own, Architecture) and isinstance(other, Architecture) and len(own.blocks) != len(other.blocks):
        raise ValueError(
            f"expected a warm start from a network of {len(own.blocks)} blocks, as {own.name} has, got {other.name} "
            f"of {len(other.blocks)}, try a source whose blocks have the same widths"
        )
    targets, sources = ({path.rpartition(".")[2]: m for path, m in n.named_modules()} for n in (net, source))
    layers = list(other.layers())
    first = [layer.name for layer in layers if layer.name.startswith("conv")][:NUM_CONVOLUTIONS]
    norms = {name.replace("conv", "bn") for name in first} & targets.keys()
    fully_connected = {layer.name for layer in layers if layer.name.startswith("fc")}
    copied = tuple(layer.name for layer in layers if layer.name in norms.union(first, fully_connected))
    for name in copied:
        if name in targets and targets[name].state_dict().keys() != sources[name].state_dict().keys():
            raise ValueError(
                f"expected {name} with {', '.join(targets[name].state_dict())}, as {own.name} has it, got it with "
                f"{', '.join(sources[name].state_dict())}, try a source without folded preprocessing"
            )
        for key, tensor in sources[name].state_dict().items():
            expected = targets[name].state_dict()[key].shape if name in targets else None
            if tensor.shape != expected:
                raise ValueError(
                    f"expected {name} in the shape that {own.name} has, "
                    f"{'which is none' if expected is None else tuple(expected)}, got {tuple(tensor.shape)} from "
                    f"{other.name}, try a source with the same widths, --hidden, --head, --image-size and classes"
                )
    with torch.no_grad():
        for name in copied:
            targets[name].load_state_dict(sources[name].state_dict())
    return copied
