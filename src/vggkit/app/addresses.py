"""Pictures as data URLs."""

import base64
import io
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    import numpy.typing as npt


def as_address(image: Image.Image) -> str:
    """A data URL with the image as PNG."""
    return file_address(as_png(image))


def pixels_address(pixels: "npt.NDArray[Any]") -> str:
    """A data URL of uint8 pixels (height, width) or (height, width, 1 or 3)."""
    return as_address(Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))


def file_address(content: bytes, subtype: str = "png") -> str:
    """A data URL with an image file of the type `image/<subtype>`."""
    return f"data:image/{subtype};base64,{base64.b64encode(content).decode()}"


def as_png(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
