"""Keras models, in a process of its own in which Keras computes with OpenVINO: TensorFlow is not needed.

A `.keras` file is a description in JSON and weights in HDF5. Keras builds what the description names, and some of its layers
run code or read other files (Lambda, TFSMLayer, TorchModuleWrapper, vocabularies), so the description is judged before Keras
sees it: only the layers listed here, and nothing registered outside of Keras. Keras then loads with `safe_mode=True`.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py

from minicarlo.engines.network import read_network_file
from minicarlo.errors import InvalidEventSet, InvalidModel, MissingExtra
from minicarlo.hdf5 import open_untrusted
from minicarlo.models.network import Network
from minicarlo.models.onnx import last_line

_LAYERS = frozenset(
    """Activation Add AlphaDropout Attention Average AveragePooling1D AveragePooling2D AveragePooling3D BatchNormalization
    Concatenate Conv1D Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose Cropping1D Cropping2D Cropping3D Dense
    DepthwiseConv1D DepthwiseConv2D Dot Dropout ELU EinsumDense Embedding Flatten GaussianDropout GaussianNoise
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    GroupNormalization Identity InputLayer LayerNormalization LeakyReLU MaxPooling1D MaxPooling2D MaxPooling3D Maximum Minimum
    MultiHeadAttention Multiply PReLU Permute RMSNormalization ReLU RepeatVector Rescaling Reshape SeparableConv1D
    SeparableConv2D Softmax SpatialDropout1D SpatialDropout2D SpatialDropout3D Subtract UnitNormalization UpSampling1D
    UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D""".split()
)
_ALLOWED = {
    "keras.layers": _LAYERS,
    "keras": frozenset({"DTypePolicy", "Sequential", "Model"}),
    "keras.src.models.functional": frozenset({"Functional"}),
    "keras.src.models.sequential": frozenset({"Sequential"}),
    "keras.models": frozenset({"Functional", "Sequential", "Model"}),
}
_HARMLESS = ("keras.initializers", "keras.regularizers", "keras.constraints", "keras.dtype_policies")
_ACTIVATIONS = frozenset(
    """celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu linear log_sigmoid
    log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign sparse_plus squareplus swish tanh
    tanh_shrink threshold""".split()
)
_LARGEST = 2**31


def from_file(path: Path) -> Network:
    """A network from a `.keras` file. Raises InvalidModel, MissingExtra."""
    name = f"Keras file {path}"
    if find_spec("keras") is None:
        raise MissingExtra("Reading Keras models needs Keras. Install it with: pip install 'minicarlo[keras]'")
    with tempfile.TemporaryDirectory(prefix="minicarlo-") as folder:
        checked = Path(folder, "model.keras")
        checked.write_bytes(_checked(path.read_bytes(), name, Path(folder)))
        return _through_openvino(checked, name)


def from_object(model: Any) -> Network:  # noqa: ANN401
    """A network from a Keras model of plain layers, whatever it computes with. Raises InvalidModel."""
    name = f"Keras model {model.name}"
    with tempfile.TemporaryDirectory(prefix="minicarlo-") as folder:
        path = Path(folder, "own.keras")
        model.save(path)
        return from_file(path) if path.exists() else _through_openvino(path, name)


def _through_openvino(path: Path, name: str) -> Network:
    """Keras chooses what it computes with when it is imported, hence a process of its own."""
    graph = path.with_name("graph.xml")
    environment = os.environ | {"KERAS_BACKEND": "openvino", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "minicarlo.models._keras_to_openvino", str(path), str(graph)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode or not graph.exists():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1][:300] if lines else f"exit status {done.returncode}"
        raise InvalidModel(f"{name}: Keras cannot load and trace it ({reason}).")
    return Network.of(read_network_file(graph), name, "a Keras model")


def _checked(data: bytes, name: str, folder: Path) -> bytes:
    """A `.keras` file of the two entries that were judged: description and weights. Raises InvalidModel."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            if sum(entry.file_size for entry in entries.values()) > min(_LARGEST, 100 * len(data)):
                raise _refusal(name, "it claims far more bytes than it has")
            description = archive.read(entries["config.json"])
            weights = archive.read(entries["model.weights.h5"])
        config = json.loads(description)
        config["compile_config"] = None
        _check_config(config, name)
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _refusal(name, f"it is not what Keras writes ({type(error).__name__}: {last_line(error)})") from error
    _check_weights(weights, name, folder)
    safe = io.BytesIO()
    with zipfile.ZipFile(safe, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights)
    return safe.getvalue()


def _check_config(value: Any, name: str) -> None:  # noqa: ANN401
    if isinstance(value, list):
        for item in value:
            _check_config(item, name)
    if not isinstance(value, dict):
        return
    kind = value.get("class_name")
    if kind is not None:
        module, what = value.get("module"), value.get("config")
        plain = kind in ("__keras_tensor__", "__numpy__", "__tensor__", "__ellipsis__") or (
            kind == "function" and module in ("builtins", "keras.activations") and what in _ACTIVATIONS
        )
        known = kind in _ALLOWED.get(str(module), ()) or module in _HARMLESS
        if not (plain or known) or value.get("registered_name") not in (None, kind, "Functional"):
            raise _refusal(name, f"it holds {kind!r:.60} of {module!r:.60}, which is not among the layers that only compute")
    for key, item in value.items():
        if key != "build_config":
            _check_config(item, name)


def _check_weights(data: bytes, name: str, folder: Path) -> None:
    path = folder / "weights.h5"
    path.write_bytes(data)
    try:
        with open_untrusted(path) as file:
            _check_group(file, name, len(data))
    except InvalidEventSet as error:
        raise _refusal(name, "its weights are no plain HDF5") from error
    path.unlink()


def _check_group(group: h5py.Group, name: str, size: int) -> None:
    for key in group:
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            raise _refusal(name, f"{key!r:.60} in its weights is a link, which could lead out of the file")
        item = group[key]
        if isinstance(item, h5py.Group):
            _check_group(item, name, size)
        elif item.is_virtual or item.external or item.id.get_storage_size() > size or item.nbytes > 100 * size:
            raise _refusal(name, f"{key!r:.60} in its weights does not lie in the file")


def _refusal(name: str, reason: str) -> InvalidModel:
    return InvalidModel(f"{name} is not loaded: {reason}. Ask for an ONNX file, or for a model of Keras' own plain layers.")
