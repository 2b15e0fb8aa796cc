"""What lies in the folders of experiments and searches is a stranger's until it is checked."""

import json
import os
import shutil

import pytest

from vggkit import cli
from vggkit.errors import one_line

EXPERIMENT = [
    *("experiment", "--vary", "architecture=1x8,1x4", "--data", "fashion-mnist-sample"),
    *("--epochs", "1", "--seeds", "1"),
]
SEARCH = [
    *("search", "--max-params", "2k", "--data", "fashion-mnist-sample", "--time", "1s"),
    *("--epochs", "1", "--seeds", "1"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    assert cli.main([*EXPERIMENT, "--runs", str(folder / "experiment")]) == 0
    assert cli.main([*SEARCH, "--runs", str(folder / "search")]) == 0
    return folder


def changed(text, values):
    """The JSON object, or the first of several in lines, with other values."""
    return json.dumps({**json.JSONDecoder().raw_decode(text)[0], **values}) + "\n"


HOSTILE = {
    "empty": lambda text: "",
    "text": lambda text: "\x1b[31m\n",
    "list": lambda text: "[]\n",
    "object": lambda text: "{}\n",
    "deep": lambda text: "[" * 200_000 + "\n",
}
CHOSEN = {"epochs": 1, "steps": 16, "in_channels": 1, "num_classes": 10, "predicted_seconds": 1.0}
OF_FIELDS = {
    "experiment/experiment.json": [
        {"asked": 1},
        {"chosen": []},
        {"chosen": {}},
        *(
            {"chosen": {label: {**CHOSEN, "architecture": label, **change} for label in ("1x8", "1x4")}}
            for change in (
                *({"predicted_seconds": value} for value in ("x", float("inf"), -1.0)),
                *({"architecture": value} for value in (3, "1x", "1x9999999")),
                *({"epochs": value} for value in (1.5, 0, 10**400)),
                *({"steps": value} for value in (0, None)),
                {"num_classes": -1},
            )
        ),
    ],
    "experiment/000/outcome.json": [
        *({"accuracy": value} for value in ("x", [1], 1e300, True, -1.0, 10**400, float("nan"))),
        *({"seconds": value} for value in (None, "x", float("inf"))),
        {"label": "1x4"},
        {"seed": 1},
        {"peak_bytes": "x"},
        {"more": 1},
    ],
    "search/search.json": [{"recipes": 3}, {"recipes": [3]}, {"asked": None}],
    "search/log.jsonl": [{"accuracy": "x"}, {"epochs": 1.5}, {"more": 1}],
}
CASES = [(name, make) for name in OF_FIELDS for make in HOSTILE.values()]
CASES += [(name, lambda text, v=v: changed(text, v)) for name, several in OF_FIELDS.items() for v in several]


@pytest.mark.parametrize(("name", "make"), CASES)
def test_another_file_is_refused_in_a_line(finished, name, make, tmp_path, capsys):
    if (name, make) == ("search/log.jsonl", HOSTILE["empty"]):
        pytest.skip("an empty log is one that was just begun")
    verb = name.partition("/")[0]
    shutil.copytree(finished / verb, tmp_path / verb)
    path = tmp_path / name
    path.write_text(make(path.read_text()))
    refused(verb, tmp_path, capsys)


@pytest.mark.parametrize("name", OF_FIELDS)
@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_what_is_no_file_is_refused(finished, name, kind, tmp_path, capsys):
    verb = name.partition("/")[0]
    shutil.copytree(finished / verb, tmp_path / verb)
    path, victim = tmp_path / name, tmp_path / "victim"
    content = path.read_text()
    victim.write_text(content)
    path.unlink()
    {"link": lambda: path.symlink_to(victim), "fifo": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    refused(verb, tmp_path, capsys)
    assert victim.read_text() == content


def refused(verb, folder, capsys):
    command = EXPERIMENT if verb == "experiment" else SEARCH
    capsys.readouterr()
    assert cli.main([*command, "--runs", str(folder / verb)]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith(f"vgg {verb}: expected")
    assert "try another --runs" in line
    assert one_line(Exception(line)) == line
