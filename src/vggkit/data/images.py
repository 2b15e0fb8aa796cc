"""Decoding image files to upright 8-bit grey or RGB pixels, without trusting their headers."""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

# Registered here, not in the first thread that meets one. MPO: a JPEG with a second picture, from some cameras.
from PIL import MpoImagePlugin as MpoImagePlugin
from PIL import WebPImagePlugin as WebPImagePlugin

from vggkit.data.files import read_image_file
from vggkit.data.loading import derived_seed
from vggkit.data.preprocessing import Preprocessing
from vggkit.data.samples import Sample
from vggkit.errors import DataError, one_line

MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE = 64_000_000, 30_000
"""Limits that the header of an image must keep for it to be decoded."""
SMALL_FILE_PIXELS, PIXELS_PER_BYTE = 16_000_000, 500
"""Above the first, a file needs a byte per 500 pixels: 64 million white pixels take 190 kB of PNG."""
MAX_SCANNED_PIXELS = 1_000_000_000
"""Pixels times scans of a JPEG: 1 or 2 seconds of decoding. A progressive JPEG has about ten scans."""
_START_OF_SCAN = b"\xff\xda"

warnings.filterwarnings("ignore", module=r"PIL\.")  # on odd files; errors are raised anyway

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_KINDS = "PNG, JPEG, WebP, GIF, BMP or TIFF"


Content = Path | bytes | Image.Image
"""The path of an image file, its content, or a Pillow image, which is not modified."""


def fitted(content: Content, preprocessing: Preprocessing, name: str = "the image") -> npt.NDArray[np.uint8]:
    """An image in the network's size, ready for `Preprocessing.scaled`; raises `DataError` as `decoded` does.

    Pillow resamples only the part that the network sees, so that a strip of 30,000 x 1 pixels takes no more memory than
    a square. Returns uint8 (channels, image_size, image_size), within two levels of the float32 `preprocessing`.
    """
    image = decoded(content, preprocessing.channels, name)
    size = preprocessing.image_size
    box = preprocessing.visible_box(image.width, image.height)
    return pixels_of(image.resize((size, size), Image.Resampling[preprocessing.interpolation.upper()], box))


@dataclass(frozen=True)
class FittedImage:
    """Decodes an image for evaluation: stretched or cropped at the centre, as the preprocessing says."""

    preprocessing: Preprocessing

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        return self.preprocessing.channels, self.preprocessing.image_size, self.preprocessing.image_size

    def __call__(self, sample: Sample, epoch: int, position: int) -> npt.NDArray[np.uint8]:
        """uint8 (channels, image_size, image_size); raises `DataError`."""
        return fitted(sample.content, self.preprocessing, sample.name)


@dataclass(frozen=True)
class RandomCrop:
    """Decodes a random square crop of an image for training (arXiv 1409.1556, section 3.1).

    The shorter side is scaled to S pixels, and a square is cut out at random. Pillow's bilinear filter resamples only
    that square; a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if its shorter side then is at least 2 S.
    """

    seed: int
    channels: int
    image_size: int  # the side of the square in pixels, at most S
    shorter_side: tuple[int, ...]  # S, or the bounds, included, of the integers that S is drawn from uniformly

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        return self.channels, self.image_size, self.image_size

    def __call__(self, sample: Sample, epoch: int, position: int) -> npt.NDArray[np.uint8]:
        """uint8 (channels, image_size, image_size), a function of seed, epoch and position; raises `DataError`."""
        generator = np.random.default_rng(derived_seed(self.seed, "crop", epoch, position))
        return self.crop(sample.content, generator, sample.name)

    def crop(self, content: Content, generator: np.random.Generator, name: str = "the image") -> npt.NDArray[np.uint8]:
        """The same with three numbers drawn from `generator`; raises `DataError` as `decoded` does."""
        shorter = int(generator.integers(self.shorter_side[0], self.shorter_side[-1] + 1))
        image = decoded(content, self.channels, name, least_side=2 * shorter)
        width, height = (shorter * side // min(image.size) for side in image.size)
        left, top = (int(generator.integers(0, side - self.image_size + 1)) for side in (width, height))
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + self.image_size) * across, (top + self.image_size) * down)
        return pixels_of(image.resize(self.shape[1:], Image.Resampling.BILINEAR, box))


def decoded(content: Content, channels: int, name: str, least_side: int | None = None) -> Image.Image:
    """An image in Pillow's mode L for 1 channel, RGB for 3; a JPEG may be reduced to no less than `least_side` pixels.

    The EXIF orientation is applied, transparency is blended with black, 16 bits become 8, and of an animation the first
    frame is taken.

    Raises:
        DataError: the file is missing or is not a whole PNG, JPEG, WebP, GIF, BMP or TIFF of a plausible size.
    """
    if isinstance(content, Path):
        content = read_image_file(content, name)
    mode = "L" if channels == 1 else "RGB"
    try:
        with _open_checked(content, name) if isinstance(content, bytes) else ImageOps.exif_transpose(content) as image:
            if least_side is not None:
                image.draft(mode, (least_side, least_side))
            ImageOps.exif_transpose(image, in_place=True)
            upright = _to_8_bits(image, name)
            return upright if upright.mode == mode else upright.convert(mode)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{name}: expected a {_KINDS} image, got something else") from None
    except Exception as error:  # Pillow raises almost anything on a damaged file
        raise DataError(f"{name}: expected a whole {_KINDS} image, got: {one_line(error, 200)}") from None


def thumbnail(content: Content, channels: int, name: str, max_side: int) -> Image.Image:
    """An image as from `decoded`, reduced to at most `max_side` pixels along a side; raises `DataError`."""
    image = decoded(content, channels, name, least_side=max_side)
    image.thumbnail((max_side, max_side))
    return image


def _open_checked(content: bytes, name: str) -> Image.Image:
    """Open an image; raises `DataError` if its header claims too much memory or time for its bytes."""
    image = Image.open(io.BytesIO(content), formats=_FORMATS)
    sizes = [image.size]
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # a tile may claim to be larger than its image
        sizes.append((image.tag_v2.get(TiffImagePlugin.TILEWIDTH, 0), image.tag_v2.get(TiffImagePlugin.TILELENGTH, 0)))
    max_pixels = min(MAX_IMAGE_PIXELS, max(SMALL_FILE_PIXELS, PIXELS_PER_BYTE * len(content)))
    for width, height in sizes:
        if width * height > max_pixels or max(width, height) > MAX_IMAGE_SIDE:
            raise DataError(
                f"{name}: expected at most {max_pixels:,} pixels and {MAX_IMAGE_SIDE:,} along a side"
                f"{' in a file of its size' * (max_pixels < MAX_IMAGE_PIXELS)}, got {width} x {height}"
            )
    num_scans = content.count(_START_OF_SCAN) if image.format in ("JPEG", "MPO") else 1
    if num_scans * image.width * image.height > MAX_SCANNED_PIXELS:
        raise DataError(
            f"{name}: expected at most {MAX_SCANNED_PIXELS:,} pixels in all scans of a JPEG, got {num_scans:,} scans "
            f"of {image.width} x {image.height}, try to save it anew"
        )
    return image


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    transparent = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        levels = np.asarray(image)
        grey = (levels >> 8).astype(np.uint8)
        return Image.fromarray(grey if transparent is None else np.where(levels == transparent, np.uint8(0), grey))
    if image.mode in ("I", "F"):
        raise DataError(f"{name}: expected 8 or 16 bits for a channel, got 32, try to convert it to 8")
    if image.has_transparency_data:
        if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
            # Pillow truncates the 16-bit pixels in the same way.
            image.info["transparency"] = tuple(level >> 8 for level in transparent)
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, (0, 0, 0, 255)), layers)
    image.load()
    return image


def pixels_of(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The pixels of an image in mode L or RGB: uint8 (channels, height, width)."""
    return np.array(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)
