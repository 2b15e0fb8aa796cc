"""A recipe to a trained network: `train` reads from top to bottom."""

import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from vggkit.data.fashion_mnist import SAMPLE_NAME, SAMPLE_WARNING
from vggkit.data.files import write_whole
from vggkit.data.preprocessing import Preprocessing
from vggkit.design.network import costs
from vggkit.engines import cpu, gpu
from vggkit.engines.accelerate import EngineName, engine_name
from vggkit.errors import CheckpointError, RunError
from vggkit.networks.baselines import build
from vggkit.training.checkpoint import (
    METRICS,
    NETWORK,
    SAVE_SECONDS,
    STATE,
    Saver,
    checkpoint_path,
    read_checkpoint,
    read_newest,
    restore,
)
from vggkit.training.distributed import Team, joined
from vggkit.training.epochs import named, train_epochs
from vggkit.training.hardware import describe_hardware, keep_freed_memory, use_huge_pages
from vggkit.training.progress import Progress, print_line
from vggkit.training.recipe import Recipe
from vggkit.training.run import Run
from vggkit.training.run_data import RunData, open_run_data
from vggkit.training.run_folder import BEST, MODEL, begun, check_unfinished, resumed, with_whole_paths
from vggkit.training.run_state import RunState
from vggkit.training.start import pretrained_weights, start_from, with_synchronised_norms
from vggkit.training.step import Training, make_optimizer
from vggkit.training.stopping import signals_handled, stop_on_signals
from vggkit.version import __version__
from vggkit.weights.files import AnyNetwork, save_weights

MIN_EPOCH_STEPS, FEW_STEPS = 10, 1_000
"""A run of fewer steps an epoch is warned of, and told how to take about so many in all."""


@signals_handled()
def train(
    recipe: Recipe | str = "quick",
    *,
    out: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    device: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    save_seconds: float = SAVE_SECONDS,
    num_workers: int | None = None,
    engine: str | None = None,
    **changes: Any,
) -> Run:
    """Train the network of a recipe on its data, from its seed, into a run folder: `train("quick", epochs=1)`.

    SIGINT (Ctrl-C), SIGTERM and SIGUSR1 end it after the step, with a checkpoint, from which `resume` goes on to the
    same weights, bit for bit, that an unbroken run has (same machine, threads and torch). Under torchrun the
    processes share every batch, and only the first one writes; a run that was stopped leaves these signals ignored
    there, for they reach one process after the other, and some twice.

    Args:
        recipe: all that decides the run, or the name of a recipe.
        out: the run folder, which must not exist yet; `runs/<name>-<number>` by default.
        resume: a run folder to go on from, of the same recipe; it is begun where there is none.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; by default a GPU if there is one, as the book's `try_gpu()`.
        data_dir: where to look for Fashion-MNIST first.
        progress: show live progress.
        save_seconds: from one checkpoint to the next.
        num_workers: threads that decode image files ahead; from the number of cores by default.
        engine: `fast`, `eager` or `torch`, see `accelerate`.
        changes: other values for fields of the recipe.

    Raises:
        RecipeError: there is no such recipe or field, or a value is impossible.
        DataError: the data is missing or damaged.
        ArchitectureError: the network does not fit the data.
        ValueError: the weights to start from are missing, damaged or of other shapes.
        RunError: the folder exists, is in use or of another recipe; or the device does not exist.
        DivergedError: the loss, a gradient or an output is not finite; the checkpoints before are kept.
        CheckpointError: a checkpoint cannot be written, or none of those there can be read.
        LoadingError: images cannot be loaded for another reason than a bad file.
    """
    use_huge_pages()
    recipe = Recipe.named(recipe, **changes) if isinstance(recipe, str) else recipe.changed(**changes)
    recipe = with_whole_paths(recipe)
    with joined(device) as team, ExitStack() as stack:
        is_shown = progress and team.leads

        def say(line: str) -> None:
            if is_shown:
                print_line(line)

        before = _found(recipe, resume, team, stack, say)
        source = pretrained_weights(recipe, say)
        data = open_run_data(
            recipe,
            team,
            data_dir=Path(data_dir) if data_dir is not None else None,
            num_workers=num_workers,
            pretrained=source[1] if source is not None else None,
            facts=before.state.facts if before.state is not None else None,
            say=say,
        )
        training, notes = _set_up(recipe, team, data, source, before.files, engine_name(engine))
        folder = before.folder
        if folder is None and team.leads:
            folder = stack.enter_context(begun(recipe, Path(out) if out is not None else None))
        folder = Path(os.fsdecode(team.shared({"folder": os.fsencode(folder or "")})["folder"]))
        if team.leads:
            write_whole(folder / METRICS, before.files.get(METRICS, b""))
        state = training.state
        shown = Progress(
            folder if team.leads else None,
            recipe.epochs,
            training.steps_per_epoch,
            data.held_out_name,
            is_shown,
            state.history,
            state.step,
            title=f"{recipe.architecture} on {Path(recipe.data).name}",
        )
        stack.callback(shown.close)
        _introduce(shown, training, "start" if before.state is None else "resume", notes)
        saver = Saver(folder, save_seconds, before.checkpoint, state.best_step) if team.leads else None
        stopped_by = _train_and_save(training, folder, shown, saver)
        return Run(
            folder,
            recipe,
            training.net.eval(),
            tuple(state.history),
            f"{team.size} x {team.device.type}" if team.size > 1 else str(team.device),
            _hardware(state.facts),
            data.held_out_name,
            stopped_by,
            team.leads,
        )


@dataclass(frozen=True)
class _Found:
    """What there is of a run that goes on; nothing of a new one."""

    folder: Path | None = None
    """Locked for this process; None in the processes that do not lead."""
    checkpoint: Path | None = None
    """The newest one that is whole, in the leading process."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Its files."""
    state: RunState | None = None


def _found(
    recipe: Recipe, resume: str | os.PathLike[str] | None, team: Team, stack: ExitStack, say: Callable[[str], None]
) -> _Found:
    """What there is in the folder `resume`, which is locked until `stack` ends; the leader reads it for all."""
    folder, newest = None, None
    if resume is not None and team.leads:
        folder = stack.enter_context(resumed(recipe, Path(resume)))
        newest = read_newest(folder, say)
        if newest is None:
            check_unfinished(folder)
            if (folder / METRICS).exists():
                say(f"{folder} has no whole checkpoint yet, and begins anew")
    files = team.shared(newest[1] if newest is not None else None)
    state = RunState.from_json(files[STATE]) if files else None
    if state is not None and Recipe.from_json(json.dumps({**state.recipe, "data": recipe.data})) != recipe:
        raise RunError(f"expected the recipe that {resume} began with, got another one in its recipe.json")
    return _Found(folder, newest[0] if newest is not None else None, files, state)


def _set_up(
    recipe: Recipe,
    team: Team,
    data: RunData,
    source: tuple[AnyNetwork, Preprocessing] | None,
    saved: Mapping[str, bytes],
    engine: EngineName,
) -> tuple[Training, list[str]]:
    """The network and its optimizer where the run begins, or where `saved` left it; and lines for the user."""
    architecture = recipe.network(in_channels=data.preprocessing.channels, num_classes=len(data.classes))
    keep_freed_memory(costs(architecture, recipe.batch_size).total.activation_bytes // team.size)
    torch.manual_seed(recipe.seed)
    net = build(architecture, recipe.init)
    notes = [*data.notes, *start_from(net, source, recipe)]
    net.to(team.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.sync_batch_norm:
        net = with_synchronised_norms(net, team)
    optimizer = make_optimizer(recipe, net)
    state = restore(saved, net, optimizer) if saved else RunState(asdict(recipe), data.facts)
    training = Training(recipe, team, data, net, optimizer, state, engine)
    if not state.fits(training.steps_per_epoch):
        raise CheckpointError(f"expected a checkpoint of epochs of {training.steps_per_epoch} steps, got one of others")
    measured_on = {"hardware": describe_hardware(team.device), "processes": team.size, "torch": torch.__version__}
    if team.device.type == "cuda":
        reason = "" if engine == "torch" else gpu.why_no_kernels()
        measured_on["engine"] = f"{engine}{' without kernels' * bool(reason)}"
        if reason:
            notes.append(f"layers are not fused, and slower: {reason}")
        if not gpu.has_half(team.device):
            notes.append("computes in float32: bfloat16 needs compute capability 8.0")
    if team.device.type == "cpu":
        reason = "the engine is torch" if engine == "torch" else cpu.why_not_compiled()
        measured_on["convolutions"] = "torch" if reason else "compiled"
        if reason:
            notes.append(f"3x3 convolutions are not compiled, and slower: {reason}")
    if saved:
        notes.append(_resume_note(state, recipe, measured_on))
    state.facts = {**data.facts, **measured_on}
    return training, notes


def _introduce(shown: Progress, training: Training, event: str, notes: list[str]) -> None:
    """Say what is trained, on what."""
    data, team, recipe, facts = training.data, training.team, training.recipe, training.state.facts
    measured_on = {name: value for name, value in facts.items() if name not in data.facts}
    shown.log(event, device=str(team.device), vggkit=__version__, threads=torch.get_num_threads(), **measured_on)
    shown.say(
        f"{training.net.architecture.name}: {sum(p.numel() for p in training.net.parameters()):,} parameters, "
        f"{recipe.image_size} px, {data.name}: {data.train.num_images:,} training and {data.held_out.num_images:,} "
        f"{data.held_out_name} images{', bad ones included' * bool(data.bad_images)}, "
        f"on {f'{team.size} x ' * (team.size > 1)}{_hardware(facts)}"
    )
    if data.bad_images:
        notes.append(named(data.bad_images))
    if data.name == SAMPLE_NAME:
        notes.append(SAMPLE_WARNING)
    for note in [*notes, *_few_steps(training)]:
        shown.say(note)


def _few_steps(training: Training) -> list[str]:
    """A warning if epochs are too short for the network to learn much, and what to try."""
    recipe, num_images, steps = training.recipe, training.data.train.num_images, training.steps_per_epoch
    if steps >= MIN_EPOCH_STEPS:
        return []
    batch_size = 2 ** int(math.log2(max(num_images / MIN_EPOCH_STEPS, 1)))
    epochs = max(recipe.epochs, -(-FEW_STEPS // -(-num_images // batch_size)))
    other = f"--batch-size {batch_size} --epochs {epochs}"
    if not recipe.pretrained and not recipe.continues and training.data.train.is_fitted:  # image files
        other = f"--recipe finetune --data {recipe.data} --batch-size {batch_size}, or {other}"
    number = f"{steps} step{'s' * (steps > 1)}"
    return [
        f"an epoch is only {number} of up to {recipe.batch_size} images, {recipe.epochs * steps} in all: try {other}"
    ]


def _train_and_save(training: Training, folder: Path, shown: Progress, saver: Saver | None) -> str | None:
    """Train, with checkpoints; return the signal that ended the run early, or None at its end."""
    data, net, state = training.data, training.net, training.state
    metadata = {"classes": json.dumps(data.classes), "preprocessing": data.preprocessing.to_json()}

    def save() -> None:
        if saver is not None:
            saver.save(net, training.optimizer, state, (folder / METRICS).read_bytes(), metadata)

    with ExitStack() as stack:
        if saver is not None:
            stack.callback(saver.wait)
        stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True))
        stop = stack.enter_context(stop_on_signals())
        is_finished = train_epochs(training, shown, stop, saver, save)
        save()
        if saver is not None:
            saver.finish()
        stop.is_last = not is_finished and training.team.size > 1  # torchrun tells one process after the other
    if not is_finished:
        return stop.signal_name or "a signal to another process"
    if training.team.leads:
        save_weights(folder / MODEL, net, metadata)
        if state.best_step is not None:
            write_whole(folder / BEST, read_checkpoint(checkpoint_path(folder, state.best_step))[NETWORK])
    return None


def _hardware(facts: Mapping[str, Any]) -> str:
    """What a run was measured on, for a reader."""
    return f"{facts['hardware']}" + (f", {facts['convolutions']} convolutions" if "convolutions" in facts else "")


def _resume_note(state: RunState, recipe: Recipe, measured_on: dict[str, object]) -> str:
    if state.epoch > recipe.epochs:
        return "was trained to its end before; nothing is left to do; --more-epochs N begins a run from it"
    others = [
        f"{what} {state.facts.get(what)}, now {now}"
        for what, now in measured_on.items()
        if state.facts.get(what) != now
    ]
    reasons = [f"it had {'; '.join(others)}"] * bool(others)
    reasons += ["PowerSGD forgets the gradients that it has not sent yet"] * (
        measured_on["processes"] != 1 and recipe.compression == "powersgd"
    )
    exactly = f"not bit for bit, since {' and '.join(reasons)}" if reasons else "bit for bit"
    return f"goes on from step {state.step}, in epoch {state.epoch}, {exactly}"
