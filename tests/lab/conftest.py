"""What the tests of the lab share: commands that are killed while they work."""

import signal
import time


def wait_for(process, path):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def kill_at(process, path):
    """Kill `process` once it has made the file at `path`."""
    wait_for(process, path)
    process.kill()
    assert process.wait() == -signal.SIGKILL
