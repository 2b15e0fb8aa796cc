"""Pictures as addresses that hold them, for a page that asks nobody else."""

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from vggkit.data.images import Content

THUMBNAIL_PIXELS = 64


def thumbnail(content: "Content", channels: int) -> str:
    """A small picture of an image, as an address that holds it."""
    from vggkit.data.images import decoded

    image = decoded(content, channels, "the image", least_side=THUMBNAIL_PIXELS)
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    return as_address(image)


def as_address(image: "Image") -> str:
    """A PNG as an address that holds it."""
    return png_address(as_png(image))


def png_address(content: bytes) -> str:
    """A PNG file as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def as_png(image: "Image") -> bytes:
    """A PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
