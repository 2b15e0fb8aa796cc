"""Nearly equal images in two splits, found without a network: the same photo saved again, or at another size."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

THUMBNAIL_SIDE = 16
"""Pixels along a side of what is compared, in colour."""
MOST_DIFFERENCE = 4.0
"""Grey levels, root mean square over a thumbnail, up to which two images are nearly equal. Of scikit-image's pictures,
a JPEG of quality 30 or 64 x 64 pixels differ from the original by less than 2, and two of them by more than 8; of
Fashion-MNIST, the first 2,000 test images differ from all training images by more than 4."""
MOST_AT_ONCE = 2**24
"""Pairs that are compared at a time."""


class Duplicate(NamedTuple):
    """Two images that are nearly equal."""

    image: int
    """Its row among the images that were asked about."""
    like: int
    """The row of the nearest image among the others."""
    difference: float
    """Grey levels, root mean square over the thumbnail."""


def near_duplicates(
    images: npt.NDArray[np.uint8], others: npt.NDArray[np.uint8], most: float = MOST_DIFFERENCE
) -> list[Duplicate]:
    """Each of `images` that differs from one of `others` by at most `most` grey levels, with the nearest of them.

    Args:
        images: thumbnails, (images, ...).
        others: thumbnails of the same shape, (others, ...).
        most: root mean square of the differences.
    """
    a, found = torch.from_numpy(images).flatten(1).float() - 128, list[Duplicate]()
    best, like = torch.full((len(a),), torch.inf), torch.zeros(len(a), dtype=torch.long)
    num_rows = max(1, MOST_AT_ONCE // max(1, len(a)))
    for start in range(0, len(others), num_rows):
        b = torch.from_numpy(others[start : start + num_rows]).flatten(1).float() - 128
        distances, rows = (b.square().sum(dim=1) - 2 * a @ b.T).min(dim=1)
        like = torch.where(distances < best, rows + start, like)
        best = best.minimum(distances)
    for row, nearest in enumerate(like.tolist() if len(others) else []):
        # Once more from the differences: float32 has few digits left of those of large squares.
        difference = float(np.sqrt(np.mean((images[row].astype(float) - others[nearest]) ** 2)))
        if difference <= most:
            found.append(Duplicate(row, nearest, difference))
    return found
