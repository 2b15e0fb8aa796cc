"""The chapter "networks using blocks (VGG)" as one page: its figures measured here, beside the book's."""

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch

from vggkit.design.architecture import Architecture
from vggkit.design.network import costs, draw
from vggkit.design.table import Table
from vggkit.errors import RecipeError, shown
from vggkit.lab.answers import Answer, answered
from vggkit.lab.experiments import EXPERIMENTS, Size, named_experiment
from vggkit.lab.report import Code, Heading, Part, Picture, as_svg, to_html
from vggkit.lab.trials import run_experiment
from vggkit.networks.vgg import vgg
from vggkit.training.curves import curves
from vggkit.training.loop import train
from vggkit.training.recipe import Recipe
from vggkit.training.run import Run

Language = Literal["en", "zh"]

BOOK = {"book_loss": "0.177", "book_train": "0.934", "book_test": "0.911–0.920", "book_speed": "2,464–2,562"}
"""What the book prints for VGG-11/4 after 10 epochs."""
CONV_ARCH = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))
BLOCK = """\
def vgg_block(num_convs, in_channels, out_channels):
    layers = []
    for _ in range(num_convs):
        layers += [nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1), nn.ReLU()]
        in_channels = out_channels
    return nn.Sequential(*layers, nn.MaxPool2d(kernel_size=2, stride=2))"""
TRAINED: dict[Size, dict[str, Any]] = {
    "minutes": {"image_size": 96, "epochs": 1},
    "hours": {"epochs": 3},
    "gpu": {},
}
"""What a size changes in the book's recipe."""


@dataclass(frozen=True)
class Chapter:
    """What was measured for the page."""

    run: Run
    """Of the narrow network."""
    answers: dict[str, Answer]
    """By the name of the experiment."""


def measured_chapter(
    size: Size,
    folder: Path,
    *,
    names: Sequence[str] = tuple(EXPERIMENTS),
    changes: dict[str, Any] | None = None,
    device: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Chapter | None:
    """Train the chapter's network and answer its exercises, in run folders within `folder`.

    Args:
        size: how much is trained, see `named_experiment`.
        folder: of this chapter; what is in it is not trained again.
        names: the exercises.
        changes: to the fields of all recipes, to try it.
        device: as `train` takes it.
        say: is told what is run.

    Returns:
        None if a signal stopped it: the same call goes on.
    """
    changes = changes or {}
    recipe = Recipe.named("d2l", **{**TRAINED[size], **changes})
    say(f"training {recipe.architecture} at {recipe.image_size} px, {recipe.epochs} epochs")
    run = train(recipe, resume=folder / "narrow", device=device, progress=False)
    if run.stopped_by is not None:
        return None
    answers = {}
    for name in names:
        asked = named_experiment(name, size)
        recipes = {label: each.changed(**changes) for label, each in asked.recipes.items()}
        experiment = replace(asked, recipes=recipes)
        say(f"{name}: {experiment.question}")
        plan, outcomes = run_experiment(experiment, folder / name, device=device, say=say)
        if outcomes is None:
            return None
        answers[name] = answered(plan, outcomes)
    return Chapter(run, answers)


def chapter_page(chapter: Chapter, command: str, language: Language = "en") -> str:
    """The page as HTML, in one file that needs nothing else.

    Args:
        chapter: what was measured.
        command: makes the page again.
        language: of its words; the numbers are the same.
    """
    languages = tomllib.loads(resources.files("vggkit.lab").joinpath("chapter.toml").read_text("utf-8"))
    if language not in languages:
        raise RecipeError(f"expected a language of {', '.join(languages)}, got {shown(repr(language))}")
    words = languages[language]
    parts: list[Part] = [Heading(words["why"]), words["why_1"], Heading(words["block"]), words["block_1"], Code(BLOCK)]
    parts += _design_parts(words)
    parts += _training_parts(words, chapter.run)
    parts += [Heading(words["throughput"]), words["throughput_1"], _throughput(chapter)]
    seeds = max((answer.plan.experiment.seeds for answer in chapter.answers.values()), default=0)
    parts += [Heading(words["exercises"]), words["exercises_1"].format(seeds=seeds)]
    for name, answer in chapter.answers.items():
        question = words.get("questions", {}).get(name, answer.plan.experiment.question)
        parts += [Heading(question), *answer.sentences, Picture(answer.plot(), question), answer.table(False)]
    return to_html(words["title"], [*parts, Heading(words["made_by"]), Code(command)], language)


def _design_parts(words: dict[str, str]) -> list[Part]:
    """The network, its drawing and its costs: nothing is trained for them."""
    lines, x = [], torch.zeros(1, 1, 224, 224)
    with torch.no_grad():
        for layer in vgg(CONV_ARCH).eval():
            x = layer(x)
            lines.append(f"{layer.__class__.__name__} output shape:\t{tuple(x.shape)}")
    book = {"in_channels": 1, "num_classes": 10}
    networks = [Architecture.parse(name, **book) for name in ("vgg11", "vgg11/4")]
    whole, narrow = map(costs, networks)
    layers, total = whole.layers, whole.total
    filled = {
        "fc_parameters": sum(layer.parameters for layer in layers if layer.kind == "fc") / total.parameters,
        "conv_macs": sum(layer.macs for layer in layers if layer.kind == "conv") / total.macs,
        "early_memory": sum(layer.activation_bytes for layer in layers if layer.part in ("block1", "block2"))
        / total.activation_bytes,
        "parameters": total.parameters,
        "narrow_parameters": narrow.total.parameters,
        "macs_ratio": total.macs / narrow.total.macs,
    }
    return [
        Heading(words["network"]),
        words["network_1"],
        Code("\n".join(lines)),
        words["network_2"],
        Picture(draw(networks[0]), "VGG-11"),
        Heading(words["costs"]),
        words["costs_1"].format(**filled),
        whole.table(),
        Heading(words["narrow"]),
        words["narrow_1"].format(**filled),
        narrow.table(),
    ]


def _training_parts(words: dict[str, str], run: Run) -> list[Part]:
    recipe, last = run.recipe, run.history[-1]
    book = Recipe.named("d2l")
    changed = {
        name: value
        for name in ("image_size", "epochs", "data", "architecture")
        if (value := getattr(recipe, name)) != getattr(book, name)
    }
    speed = sum(m.examples_per_second * m.train_seconds for m in run.history) / sum(
        m.train_seconds for m in run.history
    )
    measured = {
        **BOOK,
        "loss": last.train_loss,
        "train": last.train_accuracy,
        "test": last.test_accuracy,
        "speed": speed,
        "epochs": recipe.epochs,
        "hardware": run.hardware,
        "changes": ", ".join(f"{name} {value}" for name, value in changed.items()) or "-",
    }
    rows = [
        ("loss", BOOK["book_loss"], f"{last.train_loss:.3f}"),
        ("train acc", BOOK["book_train"], f"{last.train_accuracy:.3f}"),
        ("test acc", BOOK["book_test"], f"{last.test_accuracy:.3f}"),
        ("examples/s", BOOK["book_speed"], f"{speed:,.0f}"),
    ]
    picture = as_svg(curves(run.history, recipe.epochs, run.evaluated_on, f"{recipe.architecture}, {recipe.data}"))
    return [
        Heading(words["training"]),
        words["training_1"].format(**measured),
        Picture(picture, words["curve"]),
        words["training_2"].format(**measured),
        Table((words["quantity"], words["book"], words["here"]), [rows]),
    ]


def _throughput(chapter: Chapter) -> Picture:
    """Accuracy against examples/s of every network of the exercises."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, answer in chapter.answers.items():
        points = [
            (row.examples_per_second, row.accuracy.mean, 20 + row.cost.parameters / 50_000)
            for row in answer.rows
            if row.accuracy is not None and row.examples_per_second is not None
        ]
        axes.scatter(*zip(*points, strict=True), alpha=0.6, label=name)
    axes.set(xscale="log", xlabel="examples/s in training", ylabel="test accuracy")
    axes.grid(alpha=0.3)
    if chapter.answers:
        axes.legend(fontsize="small", markerscale=0.6)
    return Picture(as_svg(figure), "examples/s, accuracy, parameters")
