"""Machine code for the last convolutions of a network, which an event goes through while it is in the processor's caches.

A runtime pads the channels of a convolution to what its instructions like, and does a layer of all events after the other. Here
channels lie innermost without any padding, so that what a window covers along the last axis is one run of bytes or floats, whose
length decides how many instructions there are and not that of its parts; and each layer writes where the next one reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.engines.dense_code import ARITHMETIC, INTEGERS, more, scaled
from minicarlo.engines.vector_code import declared, operation
from minicarlo.engines.vector_program import Array, Step
from minicarlo.llvm import LANES, Body, function, has, mask_type, vector_type

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
        weights: (rows, depth, *window), int8 for features that are bytes, or float32.
        scale: (rows,), what sums are multiplied by.
        offset: (rows,), what is added then.
        grid: places of the input along each axis, without padding.
        before: places of padding along each axis in front of them.
        made: places of the result along each axis.
        padding: what stands for zero among the features.
        steps: values by name, made of `SUMS` and constants of one number or one for each row; the last one is the result.
        coding: how the result becomes bytes; None if it stays float32.
        moved: of each element of the input (*grid, depth) the number of the element of what is read; None if the convolution
            before this one makes the input as it is.
    """

    weights: NDArray[np.int8] | Array
    scale: Array
    offset: Array
    grid: tuple[int, ...]
    before: tuple[int, ...]
    made: tuple[int, ...]
    padding: int
    steps: Mapping[str, Step]
    coding: Coding | None
    moved: Places | None

    @property
    def bytes_each(self) -> int:
        """Of a feature."""
        return self.weights.dtype.itemsize

    @property
    def padded(self) -> tuple[int, ...]:
        """Places along each axis that a window reads."""
        return tuple(made + length - 1 for made, length in zip(self.made, self.weights.shape[2:], strict=True))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of an event."""
        return self.weights.size * math.prod(self.made)


@dataclass(frozen=True)
class Chain:
    """Convolutions one after another. `order` has for each number of the result that of the element of what the last one makes,
    (*places, rows), and `read` is the number of features of an event that the first one finds."""

    convolutions: tuple[Convolution, ...]
    order: Places
    read: int


class ChainWriter:
    """The module of a chain, and the memory that it needs. The one input has (events, elements) as the first one reads it."""

    inputs = 1

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self._constants = bytearray()
        memory = bytearray()
        self._grids, self._results, self._layers = [], [], []
        for layer in chain.convolutions:
            filler = np.full(math.prod(layer.padded) * layer.weights.shape[1], layer.padding, _feature(layer))
            self._grids.append(_append(memory, filler.tobytes() + bytes(_ALIGNMENT)))  # a run of bytes is read as whole words
        for layer, later in zip(chain.convolutions, [*chain.convolutions[1:], None], strict=True):
            kind = np.dtype(np.float32) if later is None else _feature(later)
            dense = later is None or later.moved is not None
            size = math.prod(layer.made) * layer.weights.shape[0] * kind.itemsize
            self._results.append(_append(memory, bytes(size)) if dense else None)
        for number, layer in enumerate(chain.convolutions):
            self._layers.append(_Layer(self, number, layer))
        self.scratch = np.frombuffer(bytes(memory) + bytes(-len(memory) % 4), np.float32)
        self._code = self._text()
        self.constants = [np.frombuffer(bytes(self._constants) + bytes(_ALIGNMENT), np.float32)]

    def text(self) -> str:
        """The whole module."""
        return self._code

    def store(self, numbers: NDArray[Any]) -> int:
        """Where in the constants `numbers` are put, in bytes."""
        return _append(self._constants, np.ascontiguousarray(numbers).tobytes())

    def target(self, number: int) -> tuple[str, int, tuple[int, ...]]:
        """What a convolution's result is stored as, where in memory its first place lies, and how far from one to the next, in
        bytes, along each axis."""
        convolutions = self.chain.convolutions
        layer, later = convolutions[number], convolutions[number + 1] if number + 1 < len(convolutions) else None
        kind = "float" if later is None or later.bytes_each == 4 else "i8"
        result = self._results[number]
        size = layer.weights.shape[0] * (4 if kind == "float" else 1)
        if result is not None or later is None:
            return kind, result or 0, _strides(layer.made, size)
        strides = _strides(later.padded, size)
        return kind, self._grids[number + 1] + _within(later.before, strides), strides

    def grid(self, number: int) -> int:
        """Where the features of a convolution begin, with their padding."""
        return self._grids[number]

    def _text(self) -> str:
        functions = []
        for number, layer in enumerate(self._layers):
            if layer.layer.moved is not None:
                functions.append(self._moves(number))
            functions.append(layer.text())
        functions += [self._result(), self._run()]
        code = "\n".join(functions)
        return "\n".join([*declared(code), code])

    def _moves(self, number: int) -> str:
        """The features of a convolution to where it reads them."""
        layer = self.chain.convolutions[number]
        assert layer.moved is not None
        strides = _strides(layer.padded, layer.weights.shape[1] * layer.bytes_each)
        target = _offsets((*layer.grid, layer.weights.shape[1]), (*strides, layer.bytes_each))
        target += self._grids[number] + _within(layer.before, strides)
        return self._copies(f"move{number}", layer.moved * layer.bytes_each, target, layer.bytes_each, "%memory")

    def _result(self) -> str:
        """The numbers of the result, in their order."""
        source = self.chain.order * 4
        return self._copies("result", source, np.arange(len(source), dtype=np.int64) * 4, 4, "%out")

    def _copies(self, name: str, source: Places, target: Places, size: int, base: str) -> str:
        """From `%source` to `base`, both in bytes, so many at a time as always lie together."""
        unit = max(
            each
            for each in (size, 2 * size, 4 * size, 8)
            if each <= 8 and all(_together(p, each // size, size) for p in (source, target))
        )
        source, target = source[:: unit // size], target[:: unit // size]
        body = Body()
        places = [self.store(each.astype(np.int32)) for each in (source, target)]
        straight = np.array_equal(target, np.arange(len(target)) * unit)
        kind = f"i{8 * unit}"

        def one(index: str) -> None:
            offsets = [
                body.let(f"zext i32 {body.get(body.at(body.at('%constants', place, 'i8'), index, 'i32'), 'i32')} to i64")
                for place in (places[:1] if straight else places)
            ]
            value = body.get(body.at("%source", offsets[0], "i8"), kind, 1)
            body.put(value, body.at(base, body.times(index, unit) if straight else offsets[1], "i8"), kind, 1)

        body.loop(0, len(source), 1, one)
        return function(name, f"ptr noalias %source, ptr noalias %constants, ptr noalias {base}", body)

    def _run(self) -> str:
        body = Body()
        first = self.chain.convolutions[0]
        given = body.get("%inputs", "ptr")
        cells = len(self.chain.order)

        def event(number: str) -> None:
            source = body.at(given, body.times(number, self.chain.read * first.bytes_each), "i8")
            for index, layer in enumerate(self.chain.convolutions):
                if layer.moved is not None:
                    place = source if index == 0 else body.at("%scratch", self._results[index - 1] or 0, "i8")
                    body.do(f"call void @move{index}(ptr {place}, ptr %constants, ptr %scratch)")
                body.do(f"call void @convolve{index}(ptr %constants, ptr %scratch)")
            place = body.at("%scratch", self._results[-1] or 0, "i8")
            body.do(f"call void @result(ptr {place}, ptr %constants, ptr {body.place('%out', body.times(number, cells))})")

        body.loop(0, "%events", 1, event)
        return function("run", "ptr %inputs, ptr %constants, ptr %scratch, ptr %out, i64 %events", body, public=True)


class _Layer:
    """The function of one convolution."""

    def __init__(self, writer: ChainWriter, number: int, layer: Convolution) -> None:
        self.layer, self._writer, self._number = layer, writer, number
        self._arithmetic, together = ARITHMETIC[layer.weights.dtype], 4 // layer.bytes_each
        rows, depth, *window = layer.weights.shape
        self._rows, self.vectors = rows, -(-rows // LANES)
        self._runs, run = math.prod(window[:-1]), window[-1] * depth
        self._words = -(-run // together)
        weights = np.zeros((self._runs, self._words * together, self.vectors * LANES), layer.weights.dtype)
        weights[:, :run, :rows] = np.moveaxis(layer.weights, (0, 1), (-1, -2)).reshape(self._runs, run, rows)
        weights = weights.reshape(self._runs, self._words, together, -1).swapaxes(2, 3)
        strides = _strides(layer.padded, depth * layer.bytes_each)
        self._step = strides[-1]
        self._weights = writer.store(weights)
        self._starts = writer.store(_offsets(window[:-1], strides))
        self._affine = [writer.store(self._padded(each)) for each in (layer.scale, layer.offset)]
        self._kind, self._target, target_strides = writer.target(number)
        lines = [_offsets(layer.made[:-1], each) for each in (strides, target_strides)]
        self._lines, self._count = writer.store(np.stack(lines, 1)), len(lines[0])
        self._target_step = target_strides[-1]
        self._numbers = {
            name: writer.store(self._padded(step.data))
            for name, step in layer.steps.items()
            if step.data is not None and step.data.size > 1
        }

    def _padded(self, numbers: Array) -> Array:
        return np.pad(numbers.astype(np.float32), (0, self.vectors * LANES - len(numbers)))

    def text(self) -> str:
        """`convolve`: all lines of places along the last axis, some places at a time."""
        body = Body()
        grid = body.at("%scratch", self._writer.grid(self._number), "i8")
        made = body.at("%scratch", self._target, "i8")
        length = self.layer.made[-1]
        most = max(1, (24 if has("avx512f") else 6) // self.vectors)  # as many sums as there are registers for
        groups = -(-length // most)
        size, larger = divmod(length, groups)

        def line(number: str) -> None:
            entry = body.at(body.at("%constants", self._lines, "i8"), body.times(number, 2))
            source = body.at(grid, body.get(entry), "i8")
            target = body.at(made, body.get(body.at(entry, 1)), "i8")

            def group(place: str, count: int) -> None:
                start = body.at(source, body.times(place, self._step), "i8")
                self._group(body, start, body.at(target, body.times(place, self._target_step), "i8"), count)

            whole = larger * (size + 1)
            if larger:
                body.loop(0, whole, size + 1, lambda place: group(place, size + 1))
            body.loop(whole, length, size, lambda place: group(place, size))

        body.loop(0, self._count, 1, line)
        return function(f"convolve{self._number}", "ptr noalias %constants, ptr noalias %scratch", body)

    def _group(self, body: Body, source: str, target: str, count: int) -> None:
        kind = self._arithmetic.sums
        sums = [[body.variable("zeroinitializer", kind) for _ in range(self.vectors)] for _ in range(count)]

        def word(run: str, weights: str, step: str | int) -> None:
            block = body.at(
                weights,
                body.times(step, self.vectors * LANES * 4) if isinstance(step, str) else step * self.vectors * LANES * 4,
                "i8",
            )
            parts = [body.get(body.at(block, v * LANES * 4, "i8"), INTEGERS, 64) for v in range(self.vectors)]
            word_at = body.at(run, step, "i32")
            for place, of_place in enumerate(sums):
                value = body.splat(body.get(body.at(word_at, place * self._step, "i8"), "i32", 1), LANES, "i32")
                for so_far, part in zip(of_place, parts, strict=True):
                    body.put(more(body, self._arithmetic, body.get(so_far, kind), value, part), so_far, kind)

        def run(number: str) -> None:
            offset = body.get(body.at(body.at("%constants", self._starts, "i8"), number))
            features = body.at(source, offset, "i8")
            weights = body.at(
                body.at("%constants", self._weights, "i8"), body.times(number, self._words * self.vectors * LANES * 4), "i8"
            )
            if self._words <= _STRAIGHT:
                for step in range(self._words):
                    word(features, weights, step)
            else:
                body.loop(0, self._words, 1, lambda step: word(features, weights, step))

        body.loop(0, self._runs, 1, run)
        for place, of_place in enumerate(sums):
            for vector, total in enumerate(of_place):
                value = self._finished(body, body.get(total, kind), vector)
                size = min(LANES, self._rows - vector * LANES)
                where = place * self._target_step + vector * LANES * (4 if self._kind == "float" else 1)
                _store(body, value, self._kind, body.at(target, where, "i8"), size)

    def _finished(self, body: Body, total: str, vector: int) -> str:
        """What is made of sixteen sums: floats, or bytes."""
        scale, offset = (body.load(body.at("%constants", place + vector * LANES * 4, "i8"), LANES) for place in self._affine)
        known = {SUMS: scaled(body, self._arithmetic, total, scale, offset)}
        for name, step in self.layer.steps.items():
            if name in self._numbers:
                known[name] = body.load(body.at("%constants", self._numbers[name] + vector * LANES * 4, "i8"), LANES)
            elif step.data is not None:
                known[name] = body.number(float(step.data.item()), LANES)
            else:
                known[name] = operation(body, step, [known[each] for each in step.inputs], LANES)
        value = known[next(reversed([SUMS, *self.layer.steps]))]
        if self.layer.coding is None:
            return value
        low, width = self.layer.coding.low, self.layer.coding.step
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


def _feature(layer: Convolution) -> np.dtype[Any]:
    return np.dtype(np.uint8 if layer.bytes_each == 1 else np.float32)


def _append(memory: bytearray, more_of_it: bytes) -> int:
    """Where it begins."""
    memory += bytes(-len(memory) % _ALIGNMENT)
    start = len(memory)
    memory += more_of_it
    return start


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
