"""What OpenVINO itself says of a compiled graph: the format and the time of each layer, and every node."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minicarlo.engines.base import PrecisionReport
from minicarlo.engines.runtime import FORMATS
from minicarlo.graph.fast import PART as FAST_PART

if TYPE_CHECKING:
    import openvino

_WITH_STORED = ("f32", "i8", "u8", "i4", "u4")
"""What the runtime calls a layer that computes in float32 with smaller weights: it names one or the other."""

_MAC_OPERATORS = {"Convolution", "ConvolutionBackpropData", "GroupConvolution", "GroupConvolutionBackpropData", "MatMul"}


class RuntimeAccount:
    """The account of a compiled graph, for whoever compiled it.

    `_layers` are the layers with multiply-accumulates by their nodes' names; `_layer_of` has also what counts with them,
    `_stored` the format of layers that compute in float32 with smaller weights (`stored_weights`).
    """

    _compiled: Any
    _layers: Mapping[str, str]
    _stored: Mapping[str, str]
    _layer_of: Mapping[str, str]

    def _watch(self, model: openvino.Model) -> None:
        """Note the layers of the model that is going to be compiled."""
        self._layers = mac_layers(model)
        self._stored = stored_weights(model, self._layers)
        self._layer_of = self._layers | {name: name for name in self._layers.values()} | biases(model, self._layers)

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
                        self._stored.get(layer, FORMATS.get(ran, ran)) if ran in _WITH_STORED else FORMATS.get(ran, ran)
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
                for layer, share in self._owners(node.node_name).items():
                    spent[layer] += share * node.real_time.total_seconds()
            for name, seconds in spent.items():
                taken[name].append(seconds)
        return {name: min(seconds[1:]) for name, seconds in taken.items()}

    def _owners(self, node: str) -> Mapping[str, float]:
        """The layers that a runtime node belongs to, and the share of each: itself, or a reorder named PRODUCER_..._CONSUMER."""
        for name, layer in self._layer_of.items():
            if node == name or node.startswith((f"{name}/", f"{name}_")) or node.endswith(f"_{name}"):
                return {layer: 1.0}
        return {}

    def runtime_layers(self) -> list[dict[str, str]]:
        """Every node of the compiled graph: name, type, primitive, precision, and the layers it was made from."""
        keys = {"type": "layerType", "primitive": "primitiveType", "precision": "runtimePrecision"}
        keys["layers"] = "originalLayersNames"
        rows = []
        for op in self._compiled.get_runtime_model().get_ordered_ops():
            info = op.get_rt_info()
            rows.append({"name": op.get_friendly_name()} | {k: info[v].astype(str) if v in info else "" for k, v in keys.items()})
        return rows


def mac_layers(model: openvino.Model) -> dict[str, str]:
    """Name of every layer with multiply-accumulates, in graph order, by the name OpenVINO knows it under.

    OpenVINO splits an ONNX `Conv` or `Gemm` with a bias into `NAME/WithoutBiases` and `NAME`: the layer's name is NAME. Of a
    `ConvTranspose` with a bias only the sum has that name, and the rest a number that is another one each time it is read.
    The matrices of a fast convolution (`minicarlo.graph.fast`) are no layers: they belong to its products.
    """
    found = {}
    for op in model.get_ordered_ops():
        kind, name = op.get_type_name(), op.get_friendly_name()
        if kind in _MAC_OPERATORS and FAST_PART not in name:
            numbered = re.fullmatch(rf"{kind}_\d+", name)
            found[name] = (_sum_after(op) if numbered else None) or name.removesuffix("/WithoutBiases")
    return found


def biases(model: openvino.Model, layers: Mapping[str, str]) -> dict[str, str]:
    """The name of the sum that adds each layer's bias, to the layer's (`layers`: operation to layer)."""
    operations = {op.get_friendly_name(): op for op in model.get_ordered_ops()}
    sums = {name: _sum_after(operations[name]) for name in layers}
    return {after: layers[name] for name, after in sums.items() if after is not None}


def _sum_after(op: Any) -> str | None:  # noqa: ANN401
    """The name of the sum with a constant that alone reads an operation's result."""
    targets = [target.get_node() for target in op.output(0).get_target_inputs()]
    if len(targets) != 1 or targets[0].get_type_name() != "Add":
        return None
    others = [value.get_node() for value in targets[0].input_values()]
    shaped = [each.input_value(0).get_node() if each.get_type_name() == "Reshape" else each for each in others]
    return str(targets[0].get_friendly_name()) if any(each.get_type_name() == "Constant" for each in shaped) else None


def stored_weights(model: openvino.Model, layers: Mapping[str, str]) -> dict[str, str]:
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
