"""Nearest-neighbour upsampling before a convolution, and layers of single cells behind it: one convolution for each phase.

Of the fine cells those of one phase (even rows and odd columns, say) read only some of the coarse cells that a convolution over
all phases at once reads (`subpixel`): with a kernel of 2 x 2 and a factor of 2 they read 1, 2, 2 and 4. So each phase gets a
convolution of its own, with the smallest kernel, and its own point-wise operations. For the convolutions of 1 x 1 that follow the
phases stand one behind another, as more rows of one grid; behind these the cells are put in order.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from minicarlo.graph.convolution import Convolution, plain_convolution, set_convolution
from minicarlo.graph.model import Constant, Graph
from minicarlo.graph.pointwise import change_constants, moving_input
from minicarlo.graph.subpixel import Axis, folded_axes, upsampled

__all__ = ["phased_layers", "split_phases"]


def phased_layers(graph: Graph) -> list[NodeProto]:
    """Convolutions of upsampled grids, read by layers of single cells, that take fewer multiply-accumulates in phases."""
    return [node for node in graph.nodes if _phases(graph, node) is not None]


def split_phases(graph: Graph, layer: str) -> bool:
    """Make the convolution `layer` one for each phase; False when it is not one of `phased_layers`."""
    node = next((n for n in phased_layers(graph) if n.name == layer), None)
    found = None if node is None else _phases(graph, node)
    if node is None or found is None:
        return False
    phases, source, fine = found
    parts = []
    for phase, convolution in phases.convolutions.items():
        part = _twin(graph, node, phase)
        set_convolution(graph, part, source, convolution)
        parts.append(part.output[0])
    _carry_on(graph, node.output[0], parts, phases, fine)
    graph.refresh()
    return True


def _carry_on(graph: Graph, value: str, parts: list[str], phases: _Phases, fine: tuple[int, ...]) -> None:
    """Have the readers of `value` read its phases, `parts`: point-wise operations one each, layers all of them together."""
    order, together = phases.order(fine), ""
    for reader in graph.consumers(value):
        if _single_cells(graph, reader):
            together = together or graph.add("Concat", parts, f"{value}/phases", axis=2)
            reader.input[0] = together
            _put_in_order(graph, reader, order, phases.grid, fine)
            continue
        made = []
        for index, (phase, part) in enumerate(zip(phases.convolutions, parts, strict=True)):
            twin = _twin(graph, reader, phase)
            twin.input[list(twin.input).index(value)] = part
            rows = slice(index * phases.coarse[0], (index + 1) * phases.coarse[0])
            change_constants(graph, twin, partial(_in_phases, order=order, grid=phases.grid, fine=fine, rows=rows))
            made.append(twin.output[0])
        _carry_on(graph, reader.output[0], made, phases, fine)


def _twin(graph: Graph, node: NodeProto, phase: tuple[int, ...]) -> NodeProto:
    """A copy of `node` for one phase."""
    twin = NodeProto()
    twin.CopyFrom(node)
    twin.name = f"{node.name}.{''.join(map(str, phase))}"
    twin.output[0] = graph.free(f"{twin.name}/output")
    graph.nodes.append(twin)
    return twin


@dataclass(frozen=True)
class _Phases:
    """A convolution for each phase; all give a grid of `coarse` cells. Of each axis the factor and the shift of the phases."""

    convolutions: dict[tuple[int, ...], Convolution]
    factors: tuple[int, ...]
    shifts: tuple[int, ...]
    coarse: tuple[int, ...]

    @property
    def grid(self) -> tuple[int, ...]:
        """Cells of all phases together, one behind another along the first axis."""
        return (self.coarse[0] * len(self.convolutions), *self.coarse[1:])

    def order(self, fine: tuple[int, ...]) -> NDArray[np.int64]:
        """Where each fine cell stands in `grid`, both flat."""
        cells = np.meshgrid(*map(np.arange, fine), indexing="ij")
        shifted = [cell + shift for cell, shift in zip(cells, self.shifts, strict=True)]
        phase = np.ravel_multi_index([c % f for c, f in zip(shifted, self.factors, strict=True)], self.factors)
        first, *others = (cell // factor for cell, factor in zip(shifted, self.factors, strict=True))
        place: NDArray[np.int64] = np.ravel_multi_index([phase * self.coarse[0] + first, *others], self.grid)
        return place.reshape(-1)


def _phases(graph: Graph, node: NodeProto) -> tuple[_Phases, str, tuple[int, ...]] | None:
    """The phases of `node`, what they read, and the fine grid."""
    found = upsampled(graph, node)
    fine = graph.shapes.get(node.output[0], ())[2:]
    if found is None or node.output[0] in graph.outputs or not _reaches_layer(graph, node.output[0]):
        return None
    convolution, source, factors = found
    axes = folded_axes(convolution, factors, graph.shapes[source][2:])
    parts = [[_part(axis, phase) for phase in range(factor)] for axis, factor in zip(axes, factors, strict=True)]
    if any(min(begin, end) < 0 for row in parts for _, begin, end in row):  # the coarse grid would have to be cut
        return None
    coarse = tuple(axis.coarse for axis in axes)
    made = {}
    for phase in itertools.product(*map(range, factors)):
        chosen = [row[index] for row, index in zip(parts, phase, strict=True)]
        weights = convolution.weights.astype(np.float64)
        for place, (taps, *_) in enumerate(chosen):
            weights = np.moveaxis(np.tensordot(weights, taps, (2 + place, 1)), -1, 2 + place)
        begins, ends = tuple(begin for _, begin, _ in chosen), tuple(end for *_, end in chosen)
        made[phase] = Convolution(weights.astype(convolution.weights.dtype), convolution.bias, begins, ends)
    cost = math.prod(coarse) * sum(math.prod(each.kernel) for each in made.values())
    if cost >= math.prod(fine) * math.prod(convolution.kernel):
        return None
    return _Phases(made, factors, tuple(axis.shift for axis in axes), coarse), source, fine


def _part(axis: Axis, phase: int) -> tuple[NDArray[np.float64], int, int]:
    """Taps (coarse cells, kernel) of one phase, and its padding."""
    taps = axis.taps[phase, :, 0]
    used = np.flatnonzero(taps.any(axis=1))
    low, high = int(used[0]), int(used[-1])
    return taps[low : high + 1], axis.begin - low, axis.end - (len(taps) - 1 - high)


def _single_cells(graph: Graph, node: NodeProto) -> bool:
    convolution = plain_convolution(graph, node)
    return convolution is not None and set(convolution.kernel) == {1} and not any(convolution.begins + convolution.ends)


def _reaches_layer(graph: Graph, value: str) -> bool:
    """Whether all that read a value are layers of single cells, or point-wise and read by such."""
    readers = graph.consumers(value)
    return (
        bool(readers)
        and value not in graph.outputs
        and all(
            _single_cells(graph, reader) or (moving_input(graph, reader) == value and _reaches_layer(graph, reader.output[0]))
            for reader in readers
        )
    )


def _in_phases(value: Constant, order: NDArray[np.int64], grid: tuple[int, ...], fine: tuple[int, ...], rows: slice) -> Constant:
    """Rows of a constant (1, channels or 1, ...) of fine cells, put on the phases' grid."""
    if all(length == 1 for length in value.shape[2:]):
        return value
    given = np.broadcast_to(value, (*value.shape[:2], *fine)).reshape(*value.shape[:2], -1)
    made = np.zeros((*value.shape[:2], math.prod(grid)), value.dtype)
    made[..., order] = given
    return made.reshape(*value.shape[:2], *grid)[:, :, rows]


def _put_in_order(graph: Graph, layer: NodeProto, order: NDArray[np.int64], grid: tuple[int, ...], fine: tuple[int, ...]) -> None:
    """Whatever reads `layer`, on the phases' grid, reads its cells in order."""
    result, channels = layer.output[0], graph.shapes[layer.output[0]][1]
    layer.output[0] = graph.free(f"{layer.name}/phases")
    flat = graph.constant(np.array([-1, channels, math.prod(grid)]), f"{layer.name}/flat")
    rows = graph.add("Reshape", [layer.output[0], flat], f"{layer.name}/rows")
    cells = graph.add("Gather", [rows, graph.constant(order, f"{layer.name}/order")], f"{layer.name}/cells", axis=2)
    target = graph.constant(np.array([-1, channels, *fine]), f"{layer.name}/fine")
    graph.replace(result, graph.add("Reshape", [cells, target], f"{layer.name}/grid"))
