"""Designs on the page: drawing, costs, memory and predicted speed. Imports no torch."""

import re
from dataclasses import asdict
from math import inf
from typing import Any

from vggkit.design.architecture import Architecture
from vggkit.design.costs import LayerCost, Sum
from vggkit.design.memory import largest_batch, machine_memory_bytes, training_memory
from vggkit.design.network import Network, as_network, costs, draw
from vggkit.design.notation import FAMILY
from vggkit.design.scaling import predict_step
from vggkit.errors import ArchitectureError, UserError, shown

OPTIONS = ("in_channels", "image_size", "num_classes", "head", "pooled_size", "hidden", "dropout")
"""The fields of `Architecture` that a design has beside its notation."""
MAX_DESIGNS = 2


def describe(body: dict[str, Any]) -> dict[str, Any]:
    """One drawing of the designs, and the costs of each; an invalid one has its error and the place of it.

    Args:
        body: `designs`, one or two, each with `text` and `options`; `batch_size`, `optimizer` and `dtype`.
    """
    answers, networks = [], []
    for design in _designs(body):
        try:
            networks.append(network_of(design))
            answers.append(_described(networks[-1], body))
        except ArchitectureError as error:
            place = re.search(r"character (\d+): ", str(error))
            answers.append({"error": str(error), "character": int(place[1]) if place else None})
    return {"designs": answers, "svg": draw(networks) if networks else "", "family": list(FAMILY)}


def limits(body: dict[str, Any], macs_per_second: float | None) -> dict[str, Any]:
    """The largest batch of each design that trains in this machine's memory, and the predicted examples/s."""
    answers: list[dict[str, Any]] = []
    for design in _designs(body):
        network, options = network_of(design), _step_options(body)
        batch_size = options.pop("batch_size")
        examples_per_second = None
        if macs_per_second is not None:
            step = predict_step(network, batch_size, 1, macs_per_second, inf)
            examples_per_second = batch_size / step.step_seconds
        answers.append(
            {
                "largest_batch": largest_batch(network, machine_memory_bytes(), **options),
                "examples_per_second": examples_per_second,
            }
        )
    return {"designs": answers, "memory_bytes": machine_memory_bytes(), "macs_per_second": macs_per_second}


def _designs(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The designs of a request; raises `UserError` if it has none, or too many."""
    designs = body.get("designs")
    if not isinstance(designs, list) or not 1 <= len(designs) <= MAX_DESIGNS:
        raise UserError(f"expected 1 to {MAX_DESIGNS} designs, got another request")
    return designs


def network_of(design: Any) -> Network:
    """The network of a design from the page; raises `ArchitectureError`."""
    text, options = (design.get("text"), design.get("options", {})) if isinstance(design, dict) else (None, None)
    if not isinstance(text, str) or not isinstance(options, dict) or not set(options) <= set(OPTIONS):
        raise ArchitectureError(f"expected a text and options of {', '.join(OPTIONS)}, got another design")
    return as_network(text, **options)


def _step_options(body: dict[str, Any]) -> dict[str, Any]:
    defaults = {"batch_size": 32, "optimizer": "sgd", "dtype": "float32"}
    options = {name: body.get(name, default) for name, default in defaults.items()}
    if type(options["batch_size"]) is not int or options["batch_size"] < 1:
        raise UserError(f"expected a batch_size from 1, got {shown(repr(options['batch_size']))}")
    return options


def _described(network: Network, body: dict[str, Any]) -> dict[str, Any]:
    options = _step_options(body)
    cost, memory = costs(network, options["batch_size"]), training_memory(network, **options)
    notation: dict[str, Any] = {"notation": network.name, "blocks": [], "batch_norm": False}
    if isinstance(network, Architecture):
        blocks = [asdict(block) | {"kernels": block.kernel_sizes} for block in network.blocks]
        notation = {"notation": network.notation, "blocks": blocks, "batch_norm": network.norm == "batch"}
    return {
        **notation,
        "name": network.name,
        "options": {name: getattr(network, name) for name in OPTIONS if hasattr(network, name)},
        "total": _sum(cost.total, cost.total),
        "parts": [{"name": name, **_sum(part, cost.total)} for name, part in cost.parts.items()],
        "layers": [_layer(layer) for layer in cost.layers],
        "memory": {**asdict(memory), "fits": memory.peak_bytes <= machine_memory_bytes()},
        "memory_bytes": machine_memory_bytes(),
    }


def _sum(part: Sum, whole: Sum) -> dict[str, Any]:
    sums: dict[str, Any] = {name: value for name, value in vars(part).items() if name != "layers"}
    shares = {f"{name}_share": getattr(part, name) / getattr(whole, name) for name in ("parameters", "macs")}
    return {**sums, **shares, "kinds": part.kinds, "output_shape": part.layers[-1].output_shape[1:]}


def _layer(layer: LayerCost) -> dict[str, Any]:
    """A layer; the receptive field of its output (y, x) begins at pixel `first` + `stride` * (y, x)."""
    return {**asdict(layer), "first": (layer.stride - layer.receptive_field) // 2}
