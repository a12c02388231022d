"""Write the attributes of HDF5 files as JSON; run as a script of its own, in a process with little memory and time.

HDF5 (2.0) loops for ever, or fills the memory, on some damaged strings of variable length. Nothing else of minicarlo is
imported here, so that it starts quickly.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import h5py
import numpy as np

LARGEST = 2**20
"""Bytes that one attribute may have."""

_MEMORY, _LARGEST_OUTPUT = 2**32, 2**24


def attributes_of(file: h5py.File) -> dict[str, Any]:
    """Attributes of the root that are text, numbers or lists of them; others are left out."""
    result: dict[str, Any] = {}
    for name in sorted(map(str, file.attrs)):
        identifier = file.attrs.get_id(name)
        text = h5py.check_string_dtype(identifier.dtype) is not None
        if identifier.shape is None or len(identifier.shape) > 1 or not (text or identifier.dtype.kind in "biuf"):
            continue
        values = np.atleast_1d(file.attrs[name]).tolist()
        values = [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values]
        result[name] = values if identifier.shape else values[0]
    return result


def _main() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        seconds = int(sys.argv[2])
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    except (ImportError, ValueError, OSError):  # no such limits on this system: the caller's time limit is left
        pass
    with h5py.File(sys.argv[1], "r", locking=False) as file:
        text = json.dumps(attributes_of(file))
    if len(text) > _LARGEST_OUTPUT:
        raise SystemExit(f"larger than {_LARGEST_OUTPUT} characters")
    sys.stdout.write(text)


if __name__ == "__main__":
    _main()
