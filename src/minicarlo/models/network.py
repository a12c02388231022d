"""A network as OpenVINO's graph, whatever it was written in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.engines.network import Arrays, tensor_name
from minicarlo.engines.runtime import write_ir
from minicarlo.errors import InvalidModel

if TYPE_CHECKING:
    import openvino

Inputs = Mapping[str, NDArray[Any]] | Callable[[int, int], Mapping[str, NDArray[Any]]]
"""Input name to array (events, ...), or a function from the first and the last event's number to such arrays."""

_LAYERS = ("MatMul", "Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData")
_AUTOMATIC = re.compile(r"[A-Z][A-Za-z]*_\d+")


@dataclass(frozen=True)
class Network:
    """A float32 graph; `name` is for messages, `kind` says what it was ("an ONNX model")."""

    name: str
    kind: str
    graph: openvino.Model

    @classmethod
    def of(cls, graph: openvino.Model, name: str, kind: str, *, own_names: bool = False) -> Network:
        """A graph as a converter left it, with names that are the same in every process and stand once each.

        With `own_names` the operations' names are the author's and are kept.
        """
        _name_operations(graph, own_names)
        for number, port in enumerate(graph.outputs):
            if not port.get_names() or _AUTOMATIC.fullmatch(tensor_name(port)):
                port.get_tensor().set_names({f"output_{number}" if len(graph.outputs) > 1 else "output"})
        return cls(name, kind, graph)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the graph and its weights."""
        return hashlib.sha256(b"".join(write_ir(self.graph))).hexdigest()

    @property
    def inputs(self) -> dict[str, tuple[int | None, ...]]:
        """Shape of every input, None for what is free. Raises InvalidModel for one of unknown rank."""
        shapes = {}
        for port in self.graph.inputs:
            shape = port.get_partial_shape()
            if shape.rank.is_dynamic or len(shape) == 0:
                raise InvalidModel(
                    f"{self.name}: input {tensor_name(port)!r:.80} has the shape {shape}; its first axis must be events. "
                    "Export the network with inputs of known rank."
                )
            shapes[tensor_name(port)] = tuple(None if each.is_dynamic else each.get_length() for each in shape)
        return shapes

    def fitted(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """`inputs` as the graph takes them: of its element types and, but for the first axis, of its shapes.

        Raises InvalidModel saying which input is missing, superfluous or of another shape or type.
        """
        expected = self.inputs
        if len(expected) == len(inputs) == 1:
            inputs = dict(zip(expected, inputs.values(), strict=True))
        if set(inputs) != set(expected):
            listed = ", ".join(f"{name} {_shape_text(shape)}" for name, shape in expected.items())
            raise InvalidModel(
                f"{self.name} takes the inputs {listed}; given are {', '.join(sorted(inputs)) or 'none'}. "
                "Give one array for each, the first axis being events."
            )
        lengths = {name: len(np.atleast_1d(array)) for name, array in inputs.items()}
        if len(set(lengths.values())) != 1:
            raise InvalidModel(f"The inputs of {self.name} have different numbers of events: {lengths}. Give as many for each.")
        return {name: self._fitted(name, np.asarray(inputs[name]), shape) for name, shape in expected.items()}

    def _fitted(self, name: str, array: NDArray[Any], shape: tuple[int | None, ...]) -> NDArray[Any]:
        if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape[1:], array.shape[1:], strict=False)):
            raise InvalidModel(
                f"Input {name!r:.80} of {self.name} has the shape {_shape_text((None, *shape[1:]))}, "
                f"the array that is given {array.shape}."
            )
        kind = self.graph.input(name).get_element_type().to_dtype()
        if not np.can_cast(array.dtype, kind, "same_kind"):
            raise InvalidModel(f"Input {name!r:.80} of {self.name} is {np.dtype(kind)}, the array that is given {array.dtype}.")
        if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            raise InvalidModel(f"The array that is given for input {name!r:.80} of {self.name} holds what is not finite.")
        return np.ascontiguousarray(array, kind)


def _name_operations(graph: openvino.Model, own_names: bool) -> None:
    """Numbers that converters put behind names count what the process made before; number by place instead."""
    graph.set_friendly_name("network")
    name_layers(graph)
    used: set[str] = set()
    numbers: dict[str, int] = {}
    for op in graph.get_ordered_ops():
        kind = op.get_type_name()
        name = op.get_friendly_name().replace(",", ";")  # OpenVINO lists names with commas between
        automatic = re.fullmatch(rf"{kind}_\d+", name) if own_names else _AUTOMATIC.fullmatch(name)
        if (kind != "Parameter" and automatic and not (own_names and kind in _LAYERS)) or name in used or not name:
            numbers[kind] = numbers.get(kind, -1) + 1
            name = f"{kind}.{numbers[kind]}"
        used.add(name)
        if name != op.get_friendly_name():
            op.set_friendly_name(name)


def name_layers(graph: openvino.Model) -> None:
    """Give layers the author's name back: of a transposed convolution with a bias OpenVINO names the sum alone."""
    for op in graph.get_ordered_ops():
        if op.get_type_name() in _LAYERS and _AUTOMATIC.fullmatch(op.get_friendly_name()):
            targets = [target.get_node() for target in op.output(0).get_target_inputs()]
            if len(targets) == 1 and targets[0].get_type_name() == "Add":
                name = targets[0].get_friendly_name()
                op.set_friendly_name(op.get_friendly_name() if _AUTOMATIC.fullmatch(name) else f"{name}/WithoutBiases")


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("events" if not i else "any" if n is None else str(n) for i, n in enumerate(shape)) + ")"
