"""An image file of any usual kind to pixels: upright, grey or RGB, in 8 bits. Trusts nothing that a file says."""

import io
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

# Registered here, not by the first thread that meets one; in an MPO a camera has put a second picture behind a JPEG.
from PIL import MpoImagePlugin as MpoImagePlugin
from PIL import WebPImagePlugin as WebPImagePlugin
from torch import Tensor

from vggkit.data.files import read_image_file
from vggkit.data.loading import derived_seed
from vggkit.data.preprocessing import Preprocessing
from vggkit.data.samples import Sample
from vggkit.errors import DataError, one_line, shown

MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE = 64_000_000, 30_000
"""An image that says it is larger is refused before it is decoded."""
SMALL_FILE_PIXELS, PIXELS_PER_BYTE = 16_000_000, 500
"""More pixels than the first need a byte for each of the second: 64 million that are all white take 190 kB as a PNG."""
MAX_SCANS = 200
"""In a JPEG. A progressive one has about ten, and each costs as much as decoding the picture once."""
_START_OF_SCAN = b"\xff\xda"

warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow's notes on odd files; its errors are what counts

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_KINDS = "PNG, JPEG, WebP, GIF, BMP or TIFF"


def read_image(content: Path | bytes | Image.Image, channels: int, name: str | None = None) -> Tensor:
    """An image as uint8 (channels, height, width): grey for 1 channel, RGB for 3.

    It is turned as its EXIF orientation says, transparency lies on black, 16 bits are scaled to 8, and of an
    animation it is the first frame.

    Args:
        content: the file or the bytes in it: PNG, JPEG, WebP, GIF, BMP or TIFF, whatever its name says; or an image
            of Pillow's, which is left as it is.
        channels: 1 or 3.
        name: what errors call it; the path, if it is not given.

    Raises:
        DataError: there is no such file, or it is not a whole image of a sane size; it is named.
    """
    return torch.from_numpy(_pixels(_decoded(content, channels, name), channels))


def fitted(
    content: Path | bytes | Image.Image, channels: int, preprocessing: Preprocessing, name: str | None = None
) -> npt.NDArray[np.uint8]:
    """An image in the size that the network takes, ready for `Preprocessing.scaled`.

    Only the part that the network sees is resampled, by Pillow, so that a strip of 30,000 x 1 pixels takes no more
    memory than a square.

    Args:
        content: as for `read_image`.
        channels: 1 or 3.
        preprocessing: says how to resize and crop.
        name: as for `read_image`.

    Returns:
        uint8 (channels, image_size, image_size), within two levels of what `preprocessing` computes in float32.

    Raises:
        DataError: as for `read_image`.
    """
    image = _decoded(content, channels, name)
    size = preprocessing.image_size
    box = preprocessing.seen(image.width, image.height)
    return _pixels(image.resize((size, size), Image.Resampling[preprocessing.interpolation.upper()], box), channels)


def random_crop(
    content: Path | bytes | Image.Image,
    channels: int,
    image_size: int,
    shorter_side: tuple[int, ...],
    generator: np.random.Generator,
    name: str | None = None,
) -> npt.NDArray[np.uint8]:
    """A random square of an image file, as for training in arXiv 1409.1556, section 3.1.

    The shorter side is scaled to S pixels, and a square is cut out at random. Only that square is resampled, by
    Pillow's bilinear filter; a JPEG is decoded at a half, a quarter or an eighth of its size where its shorter side
    is then still at least 2 S.

    Args:
        content: as for `read_image`.
        channels: 1 or 3.
        image_size: the side of the square in pixels, at most S.
        shorter_side: S, or the least and the most of the integers that S is drawn from, uniformly.
        generator: what S and the place are drawn from: three numbers.
        name: as for `read_image`.

    Returns:
        uint8 (channels, image_size, image_size).

    Raises:
        DataError: as for `read_image`.
    """
    shorter = int(generator.integers(shorter_side[0], shorter_side[-1] + 1))
    image = _decoded(content, channels, name, least_side=2 * shorter)
    scale_from = min(image.size)
    width, height = (shorter * side // scale_from for side in image.size)
    left, top = (int(generator.integers(0, side - image_size + 1)) for side in (width, height))
    box = (
        left * image.width / width,
        top * image.height / height,
        (left + image_size) * image.width / width,
        (top + image_size) * image.height / height,
    )
    return _pixels(image.resize((image_size, image_size), Image.Resampling.BILINEAR, box), channels)


@dataclass(frozen=True)
class FittedImage:
    """Reads an image as it is evaluated: whole or cut in the middle, as the preprocessing says."""

    channels: int
    preprocessing: Preprocessing

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of every image that it gives: (channels, height, width)."""
        return self.channels, self.preprocessing.image_size, self.preprocessing.image_size

    def __call__(self, sample: Sample, epoch: int, position: int) -> npt.NDArray[np.uint8]:
        """uint8 (channels, image_size, image_size); raises `DataError`."""
        return fitted(sample.content, self.channels, self.preprocessing, sample.name)


@dataclass(frozen=True)
class RandomCrop:
    """Reads an image as the paper trains on it, at a random size and place that seed, epoch and position decide."""

    seed: int
    channels: int
    image_size: int
    shorter_side: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of every image that it gives: (channels, height, width)."""
        return self.channels, self.image_size, self.image_size

    def __call__(self, sample: Sample, epoch: int, position: int) -> npt.NDArray[np.uint8]:
        """uint8 (channels, image_size, image_size); raises `DataError`."""
        generator = np.random.default_rng(derived_seed(self.seed, "crop", epoch, position))
        return random_crop(
            sample.content, self.channels, self.image_size, self.shorter_side, generator, name=sample.name
        )


def _decoded(
    content: Path | bytes | Image.Image, channels: int, name: str | None, least_side: int | None = None
) -> Image.Image:
    """The image, upright, in the mode L or RGB; if it is a JPEG, perhaps reduced, not below `least_side`."""
    if name is None:
        name = shown(content, 200) if isinstance(content, Path) else "the image"
    if isinstance(content, Path):
        content = read_image_file(content, name)
    mode = "L" if channels == 1 else "RGB"
    try:
        with _opened(content) as image:
            _refuse_too_much_work(image, content, name)
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
        raise DataError(f"{name}: expected a whole {_KINDS} image, got: {one_line(error)[:200]}") from None


def _opened(content: bytes | Image.Image) -> AbstractContextManager[Image.Image]:
    if isinstance(content, Image.Image):
        return nullcontext(ImageOps.exif_transpose(content))  # a copy
    return Image.open(io.BytesIO(content), formats=_FORMATS)


def _refuse_too_much_work(image: Image.Image, content: bytes | Image.Image, name: str) -> None:
    """Raise `DataError` for an image that says it needs far more memory or time than a photo of its file's size."""
    sizes = [image.size]
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # a tile may say that it is larger than its image
        sizes.append((image.tag_v2.get(TiffImagePlugin.TILEWIDTH, 0), image.tag_v2.get(TiffImagePlugin.TILELENGTH, 0)))
    most_pixels = MAX_IMAGE_PIXELS
    if isinstance(content, bytes):
        most_pixels = min(most_pixels, max(SMALL_FILE_PIXELS, PIXELS_PER_BYTE * len(content)))
    for width, height in sizes:
        if width * height > most_pixels or max(width, height) > MAX_IMAGE_SIDE:
            raise DataError(
                f"{name}: expected at most {most_pixels:,} pixels and {MAX_IMAGE_SIDE:,} along a side"
                f"{' in a file of its size' * (most_pixels < MAX_IMAGE_PIXELS)}, got {width} x {height}"
            )
    if image.format in ("JPEG", "MPO") and isinstance(content, bytes):
        num_scans = content.count(_START_OF_SCAN)
        if num_scans > MAX_SCANS:
            raise DataError(f"{name}: expected at most {MAX_SCANS:,} scans in a JPEG, got {num_scans:,}")


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


def _pixels(image: Image.Image, channels: int) -> npt.NDArray[np.uint8]:
    """The pixels of an image in the mode L or RGB: uint8 (channels, height, width)."""
    return np.array(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)
