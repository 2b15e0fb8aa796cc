"""What a network costs, layer by layer, in closed form: nothing is built, nothing is run.

- Parameters: every trainable number, with biases and the two of batch norm for each channel.
- MACs: the multiply-adds of convolutions and fully connected layers in one forward pass, biases excluded.
  FLOPs = 2 x MACs.
- Activation bytes: the float32 output of a layer; 0 for a view (`flatten`, and `fit` of a map that is large enough).
- Receptive field: the side, in input pixels, of the square that one output value sees in an unbounded image.
- Stride: the input pixels between neighbouring output values.

A fully connected layer counts as the equivalent convolution: fc6 of VGG-16, 7x7, sees 404 pixels, more than the image.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from vggkit.design.layers import AnyNetwork, Layer, LayerKind, check_int
from vggkit.design.table import Table

BYTES_PER_VALUE = 4  # float32
MAX_BATCH_SIZE = 2**31 - 1
_COLUMNS = ("output", "parameters", "%", "MMACs", "%", "MB out", "sees", "step")
_NOTES = (
    "MMACs: millions of multiply-adds; FLOPs = 2 x MACs",
    "MB out: what the layers put out, in float32; training keeps only some of it",
    "sees, step: receptive field, and pixels from one output to the next",
)


@dataclass(frozen=True)
class LayerCost:
    """The cost of one layer for a whole batch."""

    name: str
    kind: LayerKind
    part: str
    output_shape: tuple[int, ...]
    """(batch, channels, height, width), or (batch, features)."""
    parameters: int
    macs: int
    activation_bytes: int
    receptive_field: int
    """Pixels."""
    stride: int
    """Pixels."""


@dataclass(frozen=True)
class Sum:
    """The cost of several layers together."""

    layers: tuple[LayerCost, ...]
    weight_layers: int
    """Convolutions and fully connected layers, the 11 of VGG-11."""
    parameters: int
    param_bytes: int
    macs: int
    activation_bytes: int

    @property
    def kinds(self) -> str:
        """The weight layers by kind: `2 conv`, `1 fc`."""
        convs = sum(layer.kind == "conv" for layer in self.layers)
        return " + ".join(f"{n} {kind}" for n, kind in ((convs, "conv"), (self.weight_layers - convs, "fc")) if n)

    @classmethod
    def of(cls, layers: Iterable[LayerCost]) -> "Sum":
        """The sum over `layers`."""
        layers = tuple(layers)
        parameters = sum(layer.parameters for layer in layers)
        return cls(
            layers=layers,
            weight_layers=sum(layer.kind in ("conv", "fc") for layer in layers),
            parameters=parameters,
            param_bytes=parameters * BYTES_PER_VALUE,
            macs=sum(layer.macs for layer in layers),
            activation_bytes=sum(layer.activation_bytes for layer in layers),
        )


@dataclass(frozen=True)
class Costs:
    """The costs of a network for a batch: the layers, and sums over them."""

    network: AnyNetwork
    batch_size: int
    layers: tuple[LayerCost, ...]

    @classmethod
    def of(cls, network: AnyNetwork, batch_size: int = 1) -> "Costs":
        """The costs of `network`; raises `ArchitectureError` unless `batch_size` is a whole number from 1."""
        check_int("a batch_size", batch_size, 1, MAX_BATCH_SIZE)
        layer_costs: list[LayerCost] = []
        size, is_map = network.image_size, True
        receptive_field, stride, map_field = 1, 1, network.image_size  # map_field: input pixels that a whole map sees
        for layer in network.layers():
            input_size, size = size, layer.output_size(size)
            is_map = is_map and layer.kind != "flatten"
            match layer.kind:
                case "conv":
                    unbounded = receptive_field + (layer.kernel_size - 1) * stride
                    # fc6 as a convolution over an enlarged map sees the whole map and no more.
                    receptive_field = unbounded if layer.padding else min(unbounded, map_field)
                    stride *= layer.stride
                case "pool" | "avgpool":
                    receptive_field += (layer.kernel_size - 1) * stride
                    stride *= layer.stride
                case "adaptive":
                    receptive_field += (_widest_window(input_size, size) - 1) * stride
                    stride *= max(1, input_size // size)
                case "flatten":
                    receptive_field = map_field
            if layer.kind in ("conv", "pool", "avgpool"):
                map_field = receptive_field + (size - 1) * stride
            output_shape = (batch_size, layer.outputs, *((size, size) if is_map else ()))
            is_view = layer.kind == "flatten" or (layer.kind == "fit" and size == input_size)
            layer_costs.append(
                LayerCost(
                    name=layer.name,
                    kind=layer.kind,
                    part=layer.part,
                    output_shape=output_shape,
                    parameters=_parameters(layer),
                    macs=layer.weights * batch_size * size * size,
                    activation_bytes=0 if is_view else math.prod(output_shape) * BYTES_PER_VALUE,
                    receptive_field=receptive_field,
                    stride=stride,
                )
            )
        return cls(network, batch_size, tuple(layer_costs))

    @property
    def total(self) -> Sum:
        """The sum over all layers."""
        return Sum.of(self.layers)

    @property
    def convolutional(self) -> Sum:
        """The blocks: all layers before the first fully connected one."""
        return Sum.of(layer for layer in self.layers if not layer.part.startswith("fc"))

    @property
    def fully_connected(self) -> Sum:
        """The fully connected layers with their activations and dropout, in either form (`fc` or `conv`)."""
        return Sum.of(layer for layer in self.layers if layer.part.startswith("fc"))

    def table(self, by_layer: bool = False) -> Table:
        """The table that `print` shows: a row for each block and fully connected layer, or for each layer."""
        total = self.total
        # No decimals for large batches, which would widen the columns.
        mmacs = ",.1f" if total.macs < 1e11 else ",.0f"
        megabytes = ",.1f" if total.activation_bytes < 1e10 else ",.0f"

        def row(name: str, part: Sum, kind: str, last: LayerCost | None) -> tuple[str, ...]:
            return (
                name,
                kind,
                "x".join(map(str, last.output_shape[1:])) if last else "",
                f"{part.parameters:,}",
                f"{100 * part.parameters / total.parameters:.1f}",
                f"{part.macs / 1e6:{mmacs}}",
                f"{100 * part.macs / total.macs:.1f}",
                f"{part.activation_bytes / 1e6:{megabytes}}",
                *((str(last.receptive_field), str(last.stride)) if last else ("", "")),
            )

        rows = [row(name, part, part.kinds, part.layers[-1]) for name, part in self.parts.items()]
        if by_layer:
            rows = [row(layer.name, Sum.of([layer]), layer.kind, layer) for layer in self.layers]
        sums = [
            row("all conv", self.convolutional, self.convolutional.kinds, None),
            row("all fc", self.fully_connected, self.fully_connected.kinds, None),
            row("total", total, str(total.weight_layers), None),
        ]
        network, size = self.network, self.network.image_size
        return Table(
            header=(*(("layer", "kind") if by_layer else ("part", "layers")), *_COLUMNS),
            sections=[rows, sums],
            left_aligned=3,
            title=f"{network.name}: {network.in_channels}x{size}x{size} images "
            f"in batches of {self.batch_size}, {network.num_classes} classes",
            notes=(f"parameters: {total.param_bytes / 1e6:,.1f} MB in float32", *_NOTES),
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    @property
    def parts(self) -> dict[str, Sum]:
        """One sum for each block and each fully connected layer, by name, in order."""
        names = dict.fromkeys(layer.part for layer in self.layers)
        return {name: Sum.of(layer for layer in self.layers if layer.part == name) for name in names}


def _widest_window(size: int, outputs: int) -> int:
    """The widest window, in inputs along a side, of adaptive average pooling from `size` to `outputs`."""
    return max(-(-(i + 1) * size // outputs) - i * size // outputs for i in range(outputs))


def _parameters(layer: Layer) -> int:
    if layer.kind == "bn":
        return 2 * layer.outputs
    return layer.weights + layer.outputs if layer.kind in ("conv", "fc") else 0
