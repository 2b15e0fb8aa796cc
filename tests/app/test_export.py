"""Finished runs as static pages."""

import re

import pytest

from vggkit import cli, load_classifier, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    tiny = {"data": "fashion-mnist-sample", "architecture": "1x4 1x8", "image_size": 8, "hidden": (), "epochs": 2}
    return train("quick", out=folder / "tiny", progress=False, **tiny)


def test_a_finished_run_is_one_page_that_needs_nothing_else(run, tmp_path, capsys):
    assert cli.main(["app", "--runs", str(run.folder.parent), "--export", str(tmp_path / "site")]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "site" / "tiny.html")]
    page = (tmp_path / "site" / "tiny.html").read_text()
    assert f"accuracy {run.history[-1].test_accuracy:.4f}" in page
    assert load_classifier(run).net.architecture.name in page and "fashion-mnist-sample" in page
    assert page.count("<figure>") == 4
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page) and "<script" not in page


@pytest.mark.parametrize(
    ("runs", "folder", "told"), [(".", "site", "expected finished runs"), ("..", "file/site", "expected")]
)
def test_what_is_refused(run, runs, folder, told, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    if runs == "..":
        runs = str(run.folder)
    assert cli.main(["app", "--runs", runs, "--export", str(tmp_path / folder)]) == 2
    assert told in capsys.readouterr().err
