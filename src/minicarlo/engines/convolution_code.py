"""Machine code for the last convolutions of a network, which an event goes through while it is in the processor's caches.

A runtime pads the channels of a convolution to what its instructions like, and does a layer of all events after the other. Here
channels lie innermost without any padding, so that what a window covers along the last axis is one run of bytes or floats, whose
length decides how many instructions there are and not that of its parts; and each layer writes where the next one reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.engines.dense_code import ARITHMETIC, INTEGERS, Bits, Columns, add_products, places_together, scaled
from minicarlo.engines.step_code import declared, operation
from minicarlo.engines.vector_program import Array, Step
from minicarlo.llvm import LANES, Body, function, mask_type, vector_type

_FLOATS = vector_type(LANES)
_ALIGNMENT = 64
_ROUNDER = 1.5 * 2**23
_STRAIGHT = 8
"""Words of a run that are multiplied without a loop."""

SUMS = "convolution"
"""What a convolution's steps call its own result."""

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Coding:
    """How numbers become bytes: (x - low) / step, rounded half to even and kept within 0 and 255."""

    low: float
    step: float


@dataclass(frozen=True)
class Convolution:
    """A convolution with steps of one cell, and what is made of its result number by number.

    Attributes:
        weights: (rows, depth, *window), int8 for features that are bytes, or what features are, float32 or the bits of bf16.
        scale: (rows,), what sums are multiplied by.
        offset: (rows,), what is added then.
        grid: places of the input along each axis, without padding.
        before: places of padding along each axis in front of them.
        made: places of the result along each axis.
        padding: what stands for zero among the features.
        steps: values by name, made of `SUMS` and constants of one number, one for each row, or (places, rows); the last one is
            the result.
        coding: how the result becomes bytes; None if it does not.
        made_as: what it is kept as: uint8 with `coding`, else float32, or uint16 for the bits of bf16.
        moved: of each element of the input (*grid, depth) the number of the element of what is read; None if that is the input.
        reads: the number of the convolution whose result is read, -1 for what is given.
    """

    weights: NDArray[np.int8] | Bits | Array
    scale: Array
    offset: Array
    grid: tuple[int, ...]
    before: tuple[int, ...]
    made: tuple[int, ...]
    padding: int
    steps: Mapping[str, Step]
    coding: Coding | None
    made_as: np.dtype[Any]
    moved: Places | None
    reads: int

    @property
    def bytes_each(self) -> int:
        """Of a feature."""
        return self.weights.dtype.itemsize

    @property
    def padded(self) -> tuple[int, ...]:
        """Places along each axis that a window reads."""
        return tuple(made + length - 1 for made, length in zip(self.made, self.weights.shape[2:], strict=True))

    @property
    def row_bytes(self) -> int:
        """Of what is made of a place."""
        return int(self.weights.shape[0]) * self.made_as.itemsize

    @property
    def made_bytes(self) -> int:
        """Of what is made of an event, as whole floats."""
        return 4 * math.ceil(math.prod(self.made) * self.row_bytes / 4)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of an event."""
        return self.weights.size * math.prod(self.made)


@dataclass(frozen=True)
class Trunk:
    """Convolutions, each after the one that it reads. Those that read the same find it moved alike, with the same padding.

    Attributes:
        convolutions: in their order.
        read: the number of features of an event that the first ones find.
        results: the numbers of those whose results are asked for, (*places, rows), and which no other reads.
    """

    convolutions: tuple[Convolution, ...]
    read: int
    results: tuple[int, ...]


class TrunkWriter:
    """The functions of a trunk, and the memory and the constants that they need.

    `trunk` computes an event: of its features, of the constants and the memory, both aligned and the memory as `memory` is in the
    beginning, into what its results need, one after another.
    """

    def __init__(self, trunk: Trunk) -> None:
        self._trunk = trunk
        self._constants, memory = bytearray(), bytearray()
        convolutions = trunk.convolutions
        written = {layer.reads for layer in convolutions if layer.moved is None}
        self._written = {each: _Grid([layer for layer in convolutions if layer.reads == each], None) for each in sorted(written)}
        self._grids = [
            self._written[layer.reads] if layer.moved is None else _Grid([layer], layer.moved) for layer in convolutions
        ]
        for grid in dict.fromkeys(self._grids):
            grid.start = _append(memory, grid.filler.tobytes() + bytes(_ALIGNMENT))  # a run of bytes is read as whole words
        moved = {layer.reads for layer in convolutions} - {-1, *written}
        self._dense = {number: _append(memory, bytes(convolutions[number].made_bytes)) for number in sorted(moved)}
        self._layers = [_Layer(self, number, layer) for number, layer in enumerate(convolutions)]
        functions = [layer.text() for layer in self._layers]
        functions += [self._moves(number) for number, grid in enumerate(self._grids) if grid.moved is not None]
        self._code = "\n".join([*functions, self._run()])
        self.memory = np.frombuffer(bytes(memory) + bytes(-len(memory) % _ALIGNMENT), np.float32)

    def text(self) -> str:
        """All functions."""
        return self._code

    @property
    def constants(self) -> Array:
        """All constants so far."""
        return np.frombuffer(bytes(self._constants) + bytes(-len(self._constants) % _ALIGNMENT), np.float32)

    def store(self, numbers: NDArray[Any]) -> int:
        """Where in the constants `numbers` are put, in bytes."""
        return _append(self._constants, np.ascontiguousarray(numbers).tobytes())

    def window(self, number: int) -> tuple[int, tuple[int, ...]]:
        """Where in memory a convolution's first window begins, and the bytes from one place to the next along each axis."""
        grid, layer = self._grids[number], self._trunk.convolutions[number]
        ahead = [most - each for most, each in zip(grid.before, layer.before, strict=True)]
        return grid.start + _within(ahead, grid.strides), grid.strides

    def target(self, number: int) -> tuple[int | None, tuple[int, ...]]:
        """Where in memory the first place of a convolution's result lies, None if that is a result that is asked for, and the
        bytes from one place to the next along each axis."""
        layer = self._trunk.convolutions[number]
        if (grid := self._written.get(number)) is not None:
            return grid.start + _within(grid.before, grid.strides), grid.strides
        return self._dense.get(number), _strides(layer.made, layer.row_bytes)

    def _moves(self, number: int) -> str:
        """The features of a convolution to where it reads them."""
        layer, grid = self._trunk.convolutions[number], self._grids[number]
        assert grid.moved is not None
        target = _offsets((*layer.grid, layer.weights.shape[1]), (*grid.strides, layer.bytes_each))
        target += grid.start + _within(grid.before, grid.strides)
        return copies(self, f"move{number}", grid.moved * layer.bytes_each, target, layer.bytes_each)

    def _run(self) -> str:
        body = Body()
        outs = {number: f"%out{place}" for place, number in enumerate(self._trunk.results)}
        for number, layer in enumerate(self._trunk.convolutions):
            if self._grids[number].moved is not None:
                source = "%source" if layer.reads < 0 else body.at("%memory", self._dense[layer.reads], "i8")
                body.do(f"call void @move{number}(ptr {source}, ptr %constants, ptr %memory)")
            place, _ = self.target(number)
            target = outs[number] if place is None else body.at("%memory", place, "i8")
            body.do(f"call void @convolve{number}(ptr %constants, ptr %memory, ptr {target})")
        given = ", ".join(f"ptr {out}" for out in outs.values())
        return function("trunk", f"ptr %source, ptr %constants, ptr %memory, {given}", body)


class ChainWriter:
    """The module of a trunk with one result, of which `order` has for each number that is asked for that of the element,
    (*places, rows). The one input has (events, elements) as the first convolution reads it."""

    inputs = 1

    def __init__(self, trunk: Trunk, order: Places) -> None:
        self._trunk, self._order = trunk, order
        writer = TrunkWriter(trunk)
        source = order * 4
        result = copies(writer, "result", source, np.arange(len(source), dtype=np.int64) * 4, 4)
        self._made = writer.memory.size * 4
        self.scratch = np.pad(writer.memory, (0, trunk.convolutions[-1].made_bytes // 4))
        self.constants = [writer.constants]
        self._functions = [writer.text(), result, self._run()]

    def text(self) -> str:
        """The whole module."""
        code = "\n".join(self._functions)
        return "\n".join([*declared(code), code])

    def _run(self) -> str:
        body = Body()
        given, made = body.get("%inputs", "ptr"), body.at("%scratch", self._made, "i8")

        def event(number: str) -> None:
            source = body.at(given, body.times(number, self._trunk.read * self._trunk.convolutions[0].bytes_each), "i8")
            body.do(f"call void @trunk(ptr {source}, ptr %constants, ptr %scratch, ptr {made})")
            out = body.place("%out", body.times(number, len(self._order)))
            body.do(f"call void @result(ptr {made}, ptr %constants, ptr {out})")

        body.loop(0, "%events", 1, event)
        return function("run", "ptr %inputs, ptr %constants, ptr %scratch, ptr %out, i64 %events", body, public=True)


class TrunkFeatures:
    """A trunk whose results a program's columns are found in, for some `events` at a time.

    `given` is the number of the input that has the trunk's features; `constants` and `scratch` have what it needs behind what a
    program's passes need.
    """

    def __init__(self, trunk: Trunk, columns: Columns, events: int, constants: Sequence[Array], scratch: Array) -> None:
        self._trunk, self._columns, self._events = trunk, columns, events
        self._writer = TrunkWriter(trunk)
        made = [trunk.convolutions[number] for number in trunk.results]
        self._made = [math.prod(layer.made) * layer.row_bytes for layer in made]
        self.given = columns.inputs[0]
        self._constants, self.constants = _appended(constants, self._writer.constants)
        self._memory, parts = _appended([scratch], self._writer.memory)
        self._features, parts = _appended(parts, np.zeros(events * sum(self._made) // 4 + LANES, np.float32))
        self.scratch = np.concatenate(parts)

    def text(self) -> str:
        """All functions."""
        return self._writer.text()

    def addresses(self, body: Body, count: int) -> str:
        """Room for the addresses of `count` inputs of the passes, with those that the kernel is given."""
        inputs = body.let(f"alloca [{count} x ptr]")
        for index in range(self.given):
            body.put(body.get(body.at("%inputs", index, "ptr"), "ptr"), body.at(inputs, index, "ptr"), "ptr")
        return inputs

    def make(self, body: Body, inputs: str, first: str, count: int) -> None:
        """What the trunk makes of some events, and its addresses, from which the passes count events from the first of all."""
        size = self._trunk.read * self._trunk.convolutions[0].bytes_each
        source = body.at(body.get(body.at("%inputs", self.given, "ptr"), "ptr"), body.times(first, size), "i8")
        constants, memory = body.place("%constants", self._constants), body.place("%scratch", self._memory)
        starts = list(accumulate((self._events * each for each in self._made), initial=4 * self._features))[:-1]
        for event in range(count):
            made = (body.at("%scratch", start + event * size, "i8") for start, size in zip(starts, self._made, strict=True))
            results = ", ".join(f"ptr {each}" for each in made)
            body.do(f"call void @trunk(ptr {body.at(source, event * size, 'i8')}, ptr {constants}, ptr {memory}, {results})")
        for index, start, length in zip(self._columns.inputs, starts, self._made, strict=True):
            before = body.integer("sub", start, body.times(first, length))
            body.put(body.at("%scratch", before, "i8"), body.at(inputs, index, "ptr"), "ptr")


def copies(writer: TrunkWriter, name: str, source: Places, target: Places, size: int) -> str:
    """A function that copies elements of `size` bytes from one memory to another, so many at a time as always lie together."""
    units = [each for each in (size, 2 * size, 4 * size, 8) if each <= 8]
    unit = max(each for each in units if all(_together(places, each // size, size) for places in (source, target)))
    source, target = source[:: unit // size], target[:: unit // size]
    body = Body()
    straight = np.array_equal(target, np.arange(len(target)) * unit)
    tables = [writer.store(each.astype(np.int32)) for each in ((source,) if straight else (source, target))]
    kind = f"i{8 * unit}"

    def one(index: str) -> None:
        entries = [body.get(body.at(body.at("%constants", table, "i8"), index, "i32"), "i32") for table in tables]
        offsets = [body.let(f"zext i32 {entry} to i64") for entry in entries]
        value = body.get(body.at("%source", offsets[0], "i8"), kind, 1)
        body.put(value, body.at("%target", body.times(index, unit) if straight else offsets[1], "i8"), kind, 1)

    body.loop(0, len(source), 1, one)
    return function(name, "ptr noalias %source, ptr noalias %constants, ptr noalias %target", body)


class _Grid:
    """Features with what surrounds them, as some convolutions read them; `moved` as in `Convolution`."""

    def __init__(self, readers: Sequence[Convolution], moved: Places | None) -> None:
        self.moved, self.start = moved, 0
        axes = range(len(readers[0].grid))
        self.before = tuple(max(each.before[axis] for each in readers) for axis in axes)
        lengths = [max(self.before[axis] - each.before[axis] + each.padded[axis] for each in readers) for axis in axes]
        depth = readers[0].weights.shape[1]
        kind = {1: np.uint8, 2: np.uint16, 4: np.float32}[readers[0].bytes_each]
        self.filler = np.full(math.prod(lengths) * depth, readers[0].padding, kind)
        self.strides = _strides(lengths, depth * readers[0].bytes_each)


class _Layer:
    """The function of one convolution."""

    def __init__(self, writer: TrunkWriter, number: int, layer: Convolution) -> None:
        self._layer, self._number = layer, number
        self._arithmetic, together = ARITHMETIC[layer.weights.dtype], 4 // layer.bytes_each
        rows, depth, *window = layer.weights.shape
        self._rows, self._vectors = rows, -(-rows // LANES)
        self._row = 4 * self._vectors * LANES  # bytes of a number of each row
        self._runs, run = math.prod(window[:-1]), window[-1] * depth
        self._words = -(-run // together)
        weights = np.zeros((self._runs, self._words * together, self._vectors * LANES), layer.weights.dtype)
        weights[:, :run, :rows] = np.moveaxis(layer.weights, (0, 1), (-1, -2)).reshape(self._runs, run, rows)
        self._weights = writer.store(weights.reshape(self._runs, self._words, together, -1).swapaxes(2, 3))
        self._start, strides = writer.window(number)
        _, target_strides = writer.target(number)
        self._step, self._target_step = strides[-1], target_strides[-1]
        self._starts = writer.store(_offsets(window[:-1], strides))
        lines = [_offsets(layer.made[:-1], each) for each in (strides, target_strides)]
        self._lines, self._count = writer.store(np.stack(lines, 1)), len(lines[0])
        self._affine = [writer.store(self._padded(each)) for each in (layer.scale, layer.offset)]
        known = {name: step.data for name, step in layer.steps.items() if step.data is not None and step.data.size > 1}
        self._numbers = {name: writer.store(self._padded(data)) for name, data in known.items()}
        self._of_places = {name for name, data in known.items() if data.ndim > 1}

    def _padded(self, numbers: Array) -> Array:
        """(..., rows) as whole vectors."""
        more_rows = self._vectors * LANES - numbers.shape[-1]
        return np.pad(numbers.astype(np.float32), [(0, 0)] * (numbers.ndim - 1) + [(0, more_rows)])

    def text(self) -> str:
        """`convolve`: all lines of places along the last axis, some places at a time."""
        body = Body()
        grid = body.at("%memory", self._start, "i8")
        length = self._layer.made[-1]
        groups = -(-length // places_together(self._vectors))
        size, larger = divmod(length, groups)

        def line(number: str) -> None:
            entry = body.at(body.at("%constants", self._lines, "i8"), body.times(number, 2))
            source = body.at(grid, body.get(entry), "i8")
            target = body.at("%target", body.get(body.at(entry, 1)), "i8")
            first = body.times(number, length) if self._of_places else "0"

            def group(place: str, count: int) -> None:
                start = body.at(source, body.times(place, self._step), "i8")
                made = body.at(target, body.times(place, self._target_step), "i8")
                numbers = body.times(body.integer("add", first, place), self._row) if self._of_places else "0"
                self._group(body, start, made, numbers, count)

            whole = larger * (size + 1)
            if larger:
                body.loop(0, whole, size + 1, lambda place: group(place, size + 1))
            body.loop(whole, length, size, lambda place: group(place, size))

        body.loop(0, self._count, 1, line)
        return function(f"convolve{self._number}", "ptr noalias %constants, ptr %memory, ptr %target", body)

    def _group(self, body: Body, source: str, target: str, numbers: str, count: int) -> None:
        """Some places one after another; `numbers` is where, in bytes, those of the first place lie among those of all."""
        kind = self._arithmetic.sums
        sums = [[body.variable("zeroinitializer", kind) for _ in range(self._vectors)] for _ in range(count)]

        def word(features: str, weights: str, step: str | int) -> None:
            parts = [body.get(body.at(weights, v * LANES * 4, "i8"), INTEGERS, 64) for v in range(self._vectors)]
            here = body.at(features, step, "i32")
            add_products(body, self._arithmetic, sums, (body.at(here, place * self._step, "i8") for place in range(count)), parts)

        def run(number: str) -> None:
            features = body.at(source, body.get(body.at(body.at("%constants", self._starts, "i8"), number)), "i8")
            weights = body.at("%constants", self._weights, "i8")
            weights = body.at(weights, body.times(number, self._words * self._row), "i8")
            if self._words <= _STRAIGHT:
                for step in range(self._words):
                    word(features, body.at(weights, step * self._row, "i8"), step)
            else:
                body.loop(0, self._words, 1, lambda at: word(features, body.at(weights, body.times(at, self._row), "i8"), at))

        body.loop(0, self._runs, 1, run)
        width = self._layer.made_as.itemsize
        for place, of_place in enumerate(sums):
            here = body.integer("add", numbers, place * self._row) if self._of_places else "0"
            for vector, total in enumerate(of_place):
                value = self._finished(body, body.get(total, kind), vector, here)
                where = body.at(target, place * self._target_step + vector * LANES * width, "i8")
                _store(body, value, {1: "i8", 2: "i16", 4: "float"}[width], where, min(LANES, self._rows - vector * LANES))

    def _finished(self, body: Body, total: str, vector: int, numbers: str) -> str:
        """What is made of sixteen sums: floats, or bytes."""

        def stored(place: int, *, of_places: bool = False) -> str:
            start = body.at("%constants", place + vector * LANES * 4, "i8")
            return body.load(body.at(start, numbers, "i8") if of_places else start, LANES)

        known = {SUMS: scaled(body, self._arithmetic, total, *(stored(each) for each in self._affine))}
        for name, step in self._layer.steps.items():
            if name in self._numbers:
                known[name] = stored(self._numbers[name], of_places=name in self._of_places)
            elif step.data is not None:
                known[name] = body.number(float(step.data.item()), LANES)
            else:
                known[name] = operation(body, step, [known[each] for each in step.inputs], LANES)
        value = known[next(reversed([SUMS, *self._layer.steps]))]
        if self._layer.made_as == np.uint16:  # the nearest number with eight bits of mantissa, ties to even
            bits = body.let(f"bitcast {_FLOATS} {value} to {INTEGERS}")
            high = body.let(f"lshr {INTEGERS} {bits}, {body.splat('16', LANES, 'i32')}")
            odd = body.let(f"and {INTEGERS} {high}, {body.splat('1', LANES, 'i32')}")
            half = body.let(f"add {INTEGERS} {odd}, {body.splat(str(0x7FFF), LANES, 'i32')}")
            nearest = body.let(f"add {INTEGERS} {bits}, {half}")
            high = body.let(f"lshr {INTEGERS} {nearest}, {body.splat('16', LANES, 'i32')}")
            return body.let(f"trunc {INTEGERS} {high} to <{LANES} x i16>")
        if self._layer.coding is None:
            return value
        low, width = self._layer.coding.low, self._layer.coding.step
        counted = body.intrinsic("fma", LANES, value, body.number(1 / width, LANES), body.number(-low / width, LANES))
        for end, beyond in ((0.0, "olt"), (255.0, "ogt")):
            limit = body.number(end, LANES)
            which = body.let(f"fcmp {beyond} {_FLOATS} {counted}, {limit}")
            counted = body.let(f"select {mask_type(LANES)} {which}, {_FLOATS} {limit}, {_FLOATS} {counted}")
        # Beyond 2^23 a float has no fraction: what is added rounds, half to even, and the lowest bits are the number.
        rounded = body.let(f"fadd {_FLOATS} {counted}, {body.number(_ROUNDER, LANES)}")
        bits = body.let(f"bitcast {_FLOATS} {rounded} to {INTEGERS}")
        return body.let(f"trunc {INTEGERS} {bits} to <{LANES} x i8>")


def _store(body: Body, value: str, kind: str, place: str, count: int) -> None:
    """The first `count` of sixteen numbers, and nothing behind them."""
    size, first = LANES, 0
    while first < count:
        if size <= count - first:
            lanes = ", ".join(f"i32 {lane}" for lane in range(first, first + size))
            part = value
            if size < LANES:
                part = body.let(f"shufflevector <{LANES} x {kind}> {value}, <{LANES} x {kind}> poison, <{size} x i32> <{lanes}>")
            body.put(part, body.at(place, first, kind), f"<{size} x {kind}>", 1)
            first += size
        size //= 2


def _append(memory: bytearray, more_of_it: bytes) -> int:
    """Where it begins."""
    memory += bytes(-len(memory) % _ALIGNMENT)
    start = len(memory)
    memory += more_of_it
    return start


def _appended(parts: Sequence[Array], more_of_it: Array) -> tuple[int, list[Array]]:
    """Where floats begin, at a whole number of vectors, when they are put behind `parts`, and all of them."""
    so_far = sum(each.size for each in parts)
    padding = -so_far % LANES
    return so_far + padding, [*parts, np.zeros(padding, np.float32), more_of_it]


def _strides(places: Sequence[int], size: int) -> tuple[int, ...]:
    """Bytes from one place to the next along each axis, of `size` each."""
    return tuple(size * math.prod(places[axis + 1 :]) for axis in range(len(places)))


def _offsets(lengths: Sequence[int], strides: Sequence[int]) -> Places:
    """How far each place is from the first, the last axis fastest."""
    found = np.zeros(1, np.int64)
    for length, stride in zip(lengths, strides, strict=False):
        found = np.add.outer(found, np.arange(length) * stride).reshape(-1)
    return found


def _within(place: Sequence[int], strides: Sequence[int]) -> int:
    return sum(each * stride for each, stride in zip(place, strides, strict=True))


def _together(places: Places, count: int, size: int) -> bool:
    """Whether each `count` elements of `size` lie one after another."""
    if len(places) % count:
        return False
    groups = places.reshape(-1, count)
    return bool((groups == groups[:, :1] + size * np.arange(count)).all())
