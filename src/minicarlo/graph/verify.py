"""Whether two graphs compute the same, and whether a runtime's low-precision kernels compute what they should.

oneDNN on AMX returns values that have nothing to do with the result for bf16 and int8 convolutions with certain pairs of input
channels and kernel width, CERN's first layer among them, and does not say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from minicarlo.graph.model import Graph

Array = NDArray[np.float32]

ROUNDING = 1e-4
"""Largest difference that float32 sums in another order may make, relative to the largest cell of the shower."""

WRONG = 0.3
"""Relative error of one layer beyond which it is taken for wrong, not for coarse: bf16 makes about 0.003, int8 about 0.02."""

EVENTS = 4


@dataclass(frozen=True)
class SingleLayer:
    """One layer alone as a model: `latent` (batch, inputs) to `showers`, with the layer's own weights."""

    name: str
    plain: bytes
    quantised: bytes
    inputs: int


Run = Callable[[SingleLayer, str, Array], Array | None]
"""Runs a layer in "fp32", "bf16" or "int8": (layer, format, input) to output; None if it is not computed in that format."""


def deviation(expected: Array, found: Array, threshold: float) -> float:
    """Largest difference of a cell in units of the largest cell of its shower.

    A cell that is over the readout `threshold` in one of them only counts with its distance from the threshold. Infinite when
    the shapes differ or something is not finite.
    """
    if expected.shape != found.shape or not np.all(np.isfinite(found)):
        return math.inf
    difference = np.abs(found.astype(np.float64) - expected)
    flipped = (found == 0) != (expected == 0)
    difference[flipped] = np.abs(np.maximum(found, expected)[flipped] - threshold)
    cells = np.abs(expected).reshape(len(expected), -1)
    largest = np.maximum(cells.max(axis=1), threshold or 1e-12)
    return float((difference.reshape(len(expected), -1) / largest[:, None]).max(initial=0.0))


def single_layers(graph: Graph) -> Iterator[SingleLayer]:
    """Every convolution and matrix product with constant weights as a model of its own, plain and quantised to int8."""
    for node in graph.nodes:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or node.input[0] not in graph.shapes:
            continue
        batch, *shape = graph.shapes[node.input[0]]
        if batch != 1:  # the products of a fast convolution, one for each point
            continue
        if all(name in graph.constants or not name for name in node.input[1:]) and node.output[0] in graph.shapes:
            yield SingleLayer(node.name, _model(graph, node, shape, False), _model(graph, node, shape, True), math.prod(shape))


def wrong_formats(layer: SingleLayer, run: Run) -> tuple[str, ...]:
    """The formats in which `run` computes something else than `layer` does in fp32, on random numbers."""
    values = np.random.default_rng(1).normal(size=(EVENTS, layer.inputs)).astype(np.float32)
    true = run(layer, "fp32", values)
    if true is None:
        return ()
    made = {form: run(layer, form, values) for form in ("bf16", "int8")}
    return tuple(form for form, value in made.items() if value is not None and _error(true, value) > WRONG)


def _error(true: Array, made: Array) -> float:
    if not np.all(np.isfinite(made)):
        return math.inf
    difference, size = np.linalg.norm(made.astype(np.float64) - true), np.linalg.norm(true.astype(np.float64))
    return float(difference / size) if size else 0.0


def _model(graph: Graph, node: NodeProto, shape: Sequence[int], quantised: bool) -> bytes:
    weights = graph.constants[node.input[1]]
    constants = {"shape": np.array([-1, *shape]), "weights": weights}
    nodes = [  # every model takes an energy; here it is one
        helper.make_node("Mul", ["latent", "incident_energy"], ["values"], name="values"),
        helper.make_node("Reshape", ["values", "shape"], ["grid"], name="grid"),
    ]
    layer = NodeProto()
    layer.CopyFrom(node)
    layer.input[:] = ["grid", "weights", *node.input[2:]]
    layer.output[:] = ["showers"]
    constants |= {name: graph.constants[name] for name in node.input[2:] if name}
    if quantised:  # the largest of so many normal numbers is below five
        constants |= {
            "step": np.array(5 / 127, np.float32),
            "zero": np.array(0, np.int8),
            "weight_step": np.array(np.abs(weights).max() / 127 or 1.0, np.float32),
        }
        for name, step in (("grid", "step"), ("weights", "weight_step")):
            nodes.append(helper.make_node("QuantizeLinear", [name, step, "zero"], [f"{name}/int8"], name=f"{name}/q"))
            nodes.append(
                helper.make_node("DequantizeLinear", [f"{name}/int8", step, "zero"], [f"{name}/float"], name=f"{name}/d")
            )
        layer.input[0], layer.input[1] = "grid/float", "weights/float"
    nodes.append(layer)
    given = [
        helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["batch", math.prod(shape)]),
        helper.make_tensor_value_info("incident_energy", TensorProto.FLOAT, ["batch", 1]),
    ]
    made = [helper.make_tensor_value_info("showers", TensorProto.FLOAT, ["batch", *graph.shapes[node.output[0]][1:]])]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    network = helper.make_graph(nodes, node.name, given, made, tensors)
    model = helper.make_model(network, opset_imports=graph.opsets, ir_version=8)
    return bytes(model.SerializeToString())
