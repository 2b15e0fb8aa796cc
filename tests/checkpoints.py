"""A tiny run's parts, for tests that break its checkpoints."""

from dataclasses import asdict, replace
from types import SimpleNamespace

import torch

from vggkit import Recipe, vgg
from vggkit.data.preprocessing import Preprocessing
from vggkit.training.checkpoint import snapshot, write_checkpoint
from vggkit.training.run_state import EpochMetrics, RunState
from vggkit.training.step import make_optimizer, train_step

FACTS = {"fingerprint": "f", "preprocessing": Preprocessing(4, 1, (0.0,), (1.0,)).to_json(), "color_axes": []}
RECIPE = replace(
    Recipe.named("quick"), architecture="1x2_bn", head="flatten", image_size=4, dropout=0.0, momentum=0.9, nesterov=True,
    optimizer="sgd", learning_rate=0.1, epochs=3,
)  # fmt: skip


def parts(recipe=RECIPE, steps=1, seed=0, **options):
    """What a checkpoint holds of a run after `steps`, in epochs of 2 steps: its network, optimizer and state."""
    torch.manual_seed(seed)
    net = vgg(recipe.architecture, image_size=4, hidden=recipe.hidden, dropout=0.0, **options)
    net = net.to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(recipe, net)
    for step in range(steps):
        one_step(SimpleNamespace(net=net, optimizer=optimizer), step)
    history = [
        EpochMetrics(epoch, 2 * epoch, 1.5, 0.5, 0.25, 0.1, 100.0, 1.0, 0.5, 2.0 * epoch)
        for epoch in range(1, steps // 2 + 1)
    ]
    state = RunState(asdict(recipe), FACTS, steps, len(history) + 1, steps % 2, [1.0, 1.0, 2.0 * (steps % 2)])
    state.history = history
    return SimpleNamespace(net=net, result=net, optimizer=optimizer, state=state, metadata={})


def one_step(run, step):
    draws = torch.Generator().manual_seed(step)
    x, labels = torch.rand((6, 1, 4, 4), generator=draws), torch.randint(10, (6,), generator=draws)
    return train_step(run.net, run.optimizer, x.contiguous(memory_format=torch.channels_last), labels, 0.1)


def files_of(run, metrics=b'{"event": "start"}\n'):
    return {name: b"".join(pieces) for name, pieces in snapshot(run, metrics)().items()}


def write(run, step, files):
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_bytes(files["metrics.jsonl"])
    return write_checkpoint(run, step, {name: [content] for name, content in files.items()})


def tensors_of(run):
    """All that a step reads and writes, by name."""
    found = dict(run.net.state_dict())
    for name, parameter in run.net.named_parameters():
        remembered = run.optimizer.state.get(parameter, {})
        found |= {f"{name} {key}": value for key, value in remembered.items() if isinstance(value, torch.Tensor)}
    return found


def equal_bits(one, other):
    """Whether tensors by name have the same names, types, strides and bits."""
    return one.keys() == other.keys() and all(
        (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        and torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
        for a, b in ((one[name], other[name]) for name in one)
    )
