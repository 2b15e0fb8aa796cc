"""The epochs of a run, from wherever it stands: steps, evaluations, checkpoints in between."""

import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vggkit.data.loading import Augmentation, derived_seed
from vggkit.errors import DivergedError
from vggkit.training.checkpoint import Saver
from vggkit.training.distributed import Team
from vggkit.training.evaluate import evaluate
from vggkit.training.feed import Batch, network_input
from vggkit.training.outcomes import Outcomes
from vggkit.training.progress import EpochMetrics, Progress
from vggkit.training.recipe import Recipe
from vggkit.training.run_data import RunData
from vggkit.training.run_state import RunState
from vggkit.training.start import learning_part
from vggkit.training.step import train_step
from vggkit.training.stopping import StopFlag
from vggkit.weights.files import AnyNetwork


def train_epochs(
    recipe: Recipe,
    team: Team,
    data: RunData,
    net: AnyNetwork,
    optimizer: torch.optim.Optimizer,
    state: RunState,
    shown: Progress,
    stop: StopFlag,
    saver: Saver | None,
    save: Callable[[], None],
) -> bool:
    """Train from where `state` is; whether to the end. What it changes is `net`, `optimizer` and `state`."""
    steps_per_epoch = shown.steps_per_epoch
    augment = Augmentation(recipe.flip, recipe.translate, recipe.erase)
    draws = torch.Generator(team.device)
    outcomes = Outcomes(team.device, state, shown)
    parallel, num_bad = None, len(data.bad_images)
    mark = time.perf_counter()
    while state.epoch <= recipe.epochs:
        learning_part(net, only_last=state.epoch <= recipe.head_epochs)
        if parallel is None or state.epoch == recipe.head_epochs + 1:
            parallel = team.wrapped(net, recipe.compression)
        accuracies = [metrics.test_accuracy for metrics in state.history]
        for batch in _waited_for(data.train.batches(state.epoch, state.epoch_steps), state):
            draws.manual_seed(derived_seed(recipe.seed, "augmentation", state.step))
            _seed_dropout(team.device, derived_seed(recipe.seed, "dropout", state.step, team.rank))
            x = _network_input(augment(batch.images, draws, batch.part, batch.size), batch, recipe, data, draws)
            outcome = train_step(
                parallel,
                optimizer,
                x,
                batch.labels,
                recipe.learning_rate_at(state.step, steps_per_epoch, accuracies),
                recipe.label_smoothing,
                team=team,
                batch_size=batch.size,
                wants_stop=stop.signal_name is not None,
            )
            state.step += 1
            state.epoch_steps += 1
            # Before the outcome, which is shown with the share of loading; waiting for it counts to the next step.
            now = time.perf_counter()
            state.train_seconds += now - mark
            state.elapsed_seconds += now - mark
            mark = now
            outcomes.put(outcome)
            if outcomes.says_stop:
                return False
            if saver is not None and saver.is_due and state.epoch_steps < steps_per_epoch:
                outcomes.read_all()
                save()
        outcomes.read_all()  # waits for the device: the only time in an epoch
        now = time.perf_counter()
        state.train_seconds += now - mark
        accuracy = evaluate(parallel, data.held_out, data.preprocessing, team, stop)
        if accuracy is None:
            return False
        state.elapsed_seconds += time.perf_counter() - mark
        mark = time.perf_counter()
        loss_sum, correct, count = state.sums
        if not math.isfinite(accuracy):
            raise DivergedError(
                f"expected finite outputs, got others after step {state.step}, "
                f"try a --learning-rate below {recipe.learning_rate:g} or --architecture with _bn"
            )
        is_best = data.held_out_name == "validation" and accuracy > max(accuracies, default=-1.0)
        state.history.append(
            EpochMetrics(
                epoch=state.epoch,
                step=state.step,
                train_loss=loss_sum / max(count, 1),
                train_accuracy=correct / max(count, 1),
                test_accuracy=accuracy,
                learning_rate=recipe.learning_rate_at(state.step - 1, steps_per_epoch, accuracies),
                examples_per_second=count / state.train_seconds,
                train_seconds=state.train_seconds,
                loading_seconds=state.loading_seconds,
                elapsed_seconds=state.elapsed_seconds,
            )
        )
        state.epoch, state.epoch_steps, state.sums = state.epoch + 1, 0, [0.0, 0.0, 0.0]
        state.train_seconds = state.loading_seconds = 0.0
        shown.epoch(state.history[-1])
        if len(data.bad_images) > num_bad:
            num_bad = len(data.bad_images)
            shown.say(named(data.bad_images))
        if is_best:
            state.best_step = state.step
        if is_best or (saver is not None and saver.is_due):  # with the evaluation in it, which comes with this step
            save()
        if is_best:
            team.wait()  # for the leader, who has waited for the checkpoint before: on a slow disk that takes long
    return True


def _network_input(images: Tensor, batch: Batch, recipe: Recipe, data: RunData, draws: torch.Generator) -> Tensor:
    """Augmented images as the network takes them, with their colours shifted if the recipe says so."""
    preprocessing = data.preprocessing
    x = network_input(data.train, images, preprocessing)
    if recipe.color_shift:
        axes = torch.tensor(data.color_axes, device=x.device)
        amounts = torch.randn(batch.size, len(axes), generator=draws, device=x.device)[batch.part]
        shift = recipe.color_shift * amounts @ axes
        shift = (shift.flip(1) if preprocessing.order == "bgr" else shift) * preprocessing.scale
        x += (shift / torch.tensor(preprocessing.std, device=x.device)).view(*shift.shape, 1, 1)
    return x


def _waited_for(batches: Iterator[Batch], state: RunState) -> Iterator[Batch]:
    """`batches`, with the time that each one takes to come added to `state`."""
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        state.loading_seconds += time.perf_counter() - start
        if batch is None:
            return
        yield batch


def _seed_dropout(device: torch.device, seed: int) -> None:
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def named(bad_images: dict[str, str]) -> str:
    """A line on the images that were skipped."""
    first = "; ".join(f"{name}: {reason}" for name, reason in list(bad_images.items())[:3])
    return f"skipped {len(bad_images):,} bad images so far: {first}{'; ...' if len(bad_images) > 3 else ''}"
