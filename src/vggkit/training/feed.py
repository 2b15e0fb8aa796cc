"""What the training loop takes its batches from: images that live on the device, or files that workers decode."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vggkit.data.loading import Split, epoch_order
from vggkit.data.preprocessing import Preprocessing
from vggkit.data.reading import IGNORED_LABEL
from vggkit.data.samples import Images
from vggkit.data.workers import Loader
from vggkit.training.distributed import Team


@dataclass(frozen=True)
class Batch:
    """This process's part of a batch, on its device."""

    images: Tensor
    """uint8 (images, channels, height, width)."""
    labels: Tensor
    """int64 (images,); -100 for one that does not count."""
    part: slice
    """Of the whole batch."""
    size: int
    """Images of the whole batch."""


class Feed(Protocol):
    """The images of a split in batches."""

    @property
    def is_fitted(self) -> bool:
        """Whether the images have the network's size already, so that they are only normalised."""
        ...

    @property
    def num_images(self) -> int:
        """Images of an epoch."""
        ...

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from the one numbered `first`; epoch 0 is all images as they lie."""
        ...


def network_input(feed: Feed, images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """`images` of `feed`, perhaps augmented, as the network takes them: normalised, and resized unless they are."""
    return preprocessing.scaled(images) if feed.is_fitted else preprocessing(images)


@dataclass(frozen=True)
class DeviceFeed:
    """Images that live on the device as uint8."""

    split: Split
    batch_size: int
    seed: int
    team: Team
    is_fitted: bool

    @property
    def num_images(self) -> int:
        """Images of an epoch."""
        return len(self.split)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """See `Feed`."""
        order = epoch_order(len(self.split), self.seed, epoch).to(self.team.device) if epoch else None
        for start in range(first * self.batch_size, len(self.split), self.batch_size):
            size = min(self.batch_size, len(self.split) - start)
            part, counts = _part(self.team, size)
            here = slice(start + part.start, start + size, part.step)
            index: Tensor | slice = order[here] if order is not None else here
            images, labels = self.split.images[index], self.split.labels[index]
            yield Batch(images, labels if counts else torch.full_like(labels, IGNORED_LABEL), part, size)


@dataclass(frozen=True)
class WorkerFeed:
    """Image files that worker processes decode ahead."""

    images: Images
    loader: Loader
    batch_size: int
    seed: int
    team: Team
    is_fitted: bool = True

    @property
    def num_images(self) -> int:
        """Images of an epoch."""
        return len(self.images)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """See `Feed`."""
        total = len(self.images)
        in_order = self.images.is_stream or not epoch  # a stream shuffles itself
        order = torch.arange(total) if in_order else epoch_order(total, self.seed, epoch)
        parts, batches = [], []
        for start in range(first * self.batch_size, total, self.batch_size):
            size = min(self.batch_size, total - start)
            part, counts = _part(self.team, size)
            parts.append(order[start + part.start : start + size : part.step].numpy())
            batches.append((part, size, counts))
        device = self.team.device
        for (part, size, counts), (images, labels) in zip(batches, self.loader.batches(parts, epoch), strict=True):
            on_device = labels.to(device, non_blocking=True)
            yield Batch(
                images.to(device, non_blocking=True),
                on_device if counts else torch.full_like(on_device, IGNORED_LABEL),
                part,
                size,
            )


def _part(team: Team, size: int) -> tuple[slice, bool]:
    """This process's part of a batch of `size`, and whether it counts.

    Where there are more processes than images, those left over take the first one, uncounted, so that all take part.
    """
    counts = team.rank < size
    return slice(team.rank if counts else 0, size, team.size if counts else size), counts
