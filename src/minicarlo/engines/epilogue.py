"""The element-wise end of a network, taken out of the runtime's graph and compiled into one pass (`vector_code`).

Behind its last convolutions a generator of showers makes one number of each cell from a few: noise is added, layers are given
their energies, cells under a threshold become zero, and the axes are put in order. A runtime does that operation by operation
or group by group, each through memory; sums over layers and permutations are passes of their own. Here all of it is a loop over
an event's cells while they are in the processor's cache.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.engines.account import biases, mac_layers
from minicarlo.engines.convolution_end import FoundTrunk, trunk, wide
from minicarlo.engines.dense import dense_end, readers
from minicarlo.engines.dense_code import Columns, Dense
from minicarlo.engines.kernel_end import KernelEnd, Taken
from minicarlo.engines.runtime import FORMATS, InferencePrecision, element_type, event_shape, one_at_a_time
from minicarlo.engines.vector_code import Kernel, kernel
from minicarlo.engines.vector_program import KINDS, Program, Size, Step

if TYPE_CHECKING:
    import openvino

_MOST_FACTORS = 64
"""Inputs of a product that is computed together with the cells that it makes."""

_MOST_CELLS, _MOST_OPERATIONS = 2**22, 256
"""Of an end that is compiled: a stranger's graph must not take its time and memory."""

_VIEWS = {"Reshape", "Transpose", "Squeeze", "Unsqueeze"}

Order = NDArray[np.intp]
"""Of each element of a value the cell of the result that it belongs to."""


def epilogue(model: openvino.Model, precision: InferencePrecision = "f32") -> KernelEnd | None:
    """The end of `model` as a kernel; None when there is nothing to gain, or something that is not understood.

    There is something to gain when sums over rows are among what is element-wise, or a matrix product of few inputs that makes
    all cells. Convolutions of single cells go with it, in int8, bf16 or float32, where the processor can, and in float32
    (`precision`, which what is not quantised runs in) such a product. `model` is left as it was.
    """
    if len(model.outputs) != 1:
        return None
    with one_at_a_time:
        for dense in (True, False):
            end = _End(model.clone(), precision, dense=dense)
            program = end.program() if end.pays() else None
            if program is not None:
                return end.as_kernel(kernel(program, end.trunk.trunk if end.trunk else None))
    return None


class _End:
    """The operations at the end of `model` that are computed cell by cell or row by row, by their names."""

    def __init__(self, model: openvino.Model, precision: InferencePrecision, *, dense: bool) -> None:
        self._parameters, self._precision, self._products = model.get_parameters(), precision, precision == "f32"
        self._macs = mac_layers(model)
        self._biases = biases(model, self._macs)
        self._last = model.outputs[0].get_node().input_value(0)
        self._sample = _event_shape(self._last) or ()
        self._rows, self._cells = (*self._sample, 0)[0], math.prod(self._sample)
        self._inside: dict[str, Any] = {}
        self._dense = dense_end(model, FORMATS[precision]) if dense else None
        if len(self._sample) > 1 and self._rows < self._cells <= _MOST_CELLS and element_type(self._last) == "f32":
            self._collect(model.get_ordered_ops())

    def _collect(self, ordered: list[Any]) -> None:
        """From the result backwards, every operation that is understood and that nothing else reads."""
        after_sums: set[str] = set()
        for op in ordered:
            if self._is_sum(op) or any(value.get_node().get_name() in after_sums for value in op.input_values()):
                after_sums.add(op.get_name())
        last = self._last.get_node().get_name()
        found: dict[str, Any] = {}
        for op in reversed(ordered):
            name = op.get_name()
            if op.get_output_size() == 1 and (name == last or {each.get_name() for each in readers(op)} <= found.keys()):
                if self._understood(op, after_sums=name in after_sums):
                    found[name] = op
        self._inside = dict(reversed(found.items()))

    def _understood(self, op: Any, *, after_sums: bool) -> bool:  # noqa: ANN401
        kind, shape = op.get_type_name(), _event_shape(op.output(0))
        if self._is_dense(op):
            return shape == self._sample
        if kind == "MatMul":
            return self._is_product(op)
        if kind == "Slice":
            return all(self._rolled_by(each) for each in readers(op))
        if kind == "ReduceSum":
            return self._is_sum(op)
        if shape is None or op.get_friendly_name() in self._biases:  # which the runtime adds within the layer
            return False
        if math.prod(shape) != self._cells and not (after_sums and math.prod(shape) == self._rows):
            return False
        if kind == "Concat":
            return self._rolled_by(op) > 0
        if kind in _VIEWS:
            before = _event_shape(op.input_value(0))
            stays = kind != "Transpose" or (_is_constant(op.input_value(1)) and _data(op.input_value(1))[0] == 0)
            return before is not None and math.prod(before) == math.prod(shape) and stays
        if kind not in KINDS or (kind == "Round" and op.get_attributes()["mode"] != "half_to_even"):
            return False
        if kind == "Convert" and (element_type(op.input_value(0)), element_type(op.output(0))) != ("boolean", "f32"):
            return False
        if not {element_type(value) for value in (*op.input_values(), op.output(0))} <= {"f32", "boolean"}:
            return False
        return all(self._broadcasts(value, shape) for value in op.input_values())

    def _broadcasts(self, value: Any, shape: tuple[int, ...]) -> bool:  # noqa: ANN401
        """Whether an operand has a number for each element of `shape`, for each row, for the event, or is a constant."""
        if _is_constant(value):
            given = tuple(value.get_shape())
            return element_type(value) == "f32" and (len(given) <= len(shape) or (len(given) == len(shape) + 1 and given[0] == 1))
        found = _event_shape(value)
        of_rows = (self._rows, *(1,) * (len(shape) - 1))
        return found is not None and len(found) == len(shape) and (found in (shape, of_rows) or set(found) == {1})

    def _rolled_by(self, op: Any) -> int:  # noqa: ANN401
        """Of all cells but the first k, followed by these: k, and 0 of anything else."""
        parts = op.input_values()
        if op.get_type_name() != "Concat" or len(parts) != 2 or op.get_attributes()["axis"] not in (1, -1):
            return 0
        if _event_shape(op.output(0)) != (self._cells,) or any(each.get_node().get_type_name() != "Slice" for each in parts):
            return 0
        (rest, later), (first, earlier) = ((each.get_node().input_value(0), _range_of(each.get_node())) for each in parts)
        if _name(rest) != _name(first) or _event_shape(rest) != (self._cells,) or later is None or earlier is None:
            return 0
        return later[0] if earlier[0] == 0 and later[0] == earlier[1] and later[1] >= self._cells else 0

    def _is_sum(self, op: Any) -> bool:  # noqa: ANN401
        if op.get_type_name() != "ReduceSum" or not _is_constant(op.input_value(1)):
            return False
        rank = len(self._sample) + 1
        axes = {int(axis) % rank for axis in _data(op.input_value(1)).reshape(-1)}
        return _event_shape(op.input_value(0)) == self._sample and axes == set(range(2, rank))

    def _is_product(self, op: Any) -> bool:  # noqa: ANN401
        if not self._products or op.get_attributes()["transpose_a"] or not _is_constant(op.input_value(1)):
            return False
        factors, made = _event_shape(op.input_value(0)), _event_shape(op.output(0))
        few = factors is not None and len(factors) == 1 and factors[0] <= _MOST_FACTORS
        return few and made == (self._cells,) and {element_type(value) for value in op.input_values()} == {"f32"}

    def pays(self) -> bool:
        """Whether the runtime would go through memory for something that costs little here."""
        kinds = {op.get_type_name() for op in self._inside.values()}
        return bool(kinds & {"ReduceSum", "MatMul"}) and len(self._inside) <= _MOST_OPERATIONS

    def layers(self) -> dict[str, Taken]:
        """Layers with multiply-accumulates among what was taken out."""
        taken = {layer: op for op in self._inside.values() if (layer := self._macs.get(op.get_friendly_name())) is not None}
        dense = {layer for layer, op in taken.items() if self._dense and self._is_dense(op)}
        places = self._cells // self._rows
        macs = {layer: math.prod(op.input_value(1).get_shape()) * places * (layer in dense) for layer, op in taken.items()}
        formats = {layer: self._dense.format if self._dense and layer in dense else "fp32" for layer in taken}
        if self.trunk is not None:
            for (name, form), each in zip(self.trunk.layers.items(), self.trunk.trunk.convolutions, strict=True):
                macs[self._macs[name]], formats[self._macs[name]] = each.macs, form
        total = max(1, sum(macs.values()))
        return {layer: Taken(formats[layer], macs[layer] / total) for layer in macs}

    def _is_dense(self, op: Any) -> bool:  # noqa: ANN401
        return self._dense is not None and op.get_name() in self._dense.operations

    def _operands(self, op: Any) -> list[Any]:  # noqa: ANN401
        """The inputs that are values of an event; of dense layers the features, which are none of the kernel's values."""
        kind = op.get_type_name()
        if self._is_dense(op) or kind == "Slice":  # which is part of a concatenation
            return []
        if kind == "Concat":
            return [op.input_value(0).get_node().input_value(0)]
        return list(op.input_values()[:1] if kind in (*_VIEWS, "ReduceSum", "MatMul") else op.input_values())

    @cached_property
    def _dense_layers(self) -> dict[str, Dense]:
        """The dense layers that were taken out, by the value that is theirs."""
        layers = {} if self._dense is None else self._dense.layers
        return {_name(op.output(0)): layers[name] for name, op in self._inside.items() if name in layers}

    @cached_property
    def trunk(self) -> FoundTrunk | None:
        """The convolutions in front of the dense layers, where our code computes them faster than the runtime (`wide`)."""
        if self._dense is None or not self._dense_layers or self._dense.format != "int8" or not wide():
            return None
        found = trunk(self._dense.sources, self._precision)
        straight = found is not None and all(np.array_equal(order, np.arange(math.prod(shape))) for order, shape in found.made)
        return found if straight else None

    @cached_property
    def _columns(self) -> Columns | None:
        """Where the dense layers find their features: behind the leaves."""
        if self._dense is None or not self._dense_layers:
            return None
        first, lengths = len(self._leaves), self._dense.lengths()
        return Columns(tuple(range(first, first + len(lengths))), lengths, self._dense.places)

    @cached_property
    def _read(self) -> dict[str, Any]:
        """What is read here and made elsewhere."""
        found = {}
        for op in self._inside.values():
            for value in self._operands(op):
                if not _is_constant(value) and value.get_node().get_name() not in self._inside:
                    found[_name(value)] = value
        return found

    @cached_property
    def _parts(self) -> dict[str, tuple[Any, int]]:
        """Of each value that is read, the one that the runtime still computes, and where in it an event's numbers begin."""
        of_rows = {name: math.prod(_event_shape(value) or ()) == self._rows > 1 for name, value in self._read.items()}
        return {name: _part(value) if of_rows[name] else (value, 0) for name, value in self._read.items()}

    @cached_property
    def _leaves(self) -> dict[str, Any]:
        """What the runtime still computes: the kernel's inputs."""
        return {_name(value): value for value, _ in self._parts.values()}

    @cached_property
    def _orders(self) -> dict[str, Order] | None:
        """The order of each value of cells; None if one element were to belong to two cells."""
        straight = self._straight
        orders = {_name(self._last): straight}
        for op in reversed(self._inside.values()):
            order = orders.get(_name(op.output(0)))
            if op.get_type_name() == "ReduceSum":
                order = straight
            if order is None:
                continue
            if op.get_type_name() == "Transpose":
                turned = order.reshape(1, *(_event_shape(op.output(0)) or ()))
                order = turned.transpose(np.argsort(_data(op.input_value(1)))).reshape(-1)
            for value in self._operands(op):
                size = math.prod(_event_shape(value) or (0,))
                if size == self._cells and not np.array_equal(orders.setdefault(_name(value), order), order):
                    return None
                if size == self._rows > 1 and not _is_constant(value) and not np.array_equal(order, straight):
                    return None  # rows of something else
        return orders

    @cached_property
    def _straight(self) -> Order:
        """The order of the result's cells."""
        return np.arange(self._cells)

    @cached_property
    def _turned(self) -> Order:
        """The order of cells with the rows innermost."""
        return self._straight.reshape(self._rows, -1).T.reshape(-1)

    @cached_property
    def _is_turned(self) -> bool:
        """Whether the kernel reads cells with the rows innermost, where convolutions leave their channels."""
        orders = self._orders or {}
        if self._columns is not None:
            return True
        leaves = [(value, orders[name]) for name, value in self._leaves.items() if name in orders]
        return any(np.array_equal(order, self._turned) or _from_convolution(value) for value, order in leaves)

    def program(self) -> Program | None:
        """What is to be compiled; None if cells reach it in an order that is neither of the two it can have."""
        if self._orders is None:
            return None
        wanted = self._turned if self._is_turned else self._straight
        for name in self._leaves.keys() & self._orders.keys():
            can_turn = self._is_turned and self._is_straight(name) and _event_shape(self._leaves[name]) == self._sample
            if not np.array_equal(self._orders[name], wanted) and not can_turn:
                return None
        if not all(map(self._is_straight, self._dense_layers)):
            return None
        rolled = [_name(op.output(0)) for op in self._inside.values() if op.get_type_name() == "Concat"]
        steps = self._steps(self._orders, wanted)
        if not all(np.array_equal(self._orders[name], wanted) and _can_roll(steps, name) for name in rolled):
            return None
        return Program(steps, self._rows, self._cells // self._rows, turned=self._is_turned, columns=self._columns)

    def _is_straight(self, name: str) -> bool:
        return self._orders is not None and np.array_equal(self._orders[name], self._straight)

    def _steps(self, orders: dict[str, Order], wanted: Order) -> dict[str, Step]:
        sizes: dict[int, Size] = {self._rows: "rows", 1: "event", self._cells: "cells"}
        places = {name: place for place, name in enumerate(self._leaves)}
        index = {name: places[_name(value)] for name, (value, _) in self._parts.items()}
        factors = {_name(op.input_value(0)) for op in self._inside.values() if op.get_type_name() == "MatMul"}
        steps = {}
        for name, value in self._read.items():
            numbers, (whole, first) = math.prod(_event_shape(value) or ()), self._parts[name]
            part = (first, math.prod(_event_shape(whole) or ())) if numbers == self._rows > 1 else None
            if name not in factors:
                steps[name] = Step("input", sizes[numbers], index=index[name], part=part)
        same: dict[str, str] = {}
        for op in self._inside.values():
            name, kind = _name(op.output(0)), op.get_type_name()
            if kind == "Slice":
                continue
            size: Size = "cells" if name in orders else "rows"
            if kind in _VIEWS:
                source = _name(op.input_value(0))
                same[name] = same.get(source, source)
            elif self._is_dense(op):
                if name in self._dense_layers:  # and not a product whose bias is still to be added
                    steps[name] = Step("dense", "cells", dense=self._dense_layers[name])
            elif kind == "Concat":
                source = _name(self._operands(op)[0])
                steps[name] = Step("rolled", size, (same.get(source, source),), ahead=self._rolled_by(op))
            elif kind == "MatMul":
                weights = np.array(_data(op.input_value(1)), np.float32)
                weights = weights.T if op.get_attributes()["transpose_b"] else weights
                steps[name] = Step(
                    "product", size, data=_in_order(weights, orders[name], wanted), index=index[_name(op.input_value(0))]
                )
            else:
                inputs = []
                for value in self._operands(op):
                    source = _name(value)
                    if _is_constant(value):
                        source = f"{name} {source}"
                        steps[source] = self._constant(value, op, orders, wanted)
                    inputs.append(same.get(source, source))
                steps[name] = Step("sum" if kind == "ReduceSum" else KINDS[kind], size, tuple(inputs))
        last = same.get(_name(self._last), _name(self._last))
        return {name: step for name, step in steps.items() if name != last} | {last: steps[last]}

    def _constant(self, value: Any, op: Any, orders: dict[str, Order], wanted: Order) -> Step:  # noqa: ANN401
        data = np.array(_data(value), np.float32)
        if data.size == 1:
            return Step("constant", "event", data=data.reshape(1))
        data = np.broadcast_to(data, (1, *(_event_shape(op.output(0)) or ()))).reshape(-1)
        order = orders.get(_name(op.output(0)))
        if order is None:
            return Step("constant", "rows", data=data)
        return Step("constant", "cells", data=_in_order(data, order, wanted))

    def as_kernel(self, compiled: Kernel) -> KernelEnd:
        """The end, with what the runtime computes for it."""
        from openvino import opset13 as operators

        inputs = []
        for name, value in self._leaves.items():
            port = value
            if self._is_turned and self._orders is not None and name in self._orders and self._is_straight(name):
                axes = np.array([0, *range(2, len(self._sample) + 1), 1])
                port = operators.transpose(value, operators.constant(axes)).output(0)
            inputs.append(port)
        if self._dense is not None and self._dense_layers:
            inputs += [self.trunk.features()] if self.trunk else self._dense.features()
        return KernelEnd(compiled, self._sample, self.layers(), inputs, self._parameters, self._last.get_names())


def _can_roll(steps: dict[str, Step], name: str) -> bool:
    """Whether what is rolled is made of inputs and constants cell by cell."""
    waiting = list(steps[name].inputs)
    while waiting:
        step = steps[waiting.pop()]
        if step.size == "rows" or step.kind in ("dense", "rolled"):
            return False
        waiting += step.inputs
    return True


def _range_of(op: Any) -> tuple[int, int] | None:  # noqa: ANN401
    """First and last, exclusive, of what a slice of an event's numbers takes of them; None for any other slice."""
    numbers = [number for value in op.input_values()[1:] if (number := _whole_number(value)) is not None]
    if len(numbers) != 4:
        return None
    start, stop, step, axis = numbers
    return (start, stop) if step == 1 and axis in (1, -1) and min(start, stop) >= 0 else None


def _whole_number(value: Any) -> int | None:  # noqa: ANN401
    """The one number of a constant, or of one that is broadcast, as ONNX's usual step of a slice is; None of anything else."""
    node, shape = value.get_node(), value.get_partial_shape()
    if shape.is_dynamic or math.prod(shape.to_shape()) != 1:
        return None
    value = node.input_value(0) if node.get_type_name() == "Broadcast" else value
    return int(_data(value).reshape(-1)[0]) if _is_constant(value) else None


def _part(value: Any) -> tuple[Any, int]:  # noqa: ANN401
    """The value that this one's numbers are taken from by splits and by views that keep their order, and at which they begin."""
    first = 0
    while (kind := value.get_node().get_type_name()) in ("Split", "VariadicSplit", "Reshape", "Squeeze", "Unsqueeze"):
        operands = value.get_node().input_values()
        shape = _event_shape(operands[0])
        if shape is None or _event_shape(value) is None or element_type(operands[0]) != "f32":
            break
        if kind in ("Split", "VariadicSplit"):
            if len(shape) != 1 or not all(map(_is_constant, operands[1:])) or int(_data(operands[1]).item()) % 2 != 1:
                break
            first += sum(math.prod(_event_shape(each) or ()) for each in value.get_node().outputs()[: value.get_index()])
        elif math.prod(shape) != math.prod(_event_shape(value) or ()):
            break
        value = operands[0]
    return value, first


def _name(value: Any) -> str:  # noqa: ANN401
    return f"{value.get_node().get_name()}:{value.get_index()}"


def _is_constant(value: Any) -> bool:  # noqa: ANN401
    return bool(value.get_node().get_type_name() == "Constant")


def _data(constant: Any) -> NDArray[Any]:  # noqa: ANN401
    return np.asarray(constant.get_node().get_data())


def _from_convolution(value: Any) -> bool:  # noqa: ANN401
    node = value.get_node()
    makers = [node, *(each.get_node() for each in node.input_values())] if node.get_type_name() == "Add" else [node]
    return any(each.get_type_name() == "Convolution" for each in makers)


def _event_shape(value: Any) -> tuple[int, ...] | None:  # noqa: ANN401
    """`event_shape` of what is computed for any number of events; None for what is not."""
    shape = value.get_partial_shape()
    return event_shape(value) if shape.rank.is_static and len(shape) and shape[0].is_dynamic else None


def _in_order(values: NDArray[np.float32], order: Order, wanted: Order) -> NDArray[np.float32]:
    """(..., cells) by elements of the cells `order`, as (..., cells) by elements of the cells `wanted`."""
    straight = np.empty_like(values)
    straight[..., order] = values
    return straight[..., wanted]
