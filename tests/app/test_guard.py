"""What strangers ask of the page is refused: another site, another machine, another user, a fuzzer."""

import itertools
import subprocess
import sys

import pytest

from tests.app.conftest import Client, running

DESIGN = {"designs": [{"text": "vgg11"}]}


def test_the_token_becomes_a_cookie_that_only_the_page_can_use(app):
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(app.attributes)
    assert app.token not in app.cookie
    status, headers, _ = app.ask("GET", "/")
    assert status == 200 and "set-cookie" not in headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"


PATHS = ["/", "/static/main.js", "/api/machine", "/api/design", "/nowhere"]
HOSTILE = [
    *[("GET", path, {"cookie": cookie}) for path in PATHS for cookie in (None, "vggkit=1", "x" * 5000, 'a="')],
    *[("GET", f"/?token={token}", {"cookie": None}) for token in ("", "x", "é", "%00", "a" * 5000)],
    *[("GET", "/", {"host": host}) for host in ("evil.example", "127.0.0.1", "localhost:1", "", "127.0.0.1.nip.io:{port}")],
    *[("POST", path, {"origin": origin}) for path in PATHS for origin in (None, "null", "http://evil.example", "http://127.0.0.1:1", "https://127.0.0.1:{port}")],
    *[("POST", path, {"content_type": kind}) for path in PATHS for kind in (None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonp")],
    *[("POST", path, {"content_length": length}) for path in PATHS for length in ("65537", "99999999999999999999", "-1", "0x10", "1e3")],
    *[(method, path, {}) for method, path in itertools.product(("PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"), PATHS)],
    *[("GET", path, {}) for path in ("/static/../server.py", "/static/..%2fserver.py", "/static/%2e%2e/server.py", "/static//etc/passwd", "/static/index.html%00", "/static/.", "/etc/passwd", "//etc/passwd", "/api/../static/main.js")],
    *[("POST", "/api/design", {"body": body}) for body in (b"", b"[]", b"{", b"null", b'"x"', b"[" * 60_000, b"\xff\xfe", b"1" * 5000, b'{"designs": 1}', b'{"designs": [1]}', b'{"designs": []}')],
    *[("POST", "/api/limits", {"body": body}) for body in (b"{}", b'{"designs": [{"text": "9x99999999"}]}', b'{"designs": [{"text": "vgg16", "options": {"image_size": 1e400}}]}', b'{"designs": [{"text": "vgg16", "options": {"blocks": []}}]}', b'{"designs": [{"text": "vgg16"}], "batch_size": "1"}')],
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "how"), HOSTILE)
def test_a_hostile_request_is_refused(app, method, path, how):
    told = {name: value.format(port=app.port) if isinstance(value, str) else value for name, value in how.items()}
    body = told.pop("body", DESIGN if method == "POST" else None)
    try:
        status, _, content = app.ask(method, path, body, **told)
    except (UnicodeEncodeError, ConnectionResetError):  # http.client itself does not send it, or it was cut off
        return
    if path == "/api/design" and b'"designs": [1]' in (body if isinstance(body, bytes) else b""):
        assert b"expected a text and options" in content  # its own error, beside that of another design
        return
    assert 400 <= status < 500
    assert b"Traceback" not in content


def test_after_all_that_the_page_answers(app):
    assert app.post("/api/design", DESIGN)["designs"][0]["name"] == "vgg11"


def test_a_long_body_without_a_length_is_cut_off(app):
    pieces = b"".join(b"4000\r\n" + b" " * 0x4000 + b"\r\n" for _ in range(8)) + b"0\r\n\r\n"
    status, _, content = app.ask("POST", "/api/design", pieces, content_length=None, transfer_encoding="chunked")
    assert status == 413 and b"at most 65,536 bytes" in content


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--host 0.0.0.0", "expected --certificate and --key to serve other machines, got --host 0.0.0.0 alone"),
        ("--host 192.0.2.1 --insecure", "expected a free port, got 192.0.2.1:8421"),
        ("--certificate a.pem", "expected both of --certificate and --key, got one"),
        ("--certificate a.pem --key b.pem --port 0", "expected a certificate and its key, got"),
        ("--port 65536", "expected --port from 0 to 65535, got 65536"),
    ],
)
def test_flags_that_let_others_in_are_asked_for(arguments, told, tmp_path):
    command = [sys.executable, "-m", "vggkit", "app", "--no-browser", *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr


def test_insecure_is_said_and_another_name_is_still_refused(tmp_path):
    with running(tmp_path, "--host", "0.0.0.0", "--insecure") as (process, address):
        client = Client(address.replace("0.0.0.0", "127.0.0.1"))
        assert client.ask("GET", "/", host=f"evil.example:{client.port}")[0] == 421
        assert "WARNING: without TLS" in process.stderr.readline()
