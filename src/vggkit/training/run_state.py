"""Where a run stands: what a checkpoint holds beside tensors."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from vggkit.errors import CheckpointError


@dataclass(frozen=True)
class EpochMetrics:
    """What one epoch came to."""

    epoch: int
    """Counted from 1."""
    step: int
    """Optimizer steps since the start of the run."""
    train_loss: float
    """Mean over the epoch's images, as they came: augmented, with dropout, while the weights moved."""
    train_accuracy: float
    """Top-1, over the same."""
    test_accuracy: float
    """Top-1 on the test set, or on the images kept out with `validation`, after the epoch."""
    learning_rate: float
    """Of the epoch's last step."""
    examples_per_second: float
    """Training images over the wall time of the epoch's training part, data included."""
    train_seconds: float
    """That wall time."""
    loading_seconds: float
    """Of that, the time in which training waited for images."""
    elapsed_seconds: float
    """Wall time of the run so far, evaluation included, without the time between a stop and a resume."""
    test_loss: float | None = None
    """Mean cross-entropy over the images of `test_accuracy`; None in a run that version 0.4 began."""


def overall_speed(epochs: Iterable[Mapping[str, Any]]) -> float:
    """Training images over the wall time of the training parts of `epochs`, at least one, data included."""
    parts = [(epoch["examples_per_second"] * epoch["train_seconds"], epoch["train_seconds"]) for epoch in epochs]
    return float(sum(examples for examples, _ in parts) / sum(seconds for _, seconds in parts))


@dataclass
class RunState:
    """Where a run stands; with the weights and the optimizer it decides the rest."""

    recipe: dict[str, Any]
    facts: dict[str, Any]
    """What the run took from its data, and what it was measured on."""
    step: int = 0
    """Steps taken since the start of the run."""
    epoch: int = 1
    """The one that goes on."""
    epoch_steps: int = 0
    """Steps of it that are taken: the position in the order of the images."""
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Of the epoch so far: loss x images, correct, images."""
    train_seconds: float = 0.0
    """Wall time of the epoch's training so far."""
    loading_seconds: float = 0.0
    """Of that, the time spent waiting for images."""
    elapsed_seconds: float = 0.0
    """Wall time of the run so far."""
    best_step: int | None = None
    """Of the best evaluation, where that is on a validation set."""
    history: list[EpochMetrics] = field(default_factory=list)
    """Of the finished epochs."""

    def add_training_time(self, seconds: float) -> None:
        """Count wall time of training."""
        self.train_seconds += seconds
        self.elapsed_seconds += seconds

    def to_json(self) -> bytes:
        """This state as JSON; a float comes back as the same bits."""
        return json.dumps(asdict(self), indent=1, allow_nan=False).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "RunState":
        """The state that `to_json` wrote, whose bytes a checkpoint's sums vouch for; raises `CheckpointError`."""
        try:
            values: dict[str, Any] = json.loads(content)
            history = [EpochMetrics(**metrics) for metrics in values.pop("history")]
            state = cls(**values, history=history)
            told = [
                (getattr(part, name), kind)
                for part in (state, *history)
                for name, kind in get_type_hints(type(part)).items()
            ]
            told += [(state.facts.get(name), kind) for name, kind in _FACTS.items()]
            if all(_is(value, kind) for value, kind in told) and all(
                known.keys() in ({"epoch", "sum"}, set()) for known in (state.facts.get("content") or {}).values()
            ):
                return state
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            pass
        raise CheckpointError(f"expected the state of a run as JSON, got {content[:60]!r}")


_FACTS = {
    "fingerprint": str,
    "preprocessing": str,
    "color_axes": list[list[float]],
    "stamp": str | None,
    "content": dict[str, dict[str, int]] | None,
}
"""The facts that a resumed run takes over; those without a value are missing in older runs."""


def _is(value: Any, kind: Any) -> bool:
    """Whether `value`, out of JSON, is of `kind`; a number must be finite."""
    outer, inner = get_origin(kind), get_args(kind)
    if outer is UnionType:
        return any(_is(value, each) for each in inner)
    if outer in (list, dict):
        items = value.values() if isinstance(value, dict) else value
        return isinstance(value, outer) and all(_is(item, inner[-1]) for item in items)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return kind is Any or type(value) is kind
