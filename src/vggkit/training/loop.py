"""A recipe to a trained network: `train` reads from top to bottom."""

import contextlib
import ctypes
import json
import math
import os
import platform
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vggkit
from vggkit.data.fashion_mnist import SAMPLE_NAME, SAMPLE_WARNING, DataError, Dataset, load
from vggkit.data.loading import Augmentation, Split, batches, epoch_order
from vggkit.data.preprocessing import Preprocessing
from vggkit.design.costs import costs
from vggkit.networks.baselines import BaselineNetwork, build
from vggkit.networks.fully_connected import use_fast_cpu
from vggkit.networks.published import find_weights
from vggkit.networks.vgg import VGG
from vggkit.networks.warm_start import warm_start
from vggkit.networks.weights import load_weights, save_weights
from vggkit.training.progress import EpochMetrics, Progress
from vggkit.training.recipe import Recipe

KEPT_MEMORY_BYTES = 2**30
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


class RunError(ValueError):
    """A run that cannot start here; the message is one line."""


class DivergedError(RuntimeError):
    """A run whose loss is no longer finite; the message is one line."""


@dataclass(frozen=True)
class Run:
    """What `train` leaves behind."""

    folder: Path
    """Holds recipe.json, metrics.jsonl, curves.png and model.safetensors."""
    recipe: Recipe
    net: VGG | BaselineNetwork
    """Trained, on the device, in evaluation mode."""
    history: tuple[EpochMetrics, ...]
    """One for each finished epoch."""
    device: str
    """`cuda:0`, `mps`, `cpu`."""
    hardware: str
    """Its name, and for a CPU the threads used."""
    interrupted: bool
    """Whether Ctrl-C ended it."""

    @property
    def summary(self) -> str:
        """The book's two lines: the last epoch's loss and accuracies; examples/s over the whole run."""
        if not self.history:
            return "stopped before the end of the first epoch"
        last, evaluated_on = self.history[-1], "validation" if self.recipe.validation else "test"
        examples = sum(m.examples_per_second * m.train_seconds for m in self.history)
        speed = examples / sum(m.train_seconds for m in self.history)
        return (
            f"loss {last.train_loss:.3f}, train acc {last.train_accuracy:.3f}, "
            f"{evaluated_on} acc {last.test_accuracy:.3f}\n"
            f"{speed:.1f} examples/sec on {self.device}"
        )


def train(
    recipe: Recipe,
    *,
    out: str | Path | None = None,
    device: str | None = None,
    data_dir: str | Path | None = None,
    progress: bool = True,
) -> Run:
    """Train the network of `recipe` on its data, from its seed, into a new run folder.

    Ctrl-C ends it early; what was learned is saved all the same.

    Args:
        recipe: all that decides the run.
        out: the run folder, which must not exist yet; `runs/<name>-<number>` by default.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; by default a GPU if there is one, as the book's `try_gpu()`.
        data_dir: where to look for the data first.
        progress: show live progress.

    Raises:
        DataError: the data is missing or damaged.
        ArchitectureError: the network does not fit the data.
        ValueError: the weights to start from are missing, damaged or of other shapes.
        RunError: the folder exists, or the device does not.
        DivergedError: the loss is no longer finite.
    """
    _use_huge_pages()
    chosen = choose_device(device)
    if Path(recipe.data).is_dir():
        recipe = replace(recipe, data=str(Path(recipe.data).resolve()))  # also found from elsewhere
    if recipe.warm_start and Path(recipe.warm_start).exists():
        recipe = replace(recipe, warm_start=str(Path(recipe.warm_start).resolve()))
    dataset = load(recipe.data, Path(data_dir) if data_dir is not None else None)
    train_split, test_split = _splits(recipe, dataset, chosen)
    preprocessing = _preprocessing(recipe, train_split)
    augment = Augmentation(recipe.flip, recipe.translate, recipe.erase)
    architecture = recipe.network(in_channels=train_split.images.shape[1], num_classes=len(dataset.classes))
    _keep_freed_memory(costs(architecture, recipe.batch_size).total.activation_bytes)
    torch.manual_seed(recipe.seed)
    net = build(architecture, recipe.init, checkpoint=recipe.checkpoint)
    copied = warm_start(net, load_weights(find_weights(recipe.warm_start))[0]) if recipe.warm_start else ()
    net.to(chosen).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    use_fast_cpu(net)
    optimizer = _optimizer(recipe, net)
    augmentation_draws = torch.Generator(chosen).manual_seed(recipe.seed)

    folder = _new_folder(recipe, out)
    (folder / "recipe.json").write_text(recipe.to_json() + "\n")
    evaluated_on = "validation" if recipe.validation else "test"
    steps_per_epoch = -(-len(train_split) // recipe.batch_size)
    shown = Progress(folder, recipe.epochs, steps_per_epoch, evaluated_on, progress)
    hardware = describe_hardware(chosen)
    shown.log("start", device=str(chosen), hardware=hardware, torch=torch.__version__, vggkit=vggkit.__version__)
    shown.say(
        f"{architecture.name}: {sum(p.numel() for p in net.parameters()):,} parameters, {recipe.image_size} px, "
        f"{dataset.name}: {len(train_split):,} training and {len(test_split):,} {evaluated_on} images, on {hardware}"
    )
    if copied:
        shown.say(f"started from {recipe.warm_start}: {', '.join(copied)}")
    if dataset.name == SAMPLE_NAME:
        shown.say(SAMPLE_WARNING)
    start, step, interrupted = time.perf_counter(), 0, False
    try:
        for epoch in range(1, recipe.epochs + 1):
            epoch_start = time.perf_counter()
            net.train()
            sums = torch.zeros(3, device=chosen)  # loss x images, correct, images
            order = epoch_order(len(train_split), recipe.seed, epoch).to(chosen)
            for images, labels in batches(train_split, recipe.batch_size, order):
                learning_rate = recipe.learning_rate_at(step, steps_per_epoch)
                x = preprocessing(augment(images, augmentation_draws))
                sums += train_step(net, optimizer, x, labels, learning_rate, recipe.label_smoothing)
                step += 1
                shown.step(step, sums)
            loss_sum, correct, count = sums.tolist()  # waits for the device: the only time in an epoch
            train_seconds = time.perf_counter() - epoch_start
            test_accuracy = evaluate(net, test_split, preprocessing, recipe.batch_size)
            if not (math.isfinite(loss_sum) and math.isfinite(test_accuracy)):
                raise DivergedError(
                    f"expected a finite loss and finite outputs, got a loss of {loss_sum / count} in epoch {epoch}, "
                    f"try a --learning-rate below {recipe.learning_rate:g} or --architecture with _bn"
                )
            shown.epoch(
                EpochMetrics(
                    epoch=epoch,
                    step=step,
                    train_loss=loss_sum / count,
                    train_accuracy=correct / count,
                    test_accuracy=test_accuracy,
                    learning_rate=learning_rate,
                    examples_per_second=count / train_seconds,
                    train_seconds=train_seconds,
                    elapsed_seconds=time.perf_counter() - start,
                )
            )
    except KeyboardInterrupt:
        interrupted = True
        # Ctrl-C comes to the main thread alone, where handlers may be set. Let it wait until all is saved.
        ctrl_c = signal.signal(signal.SIGINT, signal.SIG_IGN)
    finally:
        shown.close()
    use_fast_cpu(net, on=False)
    metadata = {"classes": json.dumps(dataset.classes), "preprocessing": preprocessing.to_json()}
    save_weights(folder / "model.safetensors", net, metadata)
    if interrupted:
        signal.signal(signal.SIGINT, ctrl_c)
    return Run(folder, recipe, net.eval(), tuple(shown.history), str(chosen), hardware, interrupted)


def train_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    labels: Tensor,
    learning_rate: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """One step of `optimizer` on a batch, without waiting for the device.

    Args:
        net: in training mode.
        optimizer: of its parameters.
        x: (batch, channels, image_size, image_size).
        labels: int64 (batch,).
        learning_rate: of this step.
        label_smoothing: share of the target that goes to all classes alike.

    Returns:
        (loss x images, correct, images) of the batch, float32 (3,), on the device.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad()  # before the forward pass, whose activations take the room of the last step's gradients
    with autocast(x.device):
        logits = net(x)
        loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        correct = (logits.argmax(dim=1) == labels).sum()
        count = torch.full((), float(len(labels)), device=x.device)
        return torch.stack([loss.float() * count, correct.float(), count])


@torch.no_grad()
def evaluate(net: nn.Module, split: Split, preprocessing: Preprocessing, batch_size: int) -> float:
    """Top-1 accuracy of `net` on `split`, in evaluation mode, which the network is left in; NaN if an output is."""
    net.eval()
    correct = torch.zeros((), device=split.labels.device)
    for images, labels in batches(split, batch_size):
        with autocast(images.device):
            logits = net(preprocessing(images))
        correct += (logits.argmax(dim=1) == labels).sum()
        correct += 0 * logits.float().sum()  # NaN from the first output that is not finite
    return correct.item() / len(split)


def autocast(device: torch.device) -> torch.autocast | nullcontext[None]:
    """Mixed precision where it pays: bfloat16 on CUDA, nothing elsewhere."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def choose_device(name: str | None) -> torch.device:
    """The device called `name`; None for the first CUDA GPU, else Apple's GPU, else the CPU.

    Raises:
        RunError: this machine has no such device.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device == torch.device("cuda"):
            device = torch.device("cuda", 0)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"expected a device of this machine, got {name!r} ({reason}), try cpu") from None
    return device


def describe_hardware(device: torch.device) -> str:
    """What a figure measured on `device` was measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    if device.type == "mps":
        return f"{model}, mps"
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'s' * (threads > 1)}, {capability}"


def _use_huge_pages() -> None:
    """Ask torch for 2 MiB pages: at 224 pixels half of a CPU step is otherwise spent on page faults.

    torch reads the variable once, at the first tensor; where that has been made, nothing changes.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def _keep_freed_memory(activation_bytes: int) -> None:
    """Let glibc keep what a step frees for the next step, which otherwise maps, zeroes and unmaps it anew.

    Only where the activations of a step are small: kept memory is memory used.
    """
    if activation_bytes < KEPT_MEMORY_BYTES and sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _splits(recipe: Recipe, dataset: Dataset, device: torch.device) -> tuple[Split, Split]:
    images, labels = dataset.train_images, dataset.train_labels
    for field in ("translate", "erase"):
        if getattr(recipe, field) >= min(images.shape[1:]):
            raise RunError(f"expected {field} below the {images.shape[1:]} of the images, got {getattr(recipe, field)}")
    if recipe.validation:
        if recipe.validation >= len(images):
            raise DataError(f"expected validation below the {len(images)} training images, got {recipe.validation}")
        cut = len(images) - recipe.validation
        return Split.on(device, images[:cut], labels[:cut]), Split.on(device, images[cut:], labels[cut:])
    return Split.on(device, images, labels), Split.on(device, dataset.test_images, dataset.test_labels)


def _preprocessing(recipe: Recipe, split: Split) -> Preprocessing:
    channels = split.images.shape[1]
    mean, std = (0.0,) * channels, (1.0,) * channels
    if recipe.normalize:
        # From a histogram: exact, and no copy of the training set in another type.
        counts = [torch.bincount(split.images[:, c].flatten(), minlength=256).cpu().double() for c in range(channels)]
        levels = torch.arange(256, dtype=torch.float64) / 255
        means = [((n @ levels) / n.sum()).item() for n in counts]
        stds = [((n @ (levels - m).square()) / n.sum()).sqrt().item() for n, m in zip(counts, means, strict=True)]
        mean, std = tuple(means), tuple(s or 1.0 for s in stds)  # 1 for images all alike
    return Preprocessing(recipe.image_size, channels, mean, std)


def _optimizer(recipe: Recipe, net: nn.Module) -> torch.optim.Optimizer:
    weights = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    return torch.optim.SGD(
        groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True
    )


def _new_folder(recipe: Recipe, out: str | Path | None) -> Path:
    candidates: Iterable[Path]
    if out is not None:
        candidates = [Path(out)]
    else:
        candidates = (Path("runs") / f"{recipe.name}-{number}" for number in range(1, 100_000))
    for folder in candidates:
        try:
            folder.mkdir(parents=True)  # fails if it exists, also when two runs start at once
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(f"expected a folder that can be made, got {folder}: {error.strerror}") from None
        return folder
    raise RunError(f"expected a run folder that does not exist yet, got {out}, try another --out")
