"""What happens in runs, as server-sent events: each holds the whole curves, so that a lost one is not missed."""

import asyncio
import json
import zlib
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from vggkit.app.runs import Runs

POLL_SECONDS, SILENT_POLLS = 0.5, 20
MAX_FOLLOWED = 6


async def events(request: Request, runs: Runs) -> Response:
    """The stream of the runs that the query names, from what the browser saw last on."""
    names = request.query_params.get("runs", "").split(",")[:MAX_FOLLOWED]
    return StreamingResponse(
        _told(runs, names, request.headers.get("last-event-id", "")), media_type="text/event-stream"
    )


async def _told(runs: Runs, names: list[str], seen: str) -> AsyncIterator[str]:
    """An event whenever one of the runs has changed; its id says what it holds."""
    yield "retry: 1000\n\n"
    silent = 0
    while True:
        found = await run_in_threadpool(runs.followed, names)
        content = json.dumps(found, allow_nan=False)
        version = f"{zlib.crc32(content.encode()):08x}"
        silent += 1
        if version != seen:
            yield f"id: {version}\ndata: {content}\n\n"
            seen, silent = version, 0
        elif silent >= SILENT_POLLS:  # so that a browser that has gone is noticed
            yield ":\n\n"
            silent = 0
        await asyncio.sleep(POLL_SECONDS)
