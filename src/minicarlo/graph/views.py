"""A dense layer whose result several readers see from different sides: a layer for each, its rows in the order of that view.

A permutation that follows a matrix product and a reshape becomes an order of the product's rows (`minicarlo.graph.normal_form`),
but only when nothing else reads them. With a copy of the product for each reader every permutation goes, and each copy can be
merged with the convolution that reads it (`minicarlo.graph.linear`). It pays where the product is small: in CERN's three-branch
network its 25,000 multiply-accumulates are made three times, out of a billion.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from minicarlo.graph.model import Graph, attribute


def shared_products(graph: Graph) -> list[NodeProto]:
    """Dense layers whose reshaped result has several readers, at least one of which permutes it."""
    return [node for node in graph.nodes if _readers(graph, node)]


def split_product(graph: Graph, layer: str) -> bool:
    """Give every reader of the dense layer `layer` a copy of its own; False when that is not how they stand."""
    node = next((each for each in shared_products(graph) if each.name == layer), None)
    if node is None:
        return False
    reshape = graph.consumers(node.output[0])[0]
    target = graph.constant(np.array([-1, *graph.shapes[reshape.output[0]][1:]]), f"{layer}/shape")
    given = {name: attribute(node, name) for name in ("alpha", "beta", "transA", "transB")}
    attributes = {name: value for name, value in given.items() if value is not None}
    for reader in _readers(graph, node)[1:]:
        made = graph.add("Gemm", node.input, f"{layer}.view", **attributes)
        made = graph.add("Reshape", [made, target], f"{layer}/view")
        for place, name in enumerate(reader.input):
            if name == reshape.output[0]:
                reader.input[place] = made
    graph.refresh()
    return True


def _readers(graph: Graph, node: NodeProto) -> list[NodeProto]:
    if node.op_type != "Gemm" or any(name and name not in graph.constants for name in node.input[1:]):
        return []
    reshape = graph.only_consumer(node.output[0])
    if reshape is None or reshape.op_type != "Reshape" or reshape.output[0] in graph.outputs:
        return []
    if graph.shapes.get(reshape.output[0], ())[:1] != (1,):
        return []
    readers = graph.consumers(reshape.output[0])
    turned = any(each.op_type == "Transpose" and list(attribute(each, "perm", [1]))[0] == 0 for each in readers)
    return readers if len(readers) > 1 and turned else []
