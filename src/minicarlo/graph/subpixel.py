"""Nearest-neighbour upsampling before a convolution: one convolution on the coarse grid, with the fine cells as channels.

Cell o of the result reads the fine cells t = o - p + j, j < k, which hold the coarse cells floor(t / f). With o + s = f Q + r the
coarse cell is Q + floor((r - s - p + j) / f): a convolution over Q whose weights are sums of the original ones, one set for
each phase r. Zeros around the fine grid are exactly the zeros around the coarse one. The shift s is free; the one that costs
least is taken (W. Shi et al., Real-time single image and video super-resolution using an efficient sub-pixel convolutional
neural network, CVPR 2016, has the reverse way for s = 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from minicarlo.graph.convolution import Convolution, plain_convolution, set_convolution, upsampling
from minicarlo.graph.model import Constant, Graph, attribute
from minicarlo.graph.pointwise import change_constants, moving_input, pointwise_after
from minicarlo.graph.shuffle import Shuffle, add_shuffle, match_shuffle


@dataclass(frozen=True)
class Axis:
    """How one axis is folded: `taps[r, a, i, j]` is 1 where weight j of phase r meets the coarse cell a, phase i of it."""

    taps: NDArray[np.float64]
    begin: int
    end: int
    coarse: int
    shift: int

    @property
    def cost(self) -> int:
        """Proportional to the multiply-accumulates."""
        return self.coarse * int(self.taps.shape[1])


def upsampled_layers(graph: Graph) -> list[NodeProto]:
    """Convolutions that read a grid upsampled by integer factors."""
    return [node for node in graph.nodes if upsampled(graph, node) is not None]


def fold_upsampling(graph: Graph, layer: str) -> bool:
    """Make the convolution `layer` a sub-pixel one; False when it does not read an upsampled grid."""
    found = graph.find(layer, upsampled)
    if found is None:
        return False
    node, (convolution, source, factors) = found
    axes = folded_axes(convolution, factors, graph.shapes[source][2:])
    _put(graph, node, source, convolution, axes, factors, graph.shapes[node.output[0]][2:])
    return True


def folded_axes(convolution: Convolution, factors: tuple[int, ...], lengths: tuple[int, ...]) -> list[Axis]:
    """How each axis of an upsampled grid, `lengths` before, is folded at the least cost."""
    axes = []
    for axis, (factor, length) in enumerate(zip(factors, lengths, strict=True)):
        row = (factor, convolution.kernel[axis], convolution.begins[axis], convolution.ends[axis], length)
        axes.append(min((_upsampled_axis(*row, shift) for shift in range(factor)), key=lambda each: each.cost))
    return axes


def shuffled_layers(graph: Graph) -> list[NodeProto]:
    """Convolutions that read, perhaps after point-wise operations, a grid that a shuffle has made, and can read its phases."""
    return [node for node in graph.nodes if _shuffled(graph, node) is not None]


def fold_shuffle(graph: Graph, layer: str) -> bool:
    """Have the convolution `layer` read and make phases, so that the shuffle comes after it; False when it reads no shuffle.

    More multiply-accumulates, but on more channels, and fewer values to shuffle when the layer has fewer outputs than inputs.
    """
    found = graph.find(layer, _shuffled)
    if found is None:
        return False
    node, (convolution, between, source, shuffle) = found
    fine = graph.shapes[node.output[0]][2:]
    axes = []
    for axis, factor in enumerate(shuffle.factors):
        row = (factor, convolution.kernel[axis], convolution.begins[axis], shuffle.starts[axis], shuffle.coarse[axis], fine[axis])
        axes.append(min((_phase_axis(*row, shift) for shift in range(factor)), key=lambda each: each.cost))
    value = source
    for each in between:
        place = list(each.input).index(_computed(graph, each))
        change_constants(graph, each, shuffle.undo)
        each.input[place] = value
        value = each.output[0]
    _put(graph, node, value, convolution, axes, shuffle.factors, fine)
    return True


def transposed_layers(graph: Graph) -> list[NodeProto]:
    """Transposed convolutions that make a grid finer."""
    return [node for node in graph.nodes if _transposed(graph, node) is not None]


def fold_transposed(graph: Graph, layer: str) -> bool:
    """Make the transposed convolution `layer` a convolution on the coarse grid and a shuffle; False when it is none.

    Cell o takes weight j from the coarse cell q where o + p = f q + j, so each phase has its own share of the weights.
    """
    found = graph.find(layer, _transposed)
    if found is None:
        return False
    node, (convolution, factors) = found
    source, fine = node.input[0], graph.shapes[node.output[0]][2:]
    axes = []
    for axis, factor in enumerate(factors):
        length = graph.shapes[source][2 + axis]
        row = (factor, convolution.kernel[axis], convolution.begins[axis], length, fine[axis])
        fitting = [each for each in (_transposed_axis(*row, shift) for shift in range(factor)) if each.begin >= 0]
        axes.append(min(fitting, key=lambda each: each.cost))
    del node.attribute[:]
    node.op_type = "Conv"
    _put(graph, node, source, convolution, axes, factors, fine)
    return True


def _put(
    graph: Graph,
    node: NodeProto,
    source: str,
    convolution: Convolution,
    axes: list[Axis],
    factors: tuple[int, ...],
    sizes: tuple[int, ...],
) -> None:
    """Write the folded convolution, and the shuffle that puts its phases in place behind what is point-wise.

    A runtime computes that together with a convolution before it, and in int8 what is moved is then the next layer's bytes.
    """
    kind = convolution.weights.dtype
    bias = None if convolution.bias is None else np.tile(convolution.bias, math.prod(factors))
    begins, ends = tuple(axis.begin for axis in axes), tuple(axis.end for axis in axes)
    weights = _spread(convolution.weights, axes).astype(kind)
    set_convolution(graph, node, source, Convolution(weights, bias, begins, ends))
    coarse, shifts = tuple(axis.coarse for axis in axes), tuple(axis.shift for axis in axes)
    shuffle = Shuffle(factors, convolution.weights.shape[0], coarse, shifts, sizes)
    behind = pointwise_after(graph, node.output[0])
    for each in behind:
        change_constants(graph, each, shuffle.undo)
    last = [node, *behind][-1]
    result = last.output[0]
    last.output[0] = graph.free(f"{node.name}/phases")
    made = add_shuffle(graph, last.output[0], shuffle, f"{node.name}/shuffle")
    graph.replace(result, made)
    graph.refresh()


def _spread(weights: Constant, axes: list[Axis]) -> Constant:
    """Weights (phases x out, phases x in, *coarse) from weights (out, in, *kernel)."""
    phases, coarse, inner, kernel = ("abc", "pqr", "uvw", "jkl")
    rank = len(axes)
    sums = ",".join(phases[i] + coarse[i] + inner[i] + kernel[i] for i in range(rank))
    phases, coarse, inner, kernel = (letters[:rank] for letters in (phases, coarse, inner, kernel))
    taps = [axis.taps for axis in axes]
    spread: Constant = np.einsum(
        f"oi{kernel},{sums}->{phases}o{inner}i{coarse}", weights.astype(np.float64), *taps, optimize=True
    )
    inputs = math.prod(each.shape[2] for each in taps) * weights.shape[1]
    return spread.reshape(-1, inputs, *(each.shape[1] for each in taps))


def _upsampled_axis(factor: int, kernel: int, begin: int, end: int, length: int, shift: int) -> Axis:
    size = factor * length + begin + end - kernel + 1
    places = (np.arange(factor)[:, None] - shift - begin + np.arange(kernel)) // factor
    low, high = int(places.min()), int(places.max())
    coarse, end = _extent(size + shift, factor, high, length)
    taps = places[:, None, None, :] == np.arange(low, high + 1)[None, :, None, None]
    return Axis(taps.astype(np.float64), -low, end, coarse, shift)


def _phase_axis(factor: int, kernel: int, begin: int, start: int, length: int, size: int, shift: int) -> Axis:
    cells = np.arange(factor)[:, None] - shift + start - begin + np.arange(kernel)
    places, inner = cells // factor, cells % factor
    low, high = int(places.min()), int(places.max())
    coarse, end = _extent(size + shift, factor, high, length)
    taps = (places[:, None, None, :] == np.arange(low, high + 1)[None, :, None, None]) & (
        inner[:, None, None, :] == np.arange(factor)[None, None, :, None]
    )
    return Axis(taps.astype(np.float64), -low, end, coarse, shift)


def _transposed_axis(factor: int, kernel: int, begin: int, length: int, size: int, shift: int) -> Axis:
    steps = np.arange(factor)[:, None] - shift + begin - np.arange(kernel)
    places, meets = steps // factor, steps % factor == 0
    low, high = (int(bound) for bound in (places[meets].min(), places[meets].max()))
    coarse, end = _extent(size + shift, factor, high, length)
    taps = (places[:, None, None, :] == np.arange(low, high + 1)[None, :, None, None]) & meets[:, None, None, :]
    return Axis(taps.astype(np.float64), -low, end, coarse, shift)


def _extent(fine: int, factor: int, reach: int, length: int) -> tuple[int, int]:
    """Coarse cells that hold `fine` cells, more if the input would have to be cut otherwise, and the padding after `length`."""
    coarse = max((fine - 1) // factor + 1, length - reach)
    return coarse, coarse + reach - length


def upsampled(graph: Graph, node: NodeProto) -> tuple[Convolution, str, tuple[int, ...]] | None:
    """A convolution, the coarse grid that it reads upsampled, and the factor of each axis; None for anything else."""
    convolution = plain_convolution(graph, node)
    resize = graph.producer(node.input[0]) if convolution is not None else None
    factors = None if resize is None else upsampling(graph, resize)
    if convolution is None or resize is None or factors is None or min(convolution.begins + convolution.ends) < 0:
        return None
    return convolution, resize.input[0], factors[2:]


def _transposed(graph: Graph, node: NodeProto) -> tuple[Convolution, tuple[int, ...]] | None:
    """The weights as those of a convolution (out, in, *kernel), and the factor per axis."""
    if node.op_type != "ConvTranspose" or any(name and name not in graph.constants for name in node.input[1:]):
        return None
    weights = graph.constants[node.input[1]]
    rank = weights.ndim - 2
    strides, pads = (
        tuple(attribute(node, name, default)) for name, default in (("strides", [1] * rank), ("pads", [0] * 2 * rank))
    )
    if (
        attribute(node, "auto_pad", "NOTSET") != "NOTSET"
        or attribute(node, "group", 1) != 1
        or any(step != 1 for step in attribute(node, "dilations", [1] * rank))
        or attribute(node, "output_shape") is not None
        or max(strides) == 1
        or any(begin >= length for begin, length in zip(pads[:rank], weights.shape[2:], strict=True))
        or graph.rank(node.output[0]) != rank + 2
    ):
        return None
    bias = graph.constants[node.input[2]] if len(node.input) > 2 and node.input[2] else None
    return Convolution(weights.swapaxes(0, 1), bias, pads[:rank], pads[rank:]), strides


def _shuffled(graph: Graph, node: NodeProto) -> tuple[Convolution, list[NodeProto], str, Shuffle] | None:
    convolution = plain_convolution(graph, node)
    if convolution is None:
        return None
    value, between = node.input[0], list[NodeProto]()
    found = match_shuffle(graph, value)
    while found is None:
        above = graph.producer(value)
        source = None if above is None else moving_input(graph, above)
        if above is None or source is None or len(graph.consumers(value)) != 1:
            return None
        between.insert(0, above)
        value = source
        found = match_shuffle(graph, value)
    if len(graph.consumers(value)) != 1:
        return None
    source, shuffle = found
    pads = convolution.begins + convolution.ends
    if min(pads) < 0 or (max(pads) > 0 and shuffle.cut):  # what was cut away would stand where zeros belong
        return None
    if any(start >= factor for start, factor in zip(shuffle.starts, shuffle.factors, strict=True)):
        return None
    return convolution, between, source, shuffle


def _computed(graph: Graph, node: NodeProto) -> str:
    name = moving_input(graph, node)
    assert name is not None
    return name
