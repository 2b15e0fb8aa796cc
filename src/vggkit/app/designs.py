"""What the page shows of designs: the drawing, the costs, the memory and the speed. Needs no torch."""

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
"""What a design has beside its notation, each as a field of `Architecture`."""
MAX_DESIGNS = 2


def describe(asked: dict[str, Any]) -> dict[str, Any]:
    """The drawing of the asked designs, and the costs of each; a wrong one has its error, and where it is.

    Args:
        asked: `designs`, one or two, each with its `text` and its `options`; `batch_size`, `optimizer` and `dtype`.
    """
    found, networks = [], []
    for design in designs_in(asked):
        try:
            networks.append(network_of(design))
            found.append(_described(networks[-1], asked))
        except ArchitectureError as error:
            place = re.search(r"character (\d+): ", str(error))
            found.append({"error": str(error), "character": int(place[1]) if place else None})
    return {"designs": found, "svg": draw(networks) if networks else "", "family": list(FAMILY)}


def limits(asked: dict[str, Any], macs_per_second: float | None) -> dict[str, Any]:
    """For each design the largest batch that trains in this machine's memory, and examples/s if the rate is known."""
    answers: list[dict[str, Any]] = []
    for design in designs_in(asked):
        network, options = network_of(design), _step_options(asked)
        batch_size = options.pop("batch_size")
        speed = None
        if macs_per_second is not None:
            step = predict_step(network, batch_size, 1, macs_per_second, inf)
            speed = batch_size / step.step_seconds
        answers.append(
            {"largest_batch": largest_batch(network, machine_memory_bytes(), **options), "examples_per_second": speed}
        )
    return {"designs": answers, "memory_bytes": machine_memory_bytes(), "macs_per_second": macs_per_second}


def designs_in(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The designs of a request; raises `UserError` for anything else."""
    designs = asked.get("designs")
    if not isinstance(designs, list) or not 1 <= len(designs) <= MAX_DESIGNS:
        raise UserError(f"expected 1 to {MAX_DESIGNS} designs, got another request")
    return designs


def network_of(design: Any) -> Network:
    """The network of a design as the page sends it; raises `ArchitectureError`."""
    text, options = (design.get("text"), design.get("options", {})) if isinstance(design, dict) else (None, None)
    if not isinstance(text, str) or not isinstance(options, dict) or not set(options) <= set(OPTIONS):
        raise ArchitectureError(f"expected a text and options of {', '.join(OPTIONS)}, got another design")
    return as_network(text, **options)


def _step_options(asked: dict[str, Any]) -> dict[str, Any]:
    defaults = {"batch_size": 32, "optimizer": "sgd", "dtype": "float32"}
    options = {name: asked.get(name, default) for name, default in defaults.items()}
    if type(options["batch_size"]) is not int or options["batch_size"] < 1:
        raise UserError(f"expected a batch_size from 1, got {shown(repr(options['batch_size']))}")
    return options


def _described(network: Network, asked: dict[str, Any]) -> dict[str, Any]:
    options = _step_options(asked)
    counted, memory = costs(network, options["batch_size"]), training_memory(network, **options)
    own: dict[str, Any] = {"notation": network.name, "blocks": [], "batch_norm": False}
    if isinstance(network, Architecture):
        blocks = [asdict(block) | {"kernels": block.kernel_sizes} for block in network.blocks]
        own = {"notation": network.notation, "blocks": blocks, "batch_norm": network.norm == "batch"}
    return {
        **own,
        "name": network.name,
        "options": {name: getattr(network, name) for name in OPTIONS if hasattr(network, name)},
        "total": _sum(counted.total, counted.total),
        "parts": [{"name": name, **_sum(part, counted.total)} for name, part in counted.parts.items()],
        "layers": [_layer(layer) for layer in counted.layers],
        "memory": {**asdict(memory), "fits": memory.peak_bytes <= machine_memory_bytes()},
        "memory_bytes": machine_memory_bytes(),
    }


def _sum(part: Sum, whole: Sum) -> dict[str, Any]:
    sums: dict[str, Any] = {name: value for name, value in vars(part).items() if name != "layers"}
    shares = {f"{name}_share": getattr(part, name) / getattr(whole, name) for name in ("parameters", "macs")}
    return {**sums, **shares, "kinds": part.kinds, "output_shape": part.layers[-1].output_shape[1:]}


def _layer(layer: LayerCost) -> dict[str, Any]:
    """A layer; its output (y, x) sees the image from `first` + `stride` times (y, x) on."""
    return {**asdict(layer), "first": (layer.stride - layer.receptive_field) // 2}
