"""A running `vgg app`, and clients of it: one that speaks HTTP, and a real browser."""

import contextlib
import http.client
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

if importlib.util.find_spec("starlette") is None:  # the extra app, which make test installs
    collect_ignore_glob = ["test_*.py"]

CHROMIUM = Path("/usr/bin/chromium")


class Client:
    """What the page's own requests look like; every part of them can be replaced."""

    def __init__(self, address):
        self.address, self.port, self.token = address, *re.search(r":(\d+)/\?token=(\S+)", address).groups()
        self.host = f"127.0.0.1:{self.port}"
        status, headers, self.page = self.ask("GET", f"/?token={self.token}", cookie=None)
        assert status == 200
        self.cookie = headers["set-cookie"].split(";")[0]
        self.attributes = headers["set-cookie"].split("; ")[1:]

    def ask(self, method, path, body=None, cookie=..., **headers):
        """The status, the headers and the body of an answer; a header that is None is not sent."""
        sent = {"host": self.host, "cookie": getattr(self, "cookie", None) if cookie is ... else cookie}
        if method == "POST":
            sent |= {"origin": f"http://{self.host}", "content-type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", int(self.port), timeout=60)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if content is not None and "content-length" not in sent:
            sent["content-length"] = str(len(content))
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders()
        if content:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all was sent
                connection.send(content)
        answer = connection.getresponse()
        found = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def get(self, path):
        return self._answer(*self.ask("GET", path))

    def post(self, path, body, **headers):
        return self._answer(*self.ask("POST", path, body, **headers))

    @staticmethod
    def _answer(status, headers, content):
        answer = json.loads(content)
        assert status == 200, answer
        return answer


@contextmanager
def running(folder, *arguments):
    """`vgg app` in a process of its own; gives the process and the address that it printed."""
    command = [sys.executable, "-m", "vggkit", "app", "--no-browser", "--port", "0", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True, env=os.environ) as process:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    with running(folder) as (process, address):
        client = Client(address)
        client.process, client.folder = process, folder
        yield client


@pytest.fixture(scope="session")
def model(app):
    """A weight file with random weights among the runs, by its name."""
    import torch

    from vggkit import VGG, Architecture
    from vggkit.data.preprocessing import Preprocessing
    from vggkit.weights.files import save_weights

    torch.manual_seed(0)
    net = VGG(Architecture.parse("1x4 2x8_bn", in_channels=1, num_classes=10, image_size=28, hidden=(16,)))
    (app.folder / "runs").mkdir(exist_ok=True)
    classes = json.dumps([f"class {index}" for index in range(10)])
    told = {"classes": classes, "preprocessing": Preprocessing(28, 1, (0.3,), (0.4,)).to_json()}
    save_weights(app.folder / "runs" / "tiny.safetensors", net, told)
    return "tiny.safetensors"


@pytest.fixture(scope="session")
def runs(app):
    """The names of two finished runs with the same weights."""
    from vggkit import train

    tiny = {"data": "fashion-mnist-sample", "architecture": "1x4 1x8", "image_size": 8, "hidden": (), "epochs": 2}
    train("quick", out=app.folder / "runs" / "finished", progress=False, **tiny)
    shutil.copytree(app.folder / "runs" / "finished", app.folder / "runs" / "its-copy")
    return ["finished", "its-copy"]


@pytest.fixture(scope="session")
def chromium():
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium, app):
    """A tab with the page; a line in its console, or a request to another host, is an error."""
    context = chromium.new_context(viewport={"width": 1400, "height": 900}, locale="en-US")
    page, wrong = context.new_page(), []
    page.set_default_timeout(60_000)  # of a busy machine
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda request: request.url.startswith((f"http://{app.host}/", "data:", "blob:")) or wrong.append(request.url),
    )
    page.goto(app.address)
    yield page
    context.close()
    assert not wrong
