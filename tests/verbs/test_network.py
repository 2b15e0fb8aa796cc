import json
import os
import struct
import subprocess
import sys
from io import BytesIO

import pytest
from PIL import Image

from vggkit import VGG, Architecture, build, cli, save_weights
from vggkit.verbs.network import NetworkFlags

ARCH = Architecture.parse("1x4 2x8_bn", in_channels=1, num_classes=3, image_size=16, hidden=(5,))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A weight file, a finished run, a run that goes on, and a file of torchvision's, of one network each."""
    folder = tmp_path_factory.mktemp("models")
    save_weights(folder / "net.safetensors", VGG(ARCH), {})
    save_weights(folder / "lenet.safetensors", build("lenet"), {})
    for path in ("finished/model.safetensors", "going/checkpoints/step-7/network.safetensors"):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_bytes((folder / "net.safetensors").read_bytes())
    (folder / "finished" / "checkpoints").mkdir()
    return folder


def architecture(capsys, *arguments):
    assert cli.main(["describe", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["architecture"]


@pytest.mark.parametrize("name", ["net.safetensors", "finished", "going"])
def test_a_run_folder_and_a_weight_file_say_their_network(name, models, capsys):
    assert architecture(capsys, models / name) == json.loads(ARCH.to_json())
    changed = architecture(capsys, models / name, "--image-size", "32", "--num-classes", "7")
    assert (changed["image_size"], changed["num_classes"], changed["hidden"]) == (32, 7, [5])


def test_a_file_of_a_baseline_takes_the_flags_that_it_has(models, capsys):
    found = architecture(capsys, models / "lenet.safetensors", "--num-classes", "7", "--head", "gap")
    assert found == {"baseline": "lenet", "image_size": 28, "in_channels": 1, "num_classes": 7}


def test_the_network_of_a_file_is_read_without_torch(models, tmp_path):
    program = (
        "import sys; from vggkit import cli; "
        f"codes = [cli.main(['describe', r'{models / 'net.safetensors'}']), "
        f"cli.main(['draw', r'{models / 'finished'}', '-o', 'x.svg'])]; sys.exit('torch' in sys.modules or any(codes))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0


def test_a_name_comes_before_a_file_of_that_name(models, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vgg11").write_bytes((models / "net.safetensors").read_bytes())
    assert architecture(capsys, "vgg11")["notation"] == "1x64 1x128 2x256 2x512 2x512"
    assert architecture(capsys, "./vgg11")["notation"] == "1x4 2x8_bn"


def safetensors(metadata):
    header = json.dumps({"__metadata__": metadata}).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "weight file"),
        (b"\xff" * 100, "weight file"),
        (struct.pack("<Q", 2**63) + b"{}", "weight file"),
        (struct.pack("<Q", 20) + b"[" * 20, "weight file"),
        (safetensors({"architecture": "vgg\x1b[31m16"}), "expected an architecture as JSON"),
        (safetensors({"architecture": json.dumps({"baseline": "lenet", "image_size": "\x1b[31m\n" * 10**6})}), "keys"),
        (safetensors({"architecture": ARCH.to_json().replace("1x4", "1x4\\u001b[31m")}), "expected a block"),
    ],
)
@pytest.mark.parametrize("verb", ["describe", "draw"])
def test_a_file_that_is_none_gets_one_short_line(verb, content, message, tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert cli.main([verb, str(path), *(["-o", str(tmp_path / "x.svg")] if verb == "draw" else [])]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert line.isprintable()
    assert len(line) < 500 + len(str(path))


def test_what_is_no_file_is_said(tmp_path, capsys):
    os.mkfifo(tmp_path / "fifo.safetensors")
    (tmp_path / "empty").mkdir()
    for path, found in (("fifo.safetensors", "no regular file"), ("empty", "weights in it"), ("gone", "nothing there")):
        assert cli.main(["describe", str(tmp_path / path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert found in line


def test_baselines_have_their_own_defaults(capsys):
    assert architecture(capsys, "lenet") == {"baseline": "lenet", "image_size": 28, "in_channels": 1, "num_classes": 10}
    assert cli.main(["describe", "lenet"]) == 0
    assert "61,706" in capsys.readouterr().out
    assert sum(parameter.numel() for parameter in build("lenet").parameters()) == 61_706


@pytest.mark.parametrize("suffix", [".png", ".pdf"])
@pytest.mark.parametrize("style", ["scale", "blocks"])
def test_draw_writes_png_and_pdf(suffix, style, tmp_path, capsys):
    out = tmp_path / f"x{suffix}"
    assert cli.main(["draw", "lenet", "vgg11_bn", "-o", str(out), "--style", style]) == 0
    content = out.read_bytes()
    if suffix == ".pdf":
        assert content.startswith(b"%PDF-")
        assert content.rstrip().endswith(b"%%EOF")
    else:
        picture = Image.open(BytesIO(content))
        assert min(picture.size) > 500
        assert len(picture.convert("RGB").resize((200, 200)).getcolors(40_000)) > 20


@pytest.mark.parametrize("verb", ["describe", "draw", "bench"])
def test_the_flags_of_networks_are_the_same_in_every_verb(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, value in NetworkFlags().__dict__.items():
        assert value is None
        assert f"--{name.replace('_', '-')} " in text
    assert "1 for grey images, 3 for RGB; the network's own if not given: 3, for lenet and alexnet 1." in text
