"""An ONNX file with 8-bit weights, calibrated on training images and measured on held-out ones."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from vggkit.data.images import fitted
from vggkit.data.samples import ImageSource
from vggkit.errors import ExportError, UserError, check_type
from vggkit.inference.evaluate import evaluate
from vggkit.inference.evaluation import mcnemar
from vggkit.inference.export_formats import INPUT, Run
from vggkit.inference.predict import Classifier

Int8 = Literal["all", "head"]
"""Which layers get 8-bit weights: all convolutions and fully connected layers, or the fully connected ones alone."""

CALIBRATION_IMAGES, CALIBRATION_BATCH = 256, 4  # the calibrator keeps all maps of a batch, 0.1 GB an image for VGG-16
REPEATS = 15


def check_max_drop(max_drop: float) -> None:
    """Raise `UserError` unless `max_drop`, in percentage points of top-1, is valid; NaN is not."""
    check_type(max_drop, int | float, "points of top-1 as max_drop", "max_drop=0.5")
    if not 0 <= max_drop <= 100:
        raise UserError(f"expected max_drop from 0 to 100 points of top-1, got {max_drop}")


def quantize(float32: Path, int8: Path, classifier: Classifier, source: ImageSource, which: Int8) -> None:
    """Replace the ONNX file `float32` by `int8`, with 8-bit weights, per channel, and 8-bit inputs of their layers.

    The ranges of the inputs come from `CALIBRATION_IMAGES` training images. Source: ONNX Runtime's `quantize_static` in
    the format QDQ.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        batches = _calibration_batches(classifier, source)

        def get_next(self) -> dict[str, Any] | None:
            return next(({INPUT: x.numpy()} for x in self.batches), None)

    prepared = float32.with_suffix(".prepared.onnx")
    quant_pre_process(float32, prepared, skip_symbolic_shape=True)
    nodes = onnx.load(prepared, load_external_data=False).graph.node
    head = [node.name for node in nodes if any(name.startswith("fc") for name in node.input)]
    quantize_static(
        prepared,
        int8,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        op_types_to_quantize=["Conv", "Gemm", "Relu", "MaxPool"],
        nodes_to_quantize=head if which == "head" else None,
    )
    prepared.unlink()
    float32.unlink()


def _calibration_batches(classifier: Classifier, source: ImageSource) -> Iterator[Tensor]:
    """Batches of training images, evenly spaced over the split, as the network takes them."""
    images, how = source.train, classifier.preprocessing
    read = images.reader(0, 0)
    positions = np.unique(np.linspace(0, len(images) - 1, CALIBRATION_IMAGES).astype(int)).tolist()
    for start in range(0, len(positions), CALIBRATION_BATCH):
        samples = [read(position) for position in positions[start : start + CALIBRATION_BATCH]]
        pixels = [fitted(sample.content, how, sample.name) for sample in samples]
        yield how.scaled(torch.from_numpy(np.stack(pixels))).contiguous()


@torch.no_grad()
def compare_accuracy(run: Run, classifier: Classifier, source: ImageSource, max_drop: float) -> dict[str, Any]:
    """The top-1 accuracy on held-out images and the time of the float32 network in vggkit and of the int8 one in `run`.

    Raises:
        ExportError: the accuracy drops by more than `max_drop` percentage points.
    """
    quantized = replace(classifier, net=cast(Any, _RuntimeNetwork(run, classifier)))
    before, after = evaluate(classifier, source), evaluate(quantized, source)
    was_right, is_right = (evaluation.predicted == evaluation.labels for evaluation in (before, after))
    lost, won = int((was_right & ~is_right).sum()), int((is_right & ~was_right).sum())
    drop, p = 100 * (before.accuracy - after.accuracy), mcnemar(lost, won)
    if drop > max_drop:
        raise ExportError(
            f"expected int8 to lose at most {max_drop:g} points of top-1, got {before.accuracy:.2%} to "
            f"{after.accuracy:.2%} on {len(before.labels):,} {before.measured_on} (McNemar's p {p:.2g}), and wrote "
            "nothing, try --int8-head, or a larger --max-drop"
        )
    how = classifier.preprocessing
    x = torch.zeros(1, how.channels, how.image_size, how.image_size)
    seconds = seconds_in_turns({"float32_ms": lambda: classifier.fast(x), "int8_ms": lambda: run(x)}, REPEATS)
    return {
        "top1_float32": before.accuracy,
        "top1_int8": after.accuracy,
        "mcnemar_p": p,
        "measured_on": f"{len(before.labels):,} {before.measured_on}",
        "calibrated_on": f"{min(CALIBRATION_IMAGES, len(source.train))} training images of {source.name}",
        **{name: 1000 * statistics.median(times) for name, times in seconds.items()},
    }


class _RuntimeNetwork(nn.Module):
    """A network in a runtime, with the interface of a `Classifier`'s network."""

    def __init__(self, run: Run, classifier: Classifier) -> None:
        super().__init__()
        self.run, self.architecture = run, classifier.net.architecture
        self.empty = nn.Parameter(torch.empty(0))  # the device of the parameters, the CPU, is that of the network

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to logits (batch, classes)."""
        return self.run(x.contiguous())


def seconds_in_turns(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """The seconds of `repeats` calls of each function, in turns, each after two calls to warm up.

    These wake its threads and fill the caches, while the threads of the previous runtime stop spinning.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            run()
            run()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds
