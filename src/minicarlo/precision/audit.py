"""Kernel audit: whether the runtime computes each layer in each format as it should, on this very machine and shape.

Some low-precision kernels are simply wrong and do not say so: oneDNN's on AMX for convolutions with few input channels, and all
int8 kernels on processors without VNNI, where sums of two products saturate at 16 bits. A layer is run alone, in the batch that
is used, on the values that really reach it, and compared with float32 arithmetic on the same rounded numbers: for int8 those
that its ranges and integer weights stand for, for bf16 the nearest ones.
What is left between the two is the order of sums and the rounding of the output, whatever the precision costs the physics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.engines import machine
from minicarlo.engines.network import OpenVinoNetwork
from minicarlo.errors import TuningError
from minicarlo.models import Inputs, read_network
from minicarlo.precision.history import plain
from minicarlo.precision.quantization import Quantizer
from minicarlo.precision.subject import Subject
from minicarlo.precision.subjects import is_surrogate, subject_of
from minicarlo.precision.transplant import QuantisedLayer, Range, bias_input, copied, range_union, transplant

if TYPE_CHECKING:
    import openvino

Array = NDArray[np.float32]

WRONG = {"int8": 0.001, "bf16": 0.01}
"""Relative error (root mean square) beyond which a kernel is wrong. Right ones are seen to make 2e-6 and, as their outputs are
rounded to bf16, 0.002; saturation in int8 kernels without VNNI makes 0.001 to 0.1, oneDNN's wrong kernels on AMX about one."""

FORMATS = tuple(WRONG)

_COMPUTING = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}


@dataclass(frozen=True)
class KernelCheck:
    """One layer in one format: the kernel that the runtime chose and its error relative to the same arithmetic in float32.

    `error` is None when the runtime does not compute the layer in this format; `ran` says what it does instead.
    """

    layer: str
    format: str
    ran: str
    kernel: str
    error: float | None
    wrong: bool


@dataclass(frozen=True)
class AuditResult:
    """Every layer in every format, and where they ran."""

    name: str
    checks: tuple[KernelCheck, ...]
    machine: dict[str, Any]

    @property
    def wrong(self) -> tuple[KernelCheck, ...]:
        """The kernels that compute something else."""
        return tuple(check for check in self.checks if check.wrong)

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        checks = [plain(check.__dict__) for check in self.checks]
        return {"name": self.name, "wrong": len(self.wrong), "checks": checks, "machine": self.machine}


def audit(
    model: Any,  # noqa: ANN401
    *,
    inputs: Inputs | Path | str | None = None,
    batch: int | None = None,
    calibration_events: int = 256,
    formats: Sequence[str] = FORMATS,
    seed: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> AuditResult:
    """Check the kernels of every layer of `model`: a surrogate (directory, shipped name), or any network that `tune` takes.

    `inputs` are those of a network that is no surrogate; without them its inputs are unit normal.
    Raises TuningError, InvalidSurrogate, InvalidModel, MissingExtra.
    """
    if unknown := [form for form in formats if form not in FORMATS]:
        raise TuningError(f"Format {unknown[0]!r:.40} cannot be audited; choose among {', '.join(FORMATS)}.")
    if inputs is None and not is_surrogate(model):
        inputs = _normal_inputs(model, seed)
    subject = subject_of(
        model,
        inputs=inputs,
        criterion=None,
        confidence=0.95,
        batch=batch,
        calibration_events=calibration_events,
        rewrite=False,
        seed=seed,
    )
    checks = check_kernels(subject, Quantizer.of(subject), formats, progress=progress)
    return AuditResult(subject.name, checks, machine())


def check_kernels(
    subject: Subject,
    quantizer: Quantizer,
    formats: Sequence[str] = FORMATS,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[KernelCheck, ...]:
    """The kernels of all layers of `subject` in `formats`, on its first calibration events."""
    values = _layer_inputs(subject, quantizer)
    checks = []
    for operation, layer in quantizer.operations.items():
        alone = _alone(quantizer.model, operation, values[operation].shape)
        for form in formats:
            quantised = quantizer.quantised().get(layer) if form == "int8" else None
            if form == "int8" and quantised is None:
                checks.append(KernelCheck(layer, form, "fp32", "", None, False))
            else:
                checks.append(_check(alone, operation, layer, form, quantised, values[operation]))
            if progress is not None:
                progress(len(checks), len(quantizer.operations) * len(formats))
    return tuple(checks)


def relative_error(expected: Array, found: Array) -> float:
    """Root mean square difference over the root mean square of `expected`; infinite where something is not finite."""
    if not np.all(np.isfinite(found)):
        return math.inf
    difference = np.linalg.norm(np.subtract(found, expected, dtype=np.float64))
    size = np.linalg.norm(expected.astype(np.float64))
    return float(difference / size) if size > 0 else float(difference > 0)


def _check(
    alone: openvino.Model, operation: str, layer: str, form: str, quantised: QuantisedLayer | None, values: Array
) -> KernelCheck:
    if quantised is None:
        candidate, rounded = alone, _nearest_bf16(values)
        weights, bias = _nearest_bf16(_weights(alone, operation)), None
    else:
        ranges = [entry for entry in quantised.ranges if entry.consumer == operation] or list(quantised.ranges)
        single = Range(operation, 0, range_union(ranges), ranges[0].levels)
        candidate = transplant(alone, {operation: layer}, {layer: replace(quantised, ranges=(single,))})
        rounded, weights, bias = _fake_quantised(values, single), _evaluated(quantised.weights), quantised.bias
    try:
        network = _compiled(candidate, "bf16" if form == "bf16" else "f32", values.shape)
        ran = network.precision_report().get(layer, "nothing")
    except RuntimeError:
        return KernelCheck(layer, form, "nothing", "", None, False)
    kernel = next((row["primitive"] for row in network.runtime_layers() if row["type"] in _COMPUTING), "")
    if ran != form:
        return KernelCheck(layer, form, ran, kernel, None, False)
    expected = _compiled(_with(alone, operation, weights, bias), "f32", values.shape).run({"values": rounded})
    error = relative_error(*(next(iter(each.values())) for each in (expected, network.run({"values": values}))))
    return KernelCheck(layer, form, ran, kernel, error, error > WRONG[form])


def _layer_inputs(subject: Subject, quantizer: Quantizer) -> dict[str, Array]:
    """What reaches each operation in float32, in the batch that is used."""
    import openvino
    from openvino import opset13

    model = quantizer.model.clone()
    operations = {op.get_friendly_name(): op for op in model.get_ordered_ops()}
    results: dict[tuple[str, int], Any] = {}  # layers may share what reaches them
    places = {}
    for operation in quantizer.operations:
        source = operations[operation].input_value(0)
        key = (source.get_node().get_friendly_name(), source.get_index())
        results.setdefault(key, opset13.result(source))
        places[operation] = list(results).index(key)
    network = OpenVinoNetwork(openvino.Model(list(results.values()), model.get_parameters(), "values"), "f32", subject.shapes)
    first = {name: np.resize(array, subject.shapes[name]) for name, array in subject.calibration()[0].items()}
    made = list(network.run(first).values())
    return {operation: made[place] for operation, place in places.items()}


def _alone(model: openvino.Model, operation: str, shape: Sequence[int]) -> openvino.Model:
    """One layer with its bias: `values` of `shape` to its output."""
    import openvino
    from openvino import opset13

    copy = model.clone()
    op = next(each for each in copy.get_ordered_ops() if each.get_friendly_name() == operation)
    values = opset13.parameter(list(shape), np.float32, name="values")
    values.output(0).set_names({"values"})
    op.input(0).replace_source_output(values.output(0))
    bias = bias_input(op)
    end = op if bias is None else bias.get_node()
    return openvino.Model([opset13.result(end)], [values], operation)


def _with(alone: openvino.Model, operation: str, weights: Array, bias: Array | None) -> openvino.Model:
    """The layer with other weights, and another bias if there is one."""
    from openvino import opset13

    copy = alone.clone()
    op = next(each for each in copy.get_ordered_ops() if each.get_friendly_name() == operation)
    op.input(1).replace_source_output(opset13.constant(weights).output(0))
    port = bias_input(op)
    if bias is not None and port is not None:
        port.replace_source_output(opset13.constant(bias).output(0))
    return copy


def _compiled(model: openvino.Model, precision: Any, shape: Sequence[int]) -> OpenVinoNetwork:  # noqa: ANN401
    return OpenVinoNetwork(model, precision, {"values": shape})


def _weights(alone: openvino.Model, operation: str) -> Array:
    op = next(each for each in alone.get_ordered_ops() if each.get_friendly_name() == operation)
    return _evaluated(op.input_value(1).get_node())


def _evaluated(node: Any) -> Array:  # noqa: ANN401
    """The value of a node that is computed from constants."""
    import openvino
    from openvino import opset13

    model = openvino.Model([opset13.result(copied(node))], [], "constant")
    return np.array(openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([])[0], np.float32)


def _nearest_bf16(values: Array) -> Array:
    """The nearest numbers with eight bits of mantissa, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def _fake_quantised(values: Array, entry: Range) -> Array:
    """`values` on the grid of a FakeQuantize (OpenVINO's definition of that operation)."""
    low, high, out_low, out_high = entry.bounds
    steps = entry.levels - 1
    level = np.rint((np.clip(values, low, high) - low) / (high - low) * steps)
    return np.asarray(level / steps * (out_high - out_low) + out_low, np.float32)


def _normal_inputs(model: Any, seed: int) -> Inputs:  # noqa: ANN401
    network = read_network(model, lambda: {})
    shapes = {name: [size for size in shape[1:] if size is not None] for name, shape in network.inputs.items()}
    if any(len(shapes[name]) < len(shape) - 1 for name, shape in network.inputs.items()):
        raise TuningError(f"{network.name} has inputs whose shape is open; give inputs of yours, a file of arrays (.npz).")

    def drawn(first: int, last: int) -> Mapping[str, NDArray[np.float64]]:
        random = np.random.default_rng([seed, first])
        return {name: random.normal(size=(last - first, *shape)) for name, shape in shapes.items()}

    return drawn
