"""`python -m minicarlo.models._keras_to_openvino MODEL.keras GRAPH.xml`, in a process where Keras computes with OpenVINO."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

MOST_MEMORY = 2**35
"""Bytes of address space: a description of a few bytes can name a layer of any size."""


def main(source: str, target: str) -> None:
    """Trace the Keras file `source` and write its graph."""
    with suppress(ImportError):  # a system without such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    import keras
    import openvino
    from keras.src.backend.openvino.core import OPENVINO_DTYPES, OpenVINOKerasTensor
    from openvino import opset16
    from openvino._offline_transformations import apply_moc_transformations

    model = keras.saving.load_model(source, safe_mode=True, compile=False)
    parameters = []
    for each in model.inputs:
        shape = [-1 if length is None else length for length in each.shape]
        parameters.append(opset16.parameter(shape, OPENVINO_DTYPES[each.dtype], name=each.name))
        parameters[-1].output(0).get_tensor().set_names({each.name})
    tensors: list[Any] = [OpenVINOKerasTensor(parameter.output(0)) for parameter in parameters]
    outputs = keras.tree.flatten(model(tensors if len(tensors) > 1 else tensors[0], training=False))
    graph = openvino.Model([opset16.result(each.output) for each in outputs], parameters, "keras")
    apply_moc_transformations(graph, False)
    names = getattr(model, "output_names", [model.layers[-1].name])  # a Sequential has none
    for port, name in zip(graph.outputs, names, strict=True):
        port.get_tensor().set_names({name})
    openvino.save_model(graph, target, compress_to_fp16=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
