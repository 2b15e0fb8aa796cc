"""Where training and evaluation take their batches from: images on the device, or files that are decoded ahead."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from vggkit.data.images import FittedImage, RandomCrop
from vggkit.data.loader import Loader, in_parts
from vggkit.data.loading import Split, epoch_order
from vggkit.data.preprocessing import Preprocessing
from vggkit.data.samples import IGNORED_LABEL, ArrayImages, Images
from vggkit.errors import DataError

DECODED_TOGETHER = 256


class Share(Protocol):
    """Which part of every batch a process takes, and where to; a `Team` is one."""

    @property
    def device(self) -> torch.device:
        """Where the images go."""
        ...

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many processes there are."""
        ...

    def sum_(self, values: Tensor) -> Tensor:
        """`values` with the sum over all processes, in place."""
        ...


@dataclass(frozen=True)
class Whole:
    """The share of a process that is alone."""

    device: torch.device
    rank: int = 0
    size: int = 1

    def sum_(self, values: Tensor) -> Tensor:
        """See `Share`."""
        return values


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

    @property
    def content(self) -> dict[str, int]:
        """What is known of the images' content: an epoch, and the sum of the digests of the images in it."""
        ...

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from the one numbered `first`; epoch 0 is all images in their own order."""
        ...


def open_feed(
    images: Images,
    read: FittedImage | RandomCrop,
    share: Share,
    *,
    batch_size: int,
    seed: int = 0,
    num_workers: int = 0,
    bad_images: Literal["fail", "skip"] = "fail",
) -> "DeviceFeed | LoaderFeed":
    """The feed of any split: arrays go to the device in whole, and image files are decoded ahead of their batch.

    Args:
        images: a split of what `open_data` gives.
        read: how an image file becomes what the network takes; of arrays only its number of channels matters.
        share: the device, and the part of each batch.
        batch_size: images of a whole batch, in all processes together.
        seed: of the order in each epoch.
        num_workers: how many images are decoded at the same time.
        bad_images: `fail` at a file that is no image or broken, or `skip` it: it comes as zeros with the label -100.
    """
    if isinstance(images, ArrayImages):
        split = Split.on(share.device, images.pixels, images.labels)
        split = Split(split.images.expand(-1, read.shape[0], -1, -1), split.labels)
        return DeviceFeed(split, batch_size, seed, share, is_fitted=False)
    loader = Loader(
        images,
        read,
        seed=seed,
        num_workers=num_workers,
        pin_memory=share.device.type == "cuda",
        bad_images=bad_images,
    )
    return LoaderFeed(images, loader, batch_size, seed, share)


def network_input(feed: Feed, images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """`images` of `feed`, perhaps augmented, as the network takes them: normalised, and resized unless they are."""
    return preprocessing.scaled(images) if feed.is_fitted else preprocessing(images)


@dataclass(frozen=True)
class DeviceFeed:
    """Images that live on the device as uint8."""

    split: Split
    batch_size: int
    seed: int
    share: Share
    is_fitted: bool
    content: dict[str, int] = field(default_factory=dict)
    """What is known of the images' content, see `LoaderFeed`."""

    @property
    def num_images(self) -> int:
        """Images of an epoch."""
        return len(self.split)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """See `Feed`."""
        order = epoch_order(len(self.split), self.seed, epoch).to(self.share.device) if epoch else None
        for start in range(first * self.batch_size, len(self.split), self.batch_size):
            size = min(self.batch_size, len(self.split) - start)
            part, counts = _part(self.share, size)
            here = slice(start + part.start, start + size, part.step)
            index: Tensor | slice = order[here] if order is not None else here
            images, labels = self.split.images[index], self.split.labels[index]
            yield Batch(images, labels if counts else torch.full_like(labels, IGNORED_LABEL), part, size)


@dataclass(frozen=True)
class LoaderFeed:
    """Image files that are decoded ahead."""

    images: Images
    loader: Loader
    batch_size: int
    seed: int
    share: Share
    is_fitted: bool = True
    content: dict[str, int] = field(default_factory=dict)
    """After the first whole epoch that was read: its number and the sum of the digests of the images in it."""

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
            part, counts = _part(self.share, size)
            parts.append(order[start + part.start : start + size : part.step].numpy())
            batches.append((part, size, counts))
        device, sum_before = self.share.device, self.loader.content
        self.loader.is_hashing = first == 0 and not self.content
        content = 0
        for (part, size, counts), (images, labels) in zip(batches, self.loader.batches(parts, epoch), strict=True):
            content = self.loader.content - sum_before if counts else content
            on_device = labels.to(device, non_blocking=True)
            yield Batch(
                images.to(device, non_blocking=True),
                on_device if counts else torch.full_like(on_device, IGNORED_LABEL),
                part,
                size,
            )
        if self.loader.is_hashing:
            of_all = self.share.sum_(torch.tensor(_signed(content), device=device))
            self.content.update(epoch=epoch, sum=int(of_all))

    def decoded(self) -> DeviceFeed:
        """All images, decoded once and kept on the device, in their order; bad ones are black and do not count."""
        device, start = self.share.device, 0
        pixels, labels = None, torch.empty(len(self.images), dtype=torch.int64, device=device)
        self.loader.is_hashing = True
        for some, their_labels in self.loader.batches(in_parts(np.arange(len(self.images)), DECODED_TOGETHER), epoch=0):
            if pixels is None:
                pixels = torch.empty((len(self.images), *some.shape[1:]), dtype=torch.uint8, device=device)
            pixels[start : start + len(some)] = some.to(device)
            labels[start : start + len(some)] = their_labels.to(device)
            start += len(some)
        if pixels is None or not (labels != IGNORED_LABEL).any():
            raise DataError("expected an image that can be read, got none")
        content = {"epoch": 0, "sum": _signed(self.loader.content)}
        return DeviceFeed(Split(pixels, labels), self.batch_size, self.seed, self.share, True, content)


def _signed(number: int) -> int:
    """`number` modulo 2^64, as an int64 has it."""
    return (number + 2**63) % 2**64 - 2**63


def _part(share: Share, size: int) -> tuple[slice, bool]:
    """This process's part of a batch of `size`, and whether it counts.

    If there are more processes than images, those left over take the first one, uncounted, so that all take part.
    """
    counts = share.rank < size
    return slice(share.rank if counts else 0, size, share.size if counts else size), counts
