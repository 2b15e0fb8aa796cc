"""The result of `train`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggkit.design.table import Table
from vggkit.inference.evaluate import evaluate
from vggkit.inference.evaluation import Evaluation
from vggkit.inference.predict import load_classifier, predict
from vggkit.training.recipe import Recipe
from vggkit.training.run_state import EpochMetrics, overall_speed
from vggkit.weights.files import AnyNetwork


@dataclass(frozen=True, repr=False)
class Run:
    """The result of `train`, accepted wherever its folder is: `load_classifier(run)`."""

    folder: Path
    """With recipe.json, metrics.jsonl, curves.png, checkpoints and, if finished, model.safetensors."""
    recipe: Recipe
    net: AnyNetwork
    """Trained, on the device, in evaluation mode."""
    history: tuple[EpochMetrics, ...]
    device: str
    """`cuda:0`, `mps`, `cpu`; `2 x cpu` for two processes."""
    hardware: str
    """See `describe_hardware`."""
    evaluated_on: str
    """`test` or `validation`."""
    stopped_by: str | None
    """What ended it early, such as SIGTERM or until_epoch; None for a finished run."""
    leads: bool = True
    """Whether this is the process that wrote the folder."""

    @property
    def summary(self) -> str:
        """The book's two lines: the last epoch's loss and accuracies; examples/s over the whole run."""
        if not self.history:
            return "stopped before the end of the first epoch"
        last = self.history[-1]
        return (
            f"loss {last.train_loss:.3f}, train acc {last.train_accuracy:.3f}, "
            f"{self.evaluated_on} acc {last.test_accuracy:.3f}\n"
            f"{self.examples_per_second:.1f} examples/sec on {self.device}"
        )

    @property
    def examples_per_second(self) -> float:
        """Training speed, data included, over all finished epochs, at least one."""
        return overall_speed(map(vars, self.history))

    def predict(self, images: Any, top: int = 3) -> list[Any]:
        """The `top` classes of each image; see `vggkit.predict`."""
        return predict(load_classifier(self, next(self.net.parameters()).device), images, top)

    def evaluate(self, data: Any = None, **options: Any) -> Evaluation:
        """How well the network does on `data`, by default on the images kept out of training; see `vggkit.evaluate`."""
        return evaluate(load_classifier(self, next(self.net.parameters()).device), data, **options)

    def __fspath__(self) -> str:
        return os.fspath(self.folder)

    def __repr__(self) -> str:
        return f"{self.folder}: {self.net.architecture.name}, {self.summary}".replace("\n", ", ")

    def _repr_html_(self) -> str:
        header = ("epoch", "train loss", "train acc", f"{self.evaluated_on} acc", "examples/s")
        rows = [
            (str(m.epoch), f"{m.train_loss:.3f}", f"{m.train_accuracy:.3f}", f"{m.test_accuracy:.3f}",
             f"{m.examples_per_second:,.0f}") for m in self.history
        ]  # fmt: skip
        return Table(header, [rows], 0, repr(self))._repr_html_()
