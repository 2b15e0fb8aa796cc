"""What may be named where weights are asked for: a run folder, a weight file, or published weights."""

import os
from collections.abc import Callable
from pathlib import Path

from vggkit.errors import CheckpointError, WeightsError
from vggkit.training.checkpoint import NETWORK, read_newest
from vggkit.training.run_folder import MODEL
from vggkit.weights.published import fetch_weights, is_published


def find_weights(model: str | os.PathLike[str], report: Callable[[str], None] = lambda line: None) -> Path:
    """The weight file that `model` stands for.

    Args:
        model: a run folder, a weight file, or a name such as `torchvision/vgg16`, which is fetched into the user's
            cache. An unfinished run stands for its newest whole checkpoint, the one that `--resume` would take.
        report: is told in a line of a download, and of each damaged checkpoint.

    Raises:
        WeightsError: the published weights could not be fetched, or all checkpoints of the run are damaged.
    """
    path = Path(model)
    if not path.exists() and is_published(os.fspath(model)):
        return fetch_weights(os.fspath(model), report)
    if not path.is_dir() or (path / MODEL).exists():
        return path / MODEL if path.is_dir() else path
    try:
        newest = read_newest(path, report)
    except CheckpointError as error:
        raise WeightsError(str(error)) from None
    return path / MODEL if newest is None else newest[0] / NETWORK
