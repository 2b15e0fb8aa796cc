from dataclasses import replace

import pytest
from PIL import Image

from vggkit import Recipe
from vggkit.data.fashion_mnist import load


@pytest.fixture(scope="session")
def recipe():
    """Everything that draws at random or remembers: dropout, augmentation, batch norm, momentum.

    With layers that compiled convolutions take; without the norm they take ReLU and pool along.
    """
    return replace(
        Recipe.named("quick"), data="fashion-mnist-sample", architecture="1x16 2x16_bn", head="flatten", hidden=(64,),
        dropout=0.2, image_size=16, batch_size=32, optimizer="sgd", learning_rate=0.02, momentum=0.9, weight_decay=5e-4,
        epochs=3, label_smoothing=0.0, translate=2, erase=4, cutmix=0.5, average=0.1, test_flip=True,
    )  # fmt: skip


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of 241 images in four classes, with a validation set of 81."""
    folder, sample = tmp_path_factory.mktemp("photos"), load("fashion-mnist-sample")
    for split, start, stop in (("train", 0, 60), ("val", 61, 81)):
        for label in range(4):
            place = folder / split / sample.classes[label]
            place.mkdir(parents=True)
            images = sample.train_images[sample.train_labels == label][start : stop + (label == 0)]
            for index, image in enumerate(images):
                Image.fromarray(image).save(place / f"{index}.png")
    return folder
