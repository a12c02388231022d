"""Inputs from a file: one array for each input of a network, the first axis being events."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.errors import InvalidModel


def read_inputs(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file, or the one of an .npy file under the name "input". Raises InvalidModel; unpickles nothing."""
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {"input": found}
        with found:
            return {name: found[name] for name in found.files}
    except FileNotFoundError as error:
        raise InvalidModel(f"Inputs {path} do not exist. Write them with numpy.savez({path.name!r}, name=array).") from error
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise InvalidModel(
            f"Inputs {path} cannot be read ({str(error)[:200]}). Write plain arrays of numbers with numpy.savez."
        ) from error
