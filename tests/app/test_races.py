"""Clicks, keys and views that do not wait for the server: requests of the page are held, and others overtake them."""

import shutil
from contextlib import suppress

import pytest

from tests.app.test_page import BOOT, expect

Error = pytest.importorskip("playwright.sync_api").Error

CAMERA = """navigator.mediaDevices.getUserMedia = () => new Promise((give) => { window.grant = () => {
    window.camera = document.createElement("canvas").captureStream(); give(window.camera); }; })"""


def held(tab, path):
    """The requests to a path, which go on when `release` is called."""
    requests = []
    tab.route(f"**/api/{path}", lambda route: requests.append(route))
    return requests


def release(tab, path, requests):
    tab.unroute(f"**/api/{path}")
    for each in requests:
        with suppress(Error):  # one that the page has aborted
            each.continue_()
    tab.evaluate("fetch('/api/machine').then((answer) => answer.json())")


def test_cards_keep_every_key_and_click(tab, app):
    tab.goto(f"http://{app.host}/#/design?network=1x8+1x16+1x32&image_size=32")
    tab.get_by_label("block 3, channels").wait_for()
    requests, network = held(tab, "design"), tab.get_by_role("textbox", name="Network")
    for _ in range(5):
        tab.get_by_label("block 1, convolutions").press("ArrowUp")
    tab.get_by_label("block 2, channels").fill("64")
    tab.get_by_role("button", name="Remove block 3").click()
    for _ in range(2):
        tab.get_by_role("button", name="Add a block").click()
    tab.get_by_role("button", name="Move block 1:").press("ArrowDown")
    tab.keyboard.press("ArrowDown")
    expect(network).to_have_value("1x64 1x64 6x8 1x64")
    network.fill("1x4")
    tab.get_by_role("button", name="Add a block").click()
    release(tab, "design", requests)
    expect(network).to_have_value("1x4 1x4")


def test_the_newest_image_stays_and_a_view_that_is_left_has_no_stream(tab, app, runs):
    tab.add_init_script(CAMERA)
    tab.goto(f"http://{app.host}/#/classify?model={runs[0]}")
    tab.reload()
    tab.locator(".bar-row").first.wait_for()
    images, file = held(tab, "images"), tab.locator("#file")
    file.set_input_files(BOOT.with_name("curves.png"))
    tab.unroute("**/api/images")
    file.set_input_files(BOOT)
    expect(tab.locator(".preview")).to_contain_text("your image, 28 × 28")
    release(tab, "images", images)
    expect(tab.locator(".preview")).to_contain_text("your image, 28 × 28")
    tab.get_by_role("button", name="Camera").dblclick()
    followed, requests = held(tab, "events*"), held(tab, "runs")
    tab.goto(f"http://{app.host}/#/train?run={runs[0]}")
    for _ in range(8):
        tab.locator("#language").click()
    tab.evaluate("grant()")
    tab.get_by_role("link", name="Design").click()
    release(tab, "runs", requests)
    tab.locator(".facts").wait_for()
    assert tab.evaluate("camera.getTracks()[0].readyState") == "ended" and not followed


@pytest.mark.parametrize(
    ("address", "button", "path"),
    [("doctor?network=1x4", "Examine it", "doctor"), ("inside?model=finished", "Explain", "heat")],
)
def test_a_button_with_work_to_do_is_busy(tab, app, runs, address, button, path):
    tab.goto(f"http://{app.host}/#/{address}")
    requests, pressed = held(tab, path), tab.locator("main button", has_text=button)
    pressed.dblclick()
    tab.locator("main button[aria-disabled=true]").press("Enter")
    release(tab, path, [])
    assert len(requests) == 1


def test_a_run_that_begins_elsewhere_is_listed(tab, app, runs):
    tab.clock.install()
    tab.goto(f"http://{app.host}/#/train?run={runs[0]},{runs[0]}")
    tab.get_by_role("heading", name=runs[0]).wait_for()
    shutil.copytree(app.folder / "runs" / runs[0], later := app.folder / "runs" / "elsewhere")
    tab.clock.fast_forward(5_000)
    tab.get_by_role("checkbox", name="elsewhere").wait_for()
    shutil.rmtree(later)


def test_a_model_that_is_refused_hides_the_maps_of_the_one_before(chromium, app, runs):
    with chromium.new_page() as tab:  # whose console tells of refusals
        tab.goto(app.address)
        tab.goto(f"http://{app.host}/#/inside?model={runs[0]}")
        tab.locator(".maps button").first.wait_for()
        tab.route("**/api/model", lambda route: route.fulfill(status=503, body="Service Unavailable"))
        tab.locator("select[name=model]").select_option(runs[1])
        tab.get_by_text("the server is busy").wait_for()
        expect(tab.locator(".maps button").first).to_be_hidden()
        words = "import('/static/dom.js').then(({ bytes }) => [999.4e6, 999.7e6].map(bytes))"
        assert tab.evaluate(words) == ["999 MB", "1.00 GB"]
