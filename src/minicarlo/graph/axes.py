"""The order of a grid's axes: which of them is innermost in memory decides how well the convolutions' kernels run.

All operations on one grid turn together; permutations appear where values enter and leave, and mostly vanish in what makes or
reads them (see `minicarlo.graph.normal_form`).
"""

from __future__ import annotations

import itertools

import numpy as np
from onnx import NodeProto

from minicarlo.graph.convolution import plain_convolution, upsampling, zero_padding
from minicarlo.graph.model import Constant, Graph, attribute, set_attribute
from minicarlo.graph.pointwise import change_constants, moving_input


def axis_orders(graph: Graph) -> list[tuple[int, ...]]:
    """Every other order of the axes of the grid that the convolutions of most dimensions work on; empty without one to choose."""
    rank = max((graph.rank(node.output[0]) for node in _region(graph)), default=0) - 2
    orders = list(itertools.permutations(range(rank)))
    return orders[1:]


def turn_axes(graph: Graph, order: tuple[int, ...]) -> bool:
    """Have axis i of the grid be what axis `order[i]` was; False without such a grid."""
    region = [node for node in _region(graph) if graph.rank(node.output[0]) == len(order) + 2]
    if not region:
        return False
    turn = [0, 1, *(2 + axis for axis in order)]
    back = list(np.argsort(turn))
    inside = {node.output[0] for node in region}
    outer = {id(node) for node in graph.nodes} - {id(node) for node in region}
    entering = dict.fromkeys(name for node in region for name in _grids(graph, node) if name not in inside)
    for name in entering:
        turned = graph.add("Transpose", [name], f"{name}/turn", perm=turn)
        for node in region:
            for place, source in enumerate(node.input):
                if source == name:
                    node.input[place] = turned
    for node in region:
        _turn(graph, node, turn)
    for name in inside:
        readers = [node for node in graph.consumers(name) if id(node) in outer]
        if not readers and name not in graph.outputs:
            continue
        made = graph.add("Transpose", [name], f"{name}/turn", perm=back)
        for node in readers:
            for place, source in enumerate(node.input):
                if source == name:
                    node.input[place] = made
        if name in graph.outputs:
            raise ValueError("a grid is given out by the graph as it is")
    graph.refresh()
    return True


def _region(graph: Graph) -> list[NodeProto]:
    """All operations on a grid that can be turned, if at least one convolution is among them."""
    found = [node for node in graph.nodes if _can_turn(graph, node)]
    return found if any(node.op_type == "Conv" for node in found) else []


def _can_turn(graph: Graph, node: NodeProto) -> bool:
    if graph.rank(node.output[0]) < 4 or node.output[0] in graph.outputs:
        return False
    if plain_convolution(graph, node) is not None or zero_padding(graph, node) is not None:
        return True
    if upsampling(graph, node) is not None:
        return not attribute(node, "axes")
    return moving_input(graph, node) is not None and graph.rank(_grids(graph, node)[0]) == graph.rank(node.output[0])


def _grids(graph: Graph, node: NodeProto) -> list[str]:
    """The inputs that hold the grid."""
    name = moving_input(graph, node)
    return [node.input[0] if name is None else name]


def _turn(graph: Graph, node: NodeProto, turn: list[int]) -> None:
    def turned(value: Constant) -> Constant:
        return value.transpose(turn)

    axes = turn[2:]
    if node.op_type == "Conv":
        weights = graph.constants[node.input[1]]
        node.input[1] = graph.constant(np.ascontiguousarray(weights.transpose(turn)), node.input[1])
        rank = len(axes)
        pads = list(attribute(node, "pads", [0] * 2 * rank))
        set_attribute(node, "kernel_shape", [weights.shape[axis] for axis in axes])
        set_attribute(node, "pads", [pads[axis - 2] for axis in axes] + [pads[rank + axis - 2] for axis in axes])
    elif node.op_type == "Pad":
        pads_of = zero_padding(graph, node)
        assert pads_of is not None
        pads = [part[axis] for part in pads_of for axis in turn]
        inputs = [node.input[0], graph.constant(np.array(pads), node.input[1]), node.input[2] if len(node.input) > 2 else ""]
        del node.input[:]
        node.input.extend(inputs)
    elif node.op_type in ("Resize", "Upsample"):
        for place, name in enumerate(node.input[1:], start=1):
            if name in graph.constants and graph.constants[name].size == len(turn):
                node.input[place] = graph.constant(graph.constants[name][turn], name)
    elif node.op_type != "BatchNormalization":
        change_constants(graph, node, turned)
