"""`vgg style`: paint a photo in the style of a picture."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from vggkit.verbs.painting import FORMATS, LiveLine, PaintingFlags, write_painting
from vggkit.verbs.terminal import check_out, parse_flags


@dataclass(frozen=True, kw_only=True)
class Flags(PaintingFlags):
    """Paint a photo in the style of a picture.

    Examples:
      vgg style photo.jpg painting.jpg -o painted.png --model keras/vgg16_notop
      vgg style photo.jpg painting.jpg -o big.png --model M --sizes 256 512 1024
    """

    content: Positional[Path]
    """The photo."""
    style: Positional[Path]
    """The picture whose style is used."""
    sizes: tuple[int, ...] = (256, 512)
    """Sizes to paint at, one after another: pixels of the longer side."""
    steps: int = 100
    """Evaluations of the network at each size."""
    style_weight: float = 5.0
    """Weight of the style error; that of the content error is 1."""
    average_pooling: bool = False
    """Use average pools instead of max pools, as the authors propose."""
    original_colours: bool = False
    """Keep the photo's colours, and paint only its luminance."""


def run(arguments: list[str]) -> None:
    """Run the verb."""
    flags = parse_flags("style", Flags, arguments)
    check_out(flags.out, *FORMATS, reads=(flags.content, flags.style, flags.model))
    classifier, line = flags.classifier(), LiveLine()
    from vggkit.inference.style import stylize, with_colours_of

    painted = stylize(
        classifier,
        flags.content,
        flags.style,
        sizes=flags.sizes,
        steps=flags.steps,
        style_weight=flags.style_weight,
        average_pooling=flags.average_pooling,
        report=line,
    )
    if flags.original_colours:
        painted = with_colours_of(painted, flags.content)
    write_painting(painted, flags, line)
