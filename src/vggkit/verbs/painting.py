"""Shared by the verbs that paint an image: flags, a live progress line, and the file that is written."""

import io
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vggkit.errors import shown
from vggkit.verbs.models import ModelFlags
from vggkit.verbs.terminal import Out, print_json, print_to_stderr

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}
PLAIN_LINE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class PaintingFlags(ModelFlags):
    """The flags of the verbs that paint an image."""

    model: str
    """The network: keras/vgg16_notop (59 MB), torchvision/vgg16, a run folder or a weight file."""
    out: Out[Path]
    """The image to write: .png, .jpg or .webp."""


class LiveLine:
    """Shows progress on stderr: a line that is replaced on a terminal, a line every 10 seconds elsewhere."""

    def __init__(self) -> None:
        self.line, self.is_live, self.start = "", sys.stderr.isatty(), time.perf_counter()
        self._last = self.start

    def __call__(self, line: str) -> None:
        """Show the next line."""
        self.line, now = line, time.perf_counter()
        if self.is_live:
            print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)
        elif now - self._last >= PLAIN_LINE_SECONDS:
            self._last = now
            print_to_stderr(line)


def write_painting(image: "Image", flags: PaintingFlags, line: LiveLine) -> None:
    """Write the image to --out, and print the last line of progress, the size and the time."""
    seconds = time.perf_counter() - line.start
    if line.is_live:
        print(file=sys.stderr)
    from vggkit.data.files import write_whole

    content = io.BytesIO()
    image.save(content, FORMATS[flags.out.suffix], quality=92)
    write_whole(flags.out, content.getvalue())
    if flags.json:
        print_json({"out": str(flags.out), "size": image.size, "seconds": round(seconds, 1), "last": line.line})
    else:
        print(f"{line.line}; {image.width}x{image.height} in {seconds:.0f} s", shown(flags.out, 500), sep="\n")
