"""Convolutions whose weights are constants, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from minicarlo.graph.model import Constant, Graph, attribute, set_attribute


@dataclass(frozen=True)
class Convolution:
    """Weights (out, in, *kernel), bias (out,) or None, zero padding before and after each axis."""

    weights: Constant
    bias: Constant | None
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def kernel(self) -> tuple[int, ...]:
        """Cells per axis."""
        return tuple(self.weights.shape[2:])


def plain_convolution(graph: Graph, node: NodeProto) -> Convolution | None:
    """`node` when it is a convolution with constant weights, stride 1, dilation 1, in one group; None otherwise."""
    if node.op_type != "Conv" or any(name and name not in graph.constants for name in node.input[1:]):
        return None
    weights = graph.constants[node.input[1]]
    rank = weights.ndim - 2
    ones = [1] * rank
    if (
        attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        or attribute(node, "group", 1) != 1
        or list(attribute(node, "strides", ones)) != ones
        or list(attribute(node, "dilations", ones)) != ones
    ):
        return None
    pads = (
        tuple(attribute(node, "pads", [0] * 2 * rank)) if attribute(node, "auto_pad", "NOTSET") == "NOTSET" else (0,) * 2 * rank
    )
    bias = graph.constants[node.input[2]] if len(node.input) > 2 and node.input[2] else None
    return Convolution(weights, bias, pads[:rank], pads[rank:])


def set_convolution(graph: Graph, node: NodeProto, source: str, convolution: Convolution) -> None:
    """Have `node` compute `convolution` of `source`."""
    inputs = [source, graph.constant(np.ascontiguousarray(convolution.weights), f"{node.name}.weight")]
    if convolution.bias is not None:
        inputs.append(graph.constant(convolution.bias, f"{node.name}.bias"))
    del node.input[:]
    node.input.extend(inputs)
    set_attribute(node, "kernel_shape", list(convolution.kernel))
    set_attribute(node, "pads", [*convolution.begins, *convolution.ends])


def zero_padding(graph: Graph, node: NodeProto) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """How many zeros `node` puts before and after each axis, when it is a `Pad` with zeros and not a crop."""
    if node.op_type != "Pad" or attribute(node, "mode", "constant") != "constant":
        return None
    inputs = list(node.input) + [""] * 3
    if inputs[1] not in graph.constants or (inputs[2] and not np.all(graph.constants.get(inputs[2], np.ones(1)) == 0)):
        return None
    rank = graph.rank(node.output[0])
    pads = [int(pad) for pad in graph.constants[inputs[1]]]
    axes = [int(axis) % rank for axis in graph.constants[inputs[3]]] if len(inputs) > 3 and inputs[3] else list(range(rank))
    begins, ends = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        begins[axis], ends[axis] = pads[place], pads[place + len(axes)]
    return (tuple(begins), tuple(ends)) if min(begins + ends) >= 0 else None


def upsampling(graph: Graph, node: NodeProto) -> tuple[int, ...] | None:
    """Integer factor per axis when `node` repeats every cell (nearest-neighbour upsampling of the grid); None otherwise."""
    if node.op_type not in ("Resize", "Upsample") or attribute(node, "mode", "nearest") != "nearest":
        return None
    before, after = graph.shapes.get(node.input[0]), graph.shapes.get(node.output[0])
    if before is None or after is None or len(before) != len(after):
        return None
    if node.op_type == "Resize":
        coordinates = attribute(node, "coordinate_transformation_mode", "half_pixel")
        rounding = attribute(node, "nearest_mode", "round_prefer_floor")
        # with integer factors no centre of a fine cell lies half-way between two coarse ones
        same = (coordinates, rounding) == ("asymmetric", "floor") or (
            coordinates in ("half_pixel", "half_pixel_symmetric") and rounding in ("round_prefer_floor", "round_prefer_ceil")
        )
        if not same or attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
            return None
    if any(length % part for length, part in zip(after, before, strict=True)):
        return None
    factors = tuple(length // part for length, part in zip(after, before, strict=True))
    scales = node.input[2 if node.op_type == "Resize" else 1] if len(node.input) > (2 if node.op_type == "Resize" else 1) else ""
    if scales:
        axes = attribute(node, "axes", range(len(factors)))
        if scales not in graph.constants or list(graph.constants[scales]) != [factors[axis] for axis in axes]:
            return None
    return factors if factors[:2] == (1, 1) and max(factors) > 1 else None
