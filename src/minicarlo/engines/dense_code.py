"""Machine code for convolutions of single cells, a block of columns at a time, for the pass that reads what they make.

A column is a place of the grid with all its rows of cells. The convolutions are products of its features: bytes, of which VNNI's
instruction multiplies four and adds them up (two of AVX2's do so with weights of half the range), pairs of bf16, which another
does that with, or float32. All convolutions share the features, so that theirs are read once, and what they make stays in the
processor's nearest cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.llvm import LANES, Body, function, has, has_fma, vector_type

BLOCK = 16
"""Columns that are computed together: a whole number of vectors of cells, whatever the number of rows."""

INTEGERS = f"<{LANES} x i32>"
_FLOATS = vector_type(LANES)
_HALVES = f"<{2 * LANES} x bfloat>"
_HALF_RANGE = 64
"""Weights up to this give pairs of products that 16 bits hold, which AVX2 adds without a word where they do not."""

Numbers = NDArray[np.float32]
Bits = NDArray[np.uint16]
"""Numbers in bf16."""


def bf16_bits(numbers: NDArray[Any]) -> Bits:
    """The nearest numbers with eight bits of mantissa, ties to even."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


@dataclass(frozen=True)
class Arithmetic:
    """A format, and the types in which 32 bits of features are multiplied by 32 bits of weights and added to a sum."""

    name: str
    operand: str
    sums: str


ARITHMETIC = {
    np.dtype(np.int8): Arithmetic("int8", INTEGERS, INTEGERS),
    np.dtype(np.uint16): Arithmetic("bf16", _HALVES, _FLOATS),
    np.dtype(np.float32): Arithmetic("fp32", _FLOATS, _FLOATS),
}
_VNNI = "@llvm.x86.avx512.vpdpbusd.512"
_BF16 = "@llvm.x86.avx512bf16.dpbf16ps.512"
_PAIRS, _SUM_OF_PAIRS = "@llvm.x86.avx2.pmadd.ub.sw", "@llvm.x86.avx2.pmadd.wd"

DECLARED = {
    _VNNI: f"{INTEGERS} {_VNNI}({INTEGERS}, {INTEGERS}, {INTEGERS})",
    _BF16: f"{_FLOATS} {_BF16}({_FLOATS}, {_HALVES}, {_HALVES})",
    _PAIRS: f"<16 x i16> {_PAIRS}(<32 x i8>, <32 x i8>)",
    _SUM_OF_PAIRS: f"<8 x i32> {_SUM_OF_PAIRS}(<16 x i16>, <16 x i16>)",
}
"""What a module declares of each intrinsic that it calls."""


@dataclass(frozen=True)
class Dense:
    """A convolution of single cells: sums over K features of `weights` (K, rows), times `scale` (rows,), plus `offset`.

    With weights in int8 features are bytes without a sign and sums exact; else features are what weights are, float32 or the bits
    of bf16, and sums float32.
    """

    weights: NDArray[np.int8] | Bits | Numbers
    scale: Numbers
    offset: Numbers

    @property
    def format(self) -> str:
        """What it is computed in."""
        return ARITHMETIC[self.weights.dtype].name


@dataclass(frozen=True)
class Columns:
    """Where the K features of each column lie, one after another.

    `inputs` are numbers of arrays (events, `lengths`, K) of all that the kernel is given, `places` (columns, 2) says of each
    column in which of them it is found, and where.
    """

    inputs: tuple[int, ...]
    lengths: tuple[int, ...]
    places: NDArray[np.int64]


def computable(weights: NDArray[Any]) -> bool:
    """Whether products with such weights can be written for this processor; matrix units are left to whoever uses them."""
    form = ARITHMETIC[weights.dtype].name
    if form == "fp32":
        return has_fma()
    if form == "bf16":
        return has("avx512bf16") and not has("amx-bf16")
    return has("avx512vnni") or (has("avx2") and has_fma() and int(np.abs(weights.astype(int)).max()) <= _HALF_RANGE)


def places_together(vectors: int) -> int:
    """Of how many places there are registers for the sums, so many vectors of each."""
    return max(1, (24 if has("avx512f") else 6) // vectors)


def add_products(body: Body, how: Arithmetic, sums: list[list[str]], features: Iterable[str], weights: Sequence[str]) -> None:
    """To the sums of some places, a vector for each of `weights`, what 32 bits of each place's features, which lie there, add."""
    for place, of_place in zip(features, sums, strict=True):
        value = body.splat(body.get(place, "i32", 1), LANES, "i32")
        for so_far, weight in zip(of_place, weights, strict=True):
            body.put(more(body, how, body.get(so_far, how.sums), value, weight), so_far, how.sums)


def scaled(body: Body, how: Arithmetic, total: str, scale: str, offset: str) -> str:
    """Sums as floats, times `scale`, plus `offset`."""
    if how.sums == INTEGERS:
        total = body.let(f"sitofp {INTEGERS} {total} to {_FLOATS}")
    return body.intrinsic("fma", LANES, total, scale, offset)


def more(body: Body, how: Arithmetic, so_far: str, *bits: str) -> str:
    """A sum with what 32 bits of features and of weights in each lane add to it."""
    if how.name == "int8" and not has("avx512vnni"):
        return _more_by_pairs(body, so_far, *bits)
    value, weight = (body.let(f"bitcast {INTEGERS} {each} to {how.operand}") for each in bits)
    if how.name == "fp32":
        return body.intrinsic("fma", LANES, value, weight, so_far)
    name = _VNNI if how.name == "int8" else _BF16
    return body.let(f"call {how.sums} {name}({how.sums} {so_far}, {how.operand} {value}, {how.operand} {weight})")


def _more_by_pairs(body: Body, so_far: str, *bits: str) -> str:
    """The same of bytes on half of the lanes at a time: products are added up in 16 bits and these in 32."""
    parts = []
    for first in (0, LANES // 2):
        lanes = ", ".join(f"i32 {lane}" for lane in range(first, first + LANES // 2))
        total, *given = (
            body.let(f"shufflevector {INTEGERS} {each}, {INTEGERS} poison, <8 x i32> <{lanes}>") for each in (so_far, *bits)
        )
        value, weight = (body.let(f"bitcast <8 x i32> {each} to <32 x i8>") for each in given)
        pairs = body.let(f"call <16 x i16> {_PAIRS}(<32 x i8> {value}, <32 x i8> {weight})")
        fours = body.let(f"call <8 x i32> {_SUM_OF_PAIRS}(<16 x i16> {pairs}, <16 x i16> {body.splat('1', 16, 'i16')})")
        parts.append(body.let(f"add <8 x i32> {total}, {fours}"))
    lanes = ", ".join(f"i32 {lane}" for lane in range(LANES))
    return body.let(f"shufflevector <8 x i32> {parts[0]}, <8 x i32> {parts[1]}, <{LANES} x i32> <{lanes}>")


class DenseWriter:
    """The function `columns`, for layers that read the same features, and the constants it needs."""

    def __init__(self, columns: Columns, layers: Sequence[Dense]) -> None:
        self.columns, kind = columns, layers[0].weights.dtype
        depth, self.rows = layers[0].weights.shape
        self._arithmetic, together = ARITHMETIC[kind], 4 // kind.itemsize  # features in 32 bits
        self._steps, self._stride = depth // together, depth * kind.itemsize
        self._layers, total = len(layers), len(layers) * self.rows
        self.vectors = -(-total // LANES)
        self.length = BLOCK * self.rows + LANES  # of what a layer makes of a block, and room for the end of a vector
        self.size = len(layers) * self.length
        lanes = self.vectors * LANES
        weights = np.zeros((depth, lanes), kind)
        weights[:, :total] = np.concatenate([each.weights for each in layers], 1)
        weights = weights.reshape(self._steps, together, lanes).transpose(0, 2, 1)
        affine = np.zeros((2, lanes), np.float32)
        affine[:, :total] = [np.concatenate([each.scale for each in layers]), np.concatenate([each.offset for each in layers])]
        which, where = columns.places.T
        table = np.stack([which, where * self._stride], 1).astype(np.int64)
        parts = [weights, affine, table, np.zeros(-table.size % (LANES // 2), np.int64)]
        self._affine = weights.nbytes // 4
        self._table = self._affine + affine.size
        self.constants = np.frombuffer(b"".join(part.tobytes() for part in parts), np.float32)

    def text(self) -> str:
        """`columns`: of the columns from `first` up to `last` of an event into `block`, (layers, columns, rows)."""
        body = Body()
        bases = body.let(f"alloca [{len(self.columns.inputs)} x ptr]")
        for number, (index, length) in enumerate(zip(self.columns.inputs, self.columns.lengths, strict=True)):
            base = body.get(body.at("%inputs", index, "ptr"), "ptr")
            of_event = body.at(base, body.times("%event", length * self._stride), "i8")
            body.put(of_event, body.at(bases, number, "ptr"), "ptr")
        together = places_together(self.vectors)
        body.loop("%first", "%last", together, lambda column: self._group(body, bases, column, together))
        count = body.integer("sub", "%last", "%first")
        whole = body.integer("add", "%first", body.times(body.integer("udiv", count, together), together))
        body.loop(whole, "%last", 1, lambda column: self._group(body, bases, column, 1))
        return function("columns", "ptr %inputs, ptr noalias %dense, ptr noalias %block, i64 %event, i64 %first, i64 %last", body)

    def _group(self, body: Body, bases: str, column: str, count: int) -> None:
        kind = self._arithmetic.sums
        columns = [body.integer("add", column, each) for each in range(count)]
        features = [self._features(body, bases, each) for each in columns]
        sums = [[body.variable("zeroinitializer", kind) for _ in range(self.vectors)] for _ in columns]

        def multiply(step: str) -> None:
            start = body.times(step, self.vectors * LANES)
            weights = [body.get(body.place("%dense", start, v * LANES), INTEGERS, 64) for v in range(self.vectors)]
            add_products(body, self._arithmetic, sums, (body.at(place, step, "i32") for place in features), weights)

        body.loop(0, self._steps, 1, multiply)
        for number, of_column in zip(columns, sums, strict=True):
            start = body.times(body.integer("sub", number, "%first"), self.rows)
            self._store(body, [self._scaled(body, body.get(total, kind), v) for v, total in enumerate(of_column)], start)

    def _scaled(self, body: Body, total: str, vector: int) -> str:
        scale, offset = (
            body.load(body.place("%dense", self._affine + (row * self.vectors + vector) * LANES), LANES) for row in (0, 1)
        )
        return scaled(body, self._arithmetic, total, scale, offset)

    def _features(self, body: Body, bases: str, column: str) -> str:
        entry = body.at(body.place("%dense", self._table), body.times(column, 2))
        base = body.get(body.at(bases, body.get(entry), "ptr"), "ptr")
        return body.at(base, body.get(body.at(entry, 1)), "i8")

    def _store(self, body: Body, values: list[str], start: str) -> None:
        """A column's numbers, layer by layer, in whole vectors: what stands behind a layer's last row is written again by the
        next column. Masked stores take some processors as long as the products."""
        for layer in range(self._layers):
            for row in range(0, self.rows, LANES):
                vector, lane = divmod(layer * self.rows + row, LANES)
                lanes = ", ".join(f"i32 {each}" for each in range(lane, lane + LANES))
                pair = f"{_FLOATS} {values[vector]}, {_FLOATS} {values[vector + 1] if vector + 1 < self.vectors else 'poison'}"
                value = body.let(f"shufflevector {pair}, <{LANES} x i32> <{lanes}>") if lane else values[vector]
                body.store(value, body.place("%block", start, layer * self.length + row), LANES)
