"""The data that a recipe names, opened: feeds of batches, the preprocessing, and what to remember of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vggkit.data.feed import DECODED_TOGETHER, DeviceFeed, Feed, LoaderFeed, open_feed
from vggkit.data.images import FittedImage, RandomCrop
from vggkit.data.loader import Loader, default_workers, in_parts, local_processes
from vggkit.data.loading import epoch_order
from vggkit.data.preprocessing import Preprocessing
from vggkit.data.samples import IGNORED_LABEL, ArrayImages, Images, ImageSource
from vggkit.data.sources import open_data
from vggkit.design.memory import machine_memory_bytes
from vggkit.errors import DataError, RunError
from vggkit.training.distributed import Team
from vggkit.training.recipe import Recipe

STATISTICS_IMAGES = 2_000
"""Image files, drawn from the seed, that the mean, the standard deviation and the axes of colour are taken from."""
MEMORY_SHARE = 0.125
"""Of the device's memory, for a split that is decoded once."""


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
    """Which know the bad images."""
    notes: tuple[str, ...] = ()
    """Lines for the user."""
    stamp: str = ""
    """SHA-256 of the files' sizes and times."""

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, for `open_run_data`."""
        return {
            "fingerprint": self.fingerprint,
            "stamp": self.stamp,
            "content": {"train": self.train.content, "held_out": self.held_out.content},  # which an epoch adds to
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
        num_workers: threads that decode image files; see `default_workers`.
        pretrained: the preprocessing of the weights to start from, whose mean and std are then taken.
        facts: of the run that is resumed.
        say: is told what takes a while.

    Raises:
        DataError: the data is missing or damaged, or is not what it was when the run began.
        RunError: the recipe does not fit it.
    """
    source = open_data(
        recipe.data,
        data_dir=data_dir,
        holdout=recipe.holdout,
        seed=recipe.seed,
        stream=recipe.stream,
        epoch_images=recipe.epoch_images,
    )
    if facts is not None:
        _check_same(recipe, facts.get("fingerprint"), source.fingerprint)  # before decoding, which may take long
    splits, held_out_name = splits_of(recipe, source)
    channels = recipe.in_channels(source.channels)
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    geometry = Preprocessing(recipe.image_size, channels, zeros, ones, test_flip=recipe.test_flip)
    if recipe.shorter_side:
        side = sum(recipe.shorter_side) / len(recipe.shorter_side)  # the paper's, for one scale at test time
        geometry = replace(geometry, resize="crop", crop_fraction=recipe.image_size / side)
    fit = FittedImage(geometry)
    crop = RandomCrop(recipe.seed, channels, recipe.image_size, recipe.shorter_side) if recipe.shorter_side else fit
    opened = [_feed(recipe, team, *pair, num_workers, say) for pair in zip(splits, (crop, fit), strict=True)]
    data = RunData(
        source.name,
        source.classes,
        train=opened[0][0],
        held_out=opened[1][0],
        held_out_name=held_out_name,
        preprocessing=geometry,
        color_axes=(),
        fingerprint=source.fingerprint,
        loaders=tuple(loader for _, loader in opened if loader is not None),
        notes=source.notes,
        stamp=source.stamp,
    )
    if facts is not None:
        return _as_before(recipe, data, facts, say)
    if pretrained is not None:
        own = {name: getattr(geometry, name) for name in ("image_size", "resize", "crop_fraction", "test_flip")}
        data = replace(data, preprocessing=replace(pretrained.for_channels(channels), **own))
    is_standardised = recipe.normalize and pretrained is None
    if is_standardised or recipe.color_shift:
        sample = _sample(recipe, splits[0], data.train, fit, say)
        mean, std = _moments(sample) if is_standardised else (data.preprocessing.mean, data.preprocessing.std)
        axes = _color_axes(sample[:STATISTICS_IMAGES]) if recipe.color_shift else ()
        data = replace(data, preprocessing=replace(data.preprocessing, mean=mean, std=std), color_axes=axes)
    return data


def splits_of(recipe: Recipe, source: ImageSource) -> tuple[tuple[Images, Images], str]:
    """The images to train on and to measure by, and what the latter are called; raises `RunError` or `DataError`."""
    images, held_out, name = source.train, source.held_out, source.held_out_name
    if recipe.validation and not isinstance(images, ArrayImages):
        raise RunError(f"expected a holdout with image files, got validation {recipe.validation}, try --holdout 0.1")
    if recipe.shorter_side and isinstance(images, ArrayImages):
        raise RunError(f"expected image files with shorter_side, got {source.name}")
    side_pixels = min(images.pixels.shape[1:]) if isinstance(images, ArrayImages) else recipe.image_size
    for field in ("translate", "erase"):
        if getattr(recipe, field) >= side_pixels:
            raise RunError(f"expected {field} below the {side_pixels} pixels of an image, got {getattr(recipe, field)}")
    if recipe.validation >= len(images):
        raise DataError(f"expected validation below the {len(images)} training images, got {recipe.validation}")
    if not recipe.validation or not isinstance(images, ArrayImages):
        return (images, held_out), name
    cut = len(images) - recipe.validation
    return (images[:cut], images[cut:]), "validation"


def _feed(
    recipe: Recipe,
    team: Team,
    images: Images,
    read: FittedImage | RandomCrop,
    num_workers: int | None,
    say: Callable[[str], None],
) -> tuple[DeviceFeed | LoaderFeed, Loader | None]:
    """The feed of a split, decoded once if that gives the same images in every epoch and there is room; its loader."""
    feed = open_feed(
        images,
        read,
        team,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        num_workers=default_workers() if num_workers is None else num_workers,
        bad_images=recipe.bad_images,
    )
    if isinstance(feed, DeviceFeed):
        return feed, None
    needed_bytes = len(images) * read.shape[0] * recipe.image_size**2
    if isinstance(read, RandomCrop) or images.is_stream or needed_bytes > _room_bytes(team.device):
        return feed, feed.loader
    say(f"decoding {len(images):,} images, once")
    return feed.decoded(), feed.loader


def _as_before(recipe: Recipe, data: RunData, facts: Mapping[str, Any], say: Callable[[str], None]) -> RunData:
    """`data` prepared as it was when the run began, whose `facts` these are; raises `DataError` if it is another."""
    kept, now, notes = Preprocessing.from_json(facts["preprocessing"]), data.preprocessing, data.notes
    _check_same(recipe, (kept.image_size, kept.channels), (now.image_size, now.channels))
    content, has_moved = facts.get("content") or {}, data.stamp != facts.get("stamp")
    for feed, before in ((data.train, content.get("train")), (data.held_out, content.get("held_out"))):
        if not before:  # the run had not come through all of them, or is of an older version
            if data.stamp != facts.get("stamp", ""):
                notes = (*notes, "the images' times have changed before their content was known: they may be others")
            continue
        if not feed.content and has_moved:
            say("the images' times have changed: reading all of them, to compare their content")
            for _ in feed.batches(before["epoch"]):
                pass
        _check_same(recipe, before["sum"], feed.content.setdefault("sum", before["sum"]))
        feed.content["epoch"] = before["epoch"]
    axes = tuple(tuple(map(float, axis)) for axis in facts["color_axes"])
    return replace(data, preprocessing=kept, color_axes=axes, notes=tuple(dict.fromkeys(notes)))


def _check_same(recipe: Recipe, before: object, now: object) -> None:
    if before != now:
        raise DataError(
            f"expected the images that the run began with in {recipe.data}, got others, "
            "try to put back what was added, removed, renamed or changed, or a new run with --out"
        )


def _sample(recipe: Recipe, images: Images, feed: Feed, fit: FittedImage, say: Callable[[str], None]) -> Tensor:
    """What the mean and the standard deviation are taken from: all arrays, or `STATISTICS_IMAGES` image files.

    They are drawn from the seed; of a stream they are the first ones.
    """
    if isinstance(images, ArrayImages) and isinstance(feed, DeviceFeed):
        return feed.split.images
    say(f"reading {min(len(images), STATISTICS_IMAGES):,} images for their mean and standard deviation")
    order = torch.arange(len(images)) if images.is_stream else epoch_order(len(images), recipe.seed, epoch=0)
    parts = in_parts(np.sort(order[:STATISTICS_IMAGES].numpy()), DECODED_TOGETHER)
    loader = Loader(
        images, fit, seed=recipe.seed, num_workers=default_workers(), pin_memory=False, bad_images=recipe.bad_images
    )
    return torch.cat([pixels[labels != IGNORED_LABEL] for pixels, labels in loader.batches(parts, epoch=0)])


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
    """See `RunData.color_axes`; of uint8 (images, channels, height, width)."""
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
    return MEMORY_SHARE * machine_memory_bytes() / local_processes()
