"""Images in every form that a user may pass, as the network takes them."""

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

from vggkit.data.images import Content, fitted
from vggkit.data.preprocessing import Preprocessing
from vggkit.data.samples import IMAGE_SUFFIXES
from vggkit.errors import DataError, shown

AnyImage = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | npt.NDArray[np.uint8] | Tensor
"""See `predict`. Floats are rounded to 8 bits; an array has 1 channel (grey), 3 (RGB) or 4 (RGBA)."""

Images = AnyImage | Iterable[AnyImage]
"""One image, or several: an iterable of images, a folder, or a 4-dimensional array or tensor."""


def prepared(image: AnyImage, preprocessing: Preprocessing, name: str = "the image") -> Tensor:
    """One image, resized and cropped, as uint8 (channels, image_size, image_size), for `Preprocessing.scaled`.

    Raises:
        DataError: it is no image, damaged or too large; the message has the path, or `name` for what is no file.
    """
    content, name = content_of(image, name)
    return torch.from_numpy(fitted(content, preprocessing, name))


def content_of(image: AnyImage, name: str = "the image") -> tuple[Content, str]:
    """One image as `decoded` and `fitted` take it, with its name; raises `DataError` for what is no image."""
    value: Any = image
    if isinstance(value, str | os.PathLike):
        name = os.fsdecode(value)
        if re.match(r"[a-z][a-z0-9+.-]+://", name):
            raise DataError(f"{shown(name)}: expected an image file, got an address, try to download it first")
        name, value = shown(name, limit=500), Path(name)
    elif hasattr(value, "read"):
        value = value.read()
    elif isinstance(value, bytearray | memoryview):
        value = bytes(value)
    elif isinstance(value, Tensor):
        if value.is_floating_point() and ((value >= 0) & (value <= 1)).all():
            value = (255 * value.detach()).round().byte()
        value = value.cpu().numpy() if value.ndim != 3 else value.cpu().movedim(0, -1).numpy()
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.size and value.ndim in (2, 3):
        value = value[..., 0] if value.shape[2:] == (1,) else value
        value = Image.fromarray(value) if value.shape[2:] in ((), (3,), (4,)) else value
    if not isinstance(value, Path | bytes | Image.Image):
        got = type(image).__name__
        if isinstance(image, np.ndarray | Tensor):
            is_number = value.size and np.issubdtype(value.dtype, np.number)
            values = f", values from {image.min():.4g} to {image.max():.4g}" if is_number else ""
            got = f"{str(image.dtype).removeprefix('torch.')} {got} of {tuple(image.shape)}{values}"
        raise DataError(
            f"{name}: expected a path, bytes, an open file, a Pillow image, a uint8 array (height, width[, channels]) "
            f"or a tensor (channels, height, width), uint8 or float in [0, 1], got {got}"
        )
    return value, name


def is_several(images: Images) -> bool:
    """Whether `images` is a list of images, even of one."""
    if isinstance(images, str | os.PathLike):
        return os.path.isdir(images)  # noqa: PTH112 (takes names of any length)
    is_one = isinstance(images, bytes | bytearray | memoryview | Mapping) or hasattr(images, "read")
    return isinstance(images, Iterable) and not is_one and getattr(images, "ndim", 4) == 4


def batches(
    images: Images, preprocessing: Preprocessing, batch_size: int, on_bad: Callable[[DataError], None] | None = None
) -> Iterator[tuple[list[str], Tensor]]:
    """The names of `images` and their pixels, uint8 (images, channels, image_size, image_size), by batch.

    A bad image raises `DataError`, or is left out and passed to `on_bad`, if given.
    """
    entries = _named(images)
    while batch := list(islice(entries, batch_size)):
        good: list[tuple[str, Tensor]] = []
        for name, image in batch:
            try:
                good.append((name, prepared(image, preprocessing, name)))
            except DataError as error:
                if on_bad is None:
                    raise
                on_bad(error)
        if good:
            yield [name for name, _ in good], torch.stack([pixels for _, pixels in good])


def _named(images: Images) -> Iterator[tuple[str, AnyImage]]:
    """Each image with its name; folders are replaced by the files in them."""
    several = is_several(images)
    entries: Any = images if several and not isinstance(images, str | os.PathLike) else [images]
    for number, image in enumerate(entries):
        if not isinstance(image, str | os.PathLike):
            yield f"image {number}" if several else "the image", image
        elif os.path.isdir(image):  # noqa: PTH112
            yield from ((str(path), path) for path in _files_in(Path(image)))
        else:
            yield os.fspath(image), image


def _files_in(folder: Path) -> list[Path]:
    """The image files in `folder` and below it, sorted, without hidden ones."""
    files = [path for path in sorted(folder.rglob("[!.]*")) if path.name.lower().endswith(IMAGE_SUFFIXES)]
    files = [path for path in files if "/." not in f"/{path.relative_to(folder)}"]
    if not files:
        raise DataError(f"{shown(str(folder), limit=500)}: expected image files in a folder, got none")
    return files
