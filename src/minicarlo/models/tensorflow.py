"""TensorFlow SavedModels, read by OpenVINO: TensorFlow is not needed and nothing in the file is run."""

from __future__ import annotations

import stat
from pathlib import Path

from minicarlo.engines.network import read_network_file
from minicarlo.errors import InvalidModel
from minicarlo.models.network import Network
from minicarlo.models.onnx import last_line

_CALLS_PYTHON = (b"PyFunc", b"EagerPyFunc", b"PyFuncStateless", b"NumpyFunction")
_MOST_FILES = 1000


def from_directory(path: Path) -> Network:
    """The default signature of a SavedModel, its variables frozen. Raises InvalidModel."""
    name = f"SavedModel {path}"
    files = list(path.rglob("*"))
    if len(files) > _MOST_FILES:
        raise InvalidModel(f"{name} has {len(files)} files; at most {_MOST_FILES} are accepted.")
    for file in files:
        mode = file.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InvalidModel(f"{name}: {file.relative_to(path)} is a link or no regular file, which is never followed.")
    graph_definition = (path / "saved_model.pb").read_bytes()
    for operation in _CALLS_PYTHON:
        if b"\x12" + bytes([len(operation)]) + operation in graph_definition:  # the field `op` of a NodeDef
            raise InvalidModel(
                f"{name} calls Python code (operation {operation.decode()}), which is not in the file and is never run. "
                "Write the network in TensorFlow's own operations and save it again."
            )
    try:
        graph = read_network_file(path)
    except RuntimeError as error:
        raise InvalidModel(f"{name}: OpenVINO cannot read it ({last_line(error)}).") from error
    return Network.of(graph, name, "a TensorFlow SavedModel")
