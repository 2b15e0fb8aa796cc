"""The blocks of a VGG in an ONNX file, read without the package `onnx`.

Exporters rename, fold and share tensors, so the graph decides which layer a tensor belongs to. The names only tell the
source of the weights, and thereby the preprocessing. Source: onnx.proto and the wire format of Protocol Buffers.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from vggkit.errors import WeightsError, shown

MAX_FIELDS = 100_000  # in one message; a graph has a field for each operator and each tensor

_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
_INPUT, _OUTPUT, _OPERATOR = 1, 2, 4  # of a node
_DIMENSION, _TYPE, _FLOATS, _NAME, _RAW, _LOCATION = 1, 2, 4, 8, 9, 14  # of a tensor
_FLOAT_TYPES = {1: "<f4", 10: "<f2", 11: "<f8"}

_NORM = ("weight", "bias", "running_mean", "running_var")
_WEIGHTED = {"Conv": ("weight", "bias"), "BatchNormalization": _NORM}
_SKIPPED = ("Identity", "Constant", "Transpose", "Cast")

Array = npt.NDArray[np.floating[Any]]


def onnx_arrays(content: bytes) -> dict[str, Array]:
    """The tensors of the blocks in an ONNX file under Keras's, Caffe's or torchvision's names and in its layout.

    Blocks are a chain of convolutions, batch norms, ReLUs and max pools, which ends at the first other operator, the
    start of the classifier. The arrays are views of `content`.

    Raises:
        WeightsError: a tensor is stored in another file or computed by the graph. A damaged file raises other errors.
    """
    graph = list(_fields(dict(_fields(memoryview(content)))[_GRAPH]))
    tensors: dict[str, memoryview] = {}
    for message in (value for number, value in graph if number == _INITIALIZER):
        tensors[_text(dict(_fields(message))[_NAME])] = message
    source = _source_of(tensors)
    arrays: dict[str, Array] = {}
    index, block, conv = 0, 1, 0
    for message in (value for number, value in graph if number == _NODE):
        fields = list(_fields(message))
        operator = next(_text(value) for number, value in fields if number == _OPERATOR)
        inputs, outputs = ([_text(v) for number, v in fields if number == field] for field in (_INPUT, _OUTPUT))
        if operator == "Identity" and inputs[0] in tensors:  # equal tensors are stored once
            tensors[outputs[0]] = tensors[inputs[0]]
        if operator in _WEIGHTED:
            conv += operator == "Conv"
            names = {"keras": f"block{block}_conv{conv}/", "caffe": f"conv{block}_{conv}."}
            prefix = names.get(source, f"features.{index}.")
            for key, name in zip(_WEIGHTED[operator], inputs[1:], strict=False):
                arrays[prefix + key] = _array(name, tensors.get(name))
            arrays.setdefault(f"{prefix}bias", np.zeros(len(arrays[f"{prefix}weight"]), np.float32))
            if source == "keras":
                arrays[f"{prefix}kernel"] = arrays.pop(f"{prefix}weight").transpose(2, 3, 1, 0)
        elif operator == "MaxPool":
            block, conv = block + 1, 0
        elif operator != "Relu":
            if arrays and operator not in _SKIPPED:
                break
            continue
        index += 1
    return arrays


def _source_of(names: Iterable[str]) -> str:
    """The source with these names for its convolutions; torchvision by default."""
    patterns = {"keras": r"block\d+_conv\d+", "caffe": r"^conv\d+_\d+"}
    return next((key for key, pattern in patterns.items() if any(re.search(pattern, n) for n in names)), "torchvision")


def _array(name: str, message: memoryview | None) -> Array:
    if message is None:
        raise WeightsError(f"expected the tensor '{shown(name)}' in the file, got one that the graph computes")
    fields = list(_fields(message))
    values, shape = dict(fields), [value for number, value in fields if number == _DIMENSION]
    if values.get(_LOCATION):
        raise WeightsError(f"expected the data of '{shown(name)}' in this file, got another's, try to export it whole")
    if values.get(_TYPE) not in _FLOAT_TYPES:
        raise WeightsError(f"expected '{shown(name)}' as floats, got type {values.get(_TYPE)} of ONNX")
    return np.frombuffer(values.get(_RAW) or values[_FLOATS], _FLOAT_TYPES[values[_TYPE]]).reshape(shape)


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """The number and value of each field in a protobuf message; the value is an integer, or else bytes."""
    position, num_fields = 0, 0
    while position < len(message):
        num_fields += 1
        key, position = _varint(message, position)
        kind = key & 7
        if kind not in (0, 1, 2, 5) or num_fields > MAX_FIELDS:
            raise WeightsError("expected an ONNX file, got another one, or a damaged one")
        size, position = (8 if kind == 1 else 4, position) if kind in (1, 5) else _varint(message, position)
        if kind == 0:
            yield key >> 3, size
            continue
        if size > len(message) - position:
            raise WeightsError(f"expected {size:,} bytes in a field of an ONNX file, got {len(message) - position:,}")
        yield key >> 3, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """The integer at `position`, with 7 bits in each byte, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        value |= (message[position] & 127) << shift
        position += 1
        if message[position - 1] < 128:
            break
    return value, position


def _text(value: memoryview) -> str:
    return bytes(value).decode()
