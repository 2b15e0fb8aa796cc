"""A search: promoted trials go on exactly, a killed one goes on, and the winner is inside the budget."""

import json
import re

import pytest
from safetensors.torch import load_file

from vggkit import Recipe, cli, costs, train
from vggkit.errors import RunError
from vggkit.lab.designs import Budget
from vggkit.lab.search import LOG, RUNGS, search

BASE = Recipe.named("quick", architecture="1x8", data="fashion-mnist-sample", image_size=28, epochs=9, batch_size=250)
BUDGET = Budget(parameters=4_000, macs=400_000)


def test_a_paused_run_ends_in_the_bits_of_an_unbroken_one(tmp_path):
    recipe = BASE.changed(architecture="1x8_bn", epochs=3, hidden=())
    whole = train(recipe, out=tmp_path / "whole", progress=False)
    for epoch in (1, 2, 3):
        paused = train(recipe, resume=tmp_path / "paused", until_epoch=epoch, progress=False)
        assert len(paused.history) == epoch
        assert (paused.stopped_by is None) == (epoch == 3)
    files = [load_file(run.folder / "model.safetensors") for run in (whole, paused)]
    assert all((files[0][name] == files[1][name]).all() for name in files[0])


def test_a_search_stays_inside_its_budget_and_goes_on(tmp_path, capsys):
    lines = []
    found = search(BASE, BUDGET, tmp_path / "s", seconds=8, seeds=2, say=lines.append)
    total = costs(found.recipe.network(in_channels=1, num_classes=10)).total
    assert total.parameters <= BUDGET.parameters
    assert total.macs <= BUDGET.macs
    trials = [json.loads(line) for line in (tmp_path / "s" / LOG).read_text().splitlines()]
    by_epochs = {epochs: [t for t in trials if t["epochs"] == epochs] for epochs in (1, 3, 9)}
    assert [len(some) for some in by_epochs.values()] == sorted((len(s) for s in by_epochs.values()), reverse=True)
    for early, late in ((1, 3), (3, 9)):  # the best of a rung are those of the next
        ranked = sorted(by_epochs[early], key=lambda t: -t["accuracy"])[: len(by_epochs[late])]
        assert {t["notation"] for t in ranked} == {t["notation"] for t in by_epochs[late]}
    assert found.finalists[0].accuracy == max(t["accuracy"] for t in by_epochs[9])
    assert len(found.test_accuracies) == 2
    assert found.finalists[0].is_on_front

    log = tmp_path / "s" / LOG  # a kill in the last rung, and in the middle of a line
    kept = log.read_text().splitlines(keepends=True)[:-1]
    log.write_text("".join(kept) + '{"notation": "1x')
    again = search(BASE, BUDGET, tmp_path / "s", seconds=8, seeds=2)
    assert again.recipe == found.recipe
    assert again.test_accuracies == found.test_accuracies
    assert [f.accuracy for f in again.finalists] == [f.accuracy for f in found.finalists]
    with pytest.raises(RunError, match="expected the search that .* was begun with, got another one"):
        search(BASE, Budget(parameters=5_000), tmp_path / "s", seconds=8)
    assert len(lines) >= RUNGS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --max-params or --max-macs, such as 600k and 30M, got neither"),
        (["--max-params", "lots"], "expected a number such as 30m, got 'lots'"),
        (["--max-params", "10"], "expected a budget with room for a network of blocks, .*"),
    ],
)
def test_mistakes_on_the_command_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["search", "--data", "fashion-mnist-sample", *arguments]) == 2
    assert re.fullmatch(f"vgg search: {message}\n", capsys.readouterr().err)
