"""Batches from threads against a bare loop; images that are bad, too slow or hang; what is left behind."""

import io
import os
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from vggkit.data import loader as loading
from vggkit.data.images import RandomCrop
from vggkit.data.loader import Loader
from vggkit.data.samples import Sample
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
    """A stream in an order that the epoch decides, that cannot go back and is read once."""

    is_stream: bool = True
    stuck_at: int = -1

    def reader(self, seed, epoch):
        order = np.random.default_rng([seed, epoch]).permutation(len(JPEGS))
        last = -1

        def sample(position):
            nonlocal last
            assert position > last, "the stream went back"
            last = position
            if position == self.stuck_at:
                time.sleep(1000)
            return Sample(f"{order[position]:02}.jpg", int(order[position]), JPEGS[order[position]])

        return sample


@dataclass(frozen=True)
class Crop:
    seed: int = 0
    shape = (3, 24, 24)

    def __call__(self, sample, epoch, index):
        generator = np.random.default_rng([self.seed, epoch, index])
        return RandomCrop(0, 3, 24, (24, 40)).crop(sample.content, generator, sample.name)


@dataclass(frozen=True)
class Disturbed:
    """Does `what` at image 13; the others take `seconds` each."""

    what: str
    seconds: float = 0.0
    shape = (1, 4, 4)

    def __call__(self, sample, epoch, index):
        time.sleep(self.seconds)
        if index == 13:
            if self.what == "raise":
                raise ZeroDivisionError("division\nby zero")
            if self.what == "hang":
                time.sleep(1000)
        return np.full((1, 4, 4), index, np.uint8)


def parts_of(positions, batch_size=8):
    return [np.array(positions[start : start + batch_size]) for start in range(0, len(positions), batch_size)]


PARTS = parts_of(list(range(40)))


def loader(read, images=None, num_workers=2, bad_images="fail"):
    pictures = Pictures() if images is None else images
    return Loader(pictures, read, seed=5, num_workers=num_workers, pin_memory=False, bad_images=bad_images)


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "vggkit reader"]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(loading, "READ_SECONDS", 1.0)
    monkeypatch.setattr(loading, "STREAM_SECONDS", 1.0)
    monkeypatch.setattr(loading, "POLL_SECONDS", 0.1)


def expected(parts, epoch, images):
    """What a bare loop gives."""
    sample_at = images.reader(5, epoch)
    for part in parts:
        samples = [sample_at(position) for position in part]
        pixels = [Crop()(sample, epoch, position) for sample, position in zip(samples, part.tolist(), strict=True)]
        yield np.stack(pixels), torch.tensor([sample.label for sample in samples])


@pytest.mark.parametrize("images", [Pictures(), Stream()])
@pytest.mark.parametrize("num_workers", [0, 1, 3, 50])
def test_batches_are_those_of_a_bare_loop_for_any_number_of_threads(num_workers, images):
    shuffled = PARTS if images.is_stream else parts_of(np.random.default_rng(0).permutation(40), 7)
    before = torch.get_rng_state()
    opened = loader(Crop(), images, num_workers)
    for epoch, parts in ((1, shuffled), (2, shuffled), (2, shuffled), (3, [*shuffled[2:], np.array([], np.int64)])):
        got = list(opened.batches(parts, epoch))
        assert len(got) == len(parts)
        theirs = expected(shuffled if epoch < 3 else shuffled[2:], epoch, images)
        for (pixels, labels), (their_pixels, their_labels) in zip(got, theirs, strict=False):
            assert (pixels.dtype, labels.dtype) == (torch.uint8, torch.int64)
            assert np.array_equal(pixels, their_pixels)
            assert torch.equal(labels, their_labels)
    assert opened.bad == {}
    assert list(opened.batches([], 1)) == []
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_bad_images_are_skipped_and_told_once(num_workers):
    opened = loader(Crop(), Pictures(cut=frozenset([0, 9, 10, 31])), num_workers, "skip")
    for _ in range(2):
        pixels, labels = (torch.cat(some) for some in zip(*opened.batches(PARTS, 1), strict=True))
        bad = labels == -100
        assert bad.nonzero().flatten().tolist() == [0, 9, 10, 31]
        assert torch.equal(labels[~bad], (torch.arange(40) % 7)[~bad])
        assert pixels[bad].sum() == 0
        assert (pixels[~bad].flatten(1).sum(1) > 0).all()
    assert list(opened.bad) == ["00.jpg", "09.jpg", "10.jpg", "31.jpg"]
    assert all(reason.startswith("expected a whole PNG, JPEG") for reason in opened.bad.values())


def test_bad_images_are_refused():
    opened = loader(Crop(), Pictures(cut=frozenset([0, 9, 10, 12, 14, 31])))
    message = (
        r"^expected images that can be read, got 4 in a batch of 8 that cannot: 09.jpg: expected a whole [^;]*; "
        r"10.jpg: [^;]*; 12.jpg: [^;]*; and 1 more, try --bad-images skip$"
    )
    with pytest.raises(DataError, match=message):
        next(opened.batches(PARTS[1:], 1))
    assert list(opened.bad) == ["09.jpg", "10.jpg", "12.jpg", "14.jpg"]


def test_data_that_goes_away_is_said_and_not_skipped_for_ever(monkeypatch):
    monkeypatch.setattr(loading, "MAX_BAD_IN_A_ROW", 20)
    opened = loader(Crop(), Pictures(cut=frozenset(range(16, 40))), 2, "skip")
    read = [labels for _, labels in opened.batches(PARTS, 0)]  # in its order, where bad ones may lie together
    assert len(torch.cat(read)) == 40
    with pytest.raises(DataError, match=r"got 24 in a row that cannot, the last is 39.jpg: .* try whether the data is"):
        list(opened.batches(PARTS, 1))


def test_any_other_error_is_told_in_one_line():
    message = r"expected 13.jpg to be read, got ZeroDivisionError: division by zero \(test_loader.py:\d+\)"
    with pytest.raises(LoadingError, match=message) as raised:
        list(loader(Disturbed("raise")).batches(PARTS, 1))
    assert "\n" not in str(raised.value)


def test_an_image_that_hangs_is_bad_and_all_others_come(impatient):
    """Its thread is left to itself, and another takes its place, also if there is only one."""
    for num_workers in (1, 3):
        opened = loader(Disturbed("hang"), num_workers=num_workers, bad_images="skip")
        pixels, labels = (torch.cat(some) for some in zip(*opened.batches(PARTS, 1), strict=True))
        assert (labels == -100).nonzero().flatten().tolist() == [13]
        assert [p for p in pixels[:, 0, 0, 0].tolist() if p] == [p for p in range(1, 40) if p != 13]
        assert opened.bad == {"13.jpg": "expected an image that can be read in 1 seconds, got a slower one"}
    with pytest.raises(DataError, match=r"13.jpg: expected an image .* got a slower one, try --bad-images skip"):
        list(loader(Disturbed("hang")).batches(PARTS, 1))


def test_slow_images_are_waited_for(impatient):
    """A batch takes 3.2 seconds, three times what an image may take."""
    assert len(list(loader(Disturbed("", seconds=0.4), num_workers=1).batches(PARTS[:1], 1))) == 1


def test_a_stream_that_hangs_ends_the_run(impatient):
    with pytest.raises(LoadingError, match="expected image 20 of a stream to come, got nothing for 1 seconds"):
        list(loader(Crop(), Stream(stuck_at=20)).batches(PARTS, 1))


def test_an_epoch_may_be_left_at_any_batch_and_leaves_no_thread():
    before, opened = len(readers()), loader(Crop(), num_workers=3)
    whole = list(expected(PARTS, 1, Pictures()))
    for length in [1, 2, 3, 4, 5] * 3:
        for number, (pixels, _) in enumerate(opened.batches(PARTS, 1)):
            assert np.array_equal(pixels, whole[number][0])
            if number + 1 == length:
                break
    deadline = time.monotonic() + 20
    while len(readers()) > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(readers()) <= before


def test_no_more_batches_than_asked_for_are_read_ahead():
    read = []

    @dataclass(frozen=True)
    class Noting(Crop):
        def __call__(self, sample, epoch, index):
            read.append(index)
            return super().__call__(sample, epoch, index)

    iterator = loader(Noting(), num_workers=1).batches(PARTS, 1)
    next(iterator)
    time.sleep(0.5)
    assert len(read) <= 24  # the one that was taken, and two ahead


def test_content_is_known_whatever_the_order_and_number_of_threads():
    def content(parts, images=None, num_workers=3):
        opened = loader(Crop(), images, num_workers, "skip")
        opened.is_hashing = True
        list(opened.batches(parts, 1))
        return opened.content

    known = content(PARTS)
    assert content(parts_of(np.random.default_rng(1).permutation(40), 7), num_workers=1) == known
    assert content(PARTS[:4]) != known
    assert content(PARTS, Pictures(cut=frozenset([5]))) != known


def test_there_are_no_more_threads_than_half_of_the_cores_that_a_job_may_have(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert loading.default_workers() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert loading.default_workers() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert loading.default_workers() == 1
