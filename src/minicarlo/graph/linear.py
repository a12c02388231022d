"""Two linear layers with nothing in between: one matrix product.

A dense layer whose output is only reshaped and then convolved computes, per event, convolution(weights) times input: the
convolution of each of the dense layer's columns can be done once and for all. It pays when the dense layer has few inputs,
although the product has more weights to read: for CERN's generator 5 million multiply-accumulates in place of 58 million.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import NodeProto

from minicarlo.graph.convolution import Convolution, plain_convolution
from minicarlo.graph.model import Graph, attribute

LARGEST_PRODUCT = 2**24
"""Weights that a merged product may have: 64 MiB in float32."""


def merged_layers(graph: Graph) -> list[NodeProto]:
    """Convolutions that read the reshaped output of a dense layer, with nothing else in between."""
    return [node for node in graph.nodes if _dense_before(graph, node) is not None]


def merge_dense(graph: Graph, layer: str) -> bool:
    """Make the convolution `layer` and the dense layer before it one dense layer; False when that is not how they stand."""
    found = graph.find(layer, _dense_before)
    if found is None:
        return False
    node, (convolution, reshape, dense) = found
    transposed = bool(attribute(dense, "transB", 0))
    weights = graph.constants[dense.input[1]]
    grid = graph.shapes[reshape.output[0]][1:]
    columns = (weights.T if transposed else weights).astype(np.float64) * attribute(dense, "alpha", 1.0)
    merged = convolve(columns.reshape(-1, *grid), convolution)
    shape = merged.shape[1:]
    bias = np.zeros((1, *grid))
    if len(dense.input) > 2 and dense.input[2]:
        given = graph.constants[dense.input[2]].astype(np.float64).reshape(-1) * attribute(dense, "beta", 1.0)
        bias = np.broadcast_to(given, (int(np.prod(grid)),)).reshape(1, *grid)
    bias = convolve(bias, convolution)
    if convolution.bias is not None:
        bias += convolution.bias.astype(np.float64).reshape(-1, *(1,) * (len(shape) - 1))
    flat = merged.reshape(len(merged), -1).astype(weights.dtype)
    inputs = [
        dense.input[0],
        graph.constant(np.ascontiguousarray(flat.T), f"{layer}.weight"),
        graph.constant(bias.reshape(-1).astype(weights.dtype), f"{layer}.bias"),
    ]
    value = graph.add("Gemm", inputs, f"{dense.name}.{layer}", transB=1)
    target = graph.constant(np.array([-1, *shape]), f"{layer}/shape")
    graph.replace(node.output[0], graph.add("Reshape", [value, target], f"{layer}/reshape"))
    graph.refresh()
    return True


def convolve(values: NDArray[np.float64], convolution: Convolution) -> NDArray[np.float64]:
    """(N, in, *grid) to (N, out, *grid), without the bias: one matrix product for each row of the kernel's cells."""
    pads = [(0, 0), (0, 0), *zip(convolution.begins, convolution.ends, strict=True)]
    padded = np.moveaxis(np.pad(values, pads), 1, -1)
    sizes = [length - kernel + 1 for length, kernel in zip(padded.shape[1:-1], convolution.kernel, strict=True)]
    weights = np.moveaxis(convolution.weights.astype(np.float64), (0, 1), (-1, -2))  # (*kernel, in, out)
    total = np.zeros((len(values) * math.prod(sizes), weights.shape[-1]))
    rows = sliding_window_view(padded, convolution.kernel[-1], axis=-2).swapaxes(-1, -2)  # (N, *grid, kernel's last, in)
    for cell in itertools.product(*map(range, convolution.kernel[:-1])):
        window = tuple(slice(start, start + size) for start, size in zip(cell, sizes[:-1], strict=True))
        matrix = weights[cell].reshape(-1, weights.shape[-1])
        total += rows[:, *window].reshape(-1, len(matrix)) @ matrix
    return np.moveaxis(total.reshape(len(values), *sizes, -1), -1, 1)


def _dense_before(graph: Graph, node: NodeProto) -> tuple[Convolution, NodeProto, NodeProto] | None:
    convolution = plain_convolution(graph, node)
    reshape = graph.producer(node.input[0]) if convolution is not None else None
    if convolution is None or reshape is None or reshape.op_type != "Reshape" or min(convolution.begins + convolution.ends) < 0:
        return None
    dense = graph.producer(reshape.input[0])
    if dense is None or dense.op_type != "Gemm" or attribute(dense, "transA", 0):
        return None
    if any(name and name not in graph.constants for name in dense.input[1:]):
        return None
    if graph.only_consumer(dense.output[0]) is None or graph.only_consumer(reshape.output[0]) is None:
        return None
    inputs = graph.shapes[dense.input[0]][-1]
    outputs = int(np.prod(graph.shapes[node.output[0]][1:]))
    return (convolution, reshape, dense) if inputs * outputs <= LARGEST_PRODUCT else None
