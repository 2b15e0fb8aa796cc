"""Processes that train together, as torchrun would start them, but from one import of torch."""

import os
import socket
import sys
import time
import traceback
from pathlib import Path

from tests.killing import FORKS

WAIT_SECONDS = 120


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def member(rank, size, port, work, arguments, place):
    """The body of a process: `work(*arguments)` in its place of the team; what it prints goes to two files."""
    import torch

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for descriptor, name in ((1, "out"), (2, "err")):
        with (place / f"{name}-{rank}").open("w") as file:
            os.dup2(file.fileno(), descriptor)
    own = place / f"folder-{rank}"
    own.mkdir(exist_ok=True)
    os.chdir(own)
    try:
        sys.exit(work(*arguments))
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(99)  # as an error that no program expects


class Members:
    """The processes of a team that was started; at the end of a `with` none is left."""

    def __init__(self, size, work, *arguments, place):
        place.mkdir(exist_ok=True)
        self.place, port = place, free_port()
        self.processes = [
            FORKS.Process(target=member, args=(rank, size, port, work, arguments, place)) for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()
            process.join()

    def __getitem__(self, rank):
        return self.processes[rank]

    def ended(self):
        """The exit codes, once all have ended."""
        last = time.monotonic() + WAIT_SECONDS
        for process in self.processes:
            process.join(max(0, last - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def printed(self, rank, name="err"):
        """What a process printed."""
        return (self.place / f"{name}-{rank}").read_text()


def together(size, work, *arguments, place):
    """Let `size` processes do `work`: it must succeed, and only the first may print, but no errors."""
    with Members(size, work, *arguments, place=place) as team:
        codes = team.ended()
        errors = [team.printed(rank) for rank in range(size)]
        assert "".join(team.printed(rank, "out") for rank in range(1, size)) == ""
    assert codes == [0] * size, errors
    assert "".join(errors) == ""
    return place


def trained(recipe, folder):
    """Work for `together`: train into `folder`."""
    from vggkit import train

    train(recipe, out=folder, device="cpu", progress=False)
    return 0


def vgg(arguments, before=None):
    """Work for `together`: the program `vgg`; its exit code."""
    from vggkit.cli import main

    if before is not None:
        before()
    return main(arguments)


def wait_for(condition, seconds=WAIT_SECONDS):
    last = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < last, "waited in vain"
        time.sleep(0.01)


def steps_of(run):
    """How many steps the metrics of a run speak of."""
    metrics = Path(run) / "metrics.jsonl"
    return metrics.read_text().count('"step"') if metrics.exists() else 0
