"""A signal at any moment ends a run, with nobody left behind, and where nothing is lost."""

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.killing import FORKS, KILLS
from tests.own_images import write
from tests.teams import wait_for
from vggkit.training.stopping import signals_handled


class Interrupted:
    """The body of a process: `vgg train` on image files beside a second thread, in a session of its own."""

    def __init__(self, folder, ready):
        self.folder, self.ready = folder, ready

    def __call__(self):
        from vggkit.cli import main

        os.setsid()
        os.chdir(self.folder)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        sys.argv[1:] = [
            *("train", "--data", "photos", "--architecture", "1x2", "--hidden", "--image-size", "8", "--device", "cpu"),
            *("--shorter-side", "9", "--batch-size", "8", "--epochs", "100000", "--workers", "2"),
        ]
        try:
            self.ready.send(None)
            code = main()
        except KeyboardInterrupt:  # between these two lines
            code = 130
        sys.exit(code)


def session_of(pid):
    """The processes in the session that `pid` leads, which are its descendants."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = place.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == pid and state != "Z":
            found.append(int(place.parent.name))
    return found


@pytest.mark.torture
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc, to find processes in")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_in_the_first_second_ends_a_run_and_its_workers(name, tmp_path):
    write(tmp_path / "photos", [f"{label}/{index}.png" for label in "ab" for index in range(150)])
    moments, codes, slowest = random.Random(name), [], 0.0
    for _ in range(max(4, KILLS // 5)):
        receiver, sender = FORKS.Pipe(duplex=False)
        process = FORKS.Process(target=Interrupted(tmp_path, sender))
        process.start()
        assert receiver.poll(60)
        time.sleep(moments.uniform(0, 1))
        os.kill(process.pid, getattr(signal, name))
        begin = time.monotonic()
        process.join(60)
        slowest = max(slowest, time.monotonic() - begin)
        codes.append(process.exitcode)
        try:
            wait_for(lambda pid=process.pid: not session_of(pid))
        finally:
            for pid in session_of(process.pid):
                os.kill(pid, signal.SIGKILL)
    number = getattr(signal, name)
    assert set(codes) <= {75, 128 + number, -number}  # the last one before anybody handles it
    print(f"{name}: {len(codes)} times, at most {slowest:.1f} s, {codes.count(75)} after a step")


def test_watching_for_signals_ends_although_a_forked_process_lives_on():
    with signals_handled() as stop:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        os.close(reader)
        signal.alarm(60)  # ends this process, should the next line hang
    signal.alarm(0)
    assert stop.signal_name is None
    os.close(writer)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(("is_last", "code"), [(False, -signal.SIGTERM), (True, 0)])
def test_a_signal_that_comes_again_ends_no_process_that_is_ending(is_last, code):
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with signals_handled() as stop:
            stop.is_training = True
            os.kill(os.getpid(), signal.SIGTERM)
            stop.is_last = is_last
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
