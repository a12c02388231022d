"""Rewrites that never cost anything, whatever the machine: fewer operations, on smaller grids, for the same values.

- a `Pad` with zeros before a convolution becomes padding of that convolution;
- point-wise operations move before the upsampling, and before the padding when they keep zero;
- a norm right after a convolution or matrix product becomes part of its weights;
- choosing the only channel there is becomes a reshape; permutations in a row become one, or none; one that follows a matrix
  product and a reshape becomes an order of the product's rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import NodeProto

from minicarlo.graph.convolution import plain_convolution, set_convolution, upsampling, zero_padding
from minicarlo.graph.model import Constant, Graph, attribute, set_attribute
from minicarlo.graph.pointwise import keeps_zero, moving_input, same_everywhere

MOST_ROUNDS = 1_000


def normalise(graph: Graph) -> None:
    """Apply these rewrites until there is nothing left to do."""
    rules = (
        _merge_padding,
        _raise_pointwise,
        _fold_norm,
        _squeeze,
        _merge_turns,
        _drop_turn,
        _lower_turn,
        _merge_shapes,
        _reorder_rows,
    )
    for _ in range(MOST_ROUNDS):
        if not any(_first(graph, rule) for rule in rules):
            return


def _first(graph: Graph, rule: Callable[[Graph, NodeProto], bool]) -> bool:
    """Apply `rule` to the first node that it fits."""
    for node in graph.nodes:
        if rule(graph, node):
            graph.refresh()
            return True
    return False


def _merge_padding(graph: Graph, node: NodeProto) -> bool:
    convolution = plain_convolution(graph, node)
    pad = graph.producer(node.input[0]) if convolution is not None else None
    pads = None if pad is None else zero_padding(graph, pad)
    if convolution is None or pad is None or pads is None or any(pads[0][:2] + pads[1][:2]):
        return False
    begins, ends = convolution.begins + convolution.ends, pads[0][2:] + pads[1][2:]
    set_attribute(node, "pads", [a + b for a, b in zip(begins, ends, strict=True)])
    set_attribute(node, "auto_pad", "NOTSET")
    node.input[0] = pad.input[0]
    return True


def _raise_pointwise(graph: Graph, node: NodeProto) -> bool:
    """source -> mover -> node becomes source -> node -> mover."""
    value = moving_input(graph, node)
    mover = None if value is None else graph.producer(value)
    if value is None or mover is None or graph.only_consumer(value) is None or not same_everywhere(graph, node):
        return False
    upsampled = upsampling(graph, mover) is not None
    padded = zero_padding(graph, mover) is not None and keeps_zero(graph, node) and not _reaches_channels(graph, mover)
    if not (upsampled or padded) or node.output[0] in graph.outputs or node.op_type == "Cast":
        return False
    result = node.output[0]
    node.input[list(node.input).index(value)] = mover.input[0]
    node.output[0] = graph.free(f"{node.name}/output")
    for reader in graph.consumers(result):
        for place, name in enumerate(reader.input):
            if name == result:
                reader.input[place] = value
    mover.input[0] = node.output[0]
    return True


def _reaches_channels(graph: Graph, pad: NodeProto) -> bool:
    pads = zero_padding(graph, pad)
    return pads is None or any(pads[0][:2] + pads[1][:2])


def _fold_norm(graph: Graph, node: NodeProto) -> bool:
    if node.op_type != "BatchNormalization" or attribute(node, "training_mode", 0) or moving_input(graph, node) is None:
        return False
    layer = graph.producer(node.input[0])
    if layer is None or graph.only_consumer(node.input[0]) is None or plain_convolution(graph, layer) is None:
        return False
    convolution = plain_convolution(graph, layer)
    assert convolution is not None
    gain, offset = norm_as_affine(graph, node)
    weights = convolution.weights * gain.reshape(-1, *(1,) * (convolution.weights.ndim - 1))
    bias = offset if convolution.bias is None else offset + gain * convolution.bias
    kind = convolution.weights.dtype
    folded = type(convolution)(weights.astype(kind), bias.astype(kind), convolution.begins, convolution.ends)
    set_convolution(graph, layer, layer.input[0], folded)
    graph.replace(node.output[0], layer.output[0])
    return True


def norm_as_affine(graph: Graph, node: NodeProto) -> tuple[Constant, Constant]:
    """Factor and offset per channel of a batch norm, in float64."""
    scale, bias, mean, variance = (graph.constants[name].astype(np.float64) for name in node.input[1:5])
    gain = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return gain, bias - gain * mean


def _squeeze(graph: Graph, node: NodeProto) -> bool:
    """`Gather` of the only element of an axis."""
    if node.op_type != "Gather" or node.input[1] not in graph.constants or graph.constants[node.input[1]].ndim != 0:
        return False
    shape = graph.shapes.get(node.input[0], ())
    axis = attribute(node, "axis", 0) % max(len(shape), 1)
    if axis == 0 or shape[axis] != 1:
        return False
    _become(graph, node, "Squeeze", [node.input[0], graph.constant(np.array([axis]), f"{node.name}/axes")])
    return True


def _merge_turns(graph: Graph, node: NodeProto) -> bool:
    before = graph.producer(node.input[0]) if node.op_type == "Transpose" else None
    if before is None or before.op_type != "Transpose":
        return False
    first, second = attribute(before, "perm"), attribute(node, "perm")
    node.input[0] = before.input[0]
    set_attribute(node, "perm", [first[axis] for axis in second])
    return True


def _drop_turn(graph: Graph, node: NodeProto) -> bool:
    """A permutation that leaves everything where it is, or moves axes of length one only."""
    if node.op_type != "Transpose" or node.output[0] in graph.outputs:
        return False
    perm, shape = list(attribute(node, "perm")), graph.shapes.get(node.input[0], ())
    if perm == sorted(perm):
        graph.replace(node.output[0], node.input[0])
        return True
    moved = [axis for axis in perm if axis == 0 or shape[axis] != 1]
    if perm[0] != 0 or shape[:1] != (1,) or moved != sorted(moved):  # elsewhere the batch, too, is an axis of length one
        return False
    target = graph.constant(np.array([-1, *graph.shapes[node.output[0]][1:]]), f"{node.name}/shape")
    _become(graph, node, "Reshape", [node.input[0], target])
    return True


def _lower_turn(graph: Graph, node: NodeProto) -> bool:
    """Transpose -> node becomes node -> Transpose for what acts on every element by itself, and for dropping an axis."""
    if node.output[0] in graph.outputs:
        return False
    squeezes = node.op_type == "Squeeze" and len(node.input) > 1 and node.input[1] in graph.constants
    value = node.input[0] if squeezes else moving_input(graph, node)
    turn = None if value is None else graph.producer(value)
    if turn is None or value is None or turn.op_type != "Transpose" or graph.only_consumer(value) is None:
        return False
    if not squeezes and (
        node.op_type == "BatchNormalization" or any(graph.constants[n].size > 1 for n in _constants(graph, node))
    ):
        return False
    perm = list(attribute(turn, "perm"))
    if squeezes:
        axes = {int(axis) % len(perm) for axis in graph.constants[node.input[1]]}
        if 0 in axes:
            return False
        dropped = {perm[axis] for axis in axes}
        left = [axis for axis in range(len(perm)) if axis not in dropped]
        order = [left.index(perm[axis]) for axis in range(len(perm)) if axis not in axes]
        node.input[1] = graph.constant(np.array(sorted(dropped)), f"{node.name}/axes")
    else:
        order = perm
    result = node.output[0]
    node.input[list(node.input).index(value)] = turn.input[0]
    node.output[0] = graph.free(f"{node.name}/output")
    turned = graph.add("Transpose", [node.output[0]], turn.name, perm=order)
    graph.replace(result, turned)
    return True


def _merge_shapes(graph: Graph, node: NodeProto) -> bool:
    """Two reshapes in a row, the second of which says all lengths."""
    before = graph.producer(node.input[0]) if node.op_type == "Reshape" else None
    target = graph.constants.get(node.input[1]) if before is not None else None
    if before is None or before.op_type != "Reshape" or target is None or np.any(target == 0):
        return False
    node.input[0] = before.input[0]
    return True


def _reorder_rows(graph: Graph, node: NodeProto) -> bool:
    """Gemm -> Reshape -> Transpose, the batch staying first: the product's rows in another order, and a reshape."""
    reshape = graph.producer(node.input[0]) if node.op_type == "Transpose" else None
    gemm = None if reshape is None or reshape.op_type != "Reshape" else graph.producer(reshape.input[0])
    if reshape is None or gemm is None or gemm.op_type != "Gemm" or gemm.input[1] not in graph.constants:
        return False
    if graph.only_consumer(gemm.output[0]) is None or graph.only_consumer(reshape.output[0]) is None:
        return False
    perm, shape = list(attribute(node, "perm")), graph.shapes.get(reshape.output[0], ())
    if perm[0] != 0 or not shape or shape[0] != 1 or node.output[0] in graph.outputs:
        return False
    rows = np.arange(int(np.prod(shape[1:]))).reshape(shape[1:]).transpose([axis - 1 for axis in perm[1:]]).reshape(-1)
    weights = graph.constants[gemm.input[1]]
    turned = weights[rows] if attribute(gemm, "transB", 0) else weights[:, rows]
    gemm.input[1] = graph.constant(np.ascontiguousarray(turned), gemm.input[1])
    if len(gemm.input) > 2 and gemm.input[2]:
        if gemm.input[2] not in graph.constants:
            return False
        bias = np.broadcast_to(graph.constants[gemm.input[2]].reshape(-1), (len(rows),))
        gemm.input[2] = graph.constant(np.ascontiguousarray(bias[rows]), gemm.input[2])
    target = graph.constant(np.array([-1, *graph.shapes[node.output[0]][1:]]), f"{reshape.name}/shape")
    _become(graph, node, "Reshape", [gemm.output[0], target])
    return True


def _constants(graph: Graph, node: NodeProto) -> list[str]:
    return [name for name in node.input if name in graph.constants]


def _become(graph: Graph, node: NodeProto, operator: str, inputs: list[str]) -> None:
    """Turn a node into another one that makes the same value."""
    node.op_type = operator
    del node.input[:], node.attribute[:]
    node.input.extend(inputs)
