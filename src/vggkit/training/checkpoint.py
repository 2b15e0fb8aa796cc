"""Checkpoints: everything that decides the rest of a run, written completely; `vggkit.weights.runs` reads them.

No state of a random generator is saved: seed and step determine every draw, see `vggkit.data.loading.derived_seed`.
"""

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from vggkit.data.files import sync_folder, write_synced, write_whole
from vggkit.errors import CheckpointError, one_line
from vggkit.training.run_state import RunState
from vggkit.training.step import Training
from vggkit.weights import runs
from vggkit.weights.files import AnyNetwork, safetensors_pieces

SAVE_SECONDS = 50.0  # the time between two checkpoints: with the time to write one, a kill loses at most a minute
MAX_KEPT = 2
TRAINED = "trained"
"""Suffix of the trained tensors in the optimizer's file, if the checkpoint's network is an average of weights."""

Pieces = Iterable[bytes | memoryview]
"""The content of a file, in order."""


def snapshot(
    training: Training, metrics: bytes, buffers: dict[str, Tensor] | None = None
) -> Callable[[], dict[str, Pieces]]:
    """Copy the content of a checkpoint, and return a function that makes its files, for another thread.

    The function raises `CheckpointError` if a tensor of the network or the optimizer is not finite. `metrics` is the
    content of metrics.jsonl. `buffers` receives the copies; those of an earlier snapshot whose files are written can be
    reused: allocating new memory takes up to ten times as long as the copy.
    """
    net, buffers = training.net, {} if buffers is None else buffers
    result = training.result

    def copy(name: str, tensor: Tensor) -> Tensor:
        if name not in buffers:
            buffers[name] = torch.empty_like(tensor, device="cpu")
        return buffers[name].copy_(tensor.detach())

    weights = {name: copy(name, tensor) for name, tensor in result.state_dict().items()}
    optimizer_tensors = {
        f"{name}.{key}": copy(f"{name}.{key} of the optimizer", value)
        for name, parameter in net.named_parameters()
        for key, value in training.optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
    if result is not net:
        trained = {f"{name}.{TRAINED}": tensor for name, tensor in net.state_dict().items()}
        optimizer_tensors |= {name: copy(name, tensor) for name, tensor in trained.items()}
    state_json, metadata = training.state.to_json(), {**training.metadata, "architecture": net.architecture.to_json()}

    def files() -> dict[str, Pieces]:
        for name, tensor in (*weights.items(), *optimizer_tensors.items()):
            # The sum needs a single pass, but may overflow.
            if not (tensor.sum().isfinite() or tensor.isfinite().all()):
                raise CheckpointError(f"expected finite values as {name}, got others, try a lower --learning-rate")
        return {
            runs.NETWORK: safetensors_pieces(weights, metadata),
            runs.OPTIMIZER: safetensors_pieces(optimizer_tensors, {}),
            runs.STATE: [state_json],
            runs.METRICS: [metrics],
        }

    return files


def restore(
    files: Mapping[str, bytes], net: AnyNetwork, optimizer: torch.optim.Optimizer, average: AnyNetwork | None = None
) -> RunState:
    """Load the checkpoint in `files`, and return its state; raises `CheckpointError` if it is of another network."""
    state, parameters = RunState.from_json(files[runs.STATE]), dict(net.named_parameters())
    try:
        weights = load(files[runs.NETWORK])
        if average is not None:
            average.load_state_dict(weights)
        for name, tensor in load(files[runs.OPTIMIZER]).items():
            owner, _, key = name.rpartition(".")
            if key == TRAINED:
                weights[owner] = tensor
                continue
            parameter = parameters[owner]
            # The fused step needs the parameter's strides and torch's alignment.
            value = torch.empty_like(parameter if tensor.ndim else tensor)
            if key == "step" and parameter.is_cuda:
                value = value.to(parameter.device)
            optimizer.state[parameter][key] = value.detach().copy_(tensor.view_as(value))
        net.load_state_dict(weights)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"expected the tensors of this run's network, got: {one_line(error, 200)}") from None
    return state


def write_checkpoint(run: Path, step: int, files: Mapping[str, Pieces]) -> Path:
    """Write the checkpoint of `step` durably, and return its folder; raises `OSError`, but keeps earlier ones."""
    parent = run / runs.CHECKPOINTS
    target, temporary = runs.checkpoint_path(run, step), parent / ".unfinished"
    if not parent.is_dir():
        os.mkdir(parent)  # noqa: PTH102
        sync_folder(run)
    shutil.rmtree(temporary, ignore_errors=True)
    os.mkdir(temporary)  # noqa: PTH102
    try:
        digests = {name: hashlib.sha256() for name in runs.FILES}
        for name, digest in digests.items():
            write_synced(temporary / name, _hashing(files[name], digest))
        sync_folder(temporary)
        _remove(target)  # it can only be damaged or unfinished
        os.rename(temporary, target)  # noqa: PTH104
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # to free space on a full disk
        raise
    sync_folder(parent)
    write_whole(
        target / runs.SUMS, b"".join(runs.sum_line(name, digest.hexdigest()) for name, digest in digests.items())
    )
    return target


def _hashing(pieces: Pieces, digest: "hashlib._Hash") -> Iterator[bytes | memoryview]:
    for piece in pieces:
        digest.update(piece)
        yield piece


class Saver:
    """Writes checkpoints in a background thread, one at a time, and keeps the last two.

    Without a run folder, in a process that does not lead, it saves nothing.
    """

    def __init__(
        self, run: Path | None, save_seconds: float, resumed_from: Path | None = None, best_step: int | None = None
    ) -> None:
        self.run, self.save_seconds = run, save_seconds
        self._kept = [(resumed_from, best_step)] if resumed_from is not None else []
        self._last_seconds = time.monotonic()
        self._thread = threading.Thread()
        self._buffers: dict[str, Tensor] = {}
        self._failure: CheckpointError | None = None

    @property
    def is_due(self) -> bool:
        """Whether the next checkpoint is due; raises the error of writing the last one."""
        self._raise_failure()
        is_idle = self.run is not None and not self._thread.is_alive()
        return is_idle and time.monotonic() - self._last_seconds >= self.save_seconds

    @property
    def last(self) -> Path | None:
        """The newest complete checkpoint."""
        return self._kept[-1][0] if self._kept else None

    def save(self, training: Training) -> None:
        """Snapshot `training` and begin to write it; raises `CheckpointError` if the previous write failed."""
        self.finish()  # the snapshot reuses the buffers of the previous one
        if self.run is None:
            return
        self._last_seconds = time.monotonic()
        files = snapshot(training, (self.run / runs.METRICS).read_bytes(), self._buffers)
        arguments = (self.run, training.state.step, training.state.best_step, files)
        self._thread = threading.Thread(target=self._write, args=arguments, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until everything is written; raises `CheckpointError` if that failed."""
        self.wait()
        self._raise_failure()

    def wait(self) -> None:
        """Wait until nothing is being written, also after an error, before the folder is unlocked."""
        if self._thread.ident is not None:
            self._thread.join()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _write(self, run: Path, step: int, best_step: int | None, files: Callable[[], Mapping[str, Pieces]]) -> None:
        path, task = runs.checkpoint_path(run, step), "write the checkpoint"
        try:
            if all(path != kept for kept, _ in self._kept):
                write_checkpoint(run, step, files())
                self._kept = [*self._kept[1 - MAX_KEPT :], (path, best_step)]
            task = "remove what is older than the checkpoint"
            # Also the best checkpoint as of each kept one: a run resumed from there may not find a better one.
            needed = {kept for kept, _ in self._kept}
            needed |= {runs.checkpoint_path(run, best) for _, best in [*self._kept, (path, best_step)] if best}
            for old in runs.begun_checkpoints(run):
                if old not in needed:
                    _remove(old)
        except Exception as error:  # raised in the training thread
            cause = one_line(error)
            if isinstance(error, OSError):
                cause = f"{error.strerror or cause}: {error.filename or path}"
            last = f"{self.last} is whole, and --resume goes on from it" if self.last else "there is no other"
            self._failure = CheckpointError(f"could not {task} of step {step}: {cause}; {last}")


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint, sums first, so that a partly removed one counts as unfinished and not as damaged."""
    if checkpoint.is_dir() and not checkpoint.is_symlink():
        (checkpoint / runs.SUMS).unlink(missing_ok=True)
        shutil.rmtree(checkpoint)
    else:
        checkpoint.unlink(missing_ok=True)
