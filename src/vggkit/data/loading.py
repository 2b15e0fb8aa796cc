"""Images on the device as uint8, their random augmentation, and seeds for every random draw."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Split:
    """Images and labels on a device."""

    images: Tensor  # uint8 (images, channels, height, width)
    labels: Tensor  # int64 (images,)

    @classmethod
    def on(cls, device: torch.device, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> "Split":
        """Grey images (images, height, width) and their labels (images,) on `device`."""
        int64_labels = torch.from_numpy(labels.astype(np.int64))
        return cls(torch.from_numpy(images).unsqueeze(1).to(device), int64_labels.to(device))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images, drawn for each image on the images' device."""

    flip: bool = False  # mirror horizontally with probability 1/2
    translate: int = 0  # maximum shift in pixels in each direction; the border is black
    erase: int = 0  # side in pixels of a square that is blacked out at a random place

    def __call__(
        self, images: Tensor, generator: torch.Generator, part: slice = slice(None), batch_size: int | None = None
    ) -> Tensor:
        """Augmented images; uint8 (batch, channels, height, width) in and out.

        If `images` are only a `part` of a batch of `batch_size`, the result is that part of the augmented whole batch.
        """
        batch, height, width = images.shape[0], *images.shape[-2:]

        def draw(high: int) -> Tensor:
            drawn = torch.randint(high, (batch_size or batch,), generator=generator, device=images.device)
            return drawn[part]

        if self.flip:
            images = torch.where(draw(2).view(-1, 1, 1, 1) == 1, images.flip(-1), images)
        if self.translate:
            images = F.pad(images, (self.translate,) * 4)
            rows = torch.arange(height, device=images.device) + draw(2 * self.translate + 1).view(-1, 1)
            columns = torch.arange(width, device=images.device) + draw(2 * self.translate + 1).view(-1, 1)
            every = torch.arange(batch, device=images.device).view(-1, 1, 1)
            # The advanced indices come first in the result: (batch, height, width, channels).
            images = images.permute(0, 2, 3, 1)[every, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)
        if self.erase:
            # The centre is anywhere in the image, so that up to three quarters of the square may be outside.
            near_rows, near_columns = (
                (torch.arange(side, device=images.device) + 0.5 - draw(side + 1).view(-1, 1)).abs() < self.erase / 2
                for side in (height, width)
            )
            images = images.masked_fill((near_rows.unsqueeze(2) & near_columns.unsqueeze(1)).unsqueeze(1), 0)
        return images


def cutmix(
    images: Tensor, probability: float, generator: torch.Generator, part: slice = slice(None), batch_size: int = 0
) -> Tensor:
    """Replace a random rectangle of an image by that of the previous image, with `probability`, in place.

    The rectangle's area is uniform from 0 to 1 and is clipped at the border. Source: arXiv 1905.04899, where one
    rectangle is drawn for a batch. `images`, (images, channels, height, width), may be a `part` of a batch of
    `batch_size`; the first takes from the last.

    Returns the share of each image's pixels that come from the previous image: float32 (images,).
    """
    drawn = torch.rand((4, batch_size or len(images)), generator=generator, device=images.device)
    chance, area, *centre = drawn[:, part].unsqueeze(2)
    half_side = (area * (chance < probability)).sqrt() / 2
    rows, columns = (
        ((torch.arange(side, device=images.device) + 0.5) / side - middle).abs() < half_side
        for side, middle in zip(images.shape[-2:], centre, strict=True)
    )
    rectangles: Tensor = (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)
    torch.where(rectangles, images.roll(1, 0), images, out=images)
    return rectangles.float().mean(dim=(1, 2, 3))


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A seed, 0 to 2^63 - 1, that `seed` and the purpose determine, so that a draw depends on no earlier ones."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def epoch_order(num_images: int, seed: int, epoch: int) -> Tensor:
    """The order of the images in an epoch: int64 (num_images,), on the CPU, a function of `seed` and `epoch`."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(num_images, generator=generator)
