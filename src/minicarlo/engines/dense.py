"""Convolutions of single cells that a kernel of ours can compute together with the end of a network.

What they read is taken from in front of all that only moves numbers (concatenations, depth to space, cuts): the kernel finds each
feature where it was made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.engines.dense_code import Dense, Numbers, bf16_bits, computable
from minicarlo.engines.runtime import MOVERS, element_type, event_shape, is_precise, moved_inputs

if TYPE_CHECKING:
    import openvino

_MOST_FEATURES, _MOST_MADE = 1024, 256
"""Of a column of cells: what is read, and what all convolutions make of it."""

_MOST_MOVED = 2**24
"""Elements whose ways are followed: a stranger's graph must not take memory."""

Weights = tuple[NDArray[np.int8] | Numbers, Numbers]
"""(rows, features) and the scale of each row."""


@dataclass(frozen=True)
class DenseEnd:
    """Convolutions that read the same features.

    `layers` has them by the name of the operation whose result is theirs (the sum with the bias, if there is one), `operations`
    has the names of all their operations. Column i of cells has its features in place
    `places[i, 1]` of `sources[places[i, 0]]`, which are rounded to bytes of one range where that is int8.
    """

    layers: dict[str, Dense]
    operations: set[str]
    sources: list[Any]
    places: NDArray[np.int64]

    def lengths(self) -> tuple[int, ...]:
        """Places of each of the sources."""
        return tuple(math.prod(_shape(value)[1:]) for value in self.sources)

    @property
    def format(self) -> str:
        """What they compute in."""
        return next(iter(self.layers.values())).format

    def features(self) -> list[Any]:
        """The sources as (batch, *places, features) in the format of the layers, bytes for int8, for the runtime to compute."""
        return [as_features(value, self.format) for value in self.sources]


def dense_end(model: openvino.Model, floats: str) -> DenseEnd | None:
    """The last convolutions of `model` of single cells, those that read the same; None if our code cannot compute them.

    Where they are not in int8 they are in `floats`: "fp32" or "bf16".
    """
    found = [(op, *read) for op in model.get_ordered_ops() if (read := _pointwise(op)) is not None]
    if not found:
        return None
    last, of_last, _ = found[-1]
    source, kind, depth = last.input_value(0), of_last.dtype, of_last.shape[1]
    same = [each for each in found if each[0].input_value(0) == source and each[1].dtype == kind]
    if sum(len(weights) for _, weights, _ in same) > _MOST_MADE or (kind != np.int8 and floats == "fp16"):
        return None
    if floats == "bf16" and any(is_precise(op) for op, _, _ in same):
        return None
    sources = _sources(source)
    if any(len(_shape(value)) != len(_shape(source)) or _shape(value)[0] != depth for value in sources):
        return None
    low, step = 0.0, 1.0
    if kind == np.int8:
        ranges = {range_of_bytes(value.get_node()) for value in sources}
        if len(ranges) != 1 or None in ranges:
            return None
        ((low, high),) = ranges  # type: ignore[misc] # which is none of them
        step = (high - low) / 255
    places = _places(model, source, sources)
    if places is None:
        return None
    layers, operations = {}, set()
    for op, weights, scale in same:
        name, bias = with_bias(op, len(weights))
        offset = low * scale * weights.sum(1, dtype=np.float64) + bias
        stored = weights if kind == np.int8 or floats == "fp32" else bf16_bits(weights)
        layers[name] = Dense(stored.T, (step * scale).astype(np.float32), offset.astype(np.float32))
        operations |= {name, op.get_name()}
    return DenseEnd(layers, operations, sources, places) if all(computable(layer.weights) for layer in layers.values()) else None


def as_features(value: Any, form: str) -> Any:  # noqa: ANN401
    """(batch, features, *places) of a graph as (batch, *places, features) in a format: for int8 what is rounded to bytes."""
    from openvino import Type
    from openvino import opset13 as operators

    if form == "int8":
        ends = [operators.constant(np.float32(end)) for end in (0, 255)]
        counted = operators.fake_quantize(*value.get_node().input_values()[:3], *ends, 256)
        counted.set_friendly_name(value.get_node().get_friendly_name())
        value = operators.convert(counted, np.uint8).output(0)
    elif form == "bf16":
        value = operators.convert(value, Type.bf16).output(0)
    axes = [0, *range(2, len(_shape(value)) + 1), 1]
    return operators.transpose(value, operators.constant(np.array(axes))).output(0) if len(axes) > 2 else value


def readers(op: Any) -> Iterator[Any]:  # noqa: ANN401
    """The operations that read what an operation makes, and not only how much that is."""
    found = (target.get_node() for target in op.output(0).get_target_inputs())
    return (node for node in found if node.get_type_name() != "ShapeOf")


def _shape(value: Any) -> tuple[int, ...]:  # noqa: ANN401
    return event_shape(value) or ()


def _pointwise(op: Any) -> Weights | None:  # noqa: ANN401
    """The weights of a convolution of single cells; None if it is anything else."""
    if op.get_type_name() != "Convolution" or event_shape(op.output(0)) is None:
        return None
    attributes = op.get_attributes()
    if {*attributes["strides"]} != {1} or {*attributes["pads_begin"], *attributes["pads_end"]} != {0}:
        return None
    found = stored_weights(op.input_value(1).get_node())
    if found is None:
        return None
    weights, scale = found
    rows, depth = weights.shape[:2]
    if weights.size != rows * depth or depth % 4 or depth > _MOST_FEATURES or scale.size not in (1, rows):
        return None
    return weights.reshape(rows, depth), np.broadcast_to(scale.reshape(-1), rows)


def stored_weights(node: Any) -> Weights | None:  # noqa: ANN401
    """Weights as they are stored, in float32 or in int8, and what they are multiplied by."""
    if node.get_type_name() == "Constant" and element_type(node.output(0)) == "f32":
        return np.array(node.get_data()), np.ones(1, np.float32)
    if node.get_type_name() != "Multiply":
        return None
    converted, factor = (value.get_node() for value in node.input_values())
    if converted.get_type_name() != "Convert" or factor.get_type_name() != "Constant":
        return None
    stored = converted.input_value(0).get_node()
    if stored.get_type_name() != "Constant" or element_type(stored.output(0)) != "i8":
        return None
    return np.array(stored.get_data()), np.array(factor.get_data(), np.float32)


def with_bias(op: Any, rows: int) -> tuple[str, Numbers]:  # noqa: ANN401
    """The operation whose result is the convolution's with its bias, and the bias; itself and none, if there is none."""
    after = list(readers(op))
    if len(after) == 1 and after[0].get_type_name() == "Add":
        for value in after[0].input_values():
            shape, node = value.get_partial_shape(), value.get_node()
            stored = node.input_value(0).get_node() if node.get_type_name() == "Reshape" else node
            if stored.get_type_name() == "Constant" and list(shape) == [1, rows, *(1,) * (len(shape) - 2)]:
                return after[0].get_name(), np.array(stored.get_data(), np.float32).reshape(rows)
    return op.get_name(), np.zeros(rows, np.float32)


def _sources(value: Any) -> list[Any]:  # noqa: ANN401
    """What is read in front of all that only moves numbers, each once."""
    waiting, found = [value], dict[tuple[str, int], Any]()
    seen: set[str] = set()
    while waiting:
        each = waiting.pop()
        node = each.get_node()
        if node.get_type_name() not in MOVERS:
            found[node.get_name(), each.get_index()] = each
        elif node.get_name() not in seen:
            seen.add(node.get_name())
            waiting += [port.get_source_output() for port in reversed(moved_inputs(node))]
    return list(found.values())


def range_of_bytes(node: Any) -> tuple[float, float] | None:  # noqa: ANN401
    """The ends of a rounding to bytes that changes nothing else; None if it is anything else."""
    if node.get_type_name() != "FakeQuantize" or node.get_attributes()["levels"] != 256:
        return None
    ends = [value.get_node() for value in node.input_values()[1:]]
    if any(end.get_type_name() != "Constant" for end in ends):
        return None
    numbers = [np.array(end.get_data(), np.float32).reshape(-1) for end in ends]
    if any(number.size != 1 for number in numbers) or numbers[:2] != numbers[2:]:
        return None
    return float(numbers[0][0]), float(numbers[1][0])


def _places(model: openvino.Model, source: Any, sources: list[Any]) -> NDArray[np.int64] | None:  # noqa: ANN401
    """Where each column of `source` comes from: numbers are put in the place of the sources, and moved as these are.

    None unless a column is one place of one of them, with its features in their order.
    """
    import openvino
    from openvino import opset13 as operators

    operations, copies = model.get_ordered_ops(), model.clone().get_ordered_ops()
    shapes = [_shape(value) for value in sources]
    starts = np.cumsum([0, *map(math.prod, shapes)])
    alike = [op.get_friendly_name() for op in operations] == [op.get_friendly_name() for op in copies]
    if not alike or max(starts[-1], math.prod(_shape(source))) > _MOST_MOVED:
        return None
    copy = {op.get_name(): twin for op, twin in zip(operations, copies, strict=True)}
    parameters, numbers = [], []
    for value, shape, start in zip(sources, shapes, starts, strict=False):
        parameters.append(operators.parameter([1, *shape], np.int32))
        numbers.append(openvino.Tensor(np.arange(start, start + math.prod(shape), dtype=np.int32).reshape(1, *shape)))
        for target in _twin(copy, value).get_target_inputs():
            target.replace_source_output(parameters[-1].output(0))
    if any(value == source for value in sources):
        moved = openvino.Model([operators.result(parameters[0])], parameters)
    else:
        moved = openvino.Model([operators.result(_twin(copy, source))], parameters)
    moved.validate_nodes_and_infer_types()
    made = openvino.Tensor(np.empty([1, *_shape(source)], np.int32))
    if list(moved.outputs[0].get_partial_shape()) != list(made.shape) or not moved.evaluate([made], numbers):
        return None
    found = made.data.reshape(made.shape[1], -1)
    which = np.searchsorted(starts, found, "right") - 1
    lengths = np.array([math.prod(shape[1:]) for shape in shapes])[which]
    feature, place = np.divmod(found - starts[which], lengths)
    if (which != which[:1]).any() or (place != place[:1]).any() or (feature != np.arange(len(found))[:, None]).any():
        return None
    return np.stack([which[0], place[0]], 1)


def _twin(copy: dict[str, Any], value: Any) -> Any:  # noqa: ANN401
    """A value of a graph in a copy of it."""
    return copy[value.get_node().get_name()].output(value.get_index())
