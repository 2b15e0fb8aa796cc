"""How fast is a training step, beside a chapter reader's code and PyTorch at its best?

    python benchmarks/train_speed.py [--cases TEXT ...] [--repeats 5] [--device cpu] [--save]

All train on Fashion-MNIST, in turns, on one device with the same number of threads. Each turn is a new process, since
how a process gets its memory is decided once and affects much of a step on a CPU:

* ours: `vggkit.train`'s own step, as the `d2l` recipe runs it, batches made on the device;
* PyTorch: the same step and batches with torch's own modules, channels_last, and its own operators;
* the chapter's way: torch's DataLoader with 4 workers, a PIL resize per image, ToTensor, an eager NCHW network of
  torch's own modules, plain SGD, and the loss and accuracy read after every step. It uses torchvision's transforms
  if torchvision is installed, and otherwise the same calls to Pillow and torch; the row says which.

examples/s is wall time, data included; the peak is that of resident memory, or on a GPU of what torch allocated. The
direct floor is the step's operations, with convolutions computed as they are defined (2 per MAC; forward once,
backward twice, except for the first convolution's input), over the measured rate of a large matrix product. A step can
beat it, since Winograd's minimal filtering saves up to 3 of 4 multiplications.
Prints a JSON line for each case.
"""

import argparse
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Case, digits, in_own_process, parser, ratios, resident_bytes, row_header, save_row, spread
from peers import import_peer
from PIL import Image
from torch import Tensor, nn

from vggkit import Architecture, Recipe, accelerate, build, costs
from vggkit.data import fashion_mnist
from vggkit.data.loading import Split, epoch_order
from vggkit.data.preprocessing import Preprocessing
from vggkit.design.scaling import backward_macs
from vggkit.engines.cpu import why_not_compiled
from vggkit.lab.bench import product_flops_per_second, synchronize
from vggkit.training import hardware
from vggkit.training.step import make_optimizer, train_step

# (warm-up steps, timed steps) of one repeat, on a CPU: a step takes seconds at 224.
CPU_STEPS = {224: (1, 2), 96: (2, 5), 32: (5, 25)}
GPU_STEPS = (20, 100)
CASES = (Case("vgg11/4", 224, 128), Case("vgg11/4", 96, 128), Case("vgg11/4", 32, 128), Case("vgg16", 224, 16))


def main() -> None:
    flags = parser(__doc__, repeats=5)
    flags.add_argument("--cases", nargs="+", default=[""], help="parts of the names of the cases wanted")
    flags.add_argument("--device")
    flags.add_argument("--data-dir", type=Path)
    given = flags.parse_args()
    device = hardware.choose_device(given.device)
    flops_per_second = product_flops_per_second(device)
    for case in CASES:
        if any(text in case.name for text in given.cases):
            row = measure(case, device, given, flops_per_second)
            save_row("train_speed", {**row_header(device, given.repeats), **row}, given.save)


def measure(case: Case, device: torch.device, given: argparse.Namespace, flops_per_second: float) -> dict[str, Any]:
    """All ways of one case, in turns."""
    turns: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(given.repeats):
        for way in random.sample(list(WAYS), len(WAYS)):
            turns[way].append(in_own_process(WAYS[way], case, device, given.data_dir))
    speeds = {way: [turn["examples_per_second"] for turn in some] for way, some in turns.items()}
    arch = architecture(case)
    macs = costs(arch, case.batch_size).total.macs + backward_macs(arch, case.batch_size)
    floor_seconds = 2 * macs / flops_per_second
    return {
        **vars(case),
        "dtype": "bfloat16 autocast" if device.type == "cuda" else "float32",
        "convolutions": turns["ours"][0]["convolutions"],
        "examples_per_second": spread(speeds["ours"]),
        "pytorch_examples_per_second": spread(speeds["pytorch"]),
        "chapter_examples_per_second": spread(speeds["chapter"]),
        "chapter_uses": turns["chapter"][0]["uses"],
        "ratio_to_pytorch": ratios(speeds["ours"], speeds["pytorch"]),
        "ratio": ratios(speeds["ours"], speeds["chapter"]),
        "peak_megabytes": {way: max(turn["peak_megabytes"] for turn in some) for way, some in turns.items()},
        "floor_step_seconds": digits(floor_seconds),
        "fraction_of_floor_reached": round(floor_seconds * statistics.median(speeds["ours"]) / case.batch_size, 3),
        "matrix_product_flops_per_second": digits(flops_per_second),
    }


def architecture(case: Case) -> Architecture:
    return Architecture.parse(case.network, in_channels=1, num_classes=10, image_size=case.image_size)


def run_ours(case: Case, device: torch.device, data_dir: Path | None, *, is_ours: bool = True) -> dict[str, Any]:
    """Examples/s of the `d2l` recipe's step."""
    hardware.use_huge_pages()
    dataset = fashion_mnist.load(data_dir=data_dir)
    split = Split.on(device, dataset.train_images, dataset.train_labels)
    preprocessing = Preprocessing(case.image_size, 1, (0.0,), (1.0,))  # as the recipe has it
    recipe = replace(Recipe.named("d2l"), architecture=case.network, image_size=case.image_size)
    torch.manual_seed(0)
    if is_ours:
        arch = architecture(case)
        hardware.keep_freed_memory(costs(arch, case.batch_size).total.activation_bytes)
        net: Any = build(arch, recipe.init).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(recipe, net)
        net = accelerate(net)
    else:
        net = plain_vgg(case).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(net.parameters(), lr=recipe.learning_rate, fused=True)

    def made() -> Iterator[tuple[Tensor, Tensor]]:
        order = epoch_order(len(split), 0, 1).to(device)
        for index in order.split(case.batch_size):
            yield preprocessing(split.images[index]), split.labels[index]

    sums = torch.zeros(5, device=device)

    def step(batch: tuple[Tensor, Tensor]) -> None:
        sums.add_(train_step(net, optimizer, *batch, learning_rate=recipe.learning_rate / 50))

    return {
        "examples_per_second": case.batch_size / timed(made(), step, case, device),
        "convolutions": "compiled" if is_ours and device.type == "cpu" and not why_not_compiled() else "torch",
        "peak_megabytes": peak_megabytes(device),
    }


def run_pytorch(case: Case, device: torch.device, data_dir: Path | None) -> dict[str, Any]:
    """The same with torch's own modules and operators."""
    return run_ours(case, device, data_dir, is_ours=False)


def run_chapter(case: Case, device: torch.device, data_dir: Path | None) -> dict[str, Any]:
    """Examples/s of the chapter's way, and whose transforms it used."""
    warnings.filterwarnings("ignore", "This DataLoader will create")  # the chapter asks for 4 workers
    dataset = fashion_mnist.load(data_dir=data_dir)
    to_tensor, uses = peer_transforms()
    torch.manual_seed(0)
    net = plain_vgg(case).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05 / 50)
    loss = nn.CrossEntropyLoss()
    images = ChapterDataset(dataset, case.image_size, to_tensor)
    loader = torch.utils.data.DataLoader(images, case.batch_size, shuffle=True, num_workers=4)
    metric = [0.0, 0.0, 0.0]

    def step(batch: tuple[Tensor, Tensor]) -> None:
        net.train()
        optimizer.zero_grad()
        X, y = (tensor.to(device) for tensor in batch)
        y_hat = net(X)
        value = loss(y_hat, y)
        value.backward()
        optimizer.step()
        with torch.no_grad():
            metric[0] += float(value * X.shape[0])
            metric[1] += float((y_hat.argmax(dim=1) == y).sum())
            metric[2] += X.shape[0]

    seconds = timed(iter(loader), step, case, device)
    return {"examples_per_second": case.batch_size / seconds, "uses": uses, "peak_megabytes": peak_megabytes(device)}


WAYS: dict[str, Callable[[Case, torch.device, Path | None], dict[str, Any]]] = {
    "ours": run_ours,
    "pytorch": run_pytorch,
    "chapter": run_chapter,
}


def peak_megabytes(device: torch.device) -> int:
    """Of resident memory, or of what torch allocated on a GPU."""
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_bytes("VmHWM")
    return peak // 10**6


class ChapterDataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """An image at a time, as torchvision's FashionMNIST hands it out."""

    def __init__(
        self, dataset: fashion_mnist.Dataset, size: int, to_tensor: Callable[[Image.Image, int], Tensor]
    ) -> None:
        self.images = torch.from_numpy(dataset.train_images)
        self.labels = torch.from_numpy(dataset.train_labels.astype(np.int64))
        self.size, self.to_tensor = size, to_tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.to_tensor(Image.fromarray(self.images[index].numpy()), self.size), int(self.labels[index])


def peer_transforms() -> tuple[Callable[[Image.Image, int], Tensor], str]:
    """Resize and ToTensor, and who they are from."""
    try:
        return by_torchvision, f"torchvision {import_peer('torchvision').__version__}"
    except (ImportError, RuntimeError):
        return by_hand, "Pillow and torch by hand"


def by_torchvision(image: Image.Image, size: int) -> Tensor:
    functional = import_peer("torchvision.transforms.functional")
    pixels: Tensor = functional.to_tensor(functional.resize(image, [size, size]))
    return pixels


def by_hand(image: Image.Image, size: int) -> Tensor:
    """What torchvision's Resize and ToTensor do to a grey image."""
    pixels = torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.BILINEAR), copy=True))
    return pixels.view(1, size, size).contiguous().float().div(255)


def plain_vgg(case: Case) -> nn.Sequential:
    """The network of torch's own modules, for Fashion-MNIST, with the chapter's Xavier weights."""
    layers: list[nn.Module] = []
    in_channels = 1
    for block in architecture(case).blocks:
        for _ in range(block.num_convs):
            layers += [nn.Conv2d(in_channels, block.channels, kernel_size=3, padding=1), nn.ReLU()]
            in_channels = block.channels
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    features = in_channels * (case.image_size // 32) ** 2
    layers += [nn.Flatten(), nn.Linear(features, 4096), nn.ReLU(), nn.Dropout(0.5)]
    layers += [nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4096, 10)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return nn.Sequential(*layers)


def timed(
    source: Iterator[tuple[Tensor, Tensor]],
    step: Callable[[tuple[Tensor, Tensor]], None],
    case: Case,
    device: torch.device,
) -> float:
    """Seconds for a step, its batch included, after the warm-up."""
    warm_up, count = GPU_STEPS if device.type == "cuda" else CPU_STEPS[case.image_size]
    for _ in range(warm_up):
        step(next(source))
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        step(next(source))
    synchronize(device)
    return (time.perf_counter() - start) / count


if __name__ == "__main__":
    main()
