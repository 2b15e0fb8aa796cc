"""The chapter's page holds what was measured, in both languages, and needs nothing but itself."""

import re
from html.parser import HTMLParser

import pytest

from vggkit import Architecture, costs
from vggkit.errors import RecipeError
from vggkit.lab.chapter import CONV_ARCH, chapter_page, measured_chapter

TINY = {"data": "fashion-mnist-sample", "image_size": 32, "epochs": 1, "architecture": "1x8", "hidden": ()}


@pytest.fixture(scope="module")
def chapter(tmp_path_factory):
    """The smallest: one exercise, whose networks are the same."""
    folder = tmp_path_factory.mktemp("chapter")
    made = measured_chapter("minutes", folder, names=["batch-norm"], changes=TINY, device="cpu")
    again = measured_chapter("minutes", folder, names=["batch-norm"], changes=TINY, device="cpu")
    assert [o.accuracy for o in again.answers["batch-norm"].outcomes] == [
        o.accuracy for o in made.answers["batch-norm"].outcomes
    ]
    return made


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page(chapter, language):
    page = chapter_page(chapter, "vgg chapter <x>", language)
    last, run = chapter.run.history[-1], chapter.run
    numbers = [
        f"{last.train_loss:.3f}",
        f"{last.test_accuracy:.3f}",
        f"{run.examples_per_second:,.0f}",
        "0.177",
        "0.934",
    ]
    total = costs(Architecture(CONV_ARCH, in_channels=1, num_classes=10)).total
    for number in [*numbers, f"{total.parameters:,}", "2,464–2,562", "Sequential output shape:", "(1, 512, 7, 7)"]:
        assert number in page
    assert not re.search(r"\{[a-z_]+[:}]", page.partition("</style>")[2])  # every blank is filled
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert ("html", {"lang": language}) in tags.seen
    assert sum(tag == "svg" for tag, _ in tags.seen) == 4
    assert not any(tag in ("script", "link", "img", "iframe") for tag, _ in tags.seen)
    assert "vgg chapter &lt;x&gt;" in page
    assert ("批量规范化带来了什么" in page) == (language == "zh")


def test_another_language_is_refused(chapter):
    with pytest.raises(RecipeError, match="expected a language of en, zh, got 'fr'"):
        chapter_page(chapter, "", "fr")
