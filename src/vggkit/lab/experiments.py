"""Experiments as data: the recipes whose runs answer a question, and the named questions. Imports no torch."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any, Literal, NamedTuple, get_args

from vggkit.design.architecture import Architecture, Init
from vggkit.design.network import Network, costs
from vggkit.errors import RecipeError, nearest, shown
from vggkit.training.recipe import Recipe

Equal = Literal["epochs", "images", "seconds", "macs", "parameters"]
Size = Literal["minutes", "hours", "gpu"]


@dataclass(frozen=True)
class Experiment:
    """A question, and the recipes whose runs answer it.

    Attributes:
        name: also the name of the folder of its runs.
        question: one sentence.
        recipes: by label, in the order of the table.
        seeds: runs of each recipe, with the same seeds for all, so that differences are paired.
        equal: the quantity in which a recipe equals its reference. `epochs` changes nothing; for `images` seen in
            training and `seconds` of training the epochs are adapted, for `macs` of an image and `parameters` the
            channels.
        against: the reference of a recipe, label by label; the first recipe if not given.
        unmatched: labels of recipes that `equal` leaves as they are.
    """

    name: str
    question: str
    recipes: Mapping[str, Recipe]
    seeds: int = 3
    equal: Equal = "epochs"
    against: Mapping[str, str] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.recipes) < 2:
            raise RecipeError(f"expected at least 2 recipes to compare, got {len(self.recipes)}")
        if not 1 <= self.seeds <= 1_000:
            raise RecipeError(f"expected from 1 to 1,000 seeds, got {self.seeds}")
        if self.equal not in get_args(Equal):
            raise RecipeError(f"expected {', '.join(get_args(Equal))} to be held equal, got {shown(repr(self.equal))}")
        if unknown := {*self.against, *self.against.values(), *self.unmatched} - set(self.recipes):
            raise RecipeError(f"expected labels of recipes, got {shown(', '.join(sorted(unknown)))}")

    def reference(self, label: str) -> str:
        """The label of the recipe with which `label` is compared; `label` itself if it is a reference."""
        first = next(iter(self.recipes))
        return label if label in self.against.values() else self.against.get(label, first)

    @property
    def adapted(self) -> dict[str, str]:
        """The recipes that are adapted to their reference: its label, by their own."""
        references = {label: self.reference(label) for label in self.recipes if label not in self.unmatched}
        return {label: reference for label, reference in references.items() if label != reference}

    def to_json(self) -> str:
        """This experiment as JSON."""
        return json.dumps(asdict(self))


def varied(base: Recipe, grid: Mapping[str, Sequence[Any]]) -> dict[str, Recipe]:
    """All combinations of the values in `grid`, by field of the recipe, labelled by the fields that vary.

    >>> list(varied(Recipe.named("quick"), {"image_size": [32, 64], "flip": [True, False]}))
    ['32 px, flip', '32 px, no flip', '64 px, flip', '64 px, no flip']
    """
    for name, values in grid.items():
        if twice := [value for index, value in enumerate(values) if value in values[:index]]:
            raise RecipeError(f"expected different values of {name}, got {shown(str(twice[0]))} twice")
    combinations = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    fields = [name for name, values in grid.items() if len(values) > 1]
    return {", ".join(_value_label(name, c[name]) for name in fields): base.changed(**c) for c in combinations}


def _value_label(field: str, value: object) -> str:
    if field == "image_size":
        return f"{value} px"
    if isinstance(value, bool):
        return f"{'' if value else 'no '}{field.replace('_', ' ')}"
    if field == "architecture":
        return str(value)
    return f"{field.replace('_', ' ')} {' '.join(map(str, value)) or 'none' if isinstance(value, tuple) else value}"


def fitted(experiment: Experiment, networks: Mapping[str, Network]) -> dict[str, Network]:
    """`networks`, by label, with their channels scaled if the experiment holds MACs or parameters equal."""
    quantity, adapted = experiment.equal, dict(networks)
    if quantity in ("macs", "parameters"):
        for label, reference in experiment.adapted.items():
            adapted[label] = matched(networks[label], getattr(costs(networks[reference]).total, quantity), quantity)
    return adapted


def matched(network: Network, wanted: int, by: Literal["macs", "parameters"]) -> Architecture:
    """`network` with its channels scaled to come as near as possible to `wanted` MACs of an image or parameters.

    Raises:
        RecipeError: it has no VGG blocks, or cannot come within 10%.
    """
    if not isinstance(network, Architecture):
        raise RecipeError(f"expected a network of blocks to fit to equal {by}, got {network.name}")

    def scaled(factor: float) -> Architecture:
        blocks = [replace(b, channels=max(1, round(b.channels * factor))) for b in network.blocks]
        return replace(network, blocks=tuple(blocks))

    def cost(architecture: Architecture) -> int:
        total = costs(architecture).total
        return total.macs if by == "macs" else total.parameters

    low, high = 0.0, 1.0
    while cost(scaled(high)) < wanted and high < 1_000:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(scaled(middle)) < wanted else (low, middle)
    best = min(scaled(low), scaled(high), key=lambda candidate: abs(cost(candidate) - wanted))
    if abs(cost(best) - wanted) > 0.1 * wanted:
        raise RecipeError(
            f"expected {network.name} to come within 10% of {wanted:,} {by}, got {cost(best):,}, "
            "try another number of convolutions"
        )
    return best


class _Question(NamedTuple):
    words: str
    recipes: Callable[[Recipe, int], dict[str, Recipe]]
    """From the base recipe and the divisor of the channels to the recipes by label."""
    scales: Mapping[Size, tuple[int, int]]
    """The divisor of the channels, and the epochs."""
    options: Mapping[str, Any] = {}
    """Further arguments of the `Experiment`."""


SEEDS: dict[Size, int] = {"minutes": 3, "hours": 5, "gpu": 5}
_TRAINING = Recipe(
    name="experiment", architecture="vgg11_bn/4", image_size=32, hidden=(), dropout=0.0, batch_size=128,
    optimizer="adamw", learning_rate=0.006, schedule="linear", warmup=0.2, weight_decay=0.05, normalize=True, flip=True,
)  # fmt: skip
"""The base recipe of the named questions; independent of `quick`, which may change."""


def named_experiment(name: str, size: Size = "minutes") -> Experiment:
    """One of `EXPERIMENTS`, on the whole of Fashion-MNIST.

    Args:
        name: of the question.
        size: `minutes` takes less than ten on two cores, `hours` a night, `gpu` needs a GPU.

    Raises:
        RecipeError: an unknown name or size.
    """
    if name not in EXPERIMENTS:
        close = nearest(name, EXPERIMENTS)
        hint = f", try {close}" if close else ""
        raise RecipeError(f"expected an experiment of {', '.join(EXPERIMENTS)}, got {shown(repr(name))}{hint}")
    if size not in get_args(Size):
        raise RecipeError(f"expected a size of {', '.join(get_args(Size))}, got {shown(repr(size))}")
    question = EXPERIMENTS[name]
    divided_by, epochs = question.scales[size]
    recipes = question.recipes(_TRAINING.changed(epochs=epochs), divided_by)
    return Experiment(name, question.words, recipes, SEEDS[size], **question.options)


def _resolution(base: Recipe, divided_by: int) -> dict[str, Recipe]:
    narrow = base.changed(architecture=f"vgg11/{divided_by}", learning_rate=3e-3)
    return varied(narrow, {"image_size": [224, 96, 32]})


def _alexnet_vgg(base: Recipe, divided_by: int) -> dict[str, Recipe]:
    # 67 pixels are the fewest that AlexNet takes; the book has 224.
    sized = base.changed(image_size=224 if divided_by == 1 else 67, learning_rate=1e-3, hidden=(4096, 4096))
    return {
        "LeNet": sized.changed(architecture="lenet"),
        "AlexNet": sized.changed(architecture="alexnet"),
        f"VGG-11/{divided_by}": sized.changed(architecture=f"vgg11_bn/{divided_by}", hidden=(512, 512)),
    }


def _deep_or_wide(base: Recipe, divided_by: int) -> dict[str, Recipe]:
    return {
        f"{n} convolution{'s' * (n > 1)} a block": base.changed(architecture=_blocks(n, 256 // divided_by))
        for n in (1, 2, 3, 4)
    }


def _kernel_size(base: Recipe, divided_by: int) -> dict[str, Recipe]:
    recipes, width = dict[str, Recipe](), 128 // divided_by
    for times, size in KERNELS.items():
        large = base.changed(architecture=_blocks(1, width, size))
        recipes[f"3x3, {times} times"] = base.changed(architecture=_blocks(times, width))
        recipes |= {f"{size}x{size}": large, f"{size}x{size}, equal MACs": large}
    return recipes


KERNELS = {2: 5, 3: 7}
"""For a number of stacked 3x3 kernels, the size of a kernel with the same receptive field."""


def _blocks(num_convs: int, width: int, kernel_size: int = 3) -> str:
    """Three blocks with batch norm, each twice as wide as the previous one."""
    kernel = f"k{kernel_size}" if kernel_size != 3 else ""
    return " ".join(f"{num_convs}x{width * factor}{kernel}" for factor in (1, 2, 4)) + "_bn"


def _head(base: Recipe, divided_by: int) -> dict[str, Recipe]:
    # At 64 pixels the last map is 2x2, so that flattening it differs from averaging it.
    net = base.changed(architecture=f"vgg11_bn/{divided_by}", dropout=0.5, image_size=64, learning_rate=2e-3)
    return {
        "4096 4096": net.changed(hidden=(4096, 4096)),
        "512 512": net.changed(hidden=(512, 512)),
        "no hidden layer": net.changed(hidden=()),
        "gap": net.changed(hidden=(), head="gap"),
    }


def _batch_norm(base: Recipe, divided_by: int) -> dict[str, Recipe]:
    names = {"with batch norm": f"vgg11_bn/{divided_by}", "without": f"vgg11/{divided_by}"}
    return {label: base.changed(architecture=name, learning_rate=2e-3) for label, name in names.items()}


def _initialisation(base: Recipe, divided_by: int) -> dict[str, Recipe]:
    net = base.changed(architecture=f"vgg11/{divided_by}", learning_rate=1e-3)
    return {name: net.changed(init=name) for name in get_args(Init)}


def _family(base: Recipe, divided_by: int) -> dict[str, Recipe]:
    letters = {"A": "vgg11", "A-LRN": "vgg11_lrn", "B": "vgg13", "C": "vgg16c", "D": "vgg16", "E": "vgg19"}
    net = base.changed(learning_rate=1e-3)
    return {f"{letter} ({name})": net.changed(architecture=f"{name}/{divided_by}") for letter, name in letters.items()}


EXPERIMENTS = {
    "resolution": _Question(
        "Are images of 224 pixels worth their cost against 96 and 32?",
        _resolution,
        {"minutes": (32, 1), "hours": (16, 4), "gpu": (2, 10)},
    ),
    "alexnet-vgg": _Question(
        "Is VGG worth its cost beside LeNet and AlexNet?",
        _alexnet_vgg,
        {"minutes": (8, 1), "hours": (4, 4), "gpu": (1, 10)},
    ),
    "deep-or-wide": _Question(
        "Are deep and narrow networks better than shallow and wide ones of equal MACs?",
        _deep_or_wide,
        {"minutes": (10, 1), "hours": (4, 4), "gpu": (1, 10)},
        {"equal": "macs"},
    ),
    "kernel-size": _Question(
        "Are two or three convolutions of 3x3 better than one of 5x5 or 7x7?",
        _kernel_size,
        {"minutes": (10, 1), "hours": (4, 4), "gpu": (1, 10)},
        {
            "equal": "macs",
            "against": {
                f"{size}x{size}{tail}": f"3x3, {times} times"
                for times, size in KERNELS.items()
                for tail in ("", ", equal MACs")
            },
            "unmatched": tuple(f"{size}x{size}" for size in KERNELS.values()),
        },
    ),
    "head": _Question(
        "What do the parameters of the fully connected layers bring?",
        _head,
        {"minutes": (16, 1), "hours": (8, 4), "gpu": (1, 10)},
    ),
    "batch-norm": _Question(
        "What does batch norm bring?", _batch_norm, {"minutes": (8, 4), "hours": (4, 10), "gpu": (1, 20)}
    ),
    "initialisation": _Question(
        "Which initialisation learns fastest without batch norm?",
        _initialisation,
        {"minutes": (8, 3), "hours": (4, 10), "gpu": (1, 20)},
    ),
    "family": _Question(
        "Which configuration of the paper is best at one width?",
        _family,
        {"minutes": (8, 1), "hours": (4, 6), "gpu": (1, 10)},
    ),
}
"""The chapter's exercises and the questions of its discussion."""
