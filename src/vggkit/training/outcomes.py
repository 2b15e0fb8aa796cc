"""What steps came to, read from the device without making it wait."""

from collections import deque

import torch
from torch import Tensor

from vggkit.errors import DivergedError
from vggkit.training.progress import Progress
from vggkit.training.run_state import RunState

CUDA_LAG_STEPS = 2
"""Steps that a GPU is given ahead of the one whose outcome is read."""


class Outcomes:
    """The outcomes of `train_step`, added to the state and shown in their order, on a GPU two steps late."""

    def __init__(self, device: torch.device, state: RunState, shown: Progress) -> None:
        self._lag = CUDA_LAG_STEPS if device.type == "cuda" else 0
        self._state, self._shown = state, shown
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()
        self._stop_step: int | None = None

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
        if bad:
            raise DivergedError(
                f"expected a finite loss and gradients, got a loss of {loss_sum / max(count, 1):g} at step {step}, in "
                f"epoch {self._state.epoch}, which was not taken; the checkpoints before are kept; try a lower "
                "--learning-rate or --architecture with _bn"
            )
        self._state.sums = [a + b for a, b in zip(self._state.sums, (loss_sum, correct, count), strict=True)]
        if wanting_stop and self._stop_step is None:
            self._stop_step = step + self._lag
        share = self._state.loading_seconds / max(self._state.train_seconds, 1e-9)
        self._shown.step(step, self._state.sums, min(share, 1.0))
