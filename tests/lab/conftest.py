"""What the tests of the lab share: commands that are killed while they work."""

import signal
import time

import pytest


def wait_for(process, path):
    deadline = time.monotonic() + 120
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()  # else leaving its `with` would wait for it
            pytest.fail(f"no {path} after 120 s, or the process has ended")
        time.sleep(0.02)


def kill_at(process, path):
    """Kill `process` once it has made the file at `path`."""
    wait_for(process, path)
    process.kill()
    assert process.wait() == -signal.SIGKILL
