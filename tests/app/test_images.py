"""What the page says of images: that of `vgg predict` and of `features`; and which uploads it refuses."""

import base64
import io
import json
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.app.test_page import expect
from vggkit import cli, features
from vggkit.inference.explain import explain
from vggkit.inference.explain_check import check

BOOT_FILE = Path(__file__).parents[2] / "docs/pictures/ankle-boot.png"
BOOT = BOOT_FILE.read_bytes()


@pytest.fixture
def image(app):
    return app.post("/api/images", BOOT, content_type="image/png")["image"]


def test_classes_are_those_of_predict(app, model, image, capsys, tmp_path):
    found = app.post("/api/classify", {"run": model, "image": image})
    (tmp_path / "boot.png").write_bytes(BOOT)
    assert (
        cli.main(["predict", str(app.folder / "runs" / model), str(tmp_path / "boot.png"), "--top", "10", "--json"])
        == 0
    )
    (printed,) = json.loads(capsys.readouterr().out)
    assert [each["label"] for each in found["top"]] == [each["label"] for each in printed["predictions"]]
    for mine, theirs in zip(found["top"], printed["predictions"], strict=True):
        assert mine["probability"] == pytest.approx(theirs["probability"], rel=1e-4)


def test_a_bright_photo_is_inverted_for_a_network_of_light_objects_on_black(app, model):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (250, 250, 200)).save(file, "PNG")
    photo = app.post("/api/images", file.getvalue(), content_type="image/png")["image"]
    negative = app.post("/api/invert", {"image": photo})["image"]
    answers = [app.post("/api/classify", {"run": model, "image": image}) for image in (photo, negative)]
    assert [answer["is_negative"] for answer in answers] == [True, False]
    seen = Image.open(io.BytesIO(base64.b64decode(answers[1]["seen"].partition(",")[2])))
    assert seen.getextrema()[1] < 20


@pytest.mark.parametrize("layer", ["conv1_1", "relu2_2", "pool2"])
def test_maps_are_those_of_features(app, model, image, layer):
    found = app.post("/api/maps", {"run": model, "image": image, "layer": layer})
    expected = features(app.folder / "runs" / model, BOOT, [layer])[layer][0]
    means = [each["mean"] for each in found["maps"]]
    assert means == sorted(means, reverse=True) and found["size"] == list(expected.shape[1:])
    assert [expected[each["channel"]].max().item() for each in found["maps"]] == pytest.approx(
        [each["most"] for each in found["maps"]], rel=1e-4, abs=1e-6
    )


@pytest.mark.parametrize("layer", ["fc3", "fc4"])
def test_outputs_of_fully_connected_layers_are_those_of_features(app, model, image, layer):
    found = app.post("/api/maps", {"run": model, "image": image, "layer": layer})
    expected = features(app.folder / "runs" / model, BOOT, [layer])[layer][0]
    assert found["count"] == len(expected) and found["most"] == pytest.approx(expected.max().item(), rel=1e-4)
    for each in found["largest"]:
        assert each["value"] == pytest.approx(expected[each["unit"]].item(), rel=1e-4, abs=1e-6)
        assert each["label"] == (f"class {each['unit']}" if layer == "fc4" else "")


@pytest.mark.parametrize("unit", ["conv2_1:3", "fc4:2"])
def test_patches_are_those_of_explain(app, model, unit, capsys, tmp_path):
    found = app.post("/api/exciting", {"run": model, "unit": unit, "data": "fashion-mnist-sample"})
    command = ["explain", str(app.folder / "runs" / model), "--unit", unit, "--data", "fashion-mnist-sample"]
    assert cli.main([*command, "-o", str(tmp_path / "unit.png"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["patches"]
    assert [each["value"] for each in found["patches"]] == pytest.approx([each["value"] for each in printed], rel=1e-5)
    assert (found["images"], found["split"], found["data"]) == (1_000, "test", "fashion-mnist-sample")


@pytest.mark.parametrize(("layer", "y", "x"), [("conv1_1", 0, 0), ("conv2_1", 13, 5), ("conv2_2", 7, 13)])
def test_an_output_taken_apart_adds_up(app, model, image, layer, y, x):
    found = app.post("/api/unit", {"run": model, "image": image, "layer": layer, "channel": 3, "y": y, "x": x})
    assert found["total"] == pytest.approx(found["output"], rel=1e-4, abs=1e-5)
    assert found["total"] == pytest.approx(found["shown"] + found["rest"] + found["bias"], abs=1e-6)
    for each in found["inputs"]:
        products = torch.tensor(each["window"]) * torch.tensor(each["weights"])
        assert products.sum().item() == pytest.approx(each["sum"], abs=1e-5)
    names = [each["layer"] for each in found["after"]]
    outputs = features(app.folder / "runs" / model, BOOT, names)
    for each in found["after"]:
        halved = 2 if each["layer"].startswith("pool") else 1
        assert outputs[each["layer"]][0, 3, y // halved, x // halved].item() == pytest.approx(
            each["value"], rel=1e-4, abs=1e-5
        )


def test_heat_maps_are_those_of_explain(app, model, image):
    found = app.post("/api/heat", {"run": model, "image": image, "methods": ["grad-cam", "saliency"], "check": True})
    expected = explain(app.folder / "runs" / model, BOOT, "grad-cam")
    assert (found["label"], found["maps"][0]["layer"]) == (expected.label, expected.layer)
    assert found["probability"] == pytest.approx(expected.probability, rel=1e-4)
    assert found["maps"][0]["verdict"] == check(app.folder / "runs" / model, expected).verdict
    assert all(each["picture"].startswith("data:image/png;base64,") for each in found["maps"])


def png(width, height):
    """A PNG file that says that it is of this size."""

    def chunk(content):
        return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR" + header) + chunk(b"IDAT" + zlib.compress(bytes(64)))


@pytest.mark.parametrize(
    ("content", "kind", "status", "told"),
    [
        (png(100_000, 100_000), "image/png", 400, "(10000000000 pixels) exceeds limit"),
        (png(8_000, 7_000), "image/png", 400, "expected an image of at most 50,000,000 pixels"),
        (png(7_000, 7_000), "image/png", 400, "expected at most 16,000,000 pixels"),
        (b"", "image/png", 400, "expected a PNG, JPEG, WebP, GIF, BMP or TIFF image"),
        (b"<svg onload=alert(1)>", "image/png", 400, "expected a PNG, JPEG"),
        (BOOT[:200], "image/png", 400, "expected"),
        (BOOT, "image/svg+xml", 415, "expected JSON or an image"),
        (b"x" * 20_000_001, "image/png", 413, "expected at most 20,000,000 bytes"),
        (b"{}", "application/json", 400, "expected a PNG"),
    ],
)
def test_uploads_that_are_refused(app, content, kind, status, told):
    found, _, answer = app.ask("POST", "/api/images", content, content_type=kind)
    assert found == status and told in json.loads(answer)["error"]


@pytest.mark.parametrize(
    ("path", "asked", "told"),
    [
        ("/api/classify", {"image": "../../etc/passwd"}, "expected an image that was just sent"),
        ("/api/classify", {"run": "/etc/passwd"}, "expected a run or a weight file"),
        ("/api/maps", {"layer": "conv9_9"}, "expected a layer of the network"),
        ("/api/unit", {"layer": "conv1_1", "channel": 99, "y": 0, "x": 0}, "expected channel, y and x within"),
        ("/api/unit", {"layer": "relu1_1", "channel": 0, "y": 0, "x": 0}, "expected a convolution"),
        ("/api/heat", {"methods": ["magic"]}, "expected a method of grad-cam"),
        ("/api/heat", {"methods": []}, "expected 1 to 4 methods"),
        ("/api/exciting", {"unit": "conv9_9:1", "data": "fashion-mnist-sample"}, "expected a unit of a layer"),
        ("/api/exciting", {"unit": "conv1_1:1", "data": "/etc"}, "expected data of"),
        ("/api/exciting", {"unit": "conv1_1:1"}, "expected data to measure on"),
        ("/api/sample", {"index": "1"}, "expected"),
    ],
)
def test_requests_about_nothing_are_refused(app, model, image, path, asked, told):
    status, _, answer = app.ask("POST", path, {"run": model, "image": image} | asked)
    assert status == 400 and told in json.loads(answer)["error"]


def test_the_first_test_image_is_shown_by_itself_and_an_own_one_stays(tab, app, model, runs):
    """Where there is one: a weight file, and a run whose data is gone, leave the hint."""
    gone = app.folder / "runs" / "gone"
    shutil.copytree(app.folder / "runs" / runs[0], gone)
    text = (gone / "recipe.json").read_text()
    (gone / "recipe.json").write_text(text.replace("fashion-mnist-sample", "/nowhere"))
    choose, preview = tab.locator("select[name=model]").select_option, tab.locator(".preview")
    tab.goto(f"http://{app.host}/#/classify?model={model}")
    with tab.expect_response("**/api/first"):
        choose("gone")
    expect(tab.get_by_text("No image yet.")).to_be_visible()
    expect(tab.get_by_role("alert")).to_have_count(0)
    choose(runs[0])
    tab.locator(".bar-row").first.wait_for()
    expect(preview).to_contain_text("a test image, 28 × 28")
    expect(tab.get_by_text("the true class is ankle boot")).to_be_visible()  # Fashion-MNIST's first test image
    shutil.rmtree(gone)
    tab.locator("#file").set_input_files(BOOT_FILE)
    expect(preview).to_contain_text("your image")
    with tab.expect_response("**/api/classify"):
        choose(runs[1])
    expect(preview).to_contain_text("your image")
    tab.reload()
    tab.get_by_role("link", name="Look inside").click()
    tab.get_by_text("maps of relu1_1").wait_for()


def test_a_file_that_is_no_image_closes_the_pad_and_leaves_no_answer(tab, app, runs):
    tab.goto(f"http://{app.host}/#/classify?model={runs[0]}")
    tab.locator(".bar-row").first.wait_for()
    tab.get_by_role("button", name="Draw").click()
    tab.locator(".drop canvas").wait_for()
    tab.locator("#file").set_input_files(Path(__file__))
    expect(tab.locator(".drop").get_by_role("alert")).to_contain_text("expected a PNG, JPEG")
    expect(tab.locator("canvas, .preview img, .bar-row")).to_have_count(0)
    expect(tab.get_by_text("No image yet.")).to_be_visible()


def test_the_last_images_are_kept_and_older_ones_forgotten(app, model, image):
    for level in range(16):
        file = io.BytesIO()
        Image.new("L", (4, 4), level).save(file, "PNG")
        app.post("/api/images", file.getvalue(), content_type="image/png")
    status, _, answer = app.ask("POST", "/api/classify", {"run": model, "image": image})
    assert status == 400 and b"try to send it again" in answer


def test_the_server_is_ready_before_torch():
    program = "import sys, vggkit.app.server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
