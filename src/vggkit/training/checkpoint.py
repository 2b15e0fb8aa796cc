"""Checkpoints: all that decides the rest of a run, written whole, verified when read, saved beside the training.

A checkpoint is a folder `checkpoints/step-<number>` with the network and the optimizer as safetensors, the state as
JSON, the metrics so far, and, written last, `SHA256SUMS` in the format of `sha256sum`, without which it is none.
There is no state of a random generator in it: every draw of a run is decided by the seed and the step, see
`vggkit.data.loading.derived_seed`.
"""

import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from vggkit.data.files import read_regular, sync_folder, write_synced, write_whole
from vggkit.errors import CheckpointError
from vggkit.training.run_state import RunState
from vggkit.weights.files import AnyNetwork, safetensors_pieces
from vggkit.weights.warm_start import last_layer

NETWORK, OPTIMIZER, STATE, METRICS = "network.safetensors", "optimizer.safetensors", "state.json", "metrics.jsonl"
FILES = (NETWORK, OPTIMIZER, STATE, METRICS)
SUMS = "SHA256SUMS"
FOLDER = "checkpoints"

SAVE_SECONDS = 50.0
"""From one checkpoint to the next: with the time to write it, at most a minute is lost."""
KEPT = 2

Pieces = Iterable[bytes | memoryview]
"""Of a file, in their order."""


def snapshot(
    net: AnyNetwork,
    optimizer: torch.optim.Optimizer,
    state: RunState,
    metrics: bytes,
    metadata: Mapping[str, str],
    room: dict[str, Tensor] | None = None,
) -> Callable[[], dict[str, Pieces]]:
    """The files of a checkpoint of this moment, as a function that makes them, which another thread may call.

    It raises `CheckpointError` where a weight, or what the optimizer remembers, is not finite. `room` is where the
    tensors are copied to; with that of a snapshot before, whose files are all written, no new memory is taken, which
    takes up to ten times as long as the copy itself.
    """
    room = {} if room is None else room

    def copied(name: str, tensor: Tensor) -> Tensor:
        if name not in room:
            room[name] = torch.empty_like(tensor, device="cpu")
        return room[name].copy_(tensor.detach())

    tensors = {name: copied(name, tensor) for name, tensor in net.state_dict().items()}
    momenta = {name: copied(f"{name} of the optimizer", tensor) for name, tensor in _optimizer_tensors(net, optimizer)}
    position, described = state.to_json(), {**metadata, "architecture": net.architecture.to_json()}

    def files() -> dict[str, Pieces]:
        _check_finite(tensors)
        _check_finite(momenta)
        return {
            NETWORK: safetensors_pieces(tensors, described),
            OPTIMIZER: safetensors_pieces(momenta, {}),
            STATE: [position],
            METRICS: [metrics],
        }

    return files


def restore(files: Mapping[str, bytes], net: AnyNetwork, optimizer: torch.optim.Optimizer) -> RunState:
    """Bring `net` and `optimizer` to where the checkpoint of `files` was; its state.

    Raises:
        CheckpointError: it is of another network or optimizer, or not finite; neither is touched then.
    """
    state = RunState.from_json(files[STATE])
    try:
        weights, momenta = load(files[NETWORK]), load(files[OPTIMIZER])
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError, MemoryError) as error:
        raise CheckpointError(
            f"expected tensors as safetensors, got: {str(error)[:200].partition(chr(10))[0]}"
        ) from None
    _check_like(weights, net.state_dict())
    _check_like(momenta, _optimizer_like(net, optimizer, state))
    for tensors in (weights, momenta):
        _check_finite(tensors)
    net.load_state_dict(weights)
    parameters = dict(net.named_parameters())
    for name, tensor in momenta.items():
        owner, _, key = name.rpartition(".")
        # In the parameter's strides and with torch's alignment, which the fused step reads it in.
        kept = torch.empty_like(parameters[owner]) if tensor.ndim else torch.empty_like(tensor)
        if key == "step" and optimizer.param_groups[0].get("fused") and parameters[owner].is_cuda:
            kept = kept.to(parameters[owner].device)
        optimizer.state[parameters[owner]][key] = kept.detach().copy_(tensor)
    return state


def _check_like(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError`, which names the first, unless these have the names, types and shapes of `expected`."""
    for name in sorted(tensors.keys() | expected.keys()):
        got, wanted = (
            f"{str(some[name].dtype).removeprefix('torch.')} {tuple(some[name].shape)}" if name in some else "none"
            for some in (tensors, expected)
        )
        if got != wanted:
            raise CheckpointError(f"expected {wanted} as {name[:100]!r} of this run's checkpoint, got {got}")


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        # A sum takes one reading; one that overflows may still be of finite values.
        if not (tensor.sum().isfinite() or tensor.isfinite().all()):
            raise CheckpointError(
                f"expected finite values as {name}, got others, try a lower --learning-rate or --architecture with _bn"
            )


def _optimizer_like(net: AnyNetwork, optimizer: torch.optim.Optimizer, state: RunState) -> dict[str, Tensor]:
    """What `optimizer` remembers at `state`, by name, without memory: of what learned in the epoch before this step."""
    epoch = state.epoch if state.epoch_steps else state.epoch - 1
    is_head_only = epoch <= state.recipe.get("head_epochs", 0)
    head, keys = last_layer(net), ["momentum_buffer"] * bool(optimizer.defaults.get("momentum"))
    if isinstance(optimizer, torch.optim.AdamW):
        keys = ["exp_avg", "exp_avg_sq", "step"]
    learning = {
        name: torch.empty_like(parameter, device="meta")
        for name, parameter in net.named_parameters()
        if epoch and (not is_head_only or name.rpartition(".")[0] == head)
    }
    step = torch.empty((), device="meta")
    return {f"{name}.{key}": step if key == "step" else p for name, p in learning.items() for key in keys}


def _optimizer_tensors(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    named = [(name, optimizer.state.get(parameter, {})) for name, parameter in net.named_parameters()]
    return [(f"{name}.{key}", v) for name, values in named for key, v in values.items() if isinstance(v, Tensor)]


def checkpoint_path(run: Path, step: int) -> Path:
    """The folder of the checkpoint of `step`."""
    return run / FOLDER / f"step-{step:08}"


def write_checkpoint(run: Path, step: int, files: Mapping[str, Pieces]) -> Path:
    """Write `files` as the checkpoint of `step` into the folder of a run; its folder.

    At every moment, also after a power cut, the checkpoints written before are whole.

    Raises:
        OSError: something could not be written; what was begun is no checkpoint.
    """
    parent = run / FOLDER
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
        _remove(target)  # only ever a damaged or an unfinished one
        os.rename(temporary, target)  # noqa: PTH104
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk gets its room back
        raise
    sync_folder(parent)
    write_whole(target / SUMS, _sums(digests))
    return target


def _hashed(pieces: Pieces, digest: "hashlib._Hash") -> Iterator[bytes | memoryview]:
    for piece in pieces:
        digest.update(piece)
        yield piece


def _sums(digests: Mapping[str, "hashlib._Hash"]) -> bytes:
    return "".join(f"{digests[name].hexdigest()}  {name}\n" for name in FILES).encode()


def read_checkpoint(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint, by name, verified: these bytes are what was hashed.

    Raises:
        CheckpointError: a file is missing, cut or changed, or the folder has another one's name.
    """
    try:
        files = {name: read_regular(folder / name) for name in FILES}
        expected = read_regular(folder / SUMS)
    except MemoryError:
        raise CheckpointError(f"{folder}: expected a checkpoint that fits into memory, got a larger one") from None
    except OSError as error:
        raise CheckpointError(
            f"{folder}: expected a whole checkpoint, got: {error.strerror}: {error.filename}"
        ) from None
    sums = _sums({name: hashlib.sha256(content) for name, content in files.items()})
    if sums != expected:
        told = set(expected.splitlines())
        wrong = [name for name, line in zip(files, sums.splitlines(), strict=True) if line not in told]
        raise CheckpointError(f"{folder} is damaged: expected what {SUMS} says, got another {', '.join(wrong) or SUMS}")
    try:
        step = RunState.from_json(files[STATE]).step
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    if folder.name != checkpoint_path(folder, step).name:
        raise CheckpointError(f"{folder}: expected the checkpoint of that step, got the one of step {step}")
    return files


def checkpoints_of(run: Path) -> list[Path]:
    """The finished checkpoints of a run, not verified, the newest first."""
    return sorted((path for path in _begun(run) if (path / SUMS).exists()), key=_step_of, reverse=True)


def _begun(run: Path) -> list[Path]:
    parent = run / FOLDER
    return [path for path in parent.iterdir() if re.fullmatch(r"step-\d{8,15}", path.name)] if parent.is_dir() else []


def read_newest(run: Path, report: Callable[[str], None]) -> tuple[Path, dict[str, bytes]] | None:
    """The newest whole checkpoint of a run and its files; None if it has none yet. `report` is told of damaged ones.

    Raises:
        CheckpointError: all that it has are damaged.
    """
    found = checkpoints_of(run)
    for path in found:
        try:
            return path, read_checkpoint(path)
        except CheckpointError as error:
            report(str(error))
    # One without sums is what a kill in the first save leaves; afterwards there is always one with sums.
    if found or len(_begun(run)) > 1:
        raise CheckpointError(
            f"{run}: expected a whole checkpoint, got {len(_begun(run))} damaged, try a new run with --out"
        )
    return None


class Saver:
    """Writes checkpoints in a thread of its own, one at a time, so that training goes on; keeps the last two."""

    def __init__(
        self, run: Path, save_seconds: float, resumed_from: Path | None = None, best_step: int | None = None
    ) -> None:
        self.run, self.save_seconds = run, save_seconds
        self._kept = [(resumed_from, best_step)] if resumed_from is not None else []
        self._last_seconds = time.monotonic()
        self._thread: threading.Thread | None = None
        self._room: dict[str, Tensor] = {}
        self._failure: CheckpointError | None = None

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next one; raises what writing the last one raised."""
        self._raise()
        busy = self._thread is not None and self._thread.is_alive()
        return not busy and time.monotonic() - self._last_seconds >= self.save_seconds

    @property
    def last(self) -> Path | None:
        """The newest checkpoint that is surely written."""
        return self._kept[-1][0] if self._kept else None

    def save(
        self,
        net: AnyNetwork,
        optimizer: torch.optim.Optimizer,
        state: RunState,
        metrics: bytes,
        metadata: Mapping[str, str],
    ) -> None:
        """Begin to write the checkpoint of this moment; when it returns, all of these may change.

        Raises:
            CheckpointError: the one before could not be written.
        """
        self.finish()  # before the snapshot, which takes the room of the one before
        self._last_seconds = time.monotonic()
        files = snapshot(net, optimizer, state, metrics, metadata, self._room)
        self._thread = threading.Thread(target=self._write, args=(state.step, state.best_step, files), daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until all is written; raises `CheckpointError` if it could not be."""
        self.wait()
        self._raise()

    def wait(self) -> None:
        """Wait until nothing is being written, also after an error: whoever takes the folder then has it alone."""
        if self._thread is not None:
            self._thread.join()

    def _raise(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _write(self, step: int, best_step: int | None, files: Callable[[], Mapping[str, Pieces]]) -> None:
        path, doing = checkpoint_path(self.run, step), "write the checkpoint"
        try:
            if all(path != kept for kept, _ in self._kept):
                write_checkpoint(self.run, step, files())
                self._kept = [*self._kept[1 - KEPT :], (path, best_step)]
            doing = "remove what is older than the checkpoint"
            # The best one of before too: a run that goes on from there may not come to another.
            needed = {kept for kept, _ in self._kept}
            needed |= {checkpoint_path(self.run, best) for _, best in [*self._kept, (path, best_step)] if best}
            for old in _begun(self.run):
                if old not in needed:
                    _remove(old)
        except Exception as error:  # a thread has nobody else to tell
            cause = str(error).partition("\n")[0] or type(error).__name__
            if isinstance(error, OSError):
                cause = f"{error.strerror or error}: {error.filename or path}"
            last = f"{self.last} is whole, and --resume goes on from it" if self.last else "there is none before it"
            self._failure = CheckpointError(f"could not {doing} of step {step}: {cause}; {last}")


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _remove(checkpoint: Path) -> None:
    """Without its sums first, a checkpoint that is removed half-way is an unfinished one and not a damaged one."""
    if checkpoint.is_dir() and not checkpoint.is_symlink():
        (checkpoint / SUMS).unlink(missing_ok=True)
        shutil.rmtree(checkpoint)
    else:
        checkpoint.unlink(missing_ok=True)
