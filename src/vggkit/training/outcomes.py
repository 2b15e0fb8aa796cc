"""What steps came to, read from the device without making it wait."""

import math
from collections import deque

import torch
from torch import Tensor

from vggkit.errors import DivergedError
from vggkit.training.checkpoint import Saver
from vggkit.training.progress import Progress
from vggkit.training.start import advice
from vggkit.training.step import Training

CUDA_LAG_STEPS = 2
"""Steps that a GPU is given ahead of the one whose outcome is read."""
DIVERGED_STEPS, DIVERGED_FACTOR = 10, 5
"""A mean loss over so many steps of more than so many times the loss of guessing is told as diverged."""


class Outcomes:
    """The outcomes of `train_step`, added to the state and shown in their order, on a GPU two steps late."""

    def __init__(self, training: Training, shown: Progress, saver: Saver | None) -> None:
        """The outcomes of the steps of `training`, which `shown` is told of; `saver` knows of checkpoints."""
        self._lag = CUDA_LAG_STEPS if training.team.device.type == "cuda" else 0
        self._training, self._state, self._shown, self._saver = training, training.state, shown, saver
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()
        self._recent: deque[float] = deque(maxlen=DIVERGED_STEPS)
        self._stop_step: int | None = None
        self._is_told = False

    def put(self, outcome: Tensor) -> None:
        """Take the outcome of the step that `state` has come to, and read the one that is due.

        Raises:
            DivergedError: the step that is read was not taken, since its loss or gradients are not finite.
        """
        event = None
        if outcome.is_cuda:
            copied = torch.empty(outcome.shape, dtype=outcome.dtype, pin_memory=True)
            copied.copy_(outcome, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            outcome = copied
        self._pending.append((self._state.step, outcome, event))
        while len(self._pending) > self._lag:
            self._read()

    def read_all(self) -> None:
        """Read what is left, which waits for the device; raises `DivergedError`."""
        while self._pending:
            self._read()

    @property
    def says_stop(self) -> bool:
        """Whether to stop after this step: the same in every process, whichever of them was asked."""
        return self._stop_step is not None and self._state.step >= self._stop_step

    def _read(self) -> None:
        step, outcome, event = self._pending.popleft()
        if event is not None:
            event.synchronize()
        loss_sum, correct, count, wanting_stop, bad = outcome.tolist()
        loss = loss_sum / max(count, 1)
        if bad:
            if self._saver is not None:
                self._saver.wait()  # for the checkpoint that is being written, which the message counts
            kept = "; the checkpoints before are kept" * (self._saver is not None and self._saver.last is not None)
            raise DivergedError(
                f"expected a finite loss and gradients, got a loss of {loss:g} at step {step}, in epoch "
                f"{self._state.epoch}, which was not taken{kept}; {advice(self._training.net)}"
            )
        self._state.sums = [a + b for a, b in zip(self._state.sums, (loss_sum, correct, count), strict=True)]
        self._warn_if_diverged(step, loss)
        if wanting_stop and self._stop_step is None:
            self._stop_step = step + self._lag
        share = self._state.loading_seconds / max(self._state.train_seconds, 1e-9)
        self._shown.step(step, self._state.sums, min(share, 1.0))

    def _warn_if_diverged(self, step: int, loss: float) -> None:
        """Tell once if the loss is far above that of guessing, from which a run seldom comes back."""
        self._recent.append(loss)
        guessing = math.log(max(len(self._training.data.classes), 2))
        mean = sum(self._recent) / DIVERGED_STEPS
        if len(self._recent) == DIVERGED_STEPS and mean > DIVERGED_FACTOR * guessing and not self._is_told:
            self._is_told = True
            self._shown.say(
                f"the loss is {mean:.3g} over the last {DIVERGED_STEPS} steps, at step {step}, and guessing has "
                f"{guessing:.3g}: training diverges; {advice(self._training.net)}"
            )
