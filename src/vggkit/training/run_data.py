"""The data that a recipe names, opened: feeds of batches, the preprocessing, and what to remember of it."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vggkit.data.fashion_mnist import Dataset
from vggkit.data.images import FittedImage, RandomCrop
from vggkit.data.loading import Split, epoch_order
from vggkit.data.preprocessing import Preprocessing
from vggkit.data.reading import IGNORED_LABEL
from vggkit.data.samples import Images, ImageSource
from vggkit.data.sources import open_data
from vggkit.data.workers import Loader, default_workers, in_parts, local_processes
from vggkit.errors import DataError, RunError
from vggkit.training.distributed import Team
from vggkit.training.feed import DeviceFeed, Feed, WorkerFeed
from vggkit.training.recipe import Recipe

STATISTICS_IMAGES = 2_000
"""Image files, drawn from the seed, that the mean, the standard deviation and the axes of colour are taken from."""
MEMORY_SHARE = 0.125
"""Of the device's memory, for a split that is decoded once."""
DECODED_TOGETHER = 256


@dataclass(frozen=True)
class RunData:
    """The data of a run, ready to be trained and evaluated on."""

    name: str
    classes: tuple[str, ...]
    train: Feed
    held_out: Feed
    held_out_name: str
    """`test`; or `validation`, which may decide something."""
    preprocessing: Preprocessing
    color_axes: tuple[tuple[float, ...], ...]
    """The principal components of the training images' colours, in [0, 1], each as long as its standard deviation."""
    fingerprint: str
    """SHA-256 that tells these images from others."""
    loaders: tuple[Loader, ...] = ()
    """Whose workers are to be ended."""
    notes: tuple[str, ...] = ()
    """Lines for the user."""

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, for `open_run_data`."""
        return {
            "fingerprint": self.fingerprint,
            "preprocessing": self.preprocessing.to_json(),
            "color_axes": [list(axis) for axis in self.color_axes],
        }

    @property
    def bad_images(self) -> dict[str, str]:
        """The names of the bad images met so far, and what is wrong with each."""
        return {name: reason for loader in self.loaders for name, reason in loader.bad.items()}


def open_run_data(
    recipe: Recipe,
    team: Team,
    *,
    data_dir: Path | None = None,
    num_workers: int | None = None,
    pretrained: Preprocessing | None = None,
    facts: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> RunData:
    """The data of `recipe`; this process's part of each batch comes to its device.

    Args:
        recipe: names the data and says how it is prepared.
        team: the processes that share the batches.
        data_dir: where to look for Fashion-MNIST first.
        num_workers: processes that decode image files; see `default_workers`.
        pretrained: the preprocessing of the weights to start from, whose mean and std are then taken.
        facts: of the run that is resumed.
        say: is told what takes a while.

    Raises:
        DataError: the data is missing or damaged, or is not what it was when the run began.
        RunError: the recipe does not fit it.
    """
    opened = open_data(
        recipe.data,
        data_dir=data_dir,
        holdout=recipe.holdout,
        seed=recipe.seed,
        stream=recipe.stream,
        epoch_images=recipe.epoch_images,
    )
    if facts is not None and isinstance(opened, ImageSource):
        _check_fingerprint(recipe, facts, opened.fingerprint)  # before it is decoded, which may take long
    if isinstance(opened, Dataset):
        data = _from_arrays(recipe, team, opened, pretrained)
    else:
        data = _from_files(recipe, team, opened, num_workers, pretrained, facts, say)
    if facts is None:
        return data
    kept, now = Preprocessing.from_json(facts["preprocessing"]), data.preprocessing
    is_same = (kept.image_size, kept.channels) == (now.image_size, now.channels)
    _check_fingerprint(recipe, facts, data.fingerprint if is_same else "")
    axes = tuple(tuple(map(float, axis)) for axis in facts["color_axes"])
    return replace(data, preprocessing=kept, color_axes=axes)


def _from_arrays(recipe: Recipe, team: Team, dataset: Dataset, pretrained: Preprocessing | None) -> RunData:
    images, labels = dataset.train_images, dataset.train_labels
    _check_augmentation(recipe, min(images.shape[1:]))
    if recipe.shorter_side:
        raise RunError(f"expected image files with shorter_side, got {dataset.name}")
    if recipe.validation >= len(images):
        raise DataError(f"expected validation below the {len(images)} training images, got {recipe.validation}")
    cut = len(images) - recipe.validation
    train = (images[:cut], labels[:cut])
    held_out = (images[cut:], labels[cut:]) if recipe.validation else (dataset.test_images, dataset.test_labels)
    splits = [Split.on(team.device, *arrays) for arrays in (train, held_out)]
    if recipe.channels == "rgb":
        splits = [Split(split.images.expand(-1, 3, -1, -1), split.labels) for split in splits]
    mean, std = _moments(splits[0].images)
    digest = hashlib.sha256()
    for array in (*train, *held_out):
        digest.update(f"{array.shape}".encode() + array.tobytes())
    feed, held_out_feed = (DeviceFeed(split, recipe.batch_size, recipe.seed, team, is_fitted=False) for split in splits)
    sample = splits[0].images[: STATISTICS_IMAGES if recipe.color_shift else 0]
    return RunData(
        dataset.name,
        dataset.classes,
        feed,
        held_out_feed,
        "validation" if recipe.validation else "test",
        _preprocessing(recipe, len(mean), mean, std, pretrained),
        _color_axes(sample),
        digest.hexdigest(),
    )


def _from_files(
    recipe: Recipe,
    team: Team,
    source: ImageSource,
    num_workers: int | None,
    pretrained: Preprocessing | None,
    facts: Mapping[str, Any] | None,
    say: Callable[[str], None],
) -> RunData:
    if recipe.validation:
        raise RunError(f"expected a holdout with image files, got validation {recipe.validation}, try --holdout 0.1")
    _check_augmentation(recipe, recipe.image_size)
    channels = 1 if recipe.channels == "grey" else 3
    # Of these only the geometry is used here, which comes from the recipe alone.
    geometry = _preprocessing(recipe, channels, (0.0,) * channels, (1.0,) * channels, None)
    fit = FittedImage(channels, geometry)
    if num_workers is None:
        num_workers = default_workers()

    def loader(images: Images, read: "FittedImage | RandomCrop") -> Loader:
        return Loader(
            images,
            read,
            seed=recipe.seed,
            num_workers=num_workers,
            pin_memory=team.device.type == "cuda",
            bad_images=recipe.bad_images,
        )

    loaders = []
    feeds: list[Feed] = []
    crop = RandomCrop(recipe.seed, channels, recipe.image_size, recipe.shorter_side) if recipe.shorter_side else None
    for images, read in ((source.train, crop or fit), (source.held_out, fit)):
        loaders.append(loader(images, read))
        needed_bytes = len(images) * channels * recipe.image_size**2
        if read is fit and not images.is_stream and needed_bytes <= _room_bytes(team.device):
            say(f"decoding {len(images):,} images, once")
            split = _decoded(images, loaders[-1], team.device)
            loaders[-1].close()
            feeds.append(DeviceFeed(split, recipe.batch_size, recipe.seed, team, is_fitted=True))
        else:
            feeds.append(WorkerFeed(images, loaders[-1], recipe.batch_size, recipe.seed, team))
    if facts is None:
        say(f"reading {min(len(source.train), STATISTICS_IMAGES):,} images for their mean and standard deviation")
        sample = _sample(source.train, fit, recipe.seed, loader)
        mean, std = _moments(sample)
        geometry = _preprocessing(recipe, channels, mean, std, pretrained)
        axes = _color_axes(sample[: len(sample) if recipe.color_shift else 0])
    else:
        axes = ()
    return RunData(
        source.name,
        source.classes,
        feeds[0],
        feeds[1],
        source.held_out_name,
        geometry,
        axes,
        source.fingerprint,
        tuple(loaders),
        source.notes,
    )


def _check_fingerprint(recipe: Recipe, facts: Mapping[str, Any], fingerprint: str) -> None:
    if facts.get("fingerprint") != fingerprint:
        raise DataError(
            f"expected the images that the run began with in {recipe.data}, got others, "
            "try to put back what was added, removed, renamed or changed, or a new run with --out"
        )


def _check_augmentation(recipe: Recipe, side_pixels: int) -> None:
    for field in ("translate", "erase"):
        if getattr(recipe, field) >= side_pixels:
            raise RunError(f"expected {field} below the {side_pixels} pixels of an image, got {getattr(recipe, field)}")


def _decoded(images: Images, loader: Loader, device: torch.device) -> Split:
    """All of `images` on the device, in their order; bad ones are black and do not count."""
    parts = in_parts(np.arange(len(images)), DECODED_TOGETHER)
    pixels, labels, start = None, torch.empty(len(images), dtype=torch.int64, device=device), 0
    for some, their_labels in loader.batches(parts, epoch=0):
        if pixels is None:
            pixels = torch.empty((len(images), *some.shape[1:]), dtype=torch.uint8, device=device)
        pixels[start : start + len(some)] = some.to(device)
        labels[start : start + len(some)] = their_labels.to(device)
        start += len(some)
    if pixels is None or not (labels != IGNORED_LABEL).any():
        raise DataError("expected an image that can be read, got none")
    return Split(pixels, labels)


def _sample(images: Images, fit: FittedImage, seed: int, loader: Callable[[Images, FittedImage], Loader]) -> Tensor:
    """Up to `STATISTICS_IMAGES` training images, drawn from the seed; of a stream the first ones."""
    order = torch.arange(len(images)) if images.is_stream else epoch_order(len(images), seed, epoch=0)
    chosen = np.sort(order[:STATISTICS_IMAGES].numpy())
    with loader(images, fit) as opened:
        parts = in_parts(chosen, DECODED_TOGETHER)
        batches = [pixels[labels != IGNORED_LABEL] for pixels, labels in opened.batches(parts, epoch=0)]
    return torch.cat(batches)


def _preprocessing(
    recipe: Recipe,
    channels: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    pretrained: Preprocessing | None,
) -> Preprocessing:
    if pretrained is not None:
        known = pretrained.for_channels(channels)
        base = replace(known, image_size=recipe.image_size, resize="stretch", crop_fraction=1.0)
    elif recipe.normalize:
        base = Preprocessing(recipe.image_size, channels, mean, std)
    else:
        base = Preprocessing(recipe.image_size, channels, (0.0,) * channels, (1.0,) * channels)
    if not recipe.shorter_side:
        return base
    side = sum(recipe.shorter_side) / len(recipe.shorter_side)  # the paper's, for one scale at test time
    return replace(base, resize="crop", crop_fraction=recipe.image_size / side)


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in [0, 1], from a histogram: exact, and without a copy."""
    means, stds = [], []
    levels = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(images.shape[1]):
        parts = [some[:, channel].flatten() for some in images.split(DECODED_TOGETHER)]
        counts = torch.stack([torch.bincount(part, minlength=256) for part in parts]).sum(0).cpu().double()
        mean = (counts @ levels) / counts.sum()
        std = ((counts @ (levels - mean).square()) / counts.sum()).sqrt().item()
        means.append(mean.item())
        stds.append(std or 1.0)  # for images all alike
    return tuple(means), tuple(stds)


def _color_axes(images: Tensor) -> tuple[tuple[float, ...], ...]:
    """See `RunData.color_axes`; of uint8 (images, channels, height, width), none of none."""
    if not len(images):
        return ()
    channels = images.shape[1]
    sums, products, count = torch.zeros(channels).double(), torch.zeros(channels, channels).double(), 0
    for some in images.split(32):  # as float64, all together would be eight times as large
        pixels = some.movedim(1, 0).flatten(1).cpu().double() / 255
        sums, products, count = sums + pixels.sum(1), products + pixels @ pixels.t(), count + pixels.shape[1]
    covariance = (products - torch.outer(sums, sums) / count) / (count - 1)
    variances, axes = torch.linalg.eigh(covariance)
    scaled = axes * variances.clamp(min=0).sqrt()
    return tuple(tuple(axis) for axis in scaled.t().tolist())


def _room_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory
    return MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / local_processes()
