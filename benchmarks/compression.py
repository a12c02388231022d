"""How fast showers are compressed, and into how many bytes: `python benchmarks/compression.py showers.h5`, one core, CPU time.

Medians of rounds. `generate` uses "ours"; lz4 and zstd come from pyarrow (extra `dev`).
"""

import sys
import time
import zlib

import numpy as np
import pyarrow
from zlib_ng import zlib_ng

from minicarlo.deflate import deflate
from minicarlo.events import read_events

CHUNK, EVENTS, ROUNDS = 64, 1984, 5


def ours(data: bytes, level: int) -> bytes:
    return deflate([np.frombuffer(data, np.float32)], len(data))[0]


def runs(data: bytes, level: int) -> bytes:
    """With zlib's strategy for runs of the same byte."""
    stream = zlib_ng.compressobj(level, zlib_ng.DEFLATED, zlib_ng.MAX_WBITS, 9, zlib_ng.Z_RLE)
    return stream.compress(data) + stream.flush()


def lz4(data: bytes, level: int) -> bytes:
    return pyarrow.Codec("lz4_raw").compress(data, asbytes=True)


def zstandard(data: bytes, level: int) -> bytes:
    return pyarrow.Codec("zstd", compression_level=level).compress(data, asbytes=True)


def main(path: str) -> None:
    showers = read_events(path, stop=EVENTS).samples.astype(np.float32)
    chunks = [showers[start : start + CHUNK].tobytes() for start in range(0, len(showers), CHUNK)]
    cases = [
        ("ours", 0, ours),
        ("zlib", 1, zlib.compress),
        *(("zlib-ng", level, zlib_ng.compress) for level in (1, 2, 3)),
        ("zlib-ng, runs", 2, runs),
        ("lz4", 1, lz4),
        *(("zstd", level, zstandard) for level in (-5, -1, 1, 3)),
    ]
    seconds: dict[tuple[str, int], list[float]] = {case[:2]: [] for case in cases}
    size = {}
    for _ in range(ROUNDS):
        for name, level, compress in cases:
            start = time.process_time()
            size[name, level] = sum(len(compress(chunk, level)) for chunk in chunks)
            seconds[name, level].append(time.process_time() - start)
    for case, times in seconds.items():
        rate, bytes_per_shower = len(showers) / np.median(times), size[case] / len(showers)
        print(f"{case[0]:13s} level {case[1]}: {rate:7,.0f} showers/s, {bytes_per_shower:6,.0f} bytes per shower")


if __name__ == "__main__":
    main(sys.argv[1])
