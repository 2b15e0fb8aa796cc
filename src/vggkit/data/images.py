"""An image file of any usual kind to pixels: upright, grey or RGB, in 8 bits. Trusts nothing that a file says."""

import io
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

# Registered here, before processes are forked; MPO is a JPEG that a camera has put a second picture behind.
from PIL import MpoImagePlugin as MpoImagePlugin
from PIL import WebPImagePlugin as WebPImagePlugin
from torch import Tensor

from vggkit.data.files import why_not_a_file
from vggkit.data.loading import derived_seed
from vggkit.data.preprocessing import Preprocessing
from vggkit.data.samples import Sample
from vggkit.errors import DataError, one_line

MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE = 64_000_000, 30_000
"""An image that says it is larger is refused before it is decoded."""

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
    return _pixels(_decoded(content, channels, name), channels)


def fitted(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """`image` in the size that the network takes, ready for `Preprocessing.scaled`.

    Args:
        image: uint8 (channels, height, width), on the CPU.
        preprocessing: says how to resize and crop.

    Returns:
        uint8 (channels, image_size, image_size): within a level of what Pillow gives, which rounds as often, and
        of what `preprocessing` computes in float32; bicubic overshoot next to hard edges is cut off earlier.

    Raises:
        DataError: the image takes too much memory when it is resized.
    """
    try:
        return preprocessing.resized(image.unsqueeze(0))[0]
    except ValueError as error:
        raise DataError(str(error)) from None


def random_crop(
    content: Path | bytes | Image.Image,
    channels: int,
    image_size: int,
    shorter_side: tuple[int, ...],
    generator: np.random.Generator,
    name: str | None = None,
) -> Tensor:
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

    def __call__(self, sample: Sample, epoch: int, index: int) -> Tensor:
        """uint8 (channels, image_size, image_size); raises `DataError`."""
        return fitted(read_image(sample.content, self.channels, sample.name), self.preprocessing)


@dataclass(frozen=True)
class RandomCrop:
    """Reads an image as the paper trains on it, at a random size and place that seed, epoch and index decide."""

    seed: int
    channels: int
    image_size: int
    shorter_side: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of every image that it gives: (channels, height, width)."""
        return self.channels, self.image_size, self.image_size

    def __call__(self, sample: Sample, epoch: int, index: int) -> Tensor:
        """uint8 (channels, image_size, image_size); raises `DataError`."""
        generator = np.random.default_rng(derived_seed(self.seed, "crop", epoch, index))
        return random_crop(
            sample.content, self.channels, self.image_size, self.shorter_side, generator, name=sample.name
        )


def _decoded(
    content: Path | bytes | Image.Image, channels: int, name: str | None, least_side: int | None = None
) -> Image.Image:
    """The image, upright, in the mode L or RGB; if it is a JPEG, perhaps reduced, not below `least_side`."""
    if name is None:
        name = str(content) if isinstance(content, Path) else "the image"
    if isinstance(content, Path) and (found := why_not_a_file(content)):
        raise DataError(f"{name}: expected an image file, got {found}")
    mode = "L" if channels == 1 else "RGB"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's notes on odd files; its errors are what counts
            with _opened(content) as image:
                _refuse_what_is_too_large(image, name)
                if least_side is not None:
                    image.draft(mode, (least_side, least_side))
                ImageOps.exif_transpose(image, in_place=True)
                return _in_8_bits(image, name).convert(mode)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{name}: expected a {_KINDS} image, got something else") from None
    except Exception as error:  # a damaged file makes Pillow raise almost anything, struct.error and TypeError too
        raise DataError(f"{name}: expected a whole {_KINDS} image, got: {one_line(error)[:200]}") from None


def _opened(content: Path | bytes | Image.Image) -> AbstractContextManager[Image.Image]:
    if isinstance(content, Image.Image):
        return nullcontext(ImageOps.exif_transpose(content))  # a copy
    return Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=_FORMATS)


def _refuse_what_is_too_large(image: Image.Image, name: str) -> None:
    sizes = [image.size]
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # a tile may say that it is larger than its image
        sizes.append((image.tag_v2.get(TiffImagePlugin.TILEWIDTH, 0), image.tag_v2.get(TiffImagePlugin.TILELENGTH, 0)))
    for width, height in sizes:
        if width * height > MAX_IMAGE_PIXELS or max(width, height) > MAX_IMAGE_SIDE:
            raise DataError(
                f"{name}: expected at most {MAX_IMAGE_PIXELS} pixels and {MAX_IMAGE_SIDE} along a side, "
                f"got {width} x {height}"
            )


def _in_8_bits(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(f"{name}: expected 8 or 16 bits for a channel, got 32, try to convert it to 8")
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, (0, 0, 0, 255)), layers)
    return image


def _pixels(image: Image.Image, channels: int) -> Tensor:
    """The pixels of an image in the mode L or RGB: uint8 (channels, height, width)."""
    pixels = np.array(image)
    return torch.from_numpy(pixels).view(*pixels.shape[:2], channels).permute(2, 0, 1)
