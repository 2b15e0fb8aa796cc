"""Networks given as data or as text, and the public functions `costs` and `draw`."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from vggkit.design.architecture import Architecture
from vggkit.design.baselines import Baseline
from vggkit.design.costs import Costs
from vggkit.design.drawing import Style, drawing
from vggkit.design.layers import short_repr
from vggkit.design.notation import BaselineName
from vggkit.errors import ArchitectureError, check_type

Network = Architecture | Baseline
NetworkLike = Network | str | Sequence[Any]
"""What `as_network` takes: a network, its text, or the blocks of an `Architecture`."""


def as_network(network: NetworkLike, **options: Any) -> Network:
    """The network that `network` describes. Everything in vggkit that takes a network calls this function.

    Args:
        network: an `Architecture` or a `Baseline`; its text, which is `lenet`, `alexnet` or what `Architecture.parse`
            reads; or the blocks of an `Architecture`, as the book's pairs.
        options: fields of the network that replace its own; a baseline ignores those that it does not have.

    Raises:
        ArchitectureError: an invalid network.

    >>> as_network("vgg11/4") == as_network([(1, 16), (1, 32), (2, 64), (2, 128), (2, 128)])
    True
    """
    baseline_options = {name: options[name] for name in ("image_size", "in_channels", "num_classes") if name in options}
    if isinstance(network, str):
        if network.strip().lower() in get_args(BaselineName):
            return Baseline.named(network, **baseline_options)
        return Architecture.parse(network, **options)
    if isinstance(network, Architecture):
        return replace(network, **options)
    if isinstance(network, Baseline):
        return replace(network, **baseline_options)
    if isinstance(network, list | tuple):
        return Architecture(tuple(network), **options)
    raise ArchitectureError(f"expected a network, its text or its blocks, got {short_repr(network)}, try 'vgg16'")


def network_from_json(text: str) -> Network:
    """The network that `to_json` of either kind wrote, checked in full; raises `ArchitectureError`."""
    try:
        values = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        values = None
    if isinstance(values, dict) and values.keys() == {"baseline", "image_size", "in_channels", "num_classes"}:
        return Baseline(values.pop("baseline"), **values)
    return Architecture.from_json(text)


def costs(network: NetworkLike, batch_size: int = 1) -> Costs:
    """The costs of a network for a batch of `batch_size` images; `vggkit.design.costs` says how they are counted.

    Args:
        network: see `as_network`.
        batch_size: from 1.

    Raises:
        ArchitectureError: an invalid network or `batch_size`.

    >>> total = costs("vgg16").total
    >>> total.parameters, total.macs
    (138357544, 15470264320)
    """
    return Costs.of(as_network(network), batch_size)


def draw(networks: Network | str | Sequence[NetworkLike], style: Style = "scale") -> str:
    """The drawing of networks, beside and below each other on one scale, as the text of an SVG file.

    Args:
        networks: one, or a list of 1 to 16; each as `as_network` takes it.
        style: `scale`, cuboids to scale, or `blocks`, the book's diagram.

    Raises:
        ArchitectureError: an invalid network, none or more than 16 of them, or an unknown style.

    >>> picture = draw("vgg16")
    >>> picture[:4], "conv5_3" in picture
    ('<svg', True)
    """
    sequence = [networks] if isinstance(networks, str | Architecture | Baseline) else networks
    check_type(sequence, Sequence, "networks to draw", "draw('vgg16')")
    return drawing([as_network(network) for network in sequence], style)
