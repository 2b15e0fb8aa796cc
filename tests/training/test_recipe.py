import json
import pydoc
import re
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggkit import ArchitectureError
from vggkit.errors import RecipeError
from vggkit.training.recipe import RECIPES, Recipe


@pytest.mark.parametrize("name", RECIPES)
def test_the_named_recipes_round_trip(name):
    recipe = Recipe.named(name)
    assert recipe.name == name
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_d2l_is_the_chapters():
    recipe = Recipe.named("d2l")
    assert recipe.network(1, 10).name == "vgg11/4"
    assert (recipe.image_size, recipe.batch_size, recipe.epochs, recipe.learning_rate) == (224, 128, 10, 0.05)
    assert (recipe.optimizer, recipe.momentum, recipe.weight_decay, recipe.schedule) == ("sgd", 0.0, 0.0, "constant")
    assert (recipe.init, recipe.dropout, recipe.hidden) == ("xavier", 0.5, (4096, 4096))
    assert not (recipe.flip or recipe.translate or recipe.erase or recipe.normalize or recipe.label_smoothing)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs to be a whole number from 1 to 1000000, got 0"),
        ({"epochs": 1.5}, "epochs to be a whole number"),
        ({"batch_size": True}, "batch_size to be a whole number"),
        ({"learning_rate": float("nan")}, "learning_rate to be a number from 0 to 1e\\+06, got nan"),
        ({"learning_rate": 0.0}, "learning_rate above 0, got 0, with which nothing is learnt"),
        ({"momentum": 1.0}, "a momentum below 1, with which steps end, got 1.0"),
        ({"momentum": 2.0}, "momentum to be a number from 0 to 1, got 2.0"),
        ({"warmup": 1.1}, "warmup to be a number from 0 to 1, got 1.1"),
        ({"init": "he"}, "init to be one of kaiming, xavier, paper, torch, got 'he'"),
        ({"optimizer": "adam"}, "optimizer to be one of sgd, adamw, got 'adam'"),
        ({"schedule": "step"}, "schedule to be one of constant, cosine, linear, plateau, got 'step'"),
        ({"name": "../x"}, "a name that can be a folder's, got '../x'"),
        ({"name": ""}, "a name that can be a folder's"),
        ({"optimizer": "adamw", "momentum": 0.9}, "no momentum with adamw, which has its own, got 0.9"),
        ({"nesterov": True}, "a momentum above 0 with nesterov"),
        ({"holdout": 1.0}, "holdout above 0 and below 1, got 1.0"),
        ({"shorter_side": (200,)}, "shorter_side as at most two numbers from the image_size 224 to 10000"),
        ({"shorter_side": (512, 256)}, "the lower one first, got \\(512, 256\\)"),
        ({"head_epochs": 2}, "pretrained weights with head_epochs, got none and 2"),
        ({"pretrained": "a", "head_epochs": 11}, "head_epochs of at most the 10 epochs, got 11"),
        (
            {"pretrained": "a", "warm_start": "b"},
            "one of pretrained, warm_start and continues, got pretrained and warm_start",
        ),
        ({"compression": "zip"}, "compression to be one of none, bf16, powersgd, got 'zip'"),
        ({"cutmix": 1.5}, "cutmix to be a number from 0 to 1, got 1.5"),
        ({"average": -0.1}, "average to be a number from 0 to 1, got -0.1"),
        ({"flip": "yes"}, "flip to be true or false, got 'yes'"),
        ({"data": 3}, "data to be a text, got 3"),
        ({"hidden": 5}, "hidden as a tuple, got 5"),
        ({"architecture": "lenet", "dropout": True}, "dropout to be a number from 0 to 1, got True"),
        ({"architecture": "lenet", "pooled_size": "7"}, "pooled_size to be a whole number from 1 to 255, got '7'"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises((RecipeError, ArchitectureError), match=message):
        replace(Recipe.named("d2l"), **change)


def test_a_network_that_cannot_be_is_refused_with_its_place():
    with pytest.raises(ArchitectureError, match="character 6: expected a block"):
        replace(Recipe.named("d2l"), architecture="1x64 2y128")
    with pytest.raises(ArchitectureError, match="image_size of at least 32"):
        replace(Recipe.named("d2l"), image_size=16)


def test_json_that_is_no_recipe_is_refused():
    fields = asdict(Recipe.named("d2l"))
    for text in (
        3,
        "",
        "[]",
        "null",
        "{}",
        "[" * 100_000,
        "9" * 4301,
        json.dumps({**fields, "extra": 1}),
        json.dumps(fields)[:-1],
    ):
        with pytest.raises(RecipeError, match="expected"):
            Recipe.from_json(text)
    with pytest.raises(
        RecipeError,
        match="expected a recipe of quick, five-minutes, best, d2l, d2l-1.0, gluon, paper, finetune, got 'fast'",
    ):
        Recipe.named("fast")


def test_a_whole_number_in_a_float_field_is_a_float():
    """A browser sends 0 for 0.0."""
    recipe = Recipe.named("quick", learning_rate=1.0)
    sent = recipe.to_json().replace(".0,", ",")
    assert sent != recipe.to_json() == Recipe.from_json(sent).to_json()


def test_the_learning_rate_goes_up_and_down_as_told():
    base = replace(Recipe.named("d2l"), epochs=4, learning_rate=0.8, warmup=0.25)
    steps = range(40)
    constant = [base.learning_rate_at(step, 10) for step in steps]
    assert constant[:10] == pytest.approx([0.08 * (step + 1) for step in range(10)])
    assert constant[10:] == [0.8] * 30
    linear = [replace(base, schedule="linear").learning_rate_at(step, 10) for step in steps]
    assert linear[10] == 0.8
    assert linear[25] == pytest.approx(0.4)
    assert linear[-1] == pytest.approx(0.8 / 30)
    cosine = [replace(base, schedule="cosine").learning_rate_at(step, 10) for step in steps]
    assert cosine[25] == pytest.approx(0.4)
    assert 0 < cosine[-1] < linear[-1]
    assert sorted(cosine[10:], reverse=True) == cosine[10:]
    assert replace(base, warmup=0.0, schedule="linear").learning_rate_at(0, 10) == 0.8


def test_a_plateau_divides_the_learning_rate_by_ten():
    plateau = replace(Recipe.named("d2l"), schedule="plateau", learning_rate=0.8, epochs=100)
    rising = [0.1, 0.2, 0.3]
    for accuracies, expected in (
        ([], 0.8),
        (rising, 0.8),
        (rising + [0.3] * 4, 0.8),
        (rising + [0.3] * 5, 0.08),
        (rising + [0.3] * 4 + [0.31] + [0.31] * 4, 0.8),
        (rising + [0.2] * 9, 0.08),
        (rising + [0.2] * 10, 0.008),
        (rising + [0.2] * 5 + [0.4] + [0.4] * 5, 0.008),
    ):
        assert plateau.learning_rate_at(500, 10, accuracies) == pytest.approx(expected)


def test_a_recipe_of_an_older_run_is_read():
    fields = asdict(Recipe.named("d2l"))
    for later in ("stream", "compression", "shorter_side", "pretrained", "head", "warm_start"):
        del fields[later]
    assert Recipe.from_json(json.dumps(fields)) == Recipe.named("d2l")
    fields["checkpoint"] = not fields.pop("recompute")  # its name until 0.5
    assert Recipe.from_json(json.dumps(fields)) == Recipe.named("d2l", recompute=True)


WEIRD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([10**4299, -(10**300), 2**63]), st.floats(), st.text(),
    st.lists(st.integers() | st.text()), st.dictionaries(st.text(), st.integers()), st.just("9" * 5000),
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(sorted(asdict(Recipe.named("quick")))), WEIRD, min_size=1))
def test_any_json_is_a_recipe_or_refused(changes):
    try:
        recipe = Recipe.from_json(json.dumps({**asdict(Recipe.named("quick")), **changes}))
    except (RecipeError, ArchitectureError):
        return
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_help_explains_every_field():
    shown = pydoc.render_doc(Recipe, renderer=pydoc.plaintext)
    assert re.findall(r"^ \|      (\w+): [A-Zacfhs]", shown, re.MULTILINE) == list(asdict(Recipe.named("quick")))
