"""What OpenVINO itself says of a compiled graph: the format and the time of each layer, and every node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minicarlo.engines.base import PrecisionReport

_WITH_STORED = ("f32", "i8", "u8", "i4", "u4")
"""What the runtime calls a layer that computes in float32 with smaller weights: it names one or the other."""

_FORMATS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}


class RuntimeAccount:
    """The account of a compiled graph, for whoever compiled it.

    `_layers` are the layers with multiply-accumulates by their nodes' names; `_layer_of` has also what counts with them,
    `_stored` the format of layers that compute in float32 with smaller weights (`stored_weights`).
    """

    _compiled: Any
    _layers: Mapping[str, str]
    _stored: Mapping[str, str]
    _layer_of: Mapping[str, str]

    def precision_report(self) -> PrecisionReport:
        """The format each layer with multiply-accumulates runs in, as the runtime itself reports it.

        Layers that the runtime fused into another are reported with it.
        """
        report: PrecisionReport = {}
        for op in self._compiled.get_runtime_model().get_ordered_ops():
            info = op.get_rt_info()
            sources = info["originalLayersNames"].astype(str).split(",") if "originalLayersNames" in info else []
            for name in sources:
                source = name.removesuffix("/DequantizationMultiply")  # what a quantised product may become
                if source in self._layer_of and _computes(info):
                    ran = info["runtimePrecision"].astype(str)
                    layer = self._layer_of[source]
                    report[layer] = (
                        self._stored.get(layer, _FORMATS.get(ran, ran)) if ran in _WITH_STORED else _FORMATS.get(ran, ran)
                    )
        return {name: report[name] for name in self._layers.values() if name in report}

    def _profiled(self, inputs: Mapping[Any, Any], rounds: int) -> dict[str, float]:
        """Seconds of each layer in one inference: the least of `rounds`, by the runtime's own clock."""
        request = self._compiled.create_infer_request()
        taken: dict[str, list[float]] = {name: [] for name in self._layers.values()}
        for _ in range(rounds + 1):  # the first warms up
            request.infer(inputs)
            spent = dict.fromkeys(taken, 0.0)
            for node in request.get_profiling_info():
                if (layer := self._owner(node.node_name)) is not None:
                    spent[layer] += node.real_time.total_seconds()
            for name, seconds in spent.items():
                taken[name].append(seconds)
        return {name: min(seconds[1:]) for name, seconds in taken.items()}

    def _owner(self, node: str) -> str | None:
        """The layer that a runtime node belongs to: itself, or a reorder named PRODUCER_..._CONSUMER."""
        for name, layer in self._layer_of.items():
            if node == name or node.startswith((f"{name}/", f"{name}_")) or node.endswith(f"_{name}"):
                return layer
        return None

    def runtime_layers(self) -> list[dict[str, str]]:
        """Every node of the compiled graph: name, type, primitive, precision, and the layers it was made from."""
        keys = {"type": "layerType", "primitive": "primitiveType", "precision": "runtimePrecision"}
        keys["layers"] = "originalLayersNames"
        rows = []
        for op in self._compiled.get_runtime_model().get_ordered_ops():
            info = op.get_rt_info()
            rows.append({"name": op.get_friendly_name()} | {k: info[v].astype(str) if v in info else "" for k, v in keys.items()})
        return rows


def stored_weights(model: Any, layers: Mapping[str, str]) -> dict[str, str]:  # noqa: ANN401
    """Layers whose weights are stored in fewer bits than they compute in, as their constant's name says: "w8" or "w4"."""
    found = {}
    for op in model.get_ordered_ops():
        name = op.get_friendly_name()
        if name in layers:
            node = op.input_value(1).get_node()
            while node.get_type_name() in ("Reshape", "Multiply", "Convert"):
                node = node.input_value(0).get_node()
            form = node.get_friendly_name().rpartition("/")[2]
            if form in ("w8", "w4") and node.get_type_name() == "Constant":
                found[layers[name]] = form
    return found


def _computes(info: Any) -> bool:  # noqa: ANN401
    """Whether a runtime node is the computation itself; reorders and conversions carry the layer's name too."""
    return "layerType" in info and info["layerType"].astype(str) in {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}
