"""Depth to space: phases that lie in the channels become the cells of a finer grid, in any number of dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from minicarlo.graph.model import Constant, Graph, attribute


@dataclass(frozen=True)
class Shuffle:
    """(1, factors x channels, *coarse) becomes (1, channels, *sizes): the fine grid, cut to `sizes` cells from `starts` on.

    Phases are the outer part of the channels: channel ((r1 f2 + r2) f3 + r3) C + c holds cells (f1 q1 + r1, f2 q2 + r2, ...).
    """

    factors: tuple[int, ...]
    channels: int
    coarse: tuple[int, ...]
    starts: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def phases(self) -> int:
        """Cells of the fine grid in one of the coarse grid."""
        return math.prod(self.factors)

    @property
    def fine(self) -> tuple[int, ...]:
        """The fine grid before it is cut."""
        return tuple(f * q for f, q in zip(self.factors, self.coarse, strict=True))

    @property
    def cut(self) -> bool:
        """Whether cells are cut away."""
        return self.fine != self.sizes

    def indices(self) -> NDArray[np.int64]:
        """For each element of the result its place in the source, both flattened without the batch."""
        rank = len(self.factors)
        places = np.arange(self.phases * self.channels * math.prod(self.coarse))
        places = places.reshape(*self.factors, self.channels, *self.coarse)
        order = [rank]
        for axis in range(rank):
            order += [rank + 1 + axis, axis]
        places = places.transpose(order).reshape(self.channels, *self.fine)
        window = tuple(slice(start, start + size) for start, size in zip(self.starts, self.sizes, strict=True))
        return np.ascontiguousarray(places[:, *window]).reshape(-1)

    def undo(self, value: Constant) -> Constant:
        """What becomes `value` (1, channels or 1, grid or 1s) when it is shuffled; zero in cells that are cut away."""
        rank = len(self.factors)
        if all(length == 1 for length in value.shape[2:]):
            return np.tile(value, (1, self.phases if value.shape[1] > 1 else 1, *(1,) * rank))
        value = np.broadcast_to(value, (1, value.shape[1], *self.sizes))
        pads = [(a, n - a - s) for a, n, s in zip(self.starts, self.fine, self.sizes, strict=True)]
        value = np.pad(np.broadcast_to(value, (1, self.channels, *self.sizes)), [(0, 0), (0, 0), *pads])
        split: list[int] = []
        for coarse, factor in zip(self.coarse, self.factors, strict=True):
            split += [coarse, factor]
        value = value.reshape(self.channels, *split)
        order = [2 + 2 * axis for axis in range(rank)] + [0] + [1 + 2 * axis for axis in range(rank)]
        return value.transpose(order).reshape(1, -1, *self.coarse)


def add_shuffle(graph: Graph, source: str, shuffle: Shuffle, name: str) -> str:
    """Append the nodes of `shuffle` after `source` and return their result: ONNX's own operation where it has one."""
    rank = len(shuffle.factors)
    if rank == 2 and len(set(shuffle.factors)) == 1:
        value = graph.add("DepthToSpace", [source], name, blocksize=shuffle.factors[0], mode="DCR")
    else:
        split = graph.constant(np.array([-1, *shuffle.factors, shuffle.channels, *shuffle.coarse]), f"{name}/split")
        merged = graph.constant(np.array([-1, shuffle.channels, *shuffle.fine]), f"{name}/merged")
        value = graph.add("Reshape", [source, split], f"{name}/phases")
        value = graph.add("Transpose", [value], f"{name}/interleave", perm=_turn(rank))
        value = graph.add("Reshape", [value, merged], name)
    if shuffle.cut:
        ends = [start + size for start, size in zip(shuffle.starts, shuffle.sizes, strict=True)]
        places = (shuffle.starts, ends, range(2, 2 + rank))
        window = [graph.constant(np.array(list(place)), f"{name}/window") for place in places]
        value = graph.add("Slice", [value, *window], f"{name}/cut")
    return value


def match_shuffle(graph: Graph, name: str) -> tuple[str, Shuffle] | None:
    """The source of `name` and the shuffle that makes it, when that is how it is made and nothing else reads in between."""
    node = graph.producer(name)
    starts: tuple[int, ...] | None = None
    if node is not None and node.op_type == "Slice":
        starts = _window(graph, node)
        if starts is None or len(graph.consumers(node.input[0])) != 1:
            return None
        node = graph.producer(node.input[0])
    if node is not None and node.op_type == "DepthToSpace" and attribute(node, "mode", "DCR") == "DCR":
        return _depth_to_space(graph, node, starts, graph.shapes.get(name))
    chain = _chain(graph, node, ("Reshape", "Transpose", "Reshape"))
    if chain is None:
        return None
    merge, turn, split = chain
    source = split.input[0]
    whole, parts, fine = (graph.shapes.get(n) for n in (source, split.output[0], merge.output[0]))
    if whole is None or parts is None or fine is None or len(parts) != 2 * len(whole) - 2 or len(fine) != len(whole):
        return None
    rank = len(whole) - 2
    shuffle = Shuffle(parts[1 : 1 + rank], parts[1 + rank], parts[2 + rank :], starts or (0,) * rank, graph.shapes[name][2:])
    fits = shuffle.coarse == whole[2:] and shuffle.fine == fine[2:] and list(attribute(turn, "perm")) == _turn(rank)
    return (source, shuffle) if fits else None


def _turn(rank: int) -> list[int]:
    """(N, factors, channels, coarse) to (N, channels, coarse 1, factor 1, coarse 2, ...)."""
    order = [0, rank + 1]
    for axis in range(rank):
        order += [rank + 2 + axis, 1 + axis]
    return order


def _depth_to_space(
    graph: Graph, node: NodeProto, starts: tuple[int, ...] | None, made: tuple[int, ...] | None
) -> tuple[str, Shuffle] | None:
    whole, factor = graph.shapes.get(node.input[0]), int(attribute(node, "blocksize"))
    if whole is None or made is None:
        return None
    return node.input[0], Shuffle((factor, factor), whole[1] // factor**2, whole[2:], starts or (0, 0), made[2:])


def _chain(graph: Graph, node: NodeProto | None, kinds: tuple[str, ...]) -> list[NodeProto] | None:
    found: list[NodeProto] = []
    for kind in kinds:
        if node is None or node.op_type != kind or (found and len(graph.consumers(node.output[0])) != 1):
            return None
        found.append(node)
        node = graph.producer(node.input[0])
    return found


def _window(graph: Graph, node: NodeProto) -> tuple[int, ...] | None:
    inputs = [graph.constants.get(name) for name in node.input[1:]]
    rank = graph.rank(node.output[0]) - 2
    if len(inputs) != 3 or any(value is None for value in inputs) or list(inputs[2]) != list(range(2, 2 + rank)):  # type: ignore[arg-type]
        return None
    starts = tuple(int(start) for start in inputs[0])  # type: ignore[union-attr]
    return starts if min(starts) >= 0 else None
