"""`vgg doctor`: whether a network will learn from its initial weights."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from vggkit.design.architecture import Head, Init
from vggkit.design.network import Network, as_network
from vggkit.design.table import Table
from vggkit.training.recipe import BadImages, Optimizer
from vggkit.verbs.terminal import given, parse_flags, print_json, print_to_stderr

if TYPE_CHECKING:
    from vggkit.lab.doctor import Diagnosis
    from vggkit.networks.baselines import BaselineNetwork
    from vggkit.networks.vgg import VGG


@dataclass(frozen=True)
class Flags:
    """Say in seconds whether a network will learn, and what to change.

    Examples:
      vgg doctor vgg19 --init torch --image-size 64
      vgg doctor "1x16 2x32 2x64 2x128_bn" --head gap --warm-start runs/quick-1
    """

    architecture: Positional[str]
    """A name (vgg19, vgg11_bn/4, lenet, alexnet) or blocks (1x64 2x128)."""
    data: str = "fashion-mnist"
    """Data to take a batch from, as for vgg train."""
    data_dir: Path | None = None
    """Folder to search for Fashion-MNIST first."""
    init: Init = "kaiming"
    """Initialisation of the weights."""
    warm_start: str = ""
    """A run folder or weight file to start from, as for vgg train; none if empty."""
    optimizer: Optimizer = "sgd"
    """The optimizer of the first steps."""
    learning_rate: float = 0.05
    """Learning rate of the first steps."""
    momentum: float = 0.0
    """Momentum of SGD."""
    image_size: int | None = None
    """Pixels along a side; the published size (224, for lenet 28) if not given."""
    batch_size: int = 8
    """Training images to use; a high learning rate is judged more reliably on more of them."""
    hidden: tuple[int, ...] | None = None
    """Widths of the hidden fully connected layers; 4096 4096 if not given, none with the head gap."""
    head: Head = "flatten"
    """flatten (the book's), adaptive (torchvision's), conv (the paper's dense evaluation) or gap."""
    bad_images: BadImages = "fail"
    """What to do with files that are damaged or no images: fail, or skip."""
    seed: int = 0
    """Seed of the weights and of the choice of images, as for vgg train."""
    json: bool = False
    """Print JSON instead of a table."""


def run(arguments: list[str]) -> None:
    """Run the verb."""
    flags = parse_flags("doctor", Flags, arguments)
    options = {"head": flags.head, **given(image_size=flags.image_size, hidden=flags.hidden)}
    as_network(flags.architecture, in_channels=1, **options)  # raises before the slow import of torch

    from vggkit.data.sources import open_data
    from vggkit.lab.doctor import examine, first_batch

    data = open_data(flags.data, data_dir=flags.data_dir)
    if not 2 <= flags.batch_size <= len(data.train):
        raise ValueError(f"expected a batch_size from 2 to {len(data.train)}, got {flags.batch_size}")
    if not 0 <= flags.seed < 2**31:
        raise ValueError(f"expected a seed from 0 to {2**31 - 1}, got {flags.seed}")
    network = as_network(flags.architecture, in_channels=data.channels, num_classes=len(data.classes), **options)
    net = _initial_network(network, flags)
    images, labels = first_batch(data, network, flags.batch_size, flags.seed, flags.bad_images)
    how: dict[str, Any] = {name: getattr(flags, name) for name in ("optimizer", "learning_rate", "momentum")}
    diagnosis = examine(net, images, labels, **how)
    if flags.json:
        finite = json.loads(json.dumps(asdict(diagnosis)), parse_constant=lambda name: None)  # JSON has no infinity
        print_json({"architecture": network.name, **finite})
        return
    start = f"init {flags.init}" + (f", warm-started from {flags.warm_start}" if flags.warm_start else "")
    print(f"{network.name}, {start}: {len(images)} images of {data.name} at {network.image_size} px")
    print(_layer_table(diagnosis))
    rate = f"{flags.optimizer} at a learning rate of {flags.learning_rate:g}"
    print(_verdict(diagnosis, rate, math.log(network.num_classes)))
    for finding in diagnosis.findings:
        print(f"- {finding}")


def _initial_network(network: Network, flags: Flags) -> "VGG | BaselineNetwork":
    """The network with the weights with which `vgg train` would begin."""
    import torch

    from vggkit.networks.baselines import build
    from vggkit.weights.files import load_weights
    from vggkit.weights.runs import find_weights
    from vggkit.weights.warm_start import warm_start

    source = load_weights(find_weights(flags.warm_start, print_to_stderr))[0] if flags.warm_start else None
    torch.manual_seed(flags.seed)
    net = build(network, flags.init)
    if source is not None:
        warm_start(net, source)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _layer_table(diagnosis: "Diagnosis") -> Table:
    rows = [
        (
            layer.name,
            *(f"{v:.1e}" for v in (layer.output, layer.contrast, layer.gradient, layer.relative_gradient)),
            "" if layer.dead is None else f"{layer.dead:.0%}",
            "",
            _bar(layer.gradient),
        )
        for layer in diagnosis.layers
    ]
    header = ("layer", "output", "differs", "gradient", "/ weight", "dead", "", "gradient, 1e-12 to 1")
    notes = [
        "output: its root mean square, before batch norm and ReLU",
        "differs: the share of the output that differs between images",
        "gradient: its root mean square; / weight: divided by that of the weights",
        "dead: the share of ReLUs that are 0 for every image",
    ]
    return Table(header, [rows], notes=notes)


def _verdict(diagnosis: "Diagnosis", rate: str, guessing: float) -> str:
    """The verdict in a sentence; `guessing` is the loss of uniform probabilities, log(classes)."""
    from vggkit.lab.doctor import PATIENCE

    is_counted = PATIENCE < diagnosis.plateau < math.inf
    steps = f"{diagnosis.plateau:.0e}" if is_counted else f"over {PATIENCE:,}"
    return {
        "learns": f"learns: {rate} should lower the loss within {PATIENCE:,} steps",
        "slow": f"slow: {rate} may leave the loss at {guessing:.2f} for hundreds of steps",
        "stalls": f"stalls: {rate} leaves the loss at {guessing:.2f} for {steps} steps",
        "overshoots": f"overshoots: {rate} takes too long a first step",
        "not finite": "not finite: the network cannot learn from these values",
    }[diagnosis.verdict]


def _bar(value: float) -> str:
    """A bar on a logarithmic scale: two characters for each power of ten from 1e-12 to 1."""
    full = round(min(max(24 + 2 * math.log10(value), 0), 24)) if 0 < value < math.inf else 0
    return "█" * full + "·" * (24 - full)
