"""Checkpoints: all that decides the rest of a run, written whole, verified when read, saved beside the training.

A checkpoint is a folder `checkpoints/step-<number>` with the network and the optimizer as safetensors, the state as
JSON, the metrics so far, and, written last, `SHA256SUMS` in the format of `sha256sum`, without which it is none.
There is no state of a random generator in it: every draw of a run is decided by the seed and the step, see
`vggkit.data.loading.derived_seed`.
"""

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from vggkit.data.files import sync_folder, write_synced, write_whole
from vggkit.networks.weights import AnyNetwork, weights_bytes
from vggkit.training.progress import EpochMetrics

NETWORK, OPTIMIZER, STATE, METRICS = "network.safetensors", "optimizer.safetensors", "state.json", "metrics.jsonl"
FILES = (NETWORK, OPTIMIZER, STATE, METRICS)
SUMS = "SHA256SUMS"
FOLDER = "checkpoints"

SAVE_SECONDS = 50.0
"""From one checkpoint to the next: with the time to write it, at most a minute is lost."""
KEPT = 2


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written or read; the message is one line."""


@dataclass
class RunState:
    """Where a run stands; with the weights and the optimizer it decides the rest."""

    recipe: dict[str, Any]
    facts: dict[str, Any]
    """What the run took from its data, and what it was measured on."""
    step: int = 0
    """Steps taken since the start of the run."""
    epoch: int = 1
    """The one that goes on."""
    epoch_steps: int = 0
    """Steps of it that are taken: the position in the order of the images."""
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Of the epoch so far: loss x images, correct, images."""
    train_seconds: float = 0.0
    """Wall time of the epoch's training so far."""
    loading_seconds: float = 0.0
    """Of that, the time spent waiting for images."""
    elapsed_seconds: float = 0.0
    """Wall time of the run so far."""
    best_step: int | None = None
    """Of the best evaluation, where that is on a validation set."""
    history: list[EpochMetrics] = field(default_factory=list)
    """Of the finished epochs."""

    def to_json(self) -> bytes:
        """This state as JSON; a float comes back as the same bits."""
        return json.dumps(asdict(self), indent=1, allow_nan=False).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "RunState":
        """The state that `to_json` wrote; raises `CheckpointError` for anything else."""
        try:
            values: dict[str, Any] = json.loads(content)
            values["history"] = [EpochMetrics(**metrics) for metrics in values["history"]]
            state = cls(**values)
            numbers = (state.step, state.epoch, state.epoch_steps)
            if any(type(number) is not int or number < 0 for number in numbers) or len(state.sums) != 3:
                raise ValueError
        except (ValueError, TypeError, KeyError, RecursionError):
            raise CheckpointError(f"expected the state of a run as JSON, got {content[:60]!r}") from None
        return state


def snapshot(
    net: AnyNetwork, optimizer: torch.optim.Optimizer, state: RunState, metrics: bytes, metadata: Mapping[str, str]
) -> Callable[[], dict[str, bytes]]:
    """The files of a checkpoint of this moment, as a function that makes them, which another thread may call."""
    tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in net.state_dict().items()}
    momenta = {name: tensor.detach().to("cpu", copy=True) for name, tensor in _optimizer_tensors(net, optimizer)}
    position, architecture = state.to_json(), net.architecture

    def files() -> dict[str, bytes]:
        return {
            NETWORK: weights_bytes(tensors, architecture, metadata),
            OPTIMIZER: save({name: tensor.contiguous() for name, tensor in momenta.items()}),
            STATE: position,
            METRICS: metrics,
        }

    return files


def restore(files: Mapping[str, bytes], net: nn.Module, optimizer: torch.optim.Optimizer) -> RunState:
    """Bring `net` and `optimizer` to where the checkpoint of `files` was; its state.

    Raises:
        CheckpointError: it is of another network or optimizer.
    """
    try:
        weights, momenta = load(files[NETWORK]), load(files[OPTIMIZER])
        net.load_state_dict(weights)
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"expected a checkpoint of this network, got: {str(error).splitlines()[0]}") from None
    parameters = dict(net.named_parameters())
    for name, tensor in momenta.items():
        owner, _, key = name.rpartition(".")
        if owner not in parameters or tensor.shape not in (parameters[owner].shape, torch.Size([])):
            raise CheckpointError(
                f"expected a checkpoint of this network's optimizer, got {name} {tuple(tensor.shape)}"
            )
        # In the parameter's strides and with torch's alignment, which the fused step reads it in.
        kept = torch.empty_like(parameters[owner]) if tensor.ndim else torch.empty_like(tensor)
        if key == "step" and optimizer.param_groups[0].get("fused") and parameters[owner].is_cuda:
            kept = kept.to(parameters[owner].device)
        optimizer.state[parameters[owner]][key] = kept.detach().copy_(tensor)
    return RunState.from_json(files[STATE])


def _optimizer_tensors(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    named = [(name, optimizer.state.get(parameter, {})) for name, parameter in net.named_parameters()]
    return [(f"{name}.{key}", v) for name, values in named for key, v in values.items() if isinstance(v, Tensor)]


def checkpoint_path(run: Path, step: int) -> Path:
    """The folder of the checkpoint of `step`."""
    return run / FOLDER / f"step-{step:08}"


def write_checkpoint(run: Path, step: int, files: Mapping[str, bytes]) -> Path:
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
    for name, content in files.items():
        write_synced(temporary / name, content)
    sync_folder(temporary)
    _remove(target)  # only ever a damaged or an unfinished one
    os.rename(temporary, target)  # noqa: PTH104
    sync_folder(parent)
    write_whole(target / SUMS, _sums(files))
    return target


def read_checkpoint(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint, by name, verified: these bytes are what was hashed.

    Raises:
        CheckpointError: a file is missing, cut or changed.
    """
    try:
        files = {name: (folder / name).read_bytes() for name in FILES}
        expected = (folder / SUMS).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{folder}: expected a whole checkpoint, got: {error.strerror}: {error.filename}"
        ) from None
    sums = _sums(files)
    if sums != expected:
        told = set(expected.splitlines())
        wrong = [name for name, line in zip(files, sums.splitlines(), strict=True) if line not in told]
        raise CheckpointError(f"{folder} is damaged: expected what {SUMS} says, got another {', '.join(wrong) or SUMS}")
    return files


def checkpoints_of(run: Path) -> list[Path]:
    """The finished checkpoints of a run, not verified, the newest first."""
    parent = run / FOLDER
    found = [path for path in parent.iterdir() if re.fullmatch(r"step-\d{8,}", path.name)] if parent.is_dir() else []
    return sorted((path for path in found if (path / SUMS).exists()), key=_step_of, reverse=True)


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
    if found:
        raise CheckpointError(f"{run}: expected a whole checkpoint, got {len(found)} damaged, try a new run with --out")
    return None


class Saver:
    """Writes checkpoints in a thread of its own, one at a time, so that training goes on; keeps the last two."""

    def __init__(self, run: Path, save_seconds: float, resumed_from: Path | None = None) -> None:
        self.run, self.save_seconds = run, save_seconds
        self._kept = [resumed_from] if resumed_from is not None else []
        self._last_seconds = time.monotonic()
        self._thread: threading.Thread | None = None
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
        return self._kept[-1] if self._kept else None

    def save(self, state: RunState, files: Callable[[], Mapping[str, bytes]]) -> None:
        """Begin to write the checkpoint of `state`, whose `files` are from `snapshot`.

        Raises:
            CheckpointError: the one before could not be written.
        """
        self.finish()
        self._last_seconds = time.monotonic()
        self._thread = threading.Thread(target=self._write, args=(state.step, state.best_step, files), daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until all is written; raises `CheckpointError` if it could not be."""
        if self._thread is not None:
            self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _write(self, step: int, best_step: int | None, files: Callable[[], Mapping[str, bytes]]) -> None:
        path = checkpoint_path(self.run, step)
        try:
            if path not in self._kept:
                write_checkpoint(self.run, step, files())
                self._kept = [*self._kept[1 - KEPT :], path]
            for old in (self.run / FOLDER).glob("step-*"):
                if old not in self._kept and _step_of(old) != best_step:
                    _remove(old)
        except OSError as error:
            cause = f"{error.strerror or error}: {error.filename or path}"
            last = f"{self.last} is whole, and --resume goes on from it" if self.last else "there is none before it"
            self._failure = CheckpointError(f"could not write the checkpoint of step {step}: {cause}; {last}")
        except Exception as error:  # a thread has nobody else to tell
            self._failure = CheckpointError(f"could not write the checkpoint of step {step}: {error}")


def _sums(files: Mapping[str, bytes]) -> bytes:
    return "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in FILES).encode()


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _remove(checkpoint: Path) -> None:
    """Without its sums first, a checkpoint that is removed half-way is an unfinished one and not a damaged one."""
    (checkpoint / SUMS).unlink(missing_ok=True)
    if checkpoint.is_dir():
        shutil.rmtree(checkpoint)
