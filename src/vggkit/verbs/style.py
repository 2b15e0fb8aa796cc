"""`vgg style`: a photo painted in the style of a picture."""

import io
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from vggkit.errors import shown
from vggkit.verbs.models import ModelFlags
from vggkit.verbs.terminal import check_out, parse_flags, print_json, print_to_stderr

if TYPE_CHECKING:
    from PIL.Image import Image

PLAIN_LINE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class PaintingFlags(ModelFlags):
    """What the verbs that paint an image share."""

    model: str
    """The network that looks: keras/vgg16_notop (59 MB), torchvision/vgg16, a run folder or a weight file."""
    out: Annotated[Path, arg(aliases=("-o",))]
    """The image to write: .png, .jpg or .webp."""


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
    """The picture in whose style it is painted."""
    sizes: tuple[int, ...] = (256, 512)
    """Pixels of the longer side, from coarse to fine."""
    steps: int = 100
    """Evaluations of the network at each size."""
    style_weight: float = 5.0
    """Of the error of the style; that of the content counts 1."""
    average_pooling: bool = False
    """Average pools in place of max pools, as the authors propose."""
    original_colours: bool = False
    """Keep the photo's colours; only its luminance is painted."""


def run(arguments: list[str]) -> None:
    """Run the verb."""
    flags = parse_flags("style", Flags, arguments)
    check_out(flags.out, *SUFFIXES)
    classifier, line, start = flags.classifier(), LiveLine(), time.perf_counter()
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
    finish(painted, flags, line, time.perf_counter() - start)


SUFFIXES = (".png", ".jpg", ".webp")


class LiveLine:
    """Shows the newest of many lines on stderr: in place on a terminal, now and then elsewhere."""

    def __init__(self) -> None:
        self.line, self.is_live, self._last = "", sys.stderr.isatty(), time.perf_counter()

    def __call__(self, line: str) -> None:
        """Take the next line."""
        self.line, now = line, time.perf_counter()
        if self.is_live:
            print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)
        elif now - self._last >= PLAIN_LINE_SECONDS:
            self._last = now
            print_to_stderr(line)

    def close(self) -> None:
        """Leave a live line."""
        if self.is_live:
            print(file=sys.stderr)


def finish(image: "Image", flags: PaintingFlags, line: LiveLine, seconds: float) -> None:
    """Write what was painted, and say how that went."""
    from vggkit.data.files import write_whole

    line.close()
    content = io.BytesIO()
    image.save(content, {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[flags.out.suffix], quality=92)
    write_whole(flags.out, content.getvalue())
    if flags.json:
        print_json({"out": str(flags.out), "size": image.size, "seconds": round(seconds, 1), "last": line.line})
    else:
        print(f"{line.line}; {image.width}x{image.height} in {seconds:.0f} s", shown(flags.out, 500), sep="\n")
