"""vggkit: design, cost, train, use and compare networks made of VGG blocks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vggkit.version import __version__ as __version__

if TYPE_CHECKING:
    from vggkit.data.preprocessing import Preprocessing
    from vggkit.data.sources import ImageSource, open_data
    from vggkit.design.architecture import Architecture
    from vggkit.design.baselines import Baseline
    from vggkit.design.layers import Block
    from vggkit.design.memory import TrainingMemory, largest_batch, training_memory
    from vggkit.design.network import as_network, costs, draw, parse_network
    from vggkit.design.scaling import StepPrediction, predict_step
    from vggkit.engines.accelerate import accelerate, describe_engine
    from vggkit.errors import ArchitectureError
    from vggkit.inference.evaluate import Evaluation, evaluate
    from vggkit.inference.features import features
    from vggkit.inference.perceptual import PerceptualLoss
    from vggkit.inference.predict import Classifier, load_classifier, predict
    from vggkit.lab.doctor import Diagnosis, examine
    from vggkit.networks.baselines import alexnet, build, lenet
    from vggkit.networks.modules import init_weights
    from vggkit.networks.vgg import VGG, vgg, vgg_block
    from vggkit.training.loop import Run, train
    from vggkit.training.recipe import Recipe
    from vggkit.weights.files import load_weights, save_weights
    from vggkit.weights.surgery import (
        fold_preprocessing,
        with_common_scale,
        with_head,
        with_image_size,
        with_in_channels,
    )
    from vggkit.weights.warm_start import warm_start

# Looked up on first use, so that what needs no torch starts without it.
_HOMES = {
    "Architecture": "design.architecture",
    "ArchitectureError": "errors",
    "Baseline": "design.baselines",
    "Block": "design.layers",
    "as_network": "design.network",
    "parse_network": "design.network",
    "costs": "design.network",
    "draw": "design.network",
    "TrainingMemory": "design.memory",
    "largest_batch": "design.memory",
    "training_memory": "design.memory",
    "StepPrediction": "design.scaling",
    "predict_step": "design.scaling",
    "accelerate": "engines.accelerate",
    "describe_engine": "engines.accelerate",
    "VGG": "networks.vgg",
    "alexnet": "networks.baselines",
    "build": "networks.baselines",
    "init_weights": "networks.modules",
    "lenet": "networks.baselines",
    "vgg": "networks.vgg",
    "vgg_block": "networks.vgg",
    "warm_start": "weights.warm_start",
    "Recipe": "training.recipe",
    "Run": "training.loop",
    "train": "training.loop",
    "Classifier": "inference.predict",
    "load_classifier": "inference.predict",
    "predict": "inference.predict",
    "Evaluation": "inference.evaluate",
    "evaluate": "inference.evaluate",
    "features": "inference.features",
    "PerceptualLoss": "inference.perceptual",
    "Preprocessing": "data.preprocessing",
    "ImageSource": "data.sources",
    "open_data": "data.sources",
    "fold_preprocessing": "weights.surgery",
    "with_head": "weights.surgery",
    "with_common_scale": "weights.surgery",
    "with_image_size": "weights.surgery",
    "with_in_channels": "weights.surgery",
    "load_weights": "weights.files",
    "save_weights": "weights.files",
    "Diagnosis": "lab.doctor",
    "examine": "lab.doctor",
}

__all__ = [  # noqa: RUF022 (in the order of a reader)
    "Architecture",
    "ArchitectureError",
    "Block",
    "Baseline",
    "as_network",
    "parse_network",
    "costs",
    "draw",
    "TrainingMemory",
    "training_memory",
    "largest_batch",
    "StepPrediction",
    "predict_step",
    "VGG",
    "init_weights",
    "vgg",
    "vgg_block",
    "alexnet",
    "lenet",
    "build",
    "accelerate",
    "describe_engine",
    "warm_start",
    "ImageSource",
    "open_data",
    "Recipe",
    "Run",
    "train",
    "Classifier",
    "load_classifier",
    "predict",
    "features",
    "Evaluation",
    "evaluate",
    "Preprocessing",
    "load_weights",
    "save_weights",
    "with_head",
    "with_in_channels",
    "with_common_scale",
    "with_image_size",
    "fold_preprocessing",
    "PerceptualLoss",
    "Diagnosis",
    "examine",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vggkit' has no attribute {name!r}")
    return getattr(import_module(f"vggkit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
