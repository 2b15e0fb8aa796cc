"""Whatever a user calls an image to what a network takes."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vggkit.data.folders import IMAGE_SUFFIXES
from vggkit.data.images import read_image
from vggkit.data.preprocessing import Preprocessing
from vggkit.errors import DataError

AnyImage = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | npt.NDArray[np.uint8] | Tensor
"""An image file by its path, its bytes or the open file; an image of Pillow's; a uint8 array (height, width[,
channels]); or a tensor ([channels,] height, width), uint8 or float in [0, 1]. Grey has 1 channel, RGB 3."""

Images = AnyImage | Iterable[AnyImage]
"""One image; or several: a list or another iterable of images, a folder, an array or tensor with one more dimension."""

LUMA = (0.299, 0.587, 0.114)
"""Of ITU-R BT.601: RGB to grey as Pillow has it."""


def prepared(image: AnyImage, preprocessing: Preprocessing, device: torch.device, name: str = "the image") -> Tensor:
    """One image as a network's input, float32 (1, channels, image_size, image_size), on `device`.

    Args:
        image: see `AnyImage`.
        preprocessing: of the network's weights.
        device: where the image is resized.
        name: what errors call an image that has no path.

    Raises:
        DataError: it is no image, it is damaged, or it takes too much memory; it is named.
    """
    if isinstance(image, str | os.PathLike):
        name = os.fspath(image)
        if re.match(r"[a-z][a-z0-9+.-]+://", name):
            raise DataError(f"{name}: expected an image file, got an address, try to download it first")
        image = Path(name)
    elif hasattr(image, "read"):
        image = image.read()
    try:
        if isinstance(image, Tensor) and image.is_floating_point():
            return _prepared_floats(image, preprocessing, device)
        if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim in (2, 3):
            image = (image if image.ndim == 2 else image.permute(1, 2, 0)).cpu().numpy()
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size and image.ndim in (2, 3):
            image = image.squeeze(2) if image.shape[2:] == (1,) else image
            if image.shape[2:] in ((), (3,), (4,)):
                image = Image.fromarray(image)
        if not isinstance(image, Path | bytes | Image.Image):
            raise ValueError(
                "expected a path, bytes, an open file, a Pillow image, a uint8 array (height, width[, channels]) or a "
                f"tensor (channels, height, width), got {_described(image)}"
            )
        pixels = read_image(image, preprocessing.channels, name)
        return preprocessing(pixels.to(device).unsqueeze(0))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{name}: {error}") from None


def is_several(images: Images) -> bool:
    """Whether `images` stands for a list of images, even if it holds only one."""
    if isinstance(images, str | os.PathLike):
        return Path(images).is_dir()
    is_one = isinstance(images, bytes | bytearray | Mapping) or hasattr(images, "read")
    return isinstance(images, Iterable) and not is_one and getattr(images, "ndim", 4) == 4


def batches(
    images: Images,
    preprocessing: Preprocessing,
    device: torch.device,
    batch_size: int,
    on_bad: Callable[[DataError], None] | None = None,
) -> Iterator[tuple[list[str], Tensor]]:
    """The names and the network's input of `images`, `batch_size` at a time; no more of them are in memory.

    Args:
        images: see `Images`.
        preprocessing: of the network's weights.
        device: where the input goes.
        batch_size: images in a batch; the last batch, and one with bad images, are smaller.
        on_bad: is told of each bad image, which is then left out; without it, the error is raised.

    Raises:
        DataError: an image is bad, or there is none.
    """
    entries = _listed(images)
    while some := list(islice(entries, batch_size)):
        names, inputs = [], []
        for name, image in some:
            try:
                inputs.append(prepared(image, preprocessing, device, name))
                names.append(name)
            except DataError as error:
                if on_bad is None:
                    raise
                on_bad(error)
        if inputs:
            yield names, torch.cat(inputs)


def _listed(images: Images) -> Iterator[tuple[str, AnyImage]]:
    several = is_several(images)
    entries: Any = images if several and not isinstance(images, str | os.PathLike) else [images]
    for number, image in enumerate(entries):
        if not isinstance(image, str | os.PathLike):
            yield f"image {number}" if several else "the image", image
        elif Path(image).is_dir():
            for path in _files_in(Path(image)):
                yield str(path), path
        else:
            yield os.fspath(image), image


def _files_in(folder: Path) -> list[Path]:
    """The image files in `folder` and the folders in it, sorted; hidden ones left out."""
    suffixes = tuple(suffix.decode() for suffix in IMAGE_SUFFIXES)
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.name.lower().endswith(suffixes)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise DataError(f"{folder}: expected image files in a folder, got none")
    return found


def _prepared_floats(image: Tensor, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    x = image.detach().to(device, torch.float32)
    x = x.unsqueeze(0) if x.ndim == 2 else x
    if x.ndim != 3 or x.shape[0] not in (1, 3) or not x.numel() or not ((x >= 0) & (x <= 1)).all():
        raise ValueError(
            f"expected floats in [0, 1] of shape (channels, height, width), got {_described(image)}"
            + (f" from {image.min():.4g} to {image.max():.4g}" if image.numel() else "")
        )
    if preprocessing.channels == 1 and len(x) == 3:
        x = (x * x.new_tensor(LUMA).view(3, 1, 1)).sum(dim=0, keepdim=True)
    x = x.expand(preprocessing.channels, -1, -1).unsqueeze(0)
    return preprocessing.normalize(preprocessing.resized(255 * x) / 255)


def _described(image: object) -> str:
    if isinstance(image, np.ndarray | Tensor):
        return f"{image.dtype} {type(image).__name__} of {tuple(image.shape)}".removeprefix("torch.")
    return type(image).__name__
