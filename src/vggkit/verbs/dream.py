"""`vgg dream`: change a photo so that a layer responds more strongly to it."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from vggkit.verbs.painting import FORMATS, LiveLine, PaintingFlags, write_painting
from vggkit.verbs.terminal import check_out, parse_flags


@dataclass(frozen=True, kw_only=True)
class Flags(PaintingFlags):
    """Change a photo so that a layer responds more strongly to it.

    Examples:
      vgg dream photo.jpg -o dream.png --model keras/vgg16_notop
      vgg dream photo.jpg -o dream.png --model torchvision/vgg16 --layer relu4_3
    """

    image: Positional[Path]
    """The photo."""
    layer: str | None = None
    """The layer whose mean square is increased; if not given, relu5_1, or the last of relu1_1 to relu4_1."""
    size: int = 512
    """Pixels of the longer side."""
    octaves: int = 4
    """Number of sizes, each 1.4 times the one before."""
    steps: int = 10
    """Steps of gradient ascent at each size."""


def run(arguments: list[str]) -> None:
    """Run the verb."""
    flags = parse_flags("dream", Flags, arguments)
    check_out(flags.out, *FORMATS, reads=(flags.image, flags.model))
    classifier, line = flags.classifier(), LiveLine()
    from vggkit.inference.style import dream

    dreamt = dream(
        classifier,
        flags.image,
        layer=flags.layer,
        size=flags.size,
        octaves=flags.octaves,
        steps=flags.steps,
        report=line,
    )
    write_painting(dreamt, flags, line)
