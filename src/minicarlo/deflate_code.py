"""The parts of `deflate` that are machine code, by LLVM: a pass over all cells, Huffman's code, a pass over what is not zero."""

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
    and of these numbers what is left of them without longest matches, 0 to RUN.

    `huffman` (weights p, their number n, parents p, depths p) takes weights in ascending order, at least two, with room for one
    less behind them, and gives each the bits of its code among `depths`, where and among `parents` there is as much room.

    `write` (words p, gaps p, their number n, zero bytes behind the last n, table of literals p, table of zeros p, out p, progress
    p) writes on. `progress` has 64 bits each for the place in `out`, bits that come first, and their number; afterwards the place
    is behind the last byte.
    """

    scan: Callable[..., None]
    huffman: Callable[..., None]
    write: Callable[..., None]
    library: Any


_compiling = Lock()


def machine_code() -> MachineCode:
    """The functions, compiled when they are first asked for (a tenth of a second)."""
    with _compiling:
        return _machine_code()


@cache
def _machine_code() -> MachineCode:
    library = compiled("\n".join(["declare i64 @llvm.cttz.i64(i64, i1)", _scan(), _huffman(), _write()]))

    def called(name: str, parameters: str) -> Callable[..., None]:
        kinds = {"p": ctypes.c_void_p, "n": ctypes.c_int64}
        return ctypes.CFUNCTYPE(None, *map(kinds.__getitem__, parameters))(library.get_function_address(name))

    return MachineCode(called("scan", "pnpppp"), called("huffman", "pnpp"), called("write", "ppnnpppp"), library)


def _cut(body: Body, zeros: str) -> tuple[str, str]:
    """Longest matches in so many zero bytes, and what is left: nothing of none, else 1 to RUN, for the first is no match."""
    runs, left = body.variable(0), body.variable(zeros)

    def long() -> None:
        behind = body.integer("sub", zeros, 1)
        body.put(body.integer("udiv", behind, RUN), runs)
        body.put(body.integer("sub", zeros, body.integer("mul", body.get(runs), RUN)), left)

    body.when(body.let(f"icmp ugt i64 {zeros}, {RUN}"), long)
    return body.get(runs), body.get(left)


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

        runs, rest = _cut(body, gap)
        body.increase(kept["runs"], runs)
        body.increase(body.at("%counts", body.integer("add", rest, 4 * 256), "i32"), 1, "i32")

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


def _huffman() -> str:
    """The two lightest become one, and again; what is joined is in ascending order by itself, behind the given weights."""
    body = Body()
    leaf, joined, end = body.variable(0), body.variable("%count"), body.integer("sub", body.integer("shl", "%count", 1), 1)

    def weight(node: str) -> str:
        return body.get(body.at("%weights", node))

    def take(new: str) -> str:
        """The weight of the lightest, which becomes part of `new`."""
        first, second = body.get(leaf), body.get(joined)
        is_light = body.let(f"icmp ule i64 {weight(first)}, {weight(second)}")
        is_leaf = body.let(f"and i1 {is_light}, {body.let(f'icmp ult i64 {first}, %count')}")
        one = body.let(f"zext i1 {is_leaf} to i64")
        body.increase(leaf, one)
        body.increase(joined, body.integer("xor", one, 1))
        lightest = body.let(f"select i1 {is_leaf}, i64 {first}, i64 {second}")
        body.put(new, body.at("%parents", lightest))
        return weight(lightest)

    def join(new: str) -> None:
        body.put(2**62, body.at("%weights", new))  # heavier than all until it is known
        both = [take(new) for _ in range(2)]
        body.put(body.integer("add", *both), body.at("%weights", new))

    def deepen(step: str) -> None:
        node = body.integer("sub", last, step)
        above = body.get(body.at("%depths", body.get(body.at("%parents", node))))
        body.put(body.integer("add", above, 1), body.at("%depths", node))

    body.loop("%count", end, 1, join)
    last = body.integer("sub", end, 1)
    body.put(0, body.at("%depths", last))
    body.loop(1, end, 1, deepen)
    return function("huffman", "ptr %weights, i64 %count, ptr noalias %parents, ptr noalias %depths", body, public=True)


def _write() -> str:
    body = Body()
    progress = [body.at("%progress", index) for index in range(3)]
    place, bits, waiting = (body.variable(body.get(each)) for each in progress)

    def code(table: str, index: str | int) -> tuple[str, str]:
        """The bits of an entry, and how many these are."""
        entry = body.get(body.at(table, index))
        return body.integer("lshr", entry, LENGTH_BITS), body.integer("and", entry, 2**LENGTH_BITS - 1)

    def joined(first: tuple[str, str], second: tuple[str, str]) -> tuple[str, str]:
        value = body.integer("or", first[0], body.integer("shl", second[0], first[1]))
        return value, body.integer("add", first[1], second[1])

    def put(new: tuple[str, str]) -> None:
        """Behind what waits to be written; 64 bits have room for four literals."""
        value, length = joined((body.get(bits), body.get(waiting)), new)
        body.put(value, bits)
        body.put(length, waiting)

    def flush() -> None:
        """Write all that waits, and go on from the byte that is not full."""
        now, ready = body.get(bits), body.get(waiting)
        body.put(now, body.at("%out", body.get(place), "i8"), align=1)
        body.increase(place, body.integer("lshr", ready, 3))
        body.put(body.integer("lshr", now, body.integer("and", ready, -8)), bits)
        body.put(body.integer("and", ready, 7), waiting)

    def put_zeros(gap: str) -> None:
        def whole_run(_: str) -> None:
            put(code("%zeros", RUN + 1))
            flush()

        runs, rest = _cut(body, gap)
        put(code("%zeros", rest))
        flush()
        body.loop(0, runs, 1, whole_run)

    def put_number(index: str) -> None:
        gap, word = (body.let(f"zext i32 {body.get(body.at(each, index, 'i32'), 'i32')} to i64") for each in ("%gaps", "%words"))
        put_zeros(gap)
        left = body.integer("sub", 4, body.integer("and", gap, 3))

        def literal(part: int) -> tuple[str, str]:
            is_left = body.let(f"icmp ult i64 {part}, {left}")
            value, length = code("%literals", _byte(body, word, part))
            return body.let(f"select i1 {is_left}, i64 {value}, i64 0"), body.let(f"select i1 {is_left}, i64 {length}, i64 0")

        codes = [literal(part) for part in range(4)]
        put(joined(joined(codes[0], codes[1]), joined(codes[2], codes[3])))
        flush()

    body.loop(0, "%count", 1, put_number)
    put_zeros("%behind")
    put(code("%literals", 256))
    flush()
    unfinished = body.let(f"icmp ne i64 {body.get(waiting)}, 0")
    body.put(body.integer("add", body.get(place), body.let(f"zext i1 {unfinished} to i64")), progress[0])
    tables = "ptr %literals, ptr %zeros, ptr noalias %out, ptr noalias %progress"
    return function("write", f"ptr %words, ptr %gaps, i64 %count, i64 %behind, {tables}", body, public=True)
