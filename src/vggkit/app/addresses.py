"""Pictures as addresses that hold them, for a page that asks nobody else."""

import base64
import io
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    import numpy.typing as npt


def as_address(image: Image.Image) -> str:
    """An image as the address of a PNG file that it holds."""
    return png_address(as_png(image))


def pixels_address(pixels: "npt.NDArray[Any]") -> str:
    """uint8 (height, width), or (height, width, 1 or 3), as an address that holds it."""
    return as_address(Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))


def png_address(content: bytes) -> str:
    """A PNG file as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def as_png(image: Image.Image) -> bytes:
    """A PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
