"""Checkpoints: everything that decides the rest of a run, written completely; `vggkit.weights.runs` reads them.

No state of a random generator is saved, because the seed and the step decide every draw of a run, see
`vggkit.data.loading.derived_seed`.
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
from vggkit.weights.files import AnyNetwork, safetensors_pieces
from vggkit.weights.runs import (
    CHECKPOINTS,
    FILES,
    METRICS,
    NETWORK,
    OPTIMIZER,
    STATE,
    SUMS,
    begun_checkpoints,
    checkpoint_path,
    sum_line,
)

SAVE_SECONDS = 50.0
"""The time between two checkpoints: with the time that it takes to write one, a kill loses at most a minute."""
KEPT = 2
TRAINED = "trained"
"""Ends the names of the network's own tensors, beside the optimizer's, where a checkpoint's network is an average."""

Pieces = Iterable[bytes | memoryview]
"""The content of a file, in order."""


def snapshot(
    training: Training, metrics: bytes, room: dict[str, Tensor] | None = None
) -> Callable[[], dict[str, Pieces]]:
    """Copy what a checkpoint holds, and return a function that makes its files, which another thread may call.

    The function raises `CheckpointError` if a weight, or what the optimizer remembers, is not finite.

    Args:
        training: its network, optimizer, state and metadata are saved.
        metrics: the content of metrics.jsonl.
        room: the tensors to copy into. Those of an earlier snapshot, whose files are written, can be used again:
            taking new memory takes up to ten times as long as the copy.
    """
    net, room = training.net, {} if room is None else room
    result = training.result

    def copied(name: str, tensor: Tensor) -> Tensor:
        if name not in room:
            room[name] = torch.empty_like(tensor, device="cpu")
        return room[name].copy_(tensor.detach())

    weights = {name: copied(name, tensor) for name, tensor in result.state_dict().items()}
    remembered = {
        f"{name}.{key}": copied(f"{name}.{key} of the optimizer", value)
        for name, parameter in net.named_parameters()
        for key, value in training.optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
    if result is not net:
        trained = {f"{name}.{TRAINED}": tensor for name, tensor in net.state_dict().items()}
        remembered |= {name: copied(name, tensor) for name, tensor in trained.items()}
    position, described = training.state.to_json(), {**training.metadata, "architecture": net.architecture.to_json()}

    def files() -> dict[str, Pieces]:
        for name, tensor in (*weights.items(), *remembered.items()):
            # The sum needs a single pass; the sum of finite values may overflow.
            if not (tensor.sum().isfinite() or tensor.isfinite().all()):
                raise CheckpointError(f"expected finite values as {name}, got others, try a lower --learning-rate")
        return {
            NETWORK: safetensors_pieces(weights, described),
            OPTIMIZER: safetensors_pieces(remembered, {}),
            STATE: [position],
            METRICS: [metrics],
        }

    return files


def restore(
    files: Mapping[str, bytes], net: AnyNetwork, optimizer: torch.optim.Optimizer, average: AnyNetwork | None = None
) -> RunState:
    """Bring `net`, `optimizer` and `average` to where the checkpoint of `files` was, and return the state.

    Raises:
        CheckpointError: it is the checkpoint of another network or optimizer.
    """
    state, parameters = RunState.from_json(files[STATE]), dict(net.named_parameters())
    try:
        weights = load(files[NETWORK])
        if average is not None:
            average.load_state_dict(weights)
        for name, tensor in load(files[OPTIMIZER]).items():
            owner, _, key = name.rpartition(".")
            if key == TRAINED:
                weights[owner] = tensor
                continue
            parameter = parameters[owner]
            # In the strides of the parameter and with torch's alignment, which the fused step reads it in.
            kept = torch.empty_like(parameter if tensor.ndim else tensor)
            if key == "step" and parameter.is_cuda:
                kept = kept.to(parameter.device)
            optimizer.state[parameter][key] = kept.detach().copy_(tensor.view_as(kept))
        net.load_state_dict(weights)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"expected the tensors of this run's network, got: {one_line(error, 200)}") from None
    return state


def write_checkpoint(run: Path, step: int, files: Mapping[str, Pieces]) -> Path:
    """Write `files` as the checkpoint of `step` into the folder of a run, and return its folder.

    At every moment, also after a power cut, the earlier checkpoints are complete.

    Raises:
        OSError: something could not be written, and there is no checkpoint of `step`.
    """
    parent = run / CHECKPOINTS
    target, temporary = checkpoint_path(run, step), parent / ".unfinished"
    if not parent.is_dir():
        os.mkdir(parent)  # noqa: PTH102
        sync_folder(run)
    shutil.rmtree(temporary, ignore_errors=True)
    os.mkdir(temporary)  # noqa: PTH102
    try:
        digests = {name: hashlib.sha256() for name in FILES}
        for name, digest in digests.items():
            write_synced(temporary / name, _hashed(files[name], digest))
        sync_folder(temporary)
        _remove(target)  # which can only be damaged or unfinished
        os.rename(temporary, target)  # noqa: PTH104
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # to give its space back to a full disk
        raise
    sync_folder(parent)
    write_whole(target / SUMS, b"".join(sum_line(name, digest.hexdigest()) for name, digest in digests.items()))
    return target


def _hashed(pieces: Pieces, digest: "hashlib._Hash") -> Iterator[bytes | memoryview]:
    for piece in pieces:
        digest.update(piece)
        yield piece


class Saver:
    """Writes checkpoints in a thread of its own, one at a time, so that training goes on; keeps the last two.

    Without a run folder, in a process that does not lead, it saves nothing.
    """

    def __init__(
        self, run: Path | None, save_seconds: float, resumed_from: Path | None = None, best_step: int | None = None
    ) -> None:
        self.run, self.save_seconds = run, save_seconds
        self._kept = [(resumed_from, best_step)] if resumed_from is not None else []
        self._last_seconds = time.monotonic()
        self._thread = threading.Thread()
        self._room: dict[str, Tensor] = {}
        self._failure: CheckpointError | None = None

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next checkpoint; raises what writing the last one raised."""
        self._raise()
        is_idle = self.run is not None and not self._thread.is_alive()
        return is_idle and time.monotonic() - self._last_seconds >= self.save_seconds

    @property
    def last(self) -> Path | None:
        """The newest checkpoint that is known to be complete."""
        return self._kept[-1][0] if self._kept else None

    def save(self, training: Training) -> None:
        """Begin to write the checkpoint of this moment; when this returns, training may go on.

        Raises:
            CheckpointError: the checkpoint before it could not be written.
        """
        self.finish()  # before the snapshot, which uses the memory of the one before
        if self.run is None:
            return
        self._last_seconds = time.monotonic()
        files = snapshot(training, (self.run / METRICS).read_bytes(), self._room)
        arguments = (self.run, training.state.step, training.state.best_step, files)
        self._thread = threading.Thread(target=self._write, args=arguments, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until everything is written; raises `CheckpointError` if it could not be."""
        self.wait()
        self._raise()

    def wait(self) -> None:
        """Wait until nothing is being written, also after an error, so that the folder can be given away."""
        if self._thread.ident is not None:
            self._thread.join()

    def _raise(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _write(self, run: Path, step: int, best_step: int | None, files: Callable[[], Mapping[str, Pieces]]) -> None:
        path, task = checkpoint_path(run, step), "write the checkpoint"
        try:
            if all(path != kept for kept, _ in self._kept):
                write_checkpoint(run, step, files())
                self._kept = [*self._kept[1 - KEPT :], (path, best_step)]
            task = "remove what is older than the checkpoint"
            # Also the checkpoint that was the best at the time of a kept one: a run that goes on from there may not
            # come to a better one.
            needed = {kept for kept, _ in self._kept}
            needed |= {checkpoint_path(run, best) for _, best in [*self._kept, (path, best_step)] if best}
            for old in begun_checkpoints(run):
                if old not in needed:
                    _remove(old)
        except Exception as error:  # the training thread raises it
            cause = one_line(error)
            if isinstance(error, OSError):
                cause = f"{error.strerror or cause}: {error.filename or path}"
            last = f"{self.last} is whole, and --resume goes on from it" if self.last else "there is no other"
            self._failure = CheckpointError(f"could not {task} of step {step}: {cause}; {last}")


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint, its sums first: half removed it counts as unfinished and not as damaged."""
    if checkpoint.is_dir() and not checkpoint.is_symlink():
        (checkpoint / SUMS).unlink(missing_ok=True)
        shutil.rmtree(checkpoint)
    else:
        checkpoint.unlink(missing_ok=True)
