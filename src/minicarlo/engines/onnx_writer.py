"""Write an OpenVINO graph as ONNX: fake quantisation becomes QuantizeLinear and DequantizeLinear, all else float32 as it is.

OpenVINO's operations: https://docs.openvino.ai/2026/documentation/openvino-ir-format/operation-sets.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from minicarlo.engines.network import tensor_name
from minicarlo.errors import InvalidModel

if TYPE_CHECKING:
    import openvino

OPSET = 21

_SAME = {
    name: name
    for name in """Abs And CumSum Cos Equal Erf Exp Floor Greater Less Log Mish Not Or Relu Selu Sigmoid Sign Sin Sqrt Tan
    Tanh""".split()
} | {
    "Ceiling": "Ceil",
    "Divide": "Div",
    "GreaterEqual": "GreaterOrEqual",
    "HSwish": "HardSwish",
    "LessEqual": "LessOrEqual",
    "LogicalAnd": "And",
    "LogicalNot": "Not",
    "LogicalOr": "Or",
    "LogicalXor": "Xor",
    "Maximum": "Max",
    "Minimum": "Min",
    "Multiply": "Mul",
    "Negative": "Neg",
    "Power": "Pow",
    "Range": "Range",
    "Select": "Where",
    "SoftPlus": "Softplus",
    "SoftSign": "Softsign",
    "Subtract": "Sub",
}
_REDUCTIONS = {name: name for name in ("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum")}
_ELEMENT = {
    "f32": TensorProto.FLOAT,
    "f16": TensorProto.FLOAT16,
    "f64": TensorProto.DOUBLE,
    "i64": TensorProto.INT64,
    "i32": TensorProto.INT32,
    "i8": TensorProto.INT8,
    "u8": TensorProto.UINT8,
    "boolean": TensorProto.BOOL,
}

Operation = Any
Rule = Callable[["_Writer", Operation, list[str]], None]
_RULES: dict[str, Rule] = {}


def to_onnx(graph: openvino.Model, name: str) -> bytes:
    """The bytes of an ONNX model that computes what `graph` does. Raises InvalidModel for an operation without a rule here."""
    writer = _Writer(graph, name)
    for operation in graph.get_ordered_ops():
        writer.add(operation)
    inputs = [
        helper.make_tensor_value_info(tensor_name(port), _element(port), _dimensions(port.get_partial_shape()))
        for port in graph.inputs
    ]
    outputs = [
        helper.make_tensor_value_info(tensor_name(port), _element(port), _dimensions(port.get_partial_shape()))
        for port in graph.outputs
    ]
    nodes, constants = writer.needed([value.name for value in outputs])
    network = helper.make_graph(nodes, "minicarlo", inputs, outputs, constants)
    model = helper.make_model(network, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


class _Writer:
    """Nodes and constants so far, and the name of every value."""

    def __init__(self, graph: openvino.Model, name: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._name = name
        self._values: dict[tuple[str, int], str] = {}
        self._outputs = {port.get_node().get_friendly_name(): tensor_name(port) for port in graph.outputs}
        self._used = {tensor_name(port) for port in (*graph.inputs, *graph.outputs)}

    def add(self, operation: Operation) -> None:
        """Translate one operation."""
        kind, own = operation.get_type_name(), operation.get_friendly_name()
        if kind == "Parameter":
            self._values[own, 0] = tensor_name(operation.output(0))
        elif kind == "Result":
            self.emit("Identity", [self.value(operation.input_value(0))], own, outputs=[self._outputs[own]])
        elif kind == "Constant":
            pass  # written where it is used
        elif (weights := quantised_weights(operation)) is not None:
            self._values[own, 0] = self.dequantised(*weights, own)
        elif all(value.get_node().get_type_name() == "Constant" for value in operation.input_values()) and kind == "Convert":
            values = operation.input_value(0).get_node().get_data()
            self._values[own, 0] = self.constant(np.asarray(values, operation.get_output_element_type(0).to_dtype()), own)
        elif kind in _SAME:
            self.one(operation, _SAME[kind])
        elif kind in _REDUCTIONS:
            self.one(operation, _REDUCTIONS[kind], keepdims=int(operation.get_attributes()["keep_dims"]))
        elif kind in _RULES:
            _RULES[kind](self, operation, [self.value(value) for value in operation.input_values()])
        else:
            raise InvalidModel(f"{self._name} has the operation {kind} ({own!r:.80}), which cannot be written as ONNX here.")

    def needed(self, outputs: Sequence[str]) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """The nodes and constants that outputs depend on: some rules write weights anew and leave what they were given."""
        used, kept = set(outputs), []
        for node in reversed(self.nodes):
            if used.intersection(node.output):
                used.update(node.input)
                kept.append(node)
        return kept[::-1], [each for each in self.constants if each.name in used]

    def value(self, port: Any) -> str:  # noqa: ANN401
        """The name of an operation's output."""
        node, index = port.get_node(), port.get_index()
        key = (node.get_friendly_name(), index)
        if key not in self._values and node.get_type_name() == "Constant":
            self._values[key] = self.constant(np.asarray(node.get_data()), key[0])
        return self._values[key]

    def one(self, operation: Operation, kind: str, inputs: Sequence[str] | None = None, **attributes: Any) -> str:  # noqa: ANN401
        """A node in place of `operation`, with its inputs unless others are given."""
        if inputs is None:
            inputs = [self.value(value) for value in operation.input_values()]
        own = operation.get_friendly_name()
        self._values[own, 0] = self.emit(kind, inputs, own, **attributes)
        return self._values[own, 0]

    def many(self, operation: Operation, kind: str, inputs: Sequence[str], **attributes: Any) -> None:  # noqa: ANN401
        """The same for an operation with several outputs."""
        own = operation.get_friendly_name()
        names = [self._fresh(f"{own}_{index}") for index in range(operation.get_output_size())]
        self.emit(kind, inputs, own, outputs=names, **attributes)
        self._values |= {(own, index): name for index, name in enumerate(names)}

    def add_bias(self, operation: Operation, layer: Operation, value: str, bias: NDArray[Any]) -> bool:
        """Whether `operation`, the sum of a layer's output `value` and a bias, could be made a part of the layer."""
        node = self.nodes[-1] if self.nodes else None
        rank = len(layer.output(0).get_partial_shape())
        once = len(layer.output(0).get_target_inputs()) == 1
        if node is None or node.output[0] != value or not once or len(node.input) != 2 or rank < 2:
            return False
        channel = 1 if node.op_type in ("Conv", "ConvTranspose") else -1
        length = layer.output(0).get_partial_shape()[channel]
        shape = [1] * rank
        shape[channel] = 1 if length.is_dynamic else length.get_length()
        if [1] * (rank - bias.ndim) + list(bias.shape) != shape:
            return False
        if node.op_type == "MatMul" and rank == 2 and bias.dtype == np.float32:
            node.op_type = "Gemm"
        elif node.op_type not in ("Conv", "ConvTranspose"):
            return False
        node.input.append(self.constant(bias.reshape(-1), f"{operation.get_friendly_name()}/bias"))
        self._values[operation.get_friendly_name(), 0] = value
        return True

    def emit(self, kind: str, inputs: Sequence[str], name: str, *, outputs: list[str] | None = None, **attributes: Any) -> str:  # noqa: ANN401
        """Append a node and return the name of its (first) output."""
        made = outputs or [self._fresh(f"{name}_out")]
        self.nodes.append(helper.make_node(kind, inputs, made, name=name, **attributes))
        return made[0]

    def constant(self, values: NDArray[Any], name: str) -> str:
        """A weight in the model."""
        name = self._fresh(name)
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name))
        return name

    def numbers(self, values: Sequence[int] | int, name: str) -> str:
        """A constant of whole numbers."""
        return self.constant(np.asarray(values, np.int64), name)

    def dequantised(self, weights: NDArray[np.int8], scale: NDArray[np.float32], zero: NDArray[np.int8], name: str) -> str:
        """The name of weights that are kept as integers, with scales and zero points along one axis or none."""
        axis = next((i for i, n in enumerate(scale.shape) if n > 1), None)
        per_tensor = axis is None
        inputs = [
            self.constant(weights, f"{name}/int8"),
            self.constant(scale.reshape(() if per_tensor else -1), f"{name}/scale"),
            self.constant(zero.reshape(() if per_tensor else -1), f"{name}/zero"),
        ]
        return self.emit("DequantizeLinear", inputs, f"{name}/weights", axis=axis)

    def _fresh(self, name: str) -> str:
        found, number = name, 0
        while found in self._used:
            number += 1
            found = f"{name}#{number}"
        self._used.add(found)
        return found


def quantised_weights(operation: Operation) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int8]] | None:
    """Integers, scales and zero points of what computes weights from int8 constants; None for any other operation.

    Scales and zero points have one axis of more than one element, or none. Covers what NNCF writes (a conversion, a zero
    point, a scale, a reshape after them) and fake quantisation of a constant.
    """
    kind = operation.get_type_name()
    if kind == "Multiply":
        values, scale = (operation.input_value(side).get_node() for side in (0, 1))
        zero: NDArray[Any] = np.zeros(1, np.int8)
        if values.get_type_name() == "Subtract":
            zero = _integers(values.input_value(1).get_node())
            values = values.input_value(0).get_node()
        if values.get_type_name() != "Convert" or not _is_int8(values.input_value(0).get_node()) or not _constant(scale):
            return None
        scales = np.asarray(scale.get_data(), np.float32)
        weights = values.input_value(0).get_node().get_data()
        return weights, scales, np.broadcast_to(np.asarray(zero, np.int8), scales.shape)
    if kind == "FakeQuantize" and _constant(operation.input_value(0).get_node()):
        low, high = (np.asarray(operation.input_value(i).get_node().get_data(), np.float32) for i in (3, 4))
        levels = int(operation.get_attributes()["levels"])
        scales = (high - low) / np.float32(levels - 1)
        values = np.asarray(operation.input_value(0).get_node().get_data(), np.float32)
        first = -(levels // 2) if levels % 2 == 0 else -((levels - 1) // 2)
        zeros = np.clip(np.rint(first - low / scales), -128, 127)
        weights = np.clip(np.rint(values / scales + zeros), first, first + levels - 1)
        return weights.astype(np.int8), scales, zeros.astype(np.int8)
    if kind == "Reshape":
        found = quantised_weights(operation.input_value(0).get_node())
        if found is None:
            return None
        shape = tuple(operation.output(0).get_shape())
        weights, scales, zeros = found
        if scales.size == 1:
            return weights.reshape(shape), scales, zeros
        axis = next((i for i, n in enumerate(shape) if n == scales.size), 0)
        along = [scales.size if i == axis else 1 for i in range(len(shape))]
        return weights.reshape(shape), scales.reshape(along), zeros.reshape(along)
    return None


def _rule(*kinds: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


@_rule("Add")
def _add(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    """A bias goes into its layer, without which ONNX Runtime has no int8 kernel for it."""
    for side in (0, 1):
        layer, bias = operation.input_value(side).get_node(), operation.input_value(1 - side).get_node()
        if _constant(bias) and writer.add_bias(operation, layer, inputs[side], np.asarray(bias.get_data())):
            return
    writer.one(operation, "Add", inputs)


@_rule("FakeQuantize")
def _fake_quantize(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    """Unsigned integers whatever the range: the zero point says where zero is."""
    name, levels = operation.get_friendly_name(), int(operation.get_attributes()["levels"])
    bounds = [np.asarray(operation.input_value(i).get_node().get_data(), np.float32) for i in range(1, 5)]
    low, high = bounds[:2]
    if levels > 256 or not (np.allclose(low, bounds[2]) and np.allclose(high, bounds[3])):
        raise InvalidModel(f"The quantisation {name!r:.80} has {levels} levels or changes the range; int8 alone can be written.")
    scale = (high - low) / np.float32(levels - 1)
    zero = np.clip(np.rint(-low / scale), 0, 255).astype(np.uint8)
    axis = next((i for i, n in enumerate(scale.shape) if n > 1), None)
    source = inputs[0]
    if levels < 256:
        limits = [writer.constant(bound.reshape(()), f"{name}/{side}") for side, bound in (("low", low), ("high", high))]
        source = writer.emit("Clip", [source, *limits], f"{name}/clip")
    shape = () if axis is None else (-1,)
    steps = [writer.constant(scale.reshape(shape), f"{name}/scale"), writer.constant(zero.reshape(shape), f"{name}/zero")]
    integers = writer.emit("QuantizeLinear", [source, *steps], f"{name}/quantised", axis=axis)
    writer.one(operation, "DequantizeLinear", [integers, *steps], axis=axis)


@_rule("Convert", "ConvertLike")
def _convert(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    writer.one(operation, "Cast", inputs[:1], to=_element(operation.output(0)))


@_rule("Convolution", "GroupConvolution")
def _convolution(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    attributes = operation.get_attributes()
    weights, group = _grouped(writer, operation, inputs[1])
    writer.one(operation, "Conv", [inputs[0], weights], group=group, **_window(operation, attributes))


@_rule("ConvolutionBackpropData", "GroupConvolutionBackpropData")
def _transposed(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    attributes = operation.get_attributes()
    weights, group = _grouped(writer, operation, inputs[1])
    extra: dict[str, Any] = {"output_padding": list(attributes["output_padding"])} if attributes.get("output_padding") else {}
    if len(inputs) > 2:
        extra = {"output_shape": [int(n) for n in _integers(operation.input_value(2).get_node())]}
    writer.one(operation, "ConvTranspose", [inputs[0], weights], group=group, **_window(operation, attributes), **extra)


def _grouped(writer: _Writer, operation: Operation, weights: str) -> tuple[str, int]:
    """Weights (groups, ...) as ONNX has them, and the number of groups."""
    if not operation.get_type_name().startswith("Group"):
        return weights, 1
    shape = list(operation.input_value(1).get_shape())
    node = operation.input_value(1).get_node()
    found = quantised_weights(node)
    merged = [shape[0] * shape[1], *shape[2:]]
    if found is not None and found[1].size in (1, merged[0]):
        integers, scales, zeros = found
        along = [scales.size, *[1] * (len(merged) - 1)]
        name = node.get_friendly_name()
        return writer.dequantised(integers.reshape(merged), scales.reshape(along), zeros.reshape(along), name), shape[0]
    target = writer.numbers(merged, f"{operation.get_friendly_name()}/merged")
    return writer.emit("Reshape", [weights, target], f"{operation.get_friendly_name()}/weights"), shape[0]


def _window(operation: Operation, attributes: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {name: list(attributes[name]) for name in ("strides", "dilations") if attributes.get(name)}
    auto = str(attributes.get("auto_pad", "explicit")).lower()
    if auto in ("same_upper", "same_lower", "valid"):
        found["auto_pad"] = auto.upper()
    else:
        found["pads"] = [*attributes["pads_begin"], *attributes["pads_end"]]
    return found


@_rule("MatMul")
def _matmul(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    attributes = operation.get_attributes()
    for side, key in enumerate(("transpose_a", "transpose_b")):
        if attributes[key]:
            inputs[side] = _turned(writer, operation, side, inputs[side])
    found = quantised_weights(operation.input_value(1).get_node())
    if found is not None and not _quantised_input(operation):
        # ONNX Runtime would make it a product with weights alone in int8, and round the input in its own way
        integers, scales, zeros = found
        weights = (integers.astype(np.float32) - zeros) * scales
        last = [*range(weights.ndim - 2), weights.ndim - 1, weights.ndim - 2]
        weights = weights.transpose(last) if attributes["transpose_b"] else weights
        inputs[1] = writer.constant(weights, f"{operation.get_friendly_name()}/weights")
    writer.one(operation, "MatMul", inputs)


def _quantised_input(operation: Operation) -> bool:
    """Whether a layer takes what fake quantisation made, moved at most."""
    source = operation.input_value(0).get_node()
    while source.get_type_name() in ("Reshape", "Squeeze", "Transpose", "Unsqueeze"):
        source = source.input_value(0).get_node()
    return bool(source.get_type_name() == "FakeQuantize")


def _turned(writer: _Writer, operation: Operation, side: int, value: str) -> str:
    port = operation.input_value(side)
    node, rank = port.get_node(), len(port.get_partial_shape())
    order = [*range(rank - 2), rank - 1, rank - 2]
    name = f"{operation.get_friendly_name()}/turned_{side}"
    if (found := quantised_weights(node)) is not None:
        integers, scales, zeros = found
        if scales.size > 1:
            scales, zeros = scales.transpose(order), zeros.transpose(order)
        return writer.dequantised(integers.transpose(order), scales, zeros, name)
    if _constant(node):
        return writer.constant(np.asarray(node.get_data()).transpose(order), name)
    return writer.emit("Transpose", [value], name, perm=order)


@_rule("PRelu")
def _prelu(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    node = operation.input_value(1).get_node()
    slope = np.asarray(node.get_data()) if _constant(node) else None
    if slope is not None and slope.size == 1:
        writer.one(operation, "LeakyRelu", inputs[:1], alpha=float(slope.reshape(-1)[0]))
        return
    if slope is not None and slope.ndim == 1:  # along the channels
        rank = len(operation.input_value(0).get_partial_shape())
        inputs[1] = writer.constant(slope.reshape(-1, *[1] * (rank - 2)), f"{operation.get_friendly_name()}/slope")
    writer.one(operation, "PRelu", inputs)


@_rule("Clamp")
def _clamp(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    attributes, name = operation.get_attributes(), operation.get_friendly_name()
    kind = operation.get_output_element_type(0).to_dtype()
    limits = [writer.constant(np.asarray(attributes[side], kind), f"{name}/{side}") for side in ("min", "max")]
    writer.one(operation, "Clip", [inputs[0], *limits])


@_rule("Elu")
def _elu(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    writer.one(operation, "Elu", inputs, alpha=float(operation.get_attributes()["alpha"]))


@_rule("Gelu")
def _gelu(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    mode = str(operation.get_attributes().get("approximation_mode", "ERF")).lower()
    writer.one(operation, "Gelu", inputs[:1], approximate="tanh" if mode == "tanh" else "none")


@_rule("HSigmoid")
def _hsigmoid(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    writer.one(operation, "HardSigmoid", inputs, alpha=1 / 6, beta=0.5)


@_rule("Swish")
def _swish(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    name = operation.get_friendly_name()
    scaled = writer.emit("Mul", inputs, f"{name}/scaled") if len(inputs) > 1 else inputs[0]
    writer.one(operation, "Mul", [inputs[0], writer.emit("Sigmoid", [scaled], f"{name}/sigmoid")])


@_rule("SquaredDifference")
def _squared_difference(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    difference = writer.emit("Sub", inputs, f"{operation.get_friendly_name()}/difference")
    writer.one(operation, "Mul", [difference, difference])


@_rule("NotEqual")
def _not_equal(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    writer.one(operation, "Not", [writer.emit("Equal", inputs, f"{operation.get_friendly_name()}/equal")])


@_rule("Round")
def _round(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    if str(operation.get_attributes()["mode"]).lower() != "half_to_even":
        raise InvalidModel(f"Operation {operation.get_friendly_name()!r:.80} rounds half away from zero, which ONNX does not.")
    writer.one(operation, "Round", inputs)


@_rule("Mod", "FloorMod")
def _modulo(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    if operation.get_type_name() == "Mod":
        writer.one(operation, "Mod", inputs, fmod=1)
        return
    name = operation.get_friendly_name()
    whole = writer.emit("Floor", [writer.emit("Div", inputs, f"{name}/ratio")], f"{name}/whole")
    writer.one(operation, "Sub", [inputs[0], writer.emit("Mul", [whole, inputs[1]], f"{name}/part")])


@_rule("BatchNormInference")
def _batch_norm(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    data, gamma, beta, mean, variance = inputs
    epsilon = float(operation.get_attributes()["epsilon"])
    writer.one(operation, "BatchNormalization", [data, gamma, beta, mean, variance], epsilon=epsilon)


@_rule("Reshape")
def _reshape(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    allow_zero = 0 if operation.get_attributes()["special_zero"] else 1
    writer.one(operation, "Reshape", [inputs[0], _as_int64(writer, operation, 1, inputs[1])], allowzero=allow_zero)


@_rule("Squeeze", "Unsqueeze")
def _squeeze(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    rest = [_as_int64(writer, operation, 1, inputs[1])] if len(inputs) > 1 else []
    writer.one(operation, operation.get_type_name(), [inputs[0], *rest])


@_rule("Tile")
def _tile(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    writer.one(operation, "Tile", [inputs[0], _as_int64(writer, operation, 1, inputs[1])])


@_rule("Transpose")
def _transpose(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    writer.one(operation, "Transpose", inputs[:1], perm=[int(n) for n in _integers(operation.input_value(1).get_node())])


@_rule("Concat")
def _concat(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    writer.one(operation, "Concat", inputs, axis=int(operation.get_attributes()["axis"]))


@_rule("Split")
def _split(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    axis = int(_integers(operation.input_value(1).get_node()).reshape(-1)[0])
    writer.many(operation, "Split", inputs[:1], axis=axis, num_outputs=operation.get_output_size())


@_rule("VariadicSplit")
def _variadic_split(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    axis = int(_integers(operation.input_value(1).get_node()).reshape(-1)[0])
    lengths = [int(each.get_partial_shape()[axis].get_length()) for each in operation.outputs()]
    writer.many(operation, "Split", [inputs[0], writer.numbers(lengths, f"{operation.get_friendly_name()}/lengths")], axis=axis)


@_rule("Gather")
def _gather(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    if int(operation.get_attributes().get("batch_dims", 0)):
        raise InvalidModel(f"Gather {operation.get_friendly_name()!r:.80} with batch dimensions cannot be written as ONNX here.")
    axis = int(_integers(operation.input_value(2).get_node()).reshape(-1)[0])
    writer.one(operation, "Gather", inputs[:2], axis=axis)


@_rule("ShapeOf")
def _shape_of(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    shape = writer.emit("Shape", inputs, f"{operation.get_friendly_name()}/shape")
    writer.one(operation, "Cast", [shape], to=_element(operation.output(0)))


@_rule("Broadcast")
def _broadcast(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    writer.one(operation, "Expand", [inputs[0], _as_int64(writer, operation, 1, inputs[1])])


@_rule("Slice")
def _slice(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    data, start, stop, step, *axes = inputs
    writer.one(operation, "Slice", [data, start, stop, *(axes or [""]), step])


@_rule("StridedSlice")
def _strided_slice(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    attributes, name = operation.get_attributes(), operation.get_friendly_name()
    if any(attributes.get("ellipsis_mask", ())) or not all(_constant(value.get_node()) for value in operation.input_values()[1:]):
        raise InvalidModel(f"The slice {name!r:.80} is computed or has an ellipsis, which cannot be written as ONNX here.")
    begin, end = (_integers(operation.input_value(i).get_node()).reshape(-1) for i in (1, 2))
    step = _integers(operation.input_value(3).get_node()).reshape(-1) if len(inputs) > 3 else np.ones(len(begin), np.int64)

    def flag(key: str, place: int) -> bool:
        mask = list(attributes.get(key, ()))
        return place < len(mask) and bool(mask[place])

    bounds: list[tuple[int, int, int, int]] = []
    shrink, new, axis = [], [], 0
    for place in range(len(begin)):
        if flag("new_axis_mask", place):
            new.append(place)
            continue
        stride = int(step[place])
        first = (0 if stride > 0 else -1) if flag("begin_mask", place) else int(begin[place])
        last = (2**62 if stride > 0 else -(2**62)) if flag("end_mask", place) else int(end[place])
        if flag("shrink_axis_mask", place):
            first, last, stride = int(begin[place]), int(begin[place]) + 1 or 2**62, 1
            shrink.append(axis)
        bounds.append((first, last, axis, stride))
        axis += 1
    value = inputs[0]
    if bounds:
        starts, ends, axes, steps = (list(each) for each in zip(*bounds, strict=True))
        parts = {"start": starts, "end": ends, "axes": axes, "steps": steps}
        value = writer.emit("Slice", [value, *(writer.numbers(n, f"{name}/{key}") for key, n in parts.items())], f"{name}/part")
    if shrink:
        value = writer.emit("Squeeze", [value, writer.numbers(shrink, f"{name}/shrink")], f"{name}/shrunk")
    if new:
        value = writer.emit("Unsqueeze", [value, writer.numbers(new, f"{name}/new")], f"{name}/grown")
    writer.one(operation, "Identity", [value])


@_rule("Pad")
def _pad(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    name = operation.get_friendly_name()
    pads = np.concatenate([_integers(operation.input_value(i).get_node()).reshape(-1) for i in (1, 2)])
    mode = str(operation.get_attributes()["pad_mode"]).lower()
    if mode == "symmetric":
        raise InvalidModel(f"The symmetric padding {name!r:.80} cannot be written as ONNX.")
    value = inputs[3:4] if mode == "constant" else []
    writer.one(operation, "Pad", [inputs[0], writer.numbers([int(n) for n in pads], f"{name}/pads"), *value], mode=mode)


@_rule("Softmax", "LogSoftmax")
def _softmax(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    writer.one(operation, operation.get_type_name(), inputs, axis=int(operation.get_attributes()["axis"]))


@_rule("MaxPool", "AvgPool")
def _pool(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    attributes = operation.get_attributes()
    found = _window(operation, attributes) | {"kernel_shape": list(attributes["kernel"])}
    found["ceil_mode"] = int(str(attributes["rounding_type"]).lower().startswith("ceil"))
    if operation.get_type_name() == "AvgPool":
        found["count_include_pad"] = int(not attributes.get("exclude-pad", attributes.get("exclude_pad", True)))
        writer.one(operation, "AveragePool", inputs, **found)
    else:
        writer.one(operation, "MaxPool", inputs, **found)


@_rule("DepthToSpace", "SpaceToDepth")
def _depth(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    attributes, kind = operation.get_attributes(), operation.get_type_name()
    if len(operation.input_value(0).get_partial_shape()) != 4:
        raise InvalidModel(f"{kind} {operation.get_friendly_name()!r:.80} is not of two dimensions, which ONNX does not have.")
    depth_first = str(attributes["mode"]).lower() == "depth_first"
    extra = {"mode": "CRD" if depth_first else "DCR"} if kind == "DepthToSpace" else {}
    writer.one(operation, kind, inputs, blocksize=int(attributes["block_size"]), **extra)


@_rule("Interpolate")
def _interpolate(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    """The factors of the shapes, so that any batch is taken."""
    attributes, name = operation.get_attributes(), operation.get_friendly_name()
    before, after = operation.input_value(0).get_partial_shape(), operation.get_output_partial_shape(0)
    scales = [
        1.0 if a.is_dynamic or b.is_dynamic else a.get_length() / b.get_length() for a, b in zip(after, before, strict=True)
    ]
    mode = str(attributes["mode"]).lower()
    kinds = {"nearest": "nearest", "linear": "linear", "linear_onnx": "linear", "cubic": "cubic"}
    if mode not in kinds or any(attributes.get(key) and any(attributes[key]) for key in ("pads_begin", "pads_end")):
        raise InvalidModel(f"The interpolation {name!r:.80} is of mode {mode} or pads, which cannot be written as ONNX here.")
    writer.one(
        operation,
        "Resize",
        [inputs[0], "", writer.constant(np.asarray(scales, np.float32), f"{name}/scales")],
        mode=kinds[mode],
        coordinate_transformation_mode=str(attributes["coordinate_transformation_mode"]).lower(),
        nearest_mode={"simple": "floor"}.get(str(attributes["nearest_mode"]).lower(), str(attributes["nearest_mode"]).lower()),
        cubic_coeff_a=float(attributes.get("cube_coeff", -0.75)),
    )


@_rule("MVN")
def _mvn(writer: _Writer, operation: Operation, inputs: list[str]) -> None:
    attributes, name = operation.get_attributes(), operation.get_friendly_name()
    axes = writer.numbers([int(n) for n in _integers(operation.input_value(1).get_node()).reshape(-1)], f"{name}/axes")
    centred = writer.emit(
        "Sub", [inputs[0], writer.emit("ReduceMean", [inputs[0], axes], f"{name}/mean", keepdims=1)], f"{name}/centred"
    )
    if not attributes["normalize_variance"]:
        writer.one(operation, "Identity", [centred])
        return
    square = writer.emit("Mul", [centred, centred], f"{name}/square")
    variance = writer.emit("ReduceMean", [square, axes], f"{name}/variance", keepdims=1)
    epsilon = writer.constant(np.asarray(attributes["eps"], np.float32), f"{name}/eps")
    if str(attributes["eps_mode"]).lower() == "inside_sqrt":
        spread = writer.emit("Sqrt", [writer.emit("Add", [variance, epsilon], f"{name}/safe")], f"{name}/spread")
    else:
        spread = writer.emit("Add", [writer.emit("Sqrt", [variance], f"{name}/root"), epsilon], f"{name}/spread")
    writer.one(operation, "Div", [centred, spread])


def _as_int64(writer: _Writer, operation: Operation, side: int, value: str) -> str:
    port = operation.input_value(side)
    if port.get_element_type().to_string() == "i64":
        return value
    if _constant(port.get_node()):
        return writer.constant(_integers(port.get_node()), f"{operation.get_friendly_name()}/whole_{side}")
    return writer.emit("Cast", [value], f"{operation.get_friendly_name()}/whole_{side}", to=TensorProto.INT64)


def _integers(node: Operation) -> NDArray[np.int64]:
    if not _constant(node):
        raise InvalidModel(
            f"{node.get_friendly_name()!r:.80} is computed where a constant is expected; ONNX cannot express it here."
        )
    return np.asarray(node.get_data(), np.int64)


def _constant(node: Operation) -> bool:
    return bool(node.get_type_name() == "Constant")


def _is_int8(node: Operation) -> bool:
    return _constant(node) and node.get_output_element_type(0).to_string() == "i8"


def _element(port: Any) -> int:  # noqa: ANN401
    return int(_ELEMENT[port.get_element_type().to_string()])


def _dimensions(shape: Any) -> list[int | str]:  # noqa: ANN401
    return [("batch" if i == 0 else f"length_{i}") if n.is_dynamic else n.get_length() for i, n in enumerate(shape)]
