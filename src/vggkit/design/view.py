"""The content of a drawing: a box for each layer, grouped into parts with their shares of the costs."""

from dataclasses import dataclass

from vggkit.design.costs import Costs, LayerCost
from vggkit.design.layers import AnyNetwork, Layer
from vggkit.errors import shown

GROUPS = {"conv": "convolution", "lrn": "normalisation", "fc": "fully connected"} | dict.fromkeys(
    ("pool", "avgpool", "adaptive", "fit"), "pooling"
)
NOT_DRAWN = {"bn": "batch norm", "relu": "ReLU", "sigmoid": "sigmoid", "flatten": "flatten", "dropout": "dropout"}


@dataclass(frozen=True)
class Box:
    """The output of a layer, or the image."""

    name: str
    group: str
    kernel: str
    words: str
    channels: int
    size: int
    shape: str
    hint: str


@dataclass(frozen=True)
class Part:
    """A block or a fully connected layer, with its shares of the costs, 0 to 1."""

    boxes: tuple[Box, ...]
    parameters: float = 0
    macs: float = 0


@dataclass(frozen=True)
class View:
    """The drawn content of a network; its first part is the image."""

    name: str
    parts: tuple[Part, ...]
    lines: tuple[str, ...]
    connected: dict[str, float]  # the fully connected layers' shares of `parameters` and `MACs`, 0 to 1

    @property
    def boxes(self) -> tuple[Box, ...]:
        """All boxes in order."""
        return tuple(box for part in self.parts for box in part.boxes)


def view_of(network: AnyNetwork) -> View:
    """The drawn content of `network`."""
    costs = Costs.of(network)
    total, fully_connected = costs.total, costs.fully_connected
    boxes: dict[str, list[Box]] = {}
    for layer, cost in zip(network.layers(), costs.layers, strict=True):
        is_idle = layer.kind == "fit" and not cost.activation_bytes  # the map is large enough
        if layer.kind in GROUPS and not is_idle:
            boxes.setdefault(layer.part, []).append(_box(layer, cost))
    parts = [
        Part(tuple(boxes[name]), part.parameters / total.parameters, part.macs / total.macs)
        for name, part in costs.parts.items()
    ]
    kinds = {layer.kind for layer in costs.layers}
    lines = (
        f"{_short(total.parameters)} parameters, {_short(total.macs)} MACs",
        f"{total.weight_layers:,} weight layers, {network.num_classes:,} classes",
        f"not drawn: {', '.join(words for kind, words in NOT_DRAWN.items() if kind in kinds)}",
    )
    shape = f"{network.in_channels}×{network.image_size}×{network.image_size}"
    image = Box("image", "image", "", "", network.in_channels, network.image_size, shape, f"image: {shape}")
    kind = getattr(network, "head", "flatten")
    head = f", head {kind}" if kind != "flatten" else ""
    connected = {"parameters": fully_connected.parameters / total.parameters, "MACs": fully_connected.macs / total.macs}
    return View(shown(network.name, limit=60) + head, (Part((image,)), *parts), lines, connected)


def _box(layer: Layer, cost: LayerCost) -> Box:
    kernel = square = f"{layer.kernel_size}×{layer.kernel_size}"
    match layer.kind:
        case "conv":
            stride = f", stride {layer.stride}" if layer.stride > 1 else ""
            words = f"{square} conv ({layer.outputs:,}){stride}, pad {layer.padding}"
        case "pool" | "avgpool":
            words = f"{square} {'max' if layer.kind == 'pool' else 'mean'} pool, stride {layer.stride}"
        case "adaptive" | "fit":
            kernel, words = "", f"{'mean' if layer.kind == 'adaptive' else 'stretch'} to {square}"
        case "fc":
            kernel, words = "", f"FC ({layer.outputs:,})"
        case _:
            kernel, words = "", "local response norm"
    shape = "×".join(map(str, cost.output_shape[1:]))
    hint = f"{layer.name}: {words}, output {shape}, {cost.parameters:,} parameters, {cost.macs:,} MACs"
    size = cost.output_shape[-1] if len(cost.output_shape) == 4 else 1
    return Box(layer.name, GROUPS[layer.kind], kernel, words, layer.outputs, size, shape, hint)


def _short(number: int) -> str:
    """`number` to one decimal with the suffix k, M, G, T, P or E."""
    thousands = min((len(str(number)) - 1) // 3, 6)
    return f"{number / 1000**thousands:,.1f} {' kMGTPE'[thousands]}" if thousands else str(number)
