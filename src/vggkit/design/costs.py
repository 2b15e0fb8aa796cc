"""What a network costs, layer by layer, in closed form: nothing is built, nothing is run.

How it counts. Parameters: every trainable number, biases and batch norm's two per channel included. MACs: one
multiply-add of a convolution or fully connected layer, bias excluded, in one forward pass; FLOPs = 2 x MACs.
Activation bytes: the float32 output of the layer (`flatten` is a view and has none of its own). Receptive
field: the side, in input pixels, of the square that one output value sees were the image unbounded; stride: the
input pixels from one output value to the next. A fully connected layer counts as the convolution that it is
equivalent to (fc6 of VGG-16 as 7x7: 404 pixels, more than the image has).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vggkit.design.architecture import Architecture, ArchitectureError, Layer, LayerKind

BYTES_PER_VALUE = 4  # float32
MAX_BATCH_SIZE = 2**31 - 1


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs for a whole batch."""

    name: str
    kind: LayerKind
    part: str
    """The row it belongs to: `block3`, `fc6`."""
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
    """What several layers cost together."""

    layers: tuple[LayerCost, ...]
    weight_layers: int
    """Convolutions and fully connected layers: what the 11 of VGG-11 counts."""
    parameters: int
    param_bytes: int
    macs: int
    activation_bytes: int

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
    """The costs of an architecture for a batch: the layers, and sums over them."""

    architecture: Architecture
    batch_size: int
    layers: tuple[LayerCost, ...]

    @property
    def total(self) -> Sum:
        """Everything."""
        return Sum.of(self.layers)

    @property
    def convolutional(self) -> Sum:
        """The blocks."""
        return self._where(lambda layer: layer.part.startswith("block"))

    @property
    def fully_connected(self) -> Sum:
        """What follows the blocks."""
        return self._where(lambda layer: layer.part.startswith("fc"))

    @property
    def parts(self) -> dict[str, Sum]:
        """One sum for each block and each fully connected layer, by name, in order."""
        names = dict.fromkeys(layer.part for layer in self.layers)
        return {name: self._where(lambda layer, name=name: layer.part == name) for name in names}  # type: ignore[misc]

    def _where(self, condition: Callable[[LayerCost], bool]) -> Sum:
        return Sum.of(filter(condition, self.layers))


def costs(architecture: Architecture, batch_size: int = 1) -> Costs:
    """What `architecture` costs for a batch of `batch_size` images; see the module for how it counts.

    Raises:
        ArchitectureError: `batch_size` is not a whole number from 1.

    >>> total = costs(Architecture.parse("vgg16")).total
    >>> total.parameters, total.macs
    (138357544, 15470264320)
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise ArchitectureError(f"expected a batch_size from 1 to {MAX_BATCH_SIZE}, got {batch_size!r}")
    counted: list[LayerCost] = []
    size, receptive_field, stride = architecture.image_size, 1, 1
    for layer in architecture.layers():
        if layer.kind == "conv":
            receptive_field += (layer.kernel_size - 1) * stride
        elif layer.kind == "pool":
            receptive_field += stride
            stride *= 2
            size //= 2
        elif layer.kind == "flatten":
            receptive_field += (size - 1) * stride
        is_map = layer.part.startswith("block")
        output_shape = (batch_size, layer.outputs, *((size, size) if is_map else ()))
        counted.append(
            LayerCost(
                name=layer.name,
                kind=layer.kind,
                part=layer.part,
                output_shape=output_shape,
                parameters=_parameters(layer),
                macs=layer.weights * batch_size * (size * size if is_map else 1),
                activation_bytes=0 if layer.kind == "flatten" else math.prod(output_shape) * BYTES_PER_VALUE,
                receptive_field=receptive_field,
                stride=stride,
            )
        )
    return Costs(architecture, batch_size, tuple(counted))


def _parameters(layer: Layer) -> int:
    if layer.kind == "bn":
        return 2 * layer.outputs
    return layer.weights + layer.outputs if layer.kind in ("conv", "fc") else 0
