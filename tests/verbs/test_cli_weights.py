"""`vgg weights` and `vgg features`, on real files."""

import json

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from tests.peers import peer
from tests.weights.test_containers import SMALL, state_of
from tests.weights.test_translation import relative_error
from vggkit import Preprocessing, cli, load_classifier, save_weights, vgg
from vggkit.weights.files import load_weights
from vggkit.weights.published import PUBLISHED, Published


def saved(folder, *hidden):
    torch.manual_seed(0)
    path, first = folder / "vgg11-12345678.pth", torch.randn(64, 3, 3, 3)
    torch.save(state_of("torchvision", "vgg11", *hidden, features__0__weight=first), path)
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file as torchvision publishes it, with constant weights, so that it takes no space."""
    return saved(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The same with narrow fully connected layers."""
    return saved(tmp_path_factory.mktemp("weights"), SMALL)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "photo.png"
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (300, 400, 3), dtype=torch.uint8).numpy()
    Image.fromarray(pixels).save(path)
    return path


def ran(capsys, *arguments):
    code = cli.main(list(map(str, arguments)))
    out = capsys.readouterr()
    assert code == 0, out.err
    return out.out


@torch.no_grad()
def test_relu1_1_of_an_image_is_torchvisions(weights, image, tmp_path, capsys):
    peer("torchvision")
    from torchvision.transforms import _presets

    out = tmp_path / "features.safetensors"
    printed = ran(capsys, "features", weights, image, "--layers", "relu1_1", "conv1_1", "-o", out)
    assert "1x64x224x224" in printed
    assert printed.splitlines()[-1] == str(out)
    written = load_file(out)
    with Image.open(image) as opened:
        x = _presets.ImageClassification(crop_size=224)(opened)
    expected = torch.nn.functional.conv2d(
        x[None], torch.load(weights)["features.0.weight"], torch.full((64,), 0.5), padding=1
    )
    # torchvision rounds the resized image to whole grey levels, we do not: that is all the difference there is
    assert relative_error(written["conv1_1"], expected) < 0.02
    assert torch.equal(written["relu1_1"], written["conv1_1"].relu())
    with safe_open(out, framework="pt") as file:
        assert json.loads(file.metadata()["layers"]) == ["relu1_1", "conv1_1"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("features W I --layers relu3_4 -o T/x.safetensors", "expected layers of vgg11, got 'relu3_4', try relu3_2"),
        ("features W I --layers relu3_1 -o T/x.npz", "expected a .safetensors file"),
        ("features W T/no.png --layers relu3_1 -o T/x.safetensors", "no.png: expected an image file"),
        ("features torchvision/vgg12 I --layers relu3_1 -o T/x.safetensors", "expected one of torchvision/vgg11, "),
        ("features I W --layers relu3_1 -o T/x.safetensors", "got an image, try the model first, then the images"),
        ("predict I W", "got an image, try the model first, then the images"),
        ("features --like I T/no", "no: expected an index file, got nothing there, try 'vgg features MODEL photos"),
        ("weights convert W -o T/x.pth", "expected a .safetensors file in a folder that exists"),
        ("weights convert W -o T/x.h5 --to torchvision", "a .safetensors or .pth file in a folder"),
        ("weights convert W -o W --to torchvision", "expected a new file for --out, got one that is read"),
        ("weights fetch torchvision/vgg12", "expected one of torchvision/vgg11"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(command, message, weights, image, tmp_path, capsys):
    before, places = weights.read_bytes(), {"W": str(weights), "I": str(image)}
    words = [places.get(word, word.replace("T/", f"{tmp_path}/")) for word in command.split()]
    assert cli.main(words) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == [image.name]
    assert weights.read_bytes() == before


def test_list_knows_where_everything_is(own_cache, capsys):
    known = json.loads(ran(capsys, "weights", "list", "--json"))
    assert [row["name"] for row in known] == list(PUBLISHED)
    assert all(row["where"] == "" for row in known)
    table = ran(capsys, "weights")
    assert "torchvision/vgg16_bn" in table
    assert "not fetched" in table


def test_published_weights_are_used_by_name(weights, image, own_cache, monkeypatch, capsys):
    """As torchvision/vgg11 would be, from an address on this machine."""
    import hashlib

    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(
        PUBLISHED, "torchvision/vgg11", Published("torchvision/vgg11", weights.as_uri(), "sha256", digest)
    )
    printed = ran(capsys, "weights", "fetch", "torchvision/vgg11").strip()
    assert printed.endswith("vgg11-12345678.pth")
    weights_there = load_classifier("torchvision/vgg11")
    assert weights_there.classes[0] == "tench"
    predictions = json.loads(ran(capsys, "predict", "torchvision/vgg11", image, "--json"))
    assert len(predictions[0]["predictions"]) == 3


def test_convert_there_and_back_says_what_torchvisions_names_cannot(published, tmp_path, capsys):
    ours, theirs, pth = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors", tmp_path / "theirs.pth"
    ran(capsys, "weights", "convert", published, "--out", ours, "--head", "conv")
    net, metadata = load_weights(ours)
    assert net.architecture.head == "conv"
    assert json.loads(metadata["preprocessing"])["crop_fraction"] == 0.875
    to_torchvision = ["weights", "convert", "--to", "torchvision"]
    assert cli.main([*to_torchvision, str(ours), "-o", str(theirs), "--preprocessing", "keras"]) == 0
    assert capsys.readouterr().err.startswith("note: torchvision's file cannot say that these weights expect")
    assert cli.main([*to_torchvision, str(published), "-o", str(pth)]) == 0
    note = "note: these weights do not say how to prepare images, but have torchvision's names"
    assert note in capsys.readouterr().err
    original, again, once_more = torch.load(published), load_file(theirs), torch.load(pth)
    assert list(once_more) == list(original)
    assert again.keys() == original.keys()
    for name, tensor in original.items():
        assert torch.equal(again[name], tensor)
        assert torch.equal(once_more[name], tensor)
    torchvision = peer("torchvision")
    with torch.device("meta"):
        net = torchvision.models.vgg11()
    net.load_state_dict(again, assign=True)


@torch.no_grad()
def test_convert_folds_what_caffe_expects_into_grey_or_colour(weights, image, tmp_path, capsys):
    folded, plain = tmp_path / "folded.safetensors", tmp_path / "plain.safetensors"
    ran(capsys, "weights", "convert", weights, "--out", plain, "--preprocessing", "caffe")
    ran(capsys, "weights", "convert", weights, "--out", folded, "--preprocessing", "caffe", "--fold")
    a, b = load_classifier(plain), load_classifier(folded)
    assert a.preprocessing.order == "bgr"
    assert (b.preprocessing.order, b.preprocessing.mean, b.preprocessing.std) == ("rgb", (0,) * 3, (1,) * 3)
    pixels = torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8)
    x, y = (c.net.features(c.preprocessing(pixels), ["conv1_1"])["conv1_1"] for c in (a, b))
    assert ((x - y).abs().max() / x.abs().max()) < 1e-5
    grey = tmp_path / "grey.safetensors"
    ran(capsys, "weights", "convert", weights, "--out", grey, "--in-channels", "1")
    assert load_classifier(grey).preprocessing.channels == 1
    ran(capsys, "weights", "convert", weights, "--out", grey, "--in-channels", "1", "--fold")
    assert (load_classifier(grey).preprocessing.channels, load_classifier(grey).preprocessing.mean) == (1, (0,))


def test_what_a_user_says_of_the_preprocessing_is_taken_and_stored(weights, image, tmp_path, capsys):
    out, said = (
        tmp_path / "x.safetensors",
        ("--mean", "0.5", "0.5", "0.4", "--std", "0.25", "0.5", "1", "--order", "bgr"),
    )
    assert cli.main(["predict", str(weights), str(image), "--top", "1"]) == 0
    assert "note: these weights do not say how to prepare images" in capsys.readouterr().err
    assert cli.main(["predict", str(weights), str(image), "--top", "1", *said]) == 0
    predicted, err = capsys.readouterr()
    assert err == ""
    ran(capsys, "weights", "convert", weights, "-o", out, *said)
    stored = load_classifier(out).preprocessing
    assert (stored.mean, stored.std, stored.order, stored.scale) == ((0.5, 0.5, 0.4), (0.25, 0.5, 1.0), "bgr", 1.0)
    assert cli.main(["predict", str(out), str(image), "--top", "1"]) == 0
    assert capsys.readouterr() == (predicted, "")


def test_weights_without_their_top_have_features_and_no_classes(weights, image, tmp_path, capsys):
    notop, out = tmp_path / "notop.pth", tmp_path / "features.safetensors"
    torch.save({name: t for name, t in torch.load(weights).items() if name.startswith("features")}, notop)
    assert "1x512x14x14" in ran(capsys, "features", notop, image, "--layers", "relu5_1", "-o", out)
    for arguments in (["predict", notop, image], ["features", notop, image, "--layers", "fc6", "-o", out]):
        assert cli.main(list(map(str, arguments))) == 2
        assert "expected weights with fully connected layers" in capsys.readouterr().err.splitlines()[-1]


def test_a_converted_network_is_prepared_for_its_size(weights, image, tmp_path, capsys):
    out, taps = tmp_path / "x.safetensors", tmp_path / "taps.safetensors"
    ran(capsys, "weights", "convert", weights, "-o", out, "--head", "conv", "--image-size", "288")
    assert "1x512x9x9" in ran(capsys, "features", out, image, "--layers", "pool5", "-o", taps)


def test_a_grey_run_made_for_colour_sees_grey_images_as_before(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--epochs", "1", "--architecture", "1x8 1x16", "--image-size", "16", "--device", "cpu", "--out", "run"]
    assert cli.main(["train", "--data", "fashion-mnist-sample", *options]) == 0
    ran(capsys, "weights", "convert", "run", "-o", "colour.safetensors", "--in-channels", "3")
    grey, colour = (
        json.loads(ran(capsys, "eval", model, "--data", "fashion-mnist-sample", "--json"))["confusion"]
        for model in ("run", "colour.safetensors")
    )
    assert grey == colour


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A network of three blocks that says its preprocessing."""
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    net = vgg("1x4 1x8 1x8", in_channels=3, num_classes=4, image_size=24, hidden=(6,))
    published = Preprocessing(24, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    save_weights(path, net, {"preprocessing": published.to_json()})
    return path


def test_head_and_size_change_together_in_both_directions(small, tmp_path, capsys):
    conv, back = tmp_path / "conv.safetensors", tmp_path / "back.safetensors"
    ran(capsys, "weights", "convert", small, "-o", conv, "--head", "conv", "--image-size", "50", "--in-channels", "3")
    assert load_weights(conv)[0].architecture.image_size == 50
    ran(capsys, "weights", "convert", conv, "-o", back, "--head", "flatten", "--image-size", "24")
    assert all(torch.equal(tensor, load_file(small)[name]) for name, tensor in load_file(back).items())
    assert load_classifier(back).classes == ("class 0", "class 1", "class 2", "class 3")


def test_what_is_folded_in_is_not_folded_again(small, tmp_path, capsys):
    folded = tmp_path / "folded.safetensors"
    ran(capsys, "weights", "convert", small, "-o", folded, "--fold")
    for flags in (["--fold"], ["--preprocessing", "caffe"], ["--in-channels", "1"]):
        assert cli.main(["weights", "convert", str(folded), "-o", str(tmp_path / "x.safetensors"), *flags]) == 2
        assert "without folded preprocessing" in capsys.readouterr().err
    plain = [
        "train",
        "--data",
        "fashion-mnist-sample",
        "--architecture",
        "1x4 1x8 1x8",
        "--hidden",
        "6",
        "--head",
        "flatten",
    ]
    assert cli.main([*plain, "--warm-start", str(folded), "--out", str(tmp_path / "run")]) == 2
    assert "and without folded preprocessing" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
