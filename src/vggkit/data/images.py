"""An image file of any usual kind to pixels: upright, grey or RGB, in 8 bits. Trusts nothing that a file says."""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

# Registered here, not by the first thread that meets one; in an MPO a camera has put a second picture behind a JPEG.
from PIL import MpoImagePlugin as MpoImagePlugin
from PIL import WebPImagePlugin as WebPImagePlugin

from vggkit.data.files import read_image_file
from vggkit.data.loading import derived_seed
from vggkit.data.preprocessing import Preprocessing
from vggkit.data.samples import Sample
from vggkit.errors import DataError, one_line

MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE = 64_000_000, 30_000
"""An image that says it is larger is refused before it is decoded."""
SMALL_FILE_PIXELS, PIXELS_PER_BYTE = 16_000_000, 500
"""More pixels than the first need a byte for each of the second: 64 million that are white are 190 kB of PNG."""
MAX_SCANNED_PIXELS = 1_000_000_000
"""Pixels times scans of a JPEG, which is 1 or 2 seconds. A progressive one has about ten scans of all its pixels."""
_START_OF_SCAN = b"\xff\xda"

warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow's notes on odd files; its errors are what counts

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_KINDS = "PNG, JPEG, WebP, GIF, BMP or TIFF"


Content = Path | bytes | Image.Image
"""An image file, the bytes in it, or an image of Pillow's, which is left as it is."""


def fitted(content: Content, preprocessing: Preprocessing, name: str = "the image") -> npt.NDArray[np.uint8]:
    """An image in the size that the network takes, ready for `Preprocessing.scaled`.

    Only the part that the network sees is resampled, by Pillow, so that a strip of 30,000 x 1 pixels takes no more
    memory than a square.

    Returns:
        uint8 (channels, image_size, image_size), within two levels of what `preprocessing` computes in float32.

    Raises:
        DataError: as for `decoded`.
    """
    image = decoded(content, preprocessing.channels, name)
    size = preprocessing.image_size
    box = preprocessing.seen(image.width, image.height)
    return pixels_of(image.resize((size, size), Image.Resampling[preprocessing.interpolation.upper()], box))


@dataclass(frozen=True)
class FittedImage:
    """Reads an image as it is evaluated: whole or cut in the middle, as the preprocessing says."""

    preprocessing: Preprocessing

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of every image that it gives: (channels, height, width)."""
        return self.preprocessing.channels, self.preprocessing.image_size, self.preprocessing.image_size

    def __call__(self, sample: Sample, epoch: int, position: int) -> npt.NDArray[np.uint8]:
        """uint8 (channels, image_size, image_size); raises `DataError`."""
        return fitted(sample.content, self.preprocessing, sample.name)


@dataclass(frozen=True)
class RandomCrop:
    """Reads a random square of an image, as for training in arXiv 1409.1556, section 3.1.

    The shorter side is scaled to S pixels, and a square is cut out at random. Only that square is resampled, by
    Pillow's bilinear filter; a JPEG is decoded at a half, a quarter or an eighth of its size if its shorter side
    is then still at least 2 S.
    """

    seed: int
    channels: int
    image_size: int
    """The side of the square in pixels, at most S."""
    shorter_side: tuple[int, ...]
    """S, or the least and the most of the integers that S is drawn from, uniformly."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of every image that it gives: (channels, height, width)."""
        return self.channels, self.image_size, self.image_size

    def __call__(self, sample: Sample, epoch: int, position: int) -> npt.NDArray[np.uint8]:
        """uint8 (channels, image_size, image_size); S and the place come from seed, epoch and position alone."""
        generator = np.random.default_rng(derived_seed(self.seed, "crop", epoch, position))
        return self.crop(sample.content, generator, sample.name)

    def crop(self, content: Content, generator: np.random.Generator, name: str = "the image") -> npt.NDArray[np.uint8]:
        """As calling this, with three numbers drawn from `generator`; raises `DataError` as `decoded` does."""
        shorter = int(generator.integers(self.shorter_side[0], self.shorter_side[-1] + 1))
        image = decoded(content, self.channels, name, least_side=2 * shorter)
        width, height = (shorter * side // min(image.size) for side in image.size)
        left, top = (int(generator.integers(0, side - self.image_size + 1)) for side in (width, height))
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + self.image_size) * across, (top + self.image_size) * down)
        return pixels_of(image.resize(self.shape[1:], Image.Resampling.BILINEAR, box))


def decoded(content: Content, channels: int, name: str, least_side: int | None = None) -> Image.Image:
    """An image in the mode L for 1 channel, RGB for 3.

    It is turned as its EXIF orientation says, transparency lies on black, 16 bits are scaled to 8, and of an
    animation it is the first frame.

    Args:
        content: PNG, JPEG, WebP, GIF, BMP or TIFF, whatever the file's name says; or an image of Pillow's.
        channels: 1 or 3.
        name: what errors call it.
        least_side: pixels, down to which a JPEG may be reduced by decoding a part of it.

    Raises:
        DataError: there is no such file, or it is not a whole image of a sane size; it is named.
    """
    if isinstance(content, Path):
        content = read_image_file(content, name)
    mode = "L" if channels == 1 else "RGB"
    try:
        with _opened(content, name) if isinstance(content, bytes) else ImageOps.exif_transpose(content) as image:
            if least_side is not None:
                image.draft(mode, (least_side, least_side))
            ImageOps.exif_transpose(image, in_place=True)
            upright = _in_8_bits(image, name)
            return upright if upright.mode == mode else upright.convert(mode)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{name}: expected a {_KINDS} image, got something else") from None
    except Exception as error:  # a damaged file makes Pillow raise almost anything, struct.error and TypeError too
        raise DataError(f"{name}: expected a whole {_KINDS} image, got: {one_line(error, 200)}") from None


def thumbnail(content: Content, channels: int, name: str, most_side: int) -> Image.Image:
    """An image as `decoded` gives it, reduced to at most `most_side` pixels along a side; raises `DataError`."""
    image = decoded(content, channels, name, least_side=most_side)
    image.thumbnail((most_side, most_side))
    return image


def _opened(content: bytes, name: str) -> Image.Image:
    """The image in a file, unless it says that it needs far more memory or time than a photo of the file's size."""
    image = Image.open(io.BytesIO(content), formats=_FORMATS)
    sizes = [image.size]
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # a tile may say that it is larger than its image
        sizes.append((image.tag_v2.get(TiffImagePlugin.TILEWIDTH, 0), image.tag_v2.get(TiffImagePlugin.TILELENGTH, 0)))
    most_pixels = min(MAX_IMAGE_PIXELS, max(SMALL_FILE_PIXELS, PIXELS_PER_BYTE * len(content)))
    for width, height in sizes:
        if width * height > most_pixels or max(width, height) > MAX_IMAGE_SIDE:
            raise DataError(
                f"{name}: expected at most {most_pixels:,} pixels and {MAX_IMAGE_SIDE:,} along a side"
                f"{' in a file of its size' * (most_pixels < MAX_IMAGE_PIXELS)}, got {width} x {height}"
            )
    num_scans = content.count(_START_OF_SCAN) if image.format in ("JPEG", "MPO") else 1
    if num_scans * image.width * image.height > MAX_SCANNED_PIXELS:
        raise DataError(
            f"{name}: expected at most {MAX_SCANNED_PIXELS:,} pixels in all scans of a JPEG, got {num_scans:,} scans "
            f"of {image.width} x {image.height}, try to save it anew"
        )
    return image


def _in_8_bits(image: Image.Image, name: str) -> Image.Image:
    transparent = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        levels = np.asarray(image)
        grey = (levels >> 8).astype(np.uint8)
        return Image.fromarray(grey if transparent is None else np.where(levels == transparent, np.uint8(0), grey))
    if image.mode in ("I", "F"):
        raise DataError(f"{name}: expected 8 or 16 bits for a channel, got 32, try to convert it to 8")
    if image.has_transparency_data:
        if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
            image.info["transparency"] = tuple(level >> 8 for level in transparent)  # of 16 bits, as Pillow cuts pixels
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, (0, 0, 0, 255)), layers)
    image.load()
    return image


def pixels_of(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The pixels of an image in the mode L or RGB: uint8 (channels, height, width)."""
    return np.array(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)
