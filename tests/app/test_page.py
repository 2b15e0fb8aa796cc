"""The page in a real browser, as a person uses it."""

import re
import shutil
from pathlib import Path

import pytest

from tests.killing import KILLS

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright").expect
expect.set_options(timeout=60_000)


BOOT = Path(__file__).parents[2] / "docs/pictures/ankle-boot.png"


CHINESE = re.compile("[\u4e00-\u9fff]")


def no_serious_fault(tab):
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(tab).response["violations"]
    assert not [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")]


def fits(tab, width):
    tab.set_viewport_size({"width": width, "height": 900})
    return tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_design_by_text_by_cards_and_by_the_address(tab, app):
    facts = tab.locator(".facts")
    facts.get_by_text("128,806,154").wait_for()  # VGG-11 with 1 channel and 10 classes
    network = tab.get_by_role("textbox", name="Network")
    network.fill("vgg16")
    facts.get_by_text("134,300,362").wait_for()
    assert "network=vgg16" in tab.url and "token" not in tab.url
    network.fill("2x64 2y128")
    tab.locator("#network-error mark").get_by_text("2y128").wait_for()
    network.fill("1x64 2x128")
    tab.get_by_role("button", name="Add a block").click()
    tab.get_by_text("1x64 2x128 2x128", exact=True).first.wait_for()  # before that, the cards are those of VGG-16
    tab.get_by_label("block 3, channels").fill("256")
    tab.keyboard.press("Tab")
    tab.get_by_text("1x64 2x128 2x256", exact=True).first.wait_for()
    tab.get_by_role("button", name="Move block 3: arrow keys, or drag", exact=True).press("ArrowUp")
    tab.get_by_text("1x64 2x256 2x128", exact=True).first.wait_for()
    tab.get_by_label("Batch norm after every convolution").check()
    tab.get_by_label("A second design").fill("vgg19")
    tab.locator("table").first.get_by_text("vgg19").wait_for()
    address = tab.url
    tab.goto(f"http://{app.host}/#/design?network=vgg13")
    facts.get_by_text("vgg13").or_(tab.get_by_role("heading", name="vgg13")).first.wait_for()
    tab.go_back()
    assert tab.url == address
    tab.locator("table").first.get_by_text("1x64 2x256 2x128_bn").wait_for()


def test_a_unit_and_its_receptive_field_by_mouse_and_keys(tab):
    tab.locator(".drawing svg").wait_for()
    tab.get_by_label("layer", exact=True).select_option("conv3_2")
    unit = tab.get_by_role("application")
    unit.focus()
    tab.keyboard.press("ArrowRight")
    tab.get_by_text("Row 29, column 30 of conv3_2 sees").wait_for()
    tab.locator(".drawing g:has(> title)").filter(has_text="pool5:").hover(force=True)
    tab.get_by_text("of pool5 sees").wait_for()


def test_every_width(tab):
    tab.locator(".drawing svg").wait_for()
    assert all(fits(tab, width) for width in (1400, 900, 400))
    no_serious_fault(tab)


def test_a_second_design_that_is_invalid_leaves_the_figures_of_the_first(tab, app):
    tab.goto(f"http://{app.host}/#/design?network=1x8+1x8&image_size=8&beside=vgg11")
    tab.get_by_role("alert").get_by_text("expected an image size of at least 32").wait_for()
    tab.get_by_text("The largest batch that fits is").wait_for()
    tab.get_by_text("predicted from a step").wait_for()
    tab.get_by_text("This window reaches into the padding").wait_for()


SCREENS = {
    "design": ("#/design?network=vgg16&beside=alexnet", "Memory of a training step"),
    "doctor": ("#/doctor", "Examine it"),
    "train": ("#/train?run=finished", "Predictions for the same images"),
    "classify": ("#/classify?model=finished", "what the network sees"),
    "inside": ("#/inside?model=finished", "window × weights"),
    "compare": ("#/compare?compare=finished,its-copy", "Compare 2 chosen"),
    "learn": ("#/learn", "What does batch norm bring?"),
}


@pytest.mark.parametrize("screen", SCREENS)
def test_every_screen_in_the_dark(tab, app, runs, screen):
    address, words = SCREENS[screen]
    tab.emulate_media(color_scheme="dark")
    tab.goto(f"http://{app.host}/{address}")
    if screen in ("classify", "inside"):
        tab.get_by_role("button", name="A test image").click()
    if screen == "inside":
        tab.get_by_role("button", name="conv1_1").click()
    tab.get_by_text(words).first.wait_for()
    for width in (1400, 400):
        assert fits(tab, width)
        no_serious_fault(tab)


@pytest.mark.torture
@pytest.mark.skipif(KILLS < 200, reason="starts two doctors: make torture runs it")
def test_the_doctor_is_asked_and_obeyed(tab, app):
    tab.goto(f"http://{app.host}/#/doctor?network=1x8+1x8+1x8&image_size=16&hidden=32")
    tab.get_by_label("Initial weights").select_option("torch")
    tab.get_by_role("button", name="Examine it").click()
    tab.get_by_role("region", name="Layer by layer").get_by_text("conv3_1").wait_for()
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        no_serious_fault(tab)
    tab.get_by_role("button", name="Try initial weights: kaiming").click()
    expect(tab.get_by_label("Initial weights")).to_have_value("kaiming")


def test_an_image_is_classified_and_looked_into(tab, app, model):
    tab.goto(f"http://{app.host}/#/classify?model={model}")
    tab.locator("#file").set_input_files(BOOT)
    tab.locator(".bar-row").nth(9).wait_for()
    expect(tab.locator("select[name=model]")).to_have_value(model)
    tab.get_by_role("button", name="Draw").click()
    canvas = tab.get_by_role("application", name="A canvas of 28 by 28")
    canvas.hover()
    tab.mouse.down()
    tab.mouse.move(*[canvas.bounding_box()[side] + 20 for side in ("x", "y")])
    with tab.expect_response("**/api/classify"):
        tab.mouse.up()
    assert all(fits(tab, width) for width in (400, 900, 1400))
    no_serious_fault(tab)
    tab.get_by_role("link", name="Look inside").click()
    tab.get_by_role("button", name="conv2_1").click()
    tab.get_by_text("8 maps of conv2_1, 14 × 14 each").wait_for()
    tab.get_by_text("row 8, column 8: window × weights").wait_for()
    tab.get_by_role("application").press("ArrowUp")
    tab.get_by_text("row 7, column 8: window × weights").wait_for()
    tab.get_by_role("button", name="fc4", exact=True).click()
    tab.get_by_role("button", name="class 0").click()
    tab.locator("select[name=patches]").select_option("fashion-mnist-sample")
    tab.get_by_role("button", name="Search for fc4:0").click()
    tab.get_by_text("patches of 1,000 test images of fashion-mnist-sample").wait_for()
    tab.get_by_role("button", name="Explain").click()
    tab.locator("img.heat").first.wait_for()
    assert all(fits(tab, width) for width in (400, 900, 1400))
    no_serious_fault(tab)


def test_the_page_is_small_and_speaks_chinese(tab):
    tab.locator(".drawing svg").wait_for()
    sizes = tab.evaluate(
        "performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation')).map((e) => e.decodedBodySize)"
    )
    assert sum(sizes) < 200_000
    tab.get_by_role("button", name="中文").press("Enter")
    tab.get_by_role("heading", name="用块来设计网络").wait_for()
    words = re.findall(r"[a-z]{4,}", tab.locator("main").inner_text())
    assert "network" not in words
    tab.get_by_role("textbox", name="网络").fill("2y128")
    tab.get_by_text("需要形如 2x128 的块").wait_for()
    tab.get_by_role("link", name="训练", exact=True).click()
    tab.locator("input[name=epochs]").wait_for()  # the view of before has labels too
    for label in tab.locator("form label, details .fields label").all():
        words = label.text_content(), label.get_attribute("title")
        assert all(CHINESE.search(text) or text == "CutMix" for text in words), words
    tab.locator("input[name=epochs]").fill("0")
    tab.get_by_role("alert").get_by_text("轮数需为 1 到 1000000 的整数").wait_for()
    tab.get_by_role("link", name="学习", exact=True).click()
    tab.get_by_role("heading", name="批量规范化带来了什么").wait_for()
    tab.get_by_role("link", name="设计", exact=True).click()
    tab.get_by_role("textbox", name="网络").fill("vgg11")
    tab.get_by_role("button", name="English").press("Enter")
    tab.get_by_role("heading", name="Design a network of blocks").wait_for()


def test_what_the_library_says_is_said_in_chinese(tab):
    """With all numbers, names and flags of the English line."""
    from vggkit.data.sources import open_data
    from vggkit.design.network import as_network
    from vggkit.lab.doctor import examine, first_batch
    from vggkit.networks.baselines import build

    lines = ["more than 75% of the ReLUs are dead in conv1_1, try --init kaiming or a lower --learning-rate"]
    lines += ["a is better than b by 0.012 ±0.003.", "vgg11 against vgg13: not decided (+0.010 ±0.020)."]
    lines += ["no: the map hardly depends on the weights (rank correlation with randomised ones 0.87)"]
    network = as_network("vgg19/8", in_channels=1, num_classes=10, image_size=32, hidden=(512,))
    images, labels = first_batch(open_data("fashion-mnist-sample"), network, 8)
    lines += examine(build(network, "torch"), images, labels).findings
    assert len(lines) > 5
    tab.get_by_role("button", name="中文").press("Enter")
    said = tab.evaluate(
        "async (lines) => { const { translated } = await import('/static/terms.js'); return lines.map(translated); }",
        lines,
    )
    for english, chinese in zip(lines, said, strict=True):
        assert CHINESE.search(chinese) and not re.search("[a-z]{3,} [a-z]{3,} [a-z]{3,}", chinese)
        assert sorted(re.findall(r"[0-9.]*[0-9]", english)) == sorted(re.findall(r"[0-9.]*[0-9]", chinese))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("expected epochs to be a whole number from 1 to 1000000, got 0", "轮数需为 1 到 1000000 的整数,得到 0"),
        ("expected at least one block, got none", "至少需要一个块"),
        (
            "expected a moon of green cheese, got a stone",
            "程序报告(英文原文):“expected a moon of green cheese, got a stone”",
        ),
    ],
)
def test_an_error_is_chinese_or_quoted_whole(tab, line, said):
    tab.get_by_role("button", name="中文").click()
    script = "async (line) => { const { complaint } = await import('/static/terms.js'); return complaint(line); }"
    assert tab.evaluate(script, line) == said


def test_a_run_whose_name_is_no_utf_8_is_chosen(tab, app, runs):
    """One without weights: safetensors opens none at such a path."""
    folder, name = app.folder / "runs" / "\udcff,", r"\xff\x2c"
    folder.mkdir()
    for file in ("recipe.json", "metrics.jsonl"):
        shutil.copy(app.folder / "runs" / runs[0] / file, folder)
    tab.goto(f"http://{app.host}/#/train")
    tab.get_by_role("checkbox", name=name).check()
    tab.get_by_role("heading", name=name).wait_for()
    tab.reload()
    tab.get_by_role("img", name="Accuracy:").wait_for()
    shutil.rmtree(folder)
