"""Verbs of `vgg` in processes of their own."""

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
"""Exit codes of a verb that was stopped: after a step, before the first one, and while torch loads."""

DOCTOR_FLAGS = ("init", "optimizer", "learning_rate", "momentum", "batch_size", "seed")


def printed(verb: str, *arguments: str) -> Any:
    """The output of `vgg VERB ARGUMENTS --json`; one such process runs at a time.

    Raises:
        UserError: the verb refuses its arguments.
        RunError: it fails in another way, or takes longer than `TIMEOUT_SECONDS`.
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
    message = _error_line(verb, done.returncode, done.stderr)
    raise UserError(message) if done.returncode == UserError.exit_code else RunError(message)


class Started:
    """A verb in a session of its own, which outlives the page. Its output is kept as long as the page runs."""

    def __init__(self, verb: str, *arguments: str) -> None:
        self._verb, self._log = verb, tempfile.TemporaryFile()  # noqa: SIM115 (read when the process has ended)
        command = [*PROGRAM, verb, *arguments]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log, start_new_session=True)

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def error(self) -> str | None:
        """The last line of its output if it has failed, else None."""
        code = self._process.poll()
        if not code or code in STOPPED:
            return None
        self._log.seek(0)
        return shown(_error_line(self._verb, code, self._log.read().decode(errors="replace")), 1_000)

    def stop(self) -> None:
        """Ask it to end after the current step."""
        self._process.send_signal(signal.SIGTERM)


def _error_line(verb: str, code: int, output: str) -> str:
    """The last line of the output of a verb that failed, without the name of the verb."""
    lines = output.strip().splitlines() or [f"ended with {code}"]
    return lines[-1].removeprefix(f"vgg {verb}: ")


def diagnose(body: dict[str, Any], data: str) -> dict[str, Any]:
    """The answer of `vgg doctor` on a design and images of `data`, with the changes that each finding advises."""
    network = network_of(body.get("design"))
    flags = {name: body[name] for name in DOCTOR_FLAGS if name in body}
    batch_size = flags.get("batch_size", 8)
    peak_bytes = training_memory(network, batch_size).peak_bytes
    if peak_bytes > machine_memory_bytes():
        raise UserError(f"expected a design that fits this machine, got one that needs {peak_bytes / 1e9:,.1f} GB")
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    arguments.append(f"--image-size={network.image_size}")
    if isinstance(network, Architecture):
        arguments += [f"--head={network.head}", "--hidden", *map(str, network.hidden)]
    diagnosis = printed("doctor", body["design"]["text"], f"--data={data}", *arguments)
    return {**diagnosis, "tries": [_advised_changes(finding) for finding in diagnosis["findings"]]}


def _advised_changes(finding: str) -> dict[str, str]:
    """The fields that a finding advises to change: flags, or the network. None if the advice is to train a run."""
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
