"""The view "Train": runs that the page starts are those of `vgg train`, and those of a terminal are seen."""

import fcntl
import http.client
import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.killing import KILLS
from vggkit import cli
from vggkit.app.metrics import MAX_BYTES, MAX_POINTS, Metrics
from vggkit.app.models import Models
from vggkit.app.runs import Runs
from vggkit.training.recipe import RECIPES, Recipe

TINY = {"data": "fashion-mnist-sample", "architecture": "1x4 1x8", "image_size": 8, "hidden": [], "epochs": 2}


def recipe(app, **changes):
    return app.get("/api/recipes")["recipes"]["quick"] | TINY | changes


def events(app, name, until, last_id=""):
    """The answers of the stream of a run, with their ids, up to the first that `until` holds for."""
    connection = http.client.HTTPConnection("127.0.0.1", int(app.port), timeout=120)
    connection.request("GET", f"/api/events?runs={name}", headers={"Cookie": app.cookie, "Last-Event-ID": last_id})
    answer, found, number = connection.getresponse(), [], ""
    assert answer.getheader("content-type").startswith("text/event-stream")
    while True:
        line = answer.readline().decode().strip()
        if line.startswith("id: "):
            number = line[4:]
        elif line.startswith("data: "):
            found.append((number, json.loads(line[6:])[name]))
            if until(found[-1][1]):
                connection.close()
                return found


@pytest.mark.torture
@pytest.mark.skipif(KILLS < 200, reason="takes half a minute: make torture runs it")
def test_a_run_is_started_stopped_resumed_and_followed(app, capsys):
    """And a second connection that has seen the last event is told nothing new."""
    long = recipe(app, epochs=500)
    name = app.post("/api/start", {"recipe": long})["name"]
    events(app, name, lambda run: run["step"] > 0)
    app.post("/api/stop", {"run": name})
    number, stopped = events(app, name, lambda run: run["state"] == "stopped")[-1]
    assert 0 < stopped["step"] < 500 * 16 and stopped["num_epochs"] == 500 and stopped["seconds_left"] > 0
    app.post("/api/resume", {"run": name})
    assert events(app, name, lambda run: run["state"] == "training", number)[0][0] != number
    assert events(app, name, lambda run: run["step"] > stopped["step"])
    app.post("/api/stop", {"run": name})
    last = events(app, name, lambda run: run["state"] == "stopped")[-1][1]
    lines = [json.loads(line) for line in (app.folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["event"] == "epoch"]
    assert [epoch["test_accuracy"] for epoch in last["epochs"]] == [line["test_accuracy"] for line in epochs]
    assert cli.main(["runs", str(app.folder / "runs"), "--json"]) == 0
    (printed,) = [run for run in json.loads(capsys.readouterr().out) if run["run"].endswith(name)]
    (shown,) = [run for run in app.get("/api/runs")["runs"] if run["name"] == name]
    assert (shown["state"], shown["last"]["test_accuracy"]) == (printed["state"], printed["accuracy"])
    assert shown["examples_per_second"] == last["examples_per_second"] == printed["examples_per_second"]
    assert Recipe.from_json(json.dumps(shown["recipe"])).epochs == 500


@pytest.mark.parametrize(
    ("path", "asked", "told"),
    [
        ("/api/start", {"recipe": {"data": "/etc"}}, "expected data of fashion-mnist, fashion-mnist-sample"),
        (
            "/api/start",
            {"recipe": {"data": "fashion-mnist", "warm_start": "/etc/passwd"}},
            "expected a run or a weight",
        ),
        ("/api/start", {"recipe": TINY | {"name": "../x", "epochs": 1}}, "expected a name that can be a folder's"),
        ("/api/start", {"recipe": TINY | {"name": "x", "epochs": 0}}, "expected epochs to be a whole number from 1"),
        ("/api/resume", {"run": "../../etc"}, "expected a run or a weight file"),
        ("/api/stop", {"run": ["x"]}, "expected a run or a weight file"),
        ("/api/look", {"run": "."}, "expected a run or a weight file"),
    ],
)
def test_names_that_the_server_did_not_give_open_nothing(app, path, asked, told):
    status, _, content = app.ask("POST", path, asked)
    assert status == 400 and told in json.loads(content)["error"]
    assert not (app.folder / "x").exists()
    if "recipe" in asked:
        assert told in app.post("/api/check", asked)["error"]


def test_metrics_that_grow_start_anew_and_are_damaged(tmp_path):
    def line(step):
        return json.dumps({"event": "step", "step": step, "train_loss": 1 / step, "train_accuracy": 0.5}) + "\n"

    file, metrics = tmp_path / "metrics.jsonl", Metrics(tmp_path)
    assert metrics.read()["steps"]["step"] == ()
    file.write_text("".join(map(line, range(1, 10_001))) + "{\nnull\n" + '{"event": "epoch"}\n' + '{"event": "st')
    found = metrics.read()
    assert len(found["steps"]["loss"]) == MAX_POINTS and found["step"] == 10_000
    with file.open("a") as open_file:
        open_file.write('ep"}\n' + line(9_000))  # a kill: steps are taken again
    assert metrics.read()["step"] == 9_000
    file.write_text(line(1))
    counted = '{"event": "confusion", "epoch": 1, "classes": ["a", "b"], "counts": [[3, 1], [0, 2]]}\n'
    file.write_text(line(1) + counted + counted.replace("[0, 2]", "[0]") + counted.replace("3", "null"))
    assert metrics.read()["confusion"] == {"epoch": 1, "classes": ["a", "b"], "counts": [[3, 1], [0, 2]]}
    file.write_text(line(1) + json.dumps(EPOCH | {"examples_per_second": "ab", "train_seconds": 10**13}) + "\n")
    assert metrics.read()["epochs"] == []
    assert metrics.read()["steps"] == {"step": (1,), "loss": (1.0,), "accuracy": (0.5,)}
    file.write_text("".join(map(line, range(5, 100))))  # another run in the same file, and longer
    assert metrics.read()["steps"]["step"] == tuple(range(5, 100))


def test_metrics_of_one_endless_line_are_read_once(tmp_path):
    file, metrics = tmp_path / "metrics.jsonl", Metrics(tmp_path)
    with file.open("wb") as content:
        content.truncate(MAX_BYTES + 5)
        content.seek(0, os.SEEK_END)
        content.write(b"\n" + json.dumps(STEP).encode() + b"\n")
    assert metrics.read()["step"] == 0
    assert metrics.read()["step"] == 16


def test_a_run_has_its_folder_as_soon_as_it_is_started(app):
    """So that it goes on if the server ends at once; the first step is not waited for."""
    name = app.post("/api/start", {"recipe": recipe(app, name="n" * 200)})["name"]
    assert json.loads((app.folder / "runs" / name / "recipe.json").read_text())["name"] == "n" * 200
    app.post("/api/stop", {"run": name})
    assert events(app, name, lambda run: run["state"] == "stopped")
    shutil.rmtree(app.folder / "runs" / name)
    assert name not in [run["name"] for run in app.get("/api/runs")["runs"]]
    _, _, content = app.ask("POST", "/api/start", {"recipe": recipe(app, name="n" * 300)})
    assert b"expected a folder that can be made" in content


def test_another_run_in_the_same_place_has_its_own_data(app, run_folder, tmp_path):
    models = Models()
    assert len(models.data_of(run_folder).classes) == 10
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("L", (8, 8), number).save(tmp_path / "photos" / name / f"{number}.png")
    (run_folder / "recipe.json").write_text(json.dumps(recipe(app, data=str(tmp_path / "photos"))))
    assert models.data_of(run_folder).classes == ("cats", "dogs")


def test_a_run_that_may_not_be_read_leaves_the_others(app, run_folder):
    """As another user than root, who may read all."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)
        shutil.copytree(run_folder, folder / "open")
        shutil.copytree(run_folder, folder / "closed")
        (folder / "closed").chmod(0o111)
        runs, user = Runs(folder), os.geteuid()
        os.seteuid(user or 65_534)
        try:
            assert {run["name"]: run["state"] for run in runs.listed()} == {"open": "stopped", "closed": "damaged"}
            assert runs.followed(["open", "closed"]).keys() == {"open"}
        finally:
            os.seteuid(user)
            (folder / "closed").chmod(0o755)


STEP = {"event": "step", "step": 16, "train_loss": 2.0, "train_accuracy": 0.5}
EPOCH = STEP | {
    "event": "epoch", "epoch": 1, "test_accuracy": 0.5, "test_loss": 2.0, "learning_rate": 0.1,
    "examples_per_second": 9.0, "train_seconds": 7.0, "loading_seconds": 0.5, "elapsed_seconds": 8.0,
}  # fmt: skip


@pytest.fixture
def run_folder(app, tmp_path):
    """A stopped run of the page's folder, after an epoch of two; its name is its own, as the page keeps metrics by name."""
    folder = app.folder / "runs" / tmp_path.name
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps(recipe(app)))
    (folder / "metrics.jsonl").write_text(json.dumps(STEP) + "\n" + json.dumps(EPOCH) + "\n")
    yield folder
    shutil.rmtree(folder)


def listed_and_followed(app, name):
    (listed,) = [run for run in app.get("/api/runs")["runs"] if run["name"] == name]
    return listed, events(app, name, lambda run: True)[0][1]


@pytest.mark.parametrize("value", [10**400, 1e308, "\ud800", "1", True, [1]], ids=lambda value: repr(value)[:9])
@pytest.mark.parametrize("name", sorted(EPOCH.keys() - {"event"}))
def test_a_line_without_numbers_of_bounded_size_is_passed_over(tmp_path, name, value):
    lines = [STEP, EPOCH, *(line | {name: value} for line in (STEP, EPOCH) if name in line)]
    (tmp_path / "recipe.json").write_text(replace(RECIPES["quick"], epochs=2).to_json())
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = Metrics(tmp_path).read()
    assert json.dumps(found["steps"]) == '{"step": [16], "loss": [2.0], "accuracy": [0.5]}'
    assert found["epochs"] == [{name: EPOCH[name] for name in EPOCH if name != "event"}]
    assert (found["total_steps"], found["seconds_left"]) == (32, 8.0)


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", "null"])
def test_a_run_that_diverges_is_shown(app, run_folder, value):
    with (run_folder / "metrics.jsonl").open("a") as file:
        for line in (STEP | {"step": 32, "train_loss": 7.5}, EPOCH | {"epoch": 2, "step": 32, "train_loss": 7.5}):
            file.write(json.dumps(line).replace("7.5", value) + "\n")
    listed, followed = listed_and_followed(app, run_folder.name)
    assert (listed["last"]["epoch"], listed["last"]["train_loss"]) == (2, None)
    assert followed["steps"] == {"step": [16, 32], "loss": [2.0, None], "accuracy": [0.5, 0.5]}


@pytest.mark.parametrize(
    ("validation", "logged", "word"), [(0, "", "test"), (100, "", "validation"), (0, "validation", "validation")]
)
def test_accuracy_is_called_by_the_images_that_it_was_measured_on(app, run_folder, validation, logged, word):
    start = {"event": "start", "evaluated_on": logged} if logged else {"event": "start"}
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (start, STEP, EPOCH)))
    (run_folder / "recipe.json").write_text(json.dumps(recipe(app, validation=validation)))
    assert [found["held_out"] for found in listed_and_followed(app, run_folder.name)] == [word, word]


@pytest.mark.parametrize("kind", ["fifo", "link", "folder"])
def test_metrics_that_are_no_regular_file_are_not_opened(app, run_folder, kind):
    file = run_folder / "metrics.jsonl"
    file.rename(run_folder / "elsewhere")
    {"fifo": os.mkfifo, "link": lambda path: path.symlink_to("elsewhere"), "folder": os.mkdir}[kind](file)
    listed, followed = listed_and_followed(app, run_folder.name)
    assert listed["last"] is None and followed["epochs"] == []


def test_names_that_are_no_utf_8_are_listed(app, run_folder):
    (run_folder / "recipe.json").write_text(json.dumps(recipe(app, data="\ud800")))
    folder = run_folder.rename(run_folder.with_name("\udcff,"))
    try:
        listed = [run["recipe"]["data"] for run in app.get("/api/runs")["runs"] if run["name"] == r"\xff\x2c"]
        assert listed == ["\ud800"]
    finally:
        folder.rename(run_folder)


def test_a_run_that_goes_on_and_a_weight_file_are_not_resumed(app, run_folder, model):
    descriptor = os.open(run_folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    for name, got in ((run_folder.name, "a run that goes on"), (model, "a weight file")):
        status, _, content = app.ask("POST", "/api/resume", {"run": name})
        error = json.loads(content)["error"]
        assert status == 400 and error.startswith("expected a run that has stopped") and got in error
    os.close(descriptor)


def test_the_form_has_every_field_with_its_help(app):
    fields = app.get("/api/recipes")["fields"]
    assert {each["name"] for each in fields} == set(Recipe.__dataclass_fields__)
    assert all(each["help"] and (each["kind"] == "choice") == bool(each["choices"]) for each in fields)
