"""The recipe of a run as frozen, validated data, and the named recipes. Imports no torch."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Literal, get_args, get_type_hints

from vggkit.design.architecture import POOLED_SIZE, Architecture, Head, Init
from vggkit.design.layers import as_tuple
from vggkit.design.network import Network, as_network
from vggkit.errors import RecipeError, nearest, shown

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["constant", "cosine", "linear", "plateau"]
Channels = Literal["data", "grey", "rgb"]
BadImages = Literal["fail", "skip"]
Compression = Literal["none", "bf16", "powersgd"]

PLATEAU_EPOCHS = 5  # epochs without a better accuracy after which the schedule `plateau` divides the learning rate
PLATEAU_FACTOR = 10.0

_BOUNDS = {
    **dict.fromkeys(("epochs", "batch_size"), (1, 10**6)),
    "head_epochs": (0, 10**6),
    **dict.fromkeys(("translate", "erase"), (0, 10**4)),
    "validation": (0, 10**9),
    "epoch_images": (0, 10**12),
    "seed": (0, 2**31 - 1),
    **dict.fromkeys(("learning_rate", "weight_decay"), (0, 1e6)),
    **dict.fromkeys(("warmup", "momentum", "label_smoothing", "color_shift", "holdout", "cutmix", "average"), (0, 1)),
    "dropout": (0, 1),
    "pooled_size": (1, 255),
}
"""Bounds of numeric fields; `Architecture` checks the others of the network."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run. Checked on creation; an invalid value raises `RecipeError`.

    Attributes:
        name: Name of the recipe, after which its run folders are called.
        architecture: A name (vgg11_bn/4, lenet, alexnet) or blocks (1x64 2x128); the data decides channels and classes.
        image_size: Pixels along a side of the network's input.
        data: fashion-mnist, fashion-mnist-sample, a folder (of classes, parquet, tar or IDX files) or hub:owner/name.
        channels: Channels of the network's input: those of the data (colour, for image files), or grey, or rgb.
        holdout: Share of each class, drawn with the seed, to evaluate on if image files come without a test set.
        stream: Read parquet files, tar shards or the hub in their order, shuffled through a buffer.
        epoch_images: Images in an epoch of a stream whose length is unknown.
        bad_images: What to do with a file that is broken or no image: fail, or skip it.
        hidden: Widths of the hidden fully connected layers; none with the head gap. lenet and alexnet have their own.
        dropout: Probability that a hidden unit is dropped.
        head: flatten (the book's), adaptive (torchvision's), conv (the paper's dense evaluation) or gap.
        pooled_size: Pixels along a side that the first fully connected layer sees, with the heads adaptive and conv.
        init: How the weights are initialized.
        warm_start: A run or weight file from which the first four convolutions and the fully connected layers start.
        pretrained: A run, weight file or torchvision/vgg16 from which all layers but the last start.
        continues: A finished run of the same network, whose weights this run starts from.
        head_epochs: Epochs at the start in which only the last layer learns.
        epochs: Passes over the training images.
        batch_size: Images in a step, shared by all processes.
        optimizer: sgd or adamw.
        learning_rate: The highest learning rate of the schedule.
        schedule: How the learning rate falls: cosine or linear to 0, plateau by 10 after 5 epochs without a better
            accuracy, or constant.
        warmup: Share of the run, 0 to 1, over which the learning rate rises from 0.
        momentum: Momentum of SGD.
        nesterov: Use Nesterov's form of the momentum.
        weight_decay: Weight decay of convolutions and fully connected layers; biases and batch norms have none.
        label_smoothing: Share of the target that all classes get alike.
        normalize: Scale pixels to mean 0 and standard deviation 1 over the training images, instead of to [0, 1].
        shorter_side: Pixels along the shorter side before a random crop, or two numbers to draw them between; if
            empty, images are stretched.
        color_shift: Standard deviation of a random shift along the principal components of the images' colours.
        flip: Mirror training images left and right at random.
        translate: Shift training images at random by up to this many of their own pixels.
        erase: Black out a square of this many of their own pixels in training images at random.
        cutmix: Share of training images of which a random rectangle is another image's, and so a share of the target.
        average: Time over which the weights are averaged exponentially, as a share of the run; 0 takes the last ones.
        test_flip: Average logits over an image and its mirror image when the network is evaluated or used.
        validation: Keep this many of the last training images out, and evaluate on them instead of on the test set.
        compression: How processes send gradients to each other: none, bf16 or powersgd.
        sync_batch_norm: Compute batch norm over the images of all processes, on GPUs.
        recompute: Keep only each block's input for the backward pass and compute the rest again: less memory, more
            time.
        seed: Seed of the weights, the order of the images, dropout and augmentation.
    """

    name: str
    architecture: str
    image_size: int
    data: str = "fashion-mnist"
    channels: Channels = "data"
    holdout: float = 0.1
    stream: bool = False
    epoch_images: int = 0
    bad_images: BadImages = "fail"
    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.5
    head: Head = "flatten"
    pooled_size: int = POOLED_SIZE
    init: Init = "kaiming"
    warm_start: str = ""
    pretrained: str = ""
    continues: str = ""
    head_epochs: int = 0
    epochs: int = 10
    batch_size: int = 128
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.05
    schedule: Schedule = "constant"
    warmup: float = 0.0
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    normalize: bool = False
    shorter_side: tuple[int, ...] = ()
    color_shift: float = 0.0
    flip: bool = False
    translate: int = 0
    erase: int = 0
    cutmix: float = 0.0
    average: float = 0.0
    test_flip: bool = False
    validation: int = 0
    compression: Compression = "none"
    sync_batch_norm: bool = False
    recompute: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in _field_types().items():
            value = getattr(self, name)
            _check_value(name, kind, value)
            if kind is float:  # JSON from a browser has 0 for 0.0
                object.__setattr__(self, name, float(value))
        self._check_together()
        # Checks the other fields; lists from JSON become tuples.
        network = self.network(in_channels=1, num_classes=10)
        hidden = network.hidden if isinstance(network, Architecture) else as_tuple("hidden", self.hidden)
        object.__setattr__(self, "hidden", hidden)
        object.__setattr__(self, "shorter_side", tuple(self.shorter_side))

    def _check_together(self) -> None:
        """Raise `RecipeError` if fields contradict each other."""

        def need(holds: object, message: str) -> None:
            if not holds:
                raise RecipeError(f"expected {message}")

        name, epochs, sides = self.name, self.epochs, as_tuple("shorter_side", self.shorter_side)
        can_be_a_folder = name and name.isprintable() and not set(name) & set("/\\") and not name.startswith(".")
        need(can_be_a_folder, f"a name that can be a folder's, got {shown(repr(name))}")
        need(self.learning_rate, "a learning_rate above 0, got 0, with which nothing is learnt")
        need(0 < self.holdout < 1, f"holdout above 0 and below 1, got {self.holdout!r}")
        no_momentum = f"no momentum with {self.optimizer}, which has its own, got {self.momentum}"
        need(self.optimizer == "sgd" or not self.momentum, no_momentum)
        need(self.momentum < 1, f"a momentum below 1, with which steps end, got {self.momentum}")
        need(self.momentum or not self.nesterov, "a momentum above 0 with nesterov, got 0")
        are_ordered = all(type(side) is int for side in sides) and sorted(sides) == list(sides) and len(sides) <= 2
        need(
            are_ordered and all(self.image_size <= side <= 10**4 for side in sides),
            f"shorter_side as at most two numbers from the image_size {self.image_size} to 10000, the lower one first, "
            f"got {shown(repr(sides))}",
        )
        head_epochs = self.head_epochs
        need(self.pretrained or not head_epochs, f"pretrained weights with head_epochs, got none and {head_epochs}")
        need(head_epochs <= epochs, f"head_epochs of at most the {epochs} epochs, got {head_epochs}")
        starts = [field for field in ("pretrained", "warm_start", "continues") if getattr(self, field)]
        need(len(starts) < 2, f"one of pretrained, warm_start and continues, got {' and '.join(starts)}")

    def in_channels(self, data_channels: int) -> int:
        """Channels of the network's input for images of `data_channels`."""
        return {"data": data_channels, "grey": 1, "rgb": 3}[self.channels]

    def network(self, in_channels: int, num_classes: int) -> Network:
        """The network for images of `in_channels` and `num_classes`; raises `ArchitectureError`."""
        return as_network(
            self.architecture,
            in_channels=in_channels,
            num_classes=num_classes,
            image_size=self.image_size,
            hidden=self.hidden,
            dropout=self.dropout,
            head=self.head,
            pooled_size=self.pooled_size,
        )

    def learning_rate_at(self, step: int, steps_per_epoch: int, accuracies: Sequence[float] = ()) -> float:
        """The learning rate of `step`, counted from 0: a linear warm-up, then the schedule.

        `accuracies` are the evaluations of the finished epochs, for the schedule `plateau`.
        """
        warmup_steps = self.warmup * self.epochs * steps_per_epoch
        if step + 1 < warmup_steps:
            return self.learning_rate * (step + 1) / warmup_steps
        if self.schedule == "plateau":
            return float(self.learning_rate / PLATEAU_FACTOR ** _count_plateaus(accuracies))
        decay_steps = self.epochs * steps_per_epoch - warmup_steps
        done = (step - warmup_steps) / decay_steps if decay_steps > 0 else 0.0
        if self.schedule == "cosine":
            return self.learning_rate * (1 + math.cos(math.pi * done)) / 2
        return self.learning_rate * (1 - done) if self.schedule == "linear" else self.learning_rate

    def to_json(self) -> str:
        """This recipe as JSON, one field a line, which `from_json` reads back."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """The recipe from `to_json`, checked in full; fields with defaults may be missing, as in older versions.

        Raises:
            RecipeError: it is not a valid recipe.
            ArchitectureError: its network is invalid.
        """
        try:
            values: Any = json.loads(text)
        # TypeError: not a text. ValueError: also for an integer of more than 4,300 digits.
        except (TypeError, ValueError, RecursionError) as error:
            raise RecipeError(f"expected a recipe as JSON, got {shown(repr(text), 62)}: {shown(str(error))}") from None
        if not isinstance(values, dict):
            raise RecipeError(f"expected a recipe as JSON, got {shown(repr(text[:60]))}")
        if "checkpoint" in values and "recompute" not in values:  # the name of `recompute` until 0.5
            values["recompute"] = values.pop("checkpoint")
        wrong = values.keys() - _field_types() | {"name", "architecture", "image_size"} - values.keys()
        if wrong:
            names = shown(", ".join(sorted(wrong)))
            raise RecipeError(f"expected the fields of a recipe, got these too many or too few: {names}")
        return cls(**values)

    @classmethod
    def named(cls, name: str, **changes: Any) -> "Recipe":
        """The recipe called `name`, with `changes` to its fields.

        Raises:
            RecipeError: an unknown recipe or field, or an invalid value.

        >>> Recipe.named("quick", epochs=1).epochs
        1
        """
        if not isinstance(name, str) or name not in RECIPES:
            raise RecipeError(
                f"expected a recipe of {', '.join(RECIPES)}, got {shown(repr(name))}{_hint(str(name), RECIPES)}"
            )
        return RECIPES[name].changed(**changes)

    def continued(self, run: str | os.PathLike[str], epochs: int) -> "Recipe":
        """A recipe of `epochs` further epochs with a new schedule, from the weights of the finished `run`."""
        return replace(self, continues=os.fspath(run), epochs=epochs, head_epochs=0, pretrained="", warm_start="")

    def changed(self, **changes: Any) -> "Recipe":
        """This recipe with other values of some fields; raises `RecipeError`."""
        for name in changes.keys() - _field_types().keys():
            raise RecipeError(f"expected a field of a recipe, got {shown(repr(name))}{_hint(name, _field_types())}")
        return replace(self, **changes)


@cache
def _field_types() -> dict[str, Any]:
    """The fields of a recipe and their types."""
    return get_type_hints(Recipe)


def _check_value(name: str, kind: Any, value: object) -> None:
    """Raise `RecipeError` unless `value` is of type `kind` and within its bounds."""
    got = f"got {shown(repr(value))}"
    if kind is str and not isinstance(value, str):
        raise RecipeError(f"expected {name} to be a text, {got}")
    if kind is bool and not isinstance(value, bool):
        raise RecipeError(f"expected {name} to be true or false, {got}")
    if get_args(kind) and name not in ("hidden", "shorter_side") and value not in get_args(kind):
        raise RecipeError(f"expected {name} to be one of {', '.join(get_args(kind))}, {got}")
    if name in _BOUNDS:
        least, most = _BOUNDS[name]
        is_number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        if not (is_number and least <= value <= most):  # type: ignore[operator]
            what = f"{name} to be a {'whole number' if kind is int else 'number'}"
            raise RecipeError(f"expected {what} from {least} to {f'{most:g}' if kind is float else most}, {got}")


def _hint(name: str, known: Iterable[str]) -> str:
    close = nearest(name, known)
    return f", try {close}" if close else ""


def _count_plateaus(accuracies: Sequence[float]) -> int:
    """How many times `PLATEAU_EPOCHS` epochs in a row did not improve the best accuracy."""
    best, epochs_since, plateaus = -1.0, 0, 0
    for accuracy in accuracies:
        epochs_since = 0 if accuracy > best else epochs_since + 1
        best = max(best, accuracy)
        if epochs_since == PLATEAU_EPOCHS:
            epochs_since, plateaus = 0, plateaus + 1
    return plateaus


# fmt: off
_D2L = Recipe(
    name="d2l", architecture="vgg11/4", image_size=224, init="xavier", epochs=10, batch_size=128, learning_rate=0.05,
)
_QUICK = Recipe(
    name="quick", architecture="1x16 1x32 1x64 2x128_bn", image_size=32, hidden=(), dropout=0.0, head="gap",
    epochs=7, batch_size=128, optimizer="adamw", learning_rate=0.006, schedule="linear", warmup=0.2,
    weight_decay=0.05, label_smoothing=0.05, normalize=True, flip=True, test_flip=True,
)
RECIPES = {
    # The default, made for 90 seconds of two CPU cores, and the same network for five minutes of them. At 32 pixels,
    # since every named network takes them; docs/decisions.md has what was compared, on training images kept out.
    "quick": _QUICK,
    "five-minutes": replace(_QUICK, name="five-minutes", epochs=22, translate=1),
    # For one GPU: 12 million images through a wide network. Not measured yet.
    "best": Recipe(
        name="best", architecture="2x128 3x256 3x512_bn", image_size=28, hidden=(), dropout=0.0, head="gap",
        epochs=200, batch_size=512, learning_rate=0.1, schedule="cosine", warmup=0.025, momentum=0.9, nesterov=True,
        weight_decay=5e-4, label_smoothing=0.1, normalize=True, flip=True, translate=2, erase=8, average=0.01,
        test_flip=True,
    ),
    # The chapter's. The book: loss 0.177, train acc 0.934, test acc 0.911 to 0.920, about 2,500 examples/s on the
    # authors' GPU. Its 1.0 edition had a learning rate of 0.01, its Gluon edition 3 epochs.
    "d2l": _D2L,
    "d2l-1.0": replace(_D2L, name="d2l-1.0", learning_rate=0.01),
    "gluon": replace(_D2L, name="gluon", epochs=3),
    # The paper's training of VGG-16 (arXiv 1409.1556, section 3.1): 74 epochs of ImageNet to a top-1 error of 25.6% at
    # one scale. Not measured by us.
    "paper": Recipe(
        name="paper", architecture="vgg16", image_size=224, data="imagenet", epochs=74, batch_size=256,
        learning_rate=0.01, schedule="plateau", momentum=0.9, weight_decay=5e-4, normalize=True,
        shorter_side=(256, 512), color_shift=0.1, flip=True,
    ),
    # From published weights to a few hundred images per class: the last layer first, then all.
    "finetune": Recipe(
        name="finetune", architecture="vgg16", image_size=224, data="images", channels="rgb", head="adaptive",
        init="torch", pretrained="torchvision/vgg16", head_epochs=3, epochs=13, batch_size=32, learning_rate=0.001,
        schedule="cosine", momentum=0.9, weight_decay=5e-4, normalize=True, shorter_side=(256, 320), flip=True,
    ),
}
# fmt: on
