"""Access to the page: only for the browser that has the launch token, and only from the page itself.

Kept out are other sites in the same browser, other users of the machine, and other machines. Another site can neither
read nor send the cookie (SameSite=Strict, HttpOnly), cannot reach the server by a domain name of its own that resolves
to this machine (the Host is checked), and cannot post (Origin and content type are checked).
"""

import ipaddress
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse

from vggkit.errors import UserError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_JSON_BYTES = 2**16
MAX_UPLOAD_BYTES = 20_000_000
IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/tiff")
"""Content types of an upload. No form of another site can send one without a preflight request, which is refused."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class TooLargeError(UserError):
    """The body of a request is too long."""


class Guard:
    """ASGI middleware that refuses requests from elsewhere before their bodies are read; see the module."""

    def __init__(self, app: Any, token: str, host: str, port: int, scheme: str = "http") -> None:
        """Guard the ASGI application `app`.

        Args:
            app: has the page at `/`.
            token: the launch token, which `/?token=` exchanges for the cookie.
            host: the address that the server is bound to.
            port: the port that it is bound to.
            scheme: `http` or `https`.
        """
        self.app, self.token = app, token
        self._secret, self._cookie = secrets.token_urlsafe(32), f"vggkit-{port}"
        self._host, self._port, self._scheme = host, port, scheme

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # a websocket, which is closed
        headers = Headers(scope=scope)
        has_token = scope["path"] == "/" and secrets.compare_digest(
            QueryParams(scope["query_string"]).get("token", "").encode(), self.token.encode()
        )

        async def send_safely(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                mutable = MutableHeaders(scope=message)
                mutable.update(HEADERS)
                if has_token and message["status"] == 200:
                    security = "; Secure" * (self._scheme == "https")
                    cookie = f"{self._cookie}={self._secret}; Path=/; HttpOnly; SameSite=Strict{security}"
                    mutable.append("Set-Cookie", cookie)
            await send(message)

        status, reason = self._refused(scope["method"], headers, has_token)
        if status:
            answer = JSONResponse({"error": reason}, status) if scope["path"] != "/" else None
            await (answer or PlainTextResponse(reason + "\n", status))(scope, receive, send_safely)
        else:
            await self.app(scope, receive, send_safely)

    def _refused(self, method: str, headers: Headers, has_token: bool) -> tuple[int, str]:
        """The status and the reason of a refusal; status 0 if the request is accepted."""
        host = headers.get("host", "")
        if not self._is_ours(host) or len(headers.getlist("host")) != 1:
            return 421, "expected the address that vgg app printed, got another host"
        if method not in ("GET", "HEAD", "POST"):
            return 405, "expected GET or POST, got another method"
        if not has_token and not self._has_cookie(headers):
            return 403, "expected the page's own cookie, got none, try the whole address that vgg app printed"
        if method == "POST":
            if headers.get("origin") != f"{self._scheme}://{host}":
                return 403, "expected a request of the page itself, got one from elsewhere"
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json" and kind not in IMAGE_TYPES:
                return 415, "expected JSON or an image, got another content type"
            length = headers.get("content-length", "0")
            max_bytes = MAX_JSON_BYTES if kind == "application/json" else MAX_UPLOAD_BYTES
            if not length.isdecimal() or len(length) > 12 or int(length) > max_bytes:
                return 413, f"expected at most {max_bytes:,} bytes, got more"
        return 0, ""

    def _is_ours(self, host: str) -> bool:
        """Whether a Host names this server, and cannot be a stranger's domain name that resolves to it."""
        name, _, port = host.rpartition(":")
        if port != str(self._port):
            return False
        if name in ("127.0.0.1", "localhost", "[::1]", self._host, f"[{self._host}]"):
            return True
        if not is_everywhere(self._host):
            return False
        try:
            ipaddress.ip_address(name.strip("[]"))  # no domain name
        except ValueError:
            return False
        return True

    def _has_cookie(self, headers: Headers) -> bool:
        try:
            found = SimpleCookie(headers.get("cookie", "")[:4096]).get(self._cookie)
        except CookieError:
            return False
        return found is not None and secrets.compare_digest(found.value.encode(), self._secret.encode())


def is_everywhere(host: str) -> bool:
    """Whether a server bound to `host` answers on all addresses of the machine."""
    return host in ("0.0.0.0", "::")  # noqa: S104 (compared, not bound)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that is bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body of a request; raises `TooLargeError` as soon as it exceeds `max_bytes`."""
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > max_bytes:
            raise TooLargeError(f"expected at most {max_bytes:,} bytes, got more")
        pieces.append(piece)
    return b"".join(pieces)
