"""LLVM's intermediate code, written line by line, and compiled for the processor at hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llvmlite import binding

LANES = 16
"""Floats in a vector; LLVM makes as many instructions of it as the processor needs."""


@cache
def _target() -> binding.Target:
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding.Target.from_default_triple()


@cache
def has(feature: str) -> bool:
    """Whether the processor has what LLVM calls `feature`."""
    from llvmlite import binding

    return bool(binding.get_host_cpu_features().get(feature, False))


@cache
def has_fma() -> bool:
    """Whether the processor multiplies and adds in one instruction, with one rounding."""
    from llvmlite import binding

    return has("fma") or "aarch64" in binding.get_default_triple()


def compiled(text: str) -> binding.ExecutionEngine:
    """The functions of a module, for this processor; they live as long as what is returned."""
    from llvmlite import binding

    features = binding.get_host_cpu_features().flatten()
    machine = _target().create_target_machine(cpu=binding.get_host_cpu_name(), features=features, opt=3, jit=True)
    module = binding.parse_assembly(text)
    module.verify()
    builder = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=2))
    builder.getModulePassManager().run(module, builder)
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine


@dataclass
class Body:
    """Lines of a function while it is written."""

    lines: list[str] = field(default_factory=list)
    count: int = 0

    def name(self) -> str:
        self.count += 1
        return f"%v{self.count}"

    def let(self, text: str) -> str:
        name = self.name()
        self.lines.append(f"  {name} = {text}")
        return name

    def do(self, text: str) -> None:
        self.lines.append(f"  {text}")

    def integer(self, operation: str, first: str | int, second: str | int) -> str:
        """Of two 64-bit integers: add, sub, mul, udiv, and, or, shl, lshr."""
        return self.let(f"{operation} i64 {first}, {second}")

    def at(self, base: str, index: str | int, kind: str = "i64") -> str:
        """The address of element `index` of an array of `kind`."""
        return self.let(f"getelementptr inbounds {kind}, ptr {base}, i64 {index}")

    def variable(self, value: str | int, kind: str = "i64") -> str:
        """A place for a number, `value` in the beginning."""
        place = self.let(f"alloca {kind}")
        self.put(value, place, kind)
        return place

    def get(self, place: str, kind: str = "i64", align: int | None = None) -> str:
        return self.let(f"load {kind}, ptr {place}{'' if align is None else f', align {align}'}")

    def put(self, value: str | int, place: str, kind: str = "i64", align: int | None = None) -> None:
        self.do(f"store {kind} {value}, ptr {place}{'' if align is None else f', align {align}'}")

    def increase(self, place: str, by: str | int, kind: str = "i64") -> None:
        self.put(self.let(f"add {kind} {self.get(place, kind)}, {by}"), place, kind)

    def repeat(self, condition: Callable[[], str], body: Callable[[], None]) -> None:
        """While `condition` holds, `body`."""
        self.count += 1
        tag = f"l{self.count}"
        self.do(f"br label %{tag}.head")
        self.lines.append(f"{tag}.head:")
        self.do(f"br i1 {condition()}, label %{tag}.body, label %{tag}.done")
        self.lines.append(f"{tag}.body:")
        body()
        self.do(f"br label %{tag}.head")
        self.lines.append(f"{tag}.done:")

    def when(self, condition: str, body: Callable[[], None]) -> None:
        """If `condition` holds, `body`."""
        self.count += 1
        tag = f"l{self.count}"
        self.do(f"br i1 {condition}, label %{tag}.body, label %{tag}.done")
        self.lines.append(f"{tag}.body:")
        body()
        self.do(f"br label %{tag}.done")
        self.lines.append(f"{tag}.done:")

    def loop(self, first: str | int, last: str | int, step: int, body: Callable[[str], None]) -> None:
        """`for i in range(first, last, step): body(i)`, of whole steps only."""
        counter = self.variable(first)

        def once() -> None:
            body(self.get(counter))
            self.increase(counter, step)

        self.repeat(lambda: self.let(f"icmp sle i64 {self.integer('add', self.get(counter), step)}, {last}"), once)

    def sweep(self, count: int, body: Callable[[str, int], None]) -> None:
        """`body(i, lanes)` for all of `count` elements, vectors first and single ones for the rest."""
        whole = count // LANES * LANES
        if whole:
            self.loop(0, whole, LANES, lambda index: body(index, LANES))
        if whole < count:
            self.loop(whole, count, 1, lambda index: body(index, 1))

    def place(self, base: str, *offsets: str | int) -> str:
        """The address of a float: `base` and the sum of offsets, in floats."""
        for offset in offsets:
            if offset not in (0, "0"):
                base = self.let(f"getelementptr inbounds float, ptr {base}, i64 {offset}")
        return base

    def load(self, address: str, lanes: int) -> str:
        return self.let(f"load {vector_type(lanes)}, ptr {address}, align 4")

    def store(self, value: str, address: str, lanes: int) -> None:
        self.do(f"store {vector_type(lanes)} {value}, ptr {address}, align 4")

    def times(self, index: str, factor: int) -> str:
        return self.integer("mul", index, factor)

    def splat(self, value: str, lanes: int, kind: str = "float") -> str:
        if lanes == 1:
            return value
        one = self.let(f"insertelement <{lanes} x {kind}> poison, {kind} {value}, i64 0")
        return self.let(f"shufflevector <{lanes} x {kind}> {one}, <{lanes} x {kind}> poison, <{lanes} x i32> zeroinitializer")

    def number(self, value: float, lanes: int) -> str:
        return self.splat(constant(value), lanes) if lanes > 1 else constant(value)

    def intrinsic(self, name: str, lanes: int, *operands: str) -> str:
        typed = ", ".join(f"{vector_type(lanes)} {each}" for each in operands)
        return self.let(f"call {vector_type(lanes)} @llvm.{name}.{suffix(lanes)}({typed})")


def vector_type(lanes: int) -> str:
    """The type of so many floats."""
    return "float" if lanes == 1 else f"<{lanes} x float>"


def mask_type(lanes: int) -> str:
    """The type of as many truths."""
    return "i1" if lanes == 1 else f"<{lanes} x i1>"


def suffix(lanes: int) -> str:
    """What the names of intrinsics on so many floats end in."""
    return "f32" if lanes == 1 else f"v{lanes}f32"


def constant(value: float) -> str:
    """A float32 as LLVM writes it: the bits of the double that equals it."""
    return f"0x{np.float64(np.float32(value)).view(np.uint64):016X}"


def function(name: str, parameters: str, body: Body, *, public: bool = False) -> str:
    """Memory on the stack is taken once, in the beginning; passes stay functions of their own, which compile well."""
    taken = [line for line in body.lines if " = alloca " in line]
    rest = [line for line in body.lines if " = alloca " not in line]
    head = f"define {'' if public else 'internal '}void @{name}({parameters}) {'' if public else 'noinline '}nounwind {{"
    return "\n".join([head, "entry:", *taken, *rest, "  ret void", "}"])


def transposed(body: Body, parts: list[str]) -> list[str]:
    """Rows of a square become its columns: pairs of rows are interleaved at distances of one half, one quarter, ..."""
    size = len(parts)
    kind = f"<{size} x float>"
    for stage in range(int(math.log2(size))):
        width = 1 << stage
        pairs = [(i, i | width) for i in range(size) if not i & width]
        first = [(i if not i & width else size + (i ^ width)) for i in range(size)]
        second = [(i | width if not i & width else size + i) for i in range(size)]
        new = list(parts)
        for a, b in pairs:
            for target, order in ((a, first), (b, second)):
                mask = ", ".join(f"i32 {i}" for i in order)
                new[target] = body.let(f"shufflevector {kind} {parts[a]}, {kind} {parts[b]}, <{size} x i32> <{mask}>")
        parts = new
    return parts
