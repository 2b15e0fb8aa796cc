"""What is done to an image before the network sees it; it travels with the weights."""

import json
import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from vggkit.data.fashion_mnist import DataError
from vggkit.data.files import why_not_a_file

MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE = 64_000_000, 30_000
"""An image that says it is larger is refused before it is decoded."""

MIN_STD = 1e-6


@dataclass(frozen=True)
class Preprocessing:
    """Stretch to a square of `image_size`, bilinear with antialiasing, then (x / 255 - mean) / std per channel."""

    image_size: int
    """Pixels."""
    channels: int
    """1 for grey, 3 for RGB."""
    mean: tuple[float, ...]
    """One for each channel, of values in [0, 1]."""
    std: tuple[float, ...]
    """One for each channel, above 0."""

    def __post_init__(self) -> None:
        if self.channels not in (1, 3) or self.image_size < 1:
            raise ValueError(f"expected 1 or 3 channels and a positive image_size, got {self}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"expected {self.channels} means and as many stds, got {self.mean}, {self.std}")
        if not all(map(math.isfinite, self.mean + self.std)) or min(self.std) < MIN_STD:
            raise ValueError(f"expected finite means and stds of at least {MIN_STD}, got {self.mean}, {self.std}")

    def __call__(self, images: Tensor) -> Tensor:
        """The network's input.

        Args:
            images: uint8 (batch, channels, height, width), on any device, where the work is then done.

        Returns:
            float32 (batch, channels, image_size, image_size) in channels_last. Before it is normalised it is
            within 1/255 of what torchvision's Resize and ToTensor give, which round to uint8 in between.
        """
        x = images.float()
        if x.shape[-2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            x = F.interpolate(x, size=size, mode="bilinear", antialias=True)
        # By plain numbers, channel by channel: a tensor of means would be copied to the device, which waits for it.
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            x[:, channel].mul_(1 / (255 * std)).sub_(mean / std)
        return _channels_last(x)

    def to_json(self) -> str:
        """This preprocessing as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Preprocessing":
        """The preprocessing that `to_json` wrote; raises `ValueError` for anything else."""
        try:
            match json.loads(text):
                case {"image_size": int(size), "channels": int(channels), "mean": [*mean], "std": [*std]}:
                    return cls(size, channels, tuple(map(float, mean)), tuple(map(float, std)))
        except (TypeError, OverflowError, RecursionError, json.JSONDecodeError):
            pass
        raise ValueError(f"expected image_size, channels, mean and std as JSON, got {text[:80]!r}")


def _channels_last(x: Tensor) -> Tensor:
    """`x` (batch, channels, height, width) with strides that can only be channels_last.

    One channel in torch's usual strides is channels_last and contiguous alike; a convolution then takes it for
    contiguous, and so does every layer behind it until the next one: 6 times slower pooling, on a CPU.
    """
    if x.shape[1] > 1:
        return x.contiguous(memory_format=torch.channels_last)
    height, width = x.shape[-2:]
    return x.contiguous().as_strided(x.shape, (height * width, 1, width, 1))


def read_image(path: Path, channels: int) -> Tensor:
    """The image in a PNG or JPEG file as uint8 (channels, height, width): grey for 1 channel, RGB for 3.

    It is turned as its EXIF orientation says; 8-bit transparency lies on black; 16 bits are scaled to 8.

    Raises:
        DataError: there is no such file, or it is not a whole PNG or JPEG image of a sane size; it is named.
    """
    if found := why_not_a_file(path):
        raise DataError(f"{path}: expected an image file, got {found}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's notes on odd files; its errors are what counts
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                if image.width * image.height > MAX_IMAGE_PIXELS or max(image.size) > MAX_IMAGE_SIDE:
                    raise DataError(
                        f"{path}: expected at most {MAX_IMAGE_PIXELS} pixels and {MAX_IMAGE_SIDE} along a side, "
                        f"got {image.width} x {image.height}"
                    )
                upright = ImageOps.exif_transpose(image)
                pixels = np.array(_to_8_bits(upright).convert("L" if channels == 1 else "RGB"))
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{path}: expected a PNG or JPEG image, got something else") from None
    except Exception as error:  # a damaged file makes Pillow raise almost anything, struct.error and TypeError too
        raise DataError(f"{path}: expected a whole PNG or JPEG image, got: {error}") from None
    return torch.from_numpy(pixels).view(*pixels.shape[:2], channels).permute(2, 0, 1)


def _to_8_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, (0, 0, 0, 255)), layers)
    return image
