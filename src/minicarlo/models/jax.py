"""JAX functions, through jax2onnx."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from minicarlo.engines.network import Arrays
from minicarlo.errors import InvalidModel, MissingExtra
from minicarlo.models import onnx
from minicarlo.models.network import Network


def from_function(function: Callable[..., Any], example: Arrays) -> Network:
    """A network from a function of arrays (events, ...), traced with the shapes of `example`, whose names are its parameters.

    What the function closes over becomes weights. Raises InvalidModel, MissingExtra.
    """
    try:
        from jax2onnx import to_onnx
    except ImportError as error:
        raise MissingExtra("Reading a JAX function needs jax2onnx. Install it with: pip install 'minicarlo[jax]'") from error
    name = f"Function {getattr(function, '__name__', type(function).__name__)}"
    parameters = [each for each in inspect.signature(function).parameters if each in example]
    if len(parameters) != len(example):
        listed = ", ".join(inspect.signature(function).parameters)
        raise InvalidModel(f"{name} has the parameters {listed}; given are inputs for {', '.join(sorted(example))}.")
    try:
        import jax
        import jax.export

        (batch,) = jax.export.symbolic_shape("batch")
        inputs = [jax.ShapeDtypeStruct((batch, *example[each].shape[1:]), example[each].dtype) for each in parameters]
        model = to_onnx(function, inputs, input_names=parameters)
    except Exception as error:  # jax2onnx raises whatever its conversion of an operation raises
        raise InvalidModel(f"{name}: jax2onnx cannot convert it ({onnx.last_line(error)}).") from error
    del model.metadata_props[:]
    return onnx.from_bytes(model.SerializeToString(), name, "a JAX function")
