"""The two passes of `deflate` as machine code, by LLVM: over all cells, and over those that are not zero."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

from minicarlo.llvm import LANES, Body, compiled, function

RUN = 258
"""Bytes of the longest match."""

LENGTH_BITS = 8
"""Of an element of a table, lowest: how many bits to write of the rest."""

STATE = ("numbers", "end", "base", "sum", "weighted", "runs", "spare", "size", "largest")
"""What `scan` keeps from piece to piece, 64 bits each: words that are not zero, the place behind the last of them, where a piece
begins (in words), the checksum's two sums without their constants, longest matches, zero bytes that were counted though they are
part of runs, the bytes of all, the largest word."""

_BLOCK = 64  # cells that are looked at together
_VECTOR, _MASK = f"<{LANES} x i32>", f"<{LANES} x i1>"


@dataclass(frozen=True)
class MachineCode:
    """Functions of addresses (p) and numbers (n), which hold no lock of Python's.

    `scan` (cells p, their number n, words p, gaps p, STATE p, counts p) appends words that are not zero, each without its lowest
    bytes where these are zero, with the number of zero bytes before what is left. It counts bytes, 256 for each place in a word,
    and rests of runs of zeros by their length, less the first byte, modulo RUN.

    `write` (words p, gaps p, their number n, zero bytes behind the last n, table of literals p, table of zeros p, out p, progress
    p) writes on. `progress` has 64 bits each for the place in `out`, bits that come first, and their number; afterwards the place
    is behind the last byte.
    """

    scan: Callable[..., None]
    write: Callable[..., None]
    library: Any


_compiling = Lock()


def machine_code() -> MachineCode:
    """The functions, compiled when they are first asked for (a tenth of a second)."""
    with _compiling:
        return _machine_code()


@cache
def _machine_code() -> MachineCode:
    library = compiled("\n".join(["declare i64 @llvm.cttz.i64(i64, i1)", _scan(), _write()]))

    def called(name: str, parameters: str) -> Callable[..., None]:
        kinds = {"p": ctypes.c_void_p, "n": ctypes.c_int64}
        return ctypes.CFUNCTYPE(None, *map(kinds.__getitem__, parameters))(library.get_function_address(name))

    return MachineCode(called("scan", "pnpppp"), called("write", "ppnnpppp"), library)


def _run_of(body: Body, zeros: str) -> tuple[str, str]:
    """Longest matches and the rest of so many zero bytes, at least one, without the first."""
    behind = body.integer("sub", zeros, 1)
    runs = body.integer("udiv", behind, RUN)
    return runs, body.integer("sub", behind, body.integer("mul", runs, RUN))


def _byte(body: Body, word: str, part: int) -> str:
    return body.integer("and", body.integer("lshr", word, 8 * part), 255)


def _lowest_bit(body: Body, value: str) -> str:
    return body.let(f"call i64 @llvm.cttz.i64(i64 {value}, i1 true)")


def _scan() -> str:
    body = Body()
    places = {name: body.at("%state", index) for index, name in enumerate(STATE)}
    base, size = body.get(places["base"]), body.get(places["size"])
    kept = {n: body.variable(body.get(places[n])) for n in ("numbers", "end", "sum", "weighted", "runs", "spare")}
    largest = body.variable("zeroinitializer", _VECTOR)

    def not_zero(index: str) -> None:
        word = body.let(f"zext i32 {body.get(body.at('%cells', index, 'i32'), 'i32')} to i64")
        place, found = body.integer("add", base, index), body.get(kept["numbers"])
        low = body.integer("lshr", _lowest_bit(body, word), 3)
        gap = body.integer("add", body.integer("shl", body.integer("sub", place, body.get(kept["end"])), 2), low)
        word = body.integer("lshr", word, body.integer("shl", low, 3))
        body.put(body.integer("add", place, 1), kept["end"])
        for value, target in ((word, "%words"), (gap, "%gaps")):
            body.put(body.let(f"trunc i64 {value} to i32"), body.at(target, found, "i32"), "i32")
        body.increase(kept["numbers"], 1)
        parts = [_byte(body, word, part) for part in range(4)]
        for part, byte in enumerate(parts):
            body.increase(body.at("%counts", body.integer("add", byte, 256 * part), "i32"), 1, "i32")
        # A byte at place i of n adds n - i times itself to the second sum.
        total = body.integer("add", body.integer("add", parts[0], parts[1]), body.integer("add", parts[2], parts[3]))
        later = body.integer(
            "add", body.integer("add", parts[1], body.integer("shl", parts[2], 1)), body.integer("mul", parts[3], 3)
        )
        left = body.integer("sub", body.integer("sub", size, body.integer("shl", place, 2)), low)
        body.increase(kept["spare"], low)
        body.increase(kept["sum"], total)
        body.increase(kept["weighted"], body.integer("sub", body.integer("mul", left, total), later))

        def count_zeros() -> None:
            runs, rest = _run_of(body, gap)
            body.increase(kept["runs"], runs)
            body.increase(body.at("%counts", body.integer("add", rest, 4 * 256), "i32"), 1, "i32")

        body.when(body.let(f"icmp ne i64 {gap}, 0"), count_zeros)

    def look_at(values: str) -> None:
        so_far = body.get(largest, _VECTOR)
        larger = body.let(f"icmp ugt {_VECTOR} {values}, {so_far}")
        body.put(body.let(f"select {_MASK} {larger}, {_VECTOR} {values}, {_VECTOR} {so_far}"), largest, _VECTOR)

    def block(first: str) -> None:
        mask = "0"
        for lane in range(0, _BLOCK, LANES):
            values = body.get(body.at("%cells", body.integer("add", first, lane), "i32"), _VECTOR, align=4)
            look_at(values)
            differs = body.let(f"icmp ne {_VECTOR} {values}, zeroinitializer")
            bits = body.let(f"zext i{LANES} {body.let(f'bitcast {_MASK} {differs} to i{LANES}')} to i64")
            mask = body.integer("or", mask, body.integer("shl", bits, lane))
        left = body.variable(mask)

        def lowest() -> None:
            bits = body.get(left)
            not_zero(body.integer("add", first, _lowest_bit(body, bits)))
            body.put(body.integer("and", bits, body.integer("sub", bits, 1)), left)

        body.repeat(lambda: body.let(f"icmp ne i64 {body.get(left)}, 0"), lowest)

    def single(index: str) -> None:
        value = body.get(body.at("%cells", index, "i32"), "i32")
        look_at(body.let(f"insertelement {_VECTOR} zeroinitializer, i32 {value}, i64 0"))
        body.when(body.let(f"icmp ne i32 {value}, 0"), lambda: not_zero(index))

    body.loop(0, "%count", _BLOCK, block)
    body.loop(body.integer("and", "%count", -_BLOCK), "%count", 1, single)
    for name, place in kept.items():
        body.put(body.get(place), places[name])
    body.put(body.integer("add", base, "%count"), places["base"])
    values, most = body.get(largest, _VECTOR), body.get(places["largest"])
    for lane in range(LANES):
        value = body.let(f"zext i32 {body.let(f'extractelement {_VECTOR} {values}, i64 {lane}')} to i64")
        most = body.let(f"select i1 {body.let(f'icmp ugt i64 {value}, {most}')}, i64 {value}, i64 {most}")
    body.put(most, places["largest"])
    parameters = "ptr %cells, i64 %count, ptr noalias %words, ptr noalias %gaps, ptr noalias %state, ptr noalias %counts"
    return function("scan", parameters, body, public=True)


def _write() -> str:
    body = Body()
    progress = [body.at("%progress", index) for index in range(3)]
    place, bits, waiting = (body.variable(body.get(each)) for each in progress)
    zero, run, end = body.get("%literals"), body.get(body.at("%zeros", RUN)), body.get(body.at("%literals", 256))

    def put(entry: str) -> None:
        """Behind what waits to be written; 64 bits have room for four literals."""
        value = body.integer("shl", body.integer("lshr", entry, LENGTH_BITS), body.get(waiting))
        body.put(body.integer("or", body.get(bits), value), bits)
        body.increase(waiting, body.integer("and", entry, 2**LENGTH_BITS - 1))

    def flush() -> None:
        """Write all that waits, and go on from the byte that is not full."""
        now, ready = body.get(bits), body.get(waiting)
        body.put(now, body.at("%out", body.get(place), "i8"), align=1)
        body.increase(place, body.integer("lshr", ready, 3))
        body.put(body.integer("lshr", now, body.integer("and", ready, -8)), bits)
        body.put(body.integer("and", ready, 7), waiting)

    def put_zeros(gap: str) -> None:
        def whole_run(_: str) -> None:
            put(run)
            flush()

        def some() -> None:
            runs, rest = _run_of(body, gap)
            put(zero)
            body.loop(0, runs, 1, whole_run)
            put(body.get(body.at("%zeros", rest)))
            flush()

        body.when(body.let(f"icmp ne i64 {gap}, 0"), some)

    def put_number(index: str) -> None:
        gap, word = (body.let(f"zext i32 {body.get(body.at(each, index, 'i32'), 'i32')} to i64") for each in ("%gaps", "%words"))
        put_zeros(gap)
        left = body.integer("sub", 4, body.integer("and", gap, 3))
        for part in range(4):
            entry = body.get(body.at("%literals", _byte(body, word, part)))
            put(body.let(f"select i1 {body.let(f'icmp ult i64 {part}, {left}')}, i64 {entry}, i64 0"))
        flush()

    body.loop(0, "%count", 1, put_number)
    put_zeros("%behind")
    put(end)
    flush()
    unfinished = body.let(f"icmp ne i64 {body.get(waiting)}, 0")
    body.put(body.integer("add", body.get(place), body.let(f"zext i1 {unfinished} to i64")), progress[0])
    tables = "ptr %literals, ptr %zeros, ptr noalias %out, ptr noalias %progress"
    return function("write", f"ptr %words, ptr %gaps, i64 %count, i64 %behind, {tables}", body, public=True)
