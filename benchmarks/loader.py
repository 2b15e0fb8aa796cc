"""What worker processes cost and bring: images per second of `Loader`, of torch's bare DataLoader and of a plain loop.

    taskset -c 1 python benchmarks/loader.py [--save]

Two sets of JPEGs, held in memory: 10,000 of Fashion-MNIST, 28 x 28 and grey, fitted to 32 pixels in batches of 128; and
1,000 of 500 x 375 in colour, pictures with noise at several scales, cropped at random to 224 with S from 256 to 480 in
batches of 64. On one core a worker can bring nothing: what is seen is what it costs.
"""

import argparse
import io
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from measuring import row_header, save_row, spread
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vggkit.data.fashion_mnist import load
from vggkit.data.images import fitted, random_crop, read_image
from vggkit.data.preprocessing import Preprocessing
from vggkit.data.samples import Sample
from vggkit.data.workers import Loader

REPEATS = 5
GREY_32 = Preprocessing(32, 1, (0.286,), (0.353,))


@dataclass(frozen=True)
class Jpegs:
    """Images in memory."""

    contents: list[bytes] = field(repr=False)
    is_stream: bool = False

    def __len__(self) -> int:
        return len(self.contents)

    def reader(self, seed: int, epoch: int) -> Callable[[int], Sample]:
        return lambda position: Sample(str(position), 0, self.contents[position])


def read_small(sample: Sample, epoch: int, index: int) -> Tensor:
    return fitted(read_image(sample.content, 1, sample.name), GREY_32)


def read_large(sample: Sample, epoch: int, index: int) -> Tensor:
    return random_crop(sample.content, 3, 224, (256, 480), np.random.default_rng([epoch, index]), sample.name)


def as_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def noisy_picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)).resize((500, 375)), np.float32)
        for h, w in ((5, 7), (30, 40), (190, 250))
    ]
    return Image.fromarray(np.mean(layers, axis=0).astype(np.uint8))


@dataclass(frozen=True)
class Plain(Dataset[Tensor]):
    """What one would give to DataLoader."""

    images: Jpegs
    read: Callable[[Sample, int, int], Tensor]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.read(self.images.reader(0, 1)(index), 1, index)


def measure(images: Jpegs, read: Callable[[Sample, int, int], Tensor], batch_size: int) -> dict[str, object]:
    parts = [np.arange(start, min(start + batch_size, len(images))) for start in range(0, len(images), batch_size)]
    plain = Plain(images, read)

    def loop() -> Iterator[Tensor]:
        for part in parts:
            yield torch.stack([plain[index] for index in part.tolist()])

    ways: dict[str, Callable[[], Iterator[object]]] = {"loop": loop}
    loaders = []
    for num_workers in (0, 1):
        loader = Loader(images, read, seed=0, num_workers=num_workers, pin_memory=False, bad_images="fail")
        bare = DataLoader(plain, batch_size=batch_size, num_workers=num_workers, persistent_workers=num_workers > 0)
        loaders.append(loader)
        ways[f"Loader, {num_workers} workers"] = lambda loader=loader: loader.batches(parts, 1)  # type: ignore[misc]
        ways[f"DataLoader, {num_workers} workers"] = lambda bare=bare: iter(bare)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(REPEATS + 1):
        for way in random.sample(list(ways), len(ways)):
            started = time.perf_counter()
            for _ in ways[way]():
                pass
            if repeat:  # the first one starts the workers
                seconds[way].append(time.perf_counter() - started)
    for loader in loaders:
        loader.close()
    loop_seconds = float(np.median(seconds["loop"]))
    return {
        way: {
            "images_per_second": spread([len(images) / value for value in values]),
            "more_ms_per_batch_than_loop": round(1e3 * (float(np.median(values)) - loop_seconds) / len(parts), 2),
        }
        for way, values in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true")
    save = parser.parse_args().save
    torch.set_num_threads(1)
    small = Jpegs([as_jpeg(Image.fromarray(image)) for image in load().train_images[:10_000]])
    large = Jpegs([as_jpeg(noisy_picture(seed)) for seed in range(1_000)])
    header = row_header(torch.device("cpu"), REPEATS)
    for name, images, read, batch_size in (
        ("10,000 x 28 px grey to 32", small, read_small, 128),
        ("1,000 x 500 x 375 to 224", large, read_large, 64),
    ):
        mean_bytes = sum(map(len, images.contents)) // len(images)
        row = {"images": name, "mean_bytes": mean_bytes, "batch_size": batch_size, **measure(images, read, batch_size)}
        save_row("loader", {**header, **row}, save)


if __name__ == "__main__":
    main()
