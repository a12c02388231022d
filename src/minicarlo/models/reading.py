"""Which reader a network needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minicarlo.engines.network import Arrays
from minicarlo.errors import InvalidModel
from minicarlo.models.network import Network

_ACCEPTED = (
    "Give an ONNX file (.onnx), a PyTorch exported program (.pt2), a Keras file (.keras), the directory of a TensorFlow "
    "SavedModel, or the directory or name of a surrogate"
)


def read_network(model: Any, example: Callable[[], Arrays]) -> Network:  # noqa: ANN401
    """A network from a path or from an object of its framework.

    `model` is the path of an ONNX, .pt2 or .keras file or of a SavedModel, or an OpenVINO model, a PyTorch module or exported
    program, a Keras model, or a JAX function. `example()` gives inputs of a few events, by name, which modules and functions
    are traced with. Raises InvalidModel, and MissingExtra when the framework's package is not installed.
    """
    if isinstance(model, str | Path):
        return _read_file(Path(model))
    frameworks = {each.__module__.partition(".")[0] for each in type(model).__mro__}
    if "openvino" in frameworks:
        return Network.of(model.clone(), model.get_friendly_name(), "an OpenVINO model", own_names=True)
    if "torch" in frameworks and not hasattr(model, "get_config"):
        from minicarlo.models import pytorch

        return pytorch.from_object(model, example)
    if "keras" in frameworks:
        from minicarlo.models import keras

        return keras.from_object(model)
    if callable(model):
        from minicarlo.models import jax

        return jax.from_function(model, example())
    raise InvalidModel(f"A {type(model).__name__} is no network that can be read. {_ACCEPTED}.")


def _read_file(path: Path) -> Network:
    if path.is_dir() and (path / "saved_model.pb").exists():
        from minicarlo.models import tensorflow

        return tensorflow.from_directory(path)
    if not path.is_file():
        what = "is no SavedModel and has no surrogate.json" if path.is_dir() else "does not exist"
        raise InvalidModel(f"{path} {what}. {_ACCEPTED}.")
    match path.suffix.lower():
        case ".onnx":
            from minicarlo.models import onnx

            return onnx.from_bytes(path.read_bytes(), f"Model {path}")
        case ".pt2":
            from minicarlo.models import pytorch

            return pytorch.from_file(path)
        case ".keras":
            from minicarlo.models import keras

            return keras.from_file(path)
        case ".pt" | ".pth" | ".pkl" | ".h5" | ".bin" | ".ckpt":
            raise InvalidModel(
                f"{path}: files ending in {path.suffix} hold weights or pickled Python objects, not a graph that could be read "
                "without running code. Export the network: torch.onnx.export, torch.export.save, or model.save('name.keras')."
            )
    raise InvalidModel(f"{path}: a file ending in {path.suffix or 'nothing'} is not among those that can be read. {_ACCEPTED}.")
