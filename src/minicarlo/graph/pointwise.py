"""Operations that act on every element by itself, and how they pass over operations that only move elements."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import NodeProto

from minicarlo.graph.model import Constant, Graph

UNARY = frozenset(
    """Abs Cast Ceil Clip Cos Elu Erf Exp Floor Gelu HardSigmoid HardSwish LeakyRelu Log Neg Reciprocal Relu Round Selu Sigmoid
    Sign Sin Softplus Softsign Sqrt Tan Tanh ThresholdedRelu""".split()
)
BINARY = frozenset("Add Div Max Min Mul PRelu Pow Sub".split())

KEEP_ZERO = frozenset(
    "Abs Ceil Elu Erf Floor Gelu HardSwish LeakyRelu Neg Relu Round Selu Sign Sin Softsign Sqrt Tan Tanh".split()
)
"""Operations that leave zero at zero: these may also pass over padding with zeros."""


def moving_input(graph: Graph, node: NodeProto) -> str | None:
    """The one computed input of a point-wise `node` whose other inputs are constants that broadcast to it; None otherwise."""
    if node.op_type in UNARY or node.op_type == "BatchNormalization":
        constants = [name for name in node.input[1:] if name]
        plain = all(name in graph.constants for name in constants) and len(node.output) == 1
        return str(node.input[0]) if plain else None
    if node.op_type not in BINARY or len(node.input) != 2:
        return None
    computed: list[str] = [name for name in node.input if name not in graph.constants]
    if len(computed) != 1 or graph.shapes.get(computed[0], ()) != graph.shapes.get(node.output[0]):
        return None
    return computed[0]


def pointwise_after(graph: Graph, value: str) -> list[NodeProto]:
    """The point-wise operations on `value`, one after another, each the only reader of what it reads."""
    found = []
    while (reader := graph.only_consumer(value)) is not None and moving_input(graph, reader) == value:
        found.append(reader)
        value = reader.output[0]
    return found


def keeps_zero(graph: Graph, node: NodeProto) -> bool:
    """Whether zero becomes zero."""
    if node.op_type in KEEP_ZERO:
        return True
    if node.op_type == "Mul":
        return True
    return (node.op_type == "Div" and node.input[1] in graph.constants) or (
        node.op_type == "PRelu" and node.input[1] in graph.constants
    )


def same_everywhere(graph: Graph, node: NodeProto) -> bool:
    """Whether a point-wise `node` does the same in every cell of the grid: its constants are one number, or one per channel."""
    rank = graph.rank(node.output[0])
    if node.op_type not in BINARY:
        return True
    for name in node.input:
        if name in graph.constants:
            shape = (1,) * (rank - graph.constants[name].ndim) + graph.constants[name].shape
            if any(length != 1 for length in (shape[0], *shape[2:])):
                return False
    return True


def change_constants(graph: Graph, node: NodeProto, change: Callable[[Constant], Constant]) -> None:
    """Put `change` of each constant in place of it: a full-rank array (1, channels or 1, ...), or (channels,) for norms.

    Single numbers (and what stands for all channels and cells alike) stay as they are.
    """
    rank = graph.rank(node.output[0])
    norm = node.op_type == "BatchNormalization"
    for place, name in enumerate(node.input):
        if name not in graph.constants or node.op_type in UNARY or (graph.constants[name].size == 1 and not norm):
            continue
        value = graph.constants[name]
        shape = (1, -1) + (1,) * (rank - 2) if norm else (1,) * (rank - value.ndim) + value.shape
        changed = change(value.reshape(shape))
        node.input[place] = graph.constant(np.ascontiguousarray(changed.reshape(-1) if norm else changed), name)
