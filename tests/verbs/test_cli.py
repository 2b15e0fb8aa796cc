import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from vggkit import Recipe, cli, errors
from vggkit.data.fashion_mnist import SAMPLE_PLACE
from vggkit.verbs import VERBS, describe, module_of, train
from vggkit.verbs.terminal import parse_flags

ROOT = Path(__file__).parents[2]
QUICK = train.Flags(Recipe.named("quick"), "quick")


def vgg_program(*arguments, **options):
    command = [sys.executable, "-m", "vggkit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small network trained by the command line on a terminal without UTF-8, and what the command printed."""
    folder = tmp_path_factory.mktemp("cli")
    done = vgg_program(
        "train", "--data", "fashion-mnist-sample", "--epochs", "2", "--architecture", "1x8 1x16_bn",
        "--image-size", "16", "--hidden", "32", "--device", "cpu", "--out", "r\N{LATIN SMALL LETTER U WITH DIAERESIS}n",
        cwd=folder, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "rün", done


def described(capsys, *arguments):
    assert cli.main(["describe", *arguments]) == 0
    return capsys.readouterr().out


def row(text, name):
    return next(line for line in text.splitlines() if line.startswith(name))


def test_describe_answers_where_the_parameters_are(capsys):
    wide = described(capsys, "vgg11", "--in-channels", "1", "--num-classes", "10")
    assert "92.8" in row(wide, "all fc").split()
    narrow = described(capsys, "vgg11/4", "--in-channels", "1", "--num-classes", "10")
    assert "98.7" in row(narrow, "all fc").split()


def test_describe_answers_where_the_other_three_layers_went(capsys):
    text = described(capsys, "vgg11")
    assert "8 conv" in row(text, "all conv")
    assert "3 fc" in row(text, "all fc")
    assert row(text, "total").split()[1] == "11"
    assert "132,863,336" in row(text, "total")


def test_describe_by_layer_and_as_json_say_the_same(capsys):
    text = described(capsys, "vgg16_bn/8", "--layers", "--image-size", "64", "--hidden", "100", "--batch-size", "2")
    data = json.loads(
        described(capsys, "vgg16_bn/8", "--json", "--image-size", "64", "--hidden", "100", "--batch-size", "2")
    )
    for layer in data["layers"]:
        assert f"{layer['parameters']:,}" in row(text, layer["name"])
        assert "x".join(map(str, layer["output_shape"][1:])) in row(text, layer["name"])
    assert data["total"]["parameters"] == sum(layer["parameters"] for layer in data["layers"])
    assert data["total"]["macs"] == sum(part["macs"] for part in data["parts"].values())
    assert f"{data['total']['macs'] / 1e6:,.1f}" in row(text, "total")


@pytest.mark.parametrize("network", ["vgg19", "vgg16_bn", "A-LRN"])
def test_describe_fits_80_columns(network, capsys):
    for layers in ([], ["--layers"]):
        assert max(map(len, described(capsys, network, *layers).splitlines())) <= 80


@pytest.mark.parametrize("batch_size", ["1", "7", "128", "3000"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["vgg16_bn", "--optimizer", "adamw", "--memory", "6GB"],
        ["vgg19", "--hidden", "--optimizer", "adamw", "--dtype", "bfloat16", "--memory", "80GiB"],
        ["lenet", "--optimizer", "momentum", "--memory", "1e6"],
        ["lenet", "alexnet", "vgg19", "--memory", "24GB"],
        ["lenet", "alexnet", "vgg11_bn", "vgg19_bn", "--memory", "24GB"],
    ],
)
def test_describe_of_training_fits_80_columns(batch_size, arguments, capsys):
    text = described(capsys, *arguments, "--batch-size", batch_size)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80


def numbers(line):
    """Every number in a line, thousands joined."""
    return [float(number) for number in re.findall(r"\d+\.?\d*", line.replace(",", ""))]


def test_describe_says_what_training_takes(capsys):
    line = row(described(capsys, "vgg16", "--batch-size", "8", "--optimizer", "momentum"), "training")
    *parts, peak = numbers(line)
    assert line.endswith(" GB")
    assert parts[:3] == [0.55, 0.55, 0.55]  # 138 million float32 parameters
    assert sum(parts) == pytest.approx(peak, abs=0.02)
    assert len(numbers(row(described(capsys, "vgg16"), "training"))) == 4  # sgd keeps nothing


def test_describe_says_which_batch_fits(capsys):
    arguments = ["vgg16", "--memory", "6GB"]
    text = described(capsys, *arguments, "--batch-size", "128")
    plain, checkpointed = row(text, "in 6.00 GB"), row(text, "with --checkpoint")
    assert "does not fit" in plain
    most, most_checkpointed = int(plain.split()[-1]), int(checkpointed.split()[-1])
    assert most_checkpointed > most
    for batch_size, fits in ((most, "fits"), (most + 1, "does not fit")):
        assert f" {batch_size} {fits};" in row(
            described(capsys, *arguments, "--batch-size", str(batch_size)), "in 6.00"
        )
    for batch_size, fits in ((most_checkpointed, "fits"), (most_checkpointed + 1, "does not fit")):
        text = described(capsys, *arguments, "--batch-size", str(batch_size))
        assert f", {fits};" in row(text, "with --checkpoint")
    assert "not even 1 does" in row(described(capsys, "vgg16", "--memory", "1GB"), "in 1.00 GB")
    assert "checkpoint" not in described(capsys, "alexnet", "--memory", "6GB")  # it has no blocks


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6GB", 6_000_000_000),
        ("6 gib", 6 * 2**30),
        ("500MB", 500_000_000),
        ("6e9", 6_000_000_000),
        ("1500kB", 1_500_000),
        ("2TiB", 2 * 2**40),
        ("17000000", 17_000_000),
        ("17000000B", 17_000_000),
    ],
)
def test_sizes_of_memory(text, expected):
    assert describe.parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "6XB", "six", "-1GB", "6G", "nan", "inf", "9" * 400, "6e999", "1/2GB", "6GB6", "٦GB", "6", "999kB"]
)
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(
        ValueError, match="expected a size from 1MB, such as 6GB, 6GiB, 500MB or 6e9, for --memory, got '"
    ):
        describe.parse_bytes(text)


def test_describe_compares_alexnet_and_vgg(capsys):
    options = ["--in-channels", "1", "--num-classes", "10", "--batch-size", "128"]
    text = described(capsys, "alexnet", "vgg11", *options, "--memory", "24GB")
    alone = [json.loads(described(capsys, name, *options, "--json")) for name in ("alexnet", "vgg11")]
    assert json.loads(described(capsys, "alexnet", "vgg11", *options, "--json")) == alone
    for name, scale, values in (
        ("weight layers", 1, [8, 11]),
        ("parameters, conv", 1, [one["convolutional"]["parameters"] for one in alone]),
        ("parameters, fc", 1, [one["fully_connected"]["parameters"] for one in alone]),
        ("parameters ", 1, [one["total"]["parameters"] for one in alone]),
        ("MMACs, conv", 1e6, [one["convolutional"]["macs"] for one in alone]),
        ("MMACs, fc", 1e6, [one["fully_connected"]["macs"] for one in alone]),
        ("MMACs ", 1e6, [one["total"]["macs"] for one in alone]),
        ("MB out", 1e6, [one["total"]["activation_bytes"] for one in alone]),
        ("MB to train", 1e6, [one["training"]["peak_bytes"] for one in alone]),
    ):
        first, second = (value / scale for value in values)
        assert numbers(row(text, name)) == pytest.approx([first, second, second / first], abs=0.051, rel=0.01)
    assert numbers(row(text, "parameters "))[0] == 46_764_746  # the book's AlexNet
    assert "-" in row(text, "  --checkpoint").split()


def test_networks_have_their_own_size_unless_told(capsys):
    sizes = [
        one["architecture"]["image_size"]
        for one in json.loads(described(capsys, "lenet", "alexnet", "vgg11", "--json"))
    ]
    assert sizes == [28, 224, 224]
    assert json.loads(described(capsys, "lenet", "--json", "--image-size", "64"))["architecture"]["image_size"] == 64


def test_describe_takes_every_head(capsys):
    for head, hidden, extra in (
        ("gap", [], []),
        ("adaptive", [4096, 4096], ["--pooled-size", "3"]),
        ("conv", [4096, 4096], []),
        ("flatten", [], ["--hidden"]),
    ):
        architecture = json.loads(described(capsys, "vgg11", "--head", head, *extra, "--json"))["architecture"]
        assert (architecture["head"], architecture["hidden"]) == (head, hidden)


def test_describe_imports_no_torch():
    program = "import sys; from vggkit import cli; cli.main(['describe', 'vgg19']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("describe", "expected a network, got none, try 'vgg describe vgg16'"),
        ("describe vgg61", "vgg describe: 'vgg61', character 1: expected a name such as vgg16"),
        ("describe '1x64 2y128'", "character 6: expected a block such as 2x128, got '2y128'"),
        ("describe 1x1000000000", "character 3: expected channels from 1 to 65536"),
        ("describe vgg11 --image-size 16", "expected an image_size of at least 32 for 5 blocks"),
        ("describe vgg11 --memory 1GB --batch-size 0", "expected a batch_size from 1"),
        ("describe vgg11 --memory 6XB", "expected a size from 1MB, such as 6GB, 6GiB, 500MB or 6e9, for --memory"),
        ("describe vgg11 vgg16 --layers", "expected one network with --layers, got 2"),
        ("describe vgg11 --optimizer adam", "adam"),
        (
            "train --recipe fast",
            "vgg train: expected a recipe of quick, d2l, d2l-1.0, gluon, paper, finetune, got 'fast'",
        ),
        ("train --recipe", "--recipe"),
        ("train --epochs many", "--epochs"),
        ("train --epochs 0", "epochs to be a whole number from 1"),
        ("train --data no-such-set", "expected fashion-mnist, fashion-mnist-sample, a folder of images"),
        ("train --data fashion-mnist-sample --device tpu", "expected a device of this machine, got 'tpu'"),
        ("data fetch mnist", "invalid choice 'mnist' for argument"),
        ("eval no-such-run", "no-such-run: expected a weight file, got nothing there"),
        ("eval . --plot confusion.txt", "expected a .png file in a folder that exists for --plot"),
        ("eval . --plot no/confusion.png", "expected a .png file in a folder that exists for --plot"),
        ("predict no-such-run x.png", "no-such-run: expected a weight file, got nothing there"),
        ("predict run", "expected at least one image, got none"),
        # what was probably meant
        ("trian", ", try vgg train"),
        ("desc", ", try vgg describe"),
        ("paint", f"vgg paint: expected one of {', '.join(VERBS)}, try vgg --help"),
        ("train --lr 0.1", "got '--lr', try --learning-rate"),
        ("train --image_sise 32", "try --image-size"),
        ("train --recipe qiuck", "got 'qiuck', try quick"),
        ("train vgg11_bn", "got 'vgg11_bn', try --architecture 'vgg11_bn'"),
        ("data chek photos", "got 'chek', try check"),
        ("data check photos --sed 1", "got '--sed', try --seed"),
        ("train --\x1b[31m", r"got '--\x1b[31m', try vgg train --help"),
    ],
)
def test_a_users_mistake_gets_one_line_and_code_2(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(shlex.split(arguments)) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith(f"vgg {arguments.split()[0]}: ")
    assert message in line
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_fits_a_terminal_and_has_examples_that_parse(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["help", verb]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: vgg {verb} ")
    assert max(map(len, text.splitlines())) <= 80
    assert not re.search(r"default: ?(None|\)|$)", text.replace("│", "").replace("\n", " "))
    examples = [line for line in text.splitlines() if re.match(rf"  vgg {verb}\b", line)]
    assert len(examples) == 2
    for example in examples:
        words = shlex.split(example.partition(" > ")[0])
        parse_flags(verb, module_of(verb).Flags, words[2:], QUICK if verb == "train" else None)


def test_the_usage_names_every_verb(capsys):
    for arguments in ([], ["--help"], ["help"], ["-h"]):
        assert cli.main(arguments) == 0
        out = capsys.readouterr().out
        assert all(f"  {verb} " in out for verb in VERBS)
        assert max(map(len, out.splitlines())) <= 80
    assert cli.main(["--version"]) == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_verbs_flags_and_choices(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*VERBS, "fetch", "--learning-rate", "--no-flip", "adaptive"):
        assert word in script


def test_bash_completes(tmp_path, capsys):
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "vgg").write_text(capsys.readouterr().out)
    for words, expected in ((["tr"], "train"), (["data", "ch"], "check"), (["train", "--learn"], "--learning-rate")):
        program = (
            f"source {tmp_path}/vgg; COMP_WORDS=(vgg {' '.join(words)}); COMP_CWORD={len(words)}; "
            'COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}; '
            "$(complete -p vgg | sed 's/.*-F \\([^ ]*\\).*/\\1/'); echo \"${COMPREPLY[*]}\""
        )
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60)
        assert done.stdout.split()[:1] == [expected], done.stderr


def test_the_help_of_train_shows_the_chosen_recipes_values(capsys):
    helps = []
    for arguments in ([], ["--recipe", "d2l"], ["--recipe=d2l-1.0"]):
        assert cli.main(["train", *arguments, "--help"]) == 0
        helps.append(" ".join(capsys.readouterr().out.replace("│", " ").split()))
    assert "Pixels along a side of the network's input. (default: 32)" in helps[0]
    assert "Pixels along a side of the network's input. (default: 224)" in helps[1]
    assert "(default: 0.01)" in helps[2]
    assert "--flip, --no-flip Mirror training images left and right at random. (default: True)" in helps[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Recipe.named("quick")),
        (["--recipe", "d2l"], Recipe.named("d2l")),
        (["--recipe=gluon", "--seed", "3"], replace(Recipe.named("gluon"), seed=3)),
        (["--flip", "--no-stream"], Recipe.named("quick")),
        (["--hidden", "64", "32", "--no-flip"], replace(Recipe.named("quick"), hidden=(64, 32), flip=False)),
        (["--flip", "--checkpoint"], replace(Recipe.named("quick"), checkpoint=True)),
        (["--recipe", "d2l", "--normalize"], replace(Recipe.named("d2l"), normalize=True)),
        (["--no-flip", "--resume", "not-there-yet"], replace(Recipe.named("quick"), flip=False)),
    ],
)
def test_the_flags_of_train_are_the_recipes(arguments, expected, monkeypatch, full_place):
    seen = []
    monkeypatch.setattr("vggkit.training.loop.train", lambda recipe, **_: seen.append(recipe) or exit(7))
    assert cli.main(["train", *arguments]) == 7
    assert seen == [expected]


def test_training_ends_with_the_books_two_lines_and_the_folder(trained):
    _, done = trained
    *_, loss, speed, folder = done.stdout.splitlines()
    assert loss.startswith("loss ")
    assert ", train acc " in loss
    assert ", test acc " in loss
    assert speed.endswith(" examples/sec on cpu")
    assert folder == "r\\xfcn"
    assert done.stdout.count("epoch ") == 2
    assert done.stderr.count("not comparable") == done.stdout.count("not comparable") == 1


def test_training_shows_a_live_display_on_a_terminal(tmp_path):
    primary, secondary = pty.openpty()
    command = [sys.executable, "-m", "vggkit", "train", "--data", "fashion-mnist-sample", "--epochs", "4"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=secondary, stderr=secondary, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    )
    os.close(secondary)
    shown = b""
    while True:
        try:
            part = os.read(primary, 65536)
        except OSError:  # the other end is closed
            break
        shown += part
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert "train acc" in text
    assert "\x1b[" in text
    assert "epoch 4/4" in text
    assert "runs/quick-1" in text


def test_eval_agrees_with_training_and_draws(trained, capsys, tmp_path):
    run, done = trained
    assert cli.main(["eval", str(run), "--plot", str(tmp_path / "confusion.png")]) == 0
    out = capsys.readouterr().out
    accuracy = float(out.partition("accuracy ")[2].split()[0])
    assert f"test acc {accuracy:.3f}" in done.stdout.splitlines()[-3]
    assert "ankle boot" in out
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.size[0] > 500
    assert cli.main(["eval", str(run), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert round(data["accuracy"], 4) == accuracy
    assert sum(map(sum, data["confusion"])) == 1000


def test_data_lists_what_is_known(capsys, own_cache):
    assert cli.main(["data", "--json"]) == 0
    full, sample = json.loads(capsys.readouterr().out)
    assert full["where"] == ""
    assert "try 'vgg data fetch fashion-mnist'" in full["state"]
    assert sample == {"name": "fashion-mnist-sample", "where": str(SAMPLE_PLACE), "state": "verified"}


FAMILY = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.VggkitError)]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        *((kind("it is\nso"), kind.exit_code, "it is so") for kind in FAMILY),
        (ValueError("a \x1b[2Jb"), 2, r"a \x1b[2Jb"),
        (OSError(28, "No space left on device", "x"), 1, "No space left on device: 'x'"),
        (MemoryError(), 1, "expected enough memory, got: MemoryError, try a smaller"),
        (RuntimeError("can't allocate memory: 1 bytes.\nmore"), 1, "expected enough memory, got: can't allocate"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
@pytest.mark.parametrize("verb", VERBS)
def test_any_failure_of_any_verb_is_one_line(verb, error, code, message, capsys, monkeypatch):
    monkeypatch.setattr(module_of(verb), "run", lambda _: (_ for _ in ()).throw(error))
    assert cli.main([verb]) == code
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == bool(message)


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(module_of("data"), "run", lambda _: (_ for _ in ()).throw(RuntimeError("a fault")))
    with pytest.raises(RuntimeError, match="a fault"):
        cli.main(["data"])


def broken(kind, folder):
    """A path that no reader can use."""
    path = folder / "bad\x1b[31m.safetensors"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "dangling link":
        path.symlink_to(folder / "gone")
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "run of rubbish":
        path.mkdir()
        for name in ("recipe.json", "metrics.jsonl", "model.safetensors"):
            (path / name).write_bytes(b"\x1b]0;x\x07{\n" * 9)
    elif kind != "nothing":
        path.write_bytes({"empty": b"", "rubbish": b"\x1b[2J\n\xff" * 99, "page": b"<!DOCTYPE html><html>"}[kind])
    return str(path)


@pytest.mark.parametrize(
    "kind",
    ["nothing", "empty", "rubbish", "page", "fifo", "dangling link", "link to itself", "folder", "run of rubbish"],
)
@pytest.mark.parametrize(
    "command",
    [
        "data check BAD", "train --data BAD", "train --resume BAD", "train --warm-start BAD", "train --pretrained BAD",
        "eval BAD", "eval RUN --data BAD", "predict BAD IMAGE", "predict RUN BAD", "features BAD IMAGE --layers pool1 -o F",
        "features RUN BAD --layers pool1 -o F", "weights convert BAD -o F", "doctor 1x4 --warm-start BAD",
        "doctor 1x4 --data BAD",
    ],
)  # fmt: skip
def test_what_no_reader_can_use_is_one_line_for_every_verb(command, kind, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = ROOT / "docs/pictures/ankle-boot.png"
    words = {"BAD": broken(kind, tmp_path), "RUN": str(trained[0]), "IMAGE": str(image), "F": "out.safetensors"}
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits for the pipe"))
    signal.alarm(60)
    try:
        assert cli.main([words.get(word, word) for word in command.split()]) in (1, 2)
    finally:
        signal.alarm(0)
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("vgg ")
    assert all(line.isprintable() for line in told)


def test_markup_in_a_path_is_shown_as_it_is(capsys, own_cache):
    assert cli.main(["data", "--data-dir", "[red]foo[/bar]"]) == 0
    assert "[red]foo[/bar]" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "start"), [("describe vgg19 --layers", "vgg19"), ("train --help", "usage: vgg")])
def test_a_closed_pipe_is_no_error(arguments, start):
    command = f"{sys.executable} -m vggkit {arguments} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.startswith(start)
