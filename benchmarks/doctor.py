"""Is the doctor right? Compares its verdict on a network with whether the loss of that network then moves.

    python benchmarks/doctor.py [--steps 1000] [--only TEXT] [--save]

The networks are VGG-11/8 and VGG-19/8 on Fashion-MNIST at 32 pixels, from every initialisation, with and without batch
norm, with SGD (the paper's momentum and learning rate) and AdamW; LeNet; learning rates that are too high; and VGG-19/8
warm-started from a trained VGG-11/8. The doctor sees the first batch of 32. Then the network is trained until the mean
loss of the last 20 steps is 0.1 below the entropy of the labels, ln(10), or for `--steps`. `agrees` says whether the
verdict came true; it is null for `slow`, which predicts neither.
Prints a JSON line for each case, or for those whose first words (as in "vgg11/8 xavier sgd") contain --only.
"""

import math
import sys
from collections import deque

import torch
from measuring import digits, parser, row_header, save_row
from torch import Tensor

from vggkit import VGG, accelerate, as_network, build, examine, warm_start
from vggkit.data.fashion_mnist import load
from vggkit.data.loading import Split, epoch_order
from vggkit.data.preprocessing import Preprocessing
from vggkit.networks.baselines import BaselineNetwork
from vggkit.training.recipe import Optimizer
from vggkit.training.step import train_step

BATCH_SIZE, HIDDEN, WINDOW = 32, (512, 512), 20
MOVED = math.log(10) - 0.1
Steps = tuple[Optimizer, float, float]
"""Optimizer, learning rate, momentum."""
SGD: Steps = ("sgd", 0.01, 0.9)
ADAMW: Steps = ("adamw", 0.001, 0.0)

CASES: list[tuple[str, str, Steps]] = [
    *(
        (name, init, steps)
        for name in ("vgg11/8", "vgg19/8", "vgg11_bn/8", "vgg19_bn/8")
        for init in ("kaiming", "xavier", "paper", "torch")
        for steps in (SGD, ADAMW)
    ),
    *(("vgg11/8", "kaiming", ("sgd", learning_rate, 0.0)) for learning_rate in (0.05, 0.2, 1.0)),
    ("vgg11/8", "xavier", ("sgd", 1.0, 0.0)),
    ("lenet", "xavier", ("sgd", 0.05, 0.0)),
    ("lenet", "xavier", ("sgd", 0.9, 0.0)),
]
WARM_CASES: list[tuple[str, str, Steps]] = [
    ("vgg19/8", init, steps) for init in ("xavier", "paper", "torch") for steps in (SGD, ADAMW)
]


def new_network(name: str, init: str) -> VGG | BaselineNetwork:
    torch.manual_seed(0)
    network = as_network(name, in_channels=1, num_classes=10, image_size=32, hidden=HIDDEN)
    return build(network, init).to(memory_format=torch.channels_last)  # type: ignore[arg-type, call-overload, no-any-return]


def train_until_it_moves(
    net: VGG | BaselineNetwork, split: Split, steps: Steps, most: int, below: float = MOVED
) -> tuple[int | None, float]:
    """The number of steps until the loss is below `below`, None if that is more than `most`; and the last loss."""
    name, learning_rate, momentum = steps
    optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=learning_rate, momentum=momentum)
    if name == "adamw":
        optimizer = torch.optim.AdamW(net.parameters(), lr=learning_rate)
    fast = accelerate(net.train())
    losses: deque[float] = deque(maxlen=WINDOW)
    done = 0
    while done < most:
        for index in epoch_order(len(split), 0, 1).split(BATCH_SIZE):
            images, labels = preprocess(split.images[index]), split.labels[index]
            sums = train_step(fast, optimizer, images, labels, learning_rate)
            losses.append((sums[0] / sums[2]).item())
            done += 1
            if len(losses) == WINDOW and sum(losses) / WINDOW < below:
                return done, sum(losses) / WINDOW
            if done == most or not math.isfinite(losses[-1]):
                return None, sum(losses) / len(losses)
    raise AssertionError


def preprocess(images: Tensor) -> Tensor:
    return Preprocessing(32, 1, (0.0,), (1.0,))(images)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--steps", type=int, default=1000)
    flags.add_argument("--only", default="")
    given = flags.parse_args()
    cpu = torch.device("cpu")
    dataset = load()
    split = Split.on(cpu, dataset.train_images, dataset.train_labels)
    chosen = epoch_order(len(split), 0, 1)[:BATCH_SIZE]
    images, labels = split.images[chosen], split.labels[chosen]

    source, source_loss = new_network("vgg11/8", "kaiming"), math.nan
    agreed: list[bool | None] = []
    for index, (name, init, steps) in enumerate(CASES + WARM_CASES):
        if given.only not in f"{name} {init} {steps[0]}":
            continue
        net = new_network(name, init)
        is_warm = index >= len(CASES)
        if is_warm:
            if math.isnan(source_loss):
                _, source_loss = train_until_it_moves(source, split, ADAMW, len(split) // BATCH_SIZE, below=0.0)
            warm_start(net, source)
        optimizer, learning_rate, momentum = steps
        diagnosis = examine(
            net, preprocess(images), labels, optimizer=optimizer, learning_rate=learning_rate, momentum=momentum
        )
        moved_after, last_loss = train_until_it_moves(net, split, steps, given.steps)
        claims = diagnosis.verdict != "slow"
        agrees = (diagnosis.verdict == "learns") == (moved_after is not None) if claims else None
        agreed.append(agrees)
        row = {
            **row_header(cpu, repeats=1),
            "network": name,
            "init": init,
            "warm_start": f"vgg11/8 at a loss of {source_loss:.2f}" if is_warm else "",
            "optimizer": optimizer,
            "learning_rate": learning_rate,
            "momentum": momentum,
            "verdict": diagnosis.verdict,
            "plateau": digits(diagnosis.plateau, 2),
            "overshoot": digits(diagnosis.overshoot, 2),
            "contrast": digits(diagnosis.layers[-1].contrast, 2),
            "first_gradient": digits(diagnosis.layers[0].gradient, 2),
            "steps": given.steps,
            "moved_after": moved_after,
            "last_loss": round(last_loss, 3) if math.isfinite(last_loss) else None,
            "agrees": agrees,
        }
        save_row("doctor", row, given.save)
    print(f"{agreed.count(True)} agree, {agreed.count(False)} do not, {agreed.count(None)} are slow", file=sys.stderr)


if __name__ == "__main__":
    main()
