"""One process is lost, or torchrun is told to end: the others end too, soon, and say so in one line."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.killing import KILLS
from tests.teams import Members, steps_of, together, vgg, wait_for
from tests.training.test_distributed import TINY, final

ENDLESS = [*TINY, "--epochs", "1000"]


def impatient():
    from vggkit.training import distributed

    distributed.STEP_SECONDS = 8


def waits_in_vain():
    from vggkit.training import distributed

    if os.environ["RANK"] == "1":
        os._exit(3)
    distributed.JOIN_SECONDS = 4


def not_a_number_in_the_second():
    from vggkit.training import step

    real, calls = step.augmented_input, []

    def spoilt(*given):
        calls.append(given)
        return real(*given) * (float("nan") if len(calls) == 8 and os.environ["RANK"] == "1" else 1)

    step.augmented_input = spoilt


def no_data_for_the_second():
    from vggkit.errors import DataError
    from vggkit.training import loop

    def missing(*given, **options):
        raise DataError("expected data")

    if os.environ["RANK"] == "1":
        loop.open_run_data = missing


def test_not_a_number_in_one_process_ends_all_with_one_line(tmp_path):
    with Members(2, vgg, [*ENDLESS, "--out", "run"], not_a_number_in_the_second, place=tmp_path) as team:
        assert team.ended() == [1, 1]
        (line,) = (team.printed(0) + team.printed(1)).splitlines()
    assert line.startswith("vgg train: rank 0: expected a finite loss and gradients, got a loss of nan at step 8")


def test_a_fault_before_the_first_step_reaches_all_at_once(tmp_path):
    with Members(2, vgg, [*ENDLESS, "--out", "run"], no_data_for_the_second, place=tmp_path) as team:
        assert team.ended() == [1, 2]
        assert team.printed(1) == "vgg train: rank 1: expected data\n"
        assert "rank 0: lost the other processes: " in team.printed(0)  # closed or reset by peer
        assert "Timed out" not in team.printed(0)


def test_a_process_that_never_comes_is_waited_for_in_vain(tmp_path):
    with Members(2, vgg, [*ENDLESS, "--out", "run"], waits_in_vain, place=tmp_path) as team:
        assert team.ended() == [1, 3]
        (line,) = team.printed(0).splitlines()
    assert line.startswith("vgg train: rank 0: lost the other processes: Timed out after")
    assert line.endswith(" waiting for clients; go on with --resume run")


@pytest.mark.parametrize("compression", ["none", "bf16", "powersgd"])
def test_a_killed_process_ends_the_others_in_one_line(compression, tmp_path):
    arguments = [*ENDLESS, "--compression", compression, "--resume", str(tmp_path / "run")]
    with Members(3, vgg, arguments, place=tmp_path / "team") as team:
        wait_for(lambda: steps_of(tmp_path / "run") > 5)
        os.kill(team[2].pid, signal.SIGKILL)
        assert team.ended() == [1, 1, -signal.SIGKILL]
        for rank in (0, 1):
            (line,) = team.printed(rank).splitlines()
            assert line.startswith(f"vgg train: rank {rank}: lost the other processes: "), line
            assert line.endswith(f"; go on with --resume {tmp_path / 'run'}"), line
            assert len(line) < 400 and "gloo" not in line and "Timed out" not in line, line


def test_a_process_that_hangs_is_not_waited_for_for_long(tmp_path):
    with Members(2, vgg, [*ENDLESS, "--resume", str(tmp_path / "run")], impatient, place=tmp_path / "team") as team:
        wait_for(lambda: steps_of(tmp_path / "run") > 5)
        os.kill(team[1].pid, signal.SIGSTOP)
        team[0].join(60)
        assert team[0].exitcode == 1
        # gloo's own words, which depend on whether it waited for a message or for room to send one
        lost = "lost the other processes: (Timed out waiting 8000ms|Application timeout caused pair closure)"
        assert re.search(lost, team.printed(0))


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def torchrun(flags, arguments, cwd):
    """Two processes by torchrun; at the end none is left."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *flags, "-m", "vggkit", *arguments]
    with subprocess.Popen(
        command, cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()  # its processes then stop, as a test here shows


def children(pid):
    """The processes that `pid` started and that live."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(place.name))
    return sorted(found)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc, to find processes in")
@pytest.mark.parametrize(
    ("name", "flags", "code"),
    [
        ("SIGTERM", [], 1),
        pytest.param(
            *("SIGUSR1", ["--signals-to-handle=SIGTERM,SIGINT,SIGUSR1"], 1),
            marks=[pytest.mark.torture, pytest.mark.skipif(KILLS < 200, reason="make torture runs it")],
        ),
        ("SIGKILL", [], -9),
    ],
)
def test_a_signal_to_torchrun_leaves_a_checkpoint_and_nobody_behind(name, flags, code, tmp_path):
    with torchrun(flags, [*ENDLESS, "--out", "run"], tmp_path) as process:
        wait_for(lambda: steps_of(tmp_path / "run") > 5)
        own = children(process.pid)
        assert len(own) == 2
        process.send_signal(getattr(signal, name))
        out, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in own))
    assert f"stopped by {'SIGTERM' if name == 'SIGKILL' else name} after" in out
    assert "vgg train:" not in err
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*/SHA256SUMS"))) == 1


def killed_after_a_save(process, run, which, before):
    """Kill one of torchrun's new processes once it has saved; all of them."""
    wait_for(lambda: len(now := children(process.pid)) == 2 and not set(now) & before)
    pids, saved = children(process.pid), set(run.glob("checkpoints/step-*/SHA256SUMS"))
    wait_for(lambda: set(run.glob("checkpoints/step-*/SHA256SUMS")) - saved)
    os.kill(pids[which], signal.SIGKILL)
    return set(pids)


@pytest.mark.slow
@pytest.mark.torture
@pytest.mark.skipif(KILLS < 200, reason="takes a minute: make torture runs it")
def test_torchrun_restarts_what_is_killed_and_ends_in_the_same_bits(tmp_path):
    arguments = [*TINY, "--epochs", "12", "--save-seconds", "0.2"]
    with torchrun([], [*arguments, "--out", "unbroken"], tmp_path) as process:
        assert process.wait(120) == 0
    with torchrun(["--max-restarts=3"], [*arguments, "--resume", "run"], tmp_path) as process:
        before = set()
        for kill in range(2):
            before = killed_after_a_save(process, tmp_path / "run", kill, before)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.count("resumed after step") == 2
    assert final(tmp_path / "run") == final(tmp_path / "unbroken")


@pytest.fixture
def two_hosts():
    """Two network namespaces joined by a cable: commands that run in them, and their devices."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs ip, and to be root, for network namespaces")
    names = [f"vggkit{os.getpid()}{side}" for side in "ab"]

    def ip(*arguments):
        return subprocess.run(["ip", *arguments], capture_output=True, text=True)

    made = [ip("netns", "add", name) for name in names]
    made.append(ip("link", "add", "vggkit-a", "netns", names[0], "type", "veth", "peer", "vggkit-b", "netns", names[1]))
    for number, (name, device) in enumerate(zip(names, ("vggkit-a", "vggkit-b"), strict=True), 1):
        made.append(ip("-n", name, "addr", "add", f"10.99.0.{number}/24", "dev", device))
        made += [ip("-n", name, "link", "set", up, "up") for up in ("lo", device)]
    try:
        failed = [done.stderr for done in made if done.returncode]
        if failed:
            pytest.skip(f"needs network namespaces: {failed[0]}")
        yield list(zip(names, ("vggkit-a", "vggkit-b"), strict=True))
    finally:
        for name in names:
            ip("netns", "del", name)


def test_two_hosts_train_as_one_with_a_folder_that_only_the_first_sees(two_hosts, tmp_path):
    together(2, vgg, [*TINY, "--out", "run"], place=tmp_path / "one-host")
    processes = []
    for number, (name, device) in enumerate(two_hosts):
        own = tmp_path / name
        own.mkdir()
        command = [
            *("ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1"),
            *("--nnodes=2", f"--node-rank={number}", "--master-addr=10.99.0.1", "--master-port=29400", "-m", "vggkit"),
        ]
        processes.append(
            subprocess.Popen(
                [*command, *TINY, "--out", "run"], cwd=own, env=environment() | {"GLOO_SOCKET_IFNAME": device},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    try:
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    first, second = (tmp_path / name for name, _ in two_hosts)
    assert final(first / "run") == final(tmp_path / "one-host" / "folder-0" / "run")
    assert list(second.iterdir()) == []
