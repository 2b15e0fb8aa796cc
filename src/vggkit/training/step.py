"""One step of training as one function, its optimizer, and the averaging of weights."""

import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import get_total_norm

from vggkit.data.feed import Batch, network_input
from vggkit.data.loading import Augmentation, cutmix, derived_seed
from vggkit.data.samples import IGNORED_LABEL
from vggkit.engines import gpu
from vggkit.engines.accelerate import EngineName
from vggkit.training.distributed import Team
from vggkit.training.recipe import Recipe
from vggkit.training.run_data import RunData
from vggkit.training.run_state import RunState
from vggkit.weights.files import AnyNetwork
from vggkit.weights.warm_start import last_layer

Step = Callable[[Batch, float, bool], Tensor]
"""From a batch, the learning rate and whether this process was asked to stop to the result of `train_step`."""


@dataclass(frozen=True)
class Training:
    """The parts of a training run. Steps change `net`, `optimizer` and `state`."""

    recipe: Recipe
    team: Team
    data: RunData
    net: AnyNetwork
    optimizer: torch.optim.Optimizer
    state: RunState
    engine: EngineName = "fast"
    average: AnyNetwork | None = None  # `net` with averaged weights, if the recipe has an average

    @property
    def result(self) -> AnyNetwork:
        """The network to evaluate and save: the average, if there is one."""
        return self.net if self.average is None else self.average

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch; the last one may have fewer images."""
        return -(-self.data.train.num_images // self.recipe.batch_size)

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the run's weight files beside the architecture."""
        return {"classes": json.dumps(self.data.classes), "preprocessing": self.data.preprocessing.to_json()}


def make_step(training: Training, net: nn.Module) -> Step:
    """A training step, from the images of a batch to the updated weights, as one function.

    `net` is `training.net` from `Team.data_parallel`. The recipe's seed and `training.state.step` determine every
    random draw.
    """
    recipe, team, state = training.recipe, training.team, training.state
    generator = torch.Generator(team.device)
    may_capture = team.device.type == "cuda" and team.size == 1 and training.engine == "fast"

    def run_step(batch: Batch, learning_rate: float | Tensor, wants_stop: bool | Tensor) -> Tensor:
        x = augmented_input(batch, recipe, training.data, generator)
        shares = cutmix(x, recipe.cutmix, generator, batch.part, batch.size) if recipe.cutmix else None
        return train_step(
            net,
            training.optimizer,
            x,
            batch.labels,
            learning_rate,
            recipe.label_smoothing,
            team=team,
            batch_size=batch.size,
            wants_stop=wants_stop,
            shares=shares,
        )

    captured: Step | None = None

    def step(batch: Batch, learning_rate: float, wants_stop: bool) -> Tensor:
        nonlocal captured
        is_whole = batch.size == recipe.batch_size  # the last batch of an epoch may be smaller
        if may_capture and is_whole and captured is None:
            begin = time.perf_counter()
            captured = _captured_step(run_step, batch, net, training.optimizer, generator)
            state.train_seconds -= time.perf_counter() - begin  # capturing is not training
        generator.manual_seed(derived_seed(recipe.seed, "augmentation", state.step))
        _seed_dropout(team.device, derived_seed(recipe.seed, "dropout", state.step, team.rank))
        function = captured if captured is not None and is_whole else run_step
        return function(batch, learning_rate, wants_stop)

    return step


def _captured_step(
    run_step: Callable[[Batch, Tensor, Tensor], Tensor],
    batch: Batch,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> Step:
    """`run_step` as a CUDA graph for batches of the size of `batch`, which are copied to the tensors it reads."""
    example = replace(batch, images=batch.images.clone(), labels=batch.labels.clone())
    rate, stop = torch.zeros((2, 1), device=batch.images.device).unbind()
    replay = gpu.capture_step(lambda: run_step(example, rate[0], stop[0]), net, optimizer, [generator])

    def step(batch: Batch, learning_rate: float, wants_stop: bool) -> Tensor:
        example.images.copy_(batch.images)
        example.labels.copy_(batch.labels)
        rate.fill_(learning_rate)
        stop.fill_(float(wants_stop))
        return replay()

    return step


def augmented_input(batch: Batch, recipe: Recipe, data: RunData, generator: torch.Generator) -> Tensor:
    """The network's input (images, channels, height, width) for a training `batch`, augmented as `recipe` says.

    `generator` draws for the whole batch, of which other processes may have other parts.
    """
    augment, preprocessing = Augmentation(recipe.flip, recipe.translate, recipe.erase), data.preprocessing
    x = network_input(data.train, augment(batch.images, generator, batch.part, batch.size), preprocessing)
    if recipe.color_shift:
        axes = _constant(data.color_axes, x.device)
        amounts = torch.randn(batch.size, len(axes), generator=generator, device=x.device)[batch.part]
        shift = recipe.color_shift * amounts @ axes
        shift = (shift.flip(1) if preprocessing.order == "bgr" else shift) * preprocessing.scale
        x += (shift / _constant(preprocessing.std, x.device)).view(*shift.shape, 1, 1)
    return x


@functools.cache
def _constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """A cached tensor on a device: a captured step needs it in place, and copying again would synchronise."""
    return torch.tensor(values, device=device)


def _seed_dropout(device: torch.device, seed: int) -> None:
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def train_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    labels: Tensor,
    learning_rate: float | Tensor,
    label_smoothing: float = 0.0,
    *,
    team: Team | None = None,
    batch_size: int | None = None,
    wants_stop: bool | Tensor = False,
    shares: Tensor | None = None,
) -> Tensor:
    """One step of `optimizer` on a batch, without waiting for the device.

    The loss is the mean over the whole batch, of which each process of the team has a part, so that any number of
    processes takes the same step. If the loss or the norm of the gradients is not finite, nothing is updated.

    Args:
        net: in training mode, from `Team.data_parallel`.
        optimizer: fused.
        x: (images, channels, image_size, image_size), this process's part of the batch.
        labels: int64 (images,); -100 for an image that does not count.
        learning_rate: for this step.
        label_smoothing: share of the target that is uniform over the classes.
        team: the processes that share the batch; this one alone by default.
        batch_size: images in the whole batch; those of `x` by default.
        wants_stop: whether this process was asked to stop.
        shares: (images,), the share of the target that is the previous image's label, from `cutmix`.

    Returns:
        float32 (5,) on the device, over the whole batch: loss x images, correct, images, processes asked to stop, and
        processes with a loss or gradients that are not finite.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    with gpu.half(x):
        logits = net(x)
        loss_sum = _loss_sum(logits, labels, label_smoothing, shares)
    optimizer.zero_grad()  # not earlier: activations would fragment the memory that gradients need
    team_size = team.size if team is not None else 1
    (loss_sum * (team_size / (batch_size or len(labels)))).backward()  # gradients are averaged over processes
    with torch.no_grad():
        norm = get_total_norm([p.grad for p in net.parameters() if p.grad is not None])
        correct, count = (logits.argmax(dim=1) == labels).sum(), (labels != IGNORED_LABEL).sum()
        bad = ~(norm.isfinite() & loss_sum.isfinite())
        stop = torch.full((), float(wants_stop), device=x.device) if isinstance(wants_stop, bool) else wants_stop
        outcome = torch.stack([value.detach().float() for value in (loss_sum, correct, count, stop, bad)])
        if team is not None:
            team.sum_(outcome)
        if x.is_cuda:
            optimizer.found_inf = outcome[4].clamp(max=1)  # type: ignore[attr-defined]  # read by fused optimizers
            optimizer.step()
        elif not outcome[4]:
            optimizer.step()
    return outcome


def make_averaging(training: Training) -> Callable[[], None]:
    """The function that updates `training.average` after a step, before the state counts it.

    Batch norm statistics are averaged like weights. Until the averaging time has passed, it is the mean of all steps.
    """
    if training.average is None:
        return lambda: None
    recipe, state = training.recipe, training.state
    duration = max(1.0, recipe.average * recipe.epochs * training.steps_per_epoch)
    pairs = list(zip(training.average.state_dict().values(), training.net.state_dict().values(), strict=True))
    weights = [pair for pair in pairs if pair[0].is_floating_point()]
    counts = [pair for pair in pairs if not pair[0].is_floating_point()]
    averages, values = ([pair[side] for pair in weights] for side in (0, 1))

    def update() -> None:
        torch._foreach_lerp_(averages, values, 1 / min(state.step + 1, duration))
        for average, count in counts:
            average.copy_(count)

    return update


def _loss_sum(logits: Tensor, labels: Tensor, label_smoothing: float, shares: Tensor | None) -> Tensor:
    """The cross-entropy summed over images; `shares` of the targets are the previous images' labels."""
    entropy = functools.partial(F.cross_entropy, ignore_index=IGNORED_LABEL, label_smoothing=label_smoothing)
    if shares is None:
        return entropy(logits, labels, reduction="sum")
    losses, previous = (entropy(logits, targets, reduction="none") for targets in (labels, labels.roll(1)))
    return losses.lerp(previous, shares.to(losses.dtype)).sum()


def make_optimizer(recipe: Recipe, net: AnyNetwork) -> torch.optim.Optimizer:
    """The optimizer of `recipe` for `net`; only the weights of convolutions and fully connected layers decay."""
    head = f"{last_layer(net)}."
    groups = []
    # Parameters that are unfrozen later are groups of their own: fused SGD needs momenta for all of a group or none.
    for is_head in (False, True) if recipe.head_epochs else (None,):
        parameters = [p for name, p in net.named_parameters() if is_head in (None, name.startswith(head))]
        groups += [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    if recipe.optimizer == "adamw":
        on_gpu = next(net.parameters()).is_cuda
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True, capturable=on_gpu)
    return torch.optim.SGD(
        groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True
    )
