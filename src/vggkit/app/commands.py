"""The verbs of `vgg`, run in processes of their own: what the page shows of them is what they print."""

import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
from typing import Any

from vggkit.app.designs import network_of
from vggkit.design.architecture import Architecture
from vggkit.design.memory import machine_memory_bytes, training_memory
from vggkit.errors import RunError, UserError, VggkitError, shown

PROGRAM = (sys.executable, "-m", "vggkit")
TIMEOUT_SECONDS = 600.0
_ONE_AT_A_TIME = threading.Lock()
STOPPED = (75, 128 + signal.SIGTERM, -signal.SIGTERM)
"""How a verb ends that was asked to: after a step, before the first one, and while torch is still loading."""

DOCTOR_FLAGS = ("init", "optimizer", "learning_rate", "momentum", "batch_size", "seed")


def printed(verb: str, *arguments: str) -> Any:
    """What `vgg VERB ARGUMENTS --json` prints; one such process runs at a time.

    Raises:
        UserError: the verb's own, if it refuses its arguments.
        RunError: it ended in another way.
    """
    with _ONE_AT_A_TIME:
        try:
            done = subprocess.run(
                [*PROGRAM, verb, *arguments, "--json"], capture_output=True, text=True, timeout=TIMEOUT_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise RunError(f"expected vgg {verb} to end within {TIMEOUT_SECONDS:.0f} seconds, got no answer") from None
    if done.returncode == 0:
        return json.loads(done.stdout)
    lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
    message = lines[-1].removeprefix(f"vgg {verb}: ")
    raise UserError(message) if done.returncode == UserError.exit_code else RunError(message)


class Started:
    """A verb in a session of its own, so that it outlives the page; what it prints is kept as long as the page."""

    def __init__(self, verb: str, *arguments: str) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (read when the process has ended)
        command = [*PROGRAM, verb, *arguments]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log, start_new_session=True)

    @property
    def goes_on(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def error(self) -> str | None:
        """The last line of what it printed, if it has failed."""
        code = self._process.poll()
        if not code or code in STOPPED:
            return None
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return shown((lines or [f"ended with {code}"])[-1], 1_000)

    def stop(self) -> None:
        """Ask it to end after its step."""
        self._process.send_signal(signal.SIGTERM)


def diagnose(asked: dict[str, Any], data: str) -> dict[str, Any]:
    """What `vgg doctor` says of a design, and what each finding would change, on images of `data`."""
    network = network_of(asked.get("design"))
    flags = {name: asked[name] for name in DOCTOR_FLAGS if name in asked}
    batch_size = flags.get("batch_size", 8)
    peak_bytes = training_memory(network, batch_size).peak_bytes
    if peak_bytes > machine_memory_bytes():
        raise UserError(f"expected a design that fits this machine, got one that needs {peak_bytes / 1e9:,.1f} GB")
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    arguments.append(f"--image-size={network.image_size}")
    if isinstance(network, Architecture):
        arguments += [f"--head={network.head}", "--hidden", *map(str, network.hidden)]
    found = printed("doctor", asked["design"]["text"], f"--data={data}", *arguments)
    return {**found, "tries": [_try(finding) for finding in found["findings"]]}


def _try(finding: str) -> dict[str, str]:
    """The fields that a finding says to change: flags, or the network's name; none where it names a run to train."""
    advice = finding.rpartition(", try ")[2] if ", try " in finding else ""
    if "RUN" in advice:
        return {}
    flags = dict(re.findall(r"--([a-z-]+) (\S+)", advice))
    if not flags and advice:
        try:
            Architecture.parse(advice)
        except VggkitError:
            return {}
        return {"network": advice}
    return {name.replace("-", "_"): value for name, value in flags.items()}
