"""The exercises on the page are what `vgg experiment` prints."""

import io
import json
import shutil
from contextlib import redirect_stdout

import pytest

from vggkit import cli

TINY = "--data fashion-mnist-sample --epochs 1 --seeds 2 --device cpu"


@pytest.fixture(scope="module")
def printed(app):
    """What the verb prints of an exercise, shrunk to seconds."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.chdir(app.folder)
        assert cli.main(["experiment", "batch-norm", *TINY.split(), "--json"]) == 0
    return json.loads(out.getvalue())


def test_an_exercise_is_not_measured_then_going_on_then_answered(app, printed):
    listed = {each["name"]: each["question"] for each in app.get("/api/exercises")}
    found = app.post("/api/exercise", {"name": "batch-norm"})
    assert found["answers"][0]["question"] == printed["question"] == listed["batch-norm"]
    (answer,) = found["answers"]
    assert {name: answer[name] for name in printed} == printed
    assert (answer["data"], answer["epochs"]) == (["fashion-mnist-sample"], [1])
    folder = app.folder / "experiments" / "batch-norm"
    (folder / "003" / "outcome.json").rename(folder / "kept.json")
    found = app.post("/api/exercise", {"name": "batch-norm"})
    assert (found["answers"], found["trials"], found["ended"]) == ([], 4, 3)
    last = printed["trials"][3]
    assert (found["now"], found["share"]) == (f"{last['label']}, seed {last['seed']}", 1)  # all its steps are taken
    (folder / "kept.json").rename(folder / "003" / "outcome.json")
    (app.folder / "experiments" / "chapter-minutes").mkdir()
    chapter = folder.rename(app.folder / "experiments" / "chapter-minutes" / "batch-norm")
    shutil.copytree(chapter, folder)
    (folder / "003" / "outcome.json").unlink()
    found = app.post("/api/exercise", {"name": "batch-norm"})  # the page's own goes on beside the chapter's answer
    assert (found["ended"], [answer["rows"] for answer in found["answers"]]) == (3, [printed["rows"]])
    assert found["answers"][0]["folder"] == "experiments/chapter-minutes/batch-norm"
    nothing = {"name": "head", "trials": 0, "ended": 0, "now": "", "share": 0, "answers": []}
    nothing |= {"is_measuring": False, "error": None}
    assert app.post("/api/exercise", {"name": "head"}) == nothing


@pytest.mark.parametrize(
    ("path", "asked", "told"),
    [
        ("/api/exercise", {"name": "../x"}, "expected an exercise of resolution"),
        ("/api/exercise/measure", {"name": ["x"]}, "expected an exercise of resolution"),
        ("/api/exercise/stop", {"name": "head"}, "expected an exercise that this page measures"),
        ("/api/exercise", {"name": "family"}, "expected the plan of an experiment, got something else"),
    ],
)
def test_what_is_refused(app, path, asked, told):
    damaged = app.folder / "experiments" / "family"
    damaged.mkdir(parents=True, exist_ok=True)
    (damaged / "experiment.json").write_text('{"asked": {}, "chosen": {}}')
    status, _, content = app.ask("POST", path, asked)
    (damaged / "experiment.json").unlink()
    assert status >= 400 and told in json.loads(content)["error"]
