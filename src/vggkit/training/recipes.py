"""The named recipes; each one's docstring says what to expect of it, and on what it was measured."""

from collections.abc import Callable
from dataclasses import replace

from vggkit.training.recipe import Recipe


def quick() -> Recipe:
    """The default: VGG-11/4 with batch norm at 32 pixels, made for two CPU cores.

    Command: `vgg train`. Expected on 2 threads of an AMD EPYC (AVX-512): at least 0.925 on the test set in at most
    3 minutes, start-up and evaluation included. `benchmarks/quick_accuracy.py` measures both, and
    `benchmarks/results/quick_accuracy.jsonl` holds what it measured. Chosen on the last 5,000 training images, kept
    out with `--validation 5000`; `docs/decisions.md` has what was compared.
    """
    return Recipe(
        name="quick",
        architecture="vgg11_bn/4",
        image_size=32,
        hidden=(),
        dropout=0.0,
        init="kaiming",
        epochs=6,
        batch_size=128,
        optimizer="adamw",
        learning_rate=0.006,
        schedule="linear",
        warmup=0.2,
        weight_decay=0.05,
        normalize=True,
        flip=True,
    )


def d2l() -> Recipe:
    """The chapter's own: VGG-11/4 at 224 pixels, SGD without momentum, no augmentation.

    Command: `vgg train --recipe d2l`. Expected, from the book: loss 0.177, train acc 0.934, test acc 0.911 to
    0.920 after 10 epochs, at about 2,500 examples/s on the authors' GPU. Not measured on a GPU by us yet.
    """
    return Recipe(
        name="d2l",
        architecture="vgg11/4",
        image_size=224,
        init="xavier",
        epochs=10,
        batch_size=128,
        learning_rate=0.05,
    )


def d2l_1_0() -> Recipe:
    """The chapter's, as its 1.0 edition has it: a learning rate of 0.01.

    Command: `vgg train --recipe d2l-1.0`. Not measured by us yet.
    """
    return replace(d2l(), name="d2l-1.0", learning_rate=0.01)


def gluon() -> Recipe:
    """The chapter's, for 3 epochs as its Gluon edition had it.

    Command: `vgg train --recipe gluon`. Not measured by us yet.
    """
    return replace(d2l(), name="gluon", epochs=3)


def paper() -> Recipe:
    """The paper's own training of VGG-16 (arXiv 1409.1556, section 3.1), for a folder of photos such as ImageNet.

    Command: `vgg train --recipe paper --data path/to/imagenet`. Expected, from the paper: 74 epochs to a top-1 error
    of 25.6% at one scale. Not measured by us: it takes ImageNet and some hundred GPU hours.
    """
    return Recipe(
        name="paper",
        architecture="vgg16",
        image_size=224,
        data="imagenet",
        init="kaiming",
        epochs=74,
        batch_size=256,
        learning_rate=0.01,
        schedule="plateau",
        momentum=0.9,
        weight_decay=5e-4,
        normalize=True,
        shorter_side=(256, 512),
        color_shift=0.1,
        flip=True,
    )


def finetune() -> Recipe:
    """From published weights to a few hundred images per class: the last layer first, then all.

    Command: `vgg train --recipe finetune --data path/to/folder`.
    """
    return Recipe(
        name="finetune",
        architecture="vgg16",
        image_size=224,
        data="images",
        channels="rgb",
        head="adaptive",
        init="torch",
        pretrained="torchvision/vgg16",
        head_epochs=3,
        epochs=13,
        batch_size=32,
        learning_rate=0.001,
        schedule="cosine",
        momentum=0.9,
        weight_decay=5e-4,
        normalize=True,
        shorter_side=(256, 320),
        flip=True,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "quick": quick,
    "d2l": d2l,
    "d2l-1.0": d2l_1_0,
    "gluon": gluon,
    "paper": paper,
    "finetune": finetune,
}
"""The named recipes; each one's docstring says what to expect of it."""
