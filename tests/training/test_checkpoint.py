"""Checkpoints that are cut, changed, swapped, forged or not finite are never loaded."""

import json
import os
import random
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from tests.checkpoints import FACTS, RECIPE, equal_bits, files_of, one_step, parts, tensors_of, write
from tests.killing import KILLS
from vggkit.errors import CheckpointError
from vggkit.training.checkpoint import Saver, restore, snapshot
from vggkit.training.run_state import RunState
from vggkit.weights.files import safetensors_pieces
from vggkit.weights.runs import (
    FILES,
    METRICS,
    NETWORK,
    OPTIMIZER,
    STATE,
    SUMS,
    checkpoints_of,
    read_checkpoint,
    read_newest,
)


@pytest.fixture
def run(tmp_path):
    """The folder of a run with the checkpoints of its steps 1 and 2."""
    for step in (1, 2):
        write(tmp_path / "run", step, files_of(parts(steps=step)))
    return tmp_path / "run"


def refused(run, match):
    """The newest checkpoint is refused for `match`, in one line that names it, and the one before is taken."""
    newest, before = run / "checkpoints/step-00000002", run / "checkpoints/step-00000001"
    with pytest.raises(CheckpointError, match=match) as raised:
        read_checkpoint(newest)
    assert str(newest) in str(raised.value)
    assert "\n" not in str(raised.value)
    told = []
    path, files = read_newest(run, told.append)
    assert path == before
    assert RunState.from_json(files[STATE]).step == 1
    assert told == [str(raised.value)]


@pytest.mark.torture
def test_every_cut_and_every_flipped_bit_is_seen(run):
    newest = run / "checkpoints/step-00000002"
    draws, step = random.Random(0), 1 if KILLS >= 200 else 13
    tried = 0
    for name in (*FILES, SUMS):
        whole = (newest / name).read_bytes()
        broken = [whole[:length] for length in range(0, len(whole), step)] + [whole + b"\0"]
        for at in range(0, len(whole), step):
            for bit in range(8) if KILLS >= 200 else [draws.randrange(8)]:
                broken.append(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        for content in broken:
            (newest / name).write_bytes(content)
            with pytest.raises(CheckpointError):
                read_checkpoint(newest)
        refused(run, f"is damaged: expected what {SUMS} says, got another {name if name in FILES else ''}")
        (newest / name).write_bytes(whole)
        tried += len(broken)
    assert read_newest(run, pytest.fail)[0] == newest
    print(f"{tried} cuts and flipped bits, all refused")


@pytest.mark.parametrize("name", [*FILES, SUMS])
@pytest.mark.parametrize("kind", ["nothing", "folder", "FIFO", "link", "endless"])
def test_what_is_no_file_is_refused_and_not_waited_for(run, name, kind):
    path = run / "checkpoints/step-00000002" / name
    shutil.move(path, run / "moved")
    if kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(run / "moved")
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    if (name, kind) == (SUMS, "nothing"):  # as a kill between the renaming and the sums leaves it
        assert read_newest(run, pytest.fail)[0].name == "step-00000001"
    else:
        refused(run, rf"expected a whole checkpoint, got: (no regular file|No such file or directory): .*{name}")


def test_a_file_too_many_is_not_looked_at(run):
    (run / "checkpoints/step-00000002/notes.txt").write_text("mine")
    assert set(read_newest(run, pytest.fail)[1]) == set(FILES)


def test_files_of_others_are_refused(run, tmp_path):
    newest, before = run / "checkpoints/step-00000002", run / "checkpoints/step-00000001"
    shutil.copytree(newest, tmp_path / "kept")
    (newest / NETWORK).rename(newest / "x")
    (newest / OPTIMIZER).rename(newest / NETWORK)
    (newest / "x").rename(newest / OPTIMIZER)
    refused(run, "got another network.safetensors, optimizer.safetensors")
    for name in (NETWORK, OPTIMIZER, STATE):  # of another step of the same run
        shutil.copy(before / name, newest / name)
        refused(run, "is damaged")
        shutil.copy(tmp_path / "kept" / name, newest / name)
    shutil.rmtree(newest)
    shutil.copytree(before, newest)  # whole, under another one's name
    refused(run, "expected the checkpoint of that step, got the one of step 1")


def test_sums_that_are_gone_are_no_reason_to_begin_anew(run):
    for path in (run / "checkpoints").rglob(SUMS):
        path.unlink()
    assert checkpoints_of(run) == []
    with pytest.raises(CheckpointError, match="expected a whole checkpoint, got 2 damaged, try a new run"):
        read_newest(run, pytest.fail)


VARIANTS = {
    "sgd": {"momentum": 0.0, "nesterov": False},
    "momentum": {"nesterov": False},
    "nesterov": {},
    "adamw": {"optimizer": "adamw", "momentum": 0.0, "nesterov": False},
    "two blocks": {"architecture": "1x2 2x3k1,3_bn", "hidden": (5,)},
}


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("kind", VARIANTS)
def test_a_step_from_a_restored_snapshot_is_the_same_step(kind, steps):
    recipe = replace(RECIPE, **VARIANTS[kind])
    run, other = parts(recipe, steps), parts(recipe, 0, seed=1)
    files = files_of(run)
    other.state = restore(files, other.net, other.optimizer)
    assert other.state.to_json() == run.state.to_json()
    assert equal_bits(tensors_of(run), tensors_of(other))
    assert files_of(other) == files
    for step in (steps, steps + 1):
        one_step(run, step)
        one_step(other, step)
        assert equal_bits(tensors_of(run), tensors_of(other))


def test_our_files_are_those_of_safetensors():
    tensors = {"b": torch.rand(3, 2), "a": torch.tensor(5), "c": torch.rand(2, 3, 2, 2).mT, "é": torch.rand(300_000)}
    ours = b"".join(safetensors_pieces(tensors, {}))
    assert ours == save({name: tensor.contiguous() for name, tensor in tensors.items()})
    assert equal_bits(load(ours), {name: tensor.contiguous() for name, tensor in tensors.items()})


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b"1" * 10_000])
def test_what_is_no_state_at_all_is_refused(content):
    with pytest.raises(CheckpointError, match="expected the state of a run as JSON, got b'"):
        RunState.from_json(content)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("step", wrong) for wrong in ("1", 1.5, True, None)],
        *[("epoch_steps", wrong) for wrong in ("\x1b[31m", [])],
        *[("sums", wrong) for wrong in ("xyz", [1.0, "\n", 1.0], {}, [10**400, 1, 1])],
        *[("best_step", wrong) for wrong in ("../../x", 0.5)],
        *[("facts", wrong) for wrong in ([], {}, {**FACTS, "color_axes": "z"}, {**FACTS, "preprocessing": 1})],
        *[
            ("facts", {**FACTS, "content": wrong})
            for wrong in ([], {"train": {"sum": "x"}}, {"train": {"sum": 1}}, {"train": 1})
        ],
        *[("train_loss of the history", wrong) for wrong in ("\x1b[31m", None, [])],
    ],
)
def test_values_of_another_type_in_a_state_are_refused(field, value):
    state = parts(steps=2).state
    values = json.loads(state.to_json())
    assert RunState.from_json(state.to_json()).to_json() == state.to_json()
    name, _, is_of_history = field.partition(" of ")
    (values["history"][0] if is_of_history else values)[name] = value
    with pytest.raises(CheckpointError, match="expected the state of a run as JSON, got b'"):
        RunState.from_json(json.dumps(values).encode())


@pytest.mark.parametrize("name", [NETWORK, OPTIMIZER])
@pytest.mark.parametrize(
    "change",
    [
        lambda files, name: files.update({name: files[name][:-4]}),
        lambda files, name: files.update({name: b"\xff" * 8}),
        lambda files, name: files.update({name: save({**load(files[name]), "more.x": torch.zeros(1)})}),
        lambda files, name: files.update(
            {name: save({key: value[..., :1].clone() for key, value in load(files[name]).items() if value.ndim})}
        ),
    ],
)
def test_tensors_of_another_network_are_refused_in_one_line(name, change):
    files = files_of(parts())
    change(files, name)
    run = parts(steps=0)
    with pytest.raises(CheckpointError, match="expected the tensors of this run's network, got: ") as raised:
        restore(files, run.net, run.optimizer)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["weights", "momenta", "statistics"])
def test_what_is_not_finite_is_not_saved(run, bad, where):
    made = parts(steps=3)
    spoiled = {
        "weights": lambda: made.net.fc2.weight,
        "momenta": lambda: made.optimizer.state[made.net.fc2.weight]["momentum_buffer"],
        "statistics": lambda: next(buffer for name, buffer in made.net.named_buffers() if "running_var" in name),
    }[where]()
    with torch.no_grad():
        spoiled.view(-1)[0] = bad
    saver = Saver(run, 1.0, run / "checkpoints/step-00000002")
    saver.save(made)
    with pytest.raises(
        CheckpointError,
        match=r"could not write the checkpoint of step 3: expected finite values as .*, got others, try a lower "
        r"--learning-rate; .*step-00000002 is whole, and --resume goes on from it",
    ):
        saver.finish()
    assert [path.name for path in checkpoints_of(run)] == ["step-00000002", "step-00000001"]


def test_a_save_that_follows_at_once_mixes_nothing(tmp_path):
    run = parts(replace(RECIPE, hidden=(60_000,)), 0)
    saver = Saver(tmp_path, 1.0)
    expected = {}
    for step in (0, 1, 2):
        if step:
            one_step(run, step)
        run.state.step = run.state.epoch_steps = step
        expected[step] = files_of(run)
        (tmp_path / METRICS).write_bytes(expected[step][METRICS])
        saver.save(run)
    with torch.no_grad():
        run.net.fc3.weight.zero_()  # while it is written
    saver.finish()
    assert [path.name for path in checkpoints_of(tmp_path)] == ["step-00000002", "step-00000001"]
    for path in checkpoints_of(tmp_path):
        assert read_checkpoint(path) == expected[int(path.name[5:])]


def test_a_sum_that_overflows_is_no_reason_to_refuse():
    run = parts()
    with torch.no_grad():
        run.net.fc2.weight.fill_(3e38)
    assert METRICS in snapshot(run, b"")()


@pytest.mark.parametrize("spoil", ["gradient", "loss"])
@pytest.mark.parametrize("kind", ["momentum", "adamw"])
def test_a_step_that_is_not_finite_leaves_every_bit_as_it_was(kind, spoil):
    run = parts(replace(RECIPE, **VARIANTS[kind], architecture="1x2"), 2)
    before = {name: value.clone() for name, value in tensors_of(run).items()}
    if spoil == "gradient":
        hook = run.net.fc2.bias.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor(3), float("nan")))
    else:
        hook = run.net.fc2.register_forward_hook(lambda module, inputs, output: output + float("inf"))
    assert one_step(run, 2)[4] == 1
    assert equal_bits(tensors_of(run), before)
    hook.remove()
    assert one_step(run, 2)[4] == 0
    assert not equal_bits(tensors_of(run), before)


def test_a_link_in_place_of_an_old_checkpoint_is_removed_and_not_what_it_leads_to(run, tmp_path):
    old = run / "checkpoints/step-00000001"
    shutil.move(old, tmp_path / "elsewhere")
    old.symlink_to(tmp_path / "elsewhere")
    saver = Saver(run, 1.0, run / "checkpoints/step-00000002")
    saver.save(parts(steps=3))
    saver.finish()
    assert [path.name for path in checkpoints_of(run)] == ["step-00000003", "step-00000002"]
    assert not old.is_symlink()
    assert len(list((tmp_path / "elsewhere").iterdir())) == 5
