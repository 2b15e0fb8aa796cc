"""The weights in a run folder: the final ones, or those of the newest whole checkpoint.

A checkpoint is a folder `checkpoints/step-<number>` with the network and the optimizer as safetensors, the state as
JSON, the metrics so far, and `SHA256SUMS` in the format of `sha256sum`. `vggkit.training.checkpoint` writes the sums
last: a folder without them is no checkpoint.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from vggkit.data.files import read_regular
from vggkit.errors import CheckpointError, WeightsError, shown
from vggkit.weights.published import fetch_weights, is_published

MODEL, METRICS, CHECKPOINTS = "model.safetensors", "metrics.jsonl", "checkpoints"
NETWORK, OPTIMIZER, STATE = "network.safetensors", "optimizer.safetensors", "state.json"
FILES = (NETWORK, OPTIMIZER, STATE, METRICS)
SUMS = "SHA256SUMS"


def find_weights(model: str | os.PathLike[str], report: Callable[[str], None] = lambda line: None) -> Path:
    """The weight file of a run folder, a weight file, or a name such as `torchvision/vgg16`, which is downloaded.

    An unfinished run stands for its newest whole checkpoint, the one that `--resume` takes. `report` takes lines on a
    download and on damaged checkpoints.

    Raises:
        WeightsError: the download failed, or all checkpoints of the run are damaged.
    """
    path = Path(model)
    try:
        is_there = path.exists()
    except OSError as error:  # such as a name too long for any file
        raise WeightsError(f"{shown(path)}: expected a run or a weight file, got: {error.strerror}") from None
    if not is_there and is_published(os.fspath(model)):
        return fetch_weights(os.fspath(model), report)
    if not path.is_dir() or (path / MODEL).exists():
        return path / MODEL if path.is_dir() else path
    try:
        newest = read_newest(path, report)
    except CheckpointError as error:
        raise WeightsError(str(error)) from None
    return path / MODEL if newest is None else newest[0] / NETWORK


def read_newest(run: Path, report: Callable[[str], None]) -> tuple[Path, dict[str, bytes]] | None:
    """The newest whole checkpoint of a run, None if it has none yet; raises `CheckpointError` if all are damaged."""
    finished, begun = checkpoints_of(run), begun_checkpoints(run)
    for path in finished:
        try:
            return path, read_checkpoint(path)
        except CheckpointError as error:
            report(str(error))
    # Only a kill in the first save leaves a single checkpoint, without sums.
    if finished or len(begun) > 1:
        raise CheckpointError(f"{run}: expected a whole checkpoint, got {len(begun)} damaged, try a new run with --out")
    return None


def read_checkpoint(folder: Path) -> dict[str, bytes]:
    """The verified files of a checkpoint; raises `CheckpointError` if one is missing, changed or of another step."""
    try:
        files = {name: read_regular(folder / name) for name in FILES}
        expected = read_regular(folder / SUMS)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: expected a whole checkpoint, got: {error.strerror}: {error.filename}"
        ) from None
    sums = [sum_line(name, hashlib.sha256(content).hexdigest()) for name, content in files.items()]
    if b"".join(sums) != expected:
        expected_sums = set(expected.splitlines(keepends=True))
        wrong = [name for name, line in zip(files, sums, strict=True) if line not in expected_sums]
        raise CheckpointError(f"{folder} is damaged: expected what {SUMS} says, got another {', '.join(wrong) or SUMS}")
    try:
        step = json.loads(files[STATE])["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        step = "?"
    if folder.name != checkpoint_path(folder, step).name:
        raise CheckpointError(f"{folder}: expected the checkpoint of that step, got the one of step {step!r:.20}")
    return files


def sum_line(name: str, digest: str) -> bytes:
    """The line of a file in `SHA256SUMS`."""
    return f"{digest}  {name}\n".encode()


def checkpoint_path(run: Path, step: int | str) -> Path:
    """The folder of the checkpoint of `step`."""
    return run / CHECKPOINTS / f"step-{str(step).zfill(8)}"


def checkpoints_of(run: Path) -> list[Path]:
    """The finished checkpoints of a run, unverified, the newest first."""
    finished = (path for path in begun_checkpoints(run) if (path / SUMS).exists())
    return sorted(finished, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def begun_checkpoints(run: Path) -> list[Path]:
    """The finished and the unfinished checkpoints of a run."""
    parent = run / CHECKPOINTS
    return [path for path in parent.iterdir() if re.fullmatch(r"step-\d{8,15}", path.name)] if parent.is_dir() else []
