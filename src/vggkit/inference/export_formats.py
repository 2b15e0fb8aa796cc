"""The export formats: how a file of each is written, and how its runtime runs it."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vggkit.data.files import write_whole
from vggkit.data.preprocessing import Preprocessing
from vggkit.errors import UserError, WeightsError
from vggkit.inference.export_graph import graph_of
from vggkit.inference.predict import Classifier
from vggkit.networks.vgg import VGG
from vggkit.weights.files import published_as, safetensors_pieces

INPUT, OUTPUT = "images", "outputs"

Run = Callable[[Tensor], Tensor]
"""From a batch to the outputs of a runtime."""


@dataclass(frozen=True)
class Subject:
    """A network to export."""

    classifier: Classifier
    with_preprocessing: bool
    """See `graph_of`."""
    example: Tensor

    @property
    def program(self) -> torch.export.ExportedProgram:
        """The traced graph."""
        free = {axis: torch.export.Dim.DYNAMIC for axis, length in enumerate(self.axes) if isinstance(length, str)}
        graph = graph_of(self.classifier, self.with_preprocessing)
        return torch.export.export(graph, (self.example,), dynamic_shapes=(free,))

    @property
    def axes(self) -> tuple[int | str, ...]:
        """The shape of an input batch, with names for dynamic axes."""
        how, net = self.classifier.preprocessing, self.classifier.net
        if self.with_preprocessing:
            return "batch", "height", "width", 3
        sides = (how.image_size, how.image_size) if net.takes_one_size else ("height", "width")
        return "batch", how.channels, *sides

    @property
    def texts(self) -> dict[str, str]:
        """The metadata of a file, each value as JSON."""
        return {
            "classes": json.dumps(self.classifier.classes),
            "preprocessing": self.classifier.preprocessing.to_json(),
            "architecture": self.classifier.net.architecture.to_json(),
        }

    @property
    def description(self) -> dict[str, Any]:
        """The inputs and outputs of the graph with its metadata, for the manifest."""
        what = "probabilities" if self.with_preprocessing else "logits"
        return {
            "input": f"{str(self.example.dtype).removeprefix('torch.')} ({', '.join(map(str, self.axes))})",
            "output": f"{what} (batch, {len(self.classifier.classes)})",
            **{key: json.loads(text) for key, text in self.texts.items()},
        }


class Format(NamedTuple):
    """A format of a file or a folder."""

    name: str
    packages: tuple[str, ...]
    """Packages for writing and running; the last one is the runtime."""
    write: Callable[[Subject, Path], None]
    open: Callable[[Path], Run]

    @property
    def missing(self) -> str:
        """The first of the packages that cannot be imported; empty if all can."""
        for package in self.packages:
            try:
                import_module(package)
            except (ImportError, RuntimeError):  # RuntimeError from a package for another build of torch
                return package
        return ""

    def versions(self) -> dict[str, str]:
        """The versions of the packages; raises `UserError` if one is not installed."""
        if missing := self.missing:
            needs = f"expected the packages {', '.join(self.packages)} for {self.name}"
            raise UserError(f"{needs}, got no {missing} installed, try {to_install(missing)}")
        return {package: version(package) for package in self.packages}


def to_install(package: str) -> str:
    """The command that installs a package of a format."""
    return f"pip install '{'vggkit[export]' if package in FORMATS['.onnx'].packages else package}'"


@contextmanager
def quiet() -> Iterator[None]:
    """Within, exporters log no warnings and warn of no future changes."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(category=FutureWarning, action="ignore"):
            yield
    finally:
        logging.disable(before)


def write_onnx(subject: Subject, path: Path) -> None:
    """Write one .onnx file with weights and metadata."""
    program: Any = torch.onnx.export(
        subject.program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
    )
    program.model.metadata_props.update(subject.texts)
    program.save(path, external_data=False)


def open_onnx(path: Path) -> Run:
    """Open a file in ONNX Runtime on the CPU, with as many threads as torch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (name,) = (argument.name for argument in session.get_inputs())
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def _write_pt2(subject: Subject, path: Path) -> None:
    torch.export.save(subject.program, path, extra_files=subject.texts)


def _open_pt2(path: Path) -> Run:
    module = torch.export.load(path).module()
    return lambda x: module(x)


def _write_openvino(subject: Subject, path: Path) -> None:
    import openvino

    onnx_file = path.with_suffix(".onnx")
    write_onnx(subject, onnx_file)
    model = openvino.convert_model(onnx_file)
    for key, text in subject.texts.items():
        model.set_rt_info(text, ["vggkit", key])
    openvino.save_model(model, path, compress_to_fp16=False)
    onnx_file.unlink()


def _open_openvino(path: Path) -> Run:
    import openvino

    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: torch.from_numpy(model(x.numpy())[0])


def _write_timm(subject: Subject, folder: Path) -> None:
    classifier = subject.classifier
    net, how = classifier.net, classifier.preprocessing
    if not isinstance(net, VGG):
        raise WeightsError(f"expected a VGG network for timm, got {net.architecture.name}")
    name, tensors = published_as("timm", net)
    if how.order == "bgr":
        tensors["features.0.weight"] = tensors["features.0.weight"].flip(1).contiguous()
    folder.mkdir()
    write_whole(folder / "model.safetensors", b"".join(safetensors_pieces(tensors, {"format": "pt"})))
    write_whole(folder / "config.json", json.dumps(_timm_config(name, classifier), indent=2).encode())


def rgb_in_0_1(how: Preprocessing) -> Preprocessing:
    """`how` for RGB in [0, 1], as timm has it; the first weights of a network for BGR must be flipped to fit."""
    step = -1 if how.order == "bgr" else 1
    mean, std = (tuple(value / how.scale for value in values[::step]) for values in (how.mean, how.std))
    return replace(how, order="rgb", scale=1.0, mean=mean, std=std)


def _timm_config(name: str, classifier: Classifier) -> dict[str, Any]:
    """The config.json that `timm.create_model` reads. Source: `timm.models._hub.save_config_for_hf`."""
    how = rgb_in_0_1(classifier.preprocessing)
    size = (how.channels, how.image_size, how.image_size)
    return {
        "architecture": name,
        "num_classes": len(classifier.classes),
        "num_features": 4096,
        "label_names": list(classifier.classes),
        "model_args": {"in_chans": how.channels},
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": size,
            "fixed_input_size": False,
            "interpolation": how.interpolation,
            "crop_pct": how.crop_fraction,
            "crop_mode": "center" if how.resize == "crop" else "squash",
            "mean": how.mean,
            "std": how.std,
            "num_classes": len(classifier.classes),
            "first_conv": "features.0",
            "classifier": "head.fc",
        },
    }


def _open_timm(folder: Path) -> Run:
    import timm

    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return lambda x: net(x)


FORMATS = {
    ".onnx": Format("ONNX", ("onnx", "onnxscript", "onnxruntime"), write_onnx, open_onnx),
    ".pt2": Format("torch.export", ("torch",), _write_pt2, _open_pt2),
    ".xml": Format("OpenVINO", ("onnx", "onnxscript", "openvino"), _write_openvino, _open_openvino),
    "": Format("timm", ("timm",), _write_timm, _open_timm),
}
"""By suffix; a folder has none."""
