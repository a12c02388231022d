"""The two passes of `deflate` as machine code, by LLVM: over all cells, and over those that are not zero."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

from minicarlo.llvm import compiled

RUN = 258
"""Bytes of the longest match."""

LENGTH_BITS = 8
"""Of an element of a table, lowest: how many bits to write of the rest."""

STATE = ("numbers", "end", "base", "sum", "weighted", "runs", "spare", "size", "largest")
"""What `scan` keeps from piece to piece, 64 bits each: words that are not zero, the place behind the last of them, where a piece
begins (in words), the checksum's two sums without their constants, longest matches, zero bytes that were counted though they are
part of runs, the bytes of all, the largest word."""

_LANES, _BLOCK = 16, 64


@dataclass(frozen=True)
class MachineCode:
    """Functions of addresses (p) and numbers (n), which hold no lock of Python's.

    `scan` (cells p, their number n, words p, gaps p, STATE p, counts p) appends words that are not zero, each without its lowest
    bytes where these are zero, with the number of zero bytes before what is left. It counts bytes, 256 for each place in a word,
    and rests of runs of zeros by their length, less the first byte, modulo RUN.

    `write` (words p, gaps p, their number n, zero bytes behind the last n, table of literals p, table of zeros p, out p, place
    in it n, bits that are to come first n, their number n) returns the place behind the last byte.
    """

    scan: Callable[..., int]
    write: Callable[..., int]
    library: Any


_compiling = Lock()


def machine_code() -> MachineCode:
    """The functions, compiled when they are first asked for (a tenth of a second)."""
    with _compiling:
        return _machine_code()


@cache
def _machine_code() -> MachineCode:
    from llvmlite import ir

    module = ir.Module()
    scan, write = _Code(module, "scan", "pnpppp"), _Code(module, "write", "ppnnpppnnn")
    _scan(scan)
    _write(write)
    library = compiled(str(module))
    functions = {each.name: each.type(library.get_function_address(each.name)) for each in (scan, write)}
    return MachineCode(**functions, library=library)


class _Code:
    """A function while it is written: LLVM's builder, with variables of 64 bits and loops."""

    def __init__(self, module: Any, name: str, parameters: str) -> None:  # noqa: ANN401
        from llvmlite import ir

        self.ir, self.name = ir, name
        self.i16, self.i32, self.i64 = map(ir.IntType, (16, 32, 64))
        kinds = {"p": ir.PointerType(), "n": self.i64}
        self._function = ir.Function(module, ir.FunctionType(self.i64, [kinds[each] for each in parameters]), name)
        self.arguments = self._function.args
        self.type = ctypes.CFUNCTYPE(ctypes.c_int64, *({"p": ctypes.c_void_p, "n": ctypes.c_int64}[each] for each in parameters))
        self._first = self._function.append_basic_block()
        self.build = ir.IRBuilder(self._function.append_basic_block())
        self._start = self.build.block

    def number(self, value: int) -> Any:  # noqa: ANN401
        return self.ir.Constant(self.i64, value)

    def ended(self, result: Any) -> None:  # noqa: ANN401
        self.build.ret(result)
        self.ir.IRBuilder(self._first).branch(self._start)

    def variable(self, value: Any, kind: Any = None) -> Any:  # noqa: ANN401
        """A place for a number, `value` in the beginning."""
        place = self.ir.IRBuilder(self._first).alloca(kind or self.i64)  # memory of the function's, not of a loop's
        self.build.store(value, place)
        return place

    def get(self, place: Any, kind: Any = None) -> Any:  # noqa: ANN401
        return self.build.load(place, typ=kind or self.i64)

    def at(self, base: Any, index: Any, kind: Any = None) -> Any:  # noqa: ANN401
        return self.build.gep(base, [index], source_etype=kind or self.i64)

    def increase(self, place: Any, by: Any) -> None:  # noqa: ANN401
        self.build.store(self.build.add(self.get(place, by.type), by), place)

    def repeat(self, condition: Callable[[], Any], body: Callable[[], None]) -> None:
        """While `condition` holds, `body`."""
        head, inside, done = (self._function.append_basic_block() for _ in range(3))
        self.build.branch(head)
        self.build.position_at_end(head)
        self.build.cbranch(condition(), inside, done)
        self.build.position_at_end(inside)
        body()
        self.build.branch(head)
        self.build.position_at_end(done)

    def loop(self, first: Any, last: Any, step: int, body: Callable[[Any], None]) -> None:  # noqa: ANN401
        """`for i in range(first, last, step): body(i)`, of whole steps."""
        place = self.variable(first)

        def once() -> None:
            body(self.get(place))
            self.increase(place, self.number(step))

        self.repeat(lambda: self.build.icmp_signed("<", self.get(place), last), once)

    def run_of(self, zeros: Any) -> tuple[Any, Any]:  # noqa: ANN401
        """Longest matches and the rest of so many zero bytes, at least one, without the first."""
        behind = self.build.sub(zeros, self.number(1))
        runs = self.build.udiv(behind, self.number(RUN))
        return runs, self.build.sub(behind, self.build.mul(runs, self.number(RUN)))


def _scan(code: _Code) -> None:
    build, number, i32 = code.build, code.number, code.i32
    cells, count, words, gaps, state, counts = code.arguments
    places = {name: code.at(state, number(index)) for index, name in enumerate(STATE)}
    base, size = code.get(places["base"]), code.get(places["size"])
    kept = {n: code.variable(code.get(places[n])) for n in ("numbers", "end", "sum", "weighted", "runs", "spare")}
    vector = code.ir.VectorType(i32, _LANES)
    zeros, one, yes = code.ir.Constant(vector, [0] * _LANES), code.ir.Constant(i32, 1), code.ir.Constant(code.ir.IntType(1), 1)
    largest = code.variable(zeros, vector)

    def not_zero(index: Any) -> None:  # noqa: ANN401
        short = code.get(code.at(cells, index, i32), i32)
        word, place, found = build.zext(short, code.i64), build.add(base, index), code.get(kept["numbers"])
        low = build.lshr(build.cttz(word, yes), number(3))
        gap = build.add(build.shl(build.sub(place, code.get(kept["end"])), number(2)), low)
        word = build.lshr(word, build.shl(low, number(3)))
        build.store(build.add(place, number(1)), kept["end"])
        build.store(build.trunc(word, i32), code.at(words, found, i32))
        build.store(build.trunc(gap, i32), code.at(gaps, found, i32))
        code.increase(kept["numbers"], number(1))
        parts = [build.and_(build.lshr(word, number(8 * part)), number(255)) for part in range(4)]
        for part, byte in enumerate(parts):
            code.increase(code.at(counts, build.add(byte, number(256 * part)), i32), one)
        # A byte at place i of n adds n - i times itself to the second sum.
        total = build.add(build.add(parts[0], parts[1]), build.add(parts[2], parts[3]))
        later = build.add(build.add(parts[1], build.shl(parts[2], number(1))), build.mul(parts[3], number(3)))
        left = build.sub(build.sub(size, build.shl(place, number(2))), low)
        code.increase(kept["spare"], low)
        code.increase(kept["sum"], total)
        code.increase(kept["weighted"], build.sub(build.mul(left, total), later))
        with build.if_then(build.icmp_unsigned("!=", gap, number(0))):
            runs, rest = code.run_of(gap)
            code.increase(kept["runs"], runs)
            code.increase(code.at(counts, build.add(rest, number(4 * 256)), i32), one)

    def look_at(values: Any) -> None:  # noqa: ANN401
        so_far = code.get(largest, vector)
        build.store(build.select(build.icmp_unsigned(">", values, so_far), values, so_far), largest)

    def block(first: Any) -> None:  # noqa: ANN401
        mask = number(0)
        for lane in range(0, _BLOCK, _LANES):
            values = build.load(code.at(cells, build.add(first, number(lane)), i32), typ=vector, align=4)
            look_at(values)
            bits = build.zext(build.bitcast(build.icmp_unsigned("!=", values, zeros), code.i16), code.i64)
            mask = build.or_(mask, build.shl(bits, number(lane)))
        left = code.variable(mask)

        def lowest() -> None:
            bits = code.get(left)
            not_zero(build.add(first, build.cttz(bits, yes)))
            build.store(build.and_(bits, build.sub(bits, number(1))), left)

        code.repeat(lambda: build.icmp_unsigned("!=", code.get(left), number(0)), lowest)

    def single(index: Any) -> None:  # noqa: ANN401
        value = code.get(code.at(cells, index, i32), i32)
        look_at(build.insert_element(zeros, value, code.ir.Constant(i32, 0)))
        with build.if_then(build.icmp_unsigned("!=", value, code.ir.Constant(i32, 0))):
            not_zero(index)

    whole = build.and_(count, number(-_BLOCK))
    code.loop(number(0), whole, _BLOCK, block)
    code.loop(whole, count, 1, single)
    for name, place in kept.items():
        build.store(code.get(place), places[name])
    build.store(build.add(base, count), places["base"])
    values, most = code.get(largest, vector), code.get(places["largest"])
    for lane in range(_LANES):
        value = build.zext(build.extract_element(values, code.ir.Constant(i32, lane)), code.i64)
        most = build.select(build.icmp_unsigned(">", value, most), value, most)
    build.store(most, places["largest"])
    code.ended(most)


def _write(code: _Code) -> None:
    build, number = code.build, code.number
    words, gaps, count, behind, literals, zeros, out, start, first_bits, first_number = code.arguments
    place, bits, waiting = map(code.variable, (start, first_bits, first_number))
    zero, run, end = code.get(literals), code.get(code.at(zeros, number(RUN))), code.get(code.at(literals, number(256)))

    def put(entry: Any) -> None:  # noqa: ANN401
        """Behind what waits to be written; 64 bits have room for four literals."""
        value = build.shl(build.lshr(entry, number(LENGTH_BITS)), code.get(waiting))
        build.store(build.or_(code.get(bits), value), bits)
        code.increase(waiting, build.and_(entry, number(2**LENGTH_BITS - 1)))

    def flush() -> None:
        """Write all that waits, and go on from the byte that is not full."""
        now, ready = code.get(bits), code.get(waiting)
        build.store(now, code.at(out, code.get(place), code.ir.IntType(8)), align=1)
        code.increase(place, build.lshr(ready, number(3)))
        build.store(build.lshr(now, build.and_(ready, number(-8))), bits)
        build.store(build.and_(ready, number(7)), waiting)

    def put_zeros(gap: Any) -> None:  # noqa: ANN401
        def whole_run(_: Any) -> None:  # noqa: ANN401
            put(run)
            flush()

        with build.if_then(build.icmp_unsigned("!=", gap, number(0))):
            runs, rest = code.run_of(gap)
            put(zero)
            code.loop(number(0), runs, 1, whole_run)
            put(code.get(code.at(zeros, rest)))
            flush()

    def put_number(index: Any) -> None:  # noqa: ANN401
        gap = build.zext(code.get(code.at(gaps, index, code.i32), code.i32), code.i64)
        word = build.zext(code.get(code.at(words, index, code.i32), code.i32), code.i64)
        put_zeros(gap)
        count = build.sub(number(4), build.and_(gap, number(3)))
        for part in range(4):
            entry = code.get(code.at(literals, build.and_(build.lshr(word, number(8 * part)), number(255))))
            put(build.select(build.icmp_unsigned("<", number(part), count), entry, number(0)))
        flush()

    code.loop(number(0), count, 1, put_number)
    put_zeros(behind)
    put(end)
    flush()
    unfinished = build.icmp_unsigned("!=", code.get(waiting), number(0))
    code.ended(build.add(code.get(place), build.zext(unfinished, code.i64)))
