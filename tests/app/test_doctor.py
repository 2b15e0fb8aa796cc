"""The view "Will it learn?" shows what `vgg doctor` prints."""

import json

import pytest

from vggkit import cli

ASKED = {
    "design": {"text": "1x8 1x8", "options": {"image_size": 16, "num_classes": 10, "hidden": [32]}},
    "data": "fashion-mnist-sample",
}


def test_the_diagnosis_is_that_of_the_doctor(app, capsys):
    shown = app.post("/api/doctor", ASKED | {"init": "torch", "learning_rate": 0.01})
    flags = "--data fashion-mnist-sample --image-size 16 --hidden 32 --init torch --learning-rate 0.01 --json"
    assert cli.main(["doctor", "1x8 1x8", *flags.split()]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {name: shown[name] for name in printed} == printed
    for finding, tried in zip(shown["findings"], shown["tries"], strict=True):
        assert all(value in finding for value in tried.values())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": "/etc"}, "expected data of fashion-mnist, fashion-mnist-sample, got /etc"),
        ({"design": {"text": "--help"}}, "expected a name such as vgg16"),
        ({"design": {"text": "64x4096 1x8"}}, "expected a design that fits this machine"),
    ],
)
def test_what_it_refuses(app, changes, told):
    status, _, content = app.ask("POST", "/api/doctor", ASKED | changes)
    assert status == 400 and told in json.loads(content)["error"]
