"""The fields of a recipe as a form: their groups, kinds, choices, and their help from the docstring of `Recipe`."""

from dataclasses import fields
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object

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
"""The order of the fields; others are at the end, under execution."""


def described_fields() -> list[dict[str, Any]]:
    """The name, group, kind (text, number, whole, flag, choice or numbers), choices and help of each field."""
    types = get_type_hints(Recipe)
    help_of = {text.arg_name: " ".join((text.description or "").split()) for text in parse_from_object(Recipe).params}
    group_of = {name: group for group, names in GROUPS.items() for name in names}
    order = {name: index for index, name in enumerate(group_of)}
    return [
        {
            "name": field.name,
            "group": group_of.get(field.name, "execution"),
            "kind": _kind(types[field.name]),
            "choices": list(get_args(types[field.name])) if _kind(types[field.name]) == "choice" else None,
            "help": help_of[field.name],
        }
        for field in sorted(fields(Recipe), key=lambda field: order.get(field.name, len(order)))
    ]


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is tuple:
        return "numbers"
    if get_args(annotation) and get_origin(annotation) is not UnionType:
        return "choice"
    return {bool: "flag", int: "whole", float: "number"}.get(annotation, "text")
