"""The chapter's page holds what was measured, in both languages, and needs nothing but itself; so does the notebook."""

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.lab.conftest import kill_at
from vggkit import Architecture, costs, vgg
from vggkit.design.network import as_network
from vggkit.errors import RecipeError
from vggkit.lab.answers import answered
from vggkit.lab.chapter import BLOCK, CONV_ARCH, Chapter, chapter_page, measured_chapter
from vggkit.lab.experiments import EXPERIMENTS, named_experiment
from vggkit.lab.trials import Chosen, Outcome, Plan

NOTEBOOK = Path(__file__).parents[2] / "docs/chapter.ipynb"
HARDWARE = "AMD EPYC, 2 threads, AVX512"
TINY = {"data": "fashion-mnist-sample", "image_size": 32, "epochs": 1, "architecture": "1x8", "hidden": ()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chapter") / "runs"


@pytest.fixture(scope="module")
def chapter(folder):
    """The smallest: one exercise, whose networks are the same; measured twice, trained once."""
    told = [], []
    made, again = (
        measured_chapter("minutes", folder, names=["batch-norm"], changes=TINY, device="cpu", say=lines.append)
        for lines in told
    )
    assert again.answers["batch-norm"].outcomes == made.answers["batch-norm"].outcomes
    assert [sum(", seed " in line for line in lines) for lines in told] == [6, 0]
    return made


def test_a_killed_chapter_goes_on_to_the_same_page(chapter, tmp_path):
    """To the same losses, accuracies, differences and verdicts; what they took differs."""
    how = f"names=['batch-norm'], changes={TINY!r}, device='cpu'"
    program = f"import pathlib, vggkit.lab.chapter as c; c.measured_chapter('minutes', pathlib.Path('runs'), {how})"
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path) as process:
        kill_at(process, tmp_path / "runs/batch-norm/001/metrics.jsonl")
    assert not (tmp_path / "runs/batch-norm/001/outcome.json").exists()
    resumed = measured_chapter("minutes", tmp_path / "runs", names=["batch-norm"], changes=TINY, device="cpu")
    pages = [" ".join(Page(chapter_page(each, "")).words) for each in (chapter, resumed)]
    figures = [re.findall(r"[+-]?\d\.\d{3,4}\b|better|worse|not decided", page) for page in pages]
    assert figures[0] == figures[1]
    assert len(figures[0]) > 12


def imagined(name):
    """An answer as one that was measured would be: all verdicts, and a recipe that diverged."""
    experiment = named_experiment(name)
    gains = dict.fromkeys(experiment.recipes, 0.0) | dict(zip(experiment.recipes, (0, 0.1, -0.1, 0.001), strict=False))
    outcomes = [
        Outcome(
            label, seed, HARDWARE, 0.8 + gain + seed * (seed - 1) * gain / 100, 0.5, 60.0, 1000.0 + len(label), 10**8
        )
        for label, gain in gains.items()
        for seed in range(3)
    ]
    lost = max(EXPERIMENTS, key=len) == name
    outcomes = [replace(o, accuracy=None) if lost and o.label == list(gains)[-1] else o for o in outcomes]
    chosen = {label: Chosen(r.architecture, r.epochs, 100, 1, 10, 60.0) for label, r in experiment.recipes.items()}
    return answered(Plan(experiment, chosen), outcomes)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and "pre" not in self.open:
            self.words.append(data)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page(chapter, language):
    text = chapter_page(chapter, "vgg chapter <x>", language)
    last, run = chapter.run.history[-1], chapter.run
    measured = [f"{last.train_loss:.3f}", f"{last.test_accuracy:.3f}", f"{run.examples_per_second:,.0f}"]
    total = costs(Architecture(CONV_ARCH, in_channels=1, num_classes=10)).total
    alexnet = costs(as_network("alexnet", in_channels=1, num_classes=10)).total
    counted = [f"{total.parameters:,}", f"{total.macs / alexnet.macs:.1f} "]
    shapes = ["Sequential output shape:\t torch.Size([1, 64, 112, 112])", "Linear output shape:\t torch.Size([1, 10])"]
    for number in [*measured, *counted, *shapes, "0.177", "0.934", "0.911–0.920", "2,464–2,562"]:
        assert number in text
    assert text.count("output shape:\t torch") == 13
    page = Page(text)
    assert not re.search(r"\{[a-z_]+[:}]", " ".join(page.words))  # every blank is filled
    assert ("html", {"lang": language}) in page.seen
    assert sum(tag == "svg" for tag, _ in page.seen) == 4
    assert not any(tag in ("script", "link", "img", "iframe") for tag, _ in page.seen)
    assert "vgg chapter &lt;x&gt;" in text


NAMES = r"""
    VGG(-\d+)?(/\d)? | vgg\d+\w*(/\d)? | vgg_block | vggkit | AlexNet | LeNet | A-LRN | ReLU | PyTorch | Fashion-MNIST | AMD\ EPYC | AVX\w+
    | MACs? | FLOPs | GPU | MB | float32 | px | (conv|pool|block|fc)\d(_\d)? | kaiming | xavier | paper | torch | fashion-mnist(-sample)?
    | \d+\ ?x\ ?(\d+|MACs)(x\d+)? | \d+(\.\d+)?\ ?[kMG]\b | [A-E]\b
"""


def test_the_chinese_page_is_chinese_whatever_was_measured(chapter):
    answers = {name: imagined(name) for name in EXPERIMENTS}
    run = replace(chapter.run, hardware="AMD EPYC, 1 thread, AVX2")
    pages = [Page(chapter_page(Chapter(run, answers), "", language)) for language in ("en", "zh")]
    left = [re.sub(NAMES, "", words, flags=re.VERBOSE) for words in pages[1].words]
    assert [words for words in left if re.search("[A-Za-z]", words)] == []
    figures = [sorted(re.findall(r"\d+\.\d{3}", " ".join(page.words))) for page in pages]
    assert figures[0] == figures[1]  # the numbers are the same
    for verdict in ("优于", "不如", "无法判定", "发散"):
        assert verdict in "".join(pages[1].words)


def test_another_language_is_refused(chapter):
    with pytest.raises(RecipeError, match="expected a language of en, zh, got 'fr'"):
        chapter_page(chapter, "", "fr")


def test_the_seven_lines_make_the_book_s_block():
    names = {"nn": nn}
    exec(BLOCK, names)
    assert len(BLOCK.splitlines()) == 7
    x, theirs = torch.randn(1, 1, 224, 224), vgg(CONV_ARCH)
    for (num_convs, channels), ours in zip(CONV_ARCH, theirs, strict=False):
        block = names["vgg_block"](num_convs, channels)
        x = block(x)
        block.load_state_dict(dict(zip(block.state_dict(), ours.state_dict().values(), strict=True)))
        assert [str(layer) for layer in block] == [str(layer) for layer in ours]


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    import nbclient
    import nbformat

    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    tiny = {"changes = {": TINY, "exercise = {": {**TINY, "image_size": 16}}
    for cell in notebook.cells:
        for start, values in tiny.items():
            cell.source = re.sub(rf"^{re.escape(start)}.*$", start[:-1] + repr(values), cell.source, flags=re.MULTILINE)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", ()))
    assert printed.count("output shape:") == 13
    assert printed.count(", seed ") == 6
    assert re.search(r"loss \d\.\d{3}, train acc 0\.\d{3}, test acc 0\.\d{3}\n", printed)
