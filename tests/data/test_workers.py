import gc
import io
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vggkit.data import workers
from vggkit.data.images import random_crop
from vggkit.data.samples import Sample
from vggkit.data.workers import Loader
from vggkit.errors import DataError, LoadingError


def jpeg(seed):
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((80, 60)).save(buffer, "JPEG")
    return buffer.getvalue()


JPEGS = [jpeg(seed) for seed in range(40)]


@dataclass(frozen=True)
class Pictures:
    """40 JPEGs, some of them cut."""

    cut: frozenset[int] = frozenset()
    is_stream: bool = False

    def __len__(self):
        return len(JPEGS)

    def reader(self, seed, epoch):
        def sample(position):
            content = JPEGS[position]
            return Sample(f"{position:02}.jpg", position % 7, content[:300] if position in self.cut else content)

        return sample


@dataclass(frozen=True)
class Stream(Pictures):
    """A stream in an order that the epoch decides, that cannot go back and is opened once in each worker and run."""

    is_stream: bool = True

    def reader(self, seed, epoch):
        order = np.random.default_rng([seed, epoch]).permutation(len(JPEGS))
        last = -1

        def sample(position):
            nonlocal last
            assert position > last, "the stream went back"
            last = position
            return Sample(f"{order[position]:02}.jpg", int(order[position]), JPEGS[order[position]])

        return sample


@dataclass(frozen=True)
class Crop:
    seed: int = 0

    def __call__(self, sample, epoch, index):
        generator = np.random.default_rng([self.seed, epoch, index])
        return random_crop(sample.content, 3, 24, (24, 40), generator, name=sample.name)


@dataclass(frozen=True)
class Disturbed:
    """Does `what` at image 13, in whatever process that is read; the others take `seconds` each."""

    what: str
    seconds: float = 0.0

    def __call__(self, sample, epoch, index):
        if self.seconds:
            time.sleep(self.seconds)
        if index == 13:
            if self.what == "raise":
                raise ZeroDivisionError("division\nby zero")
            if self.what == "hang":
                time.sleep(1000)
            if self.what == "exit":
                os._exit(3)
            if self.what == "shape":
                return torch.zeros(1, 2, 2, dtype=torch.uint8)
            os.kill(os.getpid(), getattr(signal, self.what))
        return torch.full((1, 4, 4), index, dtype=torch.uint8)


def parts_of(positions, batch_size=8):
    return [np.array(positions[start : start + batch_size]) for start in range(0, len(positions), batch_size)]


PARTS = parts_of(list(range(40)))


def loader(read, images=None, num_workers=2, bad_images="fail", **options):
    pictures = Pictures() if images is None else images
    return Loader(pictures, read, seed=5, num_workers=num_workers, pin_memory=False, bad_images=bad_images, **options)


OTHERS = set()
"""Processes that were there before the test, a fork server's of other tests among them."""


def children():
    """Processes that this one has made in this test and that live: number and state of each."""
    mine = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == os.getpid() and int(stat.parent.name) not in OTHERS:
            mine.append((int(stat.parent.name), state))
    return mine


@pytest.fixture(autouse=True)
def no_orphans():
    OTHERS.update(pid for pid, _ in children())
    threads = threading.active_count()
    yield
    gc.collect()
    assert children() == []
    deadline = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= threads


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(workers, "HANG_SECONDS", 1.0)
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.1)


def expected(parts, epoch, images):
    """What a bare loop gives."""
    for part in parts:
        sample_at = images.reader(5, epoch) if not images.is_stream else None
        samples = [(sample_at or images.reader(5, epoch))(position) for position in part]
        pixels = [Crop()(sample, epoch, position) for sample, position in zip(samples, part.tolist(), strict=True)]
        yield torch.stack(pixels), torch.tensor([sample.label for sample in samples])


@pytest.mark.parametrize("images", [Pictures(), Stream()])
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_batches_are_those_of_a_bare_loop_for_any_number_of_workers(num_workers, images):
    shuffled = PARTS if images.is_stream else parts_of(np.random.default_rng(0).permutation(40), 7)
    with loader(Crop(), images, num_workers) as opened:
        for epoch, parts in ((1, shuffled), (2, shuffled), (2, shuffled), (3, [*shuffled[2:], np.array([], np.int64)])):
            got = list(opened.batches(parts, epoch))
            assert len(got) == len(parts)
            for (pixels, labels), part in zip(got, parts, strict=True):
                assert pixels.shape == (len(part), 3, 24, 24)
                assert (pixels.dtype, labels.dtype) == (torch.uint8, torch.int64)
            for (pixels, labels), (their_pixels, their_labels) in zip(
                got, expected(shuffled if epoch < 3 else shuffled[2:], epoch, images), strict=False
            ):
                assert torch.equal(pixels, their_pixels)
                assert torch.equal(labels, their_labels)
        assert opened.bad == {}


def test_batches_stay_as_they_are_when_others_are_read():
    with loader(Crop(), num_workers=1, ahead=1) as opened:
        batches = list(opened.batches(PARTS, 1))
    for (pixels, _), (theirs, _) in zip(batches, expected(PARTS, 1, Pictures()), strict=True):
        assert torch.equal(pixels, theirs)


def test_workers_are_made_at_the_first_batch_and_kept():
    with loader(Crop()) as opened:
        iterator = opened.batches(PARTS, 1)
        assert children() == []
        next(iterator)
        team = {pid for pid, _ in children()}
        assert len(team) == 2
        list(iterator)
        for epoch in range(2, 5):
            list(opened.batches(PARTS, epoch))
            assert {pid for pid, _ in children()} == team
    assert children() == []
    opened.close()


def test_larger_batches_than_before_find_room():
    with loader(Crop()) as opened:
        small = [pixels for pixels, _ in opened.batches(parts_of(list(range(40)), 4), 1)]
        large = [pixels for pixels, _ in opened.batches(parts_of(list(range(40)), 16), 1)]
        assert torch.equal(torch.cat(small), torch.cat(large))


def test_the_main_processs_random_numbers_stay():
    before = torch.get_rng_state()
    with loader(Crop()) as opened:
        list(opened.batches(PARTS, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_to_read_needs_no_worker():
    with loader(Crop()) as opened:
        assert list(opened.batches([], 1)) == []
        assert children() == []


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_bad_images_are_skipped_and_told_once(num_workers):
    images = Pictures(cut=frozenset([0, 9, 10, 31]))
    with loader(Crop(), images, num_workers, "skip") as opened:
        for _ in range(2):
            labels = torch.cat([labels for _, labels in opened.batches(PARTS, 1)])
            pixels = torch.cat([pixels for pixels, _ in opened.batches(PARTS, 1)])
            bad = labels == -100
            assert bad.nonzero().flatten().tolist() == [0, 9, 10, 31]
            assert torch.equal(labels[~bad], (torch.arange(40) % 7)[~bad])
            assert pixels[bad].sum() == 0
            assert (pixels[~bad].flatten(1).sum(1) > 0).all()
        assert list(opened.bad) == ["00.jpg", "09.jpg", "10.jpg", "31.jpg"]
        assert all(
            reason.startswith("expected a whole PNG, JPEG") and "\n" not in reason for reason in opened.bad.values()
        )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_images_are_refused(num_workers):
    images = Pictures(cut=frozenset([0, 9, 10, 12, 14, 31]))
    with loader(Crop(), images, num_workers) as opened:
        iterator = opened.batches(PARTS[1:], 1)
        message = (
            r"^expected images that can be read, got 4 in a batch of 8 that cannot: 09.jpg: expected a whole [^;]*; "
            r"10.jpg: [^;]*; 12.jpg: [^;]*; and 1 more, try --bad-images skip$"
        )
        with pytest.raises(DataError, match=message):
            next(iterator)
        assert list(opened.bad) == ["09.jpg", "10.jpg", "12.jpg", "14.jpg"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_data_that_goes_away_is_said_and_not_skipped_for_ever(num_workers, monkeypatch):
    monkeypatch.setattr(workers, "MOST_BAD_IN_A_ROW", 20)
    images = Pictures(cut=frozenset(range(16, 40)))
    with loader(Crop(), images, num_workers, "skip") as opened:
        read = [labels for _, labels in opened.batches(PARTS, 0)]  # in its order, where bad ones may lie together
        assert len(torch.cat(read)) == 40
        message = r"got 24 in a row that cannot, the last is 39.jpg: expected a whole .*, try whether the data is still"
        with pytest.raises(DataError, match=message):
            list(opened.batches(PARTS, 1))
        assert children() == []


def test_none_that_can_be_read_is_said(monkeypatch):
    with loader(Crop(), Pictures(cut=frozenset(range(40))), 2, "skip") as opened:
        with pytest.raises(DataError, match=r"got none in 40, the first is 00.jpg: expected a whole"):
            next(opened.batches(PARTS, 1))
        assert children() == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_that_is_no_bad_image_is_told_in_one_line(num_workers):
    started = time.monotonic()
    with loader(Disturbed("raise"), num_workers=num_workers) as opened:
        iterator = opened.batches(PARTS, 1)
        next(iterator)
        message = r"expected 13.jpg to be read, got ZeroDivisionError: division by zero \(test_workers.py:\d+\)"
        who = r"^worker 2 of 2 \(process \d+\): " if num_workers else "^"
        hint = ", try --workers 0 to see where$" if num_workers else "$"
        with pytest.raises(LoadingError, match=who + message + hint):
            list(iterator)
        assert children() == []
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_of_another_shape_is_refused(num_workers):
    with loader(Disturbed("shape"), num_workers=num_workers) as opened:
        message = r"expected all images as uint8 of \(1, 4, 4\), got torch.uint8 of \(1, 2, 2\) for 13.jpg"
        with pytest.raises(LoadingError, match=message):
            list(opened.batches(PARTS, 1))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("SIGKILL", r"was killed by signal 9 \(Killed\) while reading 13.jpg, perhaps for lack of memory, try fewer --workers"),
        ("SIGSEGV", r"was killed by signal 11 \(Segmentation fault\) while reading 13.jpg, try --workers 0"),
        ("SIGBUS", r"was killed by signal 7 \(Bus error\) while reading 13.jpg, perhaps for lack of memory, try fewer --workers"),
        ("exit", "ended with code 3 while reading 13.jpg, try --workers 0 to see where"),
    ],
)  # fmt: skip
def test_a_worker_that_ends_is_told_in_one_line(what, message):
    started = time.monotonic()
    with loader(Disturbed(what)) as opened:
        iterator = opened.batches(PARTS, 1)
        assert next(iterator)[1].tolist() == [position % 7 for position in range(8)]
        with pytest.raises(LoadingError, match=rf"^worker 2 of 2 \(process \d+\) {message}$"):
            list(iterator)
        assert children() == []
    assert time.monotonic() - started < 10


def test_a_worker_that_ends_does_not_disturb_the_main_process_at_work():
    """torch's handler of SIGCHLD would raise an error here, in the middle of a training step."""
    with loader(Disturbed("SIGKILL")) as opened:
        iterator = opened.batches(PARTS, 1)
        next(iterator)
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            sum(range(1000))
        with pytest.raises(LoadingError, match="was killed by signal 9"):
            list(iterator)


@pytest.mark.parametrize("what", ["hang", "SIGSTOP"])
def test_a_worker_that_hangs_is_told_and_killed(impatient, what):
    started = time.monotonic()
    with loader(Disturbed(what), num_workers=3) as opened:
        with pytest.raises(
            LoadingError,
            match=r"^worker 2 of 3 \(process \d+\) has not finished an image for 1 seconds while reading 13.jpg, try",
        ):
            list(opened.batches(PARTS, 1))
        assert children() == []
        assert 1 <= time.monotonic() - started < 4


def test_a_stopped_worker_with_nothing_begun_hangs_too(impatient):
    with loader(Crop(), num_workers=1) as opened:
        list(opened.batches(PARTS, 1))
        os.kill(children()[0][0], signal.SIGSTOP)
        started = time.monotonic()
        assert len(list(opened.batches(PARTS, 2))) == 5, "others were made"
        assert time.monotonic() - started < 4


def test_a_slow_worker_is_waited_for(impatient):
    """A batch takes 3.2 seconds, three times what a worker may take for an image."""
    with loader(Disturbed("", seconds=0.4), num_workers=1, ahead=1) as opened:
        started = time.monotonic()
        next(opened.batches(PARTS, 1))
        assert time.monotonic() - started > 3


@dataclass(frozen=True)
class SlowToOpen(Stream):
    def reader(self, seed, epoch):
        sample_at = super().reader(seed, epoch)

        def sample(position):
            time.sleep(2 if position in (8, 16) else 0)
            return sample_at(position)

        return sample


def test_a_stream_may_start_late_but_not_pause(impatient, monkeypatch):
    with loader(Crop(), SlowToOpen(), num_workers=1) as opened:
        next(opened.batches(PARTS[1:2], 1))
        with pytest.raises(LoadingError, match="worker 1 of 1 .* for 1 seconds while reading image 8"):
            list(opened.batches(PARTS, 1))
        monkeypatch.setattr(workers, "STREAM_START_SECONDS", 1.5)
        with pytest.raises(LoadingError, match="worker 1 of 1 .* for 1.5 seconds while reading image 8"):
            next(opened.batches(PARTS[1:2], 1))


def test_after_a_failure_new_workers_are_made():
    with loader(Crop()) as opened:
        for _ in range(2):
            iterator = opened.batches(PARTS * 9, 1)
            next(iterator)
            for pid, _ in children():
                os.kill(pid, signal.SIGKILL)
            with pytest.raises(LoadingError, match="worker 1 of 2 .* was killed by signal 9"):
                list(iterator)
        list(opened.batches(PARTS, 1))
        os.kill(children()[1][0], signal.SIGKILL)
        time.sleep(0.2)
        with pytest.raises(LoadingError, match="worker [12] of 2 .* was killed by signal 9"):
            list(opened.batches(PARTS, 2))
        assert len(list(opened.batches(PARTS, 2))) == 5


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_may_be_left_at_any_batch(num_workers):
    whole = list(expected(PARTS, 1, Pictures()))
    with loader(Crop(), num_workers=num_workers) as opened:
        descriptors = None
        for length in [1, 2, 3, 4, 5] * 3:
            for number, (pixels, labels) in enumerate(opened.batches(PARTS, 1)):
                assert torch.equal(pixels, whole[number][0])
                assert torch.equal(labels, whole[number][1])
                if number + 1 == length:
                    break
            gc.collect()
            if length == 5:
                descriptors = descriptors or len(list(Path("/proc/self/fd").iterdir()))
        assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_new_epoch_ends_the_one_before(num_workers):
    with loader(Crop(), num_workers=num_workers) as opened:
        before = opened.batches(PARTS, 1)
        next(before)
        after = opened.batches(PARTS, 2)
        first = next(after)[0]
        with pytest.raises(LoadingError, match="expected one reading of batches at a time"):
            next(before)
        batches = [first, *(pixels for pixels, _ in after)]
        for pixels, (theirs, _) in zip(batches, expected(PARTS, 2, Pictures()), strict=True):
            assert torch.equal(pixels, theirs)


def test_workers_ignore_what_a_process_group_gets_and_close_ends_them_all_the_same():
    with loader(Crop()) as opened:
        iterator = opened.batches(PARTS, 1)
        next(iterator)
        for pid, _ in children():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                os.kill(pid, number)
        assert len(list(iterator)) == 4
        team = children()
        list(opened.batches(PARTS, 2))
        assert {pid for pid, _ in children()} == {pid for pid, _ in team}
        started = time.monotonic()
    assert time.monotonic() - started < 1
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_close_ends_workers_that_hang_at_once():
    opened = loader(Disturbed("hang"))
    next(opened.batches(PARTS, 1))
    iterator = opened.batches(PARTS, 1)
    next(iterator)
    time.sleep(0.2)
    started = time.monotonic()
    opened.close()
    assert time.monotonic() - started < 1
    assert children() == []
    with pytest.raises(LoadingError, match="or a closed loader"):
        next(iterator)


def test_a_loader_that_nobody_holds_ends_its_workers():
    opened = loader(Crop())
    list(opened.batches(PARTS, 1))
    assert len(children()) == 2
    del opened
    gc.collect()
    assert children() == []


def test_workers_use_one_thread_and_import_nothing(tmp_path):
    @dataclass(frozen=True)
    class Observed:
        folder: Path

        def __call__(self, sample, epoch, index):
            modules = set(sys.modules)
            crop = Crop()(sample, epoch, index)
            new = sorted(set(sys.modules) - modules)
            (self.folder / str(index)).write_text(f"{os.getpid()} {torch.get_num_threads()} {new}")
            return crop

    torch.nn.functional.conv2d(torch.rand(4, 8, 64, 64), torch.rand(8, 8, 3, 3))  # wakes OpenMP's threads
    with loader(Observed(tmp_path)) as opened:
        list(opened.batches(PARTS, 1))
        seen = {tuple(path.read_text().split(" ", 2)) for path in tmp_path.iterdir()}
        assert {(int(pid), threads, new) for pid, threads, new in seen} == {(pid, "1", "[]") for pid, _ in children()}


PROGRAM = """
import os, sys, time, weakref
weakref.finalize(os.environ, int)  # so that what weakref does at the end of Python comes after multiprocessing's end
import numpy as np, torch
from vggkit.data.samples import Sample
from vggkit.data.workers import Loader

class Images:
    is_stream = False
    def __len__(self): return 64
    def reader(self, seed, epoch): return lambda position: Sample(str(position), 0, b"")

def read(sample, epoch, index):
    if index >= 16: {action}
    return torch.zeros(1, 4, 4, dtype=torch.uint8)

torch.set_num_threads(2)
torch.rand(500, 500) @ torch.rand(500, 500)
loader = Loader(Images(), read, seed=0, num_workers=3, pin_memory=False, bad_images="fail")
iterator = loader.batches([np.arange(8) + 8 * i for i in range(8)], 1)
next(iterator)
processes = loader._workers._processes
print(*(process.pid for process in processes), flush=True)
{end}
"""


def run_program(action, end):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM.format(action=action, end=end)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def are_gone(pids, seconds):
    def lives(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    deadline = time.monotonic() + seconds
    while any(map(lives, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(lives, pids))


def test_workers_die_with_a_main_process_that_is_killed_even_when_they_hang():
    with run_program("time.sleep(1000)", "time.sleep(1000)") as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 3
        time.sleep(0.2)
        process.kill()
        assert are_gone(pids, 2)
        process.wait()
        process.stderr.close(), process.stdout.close()


@pytest.mark.parametrize(
    ("action", "end", "code"),
    [
        ("time.sleep(1000)", "pass", 0),
        ("pass", "pass", 0),
        ("pass", "raise SystemExit(7)", 7),
        ("time.sleep(1000)", "1 / 0", 1),
    ],
)
def test_a_main_process_that_ends_without_closing_is_not_held_up(action, end, code):
    """multiprocessing's own end sends SIGTERM, which workers ignore, and waits for ever."""
    started = time.monotonic()
    process = run_program(action, end)
    try:
        output, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == code
    assert are_gone([int(pid) for pid in output.split()], 0.1)
    assert errors == "" or code == 1
    assert time.monotonic() - started < 10


def test_ctrl_c_reaches_the_main_process_alone():
    with run_program("time.sleep(1000)", "list(iterator)") as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=5)[1]
        assert errors.endswith("KeyboardInterrupt\n")
        assert errors.count("Traceback") == 1
        assert are_gone(pids, 0.1)


def test_workers_that_cannot_be_made_are_told_in_one_line(monkeypatch):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    with loader(Crop()) as opened:
        monkeypatch.setattr(workers, "DataLoader", refuse)
        message = (
            r"^expected to start 2 workers, got OSError: .* No space left .*, try fewer --workers, or 0, or a larger"
        )
        with pytest.raises(LoadingError, match=message):
            next(opened.batches(PARTS, 1))
        monkeypatch.setattr(mmap, "mmap", refuse)
        with pytest.raises(LoadingError, match=r"^expected memory for 5 batches of 13,824 bytes, got .*, try fewer"):
            next(opened.batches(PARTS, 1))


def test_two_loaders_at_once_and_in_a_thread():
    """A process forked for one loader holds copies of the other's ends; a thread has no signal handlers to set."""
    failures = []

    def read_both():
        try:
            with loader(Crop()) as one, loader(Crop(), Stream()) as other:
                for epoch in (1, 2):
                    both = zip(one.batches(PARTS, epoch), other.batches(PARTS, epoch), strict=True)
                    for ours, (bare, _) in zip(both, expected(PARTS, epoch, Pictures()), strict=True):
                        assert torch.equal(ours[0][0], bare)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=read_both)
    thread.start()
    thread.join()
    assert failures == []


def test_there_are_no_more_workers_than_half_of_the_cores_that_a_job_may_have(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert workers.default_workers() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert workers.default_workers() == 2
