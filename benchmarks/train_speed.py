"""How fast is a training step, against what a learner of the chapter would run instead?

    python benchmarks/train_speed.py [--sizes 224 96 32] [--repeats 5] [--device cpu] [--save]

Both train VGG-11/4 on Fashion-MNIST at batch 128, in turn, on one device with the same threads, each time in a
process of its own, since how a process gets its memory decides much of a CPU step and is set once:

* ours: `vggkit.train`'s own step, as the `d2l` recipe runs it, batches made on the device;
* the chapter's way: torch's DataLoader with 4 workers, a PIL resize per image, ToTensor, an eager NCHW network of
  torch's own modules, plain SGD, and the loss and accuracy read after every step. It uses torchvision's transforms
  where torchvision is installed, else the same calls to Pillow and torch by hand; the row says which.

examples/s is wall time, data included. Beside it stands the floor: the larger of the step's operations over the
measured rate of a large matrix product, and of its bytes over the measured bandwidth of a large copy. Operations:
2 per MAC; forward once, backward twice, but for the first convolution's input. Bytes: every block's input and every
convolution's and fully connected layer's output is written and read once on the way forward; on the way back it is
read again and its gradient is written and read; parameters are read twice, their gradients written and read, the
parameters updated. Nothing can skip these, so the floor is a bound and not an aim.

Prints one JSON line for each size; --save adds it to benchmarks/results/train_speed.jsonl.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import import_torchvision, row_header, save_row, spread
from PIL import Image
from torch import Tensor, nn

from vggkit import Recipe, costs, vgg
from vggkit.data import fashion_mnist
from vggkit.data.loading import Augmentation, Split, batches, epoch_order
from vggkit.data.preprocessing import Preprocessing
from vggkit.networks.baselines import build
from vggkit.networks.fully_connected import use_fast_cpu
from vggkit.training import hardware
from vggkit.training.step import make_optimizer, train_step

BATCH_SIZE = 128
CONV_ARCH = ((1, 16), (1, 32), (2, 64), (2, 128), (2, 128))
# (warm-up steps, timed steps) of one repeat, on a CPU: a step takes seconds at 224.
CPU_STEPS = {224: (1, 2), 96: (2, 5), 32: (5, 25)}
GPU_STEPS = (20, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 96, 32])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--way", choices=("ours", "chapter"), help="measure one way once (used by the program itself)")
    flags = parser.parse_args()
    if flags.way is not None:
        measure = run_ours if flags.way == "ours" else run_chapter
        print(json.dumps(measure(flags.sizes[0], hardware.choose_device(flags.device), flags.data_dir)))
        return
    device = hardware.choose_device(flags.device)
    rates = measured_rates(device)
    for size in flags.sizes:
        ours, theirs, data_share = [], [], []
        for _ in range(flags.repeats):
            mine, chapter = (in_own_process(way, size, flags) for way in ("ours", "chapter"))
            ours.append(mine["examples_per_second"])
            data_share.append(mine["data_share"])
            theirs.append(chapter["examples_per_second"])
        floor_seconds, bound_by = floor(size, device, rates)
        row = {
            **row_header(device, flags.repeats),
            "network": "vgg11/4",
            "image_size": size,
            "batch_size": BATCH_SIZE,
            "dtype": "bfloat16 autocast" if device.type == "cuda" else "float32",
            "examples_per_second": spread(ours),
            "chapter_examples_per_second": spread(theirs),
            "chapter_uses": chapter["uses"],
            "ratio": spread([a / b for a, b in zip(ours, theirs, strict=True)]),
            "data_share_of_step": spread(data_share),
            "floor_step_seconds": float(f"{floor_seconds:.3g}"),
            "floor_bound_by": bound_by,
            "fraction_of_floor_reached": round(floor_seconds * statistics.median(ours) / BATCH_SIZE, 3),
            **{name: float(f"{rate:.3g}") for name, rate in rates.items()},
        }
        save_row("train_speed", row, flags.save)


def in_own_process(way: str, size: int, flags: argparse.Namespace) -> dict[str, Any]:
    """What `--way` prints."""
    command = [sys.executable, __file__, "--way", way, "--sizes", str(size)]
    command += ["--device", flags.device] if flags.device else []
    command += ["--data-dir", str(flags.data_dir)] if flags.data_dir else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def run_ours(size: int, device: torch.device, data_dir: Path | None) -> dict[str, Any]:
    """Examples/s of the `d2l` recipe at `size`, and the share of a step that making its batch takes."""
    hardware.use_huge_pages()
    dataset = fashion_mnist.load(data_dir=data_dir)
    recipe = replace(Recipe.named("d2l"), image_size=size, batch_size=BATCH_SIZE)
    split = Split.on(device, dataset.train_images, dataset.train_labels)
    preprocessing = Preprocessing(size, 1, (0.0,), (1.0,))  # as the recipe has it
    augment = Augmentation(recipe.flip, recipe.translate, recipe.erase)
    generator = torch.Generator(device).manual_seed(0)
    arch = recipe.network(1, 10)
    hardware.keep_freed_memory(costs(arch, BATCH_SIZE).total.activation_bytes)
    torch.manual_seed(0)
    net = build(arch, recipe.init).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    use_fast_cpu(net)
    optimizer = make_optimizer(recipe, net)

    def made() -> Iterator[tuple[Tensor, Tensor]]:
        order = epoch_order(len(split), 0, 1).to(device)
        for images, labels in batches(split, BATCH_SIZE, order):
            yield preprocessing(augment(images, generator)), labels

    sums = torch.zeros(5, device=device)

    def step(batch: tuple[Tensor, Tensor]) -> None:
        nonlocal sums
        sums += train_step(net, optimizer, *batch, learning_rate=recipe.learning_rate)

    step_seconds = timed(made(), step, size, device)
    batch_seconds = timed(made(), lambda batch: None, size, device)
    return {"examples_per_second": BATCH_SIZE / step_seconds, "data_share": batch_seconds / step_seconds}


def run_chapter(size: int, device: torch.device, data_dir: Path | None) -> dict[str, Any]:
    """Examples/s of the chapter's way at `size`, and whose transforms it used."""
    warnings.filterwarnings("ignore", "This DataLoader will create")  # the chapter asks for 4 workers
    dataset = fashion_mnist.load(data_dir=data_dir)
    to_tensor, uses = peer_transforms()
    torch.manual_seed(0)
    net = chapters_vgg(size).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    loss = nn.CrossEntropyLoss()
    loader = torch.utils.data.DataLoader(
        ChapterDataset(dataset, size, to_tensor), BATCH_SIZE, shuffle=True, num_workers=4
    )
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

    return {"examples_per_second": BATCH_SIZE / timed(iter(loader), step, size, device), "uses": uses}


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
        torchvision = import_torchvision()
        from torchvision.transforms import functional
    except (ImportError, RuntimeError):
        return resize_by_hand, "Pillow and torch by hand"
    return (
        lambda image, size: functional.to_tensor(functional.resize(image, [size, size])),
        f"torchvision {torchvision.__version__}",
    )


def resize_by_hand(image: Image.Image, size: int) -> Tensor:
    """What torchvision's Resize and ToTensor do to a grey image."""
    pixels = torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.BILINEAR), copy=True))
    return pixels.view(1, size, size).contiguous().float().div(255)


def chapters_vgg(size: int) -> nn.Sequential:
    """The chapter's VGG-11/4 for images of `size`, of torch's own modules, with its Xavier weights."""
    layers: list[nn.Module] = []
    in_channels = 1
    for num_convs, channels in CONV_ARCH:
        for _ in range(num_convs):
            layers += [nn.Conv2d(in_channels, channels, kernel_size=3, padding=1), nn.ReLU()]
            in_channels = channels
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    features = in_channels * (size // 32) ** 2
    layers += [nn.Flatten(), nn.Linear(features, 4096), nn.ReLU(), nn.Dropout(0.5)]
    layers += [nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4096, 10)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return nn.Sequential(*layers)


def timed(
    source: Iterator[tuple[Tensor, Tensor]],
    step: Callable[[tuple[Tensor, Tensor]], None],
    size: int,
    device: torch.device,
) -> float:
    """Seconds for a step, its batch included, after the warm-up."""
    warm_up, count = GPU_STEPS if device.type == "cuda" else CPU_STEPS.get(size, (2, 5))
    for _ in range(warm_up):
        step(next(source))
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        step(next(source))
    synchronize(device)
    return (time.perf_counter() - start) / count


def measured_rates(device: torch.device) -> dict[str, float]:
    """Operations/s of a large matrix product in the dtype of training, and bytes/s of a large copy, both ways."""
    n = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    products: list[Callable[[], object]] = [lambda: a @ b]
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    product_seconds = min(median_seconds(product, device) for product in products)
    source = torch.randn(2**30 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    copy_seconds = median_seconds(lambda: target.copy_(source), device)
    return {
        "matrix_product_flops_per_second": 2 * n**3 / product_seconds,
        "copy_bytes_per_second": 2 * source.numel() * source.element_size() / copy_seconds,
    }


def median_seconds(function: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Median wall time of `function` after three calls to warm up."""
    seconds = []
    for index in range(repeats + 3):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        if index >= 3:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def floor(size: int, device: torch.device, rates: dict[str, float]) -> tuple[float, str]:
    """The least seconds for a step at `size` (see the top of this file), and what bounds it."""
    arch = vgg("vgg11/4", image_size=size).architecture
    counted = costs(arch, BATCH_SIZE)
    first = counted.layers[0]
    operations = 2 * (3 * counted.total.macs - first.macs)
    activations = sum(layer.activation_bytes for layer in counted.layers if layer.kind in ("conv", "pool", "fc"))
    activation_bytes = activations / (2 if device.type == "cuda" else 1)  # bfloat16 there
    total_bytes = 5 * activation_bytes + 6 * counted.total.param_bytes
    by_operations = operations / rates["matrix_product_flops_per_second"]
    by_bytes = total_bytes / rates["copy_bytes_per_second"]
    return max((by_operations, "operations"), (by_bytes, "bytes"))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


if __name__ == "__main__":
    main()
