"""An ONNX graph as a PyTorch module: the operators that a surrogate may hold, each as the PyTorch function it stands for.

PyTorch writes ONNX and does not read it; the converters there are know half of these operators. What depends on constants alone
is folded before (`minicarlo.graph.model`), so that shapes are mostly numbers when the module is built.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from minicarlo.errors import InvalidSurrogate
from minicarlo.graph.model import Graph, attribute

__all__ = ["MAC_OPERATORS", "TorchGraph"]

MAC_OPERATORS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

_DTYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT64: torch.int64,
    TensorProto.INT32: torch.int32,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
}

Compute = Callable[..., Any]
"""From the values of a node's inputs (None for one left out) to that of its output, or a tuple of several."""


class TorchGraph(nn.Module):
    """The graph of an ONNX model: `forward(latent=..., incident_energy=...)`, its inputs by name, gives its output.

    `layers` are the names of its layers with multiply-accumulates, `input_sizes` how many numbers of each input an event has;
    `entered`, if set, is called with the name of each node before it is computed. Raises InvalidSurrogate for a node that is not
    understood.
    """

    def __init__(self, data: bytes, where: str) -> None:
        super().__init__()
        graph = Graph(data)
        self.entered: Callable[[str], None] | None = None
        self.layers = [node.name for node in graph.nodes if node.op_type in MAC_OPERATORS]
        self.input_sizes = {name: graph.shapes[name][1] for name in graph.inputs if graph.rank(name) == 2}
        (self._output,) = graph.outputs
        self._constants: dict[str, str] = {}
        for number, (name, value) in enumerate(graph.constants.items()):
            self._constants[name] = f"constant{number}"
            self.register_buffer(f"constant{number}", torch.from_numpy(np.array(value)))
        opset = max(each.version for each in graph.opsets if each.domain in ("", "ai.onnx"))
        self._steps: list[tuple[str, Compute, list[str], list[str]]] = []
        for node in graph.nodes:
            if node.op_type not in _OPERATORS:
                raise InvalidSurrogate(
                    f"{where}: PyTorch cannot run node {node.name!r:.60}, a {node.op_type}. "
                    "Choose the engine openvino or onnxruntime."
                )
            compute = _OPERATORS[node.op_type](_Node(graph, node, opset))
            self._steps.append((node.name, compute, list(node.input), list(node.output)))

    def forward(self, **inputs: Tensor) -> Tensor:
        values: dict[str, Any] = {"": None, **inputs}
        values |= {name: getattr(self, place) for name, place in self._constants.items()}
        for name, compute, sources, outputs in self._steps:
            if self.entered is not None:
                self.entered(name)
            made = compute(*(values[each] for each in sources))
            values |= zip(outputs, made if isinstance(made, tuple) else (made,), strict=False)
        samples: Tensor = values[self._output]
        return samples


class _Node:
    """What is known about a node when the module is built."""

    def __init__(self, graph: Graph, node: NodeProto, opset: int) -> None:
        self.graph, self.node, self.opset = graph, node, opset

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ANN401
        return attribute(self.node, name, default)

    def numbers(self, place: int) -> list[Any] | None:
        """The constant input at `place` as numbers; None when it is left out or computed."""
        name = self.node.input[place] if len(self.node.input) > place else ""
        return self.graph.constants[name].reshape(-1).tolist() if name in self.graph.constants else None

    def rank(self, place: int = 0) -> int:
        return self.graph.rank(self.node.input[place])

    def shape(self, place: int = 0) -> tuple[int, ...]:
        return self.graph.shapes[self.node.input[place]]


def _ints(value: Any) -> list[int]:  # noqa: ANN401
    return [int(each) for each in (value.reshape(-1).tolist() if isinstance(value, Tensor) else value)]


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[_Node], Compute]:
    return lambda node: lambda x: function(x)


def _binary(function: Callable[[Any, Any], Tensor]) -> Callable[[_Node], Compute]:
    return lambda node: lambda a, b: function(a, b)


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[_Node], Compute]:
    return lambda node: lambda *values: reduce(function, values)


def _cast(node: _Node) -> Compute:
    dtype = _DTYPES.get(node.get("to"))
    if dtype is None:
        raise _not_understood(node)
    return lambda x: x.to(dtype)


def _div(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _mod(node: _Node) -> Compute:
    return torch.fmod if node.get("fmod", 0) else torch.remainder


def _clip(node: _Node) -> Compute:
    return lambda x, low=None, high=None: x if low is high is None else torch.clamp(x, low, high)


def _concat(node: _Node) -> Compute:
    axis = node.get("axis")
    return lambda *values: torch.cat(values, axis)


def _constant_of_shape(node: _Node) -> Compute:
    given = node.get("value")
    fill = torch.zeros(1) if given is None else torch.from_numpy(numpy_helper.to_array(given).copy())
    return lambda shape: fill.to(shape.device).expand(_ints(shape)).clone()


def _window(node: _Node, kernel: Sequence[int], sizes: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, and zeros before and after each axis, of a convolution or pool over a grid of `sizes`."""
    rank = len(kernel)
    strides = list(node.get("strides", [1] * rank))
    dilations = list(node.get("dilations", [1] * rank))
    pads = list(node.get("pads", [0] * 2 * rank))
    mode = node.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        total = [max(0, (math.ceil(n / s) - 1) * s + span - n) for n, s, span in zip(sizes, strides, spans, strict=True)]
        small = [each // 2 for each in total]
        large = [each - part for each, part in zip(total, small, strict=True)]
        pads = small + large if mode == "SAME_UPPER" else large + small
    return strides, dilations, pads[:rank], pads[rank:]


def _padded(x: Tensor, begins: Sequence[int], ends: Sequence[int], value: float = 0.0) -> Tensor:
    pads = [pad for pair in zip(reversed(begins), reversed(ends), strict=True) for pad in pair]
    return functional.pad(x, pads, value=value) if any(pads) else x


def _convolution(node: _Node) -> Compute:
    weights = node.shape(1)
    rank = len(weights) - 2
    strides, dilations, begins, ends = _window(node, weights[2:], node.shape()[2:])
    group = node.get("group", 1)
    function: Any = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    even = begins == ends
    padding = begins if even else [0] * rank

    def compute(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x if even else _padded(x, begins, ends)
        result: Tensor = function(x, weight, bias, strides, padding, dilations, group)
        return result

    return compute


def _transposed_convolution(node: _Node) -> Compute:
    weights, sizes = node.shape(1), node.shape()[2:]
    rank = len(weights) - 2
    strides = list(node.get("strides", [1] * rank))
    dilations = list(node.get("dilations", [1] * rank))
    more = list(node.get("output_padding", [0] * rank))
    pads = list(node.get("pads", [0] * 2 * rank))
    full = [(n - 1) * s + d * (k - 1) + 1 + m for n, s, d, k, m in zip(sizes, strides, dilations, weights[2:], more, strict=True)]
    mode = node.get("auto_pad", "NOTSET")
    wanted = node.get("output_shape") or (
        [n * s for n, s in zip(sizes, strides, strict=True)] if mode.startswith("SAME") else None
    )
    if wanted is not None:
        more = [extra + max(0, size - length) for extra, length, size in zip(more, full, wanted, strict=True)]
        full = [max(length, size) for length, size in zip(full, wanted, strict=True)]
        total = [length - size for length, size in zip(full, wanted, strict=True)]
        small = [each // 2 for each in total]
        large = [each - part for each, part in zip(total, small, strict=True)]
        pads = small + large if mode == "SAME_UPPER" else large + small
    group = node.get("group", 1)
    function: Any = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[rank - 1]
    cuts = [(axis + 2, pads[axis], full[axis] - pads[axis] - pads[rank + axis]) for axis in range(rank)]

    def compute(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        # PyTorch wants the additional cells to be fewer than the stride; they hold nothing but the bias
        x = function(x, weight, None, strides, 0, 0, group, dilations)
        x = _padded(x, [0] * rank, more)
        for axis, start, length in cuts:
            x = x.narrow(axis, start, length)
        return x if bias is None else x + bias.reshape(-1, *(1,) * rank)

    return compute


def _gemm(node: _Node) -> Compute:
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    first, second = node.get("transA", 0), node.get("transB", 0)

    def compute(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = a.T if first else a, b.T if second else b
        return alpha * (a @ b) if c is None else torch.addmm(c, a, b, beta=beta, alpha=alpha)

    return compute


def _pool(node: _Node) -> Compute:
    kernel, largest = list(node.get("kernel_shape")), node.node.op_type == "MaxPool"
    strides, dilations, begins, ends = _window(node, kernel, node.shape()[2:])
    up = bool(node.get("ceil_mode", 0))
    counted = bool(node.get("count_include_pad", 0))
    rank = len(kernel)
    if up or (not largest and set(dilations) != {1}) or len(node.node.output) > 1:
        raise _not_understood(node)
    if largest:
        function: Any = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[rank - 1]
        return lambda x: function(_padded(x, begins, ends, _least(x.dtype)), kernel, strides, 0, dilations)
    mean: Any = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1]

    def compute(x: Tensor) -> Tensor:
        total: Tensor = mean(_padded(x, begins, ends), kernel, strides)
        if counted or not any(begins + ends):
            return total
        share: Tensor = mean(_padded(torch.ones_like(x[:1]), begins, ends), kernel, strides)
        return total / share

    return compute


def _least(dtype: torch.dtype) -> float:
    return -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def _batch_norm(node: _Node) -> Compute:
    epsilon = node.get("epsilon", 1e-5)
    if node.get("training_mode", 0):
        raise _not_understood(node)
    return lambda x, scale, bias, mean, variance: functional.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


def _layer_norm(node: _Node) -> Compute:
    axis, epsilon = node.get("axis", -1), node.get("epsilon", 1e-5)

    def compute(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.layer_norm(x, x.shape[axis:], scale, bias, epsilon)

    return compute


def _group_norm(node: _Node) -> Compute:
    groups, epsilon = node.get("num_groups"), node.get("epsilon", 1e-5)

    def compute(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if len(scale) == x.shape[1]:
            return functional.group_norm(x, groups, scale, bias, epsilon)
        shape = (-1, *(1,) * (x.ndim - 2))  # until operator set 20 one number per group
        per_channel = [each.repeat_interleave(x.shape[1] // groups).reshape(shape) for each in (scale, bias)]
        return functional.group_norm(x, groups, eps=epsilon) * per_channel[0] + per_channel[1]

    return compute


def _instance_norm(node: _Node) -> Compute:
    epsilon = node.get("epsilon", 1e-5)
    return lambda x, scale, bias: functional.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def _gelu(node: _Node) -> Compute:
    approximate = node.get("approximate", "none")
    return lambda x: functional.gelu(x, approximate=approximate)


def _with(function: Callable[..., Tensor], **names: tuple[str, float]) -> Callable[[_Node], Compute]:
    """A function of one tensor with attributes: argument name to (attribute, default)."""

    def build(node: _Node) -> Compute:
        values = {argument: node.get(name, default) for argument, (name, default) in names.items()}
        return lambda x: function(x, **values)

    return build


def _hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


def _selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    return gamma * (torch.clamp(x, min=0) + torch.clamp(alpha * (torch.exp(x) - 1), max=0))


def _thresholded(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > alpha, x, 0)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _flatten(node: _Node) -> Compute:
    axis = node.get("axis", 1)
    return lambda x: x.reshape(math.prod(x.shape[:axis]), -1)


def _gather(node: _Node) -> Compute:
    axis, places = node.get("axis", 0), node.numbers(1)
    scalar = places is not None and len(places) == 1 and node.rank(1) == 0

    def compute(x: Tensor, index: Tensor) -> Tensor:
        if scalar:
            return x.select(axis, int(places[0]))  # type: ignore[index]
        index = torch.where(index < 0, index + x.shape[axis], index)
        taken = x.index_select(axis, index.reshape(-1).to(x.device))
        start = axis % x.ndim
        return taken.reshape(*x.shape[:start], *index.shape, *x.shape[start + 1 :])

    return compute


def _expand(node: _Node) -> Compute:
    known = node.numbers(1)
    return lambda x, shape: x * torch.ones(_ints(known or shape), dtype=x.dtype, device=x.device)


def _pad(node: _Node) -> Compute:
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}.get(
        node.get("mode", "constant")
    )
    rank, known, value, axes = node.rank(), node.numbers(1), node.numbers(2), node.numbers(3)
    if mode is None or known is None or rank < 0:
        raise _not_understood(node)
    begins, ends = [0] * rank, [0] * rank
    places = [int(axis) % rank for axis in axes] if axes is not None else list(range(rank))
    for place, axis in enumerate(places):
        begins[axis], ends[axis] = int(known[place]), int(known[place + len(places)])
    if mode == "constant":
        return lambda x, *_: _padded(x, begins, ends, 0.0 if value is None else value[0])
    if any(begins[:2] + ends[:2]):
        raise _not_understood(node)
    pads = [pad for pair in zip(reversed(begins[2:]), reversed(ends[2:]), strict=True) for pad in pair]
    return lambda x, *_: functional.pad(x, pads, mode)


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[[_Node], Compute]:
    def build(node: _Node) -> Compute:
        given, keep = node.get("axes"), bool(node.get("keepdims", 1))
        axes = list(given) if given is not None else node.numbers(1)
        nothing = not axes and node.get("noop_with_empty_axes", 0)

        def compute(x: Tensor, *_: Tensor) -> Tensor:
            return x if nothing else function(x, [int(axis) for axis in axes] if axes else list(range(x.ndim)), keep)

        return compute

    return build


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _reshape(node: _Node) -> Compute:
    known, zero = node.numbers(1), node.get("allowzero", 0)

    def compute(x: Tensor, shape: Tensor) -> Tensor:
        target = _ints(known if known is not None else shape)
        return x.reshape([x.shape[place] if length == 0 and not zero else length for place, length in enumerate(target)])

    return compute


def _resize(node: _Node) -> Compute:
    before, after = node.graph.shapes.get(node.node.input[0]), node.graph.shapes.get(node.node.output[0])
    mode = node.get("mode", "nearest")
    if before is None or after is None or before[:2] != after[:2]:
        raise _not_understood(node)
    coordinates = node.get("coordinate_transformation_mode", "half_pixel" if node.node.op_type == "Resize" else "asymmetric")
    rounding = node.get("nearest_mode", "round_prefer_floor" if node.node.op_type == "Resize" else "floor")
    if mode == "nearest":
        for axis, (old, new) in enumerate(zip(before, after, strict=True)):
            if new % old and old != new:
                raise _not_understood(node)
            # with whole factors no centre of a fine cell lies half-way between two coarse ones
            exact = (coordinates, rounding) == ("asymmetric", "floor") or (
                coordinates in ("half_pixel", "half_pixel_symmetric") and rounding in ("round_prefer_floor", "round_prefer_ceil")
            )
            if old != new and (axis < 2 or not exact):
                raise _not_understood(node)
        return lambda x, *_: functional.interpolate(x, size=after[2:], mode="nearest")
    if mode != "linear" or coordinates not in ("half_pixel", "align_corners") or node.get("antialias", 0):
        raise _not_understood(node)
    scales = node.numbers(2 if node.node.op_type == "Resize" else 1) or [
        new / old for old, new in zip(before, after, strict=True)
    ]
    if any(old * scale != new for old, new, scale in zip(before, after, scales, strict=True)):
        raise _not_understood(node)
    kind = ("linear", "bilinear", "trilinear")[len(before) - 3]
    corners = coordinates == "align_corners"
    return lambda x, *_: functional.interpolate(x, size=after[2:], mode=kind, align_corners=corners)


def _shape(node: _Node) -> Compute:
    start, end = node.get("start", 0), node.get("end")
    return lambda x: torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def _slice(node: _Node) -> Compute:
    known = [node.numbers(place) for place in range(1, 5)]

    def compute(x: Tensor, *given: Tensor | None) -> Tensor:
        parts = [now if now is not None else None if place >= len(given) or given[place] is None else _ints(given[place])
                 for place, now in enumerate(known)]  # fmt: skip
        starts, ends, axes, steps = parts
        assert starts is not None and ends is not None
        axes = axes if axes is not None else list(range(len(starts)))
        for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(starts), strict=True):
            if step > 0:
                x = x[(slice(None),) * (axis % x.ndim) + (slice(start, end, step),)]
            else:
                places = range(x.shape[axis])[slice(start, None if end < -x.shape[axis] else end, step)]
                x = x.index_select(axis, torch.tensor(list(places), device=x.device))
        return x

    return compute


def _split(node: _Node) -> Compute:
    axis, count = node.get("axis", 0), len(node.node.output)
    known = node.get("split") or node.numbers(1)

    def compute(x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        if known is not None or sizes is not None:
            return tuple(x.split(_ints(known if known is not None else sizes), axis))
        return tuple(x.split(math.ceil(x.shape[axis] / count), axis))

    return compute


def _squeeze(node: _Node) -> Compute:
    axes = node.get("axes") or node.numbers(1)
    return lambda x, *_: x.squeeze() if axes is None else x.squeeze([int(axis) for axis in axes])


def _unsqueeze(node: _Node) -> Compute:
    axes = node.get("axes") or node.numbers(1)
    if axes is None:
        raise _not_understood(node)

    def compute(x: Tensor, *_: Tensor) -> Tensor:
        rank = x.ndim + len(axes)
        for axis in sorted(int(axis) % rank for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return compute


def _softmax(node: _Node) -> Compute:
    axis = node.get("axis", -1)
    return lambda x: torch.softmax(x, axis)


def _transpose(node: _Node) -> Compute:
    perm = node.get("perm")
    return lambda x: x.permute(perm if perm is not None else list(reversed(range(x.ndim))))


def _tile(node: _Node) -> Compute:
    known = node.numbers(1)
    return lambda x, repeats: x.repeat(_ints(known if known is not None else repeats))


def _cumsum(node: _Node) -> Compute:
    axes, exclusive, backwards = node.numbers(1), node.get("exclusive", 0), node.get("reverse", 0)
    if axes is None:
        raise _not_understood(node)
    axis = int(axes[0])

    def compute(x: Tensor, *_: Tensor) -> Tensor:
        x = x.flip(axis) if backwards else x
        total = x.cumsum(axis) - x if exclusive else x.cumsum(axis)
        return total.flip(axis) if backwards else total

    return compute


def _depth_to_space(node: _Node) -> Compute:
    size, rows = node.get("blocksize"), node.get("mode", "DCR") == "CRD"

    def compute(x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        if rows:
            return functional.pixel_shuffle(x, size)
        x = x.reshape(count, size, size, channels // size**2, height, width)
        return x.permute(0, 3, 4, 1, 5, 2).reshape(count, -1, height * size, width * size)

    return compute


def _space_to_depth(node: _Node) -> Compute:
    size, rows = node.get("blocksize"), node.get("mode", "DCR") == "CRD"

    def compute(x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        x = x.reshape(count, channels, height // size, size, width // size, size)
        return x.permute((0, 1, 3, 5, 2, 4) if rows else (0, 3, 5, 1, 2, 4)).reshape(count, -1, height // size, width // size)

    return compute


def _along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """One number, or one for each place along an axis, so that it broadcasts to `x`."""
    return values.reshape(-1, *(1,) * (x.ndim - 1 - axis % x.ndim)) if values.numel() > 1 else values.reshape(())


def _quantize(node: _Node) -> Compute:
    axis = node.get("axis", 1)
    if node.get("block_size", 0):
        raise _not_understood(node)

    def compute(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        zero = torch.zeros((), dtype=torch.uint8, device=x.device) if zero is None else zero
        range_of = torch.iinfo(zero.dtype)
        steps = torch.round(x / _along(scale, x, axis)) + _along(zero, x, axis)
        return torch.clamp(steps, range_of.min, range_of.max).to(zero.dtype)

    return compute


def _dequantize(node: _Node) -> Compute:
    axis = node.get("axis", 1)
    if node.get("block_size", 0):
        raise _not_understood(node)

    def compute(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        steps = x.to(scale.dtype) if zero is None else x.to(scale.dtype) - _along(zero, x, axis).to(scale.dtype)
        return steps * _along(scale, x, axis)

    return compute


def _global_mean(x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.ndim)), keepdim=True)


def _mean(node: _Node) -> Compute:
    return lambda *values: reduce(torch.add, values) / len(values)


def _not_understood(node: _Node) -> InvalidSurrogate:
    return InvalidSurrogate(
        f"PyTorch cannot run node {node.node.name!r:.60}, a {node.node.op_type} with these attributes. "
        "Choose the engine openvino or onnxruntime."
    )


_OPERATORS: dict[str, Callable[[_Node], Compute]] = {
    "Abs": _unary(torch.abs),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Ceil": _unary(torch.ceil),
    "Clip": _clip,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Cos": _unary(torch.cos),
    "CumSum": _cumsum,
    "DepthToSpace": _depth_to_space,
    "DequantizeLinear": _dequantize,
    "Div": _binary(_div),
    "Dropout": lambda node: lambda x, *_: x,
    "Elu": _with(functional.elu, alpha=("alpha", 1.0)),
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _unary(torch.floor),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _unary(_global_mean),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "GroupNormalization": _group_norm,
    "HardSigmoid": _with(_hard_sigmoid, alpha=("alpha", 0.2), beta=("beta", 0.5)),
    "HardSwish": _unary(functional.hardswish),
    "Identity": _unary(lambda x: x),
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _with(functional.leaky_relu, negative_slope=("alpha", 0.01)),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": _unary(torch.log),
    "MatMul": _binary(torch.matmul),
    "Max": _fold(torch.maximum),
    "MaxPool": _pool,
    "Mean": _mean,
    "Min": _fold(torch.minimum),
    "Mod": _mod,
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(torch.logical_or),
    "PRelu": _binary(_prelu),
    "Pad": _pad,
    "Pow": _binary(torch.pow),
    "QuantizeLinear": _quantize,
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMean": _reduction(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    "Relu": _unary(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Round": _unary(torch.round),
    "Selu": _with(_selu, alpha=("alpha", 1.6732632), gamma=("gamma", 1.0507010)),
    "Shape": _shape,
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Slice": _slice,
    "Softmax": _softmax,
    "Softplus": _unary(functional.softplus),
    "Softsign": _unary(functional.softsign),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(torch.sub),
    "Sum": _fold(torch.add),
    "Tan": _unary(torch.tan),
    "Tanh": _unary(torch.tanh),
    "ThresholdedRelu": _with(_thresholded, alpha=("alpha", 1.0)),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
    "Where": lambda node: torch.where,
}
