"""The fields of a recipe as a form: their groups, kinds, choices, and the help that the recipe's docstring has."""

import inspect
import re
from dataclasses import fields
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from vggkit.training.recipe import Recipe

GROUPS = {
    "data": ("data", "channels", "holdout", "validation", "bad_images", "stream", "epoch_images"),
    "network": ("architecture", "image_size", "head", "hidden", "dropout", "pooled_size"),
    "start": ("init", "warm_start", "pretrained", "head_epochs", "seed"),
    "optimization": (
        "epochs", "batch_size", "optimizer", "learning_rate", "schedule", "warmup", "momentum", "nesterov",
        "weight_decay", "label_smoothing", "average",
    ),
    "augmentation": ("normalize", "flip", "translate", "erase", "shorter_side", "color_shift", "cutmix", "test_flip"),
    "execution": ("name", "recompute", "compression", "sync_batch_norm", "continues"),
}  # fmt: skip
"""Where each field stands; one that is not here stands at the end."""


def described_fields() -> list[dict[str, Any]]:
    """Each field: its name, group, kind (text, number, whole, flag, choice or numbers), choices and help."""
    kinds, documented = get_type_hints(Recipe), inspect.getdoc(Recipe) or ""
    attributes = documented.partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {6,}.*)*)", attributes, re.MULTILINE)
    helps = {name: " ".join(text.split()) for name, text in found}
    group_of = {name: group for group, names in GROUPS.items() for name in names}
    order = {name: index for index, name in enumerate(group_of)}
    return [
        {
            "name": field.name,
            "group": group_of.get(field.name, "execution"),
            "kind": _kind(kinds[field.name]),
            "choices": list(get_args(kinds[field.name])) if _kind(kinds[field.name]) == "choice" else None,
            "help": helps[field.name],
        }
        for field in sorted(fields(Recipe), key=lambda field: order.get(field.name, len(order)))
    ]


def _kind(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return "numbers"
    if get_args(kind) and get_origin(kind) is not UnionType:
        return "choice"
    return {bool: "flag", int: "whole", float: "number"}.get(kind, "text")
