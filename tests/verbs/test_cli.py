import errno
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
from vggkit.training.recipe import RECIPES
from vggkit.verbs import VERBS, module_of, train
from vggkit.verbs.terminal import actions_of, parse_flags

ROOT = Path(__file__).parents[2]
QUICK = train.Flags(Recipe.named("quick"), "quick")
LITTLE = ["--data", "fashion-mnist-sample", "--architecture", "1x8_bn", "--image-size", "16"]


def vgg_program(*arguments, **options):
    command = [sys.executable, "-m", "vggkit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small network trained by the command line on a terminal without UTF-8, and what the command printed."""
    folder = tmp_path_factory.mktemp("cli")
    done = vgg_program(
        "train", "--data", "fashion-mnist-sample", "--epochs", "2", "--batch-size", "128", "--architecture", "1x8 1x16_bn",
        "--image-size", "16", "--head", "flatten", "--hidden", "32", "--device", "cpu",
        "--out", "r\N{LATIN SMALL LETTER U WITH DIAERESIS}n",
        cwd=folder, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "rün", done


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("describe", "expected a network, got none, try 'vgg describe vgg16'"),
        ("describe vgg61", "vgg describe: 'vgg61', character 1: expected a name such as vgg16"),
        ("describe '1x64 2y128'", "character 6: expected a block such as 2x128, got '2y128'"),
        ("describe 1x1000000000", "character 1: expected channels from 1 to 65536"),
        ("describe vgg11 --image-size 16", "expected an image_size of at least 32 for 5 blocks"),
        ("describe vgg11 --memory 1GB --batch-size 0", "expected a batch_size from 1"),
        ("describe vgg11 --memory 6XB", "expected a size from 1MB, such as 6GB, 6GiB, 500MB or 6e9, for --memory"),
        ("describe vgg11 vgg16 --layers", "expected one network with --layers, got 2"),
        (
            "train --recipe fast",
            "vgg train: expected a recipe of quick, five-minutes, best, d2l, d2l-1.0, gluon, paper, finetune, got 'fast'",
        ),
        ("train --epochs 0", "epochs to be a whole number from 1"),
        ("train --data no-such-set", "expected fashion-mnist, fashion-mnist-sample, a folder of images"),
        ("train --data fashion-mnist-sample --device tpu", "expected a device of this machine, got 'tpu'"),
        ("data fetch mnist", "expected fashion-mnist, got 'mnist'"),
        ("eval no-such-run", "no-such-run: expected a run or a weight file, got nothing there, try 'vgg runs'"),
        ("eval . --plot confusion.txt", "expected a .png file in a folder that exists for --plot"),
        ("data check photos --workers -1", "expected --workers from 0 to 1024, got -1"),
        ("eval . --plot no/confusion.png", "expected a .png file in a folder that exists for --plot"),
        (
            "predict no-such-run x.png",
            "no-such-run: expected a run or a weight file, got nothing there, try 'vgg runs'",
        ),
        ("predict run", "expected at least one image, got none"),
        # what was probably meant
        ("trian", ", try vgg train"),
        ("desc", ", try vgg describe"),
        ("paint", f"vgg paint: expected one of {', '.join(VERBS)}, try vgg --help"),
        ("train --lr 0.1", "got '--lr', try --learning-rate"),
        ("train --image_sise 32", "try --image-size"),
        ("train --no-flop", "got '--no-flop', try --no-flip"),
        ("train --flip=yes", "got '--flip=yes', try --flip"),
        ("train --recipe qiuck", "got 'qiuck', try quick"),
        ("train vgg11_bn", "got 'vgg11_bn', try --architecture 'vgg11_bn'"),
        ("train --architecture vgg1l", "got 'vgg1l', try vgg11"),
        ("train --data fashion-mnst", "No such file or directory, try fashion-mnist"),
        ("weights fetch torchvision/vgg166", "got 'torchvision/vgg166', try torchvision/vgg16"),
        ("train quick", "got 'quick', try --recipe quick"),
        ("train qiuck", "got 'qiuck', try --recipe quick"),
        ("train .", "got '.', try --data '.'"),
        ("train --epochs 3 4", "got '4', try vgg train --help"),
        ("train --\x1b[31m", r"got '--\x1b[31m', try vgg train --help"),
        ("train --optimizer adam", "expected one of sgd, adamw for --optimizer, got 'adam', try adamw"),
        ("describe vgg11 --dtype=bfloat61", "one of float32, bfloat16 for --dtype, got 'bfloat61', try bfloat16"),
        (
            "eval x --split nope",
            "one of train, val, validation, test, all for --split, got 'nope', try vgg eval --help",
        ),
        ("explain m x -o x.png --methods lrp grad-can", "for --methods, got 'grad-can', try grad-cam"),
        ("completion basch", "expected one of bash, zsh, fish, got 'basch', try bash"),
        ("predict x y --tpo 3", "expected flags of vgg predict, got '--tpo', try --top"),
        ("runs -o x", "expected flags of vgg runs, got '-o', try vgg runs --help"),
        ("weights covnert", "expected one of list, fetch, convert, got 'covnert', try convert"),
        ("weights convert --hed conv", "got '--hed', try --head"),
        ("data fetch --json", "expected flags of vgg data fetch, got '--json'"),
        ("data chek photos", "got 'chek', try check"),
        ("data check photos --sed 1", "got '--sed', try --seed"),
        # what is missing or no number
        ("eval", "expected MODEL, got none, try 'vgg eval runs/quick-1'"),
        ("draw", "expected --out FILE, got none, try 'vgg draw vgg16 -o vgg16.svg'"),
        ("features m x", "expected --layers LAYER ... and --out FILE, got none, try 'vgg features torchvision/vgg16"),
        ("weights fetch", "expected NAME, got none, try 'vgg weights fetch torchvision/vgg11'"),
        ("train --resume", "expected RUN for --resume, got none"),
        ("weights convert m -o", "expected FILE for --out, got none"),
        ("describe vgg11 --hidden 3 x", "expected INT ... for --hidden, got '3 x'"),
        ("eval m --mean=a", "expected FLOAT ... for --mean, got 'a'"),
        ("train --learning-rate fast", "expected FLOAT for --learning-rate, got 'fast'"),
        # of one verb
        ("draw vgg16 -o x.gif", "expected a .svg or .png or .pdf file in a folder that exists for --out, got x.gif"),
        ("draw vgg16 -o no/x.svg", "in a folder that exists for --out, got no/x.svg"),
        ("draw vgg16 -o folder.svg", "in a folder that exists for --out, got folder.svg"),
        ("draw -o x.svg", "expected 1 to 16 networks to draw, got 0"),
        ("draw vgg16 -o x.svg --style art", "--style"),
        (
            "describe vgg11 --workers 8",
            "expected --link-gbps and --tflops with --workers, got neither, try --link-gbps 25",
        ),
        ("describe vgg11 --workers 8 --tflops 3", "--link-gbps and --tflops with --workers, got --tflops 3,"),
        ("describe vgg11 --link-gbps 25", "expected --workers with the flags of a link, got none, try --workers 8"),
        ("describe vgg11 --workers 8 --tflops 0 --link-gbps 1", "expected --tflops from 1e-06 to 1e+09, got 0"),
        ("describe vgg11 --workers 8 --tflops 1 --link-gbps nan", "expected --link-gbps from 1e-06 to 1e+09"),
        ("describe vgg11 --workers 8 --tflops 1 --link-gbps 1 --latency-us -1", "latency_seconds from 0 to 1e+06"),
        (
            "doctor vgg11/8 --data fashion-mnist-sample --image-size 32 --batch-size 1",
            "batch_size from 2 to 2000, got 1",
        ),
        ("doctor vgg11/8 --seed -1", "expected a seed from 0"),
        ("doctor vgg11/8 --learning-rate 0", "expected a learning_rate above 0, got 0"),
        ("doctor vgg11/8 --data nowhere", "got 'nowhere'"),
        ("doctor vgg11/8 --warm-start nowhere", "nowhere: expected a run or a weight file, got nothing there"),
        ("experiment resolutoin", "got 'resolutoin', try resolution"),
        ("experiment", "expected the name of a question or --vary FIELD=VALUE,VALUE, try vgg experiment --list"),
        ("experiment --vary image_sise=1,2", "got 'image_sise=1,2', try image_size=..."),
        ("experiment --vary epochs=x,2", "expected epochs to be a whole number from 1 to 1000000, got 'x'"),
        ("experiment --vary epochs=2", "expected at least 2 recipes to compare, got 1"),
        ("experiment head --equal macs", "expected --vary with --recipe and --equal, got head, which has its own"),
        ("experiment head -o /proc/x.html", "in a folder that exists for --out, got /proc/x.html: "),
        ("search", "expected --max-params or --max-macs, such as 600k and 30M, got neither"),
        ("search --max-params lots", "expected a number such as 30m, got 'lots'"),
        ("search --max-params 9 --data fashion-mnist-sample", "a budget with room for a network of blocks"),
        ("search --max-params 9k --max-milliseconds 0", "expected a limit of milliseconds above 0, got 0.0"),
        ("search --max-params 9k -o a.txt", "expected a .html or .md or .svg file in"),
        ("chapter --exercises batchnorm", "got 'batchnorm', try batch-norm"),
        ("chapter -o chapter.pdf", "expected a .html file in a folder that exists for --out, got chapter.pdf"),
        (
            "chapter --data fashion-mnist-sample --epochs 0",
            "expected epochs to be a whole number from 1 to 1000000, got 0",
        ),
    ],
)
def test_a_users_mistake_gets_one_line_and_code_2(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder.svg").mkdir()
    assert cli.main(shlex.split(arguments)) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith(f"vgg {arguments.split()[0]}: ")
    assert message in line
    assert line.count(", try ") <= 1
    assert printed.out == ""
    assert [path.name for path in tmp_path.rglob("*")] == ["folder.svg"]


ACTIONS = [f"{verb} {action}" for verb in ("data", "weights") for action in actions_of(module_of(verb).Flags)]


@pytest.mark.parametrize("columns", [60, 120])
def test_the_boxes_of_help_are_whole_in_a_terminal_of_any_width(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli.main(["help", "train"]) == 0
    boxes = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("│", "╭", "╰"))]
    assert {len(line) for line in boxes} == {columns}
    assert {line[-1] for line in boxes} == set("│╮╯")


@pytest.mark.parametrize("command", [*VERBS, *ACTIONS])
def test_help_fits_a_terminal_and_has_examples_that_parse(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["help", *command.split()]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: vgg {command} ")
    assert max(map(len, text.splitlines())) <= 80
    assert not re.search(r"default: ?(None|\)|$)", text.replace("│", "").replace("\n", " "))
    assert not re.search(r"STR|PATH|\[INT|\[FLOAT|noqa", text)  # MODEL, IMAGE, DIR, FILE, INT ...
    examples = [line for line in text.splitlines() if re.match(rf"  vgg {command}\b", line)]
    assert 2 <= len(examples) <= 5 or command in ACTIONS
    for example in examples:
        verb, *words = shlex.split(example.partition(" > ")[0])[1:]
        parse_flags(verb, module_of(verb).Flags, words, QUICK if verb == "train" else None)


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
    assert f"{', '.join(RECIPES)} or a .json file of a recipe" in helps[0]
    assert "--flip, --no-flip Mirror training images left and right at random. (default: True)" in helps[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Recipe.named("quick")),
        (["--recipe", "d2l"], Recipe.named("d2l")),
        (["--recipe=gluon", "--seed", "3"], replace(Recipe.named("gluon"), seed=3)),
        (["--flip", "--no-stream"], Recipe.named("quick")),
        (
            ["--hidden", "64", "32", "--head", "flatten"],
            replace(Recipe.named("quick"), hidden=(64, 32), head="flatten"),
        ),
        (["--flip", "--recompute"], replace(Recipe.named("quick"), recompute=True)),
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
    assert re.fullmatch(r"loss \d\.\d+, train acc \d\.\d+, test acc \d\.\d+", loss)
    assert speed.endswith(" examples/sec on cpu")
    assert folder == "r\\xfcn"
    assert done.stdout.count("epoch ") == 2
    assert (done.stdout.count("not comparable"), done.stderr) == (1, "")


def test_training_shows_a_live_display_on_a_terminal(tmp_path):
    primary, secondary = pty.openpty()
    command = [sys.executable, "-m", "vggkit", "train", *LITTLE, "--epochs", "4"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "NO_COLOR": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, stdout=secondary, stderr=secondary, env=environment)
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
    assert not re.search(r"\x1b\[[\d;]*[349]\d", text)
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


def test_runs_tells_the_speed_that_training_told(trained, capsys):
    run, done = trained
    assert cli.main(["runs", str(run), "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert f"{listed['examples_per_second']:.1f} examples/sec" in done.stdout.splitlines()[-2]


@pytest.mark.parametrize(
    "command",
    [
        "data", "weights", "runs RUN", "eval RUN", "data check fashion-mnist-sample", "doctor vgg11_bn/4 --data fashion-mnist-sample --image-size 32",
        "describe lenet 1x64,1x128,2x256,2x512,2x512 vgg19_bn", "describe vgg19 --layers",
    ],
)  # fmt: skip
def test_tables_fit_a_terminal(command, trained, full_place, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([str(trained[0]) if word == "RUN" else word for word in command.split()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if not line.startswith(("weights: ", "accuracy "))) <= 80  # paths and names


def test_data_lists_what_is_known(capsys, own_cache):
    assert cli.main(["data", "--data-dir", "[red]foo[/bar]"]) == 0
    assert "[red]foo[/bar]" in capsys.readouterr().out  # no markup
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
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), 2, "File name too long: 'x'"),
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


@pytest.mark.parametrize(("arguments", "start"), [("describe vgg19 --layers", "vgg19"), ("train --help", "usage: vgg")])
def test_a_closed_pipe_is_no_error(arguments, start):
    command = f"{sys.executable} -m vggkit {arguments} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.startswith(start)


@pytest.mark.parametrize(("arguments", "code"), [("describe lenet", 0), ("train --help", 0), ("describe 1x", 2)])
def test_output_that_is_closed_is_no_error(arguments, code):
    command = f"{sys.executable} -m vggkit {arguments} >&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == (code == 2)


def test_a_recipe_comes_from_a_file(tmp_path, capsys):
    recipe = replace(QUICK.fields, name="found", architecture="1x8", data="fashion-mnist-sample", epochs=1)
    (tmp_path / "found.json").write_text(recipe.to_json())
    out = tmp_path / "run"
    assert cli.main(["train", "--recipe", str(tmp_path / "found.json"), "--batch-size", "500", "--out", str(out)]) == 0
    assert Recipe.from_json((out / "recipe.json").read_text()) == replace(recipe, batch_size=500)
    assert cli.main(["train", "--recipe", str(tmp_path / "none.json")]) == 2
    assert "none.json: nothing there" in capsys.readouterr().err
