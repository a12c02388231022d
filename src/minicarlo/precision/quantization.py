"""Apply a precision plan to a graph: NNCF quantises the int8 layers, the IR tells OpenVINO what stays float32.

Only the layers of the plan ever change. Everything else in a surrogate's graph (layer energies, pseudo-random noise from the
fractional part of a projection, normalisation, threshold) is numerically delicate: it is kept out of NNCF's reach by name,
and in a model that computes in bf16 every such operation carries the IR attribute `precise`, which OpenVINO honours when it
reads the IR (setting it from Python has no effect).
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from minicarlo.engines import CompiledGenerator, compile_model, mac_layers
from minicarlo.engines.account import biases
from minicarlo.engines.network import Arrays, OpenVinoNetwork
from minicarlo.engines.runtime import write_ir
from minicarlo.errors import TuningError
from minicarlo.models.network import name_layers
from minicarlo.precision.fast_layers import Fast, candidates, with_fast
from minicarlo.precision.ir import CARRIERS, mark_precise
from minicarlo.precision.layer import Place, Values, corrected, operation_of
from minicarlo.precision.plan import HALF, Layer, Plan
from minicarlo.precision.ranges import Histogram, bounds, histograms, on_grid
from minicarlo.precision.scheme import DEFAULT, Scheme
from minicarlo.precision.small_weights import BITS, with_small_weights
from minicarlo.precision.smoothing import groups, smoothed
from minicarlo.precision.transplant import QuantisedLayer, keep_biases_apart, range_union, read_quantised, transplant

if TYPE_CHECKING:
    import openvino

    from minicarlo.precision.subject import Subject


@dataclass(frozen=True)
class PlannedModel:
    """A plan as an OpenVINO IR: description, weights, and the inference precision to compile it with."""

    xml: bytes
    weights: bytes
    inference_precision: Literal["f32", "bf16", "f16"]

    def compile(
        self,
        shapes: Mapping[str, Sequence[int]],
        *,
        streams: int = 1,
        threads: int = 1,
        profile: bool = False,
        emulate: bool = False,
    ) -> OpenVinoNetwork:
        """Compile it for the processor and inputs of `shapes`; see OpenVinoNetwork."""
        with self.on_disk() as path:
            return OpenVinoNetwork(
                path, self.inference_precision, shapes, streams=streams, threads=threads, profile=profile, emulate=emulate
            )

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        """The path of the IR as a file, as long as the context lasts."""
        with tempfile.TemporaryDirectory(prefix="minicarlo-") as folder:
            path = Path(folder, "model.xml")
            path.write_bytes(self.xml)
            path.with_suffix(".bin").write_bytes(self.weights)
            yield path


class Quantizer:
    """Turns plans for one network into OpenVINO models.

    `model` is the float32 graph, `batches` the inputs that activation ranges are measured on, `name` what messages call it.

    NNCF runs once, over all layers (again for weights of half the range); a plan then takes from that model what belongs to its
    int8 layers (activation ranges, int8 weights, corrected bias), so that one more plan costs no calibration and what a layer
    becomes does not depend on the others. Schemes with other ranges replace these and correct the bias anew.

    With `smooth` the channels between layers are made smoother first (`minicarlo.precision.smoothing`), which changes float32 by
    rounding only; `smooth_groups` are the layers that this concerns.

    `fast` says which layers are fast convolutions in which format (`minicarlo.precision.fast_layers`); none until it is set.

    Raises TuningError when the graph has no layer to plan.
    """

    def __init__(self, model: openvino.Model, batches: Sequence[Arrays], name: str, *, smooth: bool = False) -> None:
        self._model, self.batches, self.smooth = model.clone(), batches, smooth
        name_layers(self._model)
        _fold(self._model)
        self._names = _planned_operations(self._model)
        if not self._names:
            raise TuningError(
                f"{name} has no convolution or matrix product with fixed weights, so there is no precision to lower."
            )
        self.layers = _layers(self._model, self._names, batches[0])
        self.smooth_groups = groups(self._model, self._names)
        if smooth:
            self._model = smoothed(self._model, self._names, batches[0])
        self.fast: Fast = {}
        self._base: dict[bool, dict[str, QuantisedLayer]] = {}
        self._variants: dict[tuple[str, Scheme], QuantisedLayer] = {}

    @property
    def model(self) -> openvino.Model:
        """The float32 graph that plans are applied to; nobody changes it."""
        return self._model

    @property
    def operations(self) -> Mapping[str, str]:
        """Name of the operation to name of the layer."""
        return self._names

    def quantised(self, layer: str, scheme: Scheme = DEFAULT) -> QuantisedLayer | None:
        """What makes a layer int8; None for one that NNCF does not quantise."""
        base = self._calibrated(scheme.half_range).get(layer)
        if base is None or (scheme.ranges, scheme.symmetric) == (DEFAULT.ranges, DEFAULT.symmetric):
            return base
        if (layer, scheme) not in self._variants:
            self._variants[layer, scheme] = self._variant(layer, base, scheme)
        return self._variants[layer, scheme]

    @classmethod
    def of(cls, subject: Subject, *, smooth: bool = False) -> Quantizer:
        """The quantizer of what is tuned."""
        return cls(subject.model, subject.calibration(), subject.name, smooth=smooth)

    def apply(self, plan: Plan) -> PlannedModel:
        """The model in which each layer has the format of `plan` and everything else is float32."""
        model, chosen = self._model, set(plan.layers_in("int8"))
        if chosen:
            layers = {name: self.quantised(name, plan.scheme(name)) for name in chosen}
            model = transplant(self._model, self._names, {name: each for name, each in layers.items() if each is not None})
        forms = {operation: plan[layer] for operation, layer in self._names.items()}
        model = with_small_weights(model, {name: form for name, form in forms.items() if form in BITS})
        around: dict[str, str] = {}
        if parts := self._fast_parts(forms):
            model, around = with_fast(model, parts)
        if plan.inference_precision != "f32":
            model = keep_biases_apart(model, {name for name, form in forms.items() if form not in ("int8", *HALF)})
        xml, weights = write_ir(model)
        if plan.inference_precision != "f32":
            formats = {operation: plan[layer] for operation, layer in (self._names | biases(self._model, self._names)).items()}
            xml = mark_precise(xml, formats | {name: forms[operation] for name, operation in around.items()})
        return PlannedModel(xml, weights, plan.inference_precision)

    @cached_property
    def fast_candidates(self) -> dict[str, bytes]:
        """By layer the fast convolution that may take its place."""
        return {self._names[name]: part for name, part in candidates(self._model, self._names).items()}

    def fast_in(self, plan: Plan) -> tuple[str, ...]:
        """The layers that are fast convolutions in a plan."""
        return tuple(name for name, form in plan.items() if name in self.fast.get(form, ()))

    def _fast_parts(self, forms: Mapping[str, str]) -> dict[str, bytes]:
        wanted = {name: self._names[name] for name, form in forms.items() if self._names[name] in self.fast.get(form, ())}
        return {name: self.fast_candidates[layer] for name, layer in wanted.items() if layer in self.fast_candidates}

    def _calibrated(self, half_range: bool) -> dict[str, QuantisedLayer]:
        if half_range not in self._base:
            self._base[half_range] = read_quantised(self._by_nncf(half_range), self._names)
        return self._base[half_range]

    def _by_nncf(self, half_range: bool) -> openvino.Model:
        nncf = _nncf()
        # Fast bias correction leaves transposed convolutions out; the slow one covers them.
        transposed = any("Backprop" in layer.operation for layer in self.layers)
        overflow = nncf.OverflowFix.ENABLE if half_range else nncf.OverflowFix.DISABLE
        with redirect_stdout(io.StringIO()):  # NNCF draws its progress bars there
            return nncf.quantize(
                self._model.clone(),
                nncf.Dataset(self.batches),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(self.batches),
                fast_bias_correction=not transposed,
                ignored_scope=nncf.IgnoredScope(names=_untouchable(self._model, self._names), validate=False),
                advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=overflow),
            )

    def _variant(self, layer: str, base: QuantisedLayer, scheme: Scheme) -> QuantisedLayer:
        """A layer whose ranges are those of `scheme` and whose bias makes up for them."""
        operation = next(name for name, each in self._names.items() if each == layer)
        symmetric = scheme.symmetric or "Backprop" in operation_of(self._model, operation).get_type_name()
        scheme = replace(scheme, symmetric=symmetric)
        ranges = tuple(
            replace(entry, bounds=bounds(self._histograms[entry.consumer, entry.port], scheme)) for entry in base.ranges
        )
        if len({tuple(map(float, map(np.max, entry.bounds))) for entry in base.ranges}) == 1:  # parts that are put together
            low, high, *_ = range_union(list(ranges))
            ranges = tuple(replace(entry, bounds=on_grid(float(low), float(high), symmetric)) for entry in ranges)
        return corrected(self._model, operation, replace(base, ranges=ranges), self._first_values[operation, 0])

    @cached_property
    def _histograms(self) -> dict[Place, Histogram]:
        """Of the values at every place where NNCF put a range."""
        places = dict.fromkeys(
            (entry.consumer, entry.port) for layer in self._calibrated(False).values() for entry in layer.ranges
        )
        values = Values(self._model, places, self.shapes)
        return histograms(lambda: map(values, self.batches))

    @cached_property
    def _first_values(self) -> dict[Place, NDArray[np.float32]]:
        """What reaches every layer in the first batch."""
        return Values(self._model, [(operation, 0) for operation in self._names], self.shapes)(self.batches[0])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the inputs, in the batch that calibration and the audit run."""
        return {name: array.shape for name, array in self.batches[0].items()}


def compile_planned(model: PlannedModel, *, batch: int | None = None, streams: int = 1, threads: int = 1) -> CompiledGenerator:
    """Compile a surrogate's planned model for the processor."""
    with model.on_disk() as path:
        return compile_model(path, model.inference_precision, batch=batch, streams=streams, threads=threads)


def _planned_operations(model: openvino.Model) -> dict[str, str]:
    """Operation name to layer name of all convolutions and matrix products with constant weights."""
    operations = {op.get_friendly_name(): op for op in model.get_ordered_ops()}
    return {name: layer for name, layer in mac_layers(model).items() if _is_constant(operations[name].input_value(1).get_node())}


def _layers(model: openvino.Model, names: Mapping[str, str], inputs: Arrays) -> tuple[Layer, ...]:
    count = len(next(iter(inputs.values())))
    batch = model.clone()
    batch.reshape({name: list(array.shape) for name, array in inputs.items()})
    layers = []
    for op in batch.get_ordered_ops():
        name = op.get_friendly_name()
        if name in names:
            weights = int(np.prod(list(op.input_value(1).get_shape())))
            layers.append(Layer(names[name], op.get_type_name(), _macs(op) // count, weights))
    return tuple(layers)


def _macs(op: Any) -> int:  # noqa: ANN401
    """Multiply-accumulates of an operation on inputs of fixed shapes."""
    kind, output = op.get_type_name(), list(op.output(0).get_shape())
    weights = list(op.input_value(1).get_shape())
    if kind == "MatMul":
        return int(np.prod(output)) * int(op.input_value(0).get_shape()[-1])
    if "Backprop" in kind:  # every input element meets every weight of its channel; weights are ([group,] in, out, kernel...)
        channels = 2 if "Group" in kind else 1
        return int(np.prod(op.input_value(0).get_shape())) * int(np.prod(weights[channels:]))
    return int(np.prod(output)) * int(np.prod(weights[2 if "Group" in kind else 1 :]))


def _fold(model: openvino.Model) -> None:
    """Fold the constants that the ONNX importer leaves around biases, so that NNCF recognises and corrects them.

    Nothing else is fused: a map that is added after a bias stays an addition of its own, else NNCF would not correct that
    bias.
    """
    import openvino.passes as passes

    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(model)
    for op in model.get_ordered_ops():
        if op.get_type_name() != "Multiply":
            continue
        for side in (0, 1):
            factor, source = op.input_value(side).get_node(), op.input_value(1 - side)
            same_shape = source.get_partial_shape() == op.output(0).get_partial_shape()
            if factor.get_type_name() == "Constant" and same_shape and np.all(factor.get_data() == 1):
                for target in op.output(0).get_target_inputs():
                    target.replace_source_output(source)
                break
    _spell_out(model)
    model.validate_nodes_and_infer_types()


def _spell_out(model: openvino.Model) -> None:
    """Do what the runtime would do to arithmetic with constants, because it drops `precise` when it does.

    Differences and quotients become sums and products, and products of products one product.
    """
    from openvino import opset13

    for op in model.get_ordered_ops():
        kind = op.get_type_name()
        if kind not in ("Subtract", "Divide") or op.get_output_element_type(0).to_string() != "f32":
            continue
        constant = op.input_value(1).get_node()
        if constant.get_type_name() != "Constant":
            continue
        value = np.array(constant.get_data(), np.float32)
        other = opset13.constant(-value if kind == "Subtract" else np.float32(1) / value)
        new = (opset13.add if kind == "Subtract" else opset13.multiply)(op.input_value(0), other)
        new.set_friendly_name(op.get_friendly_name())
        for target in list(op.output(0).get_target_inputs()):
            target.replace_source_output(new.output(0))
    for op in model.get_ordered_ops():
        first = op.input_value(0).get_node() if op.get_input_size() == 2 else op
        if not (_scales(op) and _scales(first)) or len(first.output(0).get_target_inputs()) != 1:
            continue
        factors = [np.array(each.input_value(1).get_node().get_data(), np.float32) for each in (first, op)]
        op.input(0).replace_source_output(first.input_value(0))
        op.input(1).replace_source_output(opset13.constant(factors[0] * factors[1]).output(0))


def _scales(op: Any) -> bool:  # noqa: ANN401
    """Whether `op` multiplies something by a float32 constant."""
    return bool(
        op.get_type_name() == "Multiply"
        and op.input_value(1).get_node().get_type_name() == "Constant"
        and op.get_output_element_type(0).to_string() == "f32"
    )


def _untouchable(model: openvino.Model, names: Mapping[str, str]) -> list[str]:
    """Names of the operations that NNCF must leave alone: all but planned ones, their biases, what carries values to them.

    Products of many matrices, too: those of a fast convolution (`minicarlo.graph.fast`) have another range for each.
    """
    allowed: set[str] = set()
    for op in reversed(model.get_ordered_ops()):
        kind, name = op.get_type_name(), op.get_friendly_name()
        bias = kind == "Add" and any(value.get_node().get_friendly_name() in names for value in op.input_values())
        targets = [target.get_node().get_friendly_name() for output in op.outputs() for target in output.get_target_inputs()]
        # a ReLU behind a layer is fused into it and never quantised for its own sake
        carrier = kind in CARRIERS and (kind in ("Relu", "PRelu") or all(target in allowed for target in targets))
        many = kind == "MatMul" and name in names and op.input_value(1).get_partial_shape().rank.get_length() > 2
        if kind in ("Constant", "Parameter", "Result") or (name in names and not many) or bias or carrier:
            allowed.add(name)
    return [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_friendly_name() not in allowed]


def _is_constant(node: Any) -> bool:  # noqa: ANN401
    while node.get_type_name() in ("Convert", "Transpose", "Reshape"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def _nncf() -> Any:  # noqa: ANN401
    """NNCF with its telemetry off (it would call Google Analytics) and its remarks silenced."""
    os.environ.setdefault("NNCF_CI", "1")
    import logging

    with redirect_stdout(io.StringIO()):
        import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf
