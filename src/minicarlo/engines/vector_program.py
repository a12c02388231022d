"""What is computed of each cell, row and event at the end of a network, and in which passes over memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from minicarlo.engines.dense_code import Columns, Dense

Array = NDArray[np.float32]

COMPARE = {"greater": "ogt", "greater_equal": "oge", "less": "olt", "less_equal": "ole", "equal": "oeq", "not_equal": "une"}
"""Steps that compare, and LLVM's names of the comparisons, false where something is not a number (`une`: true)."""

KINDS = {
    "Abs": "abs",
    "Add": "add",
    "Ceiling": "ceiling",
    "Convert": "number",
    "Divide": "divide",
    "Equal": "equal",
    "Floor": "floor",
    "Greater": "greater",
    "GreaterEqual": "greater_equal",
    "Less": "less",
    "LessEqual": "less_equal",
    "Maximum": "maximum",
    "Minimum": "minimum",
    "Multiply": "multiply",
    "Negative": "negative",
    "NotEqual": "not_equal",
    "Relu": "relu",
    "Round": "round",
    "Select": "select",
    "Sqrt": "sqrt",
    "Subtract": "subtract",
}
"""OpenVINO's operations on numbers, and the steps that they are."""

Size = Literal["cells", "rows", "event"]


@dataclass(frozen=True)
class Step:
    """One value of each cell, of each row of cells, or of the whole event.

    `kind` says where it comes from: "constant" (`data`, as many numbers as cells or rows, or one), "input" (number `index` of the
    arrays that are given; of rows it may be a `part` of one: the first of its numbers, and how many the array has per event),
    "product" (of such an array, of K numbers per event, with the matrix `data` (K, cells)), "dense" (of the features of the
    cell's column, see `Dense`), or from `inputs` by an operation: add, subtract, multiply, divide, sqrt, abs, round (half to
    even), floor, ceiling, negative, maximum, minimum, relu; greater, greater_equal, less, less_equal, equal,
    not_equal, whose results only `number` (1 or 0) and `select` (of two others) read; "rolled" (of cells in the order of the
    inputs, each with what its one input has `ahead` cells further on, and the last ones with what the first have); and the `sum`
    over the cells of a row. What is rolled needs no row's value, no dense layer and nothing rolled.
    """

    kind: str
    size: Size
    inputs: tuple[str, ...] = ()
    data: Array | None = None
    index: int = -1
    part: tuple[int, int] | None = None
    ahead: int = 0
    dense: Dense | None = None


@dataclass(frozen=True)
class Program:
    """Steps by name, each after those that it reads; the last one is the result, of cells.

    An event has `rows` x `row` cells. With `turned` all inputs and constants of cells that no row's value is needed for have
    the rows innermost, (row, rows); the result never has. Dense steps need that, and `columns`.
    """

    steps: dict[str, Step]
    rows: int
    row: int
    turned: bool
    columns: Columns | None = None

    @property
    def cells(self) -> int:
        """Cells of an event."""
        return self.rows * self.row


class Passes:
    """How a program goes over memory: a first pass over cells in the order of the inputs, then passes over each row.

    Attributes:
        result: the name of the last value.
        first: values of cells that need no row's value, which the first pass makes.
        kept: those of them that it leaves for the rows.
        ahead: those that are made of all cells before the others, because something rolled reads them.
        rolled: what is rolled.
        sweeps: the sums that one pass over a row makes together, by pass; the result is made in the last.
        again: values of cells that one of these passes makes and a later one reads.
    """

    def __init__(self, program: Program) -> None:
        self.program, self.steps = program, program.steps
        self.result = list(self.steps)[-1]
        self.first = self._without_rows()
        self.kept = self._kept()
        self.rolled = sorted({step.inputs[0] for step in self.steps.values() if step.kind == "rolled"})
        self.ahead = sorted({*self.rolled, *self._read_again([self.rolled, self.kept], set())})
        self.sweeps = self._passes_over_a_row()
        self.again = self._read_again(map(self.sources, self.sweeps), self.first)

    def _without_rows(self) -> set[str]:
        """The values of cells that need no row's value: the first pass, in the order of the inputs."""
        found: set[str] = set()
        for name, step in self.steps.items():
            if step.size == "cells" and all(i in found or self.steps[i].size == "event" for i in step.inputs):
                found.add(name)
        for name, step in reversed(self.steps.items()):
            if step.kind in COMPARE and any(name in other.inputs and n not in found for n, other in self.steps.items()):
                found.discard(name)  # made again where it is read: what is kept are numbers
        return found

    def _kept(self) -> list[str]:
        """What the first pass leaves for the rows."""
        needed = {i for name, step in self.steps.items() if name not in self.first for i in step.inputs}
        return [n for n in self.steps if n in self.first and (n == self.result or (n in needed and not self.is_late(n)))]

    def is_early(self, name: str) -> bool:
        """Whether the first pass reads numbers of cells that are known beforehand."""
        readers = {n for n, step in self.steps.items() if name in step.inputs}
        read = name == self.result or bool(readers & self.first)
        return self.steps[name].size == "cells" and (not self._is_constant(name) or read)

    def is_late(self, name: str) -> bool:
        """Whether the passes over rows read such numbers."""
        return self._is_constant(name) and any(name in step.inputs and n not in self.first for n, step in self.steps.items())

    def _is_constant(self, name: str) -> bool:
        return self.steps[name].kind == "constant" and self.steps[name].size == "cells"

    def _passes_over_a_row(self) -> list[list[str]]:
        """The sums that one pass over a row can make together, by pass; the result is made in the last."""
        depth: dict[str, int] = {}
        passes: dict[int, list[str]] = {}
        for name, step in self.steps.items():
            depth[name] = max((depth[i] for i in step.inputs), default=0)
            if step.kind == "sum":
                passes.setdefault(depth[name], []).append(name)
                depth[name] += 1
        return [passes[each] for each in sorted(passes)] + [[self.result]]

    def sources(self, names: list[str]) -> list[str]:
        """The values of cells that a pass makes: what is summed, or the result."""
        return [self.steps[name].inputs[0] if self.steps[name].kind == "sum" else name for name in names]

    def _read_again(self, passes: Iterable[list[str]], ready: set[str]) -> list[str]:
        """Values of cells that a pass for some values makes and a later pass reads; `ready` is there before all of them."""
        made: set[str] = set()
        again: set[str] = set()
        for targets in passes:
            now = self.to_make(targets, ready | made)
            again |= made & {*targets, *(i for name in now for i in self.steps[name].inputs)}
            made |= {name for name in now if self.steps[name].kind not in (*COMPARE, "constant", "input")}
        return sorted(again)

    def to_make(self, targets: Iterable[str], ready: Iterable[str]) -> set[str]:
        """The values of cells that have to be made for others, where some are ready."""
        found: set[str] = set()
        waiting = list(targets)
        while waiting:
            name = waiting.pop()
            if self.steps[name].size == "cells" and name not in found and name not in ready:
                found.add(name)
                waiting += self.steps[name].inputs
        return found
