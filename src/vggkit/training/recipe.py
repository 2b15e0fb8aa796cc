"""All that decides a run, as frozen, validated data. Imports no torch."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from vggkit.design.architecture import POOLED_SIZE, Architecture, Head, Init
from vggkit.design.baselines import Network, parse_network
from vggkit.design.block import as_tuple

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["constant", "cosine", "linear"]


_SINCE_0_2 = {"head", "pooled_size", "checkpoint", "warm_start"}
"""Fields that the recipe.json of an older run has not: their defaults are what it did."""


class RecipeError(ValueError):
    """A recipe that cannot be; the message is one line."""


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
    """fashion-mnist, fashion-mnist-sample, or a folder with four IDX files."""
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
    """A run folder or a weight file of a network for the same data, whose first four convolutions and fully connected
    layers this one starts from (the paper's section 3.1); none if empty."""
    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 128
    """Images in a step."""
    optimizer: Optimizer = "sgd"
    """sgd, or adamw."""
    learning_rate: float = 0.05
    """The highest one."""
    schedule: Schedule = "constant"
    """How the learning rate goes down after the warm-up; cosine and linear end at 0."""
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
    flip: bool = False
    """Mirror training images left and right at random."""
    translate: int = 0
    """Shift training images by up to so many of their own pixels at random."""
    erase: int = 0
    """Black out a square of so many of their own pixels in training images at random."""
    validation: int = 0
    """Keep the last so many training images out, and evaluate on them instead of the test set."""
    checkpoint: bool = False
    """Keep only each block's input for the backward pass: less memory, the same gradients, more time."""
    seed: int = 0
    """Of the weights, the order of the images, dropout and augmentation."""

    def __post_init__(self) -> None:
        for field in ("name", "architecture", "data", "warm_start"):
            if not isinstance(getattr(self, field), str):
                raise RecipeError(f"expected {field} to be a text, got {getattr(self, field)!r}")
        if not self.name or set(self.name) & set("/\\\0") or self.name.startswith("."):
            raise RecipeError(f"expected a name that can be a folder's, got {self.name!r}")
        for field, allowed in (("init", Init), ("optimizer", Optimizer), ("schedule", Schedule)):
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
        ):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= highest:
                raise RecipeError(f"expected {field} from 0 to {highest:g}, got {value!r}")
        if self.momentum and self.optimizer != "sgd":
            raise RecipeError(f"expected no momentum with {self.optimizer}, which has its own, got {self.momentum}")
        if self.nesterov and self.momentum == 0:
            raise RecipeError("expected a momentum above 0 with nesterov, got 0")
        for field in ("nesterov", "normalize", "flip", "checkpoint"):
            if not isinstance(getattr(self, field), bool):
                raise RecipeError(f"expected {field} to be true or false, got {getattr(self, field)!r}")
        # Checks the rest; a list, as JSON has it, comes back as a tuple.
        network = self.network(in_channels=1, num_classes=10)
        hidden = network.hidden if isinstance(network, Architecture) else as_tuple("hidden", self.hidden)
        object.__setattr__(self, "hidden", hidden)

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

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of `step`, counted from 0: a linear warm-up, then the schedule down to the last step."""
        warmup_steps = self.warmup * self.epochs * steps_per_epoch
        if step + 1 < warmup_steps:
            return self.learning_rate * (step + 1) / warmup_steps
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
            wrong = set(values) - known | known - set(values) - _SINCE_0_2
            if wrong:
                raise RecipeError(f"expected the fields of a recipe, got these too many or too few: {sorted(wrong)}")
            return cls(**values)
        except (TypeError, RecursionError, json.JSONDecodeError) as error:
            raise RecipeError(f"expected a recipe as JSON, got {text[:60]!r}: {error}") from None

    @classmethod
    def named(cls, name: str) -> "Recipe":
        """The recipe called `name`, see `RECIPES`; raises `RecipeError`."""
        if name not in RECIPES:
            raise RecipeError(f"expected a recipe of {', '.join(RECIPES)}, got {name!r}")
        return RECIPES[name]()


def quick() -> Recipe:
    """The default: VGG-11/4 with batch norm at 32 pixels, made for two CPU cores.

    Command: `vgg train`. Expected on 2 threads of an AMD EPYC (AVX-512): at least 0.925 on the test set in at most
    3 minutes, start-up and evaluation included. `benchmarks/quick_accuracy.py` measures both, and
    `benchmarks/results/quick_accuracy.jsonl` holds what it measured. Chosen on the last 5,000 training images, kept
    out with `--validation 5000`; `docs/decisions.md` has what was compared.
    """
    return Recipe(
        name="quick",
        architecture="vgg11_bn/4",
        image_size=32,
        hidden=(),
        dropout=0.0,
        init="kaiming",
        epochs=6,
        batch_size=128,
        optimizer="adamw",
        learning_rate=0.006,
        schedule="linear",
        warmup=0.2,
        weight_decay=0.05,
        normalize=True,
        flip=True,
    )


def d2l() -> Recipe:
    """The chapter's own: VGG-11/4 at 224 pixels, SGD without momentum, no augmentation.

    Command: `vgg train --recipe d2l`. Expected, from the book: loss 0.177, train acc 0.934, test acc 0.911 to
    0.920 after 10 epochs, at about 2,500 examples/s on the authors' GPU. Not measured on a GPU by us yet.
    """
    return Recipe(
        name="d2l",
        architecture="vgg11/4",
        image_size=224,
        init="xavier",
        epochs=10,
        batch_size=128,
        learning_rate=0.05,
    )


def d2l_1_0() -> Recipe:
    """The chapter's, as its 1.0 edition has it: a learning rate of 0.01.

    Command: `vgg train --recipe d2l-1.0`. Not measured by us yet.
    """
    return replace(d2l(), name="d2l-1.0", learning_rate=0.01)


def gluon() -> Recipe:
    """The chapter's, for 3 epochs as its Gluon edition had it.

    Command: `vgg train --recipe gluon`. Not measured by us yet.
    """
    return replace(d2l(), name="gluon", epochs=3)


RECIPES: dict[str, Callable[[], Recipe]] = {"quick": quick, "d2l": d2l, "d2l-1.0": d2l_1_0, "gluon": gluon}
"""The named recipes; each one's docstring says what to expect of it."""
