"""`vgg dream`: a photo changed so that a layer responds more strongly."""

import time
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from vggkit.verbs.style import SUFFIXES, LiveLine, PaintingFlags, finish
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
    layer: str = "relu5_1"
    """Whose mean square grows."""
    size: int = 512
    """Pixels of the longer side."""
    octaves: int = 4
    """Sizes, each 1.4 times the one before."""
    steps: int = 10
    """Steps of gradient ascent at each size."""


def run(arguments: list[str]) -> None:
    """Run the verb."""
    flags = parse_flags("dream", Flags, arguments)
    check_out(flags.out, *SUFFIXES)
    classifier, line, start = flags.classifier(), LiveLine(), time.perf_counter()
    from vggkit.inference.style import dream

    image = dream(
        classifier,
        flags.image,
        layer=flags.layer,
        size=flags.size,
        octaves=flags.octaves,
        steps=flags.steps,
        report=line,
    )
    finish(image, flags, line, time.perf_counter() - start)
