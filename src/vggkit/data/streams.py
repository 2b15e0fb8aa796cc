"""Images of files that are read sequentially and shuffled through a buffer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vggkit.data.files import MAX_IMAGE_BYTES
from vggkit.data.samples import Sample
from vggkit.data.tars import Label, Row
from vggkit.errors import DataError

NUM_LANES = 16
"""Files are distributed over this many lanes, from which images are taken in turn. The order is independent of the
number of processes, and each of 2, 4, 8 or 16 processes with whole batches reads only its own lanes."""

SHUFFLE_BUFFER_IMAGES = 1_000  # encoded images that a shuffled stream holds in memory, in all lanes together


@dataclass(frozen=True, eq=False)
class StreamImages:
    """Images that are read in sequence."""

    split: str
    files: list[str]
    counts: list[int] | None  # images in each file; None if unknown, which makes one lane
    length: int  # images in an epoch
    rows: Callable[[str], Iterator[Row]]  # reads a file
    label_of: Callable[[Label, str], int]
    is_stream: bool = True

    def __len__(self) -> int:
        return self.length

    def reader(self, seed: int, epoch: int) -> Callable[[int], Sample]:
        """See `Images`; positions that do not ascend raise `ValueError`."""
        lanes, places = self._assign_lanes(seed, epoch)
        streams = [self._lane(files, len(lanes), [seed, epoch, lane]) for lane, files in enumerate(lanes)]
        taken, next_position = [0] * len(lanes), 0

        def read(position: int) -> Sample:
            nonlocal next_position
            if position < next_position:
                raise ValueError(
                    f"expected positions of a stream in ascending order, got {position} after {next_position - 1}"
                )
            next_position = position + 1
            lane, number = places[position].tolist() if places is not None else (0, position)
            row = None
            while taken[lane] <= number:
                row = next(streams[lane], None)
                if row is None:
                    raise DataError(
                        f"{self.split}: expected {self.length:,} images, got a stream of {sum(taken):,}, "
                        f"try --epoch-images {sum(taken)}"
                    )
                taken[lane] += 1
            assert row is not None  # noqa: S101 (positions ascend)
            if row.content is None or len(row.content) > MAX_IMAGE_BYTES:
                raise DataError(f"{row.name}: expected an image of 1 to {MAX_IMAGE_BYTES:,} bytes, got none or more")
            return Sample(row.name, self.label_of(row.label, row.name), row.content)

        return read

    def _assign_lanes(self, seed: int, epoch: int) -> tuple[list[list[str]], npt.NDArray[np.int64] | None]:
        """The files of each lane; and the lane and the number in it of each position, int64 (images, 2)."""
        order = list(range(len(self.files)))
        if epoch:
            order = _random_state(seed, epoch).permutation(len(self.files)).tolist()
        if self.counts is None:
            return [[self.files[index] for index in order]], None
        lanes: list[list[str]] = [[] for _ in range(min(NUM_LANES, len(self.files)))]
        sizes = [0] * len(lanes)
        for index in order:
            shortest = sizes.index(min(sizes))
            lanes[shortest].append(self.files[index])
            sizes[shortest] += self.counts[index]
        lane_of = np.repeat(np.arange(len(lanes)), sizes)
        number_in = np.concatenate([np.arange(size) for size in sizes])
        round_robin = np.lexsort((lane_of, number_in))
        return lanes, np.stack([lane_of[round_robin], number_in[round_robin]], axis=1)

    def _lane(self, files: list[str], num_lanes: int, seeds: list[int]) -> Iterator[Row]:
        rows = (row for file in files for row in self.rows(file))
        _, epoch, _ = seeds
        return _shuffled(rows, SHUFFLE_BUFFER_IMAGES // num_lanes, _random_state(*seeds)) if epoch else rows


def _shuffled(rows: Iterator[Row], size: int, random: np.random.RandomState) -> Iterator[Row]:
    """`rows`, shuffled through a buffer of `size`."""
    buffer: list[Row] = []
    for row in rows:
        if len(buffer) < size:
            buffer.append(row)
            continue
        index = random.randint(size)
        yield buffer[index]
        buffer[index] = row
    for index in random.permutation(len(buffer)):
        yield buffer[index]


def _random_state(*seeds: int) -> np.random.RandomState:
    # Not default_rng: only RandomState's numbers are stable for ever (NEP 19), and a resumed run needs them.
    return np.random.RandomState([seed % 2**32 for seed in seeds])
