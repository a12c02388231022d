"""Take single int8 layers out of a fully quantised model and put them into the float32 one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.engines.runtime import MOVERS, moved_inputs
from minicarlo.errors import TuningError
from minicarlo.precision.ir import CARRIERS

if TYPE_CHECKING:
    import openvino


@dataclass(frozen=True)
class Range:
    """One FakeQuantize: its place, input `port` of the operation `consumer` (the layer or a carrier), and parameters.

    `padded` says whether zeros are put around its values before they reach the layer; the runtime cannot carry integers
    through that when zero is not the integer zero.
    """

    consumer: str
    port: int
    bounds: tuple[NDArray[np.float32], ...]
    levels: int
    padded: bool = False


@dataclass(frozen=True)
class QuantisedLayer:
    """What makes a layer int8: ranges on the way of its input, the node that computes its weights, its corrected bias."""

    ranges: tuple[Range, ...]
    weights: Any
    bias: NDArray[np.float32] | None


def read_quantised(model: openvino.Model, names: Mapping[str, str]) -> dict[str, QuantisedLayer]:
    """The int8 layers of a model from NNCF by name (`names`: operation to layer); one that NNCF left alone is missing."""
    layers: dict[str, QuantisedLayer] = {}
    for op in model.get_ordered_ops():
        name = op.get_friendly_name()
        if name in names and not _is(op.input_value(1).get_node(), "Constant"):
            ranges = tuple(_ranges(op, 0))
            if "Backprop" in op.get_type_name():
                ranges = tuple(replace(entry, bounds=_symmetric(entry.bounds)) for entry in ranges)
            if ranges:
                layers[names[name]] = QuantisedLayer(ranges, op.input_value(1).get_node(), _bias(op))
    return layers


def transplant(model: openvino.Model, names: Mapping[str, str], layers: Mapping[str, QuantisedLayer]) -> openvino.Model:
    """A copy of the float32 `model` in which `layers` are int8; no other layer's input, weights or bias changes."""
    copy = model.clone()
    operations = {op.get_friendly_name(): op for op in copy.get_ordered_ops()}
    chosen = {name for name, layer in names.items() if layer in layers}
    made: dict[tuple[str, int], Any] = {}
    for name in chosen:
        op, layer = operations[name], layers[names[name]]
        op.input(1).replace_source_output(copied(layer.weights).output(0))
        if layer.bias is not None:
            _set_bias(op, layer.bias)
        early = all(_leads_to(operations[entry.consumer], chosen) for entry in layer.ranges)
        if early and not any(entry.padded for entry in layer.ranges):
            for entry in layer.ranges:
                for port in _earliest(operations[entry.consumer].input(entry.port), entry.bounds, chosen):
                    _quantise_input(port, entry.bounds, entry.levels, made)
        else:  # another layer shares a carrier and must not see the rounding, or zeros are padded: quantise right before this one
            last = [entry for entry in layer.ranges if entry.consumer == name] or list(layer.ranges)
            _quantise_input(op.input(0), range_union(last), last[0].levels, made)
    copy.validate_nodes_and_infer_types()
    return copy


def keep_biases_apart(model: openvino.Model, operations: set[str]) -> openvino.Model:
    """A copy of `model` in which the runtime cannot fuse the bias of the matrix products `operations` into them.

    OpenVINO 2026.4.1 drops the attribute `precise` of a matrix product when it fuses a bias; a reshape in between that
    leads nowhere prevents it.
    """
    from openvino import opset13

    copy = model.clone()
    for op in copy.get_ordered_ops():
        if (
            op.get_friendly_name() not in operations
            or not _is(op, "MatMul")
            or op.output(0).get_partial_shape().rank.get_length() != 2
        ):
            continue
        port = bias_input(op)
        if port is None:
            continue
        add = port.get_node()
        bias = np.array(port.get_source_output().get_node().get_data(), np.float32).reshape(-1, 1)
        targets = list(add.output(0).get_target_inputs())
        lifted = opset13.reshape(op.output(0), opset13.constant(np.array([0, 0, 1])), True)
        total = opset13.add(lifted, opset13.constant(bias))
        flat = opset13.reshape(total, opset13.constant(np.array([0, -1])), True)
        flat.set_friendly_name(add.get_friendly_name())
        for target in targets:
            target.replace_source_output(flat.output(0))
    copy.validate_nodes_and_infer_types()
    return copy


def _ranges(op: Any, port: int, padded: bool = False) -> list[Range]:  # noqa: ANN401
    """Every FakeQuantize between an input of `op` and what computes it."""
    source = op.input_value(port).get_node()
    found = []
    if _is(source, "FakeQuantize"):
        bounds = tuple(np.asarray(source.input_value(i).get_node().get_data(), np.float32) for i in range(1, 5))
        found.append(Range(op.get_friendly_name(), port, bounds, int(source.get_attributes()["levels"]), padded))
        source = source.input_value(0).get_node()
    if source.get_type_name() in CARRIERS:
        for index in range(source.get_input_size()):
            found += _ranges(source, index, padded or _is(source, "Pad"))
    return found


def _symmetric(bounds: tuple[NDArray[np.float32], ...]) -> tuple[NDArray[np.float32], ...]:
    """The range in which zero is the integer zero, for 256 levels; as it was where nothing is below zero.

    OpenVINO 2026.4.1 has int8 kernels for transposed convolutions only without zero points.
    """
    low, high = bounds[:2]
    if np.all(low >= 0):
        return bounds
    largest = np.maximum(-low * np.float32(127 / 128), high)
    return (-largest * np.float32(128 / 127), largest) * 2


def _leads_to(op: Any, chosen: set[str]) -> bool:  # noqa: ANN401
    """Whether all that `op` computes ends, through carriers, in the operations `chosen`."""
    if op.get_friendly_name() in chosen:
        return True
    targets = [target.get_node() for output in op.outputs() for target in output.get_target_inputs()]
    return op.get_type_name() in CARRIERS and all(_leads_to(target, chosen) for target in targets)


def _earliest(port: Any, bounds: tuple[NDArray[np.float32], ...], chosen: set[str]) -> list[Any]:  # noqa: ANN401
    """Where the values of an input are before they are moved about, which costs less with integers: NNCF stops at some movers."""
    source = port.get_source_output().get_node()
    if source.get_type_name() not in MOVERS or not _leads_to(source, chosen) or any(bound.size > 1 for bound in bounds):
        return [port]
    return [earliest for each in moved_inputs(source) for earliest in _earliest(each, bounds, chosen)]


def _quantise_input(
    port: Any,  # noqa: ANN401
    bounds: tuple[NDArray[np.float32], ...],
    levels: int,
    made: dict[tuple[str, int], Any],
) -> None:
    """Put a FakeQuantize before an input; consumers of one value share it, so that the runtime makes it int8 once."""
    from openvino import opset13

    source = port.get_source_output()
    if _is(source.get_node(), "FakeQuantize"):
        return
    key = (source.get_node().get_friendly_name(), source.get_index())
    if key not in made:
        node = opset13.fake_quantize(source, *(opset13.constant(bound) for bound in bounds), levels)
        node.set_friendly_name(f"{key[0]}/quantised{key[1] or ''}")
        made[key] = node
    port.replace_source_output(made[key].output(0))


def range_union(ranges: list[Range]) -> tuple[NDArray[np.float32], ...]:
    """One range for values that have several."""
    if len(ranges) == 1:
        return ranges[0].bounds
    combine = (np.min, np.max, np.min, np.max)
    return tuple(
        np.asarray(function([function(entry.bounds[i]) for entry in ranges]), np.float32) for i, function in enumerate(combine)
    )


def bias_input(op: Any) -> Any | None:  # noqa: ANN401
    """The input that holds the constant added right after `op`."""
    targets = list(op.output(0).get_target_inputs())
    if len(targets) == 1 and _is(targets[0].get_node(), "Add"):
        for port in targets[0].get_node().inputs():
            if _is(port.get_source_output().get_node(), "Constant"):
                return port
    return None


def _bias(op: Any) -> NDArray[np.float32] | None:  # noqa: ANN401
    port = bias_input(op)
    return None if port is None else np.array(port.get_source_output().get_node().get_data(), np.float32)


def _set_bias(op: Any, bias: NDArray[np.float32]) -> None:  # noqa: ANN401
    from openvino import opset13

    port = bias_input(op)
    if port is not None:
        port.replace_source_output(opset13.constant(bias).output(0))


def copied(node: Any) -> Any:  # noqa: ANN401
    """A copy of a node that is computed from constants: int8 values, conversion, zero point, scale, reshape."""
    from openvino import opset13

    if _is(node, "Constant"):
        return opset13.constant(node.get_data(), node.get_element_type())
    sources = [copied(value.get_node()) for value in node.input_values()]
    kind = node.get_type_name()
    if kind == "Convert":
        return opset13.convert(sources[0], node.get_output_element_type(0).to_string())
    if kind in ("Multiply", "Subtract"):
        return getattr(opset13, kind.lower())(*sources)
    if kind == "FakeQuantize":
        return opset13.fake_quantize(*sources, int(node.get_attributes()["levels"]))
    if kind == "Reshape":
        return opset13.reshape(*sources, bool(node.get_attributes().get("special_zero", False)))
    raise TuningError(
        f"Layer weights computed by the operation {kind} cannot be quantised. Fold them into a constant before tuning."
    )


def _is(node: Any, kind: str) -> bool:  # noqa: ANN401
    return bool(node.get_type_name() == kind)
