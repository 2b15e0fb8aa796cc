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
    """Folder with the runs and weight files that the page shows; new runs go there too."""
    data: tuple[Path, ...] = ()
    """Folders of images, besides Fashion-MNIST, to train on and to compare networks on."""
    port: int = 8421
    """Port of the page; 0 for any free port."""
    no_browser: bool = False
    """Only print the address of the page."""
    host: str = "127.0.0.1"
    """Address to serve at; any but this machine's own admits others who know the token, and needs TLS or --insecure."""
    certificate: Path | None = None
    """PEM file with a certificate for TLS."""
    key: Path | None = None
    """PEM file with the key of the certificate."""
    export: Path | None = None
    """Only write a static page for each finished run into this folder, for any web server."""
    insecure: bool = False
    """Serve other machines without TLS: whoever reads the traffic learns the token, and can do what the page can."""


def run(arguments: list[str]) -> None:
    """Run the verb, until Ctrl-C."""
    flags = parse_flags("app", Flags, arguments)
    if not 0 <= flags.port < 2**16:
        raise UserError(f"expected --port from 0 to 65535, got {flags.port}")
    if (flags.certificate is None) != (flags.key is None):
        raise UserError("expected both of --certificate and --key, got one")
    for folder in (*flags.data, *([flags.runs] if flags.runs.exists() else [])):
        if not folder.is_dir():
            raise UserError(f"expected a folder, got {shown(folder, 500)}")
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
