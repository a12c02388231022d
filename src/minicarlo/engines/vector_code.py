"""Machine code for the element-wise end of a network: one pass over memory for what a runtime does in many.

The code is LLVM's, made for the processor at hand from explicit vectors, so that no optimiser decides the order of a sum: the
same bits on every processor that has fused multiply-add.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from itertools import accumulate
from typing import Protocol
from weakref import WeakValueDictionary

import numpy as np

from minicarlo.engines.convolution_code import Trunk, TrunkFeatures
from minicarlo.engines.dense_code import BLOCK, DenseWriter
from minicarlo.engines.step_code import declared, operation
from minicarlo.engines.vector_program import COMPARE, Array, Passes, Program, Step
from minicarlo.llvm import (
    LANES,
    Body,
    compiled,
    constant,
    function,
    has_fma,
    transposed,
    vector_type,
)

_TILE = 8
_EVENTS = 4
"""Events that share each element of a product's matrix while it is in a register."""

Call = Callable[[Sequence[int], int, int], None]
"""See `Kernel.prepare`."""


class Writer(Protocol):
    """What writes a module with a function `run`: of `inputs` arrays, of constants, and in memory that is `scratch` before the
    first call."""

    @property
    def inputs(self) -> int: ...
    @property
    def constants(self) -> Sequence[Array]: ...
    @property
    def scratch(self) -> Array: ...
    def text(self) -> str: ...


class Kernel:
    """A module compiled for this processor. Calls may run in several threads at once and hold no lock of Python's."""

    def __init__(self, writer: Writer, text: str) -> None:
        self._code = compiled(text)
        self._run = ctypes.CFUNCTYPE(None, *(ctypes.c_void_p,) * 4, ctypes.c_int64)(self._code.get_function_address("run"))
        self._constants = _aligned(writer.constants)
        self._scratch, self._inputs = writer.scratch, writer.inputs

    def prepare(self) -> Call:
        """A function of the addresses of all inputs, the address of the result and a number of events: it computes these. It has
        memory of its own and is not to be called from two threads at once."""
        scratch = _aligned([self._scratch])
        addresses = np.zeros(self._inputs, np.uint64)
        places = [array.ctypes.data for array in (addresses, self._constants, scratch)]

        def call(inputs: Sequence[int], out: int, events: int, _memory: Array = scratch) -> None:
            addresses[:] = inputs
            self._run(*places, out, events)

        return call


_kernels: WeakValueDictionary[bytes, Kernel] = WeakValueDictionary()


def kernel(program: Program, trunk: Trunk | None = None) -> Kernel:
    """`program` compiled. With a `trunk`, its results are what the program's columns are found in, and in the place of the first
    of those inputs the trunk's features are given."""
    return kernel_of(_Writer(program, trunk))


def kernel_of(writer: Writer) -> Kernel:
    """What `writer` writes, compiled; the same kernel for the same code and numbers."""
    text = writer.text()
    digest = sha256(text.encode() + b"".join(each.tobytes() for each in (*writer.constants, writer.scratch))).digest()
    found = _kernels.get(digest)
    if found is None:
        found = _kernels[digest] = Kernel(writer, text)
    return found


def _aligned(parts: Sequence[Array]) -> Array:
    whole = np.concatenate(parts)
    memory = np.empty(len(whole) + LANES, np.float32)
    start = -memory.ctypes.data % 64 // 4
    memory[start : start + len(whole)] = whole
    return memory[start : start + len(whole)]


def _kind(step: Step) -> str:
    return "i1" if step.kind in COMPARE else "float"


class _Writer:
    """The text of a program."""

    def __init__(self, program: Program, trunk: Trunk | None = None) -> None:
        self.program, self.steps = program, program.steps
        self._passes = passes = Passes(program)
        of_cells = {n: np.atleast_2d(t.data) for n, t in self.steps.items() if t.data is not None and passes.is_early(n)}
        of_rows = {n: t.data for n, t in self.steps.items() if t.data is not None and t.size == "rows"}
        of_rows |= {n: self._in_rows(t.data) for n, t in self.steps.items() if t.data is not None and passes.is_late(n)}
        self._planes = dict(zip(of_cells, accumulate((len(each) for each in of_cells.values()), initial=0), strict=False))
        self._depth = sum(map(len, of_cells.values()))
        blocks = -(-program.cells // LANES)
        table = np.zeros((self._depth, blocks * LANES), np.float32)
        table[:, : program.cells] = np.concatenate([*of_cells.values(), np.zeros((0, program.cells))])
        dense = [step.dense for step in self.steps.values() if step.dense is not None]
        self._layers = [name for name, step in self.steps.items() if step.dense is not None]
        self._dense = DenseWriter(program.columns, dense) if program.columns is not None and dense else None
        self._dense_at = table.size
        self.constants = [
            table.reshape(self._depth, blocks, LANES).transpose(1, 0, 2).reshape(-1),
            *([self._dense.constants] if self._dense else []),
            *(each.reshape(-1) for each in of_rows.values()),
        ]
        sizes = (each.size for each in of_rows.values())
        self._late_sizes = {name: each.size for name, each in of_rows.items()}
        before = table.size + (self._dense.constants.size if self._dense else 0)
        self._offsets = dict(zip(of_rows, accumulate(sizes, initial=before), strict=False))
        indices = [step.index for step in self.steps.values()]
        self.inputs = 1 + max([*indices, *(program.columns.inputs if program.columns else ())], default=-1)
        self._length = -(-program.cells // LANES) * LANES
        self._blocks = (
            (_EVENTS + program.turned) * len(self._passes.kept) * self._length
        )  # where they begin in the scratch memory
        self._row_values = self._blocks + (_EVENTS * self._dense.size if self._dense else 0)
        self._row_length = -(-program.row // LANES) * LANES
        self._ahead = self._row_values + len(self._passes.again) * self._row_length
        furthest = max((step.ahead for step in self.steps.values()), default=0)
        self._ahead_length = self._length + -(-furthest // LANES) * LANES
        self.scratch = np.zeros(self._ahead + _EVENTS * len(self._passes.ahead) * self._ahead_length, np.float32)
        self._addresses = self.inputs  # that the passes read
        self._trunk = None
        if trunk is not None and program.columns is not None:
            self._trunk = TrunkFeatures(trunk, program.columns, _EVENTS, self.constants, self.scratch)
            self.constants, self.scratch = self._trunk.constants, self._trunk.scratch
            self.inputs = self._trunk.given + 1

    def _in_rows(self, data: Array) -> Array:
        """Numbers of cells as (rows, row), or (row,) if all rows have the same."""
        rows, row = self.program.rows, self.program.row
        given = data.reshape(row, rows).T if self.program.turned else data.reshape(rows, row)
        return np.ascontiguousarray(given[0] if (given == given[0]).all() else given)

    def text(self) -> str:
        """The whole module."""
        functions = [self._cells(events) for events in (_EVENTS, 1)]
        if self._dense:
            functions.append(self._dense.text())
        if self._trunk:
            functions.append(self._trunk.text())
        if self.program.turned:
            functions.append(self._turn())
        functions += [self._rows(), self._run()]
        code = "\n".join(functions)
        return "\n".join([*declared(code), code])

    # one value

    def _constant_of_cells(self, body: Body, name: str, index: str, lanes: int, k: int = 0) -> str:
        """All that is known of sixteen cells lies together, so that it is one stream from memory."""
        block, lane = index, "0"
        if lanes == 1:
            block, lane = body.let(f"and i64 {index}, {-LANES}"), body.let(f"and i64 {index}, {LANES - 1}")
        start = body.times(block, self._depth)
        return body.load(body.place("%constants", start, (self._planes[name] + k) * LANES, lane), lanes)

    def _single(self, body: Body, name: str, at: str = "0") -> str:
        step = self.steps[name]
        assert step.data is not None
        if step.size == "event":
            return body.number(float(step.data.item()), 1)
        return body.load(body.place("%constants", self._offsets[name], at), 1)

    # the first pass: cells in the order of the inputs

    def _cells(self, events: int) -> str:
        """Everything of cells that needs no row's value, of so many events from `first` on, into the scratch memory."""
        body = Body()
        inputs = self._input_addresses(body)
        starts = [body.let(f"add i64 %first, {event}") for event in range(events)]
        singles = [self._event_values(body, inputs, start) for start in starts]

        def sweep(index: str, lanes: int, within: str, *, ahead: bool) -> None:
            targets, ready = (self._passes.ahead, []) if ahead else (self._passes.kept, self._passes.ahead)
            products = [name for name in self._passes.to_make(targets, ready) if self.steps[name].kind == "product"]
            made = {name: self._product(body, name, inputs, starts, index, lanes) for name in sorted(products)}
            for event, start in enumerate(starts):
                known = {name: values[event] for name, values in made.items()}

                def cell(name: str, known: dict[str, str], event: int, start: str) -> str:
                    if name not in known:
                        step = self.steps[name]
                        if step.size == "event":
                            known[name] = body.splat(singles[event][name], lanes, _kind(step))
                        elif step.kind == "constant":
                            known[name] = self._constant_of_cells(body, name, index, lanes)
                        elif name in ready:
                            known[name] = body.load(self._of_ahead(body, event, name, index), lanes)
                        elif step.kind == "rolled":
                            known[name] = body.load(self._of_ahead(body, event, step.inputs[0], index, step.ahead), lanes)
                        elif step.kind == "input":
                            place = body.place(inputs[step.index], body.times(start, self.program.cells), index)
                            known[name] = body.load(place, lanes)
                        elif step.kind == "dense":
                            known[name] = body.load(self._of_block(body, event, self._layers.index(name), within), lanes)
                        else:
                            values = [cell(each, known, event, start) for each in step.inputs]
                            known[name] = operation(body, step, values, lanes)
                    return known[name]

                for number, name in enumerate(targets, start=event * len(targets)):
                    place = body.place("%scratch", index, number * self._length)
                    if ahead:
                        place = self._of_ahead(body, event, name, index)
                    body.store(cell(name, known, event, start), place, lanes)

        if self._passes.ahead:
            body.sweep(self.program.cells, lambda index, lanes: sweep(index, lanes, index, ahead=True))
            body.sweep(self._ahead_length - self._length, partial(self._close_rings, body, events))

        def block(first: str | int, count: int) -> None:
            """Some columns: what the dense layers make of them, and the cells."""
            last, start = body.integer("add", first, count), body.integer("mul", first, self.program.rows)
            dense = body.place("%constants", self._dense_at)
            for event, number in enumerate(starts):
                made = self._of_block(body, event)
                body.do(f"call void @columns(ptr %inputs, ptr {dense}, ptr {made}, i64 {number}, i64 {first}, i64 {last})")
            body.sweep(count * self.program.rows, lambda at, lanes: sweep(body.integer("add", start, at), lanes, at, ahead=False))

        if self._dense:
            whole = self.program.row // BLOCK * BLOCK
            body.loop(0, whole, BLOCK, lambda first: block(first, BLOCK))
            if whole < self.program.row:
                block(whole, self.program.row - whole)
        else:
            body.sweep(self.program.cells, lambda index, lanes: sweep(index, lanes, index, ahead=False))
        parameters = "ptr %inputs, ptr noalias %constants, ptr noalias %scratch, i64 %first"
        return function(f"cells{events}", parameters, body)

    def _of_block(self, body: Body, event: int, layer: int = 0, cell: str | int = 0) -> str:
        """Where what the dense layers make of a block lies."""
        assert self._dense is not None
        return body.place("%scratch", self._blocks + event * self._dense.size + layer * self._dense.length, cell)

    def _of_ahead(self, body: Body, event: int, name: str, cell: str, further: int = 0) -> str:
        """Where what is made before the rest lies."""
        number = event * len(self._passes.ahead) + self._passes.ahead.index(name)
        return body.place("%scratch", self._ahead + number * self._ahead_length + further, cell)

    def _close_rings(self, body: Body, events: int, index: str, lanes: int) -> None:
        """Behind the last cells of what is rolled come the first ones."""
        for event in range(events):
            for name in self._passes.rolled:
                value = body.load(self._of_ahead(body, event, name, index), lanes)
                body.store(value, self._of_ahead(body, event, name, index, self.program.cells), lanes)

    def _input_addresses(self, body: Body) -> list[str]:
        places = [body.let(f"getelementptr inbounds ptr, ptr %inputs, i64 {i}") for i in range(self._addresses)]
        return [body.let(f"load ptr, ptr {place}") for place in places]

    def _event_values(self, body: Body, inputs: list[str], event: str) -> dict[str, str]:
        """The values that an event has one of."""
        found: dict[str, str] = {}
        for name, step in self.steps.items():
            if step.size != "event":
                continue
            if step.kind == "constant":
                found[name] = self._single(body, name)
            elif step.kind == "input":
                found[name] = body.load(body.place(inputs[step.index], event), 1)
            else:
                found[name] = operation(body, step, [found[i] for i in step.inputs], 1)
        return found

    def _product(self, body: Body, name: str, inputs: list[str], starts: list[str], index: str, lanes: int) -> list[str]:
        step = self.steps[name]
        assert step.data is not None
        depth = len(step.data)
        sums = [body.number(0.0, lanes) for _ in starts]
        offsets = [body.times(start, depth) for start in starts]
        for k in range(depth):
            weight = self._constant_of_cells(body, name, index, lanes, k)
            for event, offset in enumerate(offsets):
                factor = body.splat(body.load(body.place(inputs[step.index], offset, k), 1), lanes)
                if has_fma():
                    sums[event] = body.intrinsic("fma", lanes, factor, weight, sums[event])
                else:
                    sums[event] = body.let(
                        f"fadd {vector_type(lanes)} {sums[event]}, {body.let(f'fmul {vector_type(lanes)} {factor}, {weight}')}"
                    )
        return sums

    # between the passes

    def _turn(self) -> str:
        """(row, rows) to (rows, row), in tiles that are transposed in registers."""
        body = Body()
        rows, row = self.program.rows, self.program.row
        tiles = rows // _TILE * _TILE

        def tile(r: str, g: str) -> None:
            source = body.place("%source", body.times(r, rows), g)
            parts = [body.load(body.place(source, j * rows), _TILE) for j in range(_TILE)]
            target = body.place("%target", body.times(g, row), r)
            for j, value in enumerate(transposed(body, parts)):
                body.store(value, body.place(target, j * row), _TILE)

        def single(r: str, g: str) -> None:
            value = body.load(body.place("%source", body.times(r, rows), g), 1)
            body.store(value, body.place("%target", body.times(g, row), r), 1)

        if tiles:
            body.loop(0, row, _TILE, lambda r: body.loop(0, tiles, _TILE, lambda g: tile(r, g)))
            body.loop(row // _TILE * _TILE, row, 1, lambda r: body.loop(0, tiles, 1, lambda g: single(r, g)))
        if tiles < rows:
            body.loop(tiles, rows, 1, lambda g: body.loop(0, row, 1, lambda r: single(r, g)))
        return function("turn", "ptr noalias %source, ptr noalias %target", body)

    # the passes over rows

    def _rows(self) -> str:
        """Sums over each row, what follows from them, and the result."""
        body = Body()
        inputs = self._input_addresses(body)
        single = self._event_values(body, inputs, "%event")
        row, rows = self.program.row, self.program.rows

        def of_row(g: str) -> None:
            known: dict[str, str] = dict(single)
            start = body.times(g, row)
            made: set[str] = set()

            def scalar(name: str) -> str:
                if name not in known:
                    step = self.steps[name]
                    if step.kind == "constant":
                        known[name] = self._single(body, name, g)
                    elif step.kind == "input":
                        first, length = step.part or (0, rows)
                        place = body.place(inputs[step.index], body.times("%event", length), first, g)
                        known[name] = body.load(place, 1)
                    else:
                        known[name] = operation(body, step, [scalar(i) for i in step.inputs], 1)
                return known[name]

            def cell(name: str, at: str, lanes: int, here: dict[str, str]) -> str:
                if name in here:
                    return here[name]
                step = self.steps[name]
                again = self._passes.again.index(name) * self._row_length if name in self._passes.again else None
                if step.size != "cells":
                    here[name] = body.splat(scalar(name), lanes, _kind(step))
                elif step.kind == "constant":
                    of_cell = start if self._late_sizes[name] > row else 0
                    here[name] = body.load(body.place("%constants", self._offsets[name], of_cell, at), lanes)
                elif name in self._passes.first:
                    offset = self._passes.kept.index(name) * self._length
                    here[name] = body.load(body.place("%kept", offset, start, at), lanes)
                elif name in made and again is not None:
                    here[name] = body.load(body.place("%values", again, at), lanes)
                else:
                    here[name] = operation(body, step, [cell(i, at, lanes, here) for i in step.inputs], lanes)
                    if again is not None:
                        body.store(here[name], body.place("%values", again, at), lanes)
                return here[name]

            def cells(names: list[str], here: dict[int, dict[str, str]], at: str, lanes: int) -> list[str]:
                here[lanes] = {}
                return [cell(name, at, lanes, here[lanes]) for name in names]

            def write(values: Callable[[str, int], list[str]], at: str, lanes: int) -> None:
                body.store(values(at, lanes)[0], body.place("%out", start, at), lanes)

            def prepare(name: str) -> None:
                """Scalars that a value of cells needs are computed before its loop."""
                step = self.steps[name]
                if step.size != "cells":
                    scalar(name)
                elif name not in self._passes.first:
                    for each in step.inputs:
                        prepare(each)

            for names in self._passes.sweeps:
                sources = self._passes.sources(names)
                for source in sources:
                    prepare(source)
                here: dict[int, dict[str, str]] = {}
                values = partial(cells, sources, here)
                if names == [self._passes.result]:
                    body.sweep(row, partial(write, values))
                else:
                    known |= dict(zip(names, self._sums(body, row, len(names), values), strict=True))
                made.update(*here.values())

        body.loop(0, rows, 1, of_row)
        parameters = "ptr %inputs, ptr noalias %constants, ptr noalias %kept, ptr noalias %values, ptr noalias %out, i64 %event"
        return function("rows", parameters, body)

    def _sums(self, body: Body, count: int, number: int, values: Callable[[str, int], list[str]]) -> list[str]:
        """Of each sum sixteen parts, added pairwise in the end, and what the vectors leave over."""
        parts = [body.let(f"alloca {vector_type(LANES)}") for _ in range(number)]
        rests = [body.let("alloca float") for _ in range(number)]
        for part, rest in zip(parts, rests, strict=True):
            body.store(body.number(0.0, LANES), part, LANES)
            body.store(constant(0.0), rest, 1)

        def add(at: str, lanes: int) -> None:
            for place, more in zip(parts if lanes > 1 else rests, values(at, lanes), strict=True):
                body.store(body.let(f"fadd {vector_type(lanes)} {body.load(place, lanes)}, {more}"), place, lanes)

        body.sweep(count, add)
        return [self._total(body, part, rest) for part, rest in zip(parts, rests, strict=True)]

    def _total(self, body: Body, parts: str, rest: str) -> str:
        total, lanes = body.load(parts, LANES), LANES
        while lanes > 1:
            halves = [
                body.let(
                    f"shufflevector {vector_type(lanes)} {total}, {vector_type(lanes)} poison, <{lanes // 2} x i32> "
                    f"<{', '.join(f'i32 {start + i}' for i in range(lanes // 2))}>"
                )
                for start in (0, lanes // 2)
            ]
            lanes //= 2
            total = body.let(f"fadd <{lanes} x float> {halves[0]}, {halves[1]}")
        total = body.let(f"extractelement <1 x float> {total}, i64 0")
        return body.let(f"fadd float {total}, {body.load(rest, 1)}")

    def _run(self) -> str:
        body = Body()
        kept, length = len(self._passes.kept), self._length

        inputs = self._trunk.addresses(body, self._addresses) if self._trunk else "%inputs"

        def events(first: str, count: int) -> None:
            if self._trunk:
                self._trunk.make(body, inputs, first, count)
            body.do(f"call void @cells{count}(ptr {inputs}, ptr %constants, ptr %scratch, i64 {first})")
            for event in range(count):
                source = body.place("%scratch", event * kept * length)
                if self.program.turned:
                    target = body.place("%scratch", _EVENTS * kept * length)
                    for each in range(kept):
                        places = [body.place(base, each * length) for base in (source, target)]
                        body.do(f"call void @turn(ptr {places[0]}, ptr {places[1]})")
                    source = target
                number = body.let(f"add i64 {first}, {event}")
                out = body.place("%out", body.times(number, self.program.cells))
                values = body.place("%scratch", self._row_values)
                body.do(f"call void @rows(ptr {inputs}, ptr %constants, ptr {source}, ptr {values}, ptr {out}, i64 {number})")

        body.loop(0, "%events", _EVENTS, lambda first: events(first, _EVENTS))
        whole = body.times(body.let(f"sdiv i64 %events, {_EVENTS}"), _EVENTS)
        body.loop(whole, "%events", 1, lambda first: events(first, 1))
        return function("run", "ptr %inputs, ptr %constants, ptr %scratch, ptr %out, i64 %events", body, public=True)
