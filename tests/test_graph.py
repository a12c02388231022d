"""Every rewrite of a graph computes what the graph computed, up to rounding, for any shapes and weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from minicarlo.graph.axes import axis_orders, turn_axes
from minicarlo.graph.linear import merge_dense, merged_layers
from minicarlo.graph.model import Graph
from minicarlo.graph.normal_form import normalise
from minicarlo.graph.subpixel import fold_shuffle, fold_upsampling, shuffled_layers, upsampled_layers

LATENTS = 6
ROUNDING = 2e-5  # float32 sums of at most a few thousand products of order one, in another order, through up to three layers


class Network:
    """A random network, layer after layer."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.value = "latent"

    def constant(self, value: np.ndarray) -> str:
        name = f"constant{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def normal(self, *shape: int, scale: float = 1.0) -> str:
        return self.constant(self.random.normal(0, scale, shape).astype(np.float32))

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: object) -> None:
        output = f"value{len(self.nodes)}"
        name = name or f"{operator}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, [self.value, *inputs], [output], name=name, **attributes))
        self.value = output

    def dense(self, grid: tuple[int, ...], channels: int) -> None:
        outputs = channels * int(np.prod(grid))
        self.add("Gemm", self.normal(outputs, LATENTS), self.normal(outputs), name="dense", transB=1)
        self.add("Reshape", self.constant(np.array([-1, *grid, channels])))
        self.add("Transpose", perm=[0, len(grid) + 1, *range(1, len(grid) + 1)])

    def convolution(self, name: str, inputs: int, outputs: int, kernel: tuple[int, ...], pads: list[int], bias: bool) -> None:
        weights = self.normal(outputs, inputs, *kernel, scale=1 / np.sqrt(inputs * np.prod(kernel)))
        self.add("Conv", weights, *([self.normal(outputs)] if bias else []), name=name, kernel_shape=list(kernel), pads=pads)

    def upsample(self, factors: tuple[int, ...], centres: bool) -> None:
        modes = ("half_pixel", "round_prefer_floor") if centres else ("asymmetric", "floor")
        scales = self.constant(np.array([1, 1, *factors], np.float32))
        self.add("Resize", "", scales, mode="nearest", coordinate_transformation_mode=modes[0], nearest_mode=modes[1])

    def pad(self, pads: list[int]) -> None:
        rank = len(pads) // 2
        self.add("Pad", self.constant(np.array([0, 0, *pads[:rank], 0, 0, *pads[rank:]])))

    def pointwise(self, kind: str, channels: int, rank: int) -> None:
        if kind == "norm":
            parts = [self.normal(channels) for _ in range(3)]
            variance = self.constant(self.random.uniform(0.5, 2, channels).astype(np.float32))
            self.add("BatchNormalization", *parts, variance, epsilon=1e-3)
        elif kind in ("Add", "Mul"):
            self.add(kind, self.normal(channels, *(1,) * rank))
        elif kind == "LeakyRelu":
            self.add(kind, alpha=0.3)
        elif kind != "none":
            self.add(kind)

    def model(self) -> bytes:
        self.nodes[-1].output[0] = "showers"
        given = helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["batch", LATENTS])
        made = helper.make_tensor_value_info("showers", TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "random", [given], [made], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return bytes(model.SerializeToString())


def run(model: bytes) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    latent = np.random.default_rng(9).normal(size=(3, LATENTS)).astype(np.float32)
    return onnxruntime.InferenceSession(model, options).run(None, {"latent": latent})[0]


def assert_same(graph: Graph, model: bytes) -> None:
    expected, found = run(model), run(graph.serialise())
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= ROUNDING * max(1, np.abs(expected).max())


def kinds(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.nodes]


POINTWISE = st.sampled_from(["none", "Relu", "LeakyRelu", "norm", "Add", "Mul", "Tanh"])


@st.composite
def upsampled(draw: st.DrawFn) -> tuple[Network, int]:
    """A dense layer, then upsampling and a convolution with all that may stand around and between them."""
    rank = draw(st.integers(1, 3))
    sizes = st.tuples(*[st.integers(1, 4)] * rank)
    grid, factors = draw(sizes), draw(st.tuples(*[st.integers(1, 3)] * rank).filter(lambda f: max(f) > 1))
    pads = draw(st.lists(st.integers(0, 3), min_size=2 * rank, max_size=2 * rank))
    apart = draw(st.booleans())
    extra = draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank)) if apart else [0] * 2 * rank
    fine = [
        f * n + pads[i] + pads[rank + i] + extra[i] + extra[rank + i] for i, (f, n) in enumerate(zip(factors, grid, strict=True))
    ]
    kernel = tuple(draw(st.integers(1, min(5, length))) for length in fine)
    network = Network(draw(st.integers(0, 2**16)))
    inputs, outputs = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    network.dense(grid, inputs)
    network.pointwise(draw(POINTWISE), inputs, rank)
    network.upsample(factors, draw(st.booleans()))
    network.pointwise(draw(POINTWISE), inputs, rank)
    if apart:
        network.pad(extra)
        network.pointwise(draw(st.sampled_from(["none", "LeakyRelu", "Mul"])), inputs, rank)
    network.convolution("conv", inputs, outputs, kernel, pads, draw(st.booleans()))
    network.pointwise(draw(POINTWISE), outputs, rank)
    sizes_now = [length - k + 1 for length, k in zip(fine, kernel, strict=True)]
    if draw(st.booleans()) and outputs > 1:  # a map: another number in each cell
        network.add("Add", network.normal(1, outputs, *sizes_now))
    if draw(st.booleans()):
        second = tuple(draw(st.integers(1, min(3, length))) for length in sizes_now)
        more = draw(st.lists(st.integers(0, 1), min_size=2 * rank, max_size=2 * rank))
        network.convolution("second", outputs, 2, second, more, True)
    network.add("Abs")
    return network, rank


@settings(max_examples=60, deadline=None, derandomize=True)
@given(upsampled())
def test_folding_upsampling_and_shuffles_is_exact_in_any_dimension(case):
    network, _ = case
    model = network.model()
    graph = Graph(model)
    normalise(graph)
    assert_same(graph, model)
    assert [node.name for node in upsampled_layers(graph)] == ["conv"]
    assert fold_upsampling(graph, "conv")
    normalise(graph)
    assert not {"Resize", "Pad"} & set(kinds(graph))
    assert_same(graph, model)
    for layer in [node.name for node in shuffled_layers(graph)]:
        assert layer == "second" and fold_shuffle(graph, layer)
        normalise(graph)
        assert_same(graph, model)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(upsampled())
def test_any_order_of_the_axes_is_exact(case):
    network, rank = case
    model = network.model()
    graph = Graph(model)
    normalise(graph)
    orders = axis_orders(graph)
    assert len(orders) == (0, 0, 1, 5)[rank]
    for order in orders[-2:]:
        turned = graph.copy()
        assert turn_axes(turned, order)
        normalise(turned)
        assert_same(turned, model)
        fold_upsampling(turned, "conv")
        assert_same(turned, model)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    grid=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    pads=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_a_dense_layer_and_a_convolution_become_one_dense_layer(grid, pads, bias, seed):
    rank = len(grid)
    network = Network(seed)
    network.dense(tuple(grid), 3)
    pads = pads[:rank] + pads[3 : 3 + rank]
    kernel = tuple(min(3, length + pads[i] + pads[rank + i]) for i, length in enumerate(grid))
    network.convolution("conv", 3, 2, kernel, pads, bias)
    network.pointwise("LeakyRelu", 2, rank)
    model = network.model()
    graph = Graph(model)
    normalise(graph)
    assert [node.name for node in merged_layers(graph)] == ["conv"]
    assert merge_dense(graph, "conv")
    assert kinds(graph) == ["Gemm", "Reshape", "LeakyRelu"]
    assert graph.nodes[0].name == "dense.conv"
    assert_same(graph, model)
