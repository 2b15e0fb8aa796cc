"""The chapter "networks using blocks (VGG)" as one page: its figures measured here, beside the book's."""

import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape, unescape
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from vggkit.design.network import as_network, costs, draw
from vggkit.design.table import Table
from vggkit.errors import RecipeError, shown
from vggkit.lab.answers import Answer, answered
from vggkit.lab.experiments import EXPERIMENTS, Size, named_experiment
from vggkit.lab.pareto import Panel, front_plot
from vggkit.lab.report import Code, Heading, Part, Picture, as_svg, to_html
from vggkit.lab.trials import run_experiment
from vggkit.networks.vgg import vgg
from vggkit.training.curves import curves
from vggkit.training.loop import train
from vggkit.training.recipe import Recipe
from vggkit.training.run import Run
from vggkit.version import __version__

Language = Literal["en", "zh"]

BOOK = {"loss": "0.177", "train acc": "0.934", "test acc": "0.911–0.920", "examples/s": "2,464–2,562"}
"""What the book's editions print for VGG-11/4 after 10 epochs."""
CONV_ARCH = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))
BLOCK = """\
def vgg_block(num_convs, out_channels):
    layers = []
    for _ in range(num_convs):
        layers.append(nn.LazyConv2d(out_channels, kernel_size=3, padding=1))
        layers.append(nn.ReLU())
    layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    return nn.Sequential(*layers)"""
LOOP = """\
net = vgg(((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)))
X = torch.randn(1, 1, 224, 224)
for blk in net:
    X = blk(X)
    print(blk.__class__.__name__, 'output shape:\\t', X.shape)"""
TRAINED: dict[Size, dict[str, Any]] = {
    "minutes": {"image_size": 96, "epochs": 1},
    "hours": {"epochs": 3},
    "gpu": {},
}
"""What each size changes in the book's recipe."""


@dataclass(frozen=True)
class Chapter:
    """The measurements for the page."""

    run: Run
    """The run of the narrow network."""
    answers: dict[str, Answer]
    """By name of the experiment."""


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
        size: how much to train, see `named_experiment`.
        folder: of this chapter; finished runs in it are not repeated.
        names: the exercises.
        changes: to fields of all recipes, such as the data or the epochs.
        device: as for `train`.
        say: called with each line of progress.

    Returns:
        The measurements; None if a signal stopped it, after which the same call resumes.

    Raises:
        RecipeError: an unknown exercise or size.
        RunError: `folder` belongs to another chapter.
    """
    changes = changes or {}
    experiments = [named_experiment(name, size) for name in names]
    recipe = Recipe.named("d2l", **{**TRAINED[size], **changes})
    say(f"training {recipe.architecture} at {recipe.image_size} px, epochs: {recipe.epochs}")
    run = train(recipe, resume=folder / "narrow", device=device, progress=False)
    if run.stopped_by is not None:
        return None
    answers = {}
    for number, named in enumerate(experiments, 1):
        experiment = replace(named, recipes={label: r.changed(**changes) for label, r in named.recipes.items()})
        say(f"exercise {number} of {len(experiments)}, {experiment.name}: {experiment.question}")
        plan, outcomes = run_experiment(experiment, folder / experiment.name, device=device, say=say)
        if outcomes is None:
            return None
        answers[experiment.name] = answered(plan, outcomes)
    return Chapter(run, answers)


class _Words:
    """The texts of the page in one language, from chapter.toml; call it with the name of a sentence."""

    def __init__(self, language: Language) -> None:
        if language not in get_args(Language):
            raise RecipeError(f"expected a language of {', '.join(get_args(Language))}, got {shown(repr(language))}")
        texts = tomllib.loads(resources.files("vggkit.lab").joinpath("chapter.toml").read_text("utf-8"))
        self._sentences = texts[language]
        self._terms = [
            (re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+?)", re.escape(english))), translation)
            for english, translation in self._sentences.get("terms", {}).items()
        ]

    def __call__(self, name: str, **values: object) -> str:
        """The sentence `name` of the page, filled with `values`."""
        translated = {key: self.of(value) if isinstance(value, str) else value for key, value in values.items()}
        return str(self._sentences[name].format(**translated))

    def of(self, english: str) -> str:
        """The translation of a text from another part of vggkit; names and numbers stay as they are."""
        for pattern, translation in self._terms:
            if match := pattern.fullmatch(english):
                return str(translation.format(**{blank: self.of(text) for blank, text in match.groupdict().items()}))
        return english

    def table(self, table: Table) -> Table:
        """`table`, translated."""
        sections = [[list(map(self.of, row)) for row in rows] for rows in table.sections]
        header, notes = (list(map(self.of, lines)) for lines in (table.header, table.notes))
        return Table(header, sections, table.left_aligned, self.of(table.title), notes)

    def picture(self, svg: str, words: str) -> Picture:
        """A picture with its texts translated."""
        translated = re.sub(r"(?<=>)[^<>]*\w[^<>]*(?=<)", lambda text: escape(self.of(unescape(text[0]))), svg)
        return Picture(translated, words)


def chapter_page(chapter: Chapter, command: str, language: Language = "en") -> str:
    """The page as one self-contained HTML file; `command` reproduces it.

    Raises:
        RecipeError: an unknown language.
    """
    words = _Words(language)
    parts: list[Part] = [words("intro", version=__version__, hardware=chapter.run.hardware)]
    parts += [Heading(words("why")), words("why_1"), Heading(words("block")), words("block_1"), Code(BLOCK)]
    parts += [*_network(words), *_costs(words), *_training(words, chapter.run)]
    if chapter.answers:
        seeds = max(answer.plan.experiment.seeds for answer in chapter.answers.values())
        parts += [Heading(words("throughput")), words("throughput_1")]
        parts += [words.picture(_throughput(chapter.answers), ""), Heading(words("exercises"))]
        parts += [words("exercises_1", seeds=seeds)]
    for number, answer in enumerate(chapter.answers.values(), 1):
        parts += [Heading(f"{number}. {words.of(answer.plan.experiment.question)}"), *map(words.of, answer.sentences)]
        parts += [words.picture(answer.plot(), ""), words.table(answer.table(with_words=False))]
    return to_html(words("title"), [*parts, Heading(words("made_by")), Code(command)], language)


def _network(words: _Words) -> list[Part]:
    """The shapes of VGG-11 as the book prints them, and its drawing."""
    net, x, lines = vgg(CONV_ARCH).eval(), torch.zeros(1, 1, 224, 224), []
    with torch.no_grad():
        for blk in net:
            x = blk(x)
            lines.append(f"{blk.__class__.__name__} output shape:\t {x.shape}")
    num_shown = sum(any(True for _ in blk.parameters()) for blk in net)
    num_weighted = sum(isinstance(layer, torch.nn.Conv2d | torch.nn.Linear) for layer in net.modules())
    return [
        Heading(words("network")),
        words("network_1"),
        Code(f"{LOOP}\n\n" + "\n".join(lines)),
        words("network_2", shown=num_shown, hidden=num_weighted - num_shown),
        words.picture(draw(_book_network("vgg11")), words("network_3")),
    ]


def _costs(words: _Words) -> list[Part]:
    """The costs of VGG-11 by part, compared with those of AlexNet and of the narrow network."""
    alexnet, vgg11, narrow = (costs(_book_network(name)) for name in ("alexnet", "vgg11", "vgg11/4"))
    total, small = vgg11.total, narrow.total
    early = sum(part.activation_bytes for name, part in vgg11.parts.items() if name in ("block1", "block2"))
    rows = [
        (name, f"{cost.parameters:,}", f"{2 * cost.macs / 1e9:,.2f} G", f"{cost.activation_bytes / 1e6:,.1f} MB")
        for name, cost in (("AlexNet", alexnet.total), ("VGG-11", total), ("VGG-11/4", small))
    ]
    return [
        Heading(words("costs")),
        words(
            "costs_1",
            fc_parameters=vgg11.fully_connected.parameters / total.parameters,
            conv_macs=vgg11.convolutional.macs / total.macs,
            early_memory=early / total.activation_bytes,
        ),
        words.table(vgg11.table()),
        words(
            "costs_2",
            parameters_ratio=total.parameters / alexnet.total.parameters,
            macs_ratio=total.macs / alexnet.total.macs,
            memory_ratio=total.activation_bytes / alexnet.total.activation_bytes,
        ),
        words.table(Table(("network", "parameters", "FLOPs", "activations"), [rows])),
        Heading(words("narrow")),
        words(
            "narrow_1",
            narrow_parameters=small.parameters,
            parameters=total.parameters,
            narrow_ratio=total.macs / small.macs,
        ),
        words.table(narrow.table()),
    ]


def _book_network(name: str) -> Any:
    return as_network(name, in_channels=1, num_classes=10, image_size=224)


def _training(words: _Words, run: Run) -> list[Part]:
    recipe, book, last = run.recipe, Recipe.named("d2l"), run.history[-1]
    figures = (last.train_loss, last.train_accuracy, last.test_accuracy)
    here = [*(f"{value:.3f}" for value in figures), f"{run.examples_per_second:,.0f}"]
    rows = [(name, printed, measured) for (name, printed), measured in zip(BOOK.items(), here, strict=True)]
    book_macs, macs = (costs(r.network(in_channels=1, num_classes=10)).total.macs for r in (book, recipe))
    reasons = [
        words(name, here=getattr(recipe, name), book=getattr(book, name), ratio=book_macs / macs)
        for name in ("epochs", "image_size", "data", "architecture")
        if getattr(recipe, name) != getattr(book, name)
    ]
    machine = words("machine", hardware=run.hardware)
    why = [words("difference", reasons=words("joint").join([*reasons, machine])), words("accuracy_reasons")]
    picture = as_svg(curves(run.history, recipe.epochs, run.evaluated_on, f"{recipe.architecture}, {recipe.data}"))
    return [
        Heading(words("training")),
        words("training_1"),
        words.picture(picture, words("curve")),
        words.table(Table(("quantity", "the book", "here"), [rows])),
        *(why if reasons else [words("no_difference", hardware=run.hardware)]),
    ]


def _throughput(answers: dict[str, Answer]) -> str:
    """Accuracy against training speed of every network of the exercises, as SVG; empty if all diverged."""
    measured = [
        (row.label, row.accuracy.mean, row.examples_per_second, row.cost.parameters)
        for answer in answers.values()
        for row in answer.rows
        if row.accuracy is not None and row.examples_per_second is not None
    ]
    if not measured:
        return ""
    names, accuracies, speeds, parameters = zip(*measured, strict=True)
    return front_plot(names, accuracies, [Panel("examples/s in training", speeds, is_cost=False)], parameters)
