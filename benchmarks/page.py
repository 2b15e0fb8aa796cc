"""How fast is the page, in a real browser?

    python benchmarks/page.py [--repeats 15] [--save]

ready_seconds: from the start of the process to the address. design_ms: from a key that changes the design between
VGG-16 and VGG-19 until the change is painted. maps_ms: a layer of VGG-16 (without its fully connected layers), with its
forward pass. replay_ms: 10,000 steps of metrics, from the click until their curves are painted. page_bytes: everything
that the browser fetches before an image. hostile_refused and hostile_growth_mb: 200 uploads that are refused, and how
much memory grows. slowdown: how much longer an epoch of training takes beside an endless stream of such uploads than
beside the page alone, in turns; the median of the ratios. Prints one JSON line.
"""

import contextlib
import http.client
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from measuring import digits, parser, resident_bytes, row_header, save_row, spread
from playwright.sync_api import Page, sync_playwright

from vggkit import VGG, Architecture
from vggkit.data.preprocessing import Preprocessing
from vggkit.training.recipe import Recipe
from vggkit.weights.files import save_weights

UPLOADS_PER_SECOND, TURNS = 10, 5
LAYERS = ("relu1_2", "relu3_3", "relu5_3")
PAINTED = """async ([change, seen]) => {
  const begin = performance.now();
  change = new Function(change); change();
  while (!new Function("return " + seen)()) await new Promise(requestAnimationFrame);
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - begin;
}"""


def main() -> None:
    arguments = parser(__doc__, repeats=15).parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_runs(folder / "runs")
        begin = time.perf_counter()
        command = [sys.executable, "-m", "vggkit", "app", "--no-browser", "--port", "0"]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                address = server.stdout.readline().strip()
                ready = time.perf_counter() - begin
                measured = in_browser(address, arguments.repeats)
                measured |= hostile(address, server.pid)
                measured["slowdown"] = slowdown(address)
            finally:
                server.terminate()
    row = row_header(torch.device("cpu"), arguments.repeats) | {"ready_seconds": digits(ready), **measured}
    save_row("page", row, arguments.save)


def make_runs(folder: Path) -> None:
    """VGG-16 with random weights, and a run with 10,000 steps of metrics."""
    run = folder / "steps"
    run.mkdir(parents=True)
    (run / "recipe.json").write_text(Recipe.named("quick").to_json())
    steps = range(1, 10_001)
    lines = [{"event": "step", "step": n, "train_loss": 2 / n, "train_accuracy": 1 - 1 / n} for n in steps]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    network = Architecture.parse("vgg16", head="gap", num_classes=10)
    told = {"classes": json.dumps([str(n) for n in range(10)])}
    told["preprocessing"] = Preprocessing(224, 3, (0.5,) * 3, (0.25,) * 3).to_json()
    save_weights(folder / "vgg16.safetensors", VGG(network), told)


def in_browser(address: str, repeats: int) -> dict[str, Any]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1400, "height": 900}, bypass_csp=True)  # for the script above
        page.goto(address + "#/design?network=vgg16")
        page.get_by_text("torch loaded").wait_for(timeout=120_000)
        page.wait_for_timeout(3_000)
        sizes = "[...performance.getEntriesByType('resource'), ...performance.getEntriesByType('navigation')]"
        fetched = f"{sizes}.filter((e) => !e.name.includes('/api/')).reduce((sum, e) => sum + e.decodedBodySize, 0)"
        row: dict[str, Any] = {"page_bytes": page.evaluate(fetched)}
        row["design_ms"] = spread([design_ms(page, name) for name in ("vgg19", "vgg16") * (repeats // 2 + 1)])
        row["maps_ms"] = maps_ms(page, address)
        page.goto(address.partition("?")[0] + "#/train")
        page.get_by_label("steps").wait_for()
        click = "document.querySelector('tbody input').click()"
        row["replay_ms"] = digits(page.evaluate(PAINTED, [click, "document.querySelector('.chart path')"]))
        browser.close()
    return row


def design_ms(page: Page, name: str) -> float:
    change = f"""const input = document.querySelector('input.mono'); input.value = '{name}';
    input.dispatchEvent(new Event('input', {{ bubbles: true }}));"""
    seen = f"document.querySelector('.drawing title').textContent === '{name}'"
    return float(page.evaluate(PAINTED, [change, seen]))


def maps_ms(page: Page, address: str) -> dict[str, float]:
    page.goto(address.partition("?")[0] + "#/inside?model=vgg16.safetensors")
    page.locator("#file").set_input_files(Path(__file__).parents[1] / "docs/pictures/growth.png")
    found = {}
    for layer in (LAYERS[0], *LAYERS):  # the first one warms up
        page.get_by_role("button", name=layer, exact=True).click()
        told = page.get_by_text(re.compile(f"maps of {layer},"))
        told.wait_for()
        found[layer] = float(re.findall(r"after (\d+) ms", told.inner_text())[0])
    return found


def hostile(address: str, server: int) -> dict[str, Any]:
    """Uploads of 20 MB and more, without a cookie, from elsewhere, or as what they are not: how many are refused."""
    before = resident_bytes("VmRSS", server)
    refused = sum(upload(address, number) in (403, 413) for number in range(200))
    growth = (resident_bytes("VmHWM", server) - before) / 1e6
    return {"hostile_refused": refused, "hostile_growth_mb": digits(max(0.0, growth))}


def upload(address: str, number: int) -> int:
    """A stranger's upload; the status of the answer."""
    port = int(address.split(":")[2].partition("/")[0])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "image/png", "Content-Length": str(20_000_000 + number), "Origin": "http://evil.example"}
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request("POST", "/api/images", b"x" * 200_000, headers)
    status = connection.getresponse().status
    connection.close()
    return status


def slowdown(address: str) -> dict[str, float]:
    """Of training, by uploads that a stranger sends one after another, `UPLOADS_PER_SECOND` of them."""
    beside = []
    for _ in range(TURNS + 1):  # the first one warms up
        alone = train_seconds()
        stop = threading.Event()
        stranger = threading.Thread(target=flood, args=(address, stop))
        stranger.start()
        beside.append(train_seconds() / alone)
        stop.set()
        stranger.join()
    return spread(beside[1:])


def flood(address: str, stop: threading.Event) -> None:
    number = 0
    while not stop.wait(1 / UPLOADS_PER_SECOND):
        upload(address, number := number + 1)


def train_seconds() -> float:
    """Of the epochs of a small run, without its start."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "vggkit", "train", "--data", "fashion-mnist-sample", "--out", f"{place}/run"]
        subprocess.run([*command, "--epochs", "4"], check=True, capture_output=True)
        lines = map(json.loads, Path(place, "run", "metrics.jsonl").read_text().splitlines())
        return float(sum(line["train_seconds"] for line in lines if line["event"] == "epoch"))


if __name__ == "__main__":
    main()
