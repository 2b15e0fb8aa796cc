"""`train`: from a recipe to a trained network."""

import copy
import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vggkit.data.fashion_mnist import SAMPLE_NAME, SAMPLE_WARNING
from vggkit.data.files import write_whole
from vggkit.data.preprocessing import Preprocessing
from vggkit.design.network import costs
from vggkit.engines import cpu, gpu
from vggkit.engines.accelerate import EngineName, engine_name
from vggkit.errors import CheckpointError, DivergedError, RunError
from vggkit.networks.baselines import build
from vggkit.training.checkpoint import SAVE_SECONDS, Saver, restore
from vggkit.training.distributed import Team, join_team
from vggkit.training.epochs import bad_images_line, train_epochs
from vggkit.training.hardware import describe_hardware, keep_freed_memory, use_huge_pages
from vggkit.training.progress import Progress, print_line
from vggkit.training.recipe import Recipe
from vggkit.training.run import Run
from vggkit.training.run_data import RunData, open_run_data
from vggkit.training.run_folder import BEST, DIVERGED, new_run_folder, resumed_run_folder, why_failed, with_whole_paths
from vggkit.training.run_state import RunState
from vggkit.training.start import pretrained_weights, start_from
from vggkit.training.step import Training, make_optimizer
from vggkit.training.stopping import signals_handled
from vggkit.version import __version__
from vggkit.weights.files import AnyNetwork, save_weights
from vggkit.weights.runs import METRICS, MODEL, NETWORK, STATE, checkpoint_path, read_checkpoint, read_newest

MIN_EPOCH_STEPS, FEW_STEPS = 10, 1_000
"""A run with fewer than 10 steps an epoch gets a warning and a proposal with about 1,000 steps."""


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
    until_epoch: int | None = None,
    **changes: Any,
) -> Run:
    """Train the network of a recipe on its data, from its seed, into a run folder: `train("quick", epochs=1)`.

    SIGINT (Ctrl-C), SIGTERM and SIGUSR1 end it after the step, with a checkpoint, from which `resume` continues to the
    same weights, bit for bit, as an unbroken run (same machine, threads and torch). Under torchrun the processes share
    every batch, and only the first one writes; a stopped run leaves these signals ignored there, since they reach one
    process after the other, and some twice.

    Args:
        recipe: the recipe or its name.
        out: the run folder, which must not exist yet; `runs/<name>-<number>` by default.
        resume: the folder of a run of the same recipe to continue; a new run if there is none.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; by default a GPU if there is one, as the book's `try_gpu()`.
        data_dir: the folder of Fashion-MNIST.
        progress: show live progress.
        save_seconds: interval of checkpoints.
        num_workers: threads that decode image files; depends on the number of cores by default.
        engine: `fast`, `eager` or `torch`, see `accelerate`.
        until_epoch: stop after this epoch, as a signal would; the schedule stays that of the whole recipe.
        changes: values for fields of the recipe.

    Raises:
        RecipeError: an unknown recipe or field, or an invalid value.
        DataError: the data is missing or damaged.
        ArchitectureError: the network does not fit the data.
        ValueError: the weights to start from are missing, damaged or of other shapes.
        RunError: the folder exists, is in use or has another recipe; or the device does not exist.
        DivergedError: the loss, a gradient or an output is not finite; earlier checkpoints are kept.
        CheckpointError: a checkpoint cannot be written, or all existing ones are damaged.
        LoadingError: loading images failed for another reason than a bad file.
    """
    use_huge_pages()
    recipe = recipe.changed(**changes) if isinstance(recipe, Recipe) else Recipe.named(recipe, **changes)
    recipe = with_whole_paths(recipe)
    with join_team(device) as team, ExitStack() as stack:
        is_shown = progress and team.leads
        say: Callable[[str], None] = print_line if is_shown else lambda line: None
        folder: Path | None = None
        checkpoint: Path | None = None
        files: dict[str, bytes] = {}
        if resume is not None and team.leads:
            folder = stack.enter_context(resumed_run_folder(recipe, Path(resume)))
            checkpoint, files = _newest_checkpoint(folder, say)
        files = team.from_leader(files)
        saved_state = _saved_state(files, recipe)
        source = pretrained_weights(recipe, say)
        data = open_run_data(
            recipe,
            team,
            data_dir=Path(data_dir) if data_dir is not None else None,
            num_workers=num_workers,
            pretrained=source[1] if source is not None else None,
            facts=saved_state.facts if saved_state is not None else None,
            say=say,
        )
        training, notes = _set_up(recipe, team, data, source, files, engine_name(engine))
        if folder is None and team.leads:
            folder = stack.enter_context(new_run_folder(recipe, out))
        leader_folder, folder = folder, team.from_leader(folder) or Path()
        if leader_folder is not None:
            write_whole(leader_folder / METRICS, files.get(METRICS, b""))
        state = training.state
        display = Progress(training, leader_folder, is_shown)
        stack.callback(display.close)
        _show_start(display, training, "resume" if files else "start", notes)
        saver = Saver(leader_folder, save_seconds, checkpoint, state.best_step)
        try:
            stopped_by = _train_and_save(training, folder, display, saver, until_epoch)
        except DivergedError as error:
            display.log(DIVERGED, reason=str(error))
            raise
        return Run(
            folder,
            recipe,
            training.result.eval(),
            tuple(state.history),
            f"{team.size} x {team.device.type}" if team.size > 1 else str(team.device),
            _describe_environment(state.facts),
            data.held_out_name,
            stopped_by,
            team.leads,
        )


def _newest_checkpoint(folder: Path, say: Callable[[str], None]) -> tuple[Path | None, dict[str, bytes]]:
    """The newest whole checkpoint in `folder` and its files; None and no files for a new run."""
    if reason := why_failed(folder):
        say(f"the run {reason}; with the same recipe it will most likely diverge again")
    newest = read_newest(folder, say)
    if newest is not None:
        return newest
    if (folder / MODEL).exists():  # a new training would overwrite its weights
        raise RunError(
            f"expected a run with checkpoints to go on from, got {folder}, which has a {MODEL} and none, try a new run "
            "with --out"
        )
    if (folder / METRICS).exists():
        say(f"{folder} has no whole checkpoint yet, and begins anew")
    return None, {}


def _saved_state(files: Mapping[str, bytes], recipe: Recipe) -> RunState | None:
    """The state in the files of a checkpoint; raises `RunError` if it belongs to another recipe."""
    if not files:
        return None
    state = RunState.from_json(files[STATE])
    if Recipe.from_json(json.dumps({**state.recipe, "data": recipe.data})) != recipe:
        raise RunError("expected the recipe that the run began with, got another one in its recipe.json")
    return state


def _set_up(
    recipe: Recipe,
    team: Team,
    data: RunData,
    source: tuple[AnyNetwork, Preprocessing] | None,
    files: Mapping[str, bytes],
    engine: EngineName,
) -> tuple[Training, list[str]]:
    """A new training, or the one in the `files` of a checkpoint; and lines for the user."""
    architecture = recipe.network(in_channels=data.preprocessing.channels, num_classes=len(data.classes))
    keep_freed_memory(costs(architecture, recipe.batch_size).total.activation_bytes // team.size)
    torch.manual_seed(recipe.seed)
    net = build(architecture, recipe.init)
    notes = [*data.notes, *start_from(net, source, recipe)]
    net.to(team.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(net) if recipe.average else None  # before sync_batch_norm, whose group cannot be copied
    if recipe.sync_batch_norm:
        if team.device.type != "cuda":
            raise RunError(f"expected GPUs with sync_batch_norm, got {team.device.type}, try without")
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net, team.group)
    optimizer = make_optimizer(recipe, net)
    state = restore(files, net, optimizer, average) if files else RunState(asdict(recipe), data.facts)
    training = Training(recipe, team, data, net, optimizer, state, engine, average)
    steps = training.steps_per_epoch
    if not 0 <= state.epoch_steps <= steps or any(epoch.step != steps for epoch in state.history[:1]):
        raise CheckpointError(f"expected a checkpoint of epochs of {steps} steps, got one of others")
    measured_on, slower = _environment(team, engine)
    notes += slower
    if files:
        notes.append(_resume_note(state, recipe, measured_on))
    state.facts = {**data.facts, **measured_on}
    return training, notes


def _environment(team: Team, engine: EngineName) -> tuple[dict[str, Any], list[str]]:
    """What decides results and speed of a run beside recipe and data; and lines on what makes it slower."""
    facts = {"hardware": describe_hardware(team.device), "processes": team.size, "torch": torch.__version__}
    facts |= {"vggkit": __version__}
    notes = []
    if team.device.type == "cuda":
        reason = "" if engine == "torch" else gpu.why_no_kernels()
        facts["engine"] = f"{engine}{' without kernels' * bool(reason)}"
        if reason:
            notes.append(f"layers are not fused, and slower: {reason}")
        if not gpu.has_fast_bfloat16(team.device):
            notes.append("computes in float32: bfloat16 needs compute capability 8.0")
    if team.device.type == "cpu":
        reason = "the engine is torch" if engine == "torch" else cpu.why_not_compiled()
        facts["convolutions"] = "torch" if reason else "compiled"
        if reason:
            notes.append(f"3x3 convolutions are not compiled, and slower: {reason}")
    return facts, notes


def _show_start(display: Progress, training: Training, event: str, notes: list[str]) -> None:
    """Show and log what is trained on what."""
    data, team, recipe, facts = training.data, training.team, training.recipe, training.state.facts
    measured_on = {name: value for name, value in facts.items() if name not in data.facts}
    measured_on |= {"evaluated_on": data.held_out_name, "device": str(team.device), "threads": torch.get_num_threads()}
    display.log(event, **measured_on)
    display.say(
        f"{training.net.architecture.name}: {sum(p.numel() for p in training.net.parameters()):,} parameters, "
        f"{recipe.image_size} px, {data.name}: {data.train.num_images:,} training and {data.held_out.num_images:,} "
        f"{data.held_out_name} images{', including bad ones, which are skipped' * bool(data.bad_images)}, "
        f"on {f'{team.size} x ' * (team.size > 1)}{_describe_environment(facts)}"
    )
    if data.bad_images:
        notes.append(bad_images_line(data.bad_images))
    if data.name == SAMPLE_NAME:
        notes.append(SAMPLE_WARNING)
    for note in [*notes, *_few_steps(training)]:
        display.say(note)


def _few_steps(training: Training) -> list[str]:
    """A warning, with a proposal, if epochs are too short for the network to learn much."""
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


def _train_and_save(
    training: Training, folder: Path, display: Progress, saver: Saver, until_epoch: int | None
) -> str | None:
    """Train with checkpoints; return what ended the run early, or None if it is finished."""
    with ExitStack() as stack:
        stack.callback(saver.wait)
        stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True))
        stop = stack.enter_context(signals_handled())
        stop.is_training = True
        is_finished = train_epochs(training, display, stop, saver, until_epoch)
        saver.save(training)
        saver.finish()
        stop.is_last = not is_finished and training.team.size > 1  # torchrun tells one process after the other
    if not is_finished:
        is_paused = until_epoch is not None and training.state.epoch > until_epoch
        return stop.signal_name or ("until_epoch" if is_paused else "a signal to another process")
    if training.team.leads:
        save_weights(folder / MODEL, training.result, training.metadata)
        best = training.state.best_step
        if best is not None:
            write_whole(folder / BEST, read_checkpoint(checkpoint_path(folder, best))[NETWORK])
    return None


def _describe_environment(facts: Mapping[str, Any]) -> str:
    """Hardware and engine of a run in words."""
    return f"{facts['hardware']}" + (f", {facts['convolutions']} convolutions" if "convolutions" in facts else "")


def _resume_note(state: RunState, recipe: Recipe, measured_on: dict[str, Any]) -> str:
    if state.epoch > recipe.epochs:
        return "the run is already finished; --more-epochs N would begin a new run from its weights"
    saved = {"vggkit": "before 0.5", **state.facts}
    changes = [f"{what} {saved.get(what)}, now {now}" for what, now in measured_on.items() if saved.get(what) != now]
    reasons = [f"it had {'; '.join(changes)}"] * bool(changes)
    if measured_on["processes"] != 1 and recipe.compression == "powersgd":
        reasons.append("PowerSGD forgets the gradients that it has not sent yet")
    exactly = "the weights will be those of an uninterrupted run, bit for bit"
    if reasons:
        exactly = f"the weights may differ from those of an uninterrupted run, since {' and '.join(reasons)}"
    return f"resumed after step {state.step}, in epoch {state.epoch}: {exactly}"
