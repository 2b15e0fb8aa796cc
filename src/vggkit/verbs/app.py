"""`vgg app`: the workbench as a page in the browser."""

import secrets
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from vggkit.errors import UserError, shown
from vggkit.verbs.terminal import parse_flags, print_to_stderr


@dataclass(frozen=True)
class Flags:
    """Open the workbench as a page in the browser.

    Examples:
      vgg app
      vgg app --runs runs/quick-1 --export site
    """

    runs: Path = Path("runs")
    """The folder whose runs and weight files the page shows, and in which new runs are made."""
    data: tuple[Path, ...] = ()
    """Folders of images to train on and to compare by, beside Fashion-MNIST."""
    port: int = 8421
    """Where the page is served; 0 for any port that is free."""
    no_browser: bool = False
    """Print the address alone."""
    host: str = "127.0.0.1"
    """Another address than this machine's own lets others in who know the token: it needs TLS or --insecure."""
    certificate: Path | None = None
    """A certificate for TLS, in a PEM file."""
    key: Path | None = None
    """Its key."""
    export: Path | None = None
    """Write a page for each finished run into this folder instead, for any web server, and open nothing."""
    insecure: bool = False
    """Serve other machines without TLS: whoever sees the traffic sees the token, and can do what the page can."""


def run(arguments: list[str]) -> None:
    """Run the verb, until Ctrl-C."""
    flags = parse_flags("app", Flags, arguments)
    if not 0 <= flags.port < 2**16:
        raise UserError(f"expected --port from 0 to 65535, got {flags.port}")
    if (flags.certificate is None) != (flags.key is None):
        raise UserError("expected both of --certificate and --key, got one")
    if flags.export is not None:
        from vggkit.app.export import export

        print(*(shown(page, 500) for page in export(flags.runs, flags.export)), sep="\n")
        return
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"expected the extra app, got: {error}, try pip install 'vggkit[app]'") from None
    from vggkit.app.guard import is_loopback
    from vggkit.app.machine import Machine
    from vggkit.app.runs import Runs
    from vggkit.app.server import Address, serve

    if not is_loopback(flags.host) and flags.certificate is None:
        if not flags.insecure:
            raise UserError(
                f"expected --certificate and --key to serve other machines, got --host {flags.host} alone, try "
                "--insecure if nobody else can see the traffic"
            )
        print_to_stderr("WARNING: without TLS, whoever sees the traffic can do what the page can")

    def ready(url: str) -> None:
        print(url, flush=True)
        if not flags.no_browser:
            webbrowser.open(url)

    address = Address(flags.host, flags.port, flags.certificate, flags.key)
    serve(Machine(), Runs(flags.runs, flags.data), address, secrets.token_urlsafe(24), ready)
