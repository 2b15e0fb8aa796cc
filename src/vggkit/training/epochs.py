"""The epochs of a run: steps, evaluations and checkpoints."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vggkit.data.feed import Batch
from vggkit.engines import waiting
from vggkit.engines.accelerate import accelerate
from vggkit.errors import DivergedError
from vggkit.training.checkpoint import Saver
from vggkit.training.evaluate import evaluate
from vggkit.training.progress import Progress
from vggkit.training.run_state import EpochMetrics, RunState
from vggkit.training.start import advice, set_trainable
from vggkit.training.step import Training, make_averaging, make_step
from vggkit.training.stopping import StopFlag

CUDA_LAG_STEPS = 2  # steps that are queued on a GPU after the one whose outcome is read
CONFUSION_CLASSES = 50  # the confusion matrix is logged for up to this many classes
DIVERGED_STEPS, DIVERGED_FACTOR = 10, 5
"""A mean loss over 10 steps of more than 5 times the loss of guessing is reported as diverging."""


def train_epochs(
    training: Training, progress: Progress, stop: StopFlag, saver: Saver, until_epoch: int | None = None
) -> bool:
    """Train on from `training.state` up to `until_epoch`, by default the recipe's last, unless `stop` is set.

    Returns whether the run is finished. Raises `DivergedError` if a loss, a gradient or an output is not finite.
    """
    recipe, team, data, state = training.recipe, training.team, training.data, training.state
    outcomes, lap = _Outcomes(training, progress, saver), _stopwatch()
    step, num_bad = None, len(data.bad_images)
    average = accelerate(training.average, training.engine) if training.average is not None else None
    update_average = make_averaging(training)
    while state.epoch <= min(until_epoch or recipe.epochs, recipe.epochs):
        set_trainable(training.net, only_last=state.epoch <= recipe.head_epochs)
        if step is None or state.epoch == recipe.head_epochs + 1:
            net = team.data_parallel(
                accelerate(training.net, training.engine, recompute=recipe.recompute), recipe.compression
            )
            step = make_step(training, net)
        accuracies = [metrics.test_accuracy for metrics in state.history]
        state.elapsed_seconds += lap()  # since the last evaluation, such as drawing the curves
        for batch in _time_loading(data.train.batches(state.epoch, state.epoch_steps), state):
            learning_rate = recipe.learning_rate_at(state.step, training.steps_per_epoch, accuracies)
            with waiting.watched("step", batch.size, team.device.type):
                outcome = step(batch, learning_rate, stop.signal_name is not None)
            update_average()
            state.step += 1
            state.epoch_steps += 1
            # Before the outcome, whose display includes the share of loading.
            state.add_training_time(lap())
            outcomes.add(outcome)
            if outcomes.should_stop:
                return False
            if saver.is_due and state.epoch_steps < training.steps_per_epoch:
                outcomes.read_all()
                saver.save(training)
        outcomes.read_all()  # the only wait for the device in an epoch
        state.add_training_time(lap())
        if training.average is not None:
            team.broadcast_(training.average.buffers())
        confusion = _new_confusion(training)
        evaluation = evaluate(
            net if average is None else average, data.held_out, data.preprocessing, team, stop, confusion
        )
        if evaluation is None:
            return False
        accuracy, loss = evaluation
        state.elapsed_seconds += lap()
        is_best = data.held_out_name == "validation" and accuracy > max(accuracies, default=-1.0)
        if is_best:
            state.best_step = state.step
        progress.epoch(_finish_epoch(training, accuracy, loss, accuracies), confusion)
        if len(data.bad_images) > num_bad:
            num_bad = len(data.bad_images)
            progress.say(bad_images_line(data.bad_images))
        if is_best or saver.is_due:  # after the evaluation, to include it
            saver.save(training)
        if is_best:
            team.wait()  # the leader may still wait for a slow disk
    return state.epoch > recipe.epochs


def _new_confusion(training: Training) -> Tensor | None:
    """Zeros for `evaluate`; None with too many classes."""
    classes = len(training.data.classes)
    return torch.zeros(classes, classes, device=training.team.device) if classes <= CONFUSION_CLASSES else None


class _Outcomes:
    """Adds the outcomes of `train_step` to the state and shows them, in order; on a GPU two steps late."""

    def __init__(self, training: Training, progress: Progress, saver: Saver) -> None:
        self._lag = CUDA_LAG_STEPS if training.team.device.type == "cuda" else 0
        self._training, self._state, self._progress, self._saver = training, training.state, progress, saver
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()
        self._recent: deque[float] = deque(maxlen=DIVERGED_STEPS)
        self._stop_step: int | None = None
        self._has_warned = False

    def add(self, outcome: Tensor) -> None:
        """Queue the outcome of the latest step, and read the one that is due; raises `DivergedError`."""
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
        """Read all outcomes, which waits for the device; raises `DivergedError`."""
        while self._pending:
            self._read()

    @property
    def should_stop(self) -> bool:
        """Whether to stop after this step; the same in every process."""
        return self._stop_step is not None and self._state.step >= self._stop_step

    def _read(self) -> None:
        step, outcome, event = self._pending.popleft()
        if event is not None:
            event.synchronize()
        loss_sum, correct, count, num_stopping, bad = outcome.tolist()
        loss = loss_sum / max(count, 1)
        if bad:
            self._saver.wait()  # the message depends on the checkpoint that is being written
            kept = "; the checkpoints before are kept" * (self._saver.last is not None)
            raise DivergedError(
                f"expected a finite loss and gradients, got a loss of {loss:g} at step {step}, in epoch "
                f"{self._state.epoch}, which was not taken{kept}; {advice(self._training.net)}"
            )
        self._state.sums = [a + b for a, b in zip(self._state.sums, (loss_sum, correct, count), strict=True)]
        self._warn_if_diverging(step, loss)
        if num_stopping and self._stop_step is None:
            self._stop_step = step + self._lag
        self._progress.step(step)

    def _warn_if_diverging(self, step: int, loss: float) -> None:
        """Warn once if the loss is far above that of guessing, from which a run seldom recovers."""
        self._recent.append(loss)
        guessing = math.log(max(len(self._training.data.classes), 2))
        mean = sum(self._recent) / DIVERGED_STEPS
        if len(self._recent) == DIVERGED_STEPS and mean > DIVERGED_FACTOR * guessing and not self._has_warned:
            self._has_warned = True
            self._progress.say(
                f"the loss is {mean:.3g} over the last {DIVERGED_STEPS} steps, at step {step}, and guessing has "
                f"{guessing:.3g}: training diverges; {advice(self._training.net)}"
            )


def _finish_epoch(training: Training, accuracy: float, loss: float, accuracies: list[float]) -> EpochMetrics:
    """Add the finished epoch to the history, and advance the state to the next one."""
    state = training.state
    if not math.isfinite(accuracy + loss):
        raise DivergedError(f"expected finite outputs, got others after step {state.step}; {advice(training.net)}")
    loss_sum, correct, count = state.sums
    metrics = EpochMetrics(
        epoch=state.epoch,
        step=state.step,
        train_loss=loss_sum / max(count, 1),
        train_accuracy=correct / max(count, 1),
        test_accuracy=accuracy,
        learning_rate=training.recipe.learning_rate_at(state.step - 1, training.steps_per_epoch, accuracies),
        examples_per_second=count / state.train_seconds,
        train_seconds=state.train_seconds,
        loading_seconds=state.loading_seconds,
        elapsed_seconds=state.elapsed_seconds,
        test_loss=loss,
    )
    state.history.append(metrics)
    state.epoch, state.epoch_steps, state.sums = state.epoch + 1, 0, [0.0, 0.0, 0.0]
    state.train_seconds = state.loading_seconds = 0.0
    return metrics


def _stopwatch() -> Callable[[], float]:
    """A function that returns the seconds since its last call."""
    mark = time.perf_counter()

    def lap() -> float:
        nonlocal mark
        last, mark = mark, time.perf_counter()
        return mark - last

    return lap


def _time_loading(batches: Iterator[Batch], state: RunState) -> Iterator[Batch]:
    """`batches`; adds the time that each takes to arrive to `state.loading_seconds`."""
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        state.loading_seconds += time.perf_counter() - start
        if batch is None:
            return
        yield batch


def bad_images_line(bad_images: dict[str, str]) -> str:
    """A line on the skipped images, for the user."""
    first = "; ".join(f"{name}: {reason}" for name, reason in list(bad_images.items())[:3])
    more = "; ..." * (len(bad_images) > 3)
    return f"skipped {len(bad_images):,} bad image{'s' * (len(bad_images) != 1)} so far: {first}{more}"
