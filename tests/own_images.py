"""Images of one's own, written to files and read back."""

import io

import numpy as np
from PIL import Image

from vggkit.data import sources
from vggkit.data.fashion_mnist import load

SAMPLE = load("fashion-mnist-sample")


def png(index):
    """The image of the sample of Fashion-MNIST at `index`, as a file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(SAMPLE.train_images[index]).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(sample):
    content = sample.content if isinstance(sample.content, bytes) else sample.content.read_bytes()
    return np.asarray(Image.open(io.BytesIO(content)))


def write(folder, names, first=0):
    for offset, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(first + offset))


def open_images(data, holdout=0.25, seed=0, stream=False, epoch_images=0):
    return sources.open_data(data, holdout=holdout, seed=seed, stream=stream, epoch_images=epoch_images)


def read_all(images, seed=0, epoch=0):
    read = images.reader(seed, epoch)
    return [read(position) for position in range(len(images))]


def names(images):
    return [sample.name for sample in read_all(images)]


def touch(*names):
    def make(folder):
        for name in names:
            path = folder / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.touch()

    return make
