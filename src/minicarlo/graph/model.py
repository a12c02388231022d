"""An ONNX graph that is being rewritten: nodes in order, constants as arrays, shapes, who makes and who reads what."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, OperatorSetIdProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

Constant = NDArray[Any]
Found = TypeVar("Found")

_LARGEST_FOLDED = 2**22  # elements; a graph of a stranger may ask for more than there is
_GROWS = {"ConstantOfShape", "Expand", "Pad", "Resize", "Tile", "Upsample"}  # folded only when the size is known
_DO_NOTHING = {"Identity", "Dropout"}


class Graph:
    """The graph of an ONNX model, open for changes.

    `nodes` and `constants` (name to array: weights and whatever is computed from constants alone) may be changed; `refresh`
    then brings everything else up to date. `shapes` are for one event: the first dimension of what depends on the batch is 1.
    """

    def __init__(self, data: bytes) -> None:
        model = onnx.load_model_from_string(data)
        self._model = ModelProto()
        self._model.CopyFrom(model)
        del self._model.graph.node[:], self._model.graph.initializer[:], self._model.graph.value_info[:]
        self.constants: dict[str, Constant] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        weights = set(self.constants)
        self.inputs = [value.name for value in model.graph.input if value.name not in weights]
        self.outputs = [value.name for value in model.graph.output]
        kept = [value for value in self._model.graph.input if value.name in self.inputs]
        del self._model.graph.input[:]
        self._model.graph.input.extend(kept)
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._fold()

    def serialise(self) -> bytes:
        """The graph as an ONNX model, constants as initializers, any batch."""
        return bytes(self._proto().SerializeToString())

    def copy(self) -> Graph:
        """An independent copy; constants are shared, since rewrites replace them and never write into them."""
        other = object.__new__(Graph)
        other._model = self._model
        other.inputs, other.outputs = self.inputs, self.outputs
        other.constants, other.shapes = dict(self.constants), dict(self.shapes)
        other.nodes = []
        for node in self.nodes:
            twin = NodeProto()
            twin.CopyFrom(node)
            other.nodes.append(twin)
        other._index()
        return other

    def refresh(self) -> None:
        """After a change: drop what nothing reads, put the nodes in order, infer shapes."""
        wanted, kept = set(self.outputs), []
        pending = {name: node for node in self.nodes for name in node.output if name}
        stack = list(self.outputs)
        while stack:
            node = pending.get(stack.pop())
            if node is None:
                continue
            for name in node.input:
                if name and name not in wanted:
                    wanted.add(name)
                    stack.append(name)
        kept = [node for node in self.nodes if wanted.intersection(node.output)]
        self.constants = {name: value for name, value in self.constants.items() if name in wanted}
        known = set(self.inputs) | set(self.constants) | {""}
        ordered: list[NodeProto] = []
        while kept:
            ready = [node for node in kept if known.issuperset(node.input)]
            if not ready:
                raise ValueError("the graph has a circle or reads a value that nothing makes")
            ordered += ready
            known.update(name for node in ready for name in node.output)
            kept = [node for node in kept if not known.issuperset(node.input) or not known.issuperset(node.output)]
        self.nodes = ordered
        self._index()
        self._infer()

    def producer(self, name: str) -> NodeProto | None:
        """The node that makes `name`, None for inputs and constants."""
        return self._producers.get(name)

    def consumers(self, name: str) -> list[NodeProto]:
        """The nodes that read `name`."""
        return self._consumers.get(name, [])

    def only_consumer(self, name: str) -> NodeProto | None:
        """The one node that reads `name`, None if there are more, or the graph gives it out."""
        readers = self.consumers(name)
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def find(self, name: str, match: Callable[[Graph, NodeProto], Found | None]) -> tuple[NodeProto, Found] | None:
        """The node called `name` and what `match` makes of it; None when there is no such node that it fits."""
        for node in self.nodes:
            if node.name == name and (found := match(self, node)) is not None:
                return node, found
        return None

    def rank(self, name: str) -> int:
        """Number of dimensions of a value, -1 when it could not be inferred."""
        return len(self.shapes[name]) if name in self.shapes else -1

    def constant(self, value: Constant, name: str) -> str:
        """Add a constant under `name` or one like it that is free, and return that name."""
        name = self.free(name)
        self.constants[name] = value
        return name

    def free(self, name: str) -> str:
        """`name`, or one like it that is free."""
        taken = self._values | set(self.constants)
        count, found = 0, name
        while found in taken:
            count += 1
            found = f"{name}.{count}"
        self._values.add(found)
        return found

    def add(self, operator: str, inputs: Iterable[str], name: str, **attributes: Any) -> str:  # noqa: ANN401
        """Append a node (the order is put right by `refresh`) and return the name of its output."""
        output = self.free(f"{name}/output")
        name = output.replace("/output", "")  # unique as well
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=name, **attributes))
        return output

    def remove(self, *nodes: NodeProto) -> None:
        """Take nodes out."""
        gone = {id(node) for node in nodes}
        self.nodes = [node for node in self.nodes if id(node) not in gone]

    def replace(self, old: str, new: str) -> None:
        """Have every reader of `old` read `new` instead; when `old` is given out by the graph, `new` takes its name."""
        if old in self.outputs:
            producer = next(node for node in self.nodes if new in node.output)
            producer.output[list(producer.output).index(new)] = old
            for node in self.nodes:
                if node is not producer and old in node.output:
                    node.output[list(node.output).index(old)] = self.free(f"{old}.before")
            old, new = new, old
        for node in self.nodes:
            for place, name in enumerate(node.input):
                if name == old:
                    node.input[place] = new

    @property
    def opsets(self) -> list[OperatorSetIdProto]:
        """The operator sets the graph is written in."""
        return list(self._model.opset_import)

    def _proto(self) -> ModelProto:
        model = ModelProto()
        model.CopyFrom(self._model)
        model.graph.node.extend(self.nodes)
        model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in self.constants.items())
        return model

    def _index(self) -> None:
        self._producers = {name: node for node in self.nodes for name in node.output if name}
        self._consumers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self._consumers.setdefault(name, []).append(node)
        self._values = {name for node in self.nodes for name in (*node.input, *node.output)} | set(self.inputs)

    def _infer(self) -> None:
        model = self._proto()
        for value in model.graph.input:
            value.type.tensor_type.shape.dim[0].dim_value = 1
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        for tensor in model.graph.initializer:  # shapes need the short constants only
            if math.prod(tensor.dims) > 1024:
                tensor.ClearField("raw_data")
                tensor.external_data.add(key="location", value="none")
                tensor.data_location = onnx.TensorProto.EXTERNAL
        graph = shape_inference.infer_shapes(model, data_prop=True).graph
        self.shapes = {name: value.shape for name, value in self.constants.items()}
        for value in (*graph.value_info, *graph.output, *graph.input):
            shape = value.type.tensor_type.shape
            if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in shape.dim):
                self.shapes[value.name] = tuple(d.dim_value for d in shape.dim)

    def _fold(self) -> None:
        """Compute what depends on constants alone and pass over nodes that do nothing."""
        self.refresh()
        for node in list(self.nodes):
            if node.op_type in _DO_NOTHING and len(self.consumers(node.output[0])) and node.output[0] not in self.outputs:
                self.replace(node.output[0], node.input[0])
            elif node.op_type == "Constant" or all(name in self.constants or not name for name in node.input):
                self._compute(node)
        self.refresh()

    def _compute(self, node: NodeProto) -> None:
        sizes = [math.prod(self.shapes[name]) if name in self.shapes else None for name in node.output]
        if any(name in self.outputs for name in node.output) or any(
            size is not None and size > _LARGEST_FOLDED for size in sizes
        ):
            return
        if node.op_type in _GROWS and None in sizes:
            return
        given = [numpy_helper.from_array(np.asarray(self.constants[name]), name) for name in dict.fromkeys(node.input) if name]
        made = [helper.make_empty_tensor_value_info(name) for name in node.output]
        graph = helper.make_graph([node], "fold", [], made, given)
        alone = helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        values = ReferenceEvaluator(alone).run(None, {})
        self.constants |= {name: np.asarray(value) for name, value in zip(node.output, values, strict=True)}
        self.shapes |= {name: self.constants[name].shape for name in node.output}
        self.remove(node)


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:  # noqa: ANN401
    """The value of an attribute, or `default`; bytes become text."""
    for each in node.attribute:
        if each.name == name:
            value = helper.get_attribute_value(each)
            return value.decode() if isinstance(value, bytes) else value
    return default


def set_attribute(node: NodeProto, name: str, value: Any) -> None:  # noqa: ANN401
    """Give a node an attribute in place of the one it has."""
    for place, each in enumerate(node.attribute):
        if each.name == name:
            del node.attribute[place]
            break
    node.attribute.append(helper.make_attribute(name, value))
