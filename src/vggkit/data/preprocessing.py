"""The preprocessing of images, which is stored with the weights."""

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_ASPECT = 16  # before a centre crop is resized, longer images are cut to this multiple of their shorter side

MIN_STD = 1e-6
MIN_CROP_FRACTION = 0.1

Order = Literal["rgb", "bgr"]
Resize = Literal["stretch", "crop"]
Interpolation = Literal["bilinear", "bicubic"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of RGB in [0, 1]: what torchvision's and timm's weights expect."""
CAFFE_MEAN = (103.939, 116.779, 123.68)
"""Of BGR in [0, 255]: what the authors' Caffe weights, and Keras's copies of them, expect."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize to a square of `image_size`, then (value - mean) / std per channel, with values in [0, scale].

    Checked on creation; raises `ValueError`.
    """

    image_size: int
    """Pixels."""
    channels: int
    """1 for grey, 3 for colour."""
    mean: tuple[float, ...]
    """One for each channel, in the network's order, of values in [0, scale]."""
    std: tuple[float, ...]
    """One for each channel, above 0."""
    order: Order = "rgb"
    """The network's order of channels; images are always read as RGB."""
    scale: float = 1.0
    """The value of white: 1, or 255 for networks from Caffe."""
    resize: Resize = "stretch"
    """`stretch`: both sides to `image_size`. `crop`: the shorter side to `image_size / crop_fraction`, then the centre
    square."""
    crop_fraction: float = 1.0
    """With `crop`: the side of the square as a share of the shorter side, 0.1 to 1."""
    interpolation: Interpolation = "bilinear"
    """With antialiasing."""
    test_flip: bool = False
    """Whether logits are averaged over an image and its horizontal mirror image."""

    def __post_init__(self) -> None:
        if self.channels not in (1, 3) or self.image_size < 1:
            raise ValueError(
                f"expected 1 or 3 channels and a positive image_size, got {self.channels}, {self.image_size}"
            )
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"expected {self.channels} means and stds, got {len(self.mean)} and {len(self.std)}")
        if not all(map(math.isfinite, self.mean + self.std)) or min(self.std) < MIN_STD:
            raise ValueError(f"expected finite means and stds of at least {MIN_STD}, got {self.mean}, {self.std}")
        for field, allowed in (("order", Order), ("resize", Resize), ("interpolation", Interpolation)):
            if getattr(self, field) not in get_args(allowed):
                got = str(getattr(self, field))[:60]
                raise ValueError(f"expected {field} to be one of {', '.join(get_args(allowed))}, got {got!r}")
        if not isinstance(self.test_flip, bool):
            raise ValueError(f"expected test_flip to be true or false, got {str(self.test_flip)[:60]!r}")
        if not MIN_CROP_FRACTION <= self.crop_fraction <= 1 or self.scale not in (1, 255):
            raise ValueError(
                f"expected a crop_fraction from {MIN_CROP_FRACTION} to 1 and a scale of 1 or 255, "
                f"got {self.crop_fraction}, {self.scale}"
            )

    def __call__(self, images: Tensor) -> Tensor:
        """The network's input for uint8 RGB images (batch, channels, height, width) on any device.

        Returns float32 (batch, channels, image_size, image_size) in channels_last, before the normalisation within
        1/255 of torchvision's Resize and ToTensor, which round to uint8 in between.

        Raises:
            ValueError: `images` are not uint8.
        """
        if images.dtype != torch.uint8:
            raise ValueError(f"expected images as uint8, got {images.dtype}, try normalize for floats in [0, 1]")
        return self._standardize_(self._resize(images.float()))

    def scaled(self, images: Tensor) -> Tensor:
        """The network's input, float32 in channels_last, for uint8 images of its size; raises `ValueError`."""
        expected = (self.channels, self.image_size, self.image_size)
        if images.dtype != torch.uint8 or images.shape[1:] != expected:
            raise ValueError(
                f"expected images as uint8 of {expected}, got {images.dtype} of {tuple(images.shape[1:])}, "
                "try calling the preprocessing for images of other sizes"
            )
        return self._standardize_(images.float())

    def normalize(self, images: Tensor) -> Tensor:
        """The network's input for float RGB images (batch, channels, height, width) in [0, 1]; differentiable.

        Raises:
            ValueError: `images` are not floats.
        """
        if not images.is_floating_point():
            raise ValueError(f"expected images as floats in [0, 1], got {images.dtype}")
        x = images.flip(1) if self.order == "bgr" else images
        mean, std = (x.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (x * self.scale - mean) / std

    def for_channels(self, channels: int) -> "Preprocessing":
        """This preprocessing for 1 or 3 channels: means and stds are averaged, or copied."""
        if channels == self.channels:
            return self
        mean, std = ((sum(values) / self.channels,) * channels for values in (self.mean, self.std))
        return replace(self, channels=channels, mean=mean, std=std)

    def visible_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The box (left, top, right, bottom) of a `width` x `height` image that the network sees."""
        if self.resize == "stretch":
            return 0, 0, width, height
        wide, high = self._resized_size(width, height)
        left, top = round((wide - self.image_size) / 2), round((high - self.image_size) / 2)
        across, down = width / wide, height / high
        return left * across, top * down, (left + self.image_size) * across, (top + self.image_size) * down

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        """With `crop`: the width and height of the resized image before the centre crop."""
        shorter = max(self.image_size, round(self.image_size / self.crop_fraction))
        return shorter * width // min(width, height), shorter * height // min(width, height)

    def _resize(self, x: Tensor) -> Tensor:
        size = self.image_size
        if self.resize == "stretch":
            return self._interpolate(x, size, size)
        for axis in (-2, -1):  # resize only the middle of a strip, which holds the crop
            excess = x.shape[axis] - MAX_ASPECT * min(x.shape[-2:])
            if excess > 1:
                x = x.narrow(axis, excess // 2, x.shape[axis] - 2 * (excess // 2))
        wide, high = self._resized_size(x.shape[-1], x.shape[-2])
        x = self._interpolate(x, high, wide)
        top, left = round((high - size) / 2), round((wide - size) / 2)
        return x[..., top : top + size, left : left + size].contiguous()

    def _standardize_(self, x: Tensor) -> Tensor:
        """Normalise float32 `x` in [0, 255], in place."""
        if self.order == "bgr":
            x = x.flip(1)
        # Scalars for each channel: copying a tensor of means to the device would synchronise.
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            x[:, channel].mul_(self.scale / (255 * std)).sub_(mean / std)
        return _channels_last(x)

    def _interpolate(self, x: Tensor, height: int, width: int) -> Tensor:
        if x.shape[-2:] == (height, width):
            return x
        y = F.interpolate(x, size=(height, width), mode=self.interpolation, antialias=True)
        return y.clamp_(0, 255) if self.interpolation == "bicubic" else y  # bicubic overshoots

    def to_json(self) -> str:
        """This preprocessing as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Preprocessing":
        """The preprocessing from `to_json`; raises `ValueError`. Fields with defaults may be missing (version 0.1)."""
        try:
            match json.loads(text):
                case {"image_size": int(size), "channels": int(channels), "mean": [*mean], "std": [*std], **others} if (
                    not isinstance(size, bool) and not isinstance(channels, bool)
                ):
                    options: dict[str, Any] = {str(name): value for name, value in others.items()}
                    for name in {"scale", "crop_fraction"} & options.keys():
                        options[name] = float(options[name])
                    return cls(size, channels, tuple(map(float, mean)), tuple(map(float, std)), **options)
        except (TypeError, OverflowError, RecursionError, json.JSONDecodeError):
            pass
        raise ValueError(f"expected image_size, channels, mean and std as JSON, got {text[:80]!r}")


def _channels_last(x: Tensor) -> Tensor:
    """`x` (batch, channels, height, width) in strides that are unambiguously channels_last.

    In torch's usual strides a single channel is both contiguous and channels_last; a convolution takes it for
    contiguous, and the layers after it are slower: pooling on a CPU 6 times.
    """
    if x.shape[1] > 1:
        return x.contiguous(memory_format=torch.channels_last)
    height, width = x.shape[-2:]
    return x.contiguous().as_strided(x.shape, (height * width, 1, width, 1))
