"""One step of training as one function, and the optimizer that takes it."""

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
"""Takes a batch, the learning rate, and whether this process was asked to stop; returns what `train_step` does."""


@dataclass(frozen=True)
class Training:
    """What a run trains, and with what. Its steps change `net`, `optimizer` and `state`."""

    recipe: Recipe
    team: Team
    data: RunData
    net: AnyNetwork
    optimizer: torch.optim.Optimizer
    state: RunState
    engine: EngineName = "fast"
    average: AnyNetwork | None = None
    """`net` with averaged weights, if the recipe asks for an average."""

    @property
    def result(self) -> AnyNetwork:
        """What is evaluated and saved: the average, if there is one."""
        return self.net if self.average is None else self.average

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch, of which the last one may have fewer images."""
        return -(-self.data.train.num_images // self.recipe.batch_size)

    @property
    def metadata(self) -> dict[str, str]:
        """What the run's weight files say beside the architecture."""
        return {"classes": json.dumps(self.data.classes), "preprocessing": self.data.preprocessing.to_json()}


def make_step(training: Training, net: nn.Module) -> Step:
    """All that one step does, from the images of a batch to the updated weights, as one function.

    Every random draw of a step is decided by the recipe's seed and `training.state.step`.

    Args:
        training: whose optimizer takes the step.
        net: `training.net`, as the team wrapped it.
    """
    recipe, team, state = training.recipe, training.team, training.state
    draws = torch.Generator(team.device)
    may_capture = team.device.type == "cuda" and team.size == 1 and training.engine == "fast"

    def take(batch: Batch, learning_rate: float | Tensor, wants_stop: bool | Tensor) -> Tensor:
        x = augmented_input(batch, recipe, training.data, draws)
        shares = cutmix(x, recipe.cutmix, draws, batch.part, batch.size) if recipe.cutmix else None
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
        is_whole = batch.size == recipe.batch_size  # the last batch of an epoch may be smaller, and is taken as it is
        if may_capture and is_whole and captured is None:
            begin = time.perf_counter()
            captured = _captured(take, batch, net, training.optimizer, draws)
            state.train_seconds -= time.perf_counter() - begin  # the figure is that of training
        draws.manual_seed(derived_seed(recipe.seed, "augmentation", state.step))
        _seed_dropout(team.device, derived_seed(recipe.seed, "dropout", state.step, team.rank))
        way = captured if captured is not None and is_whole else take
        return way(batch, learning_rate, wants_stop)

    return step


def _captured(
    take: Callable[[Batch, Tensor, Tensor], Tensor],
    batch: Batch,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    draws: torch.Generator,
) -> Step:
    """`take` as a CUDA graph, for batches of the size of `batch`; it reads tensors of its own, which are filled."""
    example = replace(batch, images=batch.images.clone(), labels=batch.labels.clone())
    rate, stop = torch.zeros((2, 1), device=batch.images.device).unbind()
    replay = gpu.capture_step(lambda: take(example, rate[0], stop[0]), net, optimizer, [draws])

    def step(batch: Batch, learning_rate: float, wants_stop: bool) -> Tensor:
        example.images.copy_(batch.images)
        example.labels.copy_(batch.labels)
        rate.fill_(learning_rate)
        stop.fill_(float(wants_stop))
        return replay()

    return step


def augmented_input(batch: Batch, recipe: Recipe, data: RunData, draws: torch.Generator) -> Tensor:
    """The images of `batch` as the network takes them, augmented as `recipe` says: (images, channels, height, width).

    Args:
        batch: of the training images.
        recipe: says what is changed at random.
        data: says how images are normalised, and along which axes their colours vary.
        draws: random numbers for the whole batch, of which other processes may have other parts.
    """
    augment, preprocessing = Augmentation(recipe.flip, recipe.translate, recipe.erase), data.preprocessing
    x = network_input(data.train, augment(batch.images, draws, batch.part, batch.size), preprocessing)
    if recipe.color_shift:
        axes = _constant(data.color_axes, x.device)
        amounts = torch.randn(batch.size, len(axes), generator=draws, device=x.device)[batch.part]
        shift = recipe.color_shift * amounts @ axes
        shift = (shift.flip(1) if preprocessing.order == "bgr" else shift) * preprocessing.scale
        x += (shift / _constant(preprocessing.std, x.device)).view(*shift.shape, 1, 1)
    return x


@functools.cache
def _constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Numbers on a device, where a captured step finds them; to copy them each time would wait for it."""
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

    The loss is the mean over the whole batch, of which each process of the team has a part: any number of
    processes takes the same step. Where the loss or the norm of the gradients is not finite, nothing is updated.

    Args:
        net: in training mode; as `team` wrapped it.
        optimizer: of its parameters, fused.
        x: (images, channels, image_size, image_size), this process's part.
        labels: int64 (images,); -100 for an image that does not count.
        learning_rate: of this step.
        label_smoothing: share of the target that goes to all classes alike.
        team: the processes that take the step together; this one alone if not given.
        batch_size: images of the whole batch; those of `x` if not given.
        wants_stop: whether this process was asked to stop.
        shares: of the target of each image that are the label of the image before it: (images,), from `cutmix`.

    Returns:
        float32 (5,) on the device, over the whole batch: loss x images, correct, images, processes that want to stop,
        and processes whose loss or gradients were not finite.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    with gpu.half(x):
        logits = net(x)
        loss_sum = _loss_sum(logits, labels, label_smoothing, shares)
    optimizer.zero_grad()  # not before: what the forward pass makes would break up the room that these need again
    team_size = team.size if team is not None else 1
    (loss_sum * (team_size / (batch_size or len(labels)))).backward()  # processes' gradients are averaged
    with torch.no_grad():
        norm = get_total_norm([p.grad for p in net.parameters() if p.grad is not None])
        correct, count = (logits.argmax(dim=1) == labels).sum(), (labels != IGNORED_LABEL).sum()
        bad = ~(norm.isfinite() & loss_sum.isfinite())
        stop = torch.full((), float(wants_stop), device=x.device) if isinstance(wants_stop, bool) else wants_stop
        outcome = torch.stack([value.detach().float() for value in (loss_sum, correct, count, stop, bad)])
        if team is not None:
            team.sum_(outcome)
        if x.is_cuda:
            optimizer.found_inf = outcome[4].clamp(max=1)  # type: ignore[attr-defined]  # fused ones look at it
            optimizer.step()
        elif not outcome[4]:
            optimizer.step()
    return outcome


def make_averaging(training: Training) -> Callable[[], None]:
    """What brings `training.average` up to date behind a step, before the state counts it.

    Batch norm's moments are averaged as the weights are. Until as many steps are taken as it is to last, the average
    is the mean of all of them.
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
    """The cross-entropy summed over images, of whose targets `shares` are the label of the image before each."""
    entropy = functools.partial(F.cross_entropy, ignore_index=IGNORED_LABEL, label_smoothing=label_smoothing)
    if shares is None:
        return entropy(logits, labels, reduction="sum")
    own, other = (entropy(logits, some, reduction="none") for some in (labels, labels.roll(1)))
    return own.lerp(other, shares.to(own.dtype)).sum()


def make_optimizer(recipe: Recipe, net: AnyNetwork) -> torch.optim.Optimizer:
    """The optimizer of `recipe` for `net`; only the weights of convolutions and fully connected layers decay."""
    head = f"{last_layer(net)}."
    groups = []
    # What learns from later on has a group of its own: torch's fused SGD takes momenta of all of a group or of none.
    for is_head in (False, True) if recipe.head_epochs else (None,):
        some = [p for name, p in net.named_parameters() if is_head in (None, name.startswith(head))]
        groups += [
            {"params": [p for p in some if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in some if p.ndim <= 1], "weight_decay": 0.0},
        ]
    if recipe.optimizer == "adamw":
        on_gpu = next(net.parameters()).is_cuda
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True, capturable=on_gpu)
    return torch.optim.SGD(
        groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True
    )
