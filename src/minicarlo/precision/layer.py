"""One layer by itself: the values that reach it, and a network that is that layer and its bias alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.engines.network import Arrays, OpenVinoNetwork
from minicarlo.precision.transplant import QuantisedLayer, Range, bias_input, copied, range_union, transplant

if TYPE_CHECKING:
    import openvino

Array = NDArray[np.float32]
Place = tuple[str, int]
"""An input of an operation: the operation's name, the input's number."""


class Values:
    """What reaches inputs of a float32 `model`, for inputs of the given shapes."""

    def __init__(self, model: openvino.Model, places: Iterable[Place], shapes: Mapping[str, Sequence[int]]) -> None:
        import openvino
        from openvino import opset13

        copy = model.clone()
        operations = {op.get_friendly_name(): op for op in copy.get_ordered_ops()}
        results: dict[Place, Any] = {}  # inputs may share what reaches them
        self._index: dict[Place, int] = {}
        for name, port in places:
            source = operations[name].input_value(port)
            key = (source.get_node().get_friendly_name(), source.get_index())
            results.setdefault(key, opset13.result(source))
            self._index[name, port] = list(results).index(key)
        self._shapes = shapes
        self._network = OpenVinoNetwork(openvino.Model(list(results.values()), copy.get_parameters(), "values"), "f32", shapes)

    def __call__(self, inputs: Arrays) -> dict[Place, Array]:
        """The values of one inference; fewer events than a batch are repeated."""
        first = {name: np.resize(array, self._shapes[name]) for name, array in inputs.items()}
        made = list(self._network.run(first).values())
        return {place: made[index] for place, index in self._index.items()}


def alone(model: openvino.Model, operation: str, shape: Sequence[int]) -> openvino.Model:
    """One layer with its bias: `values` of `shape` to its output."""
    import openvino
    from openvino import opset13

    copy = model.clone()
    op = operation_of(copy, operation)
    values = opset13.parameter(list(shape), np.float32, name="values")
    values.output(0).set_names({"values"})
    op.input(0).replace_source_output(values.output(0))
    bias = bias_input(op)
    end = op if bias is None else bias.get_node()
    return openvino.Model([opset13.result(end)], [values], operation)


def with_weights(layer: openvino.Model, operation: str, weights: Array, bias: Array | None) -> openvino.Model:
    """A layer alone with other weights, and another bias if one is given."""
    from openvino import opset13

    copy = layer.clone()
    op = operation_of(copy, operation)
    op.input(1).replace_source_output(opset13.constant(weights).output(0))
    port = bias_input(op)
    if bias is not None and port is not None:
        port.replace_source_output(opset13.constant(bias).output(0))
    return copy


def compiled(layer: openvino.Model, precision: Any, shape: Sequence[int]) -> OpenVinoNetwork:  # noqa: ANN401
    """A layer alone, ready to run on values of `shape` by the runtime's kernels, whatever ours could compute."""
    return OpenVinoNetwork(layer, precision, {"values": shape}, whole=True)


def int8_alone(layer: openvino.Model, operation: str, quantised: QuantisedLayer) -> tuple[openvino.Model, Range]:
    """A layer alone in int8, and the one range of its input."""
    ranges = [entry for entry in quantised.ranges if entry.consumer == operation] or list(quantised.ranges)
    merged = Range(operation, 0, range_union(ranges), ranges[0].levels)
    return transplant(layer, {operation: operation}, {operation: replace(quantised, ranges=(merged,))}), merged


def corrected(model: openvino.Model, operation: str, quantised: QuantisedLayer, values: Array) -> QuantisedLayer:
    """A quantised layer with the bias that gives its outputs the means, by channel, that they have in float32 for `values`.

    Transposed convolutions and matrix products alike; a layer without a bias is left as it is.

    References:
        M. Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, https://arxiv.org/abs/1906.04721
    """
    layer = alone(model, operation, values.shape)
    port = bias_input(operation_of(layer, operation))
    if port is None:
        return quantised
    bias = np.array(port.get_source_output().get_node().get_data(), np.float32)
    reference = output(compiled(layer, "f32", values.shape), values)
    rounded, _ = int8_alone(layer, operation, replace(quantised, bias=bias))
    difference = reference.astype(np.float64) - output(compiled(rounded, "f32", values.shape), values)
    channel = difference.ndim - 1 if operation_of(layer, operation).get_type_name() == "MatMul" else 1
    means = difference.mean(tuple(axis for axis in range(difference.ndim) if axis != channel), keepdims=True)
    means = means.reshape(means.shape[-bias.ndim :]) if bias.ndim < means.ndim else means
    return replace(quantised, bias=(bias + means).astype(np.float32))


def output(network: OpenVinoNetwork, values: Array) -> Array:
    """What a layer alone makes of `values`."""
    made: Array = next(iter(network.run({"values": values}).values()))
    return made


def relative_error(expected: Array, found: Array) -> float:
    """Root mean square difference over the root mean square of `expected`; infinite where something is not finite."""
    if not np.all(np.isfinite(found)):
        return math.inf
    difference = np.linalg.norm(np.subtract(found, expected, dtype=np.float64))
    size = np.linalg.norm(expected.astype(np.float64))
    return float(difference / size) if size > 0 else float(difference > 0)


def weights_of(layer: openvino.Model, operation: str) -> Array:
    """The weights of an operation as numbers."""
    import openvino
    from openvino import opset13

    source = operation_of(layer.clone(), operation).input_value(1)
    model = openvino.Model([opset13.result(source)], [], "weights")
    return np.array(openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([])[0], np.float32)


def evaluated(node: Any) -> Array:  # noqa: ANN401
    """The value of a node that is computed from constants."""
    import openvino
    from openvino import opset13

    model = openvino.Model([opset13.result(copied(node))], [], "constant")
    return np.array(openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([])[0], np.float32)


def operation_of(model: openvino.Model, name: str) -> Any:  # noqa: ANN401
    """The operation of that name."""
    return next(each for each in model.get_ordered_ops() if each.get_friendly_name() == name)
