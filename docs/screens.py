"""Take the pictures of the page in docs/pictures, each in a real browser on a freshly served page.

    python docs/screens.py [--runs DIR]

DIR holds two or more finished runs, beside a folder `experiments`. Without it, the script first trains two small
networks on the sample of Fashion-MNIST, and answers one of the chapter's exercises on it.
"""

import argparse
import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

PICTURES = Path(__file__).parent / "pictures"
WIDTH, HEIGHT = 1400, 1050
PROGRAM = [sys.executable, "-m", "vggkit"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as place:
        if runs is None:
            runs = Path(place) / "runs"
            for name, network in (("quick-1", "vgg11_bn/8"), ("quick-2", "vgg11_bn/16")):
                recipe = ["--data", "fashion-mnist-sample", "--architecture", network, "--out", str(runs / name)]
                subprocess.run([*PROGRAM, "train", *recipe], check=True)
            exercise = ["batch-norm", "--data", "fashion-mnist-sample", "--epochs", "2"]
            subprocess.run([*PROGRAM, "experiment", *exercise], check=True, cwd=place)
        command = [*PROGRAM, "app", "--no-browser", "--port", "0", "--runs", str(runs)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
            try:
                browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, locale="en-US")
                address = next(iter(server.stdout or ())).strip()
                page.goto(address)
                page.get_by_text("torch loaded").wait_for(timeout=120_000)
                names = sorted(path.name for path in runs.iterdir() if path.is_dir())
                take(page, address.partition("?")[0], names)
                browser.close()
            finally:
                server.terminate()


def take(page: Page, home: str, runs: list[str]) -> None:
    def shoot(name: str) -> None:
        page.mouse.move(0, 0)
        page.wait_for_timeout(1_500)
        with Image.open(io.BytesIO(page.screenshot())) as picture:
            picture.convert("RGB").save(PICTURES / f"app-{name}.webp", quality=80)

    page.goto(f"{home}#/design?network=vgg16")
    page.get_by_text("predicted from a step").wait_for(timeout=120_000)
    shoot("design")
    page.goto(f"{home}#/doctor?network=vgg19%2F8&image_size=32&hidden=512")
    page.get_by_label("Initial weights").select_option("torch")
    page.get_by_role("button", name="Examine it").click()
    page.get_by_role("heading", name="Layer by layer").wait_for(timeout=120_000)
    shoot("doctor")
    page.goto(f"{home}#/train?run={','.join(runs[:2])}")
    page.get_by_role("heading", name="Predictions for the same images").wait_for(timeout=120_000)
    shoot("train")
    page.goto(f"{home}#/classify?model={runs[0]}")
    page.get_by_role("button", name="A test image").click()
    page.locator(".bar-row").first.wait_for(timeout=60_000)
    shoot("classify")
    page.goto(f"{home}#/inside?model={runs[0]}")
    page.get_by_role("button", name="conv2_1").click()
    page.get_by_text("window × weights").wait_for(timeout=60_000)
    shoot("inside")
    page.get_by_role("button", name="fc6", exact=True).click()
    page.get_by_role("button", name="Search for fc6").click()
    page.get_by_text("excites it most", exact=True).wait_for(timeout=120_000)
    page.evaluate("scrollBy(0, 480)")
    shoot("units")
    page.goto(f"{home}#/compare?compare={','.join(runs[:2])}")
    page.get_by_role("button", name="Compare 2 chosen").click()
    page.get_by_role("heading", name="On the same images").wait_for(timeout=120_000)
    shoot("compare")
    page.goto(f"{home}#/learn")
    page.get_by_text("Answer", exact=True).nth(1).click()
    shoot("learn")
    answer = page.locator("section", has_text="What does batch norm bring?").last
    answer.get_by_text("Answer", exact=True).click()
    answer.get_by_text("differences paired by seed").wait_for(timeout=60_000)
    answer.scroll_into_view_if_needed()
    page.evaluate("scrollBy(0, 250)")
    shoot("exercises")


if __name__ == "__main__":
    main()
