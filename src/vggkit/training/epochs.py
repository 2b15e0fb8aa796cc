"""The epochs of a run, from wherever it stands: steps, evaluations, checkpoints in between."""

import math
import time
from collections.abc import Callable, Iterator

from vggkit.data.feed import Batch
from vggkit.engines import waiting
from vggkit.engines.accelerate import accelerate
from vggkit.errors import DivergedError
from vggkit.training.checkpoint import Saver
from vggkit.training.evaluate import evaluate
from vggkit.training.outcomes import Outcomes
from vggkit.training.progress import Progress
from vggkit.training.run_state import EpochMetrics, RunState
from vggkit.training.start import advice, learning_part
from vggkit.training.step import Training, make_step
from vggkit.training.stopping import StopFlag


def train_epochs(
    training: Training, shown: Progress, stop: StopFlag, saver: Saver | None, save: Callable[[], None]
) -> bool:
    """Train from where `training.state` is, and return whether the run came to its end.

    Args:
        training: is trained.
        shown: is told of every step and epoch.
        stop: says when to end early.
        saver: says when a checkpoint is due; None in a process that writes none.
        save: begins to write a checkpoint.

    Raises:
        DivergedError: a loss, a gradient or an output is not finite.
    """
    recipe, team, data, state = training.recipe, training.team, training.data, training.state
    outcomes, lap = Outcomes(training, shown, saver), _stopwatch()
    step, num_bad = None, len(data.bad_images)
    while state.epoch <= recipe.epochs:
        learning_part(training.net, only_last=state.epoch <= recipe.head_epochs)
        if step is None or state.epoch == recipe.head_epochs + 1:
            fast = accelerate(training.net, training.engine, recompute=recipe.recompute)
            net = team.wrapped(fast, recipe.compression)
            step = make_step(training, net)
        accuracies = [metrics.test_accuracy for metrics in state.history]
        state.elapsed_seconds += lap()  # of what came since the last evaluation, such as drawing the curves
        for batch in _waited_for(data.train.batches(state.epoch, state.epoch_steps), state):
            learning_rate = recipe.learning_rate_at(state.step, training.steps_per_epoch, accuracies)
            with waiting.watched("step", batch.size, team.device.type):
                outcome = step(batch, learning_rate, stop.signal_name is not None)
            state.step += 1
            state.epoch_steps += 1
            # Before the outcome, which is shown with the share of loading; waiting for it counts to the next step.
            _count_seconds(state, lap())
            outcomes.put(outcome)
            if outcomes.says_stop:
                return False
            if saver is not None and saver.is_due and state.epoch_steps < training.steps_per_epoch:
                outcomes.read_all()
                save()
        outcomes.read_all()  # waits for the device: the only time in an epoch
        _count_seconds(state, lap())
        measured = evaluate(net, data.held_out, data.preprocessing, team, stop)
        if measured is None:
            return False
        accuracy, loss = measured
        state.elapsed_seconds += lap()
        is_best = data.held_out_name == "validation" and accuracy > max(accuracies, default=-1.0)
        if is_best:
            state.best_step = state.step
        shown.epoch(_finish_epoch(training, accuracy, loss, accuracies))
        if len(data.bad_images) > num_bad:
            num_bad = len(data.bad_images)
            shown.say(named(data.bad_images))
        if is_best or (saver is not None and saver.is_due):  # with the evaluation in it, which comes with this step
            save()
        if is_best:
            team.wait()  # for the leader, who has waited for the checkpoint before: on a slow disk that takes long
    return True


def _finish_epoch(training: Training, accuracy: float, loss: float, accuracies: list[float]) -> EpochMetrics:
    """Add the epoch that has ended with this evaluation to the history, and bring the state to the next one."""
    state, recipe = training.state, training.recipe
    if not math.isfinite(accuracy + loss):
        raise DivergedError(f"expected finite outputs, got others after step {state.step}; {advice(training.net)}")
    loss_sum, correct, count = state.sums
    metrics = EpochMetrics(
        epoch=state.epoch,
        step=state.step,
        train_loss=loss_sum / max(count, 1),
        train_accuracy=correct / max(count, 1),
        test_accuracy=accuracy,
        learning_rate=recipe.learning_rate_at(state.step - 1, training.steps_per_epoch, accuracies),
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
    """A function that returns the seconds since it was last called."""
    mark = time.perf_counter()

    def lap() -> float:
        nonlocal mark
        before, mark = mark, time.perf_counter()
        return mark - before

    return lap


def _count_seconds(state: RunState, seconds: float) -> None:
    state.train_seconds += seconds
    state.elapsed_seconds += seconds


def _waited_for(batches: Iterator[Batch], state: RunState) -> Iterator[Batch]:
    """`batches`, with the time that each one takes to come added to `state`."""
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        state.loading_seconds += time.perf_counter() - start
        if batch is None:
            return
        yield batch


def named(bad_images: dict[str, str]) -> str:
    """A line on the images that were skipped."""
    first = "; ".join(f"{name}: {reason}" for name, reason in list(bad_images.items())[:3])
    return f"skipped {len(bad_images):,} bad images so far: {first}{'; ...' if len(bad_images) > 3 else ''}"
