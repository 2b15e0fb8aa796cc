"""`vgg describe --workers`: predict a step of data-parallel training."""

from dataclasses import dataclass

from vggkit.design.network import Network
from vggkit.design.scaling import Compression, StepPrediction, predict_step
from vggkit.design.table import Table
from vggkit.errors import UserError, shown

_SENT_AS = {"none": "float32", "bf16": "bfloat16", "powersgd": "PowerSGD"}


@dataclass(frozen=True)
class ScalingFlags:
    """Data-parallel training, predicted."""

    workers: tuple[int, ...] | None = None
    """Predict a training step of this many workers, each with --batch-size images; a row for each number."""
    link_gbps: float | None = None
    """Bandwidth of a worker in each direction, in 10^9 bits/s; needed with --workers."""
    tflops: float | None = None
    """Measured training speed of one worker, in 10^12 FLOP/s; needed with --workers."""
    latency_us: float = 10.0
    """Latency of a message to the next worker, in microseconds."""
    compression: Compression = "none"
    """Compression of the gradients: none (float32), bf16, or powersgd (two matrices of --powersgd-rank)."""
    powersgd_rank: int = 4
    """Columns of PowerSGD's matrices."""


def predictions(network: Network, batch_size: int, flags: ScalingFlags) -> list[StepPrediction]:
    """The predicted step of each number of workers, with `batch_size` images a worker; empty without --workers.

    Raises:
        UserError: a flag without the others that it needs, or a value out of range.
    """
    if not flags.workers:
        if flags != ScalingFlags():
            raise UserError("expected --workers with the flags of a link, got none, try --workers 8")
        return []
    needed = {"--link-gbps": flags.link_gbps, "--tflops": flags.tflops}
    if flags.link_gbps is None or flags.tflops is None:
        got = " ".join(f"{name} {value:g}" for name, value in needed.items() if value is not None) or "neither"
        raise UserError(f"expected --link-gbps and --tflops with --workers, got {got}, try --link-gbps 25 --tflops 10")
    for name, value in needed.items():
        if value is not None and not 1e-6 <= value <= 1e9:
            raise UserError(f"expected {name} from 1e-06 to 1e+09, got {value:g}")
    return [
        predict_step(
            network,
            batch_size * workers,
            workers,
            macs_per_second=flags.tflops * 1e12 / 2,
            bytes_per_second=flags.link_gbps * 1e9 / 8,
            latency_seconds=flags.latency_us * 1e-6,
            compression=flags.compression,
            powersgd_rank=flags.powersgd_rank,
        )
        for workers in flags.workers
    ]


def print_scaling(network: Network, steps: list[StepPrediction], flags: ScalingFlags) -> None:
    """Print the predicted steps as a table; every line says that it is a prediction."""
    first = steps[0]
    rank = f" of rank {flags.powersgd_rank}" if flags.compression == "powersgd" else ""
    print(
        f"prediction: {shown(network.name, limit=30)}, {first.images_per_worker} images a worker, "
        f"{first.images_per_worker / first.compute_seconds:,.1f} images/s on one\n"
        f"prediction: {flags.tflops:g} TFLOP/s a worker, {flags.link_gbps:g} Gbit/s, {flags.latency_us:g} us, "
        f"sent as {_SENT_AS[flags.compression]}{rank}"
    )
    rows = []
    for step in steps:
        seconds = (step.compute_seconds, step.communication_seconds, step.exposed_seconds, step.step_seconds)
        milliseconds = [f"{1000 * value:,.1f}" for value in seconds]
        sent = f"{step.gradient_bytes / 1e6:,.1f}"
        rows.append((f"prediction, {step.workers:,}", sent, *milliseconds, f"{step.efficiency:.1%}"))
    header = ("prediction, workers", "MB sent", "compute", "network", "exposed", "step", "efficiency")
    print(Table(header, [rows]))
    print(
        "prediction: times in ms; network: that it is busy; exposed: that workers wait\n"
        "prediction: efficiency: weak scaling, a step of one worker over one of all"
    )
