"""`vgg draw`: networks as a picture."""

from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import Positional

from vggkit.design.drawing import Style
from vggkit.design.network import draw
from vggkit.errors import shown
from vggkit.verbs.network import NetworkFlags
from vggkit.verbs.terminal import Out, check_out, parse_flags


@dataclass(frozen=True)
class Flags:
    """Draw networks on one scale as SVG, PNG or PDF.

    Examples:
      vgg draw vgg16 -o vgg16.svg
      vgg draw lenet alexnet vgg11 --style blocks -o three.svg
    """

    networks: Positional[tuple[str, ...]]
    """Names (vgg16, vgg11_bn, vgg11/4, the paper's A-LRN, lenet), blocks ("1x64 2x128"), runs or weight files."""
    out: Out[Path]
    """The .svg, .png or .pdf file to write."""
    style: Style = "scale"
    """scale: maps as cuboids, to scale; blocks: a box for each layer, as in the book."""
    network: NetworkFlags = field(default_factory=NetworkFlags)


def run(arguments: list[str]) -> None:
    """Run the verb."""
    flags = parse_flags("draw", Flags, arguments)
    check_out(flags.out, ".svg", ".png", ".pdf")
    picture = draw([flags.network.network(text) for text in flags.networks], flags.style)
    from vggkit.data.files import write_whole
    from vggkit.design.raster import rendered

    write_whole(flags.out, picture.encode() if flags.out.suffix == ".svg" else rendered(picture, flags.out.suffix))
    print(shown(flags.out, 500))
