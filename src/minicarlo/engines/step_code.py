"""Machine code for one step of a program on a vector of numbers, or on one."""

from __future__ import annotations

from collections.abc import Sequence

from minicarlo.engines.dense_code import DECLARED
from minicarlo.engines.vector_program import COMPARE, Step
from minicarlo.llvm import LANES, Body, mask_type, suffix, vector_type

_BINARY = {"add": "fadd", "subtract": "fsub", "multiply": "fmul", "divide": "fdiv"}
_INTRINSIC = {"sqrt": "sqrt", "abs": "fabs", "round": "roundeven", "floor": "floor", "ceiling": "ceil"}


def declared(code: str) -> list[str]:
    """The declarations of the intrinsics that `code` calls."""
    signatures = dict(DECLARED)
    for lanes in (1, LANES):
        for name, count in (*((each, 1) for each in _INTRINSIC.values()), ("fma", 3)):
            called = f"@llvm.{name}.{suffix(lanes)}"
            signatures[called] = f"{vector_type(lanes)} {called}({', '.join([vector_type(lanes)] * count)})"
    return [f"declare {signature}" for name, signature in signatures.items() if f"{name}(" in code]


def operation(body: Body, step: Step, values: Sequence[str], lanes: int) -> str:
    """What a step makes of `values`, number by number."""
    kind, type_ = step.kind, vector_type(lanes)
    if kind in _BINARY:
        return body.let(f"{_BINARY[kind]} {type_} {values[0]}, {values[1]}")
    if kind in _INTRINSIC:
        return body.intrinsic(_INTRINSIC[kind], lanes, values[0])
    if kind in COMPARE:
        return body.let(f"fcmp {COMPARE[kind]} {type_} {values[0]}, {values[1]}")
    if kind in ("maximum", "minimum", "relu"):  # what is not a number stays so
        first, second = values[0], values[1] if len(values) > 1 else body.number(0.0, lanes)
        other = body.let(f"fcmp {'ogt' if kind == 'minimum' else 'olt'} {type_} {first}, {second}")
        return _select(body, other, second, first, lanes)
    if kind == "select":
        return _select(body, values[0], values[1], values[2], lanes)
    if kind == "number":
        return _select(body, values[0], body.number(1.0, lanes), body.number(0.0, lanes), lanes)
    assert kind == "negative", kind
    return body.let(f"fneg {type_} {values[0]}")


def _select(body: Body, which: str, first: str, second: str, lanes: int) -> str:
    return body.let(f"select {mask_type(lanes)} {which}, {vector_type(lanes)} {first}, {vector_type(lanes)} {second}")
