"""Machine code for convolutions of single cells, a block of columns at a time, for the pass that reads what they make.

A column is a place of the grid with all its rows of cells. The convolutions are products of its features, bytes that VNNI's
instruction multiplies by four and adds up, or float32. All convolutions share the features, so that theirs are read once, and
what they make stays in the processor's nearest cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from minicarlo.llvm import LANES, Body, function, has, vector_type

BLOCK = 16
"""Columns that are computed together: a whole number of vectors of cells, whatever the number of rows."""

_INTEGERS = f"<{LANES} x i32>"
_MULTIPLY = "@llvm.x86.avx512.vpdpbusd.512"

Numbers = NDArray[np.float32]


@cache
def has_vnni() -> bool:
    """Whether the processor has the instruction that bytes are multiplied with here."""
    return has("avx512vnni")


@dataclass(frozen=True)
class Dense:
    """A convolution of single cells: sums over K features of `weights` (K, rows), times `scale` (rows,), plus `offset`.

    With weights in int8 features are bytes without a sign and sums exact, with weights in float32 they are float32.
    """

    weights: NDArray[np.int8] | Numbers
    scale: Numbers
    offset: Numbers


@dataclass(frozen=True)
class Columns:
    """Where the K features of each column lie, one after another.

    `inputs` are numbers of arrays (events, `lengths`, K) of all that the kernel is given, `places` (columns, 2) says of each
    column in which of them it is found, and where.
    """

    inputs: tuple[int, ...]
    lengths: tuple[int, ...]
    places: NDArray[np.int64]


class DenseWriter:
    """The function `columns`, for layers that read the same features, and the constants it needs."""

    def __init__(self, columns: Columns, layers: Sequence[Dense]) -> None:
        self.columns, kind = columns, layers[0].weights.dtype
        depth, self.rows = layers[0].weights.shape
        self._whole, together = kind == np.int8, 4 // kind.itemsize  # features in 32 bits
        self._steps, self._stride = depth // together, depth * kind.itemsize
        total = len(layers) * self.rows
        self.vectors = -(-total // LANES)
        self.length = BLOCK * self.rows  # of what a layer makes of a block
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
        self._segments = [self._segment(vector) for vector in range(self.vectors)]

    def _segment(self, vector: int) -> list[tuple[int, int, range]]:
        """The parts of a vector that belong to one layer: the layer, its row in lane 0, and the lanes."""
        found = []
        first, end = vector * LANES, min((vector + 1) * LANES, self.size // BLOCK)
        while first < end:
            layer, row = divmod(first, self.rows)
            last = min(end, (layer + 1) * self.rows)
            lane = first - vector * LANES
            found.append((layer, row - lane, range(lane, lane + last - first)))
            first = last
        return found

    def declared(self) -> list[str]:
        """The intrinsics that the function calls."""
        vector = vector_type(LANES)
        return [
            *([f"declare {_INTEGERS} {_MULTIPLY}({_INTEGERS}, {_INTEGERS}, {_INTEGERS})"] if self._whole else []),
            f"declare void @llvm.masked.store.v{LANES}f32.p0({vector}, ptr, i32, <{LANES} x i1>)",
        ]

    def text(self) -> str:
        """`columns`: of the columns from `first` up to `last` of an event into `block`, (layers, columns, rows)."""
        body = Body()
        bases = body.let(f"alloca [{len(self.columns.inputs)} x ptr]")
        for number, (index, length) in enumerate(zip(self.columns.inputs, self.columns.lengths, strict=True)):
            base = body.get(body.at("%inputs", index, "ptr"), "ptr")
            of_event = body.at(base, body.times("%event", length * self._stride), "i8")
            body.put(of_event, body.at(bases, number, "ptr"), "ptr")
        together = max(1, (24 if has("avx512f") else 6) // self.vectors)  # as many sums as there are registers for
        body.loop("%first", "%last", together, lambda column: self._group(body, bases, column, together))
        count = body.integer("sub", "%last", "%first")
        whole = body.integer("add", "%first", body.times(body.integer("udiv", count, together), together))
        body.loop(whole, "%last", 1, lambda column: self._group(body, bases, column, 1))
        return function("columns", "ptr %inputs, ptr noalias %dense, ptr noalias %block, i64 %event, i64 %first, i64 %last", body)

    def _group(self, body: Body, bases: str, column: str, count: int) -> None:
        kind = _INTEGERS if self._whole else vector_type(LANES)
        columns = [body.integer("add", column, each) for each in range(count)]
        features = [self._features(body, bases, each) for each in columns]
        sums = [[body.variable("zeroinitializer", kind) for _ in range(self.vectors)] for _ in columns]

        def multiply(step: str) -> None:
            start = body.times(step, self.vectors * LANES)
            weights = [body.get(body.place("%dense", start, v * LANES), kind, 64) for v in range(self.vectors)]
            for place, of_column in zip(features, sums, strict=True):
                one = "i32" if self._whole else "float"
                value = body.splat(body.get(body.at(place, step, one), one, 1), LANES, one)
                for so_far, weight in zip(of_column, weights, strict=True):
                    body.put(self._more(body, body.get(so_far, kind), value, weight), so_far, kind)

        body.loop(0, self._steps, 1, multiply)
        for number, of_column in zip(columns, sums, strict=True):
            start = body.times(body.integer("sub", number, "%first"), self.rows)
            for vector, total in enumerate(of_column):
                value = body.get(total, kind)
                if self._whole:
                    value = body.let(f"sitofp {kind} {value} to {vector_type(LANES)}")
                scale, offset = (
                    body.load(body.place("%dense", self._affine + (row * self.vectors + vector) * LANES), LANES) for row in (0, 1)
                )
                self._store(body, body.intrinsic("fma", LANES, value, scale, offset), vector, start)

    def _more(self, body: Body, so_far: str, value: str, weight: str) -> str:
        if not self._whole:
            return body.intrinsic("fma", LANES, value, weight, so_far)
        return body.let(f"call {_INTEGERS} {_MULTIPLY}({_INTEGERS} {so_far}, {_INTEGERS} {value}, {_INTEGERS} {weight})")

    def _features(self, body: Body, bases: str, column: str) -> str:
        entry = body.at(body.place("%dense", self._table), body.times(column, 2))
        base = body.get(body.at(bases, body.get(entry), "ptr"), "ptr")
        return body.at(base, body.get(body.at(entry, 1)), "i8")

    def _store(self, body: Body, value: str, vector: int, start: str) -> None:
        for layer, row, lanes in self._segments[vector]:
            place = body.place("%block", start, layer * self.length + row)
            if len(lanes) == LANES:
                body.store(value, place, LANES)
                continue
            mask = ", ".join(f"i1 {'true' if lane in lanes else 'false'}" for lane in range(LANES))
            operands = f"{vector_type(LANES)} {value}, ptr {place}, i32 4, <{LANES} x i1> <{mask}>"
            body.do(f"call void @llvm.masked.store.v{LANES}f32.p0({operands})")
