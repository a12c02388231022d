"""Weights of 8 or 4 bits in layers that compute in float32: smaller files, and fewer bytes to read where a layer waits for them.

OpenVINO multiplies matrices with such weights as they are, which pays for a single event; those of convolutions it makes
float32 when it compiles. Weights are symmetric around zero, with a scale for each output channel; those of 4 bits in matrix
products have one for each group of inputs, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.precision.layer import evaluated

if TYPE_CHECKING:
    import openvino

BITS = {"w8": 8, "w4": 4}
GROUPS = (64, 32, 16)
"""Inputs that share a scale in 4 bits: the largest of these that divides their number."""


def with_small_weights(model: openvino.Model, formats: Mapping[str, str]) -> openvino.Model:
    """A copy of `model` with small weights in some operations (`formats`: operation to "w8" or "w4"); itself without any."""
    if not formats:
        return model
    copy = model.clone()
    for op in copy.get_ordered_ops():
        if (form := formats.get(op.get_friendly_name())) is not None:
            _replace_weights(op, form)
    copy.validate_nodes_and_infer_types()
    return copy


def rounded(
    weights: NDArray[np.float32], bits: int, output_axes: tuple[int, ...], group: int | None = None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers and scales of `weights`; with a `group` of a matrix (outputs, inputs), both (outputs, groups, group or 1)."""
    axes = tuple(axis for axis in range(weights.ndim) if axis not in output_axes)
    if group is not None:
        weights, axes = weights.reshape(len(weights), -1, group), (2,)
    largest = 2 ** (bits - 1) - 1
    scale = np.abs(weights).max(axes, keepdims=True) / largest
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    return np.rint(weights / scale).clip(-largest, largest).astype(np.int8), scale


def _replace_weights(op: Any, form: str) -> None:  # noqa: ANN401
    from openvino import opset13

    kind, name = op.get_type_name(), op.get_friendly_name()
    weights = evaluated(op.input_value(1).get_node())
    if kind != "MatMul" or weights.ndim != 2:
        axes = (0, 2 if "Backprop" in kind else 1) if "Group" in kind else (1,) if "Backprop" in kind else (0,)
        op.input(1).replace_source_output(_stored(name, weights, form, axes, None).output(0))
        return
    attributes = op.get_attributes()
    if not attributes["transpose_b"]:
        weights = np.ascontiguousarray(weights.T)
    group = next((each for each in GROUPS if weights.shape[1] % each == 0), None) if form == "w4" else None
    stored = _stored(name, weights, form, (0,), group)
    product = opset13.matmul(op.input_value(0), stored, bool(attributes["transpose_a"]), True)
    op.set_friendly_name(f"{name}/replaced")
    product.set_friendly_name(name)
    for target in op.output(0).get_target_inputs():
        target.replace_source_output(product.output(0))


def _stored(name: str, weights: NDArray[np.float32], form: str, axes: tuple[int, ...], group: int | None) -> Any:  # noqa: ANN401
    import openvino
    from openvino import opset13

    integers, scale = rounded(weights, BITS[form], axes, group)
    stored = opset13.constant(integers, dtype=openvino.Type.i4) if form == "w4" else opset13.constant(integers)
    stored.set_friendly_name(f"{name}/{form}")
    node = opset13.multiply(opset13.convert(stored, "f32"), opset13.constant(scale))
    return node if group is None else opset13.reshape(node, opset13.constant(np.array(weights.shape)), False)
