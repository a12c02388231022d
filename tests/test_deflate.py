"""Deflated cells: any zlib reads them, whatever they are and however they are cut."""

from __future__ import annotations

import threading
import zlib

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from minicarlo.deflate import LARGEST, code_lengths, deflate
from minicarlo.events import read_events
from minicarlo.surrogate import sample_path

Words = NDArray[np.uint32]


def inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    found = stream.decompress(data)
    assert stream.eof and not stream.unused_data  # which also says that the checksum is right
    return found


def by_zlib(cells: NDArray[np.generic]) -> bytes:
    """With its strategy for runs."""
    stream = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    return stream.compress(cells.tobytes()) + stream.flush()


@given(
    words=arrays.arrays(
        np.uint32,
        st.integers(0, 300),
        elements=st.one_of(st.just(0), st.integers(0, 2**32 - 1), st.sampled_from([1, 255, 0x3F800000, 0x80000000, 0xFF000000])),
        fill=st.just(0),
    ),
    repeat=st.integers(1, 5),
    behind=st.integers(0, 3000),
    cut=st.floats(0, 1),
)
@settings(max_examples=300, deadline=None)
def test_zlib_reads_what_was_deflated(words: Words, repeat: int, behind: int, cut: float) -> None:
    cells = np.tile(words, repeat).view(np.float32)
    size = cells.nbytes + 4 * behind
    place = int(cut * len(cells))
    assume(size)
    data, largest = deflate([cells[:place], cells[place:]], size)
    assert inflated(data) == cells.tobytes() + bytes(4 * behind)
    assert largest == max(map(int, words), default=0)
    assert deflate([cells], size)[0] == data


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.03, 0.5, 1.0])
def test_large_chunks(share: float) -> None:
    """Long runs of zeros, and bytes of which none is rare."""
    random = np.random.default_rng(3)
    words = random.integers(0, 2**32, 10**6, dtype=np.uint32) * (random.random(10**6) < share).astype(np.uint32)
    data, _ = deflate([words.view(np.float32)], words.nbytes)
    assert inflated(data) == words.tobytes()
    assert len(data) <= 1.02 * len(by_zlib(words)) + 200 <= 1.03 * words.nbytes


def test_showers_need_no_more_bytes_than_with_zlib() -> None:
    showers = read_events(sample_path(), stop=192).samples.astype(np.float32).reshape(3, 64, -1)
    ours = sum(len(deflate([chunk], chunk.nbytes)[0]) for chunk in showers)
    assert ours < 1.01 * sum(len(by_zlib(chunk)) for chunk in showers)


@given(frequencies=arrays.arrays(np.int64, 286, elements=st.integers(0, 10**9)))
@settings(max_examples=100, deadline=None)
def test_codes_are_complete_and_short(frequencies: NDArray[np.int64]) -> None:
    frequencies[256], frequencies[0] = 1, max(1, frequencies[0])
    lengths = code_lengths(frequencies)
    used = lengths[lengths > 0]
    assert (lengths > 0).tolist() == (frequencies > 0).tolist() and used.max() <= 14
    assert (0.5**used).sum() == 1  # Kraft: every sequence of bits means something
    share = frequencies[frequencies > 0] / frequencies.sum()
    assert frequencies @ lengths <= frequencies.sum() * (-(share * np.log2(share)).sum() + 1) * 1.01 + 286


def test_frequencies_that_would_make_codes_too_long() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(sum(fibonacci[-2:]))
    lengths = code_lengths(np.array(fibonacci))
    assert lengths.max() <= 14 and (0.5 ** lengths.astype(float)).sum() == 1


def test_threads_do_not_disturb_one_another() -> None:
    random = np.random.default_rng(5)
    chunks = [(random.random(50_000 + 1000 * k) * (random.random(50_000 + 1000 * k) < 0.05)).astype(np.float32) for k in range(8)]
    wanted = [deflate([chunk], chunk.nbytes)[0] for chunk in chunks]
    found: list[list[bytes]] = [[] for _ in range(4)]

    def work(into: list[bytes]) -> None:
        into += [deflate([chunk], chunk.nbytes)[0] for chunk in chunks]

    threads = [threading.Thread(target=work, args=(each,)) for each in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 4


@pytest.mark.parametrize("size", [0, 2, 3, LARGEST + 4, 8])
def test_sizes_that_do_not_fit(size: int) -> None:
    with pytest.raises(ValueError, match="cannot be deflated"):
        deflate([np.ones(3, np.float32)], size)
