"""The nearest images of an index; the oracle is NumPy on the features that were written."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.inference.conftest import make_weights
from vggkit import cli, load_classifier
from vggkit.errors import WeightsError
from vggkit.inference.similar import contact_sheet, read_index


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(12):
        pixels = rng.integers(0, 256, (3, 4, 3), np.uint8)
        Image.fromarray(pixels).resize((40, 30), Image.Resampling.BICUBIC).save(f"photos/{number:02}.png")
    with Image.open("photos/05.png") as image:
        image.resize((80, 60)).save("query.jpg", quality=95)
    make_weights(tmp_path / "m.safetensors")
    return tmp_path


@pytest.mark.parametrize("layer", ["fc3", "relu2_1"])
def test_the_images_found_are_those_of_the_largest_cosines(photos, layer, capsys):
    command = ["features", "m.safetensors", "photos", "--layers", "fc3", "relu2_1", "-o", "index.safetensors"]
    assert cli.main([*command, "--mean", "0.1", "0.2", "0.3"]) == 0
    capsys.readouterr()
    find = ["features", "--like", "query.jpg", "index.safetensors", "--layers", layer, "--top", "4", "--json"]
    assert cli.main([*find, "-o", "sheet.png"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        cli.main(
            [
                "features",
                "m.safetensors",
                "query.jpg",
                "--layers",
                layer,
                "-o",
                "q.safetensors",
                "--mean",
                "0.1",
                "0.2",
                "0.3",
            ]
        )
        == 0
    )
    rows, query = (load_file(f"{name}.safetensors")[layer].numpy() for name in ("index", "q"))
    if rows.ndim == 4:
        rows, query = rows.mean(axis=(2, 3)), query.mean(axis=(2, 3))
    cosines = rows @ query[0] / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    order = np.argsort(-cosines)[:4]
    assert [match["image"] for match in found] == [f"photos/{number:02}.png" for number in order]
    np.testing.assert_allclose([match["cosine"] for match in found], cosines[order], rtol=1e-5)
    assert found[0]["image"] == "photos/05.png"
    with Image.open("sheet.png") as image:
        assert image.width == 880


def test_an_image_that_has_gone_leaves_an_empty_cell(photos, capsys):
    assert cli.main(["features", "m.safetensors", "photos", "--layers", "fc3", "-o", "index.safetensors"]) == 0
    index = read_index("index.safetensors")
    found = index.like(load_classifier("m.safetensors"), "photos/07.png", top=30)
    assert len(found) == 12 and found[0].image == "photos/07.png"
    whole = contact_sheet("photos/07.png", found)
    (photos / "photos/07.png").unlink()
    gone = contact_sheet("query.jpg", found)
    assert Image.open(io.BytesIO(whole)).size == Image.open(io.BytesIO(gone)).size
    assert whole != gone


def test_what_is_no_index_is_refused(photos, capsys):
    with pytest.raises(WeightsError, match="m.safetensors: expected an index that 'vgg features' wrote, got another"):
        read_index("m.safetensors")
    assert cli.main(["features", "m.safetensors", "photos", "--layers", "relu2_1", "-o", "index.safetensors"]) == 0
    with pytest.raises(WeightsError, match="expected a layer of the index, got 'relu2_2', try relu2_1"):
        read_index("index.safetensors", "relu2_2")
    assert cli.main(["features", "m.safetensors", "photos", "--layers", "fc4", "-o", "index.safetensors"]) == 0
    index = read_index("index.safetensors")
    make_weights(photos / "other.safetensors", labels=["a", "b"])
    with pytest.raises(
        WeightsError, match="expected the network of the index, m.safetensors, whose fc4 has 3 features, "
    ):
        index.like(load_classifier("other.safetensors"), "query.jpg")
    with pytest.raises(ValueError, match="expected a top from 1, got 0"):
        index.like(load_classifier("m.safetensors"), "query.jpg", top=0)
    for words, message in [
        (["features", "--like", "query.jpg", "index.safetensors", "photos"], "expected an index and at most one layer"),
        (["features", "--like", "query.jpg", "index.safetensors", "-o", "x.jpg"], "expected a .png file"),
        (["features", "--like", "none.jpg", "index.safetensors"], "none.jpg: expected an image file"),
        (["features", "--like", "photos", "index.safetensors"], "expected one image to find others by, got 12"),
        (["features", "m.safetensors", "photos"], "expected --layers LAYER ... and --out FILE, got none"),
    ]:
        capsys.readouterr()
        assert cli.main(words) == 2
        assert message in capsys.readouterr().err


DAMAGES = {
    "nan": lambda rows: rows.index_fill_(1, torch.tensor([0]), torch.nan),
    "inf": lambda rows: rows.index_fill_(1, torch.tensor([0]), torch.inf),
    "fewer rows": lambda rows: rows[:5],
    "no rows": lambda rows: rows[:0],
    "flat": lambda rows: rows.flatten(),
    "missing layer": lambda rows: None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_refused(photos, damage, capsys):
    assert cli.main(["features", "m.safetensors", "photos", "--layers", "relu2_1", "-o", "index.safetensors"]) == 0
    with safe_open("index.safetensors", "pt") as file:
        metadata, rows = file.metadata(), file.get_tensor("relu2_1")
    rows = DAMAGES[damage](rows)
    tensors = {"other": torch.ones(12, 3)} if rows is None else {"relu2_1": rows.contiguous()}
    save_file(tensors, "index.safetensors", metadata)
    capsys.readouterr()
    assert cli.main(["features", "--like", "query.jpg", "index.safetensors", "--json"]) == 2
    told = capsys.readouterr()
    assert "got a damaged one, try to write it again" in told.err and told.err.count("\n") == 1 and not told.out
