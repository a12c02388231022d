"""A tiny but complete `clic-ecal` surrogate, built node by node, for the tests of every stage after training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from minicarlo.graph.fast import make_fast
from minicarlo.graph.model import Graph, set_attribute
from minicarlo.surrogate import Surrogate, save_surrogate

LATENT_SIZE = 16
LOW_MEV = 1_000.0
HIGH_MEV = 100_000.0
THRESHOLD_MEV = 0.05
SAMPLING_FRACTION = 0.02

# Nodes whose number format a plan may choose, in graph order.
LAYERS = ("energies.0", "energies.1", "shape.dense", "shape.conv1", "shape.conv2", "shape.conv3")


def small_onnx(seed: int = 0, width: int = 16) -> bytes:
    """ONNX bytes of a random-weight conditional generator: (batch, 16), (batch, 1) MeV -> (batch, 25, 25, 25) MeV.

    Layer energies (softmax of two Gemm layers, times the incident energy and a sampling fraction) times a normalised
    lateral picture (Gemm, nearest upsampling, three Conv layers with depth as channels), then the readout threshold.
    """
    random = np.random.default_rng(seed)
    weights: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: np.ndarray | float | list[int]) -> str:
        array = np.asarray(value)
        weights.append(numpy_helper.from_array(array if array.dtype.kind == "i" else array.astype(np.float32), name))
        return name

    def node(operator: str, inputs: list[str], name: str, **attributes: object) -> str:
        nodes.append(helper.make_node(operator, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def gemm(source: str, name: str, inputs: int, outputs: int) -> str:
        weight = constant(f"{name}.weight", random.normal(0, 1 / np.sqrt(inputs), (outputs, inputs)))
        bias = constant(f"{name}.bias", random.normal(0, 0.05, outputs))
        return node("Gemm", [source, weight, bias], name, transB=1)

    def conv(source: str, name: str, inputs: int, outputs: int) -> str:
        weight = constant(f"{name}.weight", random.normal(0, 1 / np.sqrt(9 * inputs), (outputs, inputs, 3, 3)))
        bias = constant(f"{name}.bias", random.normal(0, 0.05, outputs))
        return node("Conv", [source, weight, bias], name, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    logarithm = node("Log", ["incident_energy"], "condition.log")
    centred = node("Sub", [logarithm, constant("condition.mean", [9.2])], "condition.centre")
    condition = node("Concat", ["latent", centred], "condition.concat", axis=1)

    hidden = node("Relu", [gemm(condition, "energies.0", LATENT_SIZE + 1, 32)], "energies.relu")
    fractions = node("Softmax", [gemm(hidden, "energies.1", 32, 25)], "energies.softmax", axis=1)
    visible = node("Mul", ["incident_energy", constant("energies.sampling", [SAMPLING_FRACTION])], "energies.visible")
    layer_energy = node("Mul", [fractions, visible], "energies.layer")
    layer_energy = node("Reshape", [layer_energy, constant("energies.shape", [-1, 25, 1, 1])], "energies.reshape")

    picture = node("Relu", [gemm(condition, "shape.dense", LATENT_SIZE + 1, width * 25)], "shape.relu0")
    picture = node("Reshape", [picture, constant("shape.grid", [-1, width, 5, 5])], "shape.reshape")
    picture = node(
        "Resize",
        [picture, "", constant("shape.scales", [1.0, 1.0, 5.0, 5.0])],
        "shape.upsample",
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    picture = node("Relu", [conv(picture, "shape.conv1", width, width)], "shape.relu1")
    picture = node("Relu", [conv(picture, "shape.conv2", width, width)], "shape.relu2")
    picture = conv(picture, "shape.conv3", width, 25)
    axis = np.arange(25) - 12.0
    cone = -0.25 * np.sqrt(axis[:, None] ** 2 + axis[None, :] ** 2)
    picture = node("Add", [picture, constant("shape.cone", cone[None, None])], "shape.radial")
    picture = node("Exp", [picture], "shape.exp")
    total = node("ReduceSum", [picture, constant("shape.axes", [2, 3])], "normalise.sum", keepdims=1)
    picture = node("Div", [picture, total], "normalise.divide")
    cells = node("Mul", [picture, layer_energy], "normalise.scale")
    above = node("Greater", [cells, constant("threshold.value", [THRESHOLD_MEV])], "threshold.compare")
    nodes.append(helper.make_node("Where", [above, cells, constant("threshold.zero", [0.0])], ["showers"], name="showers"))

    graph = helper.make_graph(
        nodes,
        "small",
        [
            helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["batch", LATENT_SIZE]),
            helper.make_tensor_value_info("incident_energy", TensorProto.FLOAT, ["batch", 1]),
        ],
        [helper.make_tensor_value_info("showers", TensorProto.FLOAT, ["batch", 25, 25, 25])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def make_small_surrogate(path: Path, seed: int = 0, width: int = 16) -> Surrogate:
    """Write the tiny surrogate to the directory `path` and return it loaded."""
    return save_surrogate(
        path,
        small_onnx(seed, width),
        name="small",
        generator="shower2d",
        conditions={"incident_energy": {"unit": "MeV", "low": LOW_MEV, "high": HIGH_MEV}},
        latent_size=LATENT_SIZE,
        sample_shape=(25, 25, 25),
        unit="MeV",
        detector="clic-ecal",
        readout_threshold_mev=THRESHOLD_MEV,
        training={"note": "random weights, for tests"},
    )


def with_fast_convolutions(surrogate: Surrogate, *layers: str) -> Surrogate:
    """The surrogate, in memory, with `layers` as fast convolutions, whether or not that pays."""
    graph = Graph(surrogate.onnx)
    for layer in layers:
        assert make_fast(graph, layer)
    return dataclasses.replace(surrogate, onnx=graph.serialise())


def with_padding_apart(surrogate: Surrogate, path: Path, layer: str = "shape.conv2") -> Surrogate:
    """The surrogate with the padding of a convolution as a node of its own, which its normal form has not, written to `path`."""
    graph = Graph(surrogate.onnx)
    node = next(node for node in graph.nodes if node.name == layer)
    begins_and_ends = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    node.input[0] = graph.add("Pad", [node.input[0], graph.constant(begins_and_ends, "pads")], "pad")
    set_attribute(node, "pads", [0, 0, 0, 0])
    graph.refresh()
    return surrogate.with_graph(path, graph.serialise(), {})
