"""`vgg draw`: networks as a picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from vggkit.design.architecture import Head
from vggkit.design.drawing import Style
from vggkit.design.network import draw, parse_network
from vggkit.verbs.terminal import DONE, check_out, given, parse_flags


@dataclass(frozen=True)
class Flags:
    """Draw networks, beside and below each other on one scale, into an SVG file."""

    architectures: Positional[tuple[str, ...]]
    """Names (vgg16, vgg11_bn, vgg11/4, the paper's A-LRN, lenet, alexnet) or blocks ("1x64 2x128 3x256k3,3,1")."""
    out: Annotated[Path, arg(aliases=("-o",))]
    """The .svg file to write."""
    style: Style = "scale"
    """scale: maps as cuboids, to scale; blocks: a box for each layer, as in the book."""
    in_channels: int = 3
    """1 for grey images, 3 for RGB."""
    image_size: int | None = None
    """Pixels along a side; each network's own if not given."""
    num_classes: int = 1000
    """Outputs of the last layer."""
    hidden: tuple[int, ...] | None = None
    """Widths of the hidden fully connected layers of VGG networks; 4096 4096, or none with gap, if not given."""
    head: Head = "flatten"
    """How the last map of a VGG network becomes classes."""


def run(arguments: list[str]) -> int:
    """Run the verb; returns the exit code."""
    flags = parse_flags("draw", Flags, arguments)
    check_out(flags.out, ".svg")
    options = {"in_channels": flags.in_channels, "num_classes": flags.num_classes, "head": flags.head}
    options |= given(image_size=flags.image_size, hidden=flags.hidden)
    networks = [parse_network(text, **options) for text in flags.architectures]
    svg = draw(networks, flags.style)
    from vggkit.data.files import write_whole

    write_whole(flags.out, svg.encode())
    print(flags.out)
    return DONE
