"""Fast convolution: fewer multiplications for large kernels, by evaluating polynomials where that is well conditioned.

A convolution of a line is a product of polynomials: evaluated at enough points, one product per point. Transposing the algorithm
for the full product gives the one for `m` outputs of a kernel of `r` taps from `m + r - 1` inputs, y = A[(G g) (B x)] with
constant matrices A, B, G (S. Winograd, Arithmetic complexity of computations, SIAM 1980). The usual points 0, 1, -1, 2, ...
lose the digits of float32 beyond a handful; roots of unity, zero and infinity lose none. Those that are complex come in
conjugated pairs, three real products for two points (Gauss). Axes follow one another, and the sum over channels stays between
the points and the outputs: per point one matrix product of all tiles with the channels (A. Lavin and S. Gray, Fast algorithms
for convolutional neural networks, https://arxiv.org/abs/1509.09308; M. Mathieu et al., Fast training of convolutional networks
through FFTs, https://arxiv.org/abs/1312.5851).

A kernel of 8 x 8 then takes 4 multiply-accumulates per output and pair of channels instead of 64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from minicarlo.graph.convolution import Convolution, plain_convolution
from minicarlo.graph.model import Constant, Graph

WORTH = 0.6
"""The share of a convolution's multiply-accumulates beyond which the fast one is not offered: its own cost more time each."""

LARGEST = 2**22
"""Weights that a fast convolution may have: 16 MiB in float32."""

MOST_TILES = 8
"""Of an axis: more overlap more than they save."""

LONGEST = 256
"""Cells of an axis, beyond which other ways are better and matrices large."""

PART = "/fast/"
"""In the names of all that stands around the products of a layer: LAYER/fast/before."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Tiled:
    """One axis in tiles: `before` (tiles x points, inputs), `weights` (points, taps), `after` (outputs of a tile, points)."""

    before: Matrix
    weights: Matrix
    after: Matrix
    tiles: int
    outputs: int

    @property
    def points(self) -> int:
        """Products per tile."""
        return len(self.weights)

    @property
    def computed(self) -> int:
        """Outputs of all tiles, a few more than are wanted."""
        return self.tiles * int(self.after.shape[0])

    @property
    def taken_as_is(self) -> bool:
        """Whether `before` changes nothing: one tap and no padding."""
        return self.given_as_is and self.before.shape[0] == self.before.shape[1] == self.outputs

    @property
    def given_as_is(self) -> bool:
        """Whether `after` changes nothing: one tap."""
        return bool(self.weights.shape[1] == 1)


@dataclass(frozen=True)
class Fast:
    """A convolution and how each of its axes is done."""

    convolution: Convolution
    axes: tuple[Tiled, ...]
    channels: tuple[int, int]

    @property
    def weights(self) -> int:
        """Numbers that the products read."""
        return math.prod(axis.points for axis in self.axes) * math.prod(self.channels)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the products and of the matrices before and after them."""
        inputs, outputs = self.channels
        total = math.prod(axis.points * axis.tiles for axis in self.axes) * inputs * outputs
        done = 1  # cells of the axes behind, already points
        for place in reversed(range(len(self.axes))):
            axis = self.axes[place]
            before = math.prod(each.before.shape[1] for each in self.axes[:place])
            if not axis.taken_as_is:
                total += before * axis.before.size * done * inputs
            done *= axis.tiles * axis.points
        done = 1  # cells of the axes behind, already outputs
        for place in reversed(range(len(self.axes))):
            axis = self.axes[place]
            before = math.prod(each.tiles * each.points for each in self.axes[:place])
            if not axis.given_as_is:
                total += before * axis.tiles * axis.after.size * done * outputs
            done *= axis.computed
        return total


@cache
def algorithm(outputs: int, taps: int) -> tuple[Matrix, Matrix, Matrix]:
    """A (outputs, points), G (points, taps) and B (points, outputs + taps - 1) with y = A[(G g) (B x)], y_i = sum_j g_j x_(i+j).

    Of roots of unity with and without zero and infinity the choice with the fewest points.
    """
    degree = outputs + taps - 1
    choices = [(zero, infinity) for zero, infinity in itertools.product((0, 1), repeat=2) if zero + infinity <= degree]
    zero, infinity = min(choices, key=lambda choice: (_products(degree - sum(choice)) + sum(choice), sum(choice)))
    roots = degree - zero - infinity
    points = [np.exp(-2j * np.pi * k / roots) for k in range(roots)] + [0j] * zero

    def evaluate(length: int) -> NDArray[np.complex128]:
        rows = [[point**power for power in range(length)] for point in points]
        rows += [[0] * (length - 1) + [1]] * infinity
        return np.array(rows, complex)

    interpolate = np.linalg.inv(evaluate(degree)).T
    kernel, signal = evaluate(taps), evaluate(outputs)
    before, weights, after = [], [], []
    for k in range(len(kernel)):
        if k < roots and 2 * k > roots:  # the other half of a pair
            continue
        if k >= roots or k == 0 or 2 * k == roots:
            before.append(interpolate[k].real)
            weights.append(kernel[k].real)
            after.append(signal[k].real)
            continue
        real, imaginary = 2 * interpolate[k].real, -2 * interpolate[k].imag
        before += [real - imaginary, -real - imaginary, imaginary]
        weights += [kernel[k].real, kernel[k].imag, kernel[k].real + kernel[k].imag]
        after += [signal[k].real, signal[k].imag, signal[k].real + signal[k].imag]
    return np.array(after).T, np.array(weights), np.array(before)


def _products(roots: int) -> int:
    """Real products for all roots of unity of an order: one for each real root, three for each pair."""
    real = min(roots, 2 - roots % 2)
    return real + 3 * (roots - real) // 2


def fast_layers(graph: Graph) -> list[NodeProto]:
    """Convolutions that take fewer multiply-accumulates this way."""
    return [node for node in graph.nodes if _saves(graph, _fast(graph, node), node)]


def fast_alone(name: str, weights: Constant, begins: Sequence[int], ends: Sequence[int], grid: Sequence[int]) -> bytes | None:
    """An ONNX model that is one fast convolution without bias: "values" (events, in, *grid) to "result".

    `weights` are (out, in, *kernel), `begins` and `ends` the zeros around `grid`. None when it takes no fewer
    multiply-accumulates that way.
    """
    outputs, inputs, *kernel = weights.shape
    sizes = [sum(each) + 1 for each in zip(grid, begins, ends, (-taps for taps in kernel), strict=True)]
    if min(sizes) < 1:
        return None
    node = helper.make_node(
        "Conv", ["values", "weights"], ["result"], name=name, kernel_shape=kernel, pads=[*begins, *ends], auto_pad="NOTSET"
    )
    given, made = (
        helper.make_tensor_value_info(port, TensorProto.FLOAT, ["events", *shape])
        for port, shape in (("values", [inputs, *grid]), ("result", [outputs, *sizes]))
    )
    constant = numpy_helper.from_array(np.ascontiguousarray(weights, np.float32), "weights")
    model = helper.make_model(
        helper.make_graph([node], "fast", [given], [made], [constant]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    graph = Graph(model.SerializeToString())
    if not _saves(graph, _fast(graph, graph.nodes[0]), graph.nodes[0]):
        return None
    make_fast(graph, name)
    return graph.serialise()


def make_fast(graph: Graph, layer: str) -> bool:
    """Make the convolution `layer` a fast one, whether or not it pays; False when it cannot be.

    Channels are the last axis in between, so that points are moved in rows of them. The layer's name stays with its products.
    """
    found = graph.find(layer, _fast)
    if found is None:
        return False
    node, fast = found
    result = node.output[0]
    writer = _Writer(graph, node.name, fast)
    value = writer.to_points(node.input[0])
    weights = graph.constant(_at_points(fast).astype(fast.convolution.weights.dtype), f"{node.name}.weight")
    node.op_type = "MatMul"
    del node.input[:], node.attribute[:], node.output[:]
    node.input.extend([value, weights])
    node.output.append(graph.free(f"{node.name}/products"))
    graph.replace(result, writer.from_points(node.output[0]))
    graph.refresh()
    return True


class _Writer:
    """Writes what stands before and after the products."""

    def __init__(self, graph: Graph, name: str, fast: Fast) -> None:
        self._graph, self._name, self._fast = graph, name, fast
        self._rank = len(fast.axes)
        tiles, points = ([f"{part} {place}" for place in range(self._rank)] for part in ("tile", "point"))
        self._lengths = {name: axis.tiles for name, axis in zip(tiles, fast.axes, strict=True)}
        self._lengths |= {name: axis.points for name, axis in zip(points, fast.axes, strict=True)}
        self._by_cell = ["event", *(name for pair in zip(tiles, points, strict=True) for name in pair), "channel"]
        self._by_point = [*points, "event", *tiles, "channel"]

    def to_points(self, value: str) -> str:
        """(events, channels, *grid) to (points, events x tiles, channels)."""
        channels = behind = self._fast.channels[0]
        value = self._turned(value, [0, *range(2, 2 + self._rank), 1], "last")
        for axis in reversed(self._fast.axes):
            if not axis.taken_as_is:
                value = self._times(axis.before, self._shaped(value, -1, axis.before.shape[1], behind), "before")
            behind *= axis.tiles * axis.points
        value = self._moved(value, self._by_cell, self._by_point, channels, "points")
        return self._shaped(value, math.prod(axis.points for axis in self._fast.axes), -1, channels)

    def from_points(self, value: str) -> str:
        """(points, events x tiles, channels) to (events, channels, *grid), with the bias."""
        channels = behind = self._fast.channels[1]
        axes, bias = self._fast.axes, self._fast.convolution.bias
        value = self._moved(value, self._by_point, self._by_cell, channels, "tiles")
        for axis in reversed(axes):
            if not axis.given_as_is:
                value = self._times(axis.after, self._shaped(value, -1, axis.points, behind), "after")
            behind *= axis.computed
        value = self._shaped(value, -1, *(axis.computed for axis in axes), channels)
        if any(axis.computed != axis.outputs for axis in axes):
            window = ([0] * self._rank, [axis.outputs for axis in axes], list(range(1, 1 + self._rank)))
            value = self._made("Slice", "cut", value, *map(np.array, window))
        if bias is not None:
            value = self._made("Add", "bias", value, bias)
        return self._turned(value, [0, 1 + self._rank, *range(1, 1 + self._rank)], "first")

    def _made(self, operator: str, part: str, value: str, *constants: Constant) -> str:
        given = [self._graph.constant(each, f"{self._name}{PART}{part}") for each in constants]
        return self._graph.add(operator, [value, *given], f"{self._name}{PART}{part}")

    def _shaped(self, value: str, *shape: int) -> str:
        return self._made("Reshape", "reshape", value, np.array(shape))

    def _turned(self, value: str, order: list[int], part: str) -> str:
        return self._graph.add("Transpose", [value], f"{self._name}{PART}{part}", perm=order)

    def _moved(self, value: str, axes: list[str], wanted: list[str], channels: int, part: str) -> str:
        """Bring axes in the order `wanted`; those of length one are left out."""
        lengths = {**self._lengths, "channel": channels, "event": -1}
        axes, wanted = ([axis for axis in each if lengths[axis] != 1] for each in (axes, wanted))
        value = self._shaped(value, *(lengths[axis] for axis in axes))
        return self._turned(value, [axes.index(axis) for axis in wanted], part)

    def _times(self, matrix: Matrix, value: str, part: str) -> str:
        kind = self._fast.convolution.weights.dtype
        name = self._graph.constant(matrix.astype(kind), f"{self._name}{PART}{part}")
        return self._graph.add("MatMul", [name, value], f"{self._name}{PART}{part}")


def _at_points(fast: Fast) -> Matrix:
    """Weights (points, in, out) from weights (out, in, *kernel)."""
    rank = len(fast.axes)
    kernel, points = "jkl"[:rank], "abc"[:rank]
    sums = ",".join(point + tap for point, tap in zip(points, kernel, strict=True))
    taken = [axis.weights for axis in fast.axes]
    given = fast.convolution.weights.astype(np.float64)
    made: Matrix = np.einsum(f"oi{kernel},{sums}->{points}io", given, *taken, optimize=True)
    return np.ascontiguousarray(made.reshape(-1, *fast.channels))


def _saves(graph: Graph, fast: Fast | None, node: NodeProto) -> bool:
    """Whether a convolution takes clearly fewer multiply-accumulates as a fast one."""
    return fast is not None and fast.macs < WORTH * fast.convolution.weights.size * math.prod(graph.shapes[node.output[0]][2:])


def _fast(graph: Graph, node: NodeProto) -> Fast | None:
    """The tiling of the convolution `node` with the fewest multiply-accumulates; None when it cannot be done."""
    convolution = plain_convolution(graph, node)
    if convolution is None or max(convolution.kernel) == 1 or min(convolution.begins + convolution.ends) < 0:
        return None
    before, after = graph.shapes.get(node.input[0]), graph.shapes.get(node.output[0])
    if before is None or after is None or len(before) != len(after) or not 3 <= len(after) <= 5:
        return None
    if max(*before[2:], *after[2:], *convolution.kernel) > LONGEST:
        return None
    outputs, inputs = convolution.weights.shape[:2]
    offered = []
    for length, size, taps, begin in zip(before[2:], after[2:], convolution.kernel, convolution.begins, strict=True):
        tilings = [size] if taps == 1 else range(1, min(size, MOST_TILES) + 1)
        offered.append([_tiled(length, size, taps, begin, tiles) for tiles in tilings])
    found = [Fast(convolution, axes, (inputs, outputs)) for axes in itertools.product(*offered)]
    small = [each for each in found if each.weights <= LARGEST]
    return min(small, key=lambda each: each.macs, default=None)


@cache
def _tiled(length: int, size: int, taps: int, begin: int, tiles: int) -> Tiled:
    """`size` outputs from `length` inputs with `begin` zeros before them, in `tiles` tiles."""
    outputs = -(-size // tiles)
    after, weights, before = algorithm(outputs, taps)
    lines = np.zeros((tiles, len(weights), length))
    for tile in range(tiles):
        start = tile * outputs - begin
        cells = np.arange(start, start + before.shape[1])
        inside = (cells >= 0) & (cells < length)
        lines[tile][:, cells[inside]] = before[:, inside]
    return Tiled(lines.reshape(-1, length), weights, after, tiles, size)
