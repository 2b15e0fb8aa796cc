"""Server-sent events of runs. Each holds the whole curves, so that a lost event does no harm."""

import asyncio
import json
import zlib
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from vggkit.app.runs import Runs

POLL_SECONDS, MAX_SILENT_POLLS = 0.5, 20
MAX_FOLLOWED = 6


async def events(request: Request, runs: Runs) -> Response:
    """The events of the runs that the query names, from the last one that the browser saw."""
    names = request.query_params.get("runs", "").split(",")[:MAX_FOLLOWED]
    return StreamingResponse(
        _stream(runs, names, request.headers.get("last-event-id", "")), media_type="text/event-stream"
    )


async def _stream(runs: Runs, names: list[str], last_id: str) -> AsyncIterator[str]:
    """An event whenever a run has changed; its id is a checksum of its content."""
    yield "retry: 1000\n\n"
    silent_polls = 0
    while True:
        curves = await run_in_threadpool(runs.followed, names)
        content = json.dumps(curves, allow_nan=False)
        event_id = f"{zlib.crc32(content.encode()):08x}"
        silent_polls += 1
        if event_id != last_id:
            yield f"id: {event_id}\ndata: {content}\n\n"
            last_id, silent_polls = event_id, 0
        elif silent_polls >= MAX_SILENT_POLLS:  # a comment, which fails if the browser has gone
            yield ":\n\n"
            silent_polls = 0
        await asyncio.sleep(POLL_SECONDS)
