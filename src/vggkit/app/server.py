"""The server of `vgg app`. Designs are answered at once; torch, which the rest needs, loads in a thread meanwhile."""

import asyncio
import json
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vggkit.app import designs
from vggkit.app.commands import diagnose
from vggkit.app.events import events
from vggkit.app.exercises import Exercises
from vggkit.app.guard import MAX_JSON_BYTES, MAX_UPLOAD_BYTES, Guard, TooLargeError, read_body
from vggkit.app.images import Uploads, inverted
from vggkit.app.inside import exciting, heat, outputs, unit
from vggkit.app.machine import MEASURED_STEP, Machine
from vggkit.app.models import Models, randomly_readable
from vggkit.app.runs import Runs, recipes
from vggkit.errors import RunError, UserError, VggkitError, one_line

MAX_CONNECTIONS = 512
MAX_UPLOADS = 2
MAX_COMPARED = 6
Body = dict[str, Any]
"""The JSON object of a POST request."""
Work = Callable[[Body], Any]
"""What answers it."""


@dataclass(frozen=True)
class Address:
    """Where the page is served."""

    host: str = "127.0.0.1"
    port: int = 8421
    """0 for any free port."""
    certificate: Path | None = None
    """A PEM file for TLS; None for plain HTTP."""
    key: Path | None = None
    """The private key of the certificate, a PEM file."""

    @property
    def scheme(self) -> str:
        """`http` or `https`."""
        return "http" if self.certificate is None else "https"


class Json(JSONResponse):
    """JSON in ASCII: file names that are not UTF-8 can be encoded too."""

    def render(self, content: Any) -> bytes:
        """The encoded body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def page(machine: Machine, runs: Runs) -> Starlette:
    """The page and its API, without the guard."""
    uploads, upload_slots = Uploads(), asyncio.Semaphore(MAX_UPLOADS)
    exercises = Exercises(runs.folder.parent / "experiments")
    files = _static_files()

    async def static(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        return files.get(name) or Json({"error": "expected a file of the page, got another"}, 404)

    async def upload(request: Request) -> Response:
        async with upload_slots:  # bounds the memory
            content = await read_body(request, MAX_UPLOAD_BYTES)
            return Json(await run_in_threadpool(uploads.add, content))

    async def follow(request: Request) -> Response:
        return await events(request, runs)

    get: dict[str, Callable[[], Any]] = {
        "machine": machine.facts,
        "runs": lambda: {"datasets": list(runs.data), "runs": runs.listed()},
        "recipes": recipes,
        "exercises": exercises.listed,
    }
    post: dict[str, Work] = {
        "design": designs.describe,
        "limits": lambda body: designs.limits(body, machine.macs_per_second) | {"measured": MEASURED_STEP},
        "doctor": lambda body: diagnose(body, runs.data_of(body.get("data"))),
        "check": runs.check,
        "start": runs.start,
        "stop": runs.stop,
        "resume": runs.resume,
        "exercise": exercises.answer,
        "exercise/measure": exercises.measure,
        "exercise/stop": exercises.stop,
        **_model_work(runs, uploads),
    }
    return Starlette(
        routes=[
            Route("/", static),
            Route("/static/{name}", static),
            Route("/api/events", follow),
            Route("/api/images", upload, methods=["POST"]),
            *(Route(f"/api/{name}", _get_endpoint(work)) for name, work in get.items()),
            *(Route(f"/api/{name}", _post_endpoint(work), methods=["POST"]) for name, work in post.items()),
        ],
        exception_handlers={
            ClientDisconnect: _disconnected,
            **dict.fromkeys((VggkitError, ValueError, OSError, MemoryError), _error_response),
        },
    )


def _model_work(runs: Runs, uploads: Uploads) -> dict[str, Work]:
    """What is asked of trained networks; one request at a time uses them."""
    models, lock = Models(), threading.Lock()

    def run(body: Body) -> Path:
        return runs.path_of(body.get("run"))

    def image(body: Body) -> bytes:
        return uploads.content(body.get("image"))

    def sample(body: Body) -> Body:
        content, label = models.sample(run(body), body.get("index"))
        return uploads.add(content) | {"label": label}

    def first_image(body: Body) -> Body:
        try:
            return sample(body | {"index": 0})
        except (VggkitError, OSError):  # of a weight file, a stream, or data that is gone
            return {"image": None}

    def patches(body: Body) -> Body:
        data = models.data_of(run(body), runs.data_of(body["data"]) if body.get("data") else None)
        return exciting(models.classifier(run(body)), randomly_readable(data), str(body.get("unit")))

    def compare(body: Body) -> Body:
        names = body.get("runs")
        if not isinstance(names, list) or not 2 <= len(names) <= MAX_COMPARED:
            raise UserError(f"expected 2 to {MAX_COMPARED} runs to compare, got another request")
        return models.compared({name: runs.path_of(name) for name in names})

    def locked(work: Work) -> Work:
        def one_at_a_time(body: Body) -> Any:
            with lock:
                return work(body)

        return one_at_a_time

    work: dict[str, Work] = {
        "sample": sample,
        "first": first_image,
        "invert": lambda body: uploads.add(inverted(image(body))),
        "model": lambda body: models.described(run(body)),
        "classify": lambda body: models.classify(run(body), image(body)),
        "maps": lambda body: outputs(models.classifier(run(body)), image(body), body.get("layer")),
        "unit": lambda body: unit(models.classifier(run(body)), image(body), body),
        "heat": lambda body: heat(models.classifier(run(body)), image(body), body),
        "exciting": patches,
        "look": lambda body: models.look(run(body)),
        "confusion": lambda body: models.confusion(run(body)),
        "compare": compare,
    }
    return {name: locked(function) for name, function in work.items()}


def serve(machine: Machine, runs: Runs, address: Address, token: str, ready: Callable[[str], None]) -> None:
    """Serve the page until the process is interrupted; `ready` gets its URL as soon as it answers.

    Raises:
        RunError: the address cannot be bound.
        UserError: the TLS files cannot be read.
    """
    with _listening_socket(address) as listening:
        port = listening.getsockname()[1]
        guarded = Guard(page(machine, runs), token, address.host, port, address.scheme)
        config = uvicorn.Config(
            guarded, log_level="error", access_log=False, server_header=False, ws="none", lifespan="off",
            limit_concurrency=MAX_CONNECTIONS, timeout_keep_alive=5, timeout_graceful_shutdown=1,
            ssl_certfile=address.certificate, ssl_keyfile=address.key,
        )  # fmt: skip
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise UserError(f"expected a certificate and its key, got: {one_line(error)}") from None
        name = f"[{address.host}]" if ":" in address.host else address.host
        threading.Thread(target=machine.warm_up, daemon=True).start()
        server = uvicorn.Server(config)

        async def run() -> None:
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            if server.started:
                ready(f"{address.scheme}://{name}:{port}/?token={token}")
            await serving

        asyncio.run(run())


def _listening_socket(address: Address) -> socket.socket:
    try:
        family, kind, _, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen(MAX_CONNECTIONS)
    except OSError as error:
        raise RunError(
            f"expected a free port, got {address.host}:{address.port}: {one_line(error)}, try --port 0"
        ) from None
    return listening


def _get_endpoint(work: Callable[[], Any]) -> Callable[[Request], Any]:
    """An endpoint that sends the result of `work`, which runs in a thread."""

    async def endpoint(request: Request) -> Response:
        return Json(await run_in_threadpool(work))

    return endpoint


def _post_endpoint(work: Work) -> Callable[[Request], Any]:
    """An endpoint that takes a JSON object and sends the result of `work`, which runs in a thread."""

    async def endpoint(request: Request) -> Response:
        content = await read_body(request, MAX_JSON_BYTES)
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise UserError("expected a JSON object, got something else")
        return Json(await run_in_threadpool(work, body))

    return endpoint


def _static_files() -> dict[str, Response]:
    """The files of the page by name, in memory: no path from a request is ever opened."""
    types = {".js": "text/javascript", ".html": "text/html; charset=utf-8", ".css": "text/css", ".svg": "image/svg+xml"}
    paths = (path for path in resources.files("vggkit.app").joinpath("static").iterdir() if path.is_file())
    return {path.name: Response(path.read_bytes(), media_type=types[Path(path.name).suffix]) for path in paths}


async def _error_response(request: Request, error: Exception) -> Response:
    status = 413 if isinstance(error, TooLargeError) else 400 if isinstance(error, ValueError) else 500
    return Json({"error": one_line(error)}, status)


async def _disconnected(request: Request, error: Exception) -> Response:
    return Response(status_code=400)
