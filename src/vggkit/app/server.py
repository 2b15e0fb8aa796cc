"""`vgg app`: the page's server. What needs no torch answers at once; torch is loaded beside, in a thread."""

import asyncio
import json
import mimetypes
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
from vggkit.app.guard import MAX_JSON_BYTES, MAX_UPLOAD_BYTES, Guard, TooLargeError, body_of
from vggkit.app.images import Uploads
from vggkit.app.looking import Models
from vggkit.app.machine import Machine
from vggkit.app.runs import Runs, recipes
from vggkit.errors import RunError, UserError, VggkitError, one_line

MAX_CONNECTIONS = 64
MAX_UPLOADS = 2
MAX_COMPARED = 6
Work = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class Place:
    """Where the page is served."""

    host: str = "127.0.0.1"
    port: int = 8421
    """0 for any that is free."""
    certificate: Path | None = None
    """Of TLS, with its `key`; None for plain HTTP."""
    key: Path | None = None

    @property
    def scheme(self) -> str:
        """HTTP's, as an address has it."""
        return "http" if self.certificate is None else "https"


class Answer(JSONResponse):
    """JSON in ASCII, which also has room for the name of a file that is no UTF-8."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def page(machine: Machine, runs: Runs) -> Starlette:
    """The page without its guard: what answers a request of the page itself."""
    uploads, uploading = Uploads(), asyncio.Semaphore(MAX_UPLOADS)
    exercises = Exercises(runs.folder.parent / "experiments")

    async def upload(request: Request) -> Response:
        async with uploading:  # so that memory is bounded
            content = await body_of(request, MAX_UPLOAD_BYTES)
            return Answer(await run_in_threadpool(uploads.add, content))

    async def follow(request: Request) -> Response:
        return await events(request, runs)

    told = {
        "machine": machine.facts,
        "runs": lambda: {"datasets": list(runs.data), "runs": runs.listed()},
        "recipes": recipes,
        "exercises": exercises.listed,
    }
    answered = {
        "design": designs.describe,
        "limits": machine.limits,
        "doctor": lambda asked: diagnose(asked, runs.data_of(asked.get("data"))),
        "check": runs.check,
        "start": runs.start,
        "stop": runs.stop,
        "resume": runs.resume,
        "exercise": exercises.answer,
        "exercise/measure": exercises.measure,
        "exercise/stop": exercises.stop,
        **_of_models(runs, uploads),
    }
    return Starlette(
        routes=[
            Route("/", lambda request: _static("index.html")),
            Route("/static/{name}", lambda request: _static(request.path_params["name"])),
            Route("/api/events", follow),
            Route("/api/images", upload, methods=["POST"]),
            *(Route(f"/api/{name}", _tells(work)) for name, work in told.items()),
            *(Route(f"/api/{name}", _answers(work), methods=["POST"]) for name, work in answered.items()),
        ],
        exception_handlers={
            VggkitError: _told, ValueError: _told, OSError: _told, MemoryError: _told, ClientDisconnect: _gone
        },
    )  # fmt: skip


def _of_models(runs: Runs, uploads: Uploads) -> dict[str, Work]:
    """What is asked of a trained network, by its name, and of an image by the number that it got."""
    models = Models()

    def of_run(work: Callable[[Path, dict[str, Any]], Any]) -> Work:
        return lambda asked: work(runs.path_of(asked.get("run")), asked)

    def of_image(work: Callable[[Path, bytes, dict[str, Any]], Any]) -> Work:
        return of_run(lambda run, asked: work(run, uploads.content(asked.get("image")), asked))

    def exciting(run: Path, asked: dict[str, Any]) -> dict[str, Any]:
        return models.exciting(run, asked.get("unit"), runs.data_of(asked["data"]) if asked.get("data") else None)

    def compare(asked: dict[str, Any]) -> dict[str, Any]:
        names = asked.get("runs")
        if not isinstance(names, list) or not 2 <= len(names) <= MAX_COMPARED:
            raise UserError(f"expected 2 to {MAX_COMPARED} runs to compare, got another request")
        return models.compared([runs.path_of(name) for name in names])

    return {
        "sample": of_run(lambda run, asked: uploads.add(models.sample(run, asked.get("index")))),
        "model": of_run(lambda run, _: models.described(run)),
        "classify": of_image(lambda run, image, _: models.classify(run, image)),
        **dict.fromkeys(("maps", "unit", "heat"), of_image(models.inside)),
        "exciting": of_run(exciting),
        "look": of_run(lambda run, _: models.look(run)),
        "confusion": of_run(lambda run, _: models.confusion(run)),
        "compare": compare,
    }


def serve(machine: Machine, runs: Runs, place: Place, token: str, ready: Callable[[str], None]) -> None:
    """Serve the page until the process is interrupted; `ready` is told the address once it answers there.

    Raises:
        RunError: the address cannot be bound.
        UserError: the TLS files cannot be read.
    """
    with _bound(place) as listening:
        port = listening.getsockname()[1]
        guarded = Guard(page(machine, runs), token, place.host, port, place.scheme)
        config = uvicorn.Config(
            guarded, log_level="error", access_log=False, server_header=False, ws="none", lifespan="off",
            limit_concurrency=MAX_CONNECTIONS, timeout_keep_alive=5, timeout_graceful_shutdown=1,
            ssl_certfile=place.certificate, ssl_keyfile=place.key,
        )  # fmt: skip
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise UserError(f"expected a certificate and its key, got: {one_line(error)}") from None
        name = f"[{place.host}]" if ":" in place.host else place.host
        threading.Thread(target=machine.warm_up, daemon=True).start()
        server = uvicorn.Server(config)

        async def run() -> None:
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            if server.started:
                ready(f"{place.scheme}://{name}:{port}/?token={token}")
            await serving

        asyncio.run(run())


def _bound(place: Place) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(MAX_CONNECTIONS)
    except OSError as error:
        raise RunError(
            f"expected a free port, got {place.host}:{place.port}: {one_line(error)}, try --port 0"
        ) from None
    return listening


def _answers(work: Work) -> Callable[[Request], Any]:
    """An endpoint that takes a JSON object, and sends back what `work`, in a thread, makes of it."""

    async def endpoint(request: Request) -> Response:
        content = await body_of(request, MAX_JSON_BYTES)
        try:
            asked = json.loads(content)
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict):
            raise UserError("expected a JSON object, got something else")
        return Answer(await run_in_threadpool(work, asked))

    return endpoint


def _tells(work: Callable[[], Any]) -> Callable[[Request], Any]:
    """An endpoint that sends what `work`, in a thread, finds."""

    async def endpoint(request: Request) -> Response:
        return Answer(await run_in_threadpool(work))

    return endpoint


def _read_static() -> dict[str, Response]:
    """The files of the page, in memory: no path that a request names is ever opened."""
    files = (path for path in resources.files("vggkit.app").joinpath("static").iterdir() if path.is_file())
    kinds = {".js": "text/javascript", ".html": "text/html; charset=utf-8"}

    def kind(name: str) -> str | None:
        return kinds.get(Path(name).suffix) or mimetypes.guess_type(name)[0]

    return {path.name: Response(path.read_bytes(), media_type=kind(path.name)) for path in files}


FILES: dict[str, Response] = {}


def _static(name: str) -> Response:
    if not FILES:
        FILES.update(_read_static())
    return FILES.get(name) or Answer({"error": "expected a file of the page, got another"}, 404)


async def _told(request: Request, error: Exception) -> Response:
    status = 413 if isinstance(error, TooLargeError) else 400 if isinstance(error, ValueError) else 500
    return Answer({"error": one_line(error)}, status)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)
