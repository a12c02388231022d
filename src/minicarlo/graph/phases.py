"""Nearest-neighbour upsampling before a convolution: a convolution for each phase.

Of the fine cells those of one phase (even rows and odd columns, say) read only some of the coarse cells that a convolution of all
phases at once reads (`subpixel`): with a kernel of 2 x 2 and a factor of 2 they read 1, 2, 2 and 4. So each phase gets a
convolution of its own, with the smallest kernel, and its own of the point-wise operations that follow, so that what is then put
in place of one another is what the next layer reads, in int8 a byte for each cell.
"""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from minicarlo.graph.convolution import Convolution, set_convolution
from minicarlo.graph.model import Constant, Graph
from minicarlo.graph.pointwise import change_constants, pointwise_after
from minicarlo.graph.shuffle import Shuffle, add_shuffle
from minicarlo.graph.subpixel import Axis, folded_axes, upsampled

__all__ = ["phased_layers", "split_phases"]


def phased_layers(graph: Graph) -> list[NodeProto]:
    """Convolutions of upsampled grids that take fewer multiply-accumulates in phases."""
    return [node for node in graph.nodes if _phases(graph, node) is not None]


def split_phases(graph: Graph, layer: str) -> bool:
    """Make the convolution `layer` one for each phase; False when it is not one of `phased_layers`."""
    found = graph.find(layer, _phases)
    if found is None:
        return False
    node, (convolutions, source, shuffle) = found
    parts = {}
    for phase, convolution in convolutions.items():
        part = _twin(graph, node, phase)
        set_convolution(graph, part, source, convolution)
        parts[phase] = part.output[0]
    value = node.output[0]
    for reader in pointwise_after(graph, value):
        for number, phase in enumerate(parts):
            twin = _twin(graph, reader, phase)
            twin.input[list(twin.input).index(value)] = parts[phase]
            change_constants(graph, twin, partial(_of_phase, shuffle=shuffle, number=number))
            parts[phase] = twin.output[0]
        value = reader.output[0]
    together = graph.add("Concat", parts.values(), f"{layer}/phases", axis=1)
    graph.replace(value, add_shuffle(graph, together, shuffle, f"{layer}/shuffle"))
    graph.refresh()
    return True


def _twin(graph: Graph, node: NodeProto, phase: tuple[int, ...]) -> NodeProto:
    """A copy of `node` for one phase."""
    twin = NodeProto()
    twin.CopyFrom(node)
    twin.name = f"{node.name}.{''.join(map(str, phase))}"
    twin.output[0] = graph.free(f"{twin.name}/output")
    graph.shapes[twin.output[0]] = graph.shapes[node.output[0]]  # its rank, until shapes are inferred again
    graph.nodes.append(twin)
    return twin


def _phases(graph: Graph, node: NodeProto) -> tuple[dict[tuple[int, ...], Convolution], str, Shuffle] | None:
    """A convolution for each phase of `node`, what they read, and how their results are put in place."""
    found = upsampled(graph, node)
    if found is None:
        return None
    convolution, source, factors = found
    fine = graph.shapes[node.output[0]][2:]
    axes = folded_axes(convolution, factors, graph.shapes[source][2:])
    parts = [[_part(axis, phase) for phase in range(factor)] for axis, factor in zip(axes, factors, strict=True)]
    if any(min(begin, end) < 0 for row in parts for _, begin, end in row):  # the coarse grid would have to be cut
        return None
    if any(len({(taps.tobytes(), begin, end) for taps, begin, end in row}) < len(row) for row in parts):
        return None  # phases with the same cells are best computed once
    made = {}
    for phase in itertools.product(*map(range, factors)):
        chosen = [row[index] for row, index in zip(parts, phase, strict=True)]
        weights = convolution.weights.astype(np.float64)
        for place, (taps, *_) in enumerate(chosen):
            weights = np.moveaxis(np.tensordot(weights, taps, (2 + place, 1)), -1, 2 + place)
        begins, ends = tuple(begin for _, begin, _ in chosen), tuple(end for *_, end in chosen)
        made[phase] = Convolution(weights.astype(convolution.weights.dtype), convolution.bias, begins, ends)
    coarse = tuple(axis.coarse for axis in axes)
    cost = math.prod(coarse) * sum(math.prod(each.kernel) for each in made.values())
    if cost >= math.prod(fine) * math.prod(convolution.kernel):
        return None
    return made, source, Shuffle(factors, convolution.weights.shape[0], coarse, tuple(axis.shift for axis in axes), fine)


def _part(axis: Axis, phase: int) -> tuple[NDArray[np.float64], int, int]:
    """Taps (coarse cells, kernel) of one phase, and its padding."""
    taps = axis.taps[phase, :, 0]
    used = np.flatnonzero(taps.any(axis=1))
    low, high = int(used[0]), int(used[-1])
    return taps[low : high + 1], axis.begin - low, axis.end - (len(taps) - 1 - high)


def _of_phase(value: Constant, shuffle: Shuffle, number: int) -> Constant:
    """Of a constant (1, channels or 1, ...) of fine cells that of one phase, zeros where there are no fine cells."""
    undone = shuffle.undo(value)
    channels = undone.shape[1] // shuffle.phases
    return undone[:, number * channels : (number + 1) * channels] if channels else undone
