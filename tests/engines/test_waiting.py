"""How threads wait, chosen by speed: on made-up times, since a machine that runs tests is busy by itself."""

import pytest
import torch

from vggkit.engines import waiting
from vggkit.engines.waiting import PAUSE_SECONDS, Waiting


def after(chooser, seconds, speeds, missing, kind="step"):
    """What is chosen after so many seconds of calls; `speeds` in examples/s of spinning and of sleeping threads."""
    states = []
    for _ in range(int(seconds / 0.05)):
        speed = speeds[chooser.is_asleep]
        cores = 2 - (0.9 if chooser.is_asleep else missing)
        chooser.add(kind, 0.05 * speed, 0.05, 0.05 * cores)
        states.append(chooser.is_asleep)
    return states


def test_threads_sleep_beside_a_neighbour_and_spin_when_it_has_gone():
    chooser = Waiting(threads=2)
    assert not any(after(chooser, 60, (3000, 2300), missing=0.04))  # an idle machine is never tried
    beside = after(chooser, 60, (900, 1700), missing=0.7)
    assert beside.index(True) < 1 / 0.05
    assert sum(beside) > 0.97 * len(beside)  # spinning is tried again, for a short while
    gone = after(chooser, 60, (3000, 2300), missing=0.04)  # which a faster step shows
    assert not any(gone[int((PAUSE_SECONDS + 2) / 0.05) :])


def test_without_a_sign_spinning_is_tried_once_a_minute():
    chooser = Waiting(threads=2)
    after(chooser, 10, (900, 1700), missing=0.7)
    gone = after(chooser, 200, (3000, 1700), missing=0.04)
    assert not any(gone[int(70 / 0.05) :])


def test_what_is_slower_is_not_kept():
    chooser = Waiting(threads=2)  # much of these calls is done by one thread, and nobody else is there
    states = after(chooser, 60, (3000, 2300), missing=0.5)
    assert 0 < sum(states) < 0.06 * len(states)


def test_calls_of_another_kind_decide_nothing():
    chooser = Waiting(threads=2)
    for _ in range(200):
        after(chooser, 0.05, (900, 1700), missing=0.7)
        after(chooser, 0.05, (10, 10), missing=0.7, kind="evaluation")
    assert chooser.is_asleep
    chooser = Waiting(threads=2)
    after(chooser, 0.4, (900, 1700), missing=0.7)
    assert chooser.is_asleep  # on trial, by a kind that never comes again
    after(chooser, 80, (900, 800), missing=0.04, kind="evaluation")
    assert not chooser.is_asleep


@pytest.mark.parametrize("on", [True, False])
def test_the_bits_stay_the_same(on):
    x = torch.randn(64, 32, 33, 33, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        norm = torch.nn.BatchNorm2d(32)  # whose sums depend on the number of threads
        expected = norm(x)
        waiting.let_sleep(on)
        assert torch.equal(norm(x), expected)
    finally:
        waiting.let_sleep(False)
        torch.set_num_threads(threads)
