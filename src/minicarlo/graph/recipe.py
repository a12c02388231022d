"""Which rewrites a graph offers, by name, and a recipe of them applied from the start."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from onnx import NodeProto

from minicarlo.graph.axes import axis_orders, turn_axes
from minicarlo.graph.fast import fast_layers, make_fast
from minicarlo.graph.linear import merge_dense, merged_layers
from minicarlo.graph.model import Graph, attribute
from minicarlo.graph.normal_form import normalise
from minicarlo.graph.phases import phased_layers, split_phases
from minicarlo.graph.subpixel import (
    fold_shuffle,
    fold_transposed,
    fold_upsampling,
    shuffled_layers,
    transposed_layers,
    upsampled_layers,
)
from minicarlo.graph.views import shared_products, split_product

Kind = Literal["upsampling", "transposed", "shuffle", "phases", "axes", "views", "dense", "fast"]

KINDS: tuple[Kind, ...] = ("upsampling", "transposed", "shuffle", "phases", "axes", "views", "dense", "fast")
"""In the order in which they are tried."""

_LAYERS: dict[Kind, tuple[Callable[[Graph], list[NodeProto]], Callable[[Graph, str], bool]]] = {
    "upsampling": (upsampled_layers, fold_upsampling),
    "transposed": (transposed_layers, fold_transposed),
    "shuffle": (shuffled_layers, fold_shuffle),
    "phases": (phased_layers, split_phases),
    "views": (shared_products, split_product),
    "dense": (merged_layers, merge_dense),
    "fast": (fast_layers, make_fast),
}


@dataclass(frozen=True)
class Rewrite:
    """One rewrite: its kind and the layer it is about, or the order of the axes ("2,0,1")."""

    kind: Kind
    target: str


def rewrites(graph: Graph, kind: Kind) -> list[Rewrite]:
    """What of one kind can be done to a graph."""
    if kind == "axes":
        return [Rewrite(kind, ",".join(map(str, order))) for order in axis_orders(graph)]
    return [Rewrite(kind, node.name) for node in _LAYERS[kind][0](graph)]


def rewritten(graph: Graph, recipe: Iterable[Rewrite]) -> Graph:
    """A normalised copy of `graph` with the rewrites of `recipe`, in order; those that do not fit are passed over."""
    made = graph.copy()
    normalise(made)
    for rewrite in recipe:
        if rewrite.kind == "axes":
            turn_axes(made, tuple(int(axis) for axis in rewrite.target.split(",")))
        else:
            _LAYERS[rewrite.kind][1](made, rewrite.target)
        normalise(made)
    return made


def multiply_accumulates(graph: Graph) -> int:
    """Multiply-accumulates of all convolutions and matrix products for one event."""
    return sum(_macs(graph, node) for node in graph.nodes)


def _macs(graph: Graph, node: NodeProto) -> int:
    if any(name and name not in graph.shapes for name in (*node.input, *node.output)):
        return 0
    if node.op_type in ("Gemm", "MatMul"):
        first = graph.shapes[node.input[0]]
        return math.prod(graph.shapes[node.output[0]]) * first[-2 if attribute(node, "transA", 0) else -1]
    if node.op_type not in ("Conv", "ConvTranspose"):
        return 0
    weights = graph.shapes[node.input[1]]
    grid = graph.shapes[node.output[0] if node.op_type == "Conv" else node.input[0]]
    return math.prod(grid) * math.prod(weights[1:])
