"""The state of a run that a checkpoint stores beside tensors."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from vggkit.errors import CheckpointError


@dataclass(frozen=True)
class EpochMetrics:
    """The results of one epoch."""

    epoch: int
    """Counted from 1."""
    step: int
    """Optimizer steps since the start of the run."""
    train_loss: float
    """Mean over the epoch's training steps, with augmentation and dropout."""
    train_accuracy: float
    """Top-1, over the same."""
    test_accuracy: float
    """Top-1 on the test or validation set, after the epoch."""
    learning_rate: float
    """Of the epoch's last step."""
    examples_per_second: float
    """Training images over `train_seconds`."""
    train_seconds: float
    """Wall time of the epoch's training part, data included."""
    loading_seconds: float
    """The part of it in which training waited for images."""
    elapsed_seconds: float
    """Wall time of the run so far, evaluation included, without the time between a stop and a resume."""
    test_loss: float | None = None
    """Mean cross-entropy over the images of `test_accuracy`; None in runs of version 0.4."""


def overall_speed(epochs: Iterable[Mapping[str, Any]]) -> float:
    """Training images over the wall time of training in `epochs`, at least one, data included."""
    parts = [(epoch["examples_per_second"] * epoch["train_seconds"], epoch["train_seconds"]) for epoch in epochs]
    return float(sum(examples for examples, _ in parts) / sum(seconds for _, seconds in parts))


@dataclass
class RunState:
    """The state of a run, which with weights and optimizer determines the rest."""

    recipe: dict[str, Any]
    facts: dict[str, Any]  # facts on the data, see `RunData.facts`, and on hardware and software
    step: int = 0  # steps taken since the start of the run
    epoch: int = 1
    epoch_steps: int = 0  # steps taken in it
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Sums over the current epoch: loss x images, correct, images."""
    train_seconds: float = 0.0  # wall time of training in the current epoch
    loading_seconds: float = 0.0  # the part of it spent waiting for images
    elapsed_seconds: float = 0.0
    best_step: int | None = None  # the step of the best evaluation on a validation set
    history: list[EpochMetrics] = field(default_factory=list)

    def add_training_time(self, seconds: float) -> None:
        """Add wall time of training."""
        self.train_seconds += seconds
        self.elapsed_seconds += seconds

    def to_json(self) -> bytes:
        """This state as JSON, which preserves floats exactly."""
        return json.dumps(asdict(self), indent=1, allow_nan=False).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "RunState":
        """The state from `to_json`; raises `CheckpointError`."""
        try:
            values: dict[str, Any] = json.loads(content)
            history = [EpochMetrics(**metrics) for metrics in values.pop("history")]
            state = cls(**values, history=history)
            typed_values = [
                (getattr(part, name), kind)
                for part in (state, *history)
                for name, kind in get_type_hints(type(part)).items()
            ]
            typed_values += [(state.facts.get(name), kind) for name, kind in _FACTS.items()]
            if all(_has_type(value, kind) for value, kind in typed_values) and all(
                content.keys() in ({"epoch", "sum"}, set()) for content in (state.facts.get("content") or {}).values()
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
"""The facts that a resumed run reads, and their types; older runs lack those that may be None."""


def _has_type(value: Any, kind: Any) -> bool:
    """Whether a value from JSON is of the type `kind`; numbers must be finite."""
    outer, inner = get_origin(kind), get_args(kind)
    if outer is UnionType:
        return any(_has_type(value, alternative) for alternative in inner)
    if outer in (list, dict):
        items = value.values() if isinstance(value, dict) else value
        return isinstance(value, outer) and all(_has_type(item, inner[-1]) for item in items)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return kind is Any or type(value) is kind
