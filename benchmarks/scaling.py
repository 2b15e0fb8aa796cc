"""Does a step of data-parallel training take as long as `predict_step` says?

    python benchmarks/scaling.py [--only TEXT | --quick] [--repeats 5] [--save]

Two processes of one thread each train a VGG on random images, first separately and then with DistributedDataParallel
over gloo on loopback. They send gradients as they are, in bfloat16, and by PowerSGD, as `vgg train --compression` does.
The model gets what was measured in the same two processes: a separate step (forward, backward and update in float32, as
`vgg train` takes it), the update alone, and the all-reduce of 4 KiB and of a bucket. `one_process_seconds` is a step
with no other process beside it. The same cores compute and run the network, which the model takes for separate
resources; a row therefore holds the prediction with overlap and the one without, which is PowerSGD's over gloo.
Prints a JSON line for each case (or those whose words, as in "vgg11/4 64 px", contain --only) and compression. A repeat
is a new pair of processes. Leave the machine idle.
"""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from measuring import own_process, parser, ratios, row_header, save_row, spread
from torch import nn

from vggkit import VGG, Architecture, Recipe, costs, predict_step
from vggkit.design.architecture import Head
from vggkit.design.scaling import BUCKET_BYTES, Compression, backward_macs
from vggkit.engines.accelerate import Accelerated, accelerate
from vggkit.training import hardware
from vggkit.training.distributed import POWERSGD_RANK, POWERSGD_START_STEP, Team
from vggkit.training.step import make_optimizer, train_step

WORKERS = 2
COMPRESSIONS: tuple[Compression, ...] = ("none", "bf16", "powersgd")
SMALL_BYTES, LARGE_BYTES = 4096, BUCKET_BYTES
WARM_UP = POWERSGD_START_STEP + 2
TIMEOUT_SECONDS = 1200


@dataclass(frozen=True)
class Case:
    network: str
    image_size: int
    images_per_worker: int
    head: Head = "flatten"
    num_steps: int = 10

    @property
    def words(self) -> str:
        return f"{self.network} {self.image_size} px {self.images_per_worker} images {self.head}"

    @property
    def architecture(self) -> Architecture:
        sizes = {"in_channels": 1, "num_classes": 10, "image_size": self.image_size}
        return Architecture.parse(self.network, head=self.head, **sizes)


CASES = (
    Case("vgg11/4", 64, 8),
    Case("vgg11/4", 64, 64),
    Case("vgg11/4", 64, 64, "gap"),
    Case("vgg16/2", 64, 16),
    Case("vgg11/4", 224, 16, num_steps=5),
)
QUICK = Case("vgg11/8", 32, 2, "gap", num_steps=2)
"""For a test: seconds."""


def main() -> None:
    flags = parser(__doc__, repeats=5)
    flags.add_argument("--only", default="", help="a part of a case's words")
    flags.add_argument("--quick", action="store_true", help="one case of seconds instead")
    given = flags.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}  # of the workers
    torch.set_num_threads(1)
    for case in (QUICK,) if given.quick else [case for case in CASES if given.only in case.words]:
        alone = [measured(case, 1)["apart_seconds"] for _ in range(given.repeats)]
        together = [measured(case, WORKERS) for _ in range(given.repeats)]
        for compression in COMPRESSIONS:
            row = {**row_header(torch.device("cpu"), given.repeats), **compared(case, compression, alone, together)}
            save_row("scaling", row, given.save)


def compared(
    case: Case, compression: Compression, alone: list[float], together: list[dict[str, Any]]
) -> dict[str, Any]:
    """What one row says of `case`, from what each repeat measured with one process and with two."""
    steps = [
        predict_step(
            case.architecture,
            case.images_per_worker * WORKERS,
            WORKERS,
            run["macs_per_second"],
            run["bytes_per_second"],
            latency_seconds=run["latency_seconds"],
            compression=compression,
            update_seconds=run["update_seconds"],
            powersgd_rank=POWERSGD_RANK,
        )
        for run in together
    ]
    seconds = [run["step_seconds"][compression] for run in together]
    overlapping = [step.step_seconds for step in steps]
    in_sequence = [step.compute_seconds + step.communication_seconds for step in steps]
    predicted = in_sequence if compression == "powersgd" else overlapping  # which gloo is waited for
    inputs = ("macs_per_second", "bytes_per_second", "latency_seconds", "update_seconds", "apart_seconds")
    return {
        **asdict(case),
        "workers": WORKERS,
        "compression": compression,
        **{name: spread([run[name] for run in together]) for name in inputs},
        "one_process_seconds": spread(alone),
        "measured_seconds": spread(seconds),
        "predicted_seconds": spread(overlapping),
        "predicted_without_overlap_seconds": spread(in_sequence),
        "overlaps": compression != "powersgd",
        "predicted_over_measured": ratios(predicted, seconds),
        "predicted_efficiency": ratios([step.compute_seconds for step in steps], predicted),
        "measured_efficiency": ratios([run["apart_seconds"] for run in together], seconds),
    }


def measured(case: Case, workers: int) -> dict[str, Any]:
    """What the first of `workers` new processes measures."""
    with ExitStack() as stack:
        store = stack.enter_context(tempfile.TemporaryDirectory()) + "/store"
        processes = [stack.enter_context(own_process()) for _ in range(workers)]
        results = [process.submit(work, case, workers, rank, store) for rank, process in enumerate(processes)]
        first, *_ = [result.result(TIMEOUT_SECONDS) for result in results]
        return first


def work(case: Case, workers: int, rank: int, store: str) -> dict[str, Any]:
    """What one of the processes measures."""
    hardware.use_huge_pages()
    images = case.images_per_worker
    hardware.keep_freed_memory(costs(case.architecture, images).total.activation_bytes)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
    apart, update_seconds = step_seconds(case, lambda net: net)
    macs = costs(case.architecture, images).total.macs + backward_macs(case.architecture, images)
    result: dict[str, Any] = {"apart_seconds": apart, "update_seconds": update_seconds}
    result["macs_per_second"] = macs / (apart - update_seconds)
    if workers > 1:
        team = Team(torch.device("cpu"), rank, workers, dist.group.WORLD)
        result |= link(workers)
        result["step_seconds"] = {
            compression: step_seconds(case, lambda net, c=compression: team.data_parallel(net, c))[0]  # type: ignore[misc]
            for compression in COMPRESSIONS
        }
    dist.barrier()
    dist.destroy_process_group()
    return result


def step_seconds(case: Case, wrapped: Callable[[Accelerated], nn.Module]) -> tuple[float, float]:
    """Seconds of a step of `case`, and of the optimizer's part in it."""
    torch.manual_seed(0)
    plain = VGG(case.architecture, init="kaiming").train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net = wrapped(accelerate(plain))
    optimizer = make_optimizer(Recipe.named("d2l"), plain)
    shape = (case.images_per_worker, case.image_size, case.image_size, 1)
    x = torch.rand(shape).permute(0, 3, 1, 2)  # channels_last
    labels = torch.randint(0, 10, (case.images_per_worker,))
    step = mean_seconds(lambda: train_step(net, optimizer, x, labels, learning_rate=0.001), case.num_steps)
    return step, mean_seconds(optimizer.step, case.num_steps)


def link(workers: int) -> dict[str, float]:
    """Bytes per second and latency of the ring, from the all-reduce of two sizes."""
    small, large = torch.ones(SMALL_BYTES // 4), torch.ones(LARGE_BYTES // 4)
    small_seconds = mean_seconds(lambda: dist.all_reduce(small), 20)
    large_seconds = mean_seconds(lambda: dist.all_reduce(large), 20)
    messages = 2 * (workers - 1)
    bytes_per_second = messages / workers * (LARGE_BYTES - SMALL_BYTES) / (large_seconds - small_seconds)
    latency_seconds = max(0.0, small_seconds / messages - SMALL_BYTES / workers / bytes_per_second)
    return {"bytes_per_second": bytes_per_second, "latency_seconds": latency_seconds}


def mean_seconds(call: Callable[[], object], count: int) -> float:
    """Of `count` calls after a warm-up; all processes begin together."""
    for _ in range(WARM_UP):
        call()
    dist.barrier()
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


if __name__ == "__main__":
    main()
