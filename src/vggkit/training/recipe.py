"""All that decides a run, as frozen, validated data. Imports no torch."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from vggkit.design.architecture import POOLED_SIZE, Architecture, Head, Init
from vggkit.design.layers import as_tuple
from vggkit.design.network import Network, parse_network
from vggkit.errors import RecipeError

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["constant", "cosine", "linear", "plateau"]
Channels = Literal["data", "grey", "rgb"]
BadImages = Literal["fail", "skip"]
Compression = Literal["none", "bf16", "powersgd"]

PLATEAU_EPOCHS = 5
"""Epochs without a better accuracy after which the schedule `plateau` divides the learning rate."""
PLATEAU_FACTOR = 10.0


_LATER = {
    *("head", "pooled_size", "checkpoint", "warm_start"),  # since 0.2
    *("channels", "holdout", "stream", "epoch_images", "bad_images", "shorter_side", "color_shift", "pretrained"),
    *("head_epochs", "compression", "sync_batch_norm"),
}
"""Fields that the recipe.json of an older run has not: their defaults are what it did."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run. Checked when made; a value that cannot be raises `RecipeError`."""

    name: str
    """What the run folder is called after."""
    architecture: str
    """A name (vgg11_bn/4, lenet, alexnet) or blocks (1x64 2x128); channels and classes come from the data."""
    image_size: int
    """Pixels along a side of the network's input."""
    data: str = "fashion-mnist"
    """fashion-mnist, fashion-mnist-sample, a folder (class folders, parquet, tar or IDX files) or hub:owner/name."""
    channels: Channels = "data"
    """Channels that the network takes: the data's own (colour, for image files), or grey, or rgb."""
    holdout: float = 0.1
    """Share of each class that is kept out, drawn from the seed, of image files without a validation or test set."""
    stream: bool = False
    """Read parquet files, tar shards or the hub in their order, through a buffer that shuffles."""
    epoch_images: int = 0
    """Images in an epoch of a stream that does not say its length."""
    bad_images: BadImages = "fail"
    """What to do with files that are no images or broken: fail, or skip."""
    hidden: tuple[int, ...] = (4096, 4096)
    """Widths of the hidden fully connected layers; empty with the head gap. lenet and alexnet have their own."""
    dropout: float = 0.5
    """Probability of dropping a hidden unit."""
    head: Head = "flatten"
    """flatten (the book's), adaptive (torchvision's), conv (the paper's dense evaluation), gap."""
    pooled_size: int = POOLED_SIZE
    """Pixels that the first fully connected layer sees, with adaptive and conv."""
    init: Init = "kaiming"
    """How the weights start."""
    warm_start: str = ""
    """A run or a weight file whose first four convolutions and fully connected layers this one starts from, or none."""
    pretrained: str = ""
    """A run, a weight file or torchvision/vgg16, of the same network, for all but the last layer; or none."""
    head_epochs: int = 0
    """Epochs in which only the last layer learns, at the start."""
    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 128
    """Images in a step."""
    optimizer: Optimizer = "sgd"
    """sgd, or adamw."""
    learning_rate: float = 0.05
    """The highest one."""
    schedule: Schedule = "constant"
    """How the learning rate falls: cosine and linear to 0, plateau by 10 after 5 epochs without a better accuracy."""
    warmup: float = 0.0
    """Share of the run over which the learning rate rises from 0, 0 to 1."""
    momentum: float = 0.0
    """Of SGD."""
    nesterov: bool = False
    """Nesterov's form of the momentum."""
    weight_decay: float = 0.0
    """On the weights of convolutions and fully connected layers only."""
    label_smoothing: float = 0.0
    """Share of the target that goes to all classes alike."""
    normalize: bool = False
    """Bring the pixels to mean 0 and standard deviation 1 of the training images; otherwise they are in [0, 1]."""
    shorter_side: tuple[int, ...] = ()
    """Pixels along the shorter side before the random cut, or two to draw them from; if empty, images are stretched."""
    color_shift: float = 0.0
    """Standard deviation of a random shift along the principal components of the training images' colours."""
    flip: bool = False
    """Mirror training images left and right at random."""
    translate: int = 0
    """Shift training images by up to so many of their own pixels at random."""
    erase: int = 0
    """Black out a square of so many of their own pixels in training images at random."""
    validation: int = 0
    """Keep the last so many training images out, and evaluate on them instead of the test set."""
    compression: Compression = "none"
    """Of the gradients that several processes exchange: bf16, or powersgd."""
    sync_batch_norm: bool = False
    """Batch norm over the images of all processes, on GPUs."""
    checkpoint: bool = False
    """Keep only each block's input for the backward pass: less memory, more time; not about saving (--save-seconds)."""
    seed: int = 0
    """Of the weights, the order of the images, dropout and augmentation."""

    def __post_init__(self) -> None:
        for field in ("name", "architecture", "data", "warm_start", "pretrained"):
            if not isinstance(getattr(self, field), str):
                raise RecipeError(f"expected {field} to be a text, got {getattr(self, field)!r}")
        if not self.name or set(self.name) & set("/\\\0") or self.name.startswith("."):
            raise RecipeError(f"expected a name that can be a folder's, got {self.name!r}")
        for field, allowed in (
            ("init", Init),
            ("optimizer", Optimizer),
            ("schedule", Schedule),
            ("channels", Channels),
            ("bad_images", BadImages),
            ("compression", Compression),
        ):
            if getattr(self, field) not in get_args(allowed):
                raise RecipeError(
                    f"expected {field} to be one of {', '.join(get_args(allowed))}, got {getattr(self, field)!r}"
                )
        for field, least, most in (
            ("epochs", 1, 10**6),
            ("batch_size", 1, 10**6),
            ("translate", 0, 10**4),
            ("erase", 0, 10**4),
            ("validation", 0, 10**9),
            ("epoch_images", 0, 10**12),
            ("head_epochs", 0, 10**6),
            ("seed", 0, 2**31 - 1),
        ):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise RecipeError(f"expected {field} to be a whole number from {least} to {most}, got {value!r}")
        for field, highest in (
            ("learning_rate", 1e6),
            ("warmup", 1.0),
            ("momentum", 1.0),
            ("weight_decay", 1e6),
            ("label_smoothing", 1.0),
            ("color_shift", 1.0),
        ):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= highest:
                raise RecipeError(f"expected {field} from 0 to {highest:g}, got {value!r}")
        if not self.learning_rate:
            raise RecipeError("expected a learning_rate above 0, got 0, with which nothing is learnt")
        if self.momentum and self.optimizer != "sgd":
            raise RecipeError(f"expected no momentum with {self.optimizer}, which has its own, got {self.momentum}")
        if self.nesterov and self.momentum == 0:
            raise RecipeError("expected a momentum above 0 with nesterov, got 0")
        if isinstance(self.holdout, bool) or not isinstance(self.holdout, int | float) or not 0 < self.holdout < 1:
            raise RecipeError(f"expected holdout above 0 and below 1, got {self.holdout!r}")
        for field in ("nesterov", "normalize", "flip", "checkpoint", "stream", "sync_batch_norm"):
            if not isinstance(getattr(self, field), bool):
                raise RecipeError(f"expected {field} to be true or false, got {getattr(self, field)!r}")
        self._check_shorter_side()
        if self.head_epochs and not self.pretrained:
            raise RecipeError(f"expected pretrained weights with head_epochs, got none and {self.head_epochs}")
        if self.head_epochs > self.epochs:
            raise RecipeError(f"expected head_epochs of at most the {self.epochs} epochs, got {self.head_epochs}")
        if self.pretrained and self.warm_start:
            raise RecipeError("expected one of pretrained and warm_start, got both")
        # Checks the rest; a list, as JSON has it, comes back as a tuple.
        network = self.network(in_channels=1, num_classes=10)
        hidden = network.hidden if isinstance(network, Architecture) else as_tuple("hidden", self.hidden)
        object.__setattr__(self, "hidden", hidden)

    def _check_shorter_side(self) -> None:
        sides = as_tuple("shorter_side", self.shorter_side)
        if not all(isinstance(side, int) and not isinstance(side, bool) for side in sides) or not (
            len(sides) <= 2 and sorted(sides) == list(sides) and all(self.image_size <= side <= 10**4 for side in sides)
        ):
            raise RecipeError(
                f"expected shorter_side as at most two numbers from the image_size {self.image_size} to 10000, the "
                f"lower one first, got {sides}"
            )
        object.__setattr__(self, "shorter_side", sides)

    def network(self, in_channels: int, num_classes: int) -> Network:
        """The network for images of `in_channels` and `num_classes`; raises `ArchitectureError`."""
        return parse_network(
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
        """The learning rate of `step`, counted from 0: a linear warm-up, then the schedule down to the last step.

        `accuracies` are the evaluations so far, one for each finished epoch, which the schedule `plateau` looks at.
        """
        warmup_steps = self.warmup * self.epochs * steps_per_epoch
        if step + 1 < warmup_steps:
            return self.learning_rate * (step + 1) / warmup_steps
        if self.schedule == "plateau":
            return float(self.learning_rate / PLATEAU_FACTOR ** _plateaus(accuracies))
        decay_steps = self.epochs * steps_per_epoch - warmup_steps
        done = (step - warmup_steps) / decay_steps if decay_steps > 0 else 0.0
        if self.schedule == "cosine":
            return self.learning_rate * (1 + math.cos(math.pi * done)) / 2
        return self.learning_rate * (1 - done) if self.schedule == "linear" else self.learning_rate

    def to_json(self) -> str:
        """This recipe as JSON, a field a line; `from_json` gives an equal one back."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """The recipe that `to_json` wrote, checked as if typed by hand; raises `RecipeError`."""
        try:
            values: Any = json.loads(text)
            known = {field.name for field in fields(cls)}
            wrong = set(values) - known | known - set(values) - _LATER
            if wrong:
                raise RecipeError(f"expected the fields of a recipe, got these too many or too few: {sorted(wrong)}")
            return cls(**values)
        except (TypeError, RecursionError, json.JSONDecodeError) as error:
            raise RecipeError(f"expected a recipe as JSON, got {text[:60]!r}: {error}") from None

    @classmethod
    def named(cls, name: str) -> "Recipe":
        """The recipe called `name`, see `vggkit.training.recipes`; raises `RecipeError`."""
        from vggkit.training.recipes import RECIPES  # which are made of this class

        if name not in RECIPES:
            raise RecipeError(f"expected a recipe of {', '.join(RECIPES)}, got {name!r}")
        return RECIPES[name]()


def _plateaus(accuracies: Sequence[float]) -> int:
    """How often `PLATEAU_EPOCHS` epochs in a row brought no better accuracy than all before them."""
    best, since, plateaus = -1.0, 0, 0
    for accuracy in accuracies:
        since = 0 if accuracy > best else since + 1
        best = max(best, accuracy)
        if since == PLATEAU_EPOCHS:
            since, plateaus = 0, plateaus + 1
    return plateaus
