"""The time of a step of data-parallel training with more workers, predicted in closed form: nothing is run.

The model is torch's DistributedDataParallel. Each of W workers computes forward and backward on its share of the batch.
During the backward pass, from the last layer to the first, gradients fill buckets, and a full bucket is averaged over
all workers while the pass continues. Compute and the network are two resources; the network takes one bucket at a time:

    step = forward + max(backward, end of the last all-reduce) + update

- Compute: the MACs of `costs` over a worker's MACs per second. Backward takes twice as many as forward, one product for
  the gradient of the input and one for that of the weights; the first layer's input needs none. Layers without MACs
  take no time of their own: measure the rate on a whole step, which includes them.
- Buckets: as torch makes them after its first step, in the order in which gradients arrive. A bucket is full at 25 MiB,
  the first one at 1 MiB. (Li et al., "PyTorch Distributed", VLDB 2020, section 3.2.3.)
- All-reduce: a ring. In each of 2 (W - 1) steps every worker sends 1/W of the bucket and receives as much, so n bytes
  take 2 (W - 1) (latency + n / W / bandwidth). (Patarasuk & Yuan, "Bandwidth optimal all-reduce algorithms for
  clusters of workstations", 2009; Horovod, arXiv 1802.05799, applies it to networks.)
- Compression: `bf16` sends 2 bytes for each parameter. `powersgd` sends r (m + n) values for a matrix of m x n if that
  is less than half of m n, as torch's hook does by default, in three all-reduces a bucket: vectors and small matrices,
  then P, then Q. (Vogels et al., arXiv 1905.13727.) The arithmetic of compression is not counted.

Not modelled are copies into and out of buckets, contention, stragglers, trees, faster links inside a machine, and the
loading of data.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vggkit.design.costs import BYTES_PER_VALUE, MAX_BATCH_SIZE, Costs
from vggkit.design.layers import Layer, check_int, check_number, check_one_of
from vggkit.design.network import Network, NetworkLike, as_network
from vggkit.errors import ArchitectureError

Compression = Literal["none", "bf16", "powersgd"]
"""How a gradient is sent: as float32, as bfloat16, or as two low-rank factors."""

FIRST_BUCKET_BYTES, BUCKET_BYTES = 2**20, 25 * 2**20  # torch's defaults
MAX_WORKERS = 2**20
MAX_RANK = 65_536
_MIN_COMPRESSION_RATE = 2  # the default of torch's PowerSGDState


@dataclass(frozen=True)
class StepPrediction:
    """A predicted step of training; see the module for what is modelled."""

    workers: int
    images_per_worker: int
    compute_seconds: float
    """Forward, backward and update on one worker's images: the step time of a single worker."""
    communication_seconds: float
    """Busy time of the network, overlapped or not."""
    exposed_seconds: float
    """Communication that the backward pass does not hide."""
    step_seconds: float
    gradient_bytes: float
    """Sent by each worker, which receives as many."""
    efficiency: float
    """Weak scaling, 0 to 1: the step time of one worker over that of all, with equally many images for each."""

    def __str__(self) -> str:
        return (
            f"prediction: {1000 * self.step_seconds:,.1f} ms a step with {self.workers:,} workers of "
            f"{self.images_per_worker:,} images, {self.efficiency:.1%} efficiency"
        )

    def _repr_html_(self) -> str:
        return f"<pre>{self}</pre>"


@dataclass(frozen=True)
class Bucket:
    """Gradients that are averaged together."""

    matrices: tuple[tuple[int, int], ...]
    """Rows and columns of each gradient, outputs first; a vector has one column."""
    ready_macs: int
    """MACs from the beginning of the backward pass until all of them exist."""


def predict_step(
    network: NetworkLike,
    batch_size: int,
    workers: int,
    macs_per_second: float,
    bytes_per_second: float,
    *,
    latency_seconds: float = 1e-5,
    compression: Compression = "none",
    powersgd_rank: int = 4,
    update_seconds: float = 0.0,
) -> StepPrediction:
    """The time of a data-parallel training step of `network`; see the module for what is modelled.

    Args:
        network: see `as_network`.
        batch_size: images of the whole step, a multiple of `workers`, which share them.
        workers: 1 to 2^20.
        macs_per_second: measured on one worker; at least 1.
        bytes_per_second: sent by a worker while it receives as many, at least 1; `math.inf` for an instant link.
        latency_seconds: of one message to the next worker, 0 to a million.
        compression: how gradients are sent.
        powersgd_rank: r, 1 to 65536; ignored with another compression.
        update_seconds: of the optimizer on each worker; 0 if `macs_per_second` includes it.

    Raises:
        ArchitectureError: an invalid network or other value.

    >>> step = predict_step("vgg16", 32 * 64, 64, macs_per_second=5e12, bytes_per_second=25e9 / 8)
    >>> round(step.gradient_bytes / 1e6), round(step.efficiency, 2)
    (1090, 0.65)
    """
    network = as_network(network)
    check_int("workers", workers, 1, MAX_WORKERS)
    check_int("batch_size", batch_size, 1, MAX_BATCH_SIZE * MAX_WORKERS)
    images, rest = divmod(batch_size, workers)
    if rest:
        more = batch_size + workers - rest
        raise ArchitectureError(f"expected a batch_size that {workers} workers share, got {batch_size}, try {more}")
    for what, value, least, most in (
        ("macs_per_second", macs_per_second, 1, 1e30),
        ("bytes_per_second", bytes_per_second, 1, float("inf")),
        ("latency_seconds", latency_seconds, 0, 1e6),
        ("update_seconds", update_seconds, 0, 1e6),
    ):
        check_number(what, value, least, most)
    check_one_of("compression", compression, Compression)
    check_int("powersgd_rank", powersgd_rank, 1, MAX_RANK)

    forward_seconds = Costs.of(network, images).total.macs / macs_per_second
    backward_seconds = backward_macs(network, images) / macs_per_second
    sent_bytes, busy_seconds, network_free_seconds = 0, 0.0, 0.0  # the last since the start of the backward pass
    for bucket in gradient_buckets(network, images):
        messages = message_bytes(bucket, compression, powersgd_rank)
        seconds = sum(allreduce_seconds(n, workers, bytes_per_second, latency_seconds) for n in messages)
        network_free_seconds = max(network_free_seconds, bucket.ready_macs / macs_per_second) + seconds
        busy_seconds += seconds
        sent_bytes += sum(messages)
    compute_seconds = forward_seconds + backward_seconds + update_seconds
    exposed_seconds = max(0.0, network_free_seconds - backward_seconds)
    return StepPrediction(
        workers=workers,
        images_per_worker=images,
        compute_seconds=compute_seconds,
        communication_seconds=busy_seconds,
        exposed_seconds=exposed_seconds,
        step_seconds=compute_seconds + exposed_seconds,
        gradient_bytes=2 * (workers - 1) * sent_bytes / workers,
        efficiency=compute_seconds / (compute_seconds + exposed_seconds),
    )


def allreduce_seconds(num_bytes: int, workers: int, bytes_per_second: float, latency_seconds: float) -> float:
    """The time of a ring all-reduce of `num_bytes` a worker; 0 for a single worker."""
    return 2 * (workers - 1) * (latency_seconds + num_bytes / workers / bytes_per_second)


def backward_macs(network: Network, batch_size: int) -> int:
    """MACs of the backward pass of `batch_size` images, up to the weights of the first layer."""
    return gradient_buckets(network, batch_size)[-1].ready_macs


def gradient_buckets(network: Network, batch_size: int) -> tuple[Bucket, ...]:
    """The buckets in which torch averages the gradients of `network`, in the order of the backward pass."""
    layers = list(zip(network.layers(), Costs.of(network, batch_size).layers, strict=True))
    first = next(layer for layer, _ in layers if layer.weights)
    buckets: list[Bucket] = []
    matrices: list[tuple[int, int]] = []
    num_bytes, limit_bytes, macs = 0, FIRST_BUCKET_BYTES, 0
    for layer, cost in reversed(layers):
        macs += cost.macs if layer is first else 2 * cost.macs
        for rows, columns in _gradients(layer):
            matrices.append((rows, columns))
            num_bytes += BYTES_PER_VALUE * rows * columns
            if num_bytes >= limit_bytes:
                buckets.append(Bucket(tuple(matrices), macs))
                matrices, num_bytes, limit_bytes = [], 0, BUCKET_BYTES
    if matrices:
        buckets.append(Bucket(tuple(matrices), macs))
    return tuple(buckets)


def message_bytes(bucket: Bucket, compression: Compression, powersgd_rank: int) -> tuple[int, ...]:
    """The bytes of each all-reduce of `bucket`, one after the other."""
    if compression != "powersgd":
        bytes_per_value = 2 if compression == "bf16" else BYTES_PER_VALUE
        return (bytes_per_value * sum(rows * columns for rows, columns in bucket.matrices),)
    whole, p, q = 0, 0, 0
    for rows, columns in bucket.matrices:
        rank = min(rows, columns, powersgd_rank)
        if _MIN_COMPRESSION_RATE * rank * (rows + columns) < rows * columns:
            p, q = p + rank * rows, q + rank * columns
        else:
            whole += rows * columns
    return BYTES_PER_VALUE * whole, BYTES_PER_VALUE * p, BYTES_PER_VALUE * q


def _gradients(layer: Layer) -> Iterator[tuple[int, int]]:
    """Rows and columns of the gradients of a layer's parameters, in autograd's order."""
    vector = (layer.outputs, 1)
    match layer.kind:
        case "conv":
            yield from ((layer.outputs, layer.weights // layer.outputs), vector)
        case "fc":
            yield from (vector, (layer.outputs, layer.inputs))
        case "bn":
            yield from (vector, vector)
