"""The opened data of a recipe: feeds of batches, the preprocessing, and facts for a checkpoint."""

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

STATISTICS_IMAGES = 2_000  # image files, drawn from the seed, for the mean, the standard deviation and the colour axes
MEMORY_SHARE = 0.125  # maximum share of the device's memory for a split that is decoded once


@dataclass(frozen=True)
class RunData:
    """The data of a run, ready for training and evaluation."""

    name: str
    classes: tuple[str, ...]
    train: Feed
    held_out: Feed
    held_out_name: str  # `test`; or `validation`, which may decide on the best checkpoint
    preprocessing: Preprocessing
    color_axes: tuple[tuple[float, ...], ...]
    """The principal components of the training images' colours in [0, 1], scaled by their standard deviations."""
    fingerprint: str
    loaders: tuple[Loader, ...] = ()  # those of image files, which record the bad ones
    notes: tuple[str, ...] = ()
    stamp: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint stores for `open_run_data`."""
        return {
            "fingerprint": self.fingerprint,
            "stamp": self.stamp,
            "content": {"train": self.train.content, "held_out": self.held_out.content},  # known after an epoch
            "preprocessing": self.preprocessing.to_json(),
            "color_axes": [list(axis) for axis in self.color_axes],
        }

    @property
    def bad_images(self) -> dict[str, str]:
        """The names of the bad images so far, and the reasons."""
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
    """The data of `recipe`, whose batches the processes of `team` share.

    Mean and std are those of `pretrained`, the preprocessing of the weights to start from, if given. `facts` are those
    of the run to resume. `say` is called before long operations.

    Raises:
        DataError: the data is missing or damaged, or has changed since the run began.
        RunError: the recipe does not fit the data.
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
        side = sum(recipe.shorter_side) / len(recipe.shorter_side)  # as in the paper, for one scale at test time
        geometry = replace(geometry, resize="crop", crop_fraction=recipe.image_size / side)
    test_reader = FittedImage(geometry)
    train_reader: FittedImage | RandomCrop = test_reader
    if recipe.shorter_side:
        train_reader = RandomCrop(recipe.seed, channels, recipe.image_size, recipe.shorter_side)
    readers = (train_reader, test_reader)
    feeds = [_feed(recipe, team, *pair, num_workers, say) for pair in zip(splits, readers, strict=True)]
    data = RunData(
        source.name,
        source.classes,
        train=feeds[0][0],
        held_out=feeds[1][0],
        held_out_name=held_out_name,
        preprocessing=geometry,
        color_axes=(),
        fingerprint=source.fingerprint,
        loaders=tuple(loader for _, loader in feeds if loader is not None),
        notes=source.notes,
        stamp=source.stamp,
    )
    if facts is not None:
        return _restored(recipe, data, facts, say)
    if pretrained is not None:
        statistics = pretrained.for_channels(channels)
        names = ("mean", "std", "order", "scale", "interpolation")
        data = replace(data, preprocessing=replace(geometry, **{name: getattr(statistics, name) for name in names}))
    is_standardised = recipe.normalize and pretrained is None
    if is_standardised or recipe.color_shift:
        sample = _sample_images(recipe, splits[0], data.train, test_reader, say)
        mean, std = _moments(sample) if is_standardised else (data.preprocessing.mean, data.preprocessing.std)
        axes = _color_axes(sample[:STATISTICS_IMAGES]) if recipe.color_shift else ()
        data = replace(data, preprocessing=replace(data.preprocessing, mean=mean, std=std), color_axes=axes)
    return data


def splits_of(recipe: Recipe, source: ImageSource) -> tuple[tuple[Images, Images], str]:
    """The images to train and to evaluate on, and the name of the latter; raises `RunError` or `DataError`."""
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
    """The feed of a split, decoded once if all epochs are alike and memory suffices; and its loader."""
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
    if isinstance(read, RandomCrop) or images.is_stream or needed_bytes > _max_decoded_bytes(team.device):
        return feed, feed.loader
    say(f"decoding {len(images):,} images, once")
    return feed.decoded(), feed.loader


def _restored(recipe: Recipe, data: RunData, facts: Mapping[str, Any], say: Callable[[str], None]) -> RunData:
    """`data` with the preprocessing from the `facts` of a run; raises `DataError` if the content has changed."""
    saved, now, notes = Preprocessing.from_json(facts["preprocessing"]), data.preprocessing, data.notes
    _check_same(recipe, (saved.image_size, saved.channels), (now.image_size, now.channels))
    content, has_moved = facts.get("content") or {}, data.stamp != facts.get("stamp")
    for feed, before in ((data.train, content.get("train")), (data.held_out, content.get("held_out"))):
        if not before:  # stopped in the first epoch, or from an older version
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
    return replace(data, preprocessing=saved, color_axes=axes, notes=tuple(dict.fromkeys(notes)))


def _check_same(recipe: Recipe, before: object, now: object) -> None:
    if before != now:
        raise DataError(
            f"expected the images that the run began with in {recipe.data}, got others, "
            "try to put back what was added, removed, renamed or changed, or a new run with --out"
        )


def _sample_images(
    recipe: Recipe, images: Images, feed: Feed, test_reader: FittedImage, say: Callable[[str], None]
) -> Tensor:
    """The images for mean and standard deviation: all arrays, or `STATISTICS_IMAGES` image files.

    Files are drawn from the seed; of a stream they are the first ones.
    """
    if isinstance(images, ArrayImages) and isinstance(feed, DeviceFeed):
        return feed.split.images
    say(f"reading {min(len(images), STATISTICS_IMAGES):,} images for their mean and standard deviation")
    order = torch.arange(len(images)) if images.is_stream else epoch_order(len(images), recipe.seed, epoch=0)
    parts = in_parts(np.sort(order[:STATISTICS_IMAGES].numpy()), DECODED_TOGETHER)
    loader = Loader(
        images,
        test_reader,
        seed=recipe.seed,
        num_workers=default_workers(),
        pin_memory=False,
        bad_images=recipe.bad_images,
    )
    return torch.cat([pixels[labels != IGNORED_LABEL] for pixels, labels in loader.batches(parts, epoch=0)])


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Exact mean and standard deviation of each channel in [0, 1], from a histogram."""
    means, stds = [], []
    levels = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(images.shape[1]):
        parts = [part[:, channel].flatten() for part in images.split(DECODED_TOGETHER)]
        counts = torch.stack([torch.bincount(part, minlength=256) for part in parts]).sum(0).cpu().double()
        mean = (counts @ levels) / counts.sum()
        std = ((counts @ (levels - mean).square()) / counts.sum()).sqrt().item()
        means.append(mean.item())
        stds.append(std or 1.0)  # for identical images
    return tuple(means), tuple(stds)


def _color_axes(images: Tensor) -> tuple[tuple[float, ...], ...]:
    """`RunData.color_axes` of uint8 (images, channels, height, width)."""
    channels = images.shape[1]
    sums, products, count = torch.zeros(channels).double(), torch.zeros(channels, channels).double(), 0
    for part in images.split(32):  # float64 takes eight times the memory
        pixels = part.movedim(1, 0).flatten(1).cpu().double() / 255
        sums, products, count = sums + pixels.sum(1), products + pixels @ pixels.t(), count + pixels.shape[1]
    covariance = (products - torch.outer(sums, sums) / count) / (count - 1)
    variances, axes = torch.linalg.eigh(covariance)
    scaled = axes * variances.clamp(min=0).sqrt()
    return tuple(tuple(axis) for axis in scaled.t().tolist())


def _max_decoded_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory
    return MEMORY_SHARE * machine_memory_bytes() / local_processes()
