"""Cross-layer smoothing: channels of like size, so that one range fits all channels of a layer's inputs.

Between two layers with nothing but a ReLU and the like in between, each channel may be divided by a number in the first layer's
weights and multiplied by it in the second's: float32 computes the same up to rounding, while int8, which has one range for all
channels of an input, resolves small channels better.

References:
    Factors: G. Xiao et al., SmoothQuant, https://arxiv.org/abs/2211.10438, equation 4
    Folding them into the layer before: M. Nagel et al., Data-Free Quantization, https://arxiv.org/abs/1906.04721
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.engines.network import Arrays
from minicarlo.precision.layer import Values, evaluated, operation_of
from minicarlo.precision.transplant import bias_input

if TYPE_CHECKING:
    import openvino

ALPHA = 0.5
"""How much of a channel's size goes into the second layer's weights."""

_BETWEEN = {"Relu", "PRelu", "Interpolate", "MaxPool", "Pad"}
_LARGEST = 16.0
"""Factors stay between this and its inverse: a channel that is hardly ever seen is not blown up."""


@dataclass(frozen=True)
class Group:
    """Operations by name: `readers` alone read what `first` computes, channel by channel."""

    first: str
    readers: tuple[str, ...]


def groups(model: openvino.Model, operations: Collection[str]) -> list[Group]:
    """The groups among `operations` inside which channels can be smoothed."""
    found = []
    for op in model.get_ordered_ops():
        if op.get_friendly_name() in operations and _kind(op) is not None:
            readers = _readers(op)
            if readers and all(each.get_friendly_name() in operations and _kind(each) == _kind(op) for each in readers):
                found.append(Group(op.get_friendly_name(), tuple(sorted(each.get_friendly_name() for each in readers))))
    return found


def smoothed(model: openvino.Model, operations: Collection[str], batch: Arrays) -> openvino.Model:
    """A copy of `model` that computes the same with smoother channels, as seen for one batch."""
    found = groups(model, operations)
    places = [(group.readers[0], 0) for group in found]
    values = Values(model, places, {name: array.shape for name, array in batch.items()})(batch) if places else {}
    copy = model.clone()
    for group in found:
        first, readers = operation_of(copy, group.first), [operation_of(copy, name) for name in group.readers]
        seen = values[group.readers[0], 0]
        channel = 1 if _kind(first) == "Convolution" else seen.ndim - 1
        size = np.abs(seen).max(tuple(axis for axis in range(seen.ndim) if axis != channel))
        factor = _factors(size, np.max([_reach(reader) for reader in readers], axis=0))
        for reader in readers:
            _scale(reader, _input_axis(reader), factor)
        _scale(first, _output_axis(first), 1 / factor)
        _scale_bias(first, 1 / factor)
    copy.validate_nodes_and_infer_types()
    return copy


def _reach(op: Any) -> NDArray[np.float32]:  # noqa: ANN401
    """Largest weight of each input channel."""
    weights = evaluated(op.input_value(1).get_node())
    return np.abs(weights).max(tuple(axis for axis in range(weights.ndim) if axis != _input_axis(op)))  # type: ignore[no-any-return]


def _factors(size: NDArray[np.float32], reach: NDArray[np.float32]) -> NDArray[np.float32]:
    """What each channel is divided by; their geometric mean is one."""
    there = (size > 0) & (reach > 0)
    factor = np.ones(len(size))
    factor[there] = size[there] ** ALPHA / reach[there] ** (1 - ALPHA)
    if np.any(there):
        factor[there] /= np.exp(np.log(factor[there]).mean())
    return np.clip(factor, 1 / _LARGEST, _LARGEST).astype(np.float32)


def _readers(op: Any) -> list[Any] | None:  # noqa: ANN401
    """The operations that read a layer's result, behind its bias and what lies between; None if something else does."""
    port = bias_input(op)
    found: list[Any] = []
    waiting = [op if port is None else port.get_node()]
    while waiting:
        node = waiting.pop()
        for target in node.output(0).get_target_inputs():
            reader = target.get_node()
            if reader.get_type_name() == "Result" or (reader.get_type_name() not in _BETWEEN and target.get_index() != 0):
                return None
            if reader.get_type_name() not in _BETWEEN:
                found.append(reader)
            elif target.get_index() == 0 and _carries(reader):
                waiting.append(reader)
            else:
                return None
    return found


def _carries(node: Any) -> bool:  # noqa: ANN401
    """Whether a factor of a channel passes through."""
    kind = node.get_type_name()
    if kind == "Pad":
        return _pads_zeros(node)
    return kind != "Interpolate" or str(node.get_attributes().get("mode")) == "nearest"


def _pads_zeros(node: Any) -> bool:  # noqa: ANN401
    if node.get_attributes().get("pad_mode") != "constant":
        return False
    return node.get_input_size() < 4 or not np.any(evaluated(node.input_value(3).get_node()))


def _kind(op: Any) -> str | None:  # noqa: ANN401
    """What must agree in a pair: how channels lie."""
    kind = op.get_type_name()
    if kind in ("Convolution", "ConvolutionBackpropData"):
        return "Convolution"
    plain = kind == "MatMul" and op.input_value(1).get_partial_shape().rank == 2 and not op.get_attributes()["transpose_a"]
    return "MatMul" if plain else None


def _input_axis(op: Any) -> int:  # noqa: ANN401
    kind = op.get_type_name()
    if kind == "MatMul":
        return 1 if op.get_attributes()["transpose_b"] else 0
    return 0 if "Backprop" in kind else 1


def _output_axis(op: Any) -> int:  # noqa: ANN401
    return 1 - _input_axis(op)


def _scale(op: Any, axis: int, factor: NDArray[np.floating]) -> None:  # noqa: ANN401
    from openvino import opset13

    weights = evaluated(op.input_value(1).get_node())
    shape = [len(factor) if each == axis else 1 for each in range(weights.ndim)]
    op.input(1).replace_source_output(opset13.constant((weights * factor.reshape(shape)).astype(np.float32)).output(0))


def _scale_bias(op: Any, factor: NDArray[np.floating]) -> None:  # noqa: ANN401
    from openvino import opset13

    port = bias_input(op)
    if port is None:
        return
    bias = evaluated(port.get_source_output().get_node())
    rank = len(op.output(0).get_partial_shape())
    channel = rank - 1 if op.get_type_name() == "MatMul" else 1
    shape = [1] * rank
    shape[channel] = len(factor)
    aligned = factor.reshape(shape[rank - bias.ndim :]) if bias.ndim <= rank else factor
    port.replace_source_output(opset13.constant((bias * aligned).astype(np.float32)).output(0))
