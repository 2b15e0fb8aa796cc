"""The page by keyboard alone: every control is reached and seen, and none loses the focus when its view is painted anew."""

import re

from tests.app.test_page import expect, fits, no_serious_fault

HERE = """() => {
    const at = document.activeElement, { outlineStyle } = getComputedStyle(at);
    const words = at.ariaLabel || at.labels?.[0]?.innerText || at.innerText || "";
    return { words: words.trim(), kind: at.role || at.tagName.toLowerCase(), isSeen: [document.body, document.querySelector("main")].includes(at) || outlineStyle !== "none" };
}"""


def reach(tab, name, kind="", key="Tab"):
    """Press Tab until the focus is on a `kind` of control whose words begin with `name`; it is visible on all before."""
    for _ in range(200):
        tab.keyboard.press(key)
        here = tab.evaluate(HERE)
        assert here["isSeen"], here
        if here["words"].startswith(name) and kind in here["kind"]:
            return
    raise AssertionError(f"{key} does not reach {name}")


def on(tab, name):
    """The focus is on the control whose words begin with `name`, once the view is painted."""
    tab.wait_for_function(f"(name) => ({HERE})().words.startsWith(name)", arg=name)


def replace(tab, text):
    tab.keyboard.press("Control+A")
    tab.keyboard.type(text)


def test_a_network_is_designed_and_an_image_looked_into(tab, app, model):
    expect(tab.locator(".facts").get_by_text("128,806,154")).to_be_visible()
    reach(tab, "Skip to the page")
    tab.keyboard.press("Enter")
    reach(tab, "Network", "input")
    replace(tab, "1x4 2x8")
    tab.locator(".chips button").first.wait_for()
    reach(tab, "Move block 2")
    tab.keyboard.press("ArrowUp")
    tab.get_by_text("2x8 1x4", exact=True).first.wait_for()
    on(tab, "Move block 1")
    reach(tab, "Add a block")
    tab.keyboard.press("Enter")
    tab.get_by_text("2x8 1x4 1x4", exact=True).first.wait_for()
    reach(tab, "By layer")
    tab.keyboard.press("Enter")
    on(tab, "By layer")
    reach(tab, "Classify", "a", key="Shift+Tab")
    tab.keyboard.press("Enter")
    tab.get_by_role("heading", name="Classify an image").wait_for()
    assert tab.evaluate("scrollY") == 0  # nothing of the new view is behind the bar
    reach(tab, "Run or weight file")
    tab.keyboard.type("tiny")
    expect(tab.locator("select[name=model]")).to_have_value(model)
    reach(tab, "Draw")
    tab.keyboard.press("Enter")
    on(tab, "A canvas")
    for key in ("Space", "ArrowDown", "ArrowDown", "ArrowRight"):
        tab.keyboard.press(key)
    tab.get_by_text("The pen is down at column 15, row 16.").wait_for()
    tab.locator(".bar-row").first.wait_for()
    tab.keyboard.press("Escape")
    on(tab, "Draw")
    expect(tab.locator("canvas")).to_have_count(0)
    reach(tab, "Look inside", "a", key="Shift+Tab")
    tab.keyboard.press("Enter")
    tab.get_by_text("maps of").first.wait_for()
    reach(tab, "conv2_1")
    tab.keyboard.press("Enter")
    tab.get_by_text("row 8, column 8: window × weights").wait_for()
    reach(tab, "One map")
    tab.keyboard.press("ArrowDown")
    tab.get_by_text("row 9, column 8: window × weights").wait_for()
    reach(tab, "Explain")
    tab.keyboard.press("Enter")
    tab.locator("img.heat").first.wait_for()
    on(tab, "Explain")


def test_a_run_from_the_form_to_its_curves_its_stop_and_on(tab, app):
    tab.goto(f"http://{app.host}/#/design?network=1x4+1x8&image_size=8&hidden=16&dropout=0")
    reach(tab, "Train", "a")
    tab.keyboard.press("Enter")
    reach(tab, "Preparation and augmentation")
    tab.keyboard.press("Enter")
    expect(tab.locator("input[name=cutmix]")).to_be_visible()
    reach(tab, "Recipe", key="Shift+Tab")
    tab.keyboard.type("d2l")
    expect(tab.locator("select[name=recipe]")).to_have_value("d2l")
    on(tab, "Recipe")
    reach(tab, "Take the network from Design")
    tab.keyboard.press("Enter")
    on(tab, "Take the network from Design")
    expect(tab.locator("input[name=cutmix]")).to_be_visible()  # its group stays open
    reach(tab, "Data", "select")
    tab.keyboard.type("fashion-mnist-s")
    expect(tab.locator("select[name=data]")).to_have_value("fashion-mnist-sample")
    reach(tab, "Epochs")
    about = "Passes over the training images."
    expect(tab.locator("input[name=epochs]")).to_have_accessible_description(about)
    expect(tab.get_by_text(about)).to_be_visible()
    expect(tab.locator(".recipe .foot p:visible")).to_have_count(1)  # one help at a time
    replace(tab, "0")
    tab.get_by_role("alert").get_by_text("expected epochs to be a whole number from 1").wait_for()
    replace(tab, "300")
    reach(tab, "Start the run")
    tab.keyboard.press("Enter")
    on(tab, "d2l-")  # the run's own card
    tab.get_by_role("img", name="Accuracy:").wait_for()
    tab.keyboard.press("Tab")
    for name, asked in (("Stop", "Stopping"), ("Resume", "Resuming"), ("Stop", "Stopping")):
        on(tab, name)
        tab.keyboard.press("Enter")
        on(tab, asked)
    on(tab, "Resume")
    tab.get_by_role("heading", name="Predictions for the same images").wait_for()
    assert tab.locator(".gallery img").count() == 20
    reach(tab, "Accuracy:", "img")
    tab.keyboard.press("ArrowLeft")
    tab.get_by_text(re.compile("^step [0-9]+ · training accuracy")).wait_for()
    assert all(fits(tab, width) for width in (1400, 900, 400))
    no_serious_fault(tab)
    reach(tab, "Measure on all test images")
    tab.keyboard.press("Enter")
    tab.get_by_text("images of fashion-mnist-sample").wait_for()
    tab.reload()
    tab.get_by_role("img", name="Accuracy:").wait_for()


def test_runs_are_compared(tab, app, runs):
    """Two copies of a run agree on every image."""
    tab.goto(f"http://{app.host}/#/compare")
    reach(tab, "epochs: sort by it")
    tab.keyboard.press("Enter")
    tab.get_by_text("epochs ↓").wait_for()
    on(tab, "epochs: sort by it")
    reach(tab, "Filter by any word")
    tab.keyboard.type(runs[1])
    expect(tab.locator("tbody tr")).to_have_count(1)
    reach(tab, runs[1])
    tab.keyboard.press("Space")
    on(tab, runs[1])
    reach(tab, "Filter by any word", key="Shift+Tab")
    tab.keyboard.press("Escape")
    reach(tab, runs[0])
    tab.keyboard.press("Space")
    reach(tab, "Compare 2 chosen", key="Shift+Tab")
    tab.keyboard.press("Enter")
    tab.get_by_text("They agree on every image.").wait_for()
    tab.get_by_text("not decided (0 and 0 images right alone").wait_for()
    on(tab, "Compare 2 chosen")
    assert all(fits(tab, width) for width in (400, 900, 1400))
    no_serious_fault(tab)


def test_the_tour_leads_on_and_the_exercises_are_answered(tab, app):
    tab.goto(f"http://{app.host}/#/learn")
    vgg11 = app.post("/api/design", {"designs": [{"text": "vgg11", "options": {"in_channels": 1, "num_classes": 10}}]})
    reach(tab, "Answer")
    tab.keyboard.press("Enter")
    tab.get_by_text(f"{vgg11['designs'][0]['total']['parameters']:,}").first.wait_for()
    tab.get_by_role("heading", name="What does batch norm bring?").wait_for()
    for question in tab.get_by_text("Answer", exact=True).all()[1:]:
        reach(tab, "Answer")
        question.press("Space")
    no_serious_fault(tab)
    assert all(fits(tab, width) for width in (400, 900, 1400))
    reach(tab, "中文", key="Shift+Tab")
    tab.keyboard.press("Enter")
    tab.get_by_role("heading", name="使用块的网络").wait_for()
    on(tab, "English")
    reach(tab, "打开:设计")
    reach(tab, "打开:设计")
    tab.keyboard.press("Enter")
    tab.get_by_role("heading", name="用块来设计网络").wait_for()
    assert "beside=1x64k5" in tab.url
    tab.locator("table").first.get_by_text("1x64k5").wait_for()
    reach(tab, "网络", "input")  # from the start of the new view, before which is the bar of all views
    reach(tab, "English", key="Shift+Tab")
    tab.keyboard.press("Space")
    tab.get_by_role("heading", name="Design a network of blocks").wait_for()


def test_an_exercise_is_measured_here_and_stopped(tab, app):
    """It says how far it is; stopped, it is neither going on nor failed, and the focus stays."""
    tab.goto(f"http://{app.host}/#/learn")
    question = tab.locator("section", has_text="two or three convolutions of 3x3").last
    question.get_by_text("Answer", exact=True).focus()
    tab.keyboard.press("Enter")
    question.get_by_text("vgg experiment kernel-size").wait_for()
    reach(tab, "Measure it here")
    tab.keyboard.press("Enter")
    question.get_by_text("Measuring").wait_for()
    on(tab, "Stop")
    tab.keyboard.press("Enter")
    on(tab, "Stopping")
    on(tab, "Measure it here")
    expect(question.get_by_role("alert")).to_have_count(0)
    assert not app.post("/api/exercise", {"name": "kernel-size"})["is_measuring"]
    tab.get_by_role("link", name="Design", exact=True).click()
    tab.get_by_role("link", name="Learn", exact=True).click()
    question.get_by_role("button", name="Measure it here").wait_for()  # its answer is still open
