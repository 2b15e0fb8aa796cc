"""Near duplicates between two splits, found without a network: the same photo, saved again or resized."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

THUMBNAIL_SIDE = 16  # pixels along a side of the thumbnails, in colour
MAX_DIFFERENCE = 4.0
"""Root mean square over a thumbnail, in grey levels, up to which images are near duplicates. scikit-image's pictures
differ from their own JPEG of quality 30 or 64 x 64 pixels by less than 2 and from each other by more than 8; the first
2,000 test images of Fashion-MNIST differ from all training images by more than 4."""
MAX_PAIRS = 2**24  # pairs that are compared at a time


class Duplicate(NamedTuple):
    """Two nearly equal images."""

    image: int  # row of `images`
    like: int  # row of the nearest one in `others`
    difference: float  # grey levels, root mean square over the thumbnail


def near_duplicates(
    images: npt.NDArray[np.uint8], others: npt.NDArray[np.uint8], max_difference: float = MAX_DIFFERENCE
) -> list[Duplicate]:
    """The thumbnails `images`, (images, ...), with a near duplicate in `others`, (others, ...)."""
    a, duplicates = torch.from_numpy(images).flatten(1).float() - 128, list[Duplicate]()
    best, like = torch.full((len(a),), torch.inf), torch.zeros(len(a), dtype=torch.long)
    num_rows = max(1, MAX_PAIRS // max(1, len(a)))
    for start in range(0, len(others), num_rows):
        b = torch.from_numpy(others[start : start + num_rows]).flatten(1).float() - 128
        distances, rows = (b.square().sum(dim=1) - 2 * a @ b.T).min(dim=1)
        like = torch.where(distances < best, rows + start, like)
        best = best.minimum(distances)
    for row, nearest in enumerate(like.tolist() if len(others) else []):
        # Computed again: the float32 distance, a difference of large squares, has lost its digits.
        difference = float(np.sqrt(np.mean((images[row].astype(float) - others[nearest]) ** 2)))
        if difference <= max_difference:
            duplicates.append(Duplicate(row, nearest, difference))
    return duplicates
