"""A question as data: the recipes whose runs answer it, and the questions that have a name. Imports no torch."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any, Literal, get_args

from vggkit.design.architecture import Architecture, Init
from vggkit.design.network import costs
from vggkit.errors import RecipeError, nearest, shown
from vggkit.training.recipe import Recipe

Equal = Literal["epochs", "seconds", "macs", "parameters"]
Size = Literal["minutes", "hours", "gpu"]


@dataclass(frozen=True)
class Experiment:
    """A question, and the recipes whose runs answer it.

    Attributes:
        name: names the folder of its runs.
        question: one sentence.
        recipes: by label, in the order of the table.
        seeds: runs of each recipe; the same seeds for all, so that differences are paired.
        equal: what is held equal: the epochs, as the recipes have them; the seconds of training, to which the epochs
            are chosen; or the MACs of an image or the parameters, to which the channels are chosen (`matched`).
        against: the label that a recipe is compared with, by its own; the first one if not given.
    """

    name: str
    question: str
    recipes: Mapping[str, Recipe]
    seeds: int = 3
    equal: Equal = "epochs"
    against: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.recipes) < 2:
            raise RecipeError(f"expected at least 2 recipes to compare, got {len(self.recipes)}")
        if not 1 <= self.seeds <= 1_000:
            raise RecipeError(f"expected from 1 to 1,000 seeds, got {self.seeds}")
        if self.equal not in get_args(Equal):
            raise RecipeError(f"expected {', '.join(get_args(Equal))} to be held equal, got {shown(repr(self.equal))}")
        if unknown := {*self.against, *self.against.values()} - set(self.recipes):
            raise RecipeError(f"expected labels of recipes in against, got {shown(', '.join(sorted(unknown)))}")

    def to_json(self) -> str:
        """This experiment as JSON."""
        return json.dumps({**asdict(self), "recipes": {key: asdict(r) for key, r in self.recipes.items()}}, indent=1)


def varied(base: Recipe, grid: Mapping[str, Sequence[Any]]) -> dict[str, Recipe]:
    """All combinations of the values of `grid`, a field of the recipe each, labelled by the fields that vary.

    >>> list(varied(Recipe.named("quick"), {"image_size": [32, 64], "flip": [True, False]}))
    ['32 px, flip', '32 px, no flip', '64 px, flip', '64 px, no flip']
    """
    combinations = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    fields = [name for name, values in grid.items() if len(values) > 1]
    return {", ".join(_label(name, some[name]) for name in fields): base.changed(**some) for some in combinations}


def _label(field: str, value: object) -> str:
    if field == "image_size":
        return f"{value} px"
    if isinstance(value, bool):
        return f"{'' if value else 'no '}{field.replace('_', ' ')}"
    if field == "architecture":
        return str(value)
    return f"{field.replace('_', ' ')} {' '.join(map(str, value)) or 'none' if isinstance(value, tuple) else value}"


def matched(recipe: Recipe, target: Recipe, by: Literal["macs", "parameters"]) -> Recipe:
    """`recipe` with its channels scaled so that it comes as near as can be to the MACs or parameters of `target`.

    Raises:
        RecipeError: it is no network of VGG blocks, or comes no nearer than 10%.
    """

    def cost(some: Recipe) -> int:
        total = costs(some.network(in_channels=1, num_classes=10)).total
        return total.macs if by == "macs" else total.parameters

    network, wanted = recipe.network(in_channels=1, num_classes=10), cost(target)
    if not isinstance(network, Architecture):
        raise RecipeError(f"expected a network of blocks to fit to equal {by}, got {recipe.architecture}")

    def scaled(factor: float) -> Recipe:
        blocks = [replace(b, channels=max(1, round(b.channels * factor))) for b in network.blocks]
        return replace(recipe, architecture=replace(network, blocks=tuple(blocks)).notation)

    low, high = 0.0, 1.0
    while cost(scaled(high)) < wanted and high < 1_000:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(scaled(middle)) < wanted else (low, middle)
    nearest = min(scaled(low), scaled(high), key=lambda some: abs(cost(some) - wanted))
    if abs(cost(nearest) - wanted) > 0.1 * wanted:
        raise RecipeError(
            f"expected {recipe.architecture} to come within 10% of {wanted:,} {by}, got {cost(nearest):,}, "
            "try another number of convolutions"
        )
    return nearest


@dataclass(frozen=True)
class _Scale:
    """What a size decides: never the question, only the widths, the epochs and the seeds."""

    divided_by: int
    """The channels of the family's networks."""
    epochs: int
    seeds: int


_SCALES: dict[Size, _Scale] = {"minutes": _Scale(8, 1, 3), "hours": _Scale(4, 6, 5), "gpu": _Scale(1, 10, 5)}


def named_experiment(name: str, size: Size = "minutes") -> Experiment:
    """One of `EXPERIMENTS`, on the whole of Fashion-MNIST.

    Args:
        name: which question.
        size: `minutes` takes less than ten on two cores, `hours` a night, `gpu` needs a GPU.

    Raises:
        RecipeError: there is no experiment or size of that name.
    """
    if name not in EXPERIMENTS:
        close = nearest(name, EXPERIMENTS)
        hint = f", try {close}" if close else ""
        raise RecipeError(f"expected an experiment of {', '.join(EXPERIMENTS)}, got {shown(repr(name))}{hint}")
    if size not in get_args(Size):
        raise RecipeError(f"expected a size of {', '.join(get_args(Size))}, got {shown(repr(size))}")
    question, recipes = EXPERIMENTS[name]
    scale = _SCALES[size]
    base = Recipe.named("quick", epochs=scale.epochs)
    return Experiment(name, question, recipes(base, scale.divided_by), scale.seeds, against=_AGAINST.get(name, {}))


def _resolution(base: Recipe, divided_by: int) -> dict[str, Recipe]:
    narrow = base.changed(architecture=f"vgg11_bn/{2 * divided_by}")
    return varied(narrow, {"image_size": [32, 96, 224]})


def _alexnet_vgg(base: Recipe, divided_by: int) -> dict[str, Recipe]:
    # 67 pixels are the fewest that AlexNet takes; the book has 224.
    sized = base.changed(image_size=224 if divided_by == 1 else 67, learning_rate=1e-3, hidden=(4096, 4096))
    return {
        "LeNet": sized.changed(architecture="lenet"),
        "AlexNet": sized.changed(architecture="alexnet"),
        f"VGG-11/{divided_by}": sized.changed(architecture=f"vgg11_bn/{divided_by}", hidden=(512, 512)),
    }


def _deep_or_wide(base: Recipe, divided_by: int) -> dict[str, Recipe]:
    shallow = base.changed(architecture=_blocks(1, 256 // divided_by))
    deep = {f"{n} convolutions a block": base.changed(architecture=_blocks(n, 16)) for n in (2, 3, 4)}
    return {"1 convolution a block": shallow} | {
        label: matched(recipe, shallow, "macs") for label, recipe in deep.items()
    }


def _kernel_size(base: Recipe, divided_by: int) -> dict[str, Recipe]:
    width, recipes = 128 // divided_by, dict[str, Recipe]()
    for times, kernel in ((2, 5), (3, 7)):
        small = base.changed(architecture=_blocks(times, width))
        large = base.changed(architecture=_blocks(1, width, kernel))
        recipes |= {
            f"3x3, {times} times": small,
            f"{kernel}x{kernel}": large,
            f"{kernel}x{kernel}, equal MACs": matched(large, small, "macs"),
        }
    return recipes


def _blocks(num_convs: int, width: int, kernel_size: int = 3) -> str:
    """Three blocks with batch norm, each twice as wide as the one before."""
    kernel = f"k{kernel_size}" if kernel_size != 3 else ""
    return " ".join(f"{num_convs}x{width * factor}{kernel}" for factor in (1, 2, 4)) + "_bn"


def _head(base: Recipe, divided_by: int) -> dict[str, Recipe]:
    # At 64 pixels the last map has 2x2 places: flattened they are not what their average is.
    net = base.changed(architecture=f"vgg11_bn/{divided_by}", dropout=0.5, image_size=64)
    return {
        "4096 4096": net.changed(hidden=(4096, 4096)),
        "512 512": net.changed(hidden=(512, 512)),
        "no hidden layer": net.changed(hidden=()),
        "gap": net.changed(hidden=(), head="gap"),
    }


def _batch_norm(base: Recipe, divided_by: int) -> dict[str, Recipe]:
    names = {"with batch norm": f"vgg11_bn/{divided_by}", "without": f"vgg11/{divided_by}"}
    return {label: base.changed(architecture=name, learning_rate=1e-3) for label, name in names.items()}


def _initialisation(base: Recipe, divided_by: int) -> dict[str, Recipe]:
    net = base.changed(architecture=f"vgg11/{divided_by}", learning_rate=1e-3)
    return varied(net, {"init": get_args(Init)})


def _family(base: Recipe, divided_by: int) -> dict[str, Recipe]:
    letters = {"A": "vgg11", "A-LRN": "vgg11_lrn", "B": "vgg13", "C": "vgg16c", "D": "vgg16", "E": "vgg19"}
    net = base.changed(learning_rate=1e-3)
    return {f"{letter} ({name})": net.changed(architecture=f"{name}/{divided_by}") for letter, name in letters.items()}


EXPERIMENTS: dict[str, tuple[str, Callable[[Recipe, int], dict[str, Recipe]]]] = {
    "resolution": ("Are images of 224 pixels worth their cost against 96 and 32?", _resolution),
    "alexnet-vgg": ("Is VGG worth its cost beside LeNet and AlexNet?", _alexnet_vgg),
    "deep-or-wide": ("Are deep and narrow networks better than shallow and wide ones of equal MACs?", _deep_or_wide),
    "kernel-size": ("Are two or three convolutions of 3x3 better than one of 5x5 or 7x7?", _kernel_size),
    "head": ("What do the parameters of the fully connected layers bring?", _head),
    "batch-norm": ("What does batch norm bring?", _batch_norm),
    "initialisation": ("Which initialisation learns fastest without batch norm?", _initialisation),
    "family": ("Which configuration of the paper is best at one width?", _family),
}
"""The chapter's exercises and what its discussion asks: by name the question, and its recipes of a base and a width."""
_AGAINST = {
    "kernel-size": {
        f"{kernel}x{kernel}{tail}": f"3x3, {times} times"
        for times, kernel in ((2, 5), (3, 7))
        for tail in ("", ", equal MACs")
    }
}
