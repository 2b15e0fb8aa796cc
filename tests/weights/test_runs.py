"""What a run folder stands for where weights are asked for."""

import pytest

from tests.checkpoints import files_of, parts, write
from vggkit import load_weights, save_weights, vgg
from vggkit.errors import WeightsError
from vggkit.weights.runs import find_weights


def test_an_unfinished_run_stands_for_its_newest_whole_checkpoint(tmp_path):
    said = []
    for step in (1, 2):
        write(tmp_path, step, files_of(parts(steps=step)))
    newest = tmp_path / "checkpoints/step-00000002/network.safetensors"
    assert find_weights(str(tmp_path), said.append) == newest
    newest.write_bytes(newest.read_bytes()[:-1] + b"!")
    older = find_weights(tmp_path, said.append)
    assert older == tmp_path / "checkpoints/step-00000001/network.safetensors"
    assert load_weights(older)[0].architecture.name == "1x2_bn"
    assert len(said) == 1 and "step-00000002 is damaged" in said[0]
    older.unlink()
    with pytest.raises(WeightsError, match="expected a whole checkpoint, got 2 damaged"):
        find_weights(tmp_path)


def test_a_finished_run_stands_for_its_model(tmp_path):
    assert find_weights(tmp_path) == tmp_path / "model.safetensors"  # which load_weights then says to be missing
    write(tmp_path, 1, files_of(parts()))
    save_weights(tmp_path / "model.safetensors", vgg("1x2", image_size=4, hidden=()), {})
    assert find_weights(tmp_path) == tmp_path / "model.safetensors"
