"""The batches of training and evaluation, from images on the device or from files that are decoded ahead."""

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
    """The part of every batch that a process takes, and its device; `Team` is one."""

    @property
    def device(self) -> torch.device:
        """The device of the images."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""

    @property
    def size(self) -> int:
        """The number of processes."""

    def sum_(self, values: Tensor) -> Tensor:
        """Sum `values` over all processes, in place."""


@dataclass(frozen=True)
class Whole:
    """The share of a single process: everything."""

    device: torch.device
    rank: int = 0
    size: int = 1

    def sum_(self, values: Tensor) -> Tensor:
        """See `Share`."""
        return values


@dataclass(frozen=True)
class Batch:
    """This process's part of a batch, on its device."""

    images: Tensor  # uint8 (images, channels, height, width)
    labels: Tensor  # int64 (images,); -100 for one that does not count
    part: slice  # which part of the whole batch this is
    size: int  # images in the whole batch


def open_feed(
    images: Images,
    read: FittedImage | RandomCrop,
    share: Share,
    *,
    batch_size: int,
    seed: int = 0,
    num_workers: int = 0,
    bad_images: Literal["fail", "skip"] = "fail",
) -> "Feed":
    """The feed of a split: arrays are moved to the device at once, image files are decoded ahead of their batch.

    `read` decodes image files; of arrays it gives only the number of channels. `batch_size` counts the images of all
    processes; `seed` is for the order of each epoch. For `num_workers` and `bad_images` see `Loader`.
    """
    if isinstance(images, ArrayImages):
        split = Split.on(share.device, images.pixels, images.labels)
        split = Split(split.images.expand(-1, read.shape[0], -1, -1), split.labels)
        return DeviceFeed(split, batch_size, seed, share, is_fitted=False)
    is_cuda = share.device.type == "cuda"
    loader = Loader(images, read, seed=seed, num_workers=num_workers, pin_memory=is_cuda, bad_images=bad_images)
    return LoaderFeed(loader, batch_size, seed, share)


def network_input(feed: "Feed", images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The network's input for `images` of `feed`: normalised, and resized if necessary."""
    return preprocessing.scaled(images) if feed.is_fitted else preprocessing(images)


@dataclass(frozen=True)
class DeviceFeed:
    """Images on the device as uint8."""

    split: Split
    batch_size: int
    seed: int
    share: Share
    is_fitted: bool  # whether the images have the network's size
    content: dict[str, int] = field(default_factory=dict)
    """If known, `epoch` and the `sum` of the digests of the images in it."""

    @property
    def num_images(self) -> int:
        """Images of an epoch."""
        return len(self.split)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `first` on; epoch 0 is not shuffled."""
        order = epoch_order(len(self.split), self.seed, epoch).to(self.share.device) if epoch else None
        for start, part, is_counted, size in _batch_parts(self.share, len(self.split), self.batch_size, first):
            positions = slice(start + part.start, start + size, part.step)
            index: Tensor | slice = order[positions] if order is not None else positions
            images, labels = self.split.images[index], self.split.labels[index]
            yield Batch(images, labels if is_counted else torch.full_like(labels, IGNORED_LABEL), part, size)


@dataclass(frozen=True)
class LoaderFeed:
    """Image files that are decoded ahead."""

    loader: Loader
    batch_size: int
    seed: int
    share: Share
    is_fitted: bool = True
    content: dict[str, int] = field(default_factory=dict)  # as in `DeviceFeed`, after the first whole epoch

    @property
    def num_images(self) -> int:
        """Images of an epoch."""
        return len(self.loader.images)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `first` on; epoch 0 is not shuffled."""
        total, device = self.num_images, self.share.device
        in_order = self.loader.images.is_stream or not epoch  # a stream shuffles itself
        order = torch.arange(total) if in_order else epoch_order(total, self.seed, epoch)
        parts = list(_batch_parts(self.share, total, self.batch_size, first))
        positions = [order[start + part.start : start + size : part.step].numpy() for start, part, _, size in parts]
        content, sum_before = 0, self.loader.content
        self.loader.is_hashing = first == 0 and not self.content
        loaded = self.loader.batches(positions, epoch)
        for (_, part, is_counted, size), (images, labels) in zip(parts, loaded, strict=True):
            content = self.loader.content - sum_before if is_counted else content
            labels = labels if is_counted else torch.full_like(labels, IGNORED_LABEL)
            yield Batch(images.to(device, non_blocking=True), labels.to(device, non_blocking=True), part, size)
        if self.loader.is_hashing:
            total_content = self.share.sum_(torch.tensor(_as_int64(content), device=device))
            self.content.update(epoch=epoch, sum=int(total_content))

    def decoded(self) -> DeviceFeed:
        """All images decoded once and kept on the device; bad ones are black and do not count."""
        device, total = self.share.device, self.num_images
        pixels = torch.empty((total, *self.loader.read.shape), dtype=torch.uint8, device=device)
        labels = torch.empty(total, dtype=torch.int64, device=device)
        self.loader.is_hashing = True
        parts = in_parts(np.arange(total), DECODED_TOGETHER)
        for positions, (part_pixels, part_labels) in zip(parts, self.loader.batches(parts, epoch=0), strict=True):
            part = slice(positions[0], positions[-1] + 1)
            pixels[part], labels[part] = part_pixels.to(device), part_labels.to(device)
        if (labels == IGNORED_LABEL).all():
            raise DataError("expected an image that can be read, got none")
        content = {"epoch": 0, "sum": _as_int64(self.loader.content)}
        return DeviceFeed(Split(pixels, labels), self.batch_size, self.seed, self.share, True, content)


Feed = DeviceFeed | LoaderFeed


def _as_int64(number: int) -> int:
    """`number` modulo 2^64 as a signed 64-bit integer."""
    return (number + 2**63) % 2**64 - 2**63


def _batch_parts(share: Share, num_images: int, batch_size: int, first: int) -> Iterator[tuple[int, slice, bool, int]]:
    """For each batch from number `first` on: its start, this process's part, whether that counts, and its size.

    A process without an image of its own takes the first one, uncounted, since all must take part in each step.
    """
    for start in range(first * batch_size, num_images, batch_size):
        size = min(batch_size, num_images - start)
        is_counted = share.rank < size
        yield start, slice(share.rank if is_counted else 0, size, share.size if is_counted else size), is_counted, size
