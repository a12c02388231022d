"""Deflate (zlib's format, which HDF5 calls gzip) for cells of showers: zeros with a number here and there.

A general compressor looks at every byte. Here zeros are skipped 64 cells at a time, and what is left is a run of zeros and
the four bytes of a number, again and again: a literal zero and matches with the byte before, as zlib's run-length strategy has
them, and four literals. One pass counts, one writes a single block with Huffman's code for it. The checksum needs only what is
not zero. All is done in integers, so that the bytes are the same on every processor. Any zlib reads them.

References:
    L. P. Deutsch, ZLIB compressed data format (RFC 1950), DEFLATE compressed data format (RFC 1951)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from threading import local

import numpy as np
from numpy.typing import NDArray

from minicarlo.deflate_code import LENGTH_BITS, RUN, STATE, machine_code

__all__ = ["LARGEST", "deflate"]

LARGEST = 2**30
"""Bytes that can be deflated at once."""

_LONGEST = 14  # bits of a code: four literals fit into 64 bits beside up to seven that are not written yet
_END, _SYMBOLS = 256, 286  # the symbol that ends a block; literals, the end, and lengths of matches
_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)  # of the lengths of lengths' codes
_MODULUS = 65521

Integers = NDArray[np.int64]


def deflate(pieces: Sequence[NDArray[np.float32]], size: int) -> tuple[bytes, int]:
    """`size` bytes deflated: those of `pieces`, contiguous, one after another, and zeros. How they are cut changes no byte.

    Also returns the largest 32-bit word among them, which tells whether all are numbers, finite and not negative. Raises
    ValueError for more than `LARGEST` bytes, a `size` that does not fit, and pieces that are not contiguous float32.
    """
    if not (sum(piece.nbytes for piece in pieces) <= size <= LARGEST and size > 0 == size % 4):
        raise ValueError(f"{size} bytes cannot be deflated.")
    if not all(piece.flags.c_contiguous and piece.dtype == np.float32 for piece in pieces):
        raise ValueError("Only contiguous float32 can be deflated.")
    code, memory = machine_code(), _memory_of_this_thread(size // 4)
    counts, state = np.zeros(4 * 256 + RUN + 1, np.uint32), np.zeros(len(STATE), np.int64)
    state[STATE.index("size")] = size
    for piece in pieces:
        code.scan(piece.ctypes.data, piece.size, *memory.addresses, state.ctypes.data, counts.ctypes.data)
    found = dict(zip(STATE, map(int, state), strict=True))
    literals, left = counts[: 4 * 256].reshape(4, 256).sum(axis=0, dtype=np.int64), counts[4 * 256 :].astype(np.int64)
    zeros = size - 4 * found["end"]
    if zeros:
        found["runs"] += (zeros - 1) // RUN
        left[(zeros - 1) % RUN + 1] += 1
    literals[0] -= found["spare"]
    frequencies = _frequencies(literals, left, found["runs"])
    lengths = code_lengths(frequencies)
    of_literals, of_zeros = _tables(_codes(lengths), lengths)
    head, bits = _head(lengths)
    body = frequencies @ lengths + left[4:] @ (_EXTRA_BITS[3:RUN] + 1) + found["runs"]
    out = np.empty((bits + int(body)) // 8 + 16, np.uint8)  # eight bytes are written at once
    whole = bits // 8
    out[:whole] = np.frombuffer(head.to_bytes(whole + 1, "little"), np.uint8, whole)
    progress = np.array([whole, head >> 8 * whole, bits - 8 * whole], np.int64)
    tables = [table.ctypes.data for table in (of_literals, of_zeros, out, progress)]
    code.write(*memory.addresses, found["numbers"], zeros, *tables)
    checksum = (size + found["weighted"]) % _MODULUS << 16 | (1 + found["sum"]) % _MODULUS
    return out[: progress[0]].tobytes() + checksum.to_bytes(4, "big"), found["largest"]


class _Memory:
    """Room for what is found among so many cells: the words that are not zero, and how many zero bytes are before each."""

    def __init__(self, cells: int) -> None:
        self.cells = cells
        self._arrays = [np.empty(cells + 1, np.uint32) for _ in range(2)]
        self.addresses = [array.ctypes.data for array in self._arrays]


_own = local()


def _memory_of_this_thread(cells: int) -> _Memory:
    memory: _Memory | None = getattr(_own, "memory", None)
    if memory is None or memory.cells < cells:
        memory = _own.memory = _Memory(cells)
    return memory


def code_lengths(frequencies: Integers) -> Integers:
    """Bits of the code of each symbol, 0 of those that do not occur, at most 14: Huffman's, of frequencies of which the least
    are raised until it fits. At least two symbols must occur.
    """
    used = np.flatnonzero(frequencies)
    used = used[np.argsort(frequencies[used], kind="stable")]
    weights, parents, depths = np.empty((3, 2 * len(used)), np.int64)
    least = int(frequencies.sum()) >> _LONGEST - 1
    while True:
        np.maximum(frequencies[used], least, out=weights[: len(used)])
        machine_code().huffman(weights.ctypes.data, len(used), parents.ctypes.data, depths.ctypes.data)
        if depths[: len(used)].max() <= _LONGEST:
            break
        least = 2 * least + 1
    lengths = np.zeros_like(frequencies)
    lengths[used] = depths[: len(used)]
    return lengths


def _codes(lengths: Integers) -> Integers:
    """The code of each symbol, its first bit lowest (RFC 1951, 3.2.2)."""
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    sizes = 1 << (_LONGEST - lengths[order])
    codes = np.zeros_like(lengths)
    codes[order] = _REVERSED[np.cumsum(sizes) - sizes]
    return codes


def _frequencies(literals: Integers, left: Integers, runs: int) -> Integers:
    """How often each symbol occurs: `literals` by byte, zeros without the longest matches by how many are `left`, each time a
    literal and a match or literals, and `runs` longest matches."""
    frequencies = np.bincount(_MATCH[3:RUN], left[4:], minlength=_SYMBOLS).astype(np.int64)
    frequencies[:_END] += literals
    frequencies[0] += left[1:].sum() + left[2] + 2 * left[3]
    frequencies[_END] = 1
    frequencies[_MATCH[RUN]] += runs
    return frequencies


def _head(lengths: Integers) -> tuple[int, int]:
    """What stands before the symbols, first bit lowest, and its number of bits.

    Zlib's two bytes; the last block, of type 2, and how many lengths of codes it has; all sixteen of these with a code of four
    bits; the lengths of all symbols and of one distance.
    """
    head, bits = 0, 0
    of_lengths = [(4 if symbol < 16 else 0, 3) for symbol in _ORDER]
    for value, width in [(0x0178, 16), (1, 1), (2, 2), (_SYMBOLS - 257, 5), (0, 5), (len(_ORDER) - 4, 4), *of_lengths]:
        head |= value << bits
        bits += width
    given = _NIBBLES[np.append(lengths, [1, 0])]
    pairs = (given[::2] | given[1::2] << 4).astype(np.uint8)
    return head | int.from_bytes(pairs.tobytes(), "little") << bits, bits + 4 * (_SYMBOLS + 1)


def _tables(codes: Integers, lengths: Integers) -> tuple[Integers, Integers]:
    """What to write, above the number of its bits: for literals and the end of a block; for 0 to `RUN` zeros, a literal and the
    rest, and last for a match of `RUN`. The distance is a bit, 0."""
    bits, widths = codes[: _END + 1], lengths[: _END + 1]
    of_match = lengths[_MATCH]
    more, more_widths = codes[_MATCH] | (_EXTRA << of_match), of_match + _EXTRA_BITS + 1
    more[:3], more_widths[:3] = (0, bits[0], bits[0] | bits[0] << widths[0]), (0, widths[0], 2 * widths[0])  # literals
    zeros, zeros_widths = np.zeros((2, RUN + 2), np.int64)
    zeros[1:-1], zeros_widths[1:-1] = bits[0] | more[:-1] << widths[0], widths[0] + more_widths[:-1]
    zeros[-1], zeros_widths[-1] = more[-1], more_widths[-1]
    return bits << LENGTH_BITS | widths, zeros << LENGTH_BITS | zeros_widths


def _matches() -> tuple[Integers, Integers, Integers]:
    """For matches of 0 to 258 bytes: symbol, extra bits and their number (RFC 1951, 3.2.5); nothing for less than 3."""
    widths = [0] * 8 + [bits for bits in range(1, 6) for _ in range(4)] + [0]
    starts = [*accumulate((1 << width for width in widths[:-2]), initial=3), RUN]
    symbols, extra, number = np.zeros((3, RUN + 1), np.int64)
    for index, (start, end) in enumerate(pairwise([*starts, RUN + 1])):
        symbols[start:end], extra[start:end], number[start:end] = _END + 1 + index, np.arange(end - start), widths[index]
    return symbols, extra, number


def _reversed_bits(bits: int) -> Integers:
    return np.array([int(f"{value:0{bits}b}"[::-1], 2) for value in range(1 << bits)])


_REVERSED, _NIBBLES = _reversed_bits(_LONGEST), _reversed_bits(4)
_MATCH, _EXTRA, _EXTRA_BITS = _matches()
