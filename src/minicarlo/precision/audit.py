"""Kernel audit: whether the runtime computes each layer in each format as it should, on this very machine and shape.

Some low-precision kernels are simply wrong and do not say so: oneDNN's on AMX for convolutions with few input channels, and all
int8 kernels on processors without VNNI, where sums of two products saturate at 16 bits (unless weights use half of their range:
this is tried, too). A layer is run alone, in the batch that
is used, on the values that really reach it, rounded to the numbers of its format, and compared with float32 arithmetic on the
same numbers: for int8 those that its ranges and integer weights stand for, for bf16 the nearest ones.
What is left between the two is the order of sums and the rounding of the output, whatever the precision costs the physics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.engines import machine
from minicarlo.engines.dense_code import bf16_bits
from minicarlo.errors import TuningError
from minicarlo.models import Inputs, read_network
from minicarlo.precision.history import plain
from minicarlo.precision.layer import (
    Values,
    alone,
    compiled,
    evaluated,
    int8_alone,
    operation_of,
    output,
    relative_error,
    weights_of,
    with_weights,
)
from minicarlo.precision.plan import Plan
from minicarlo.precision.quantization import Quantizer
from minicarlo.precision.scheme import DEFAULT, Scheme
from minicarlo.precision.small_weights import BITS, with_small_weights
from minicarlo.precision.subjects import is_surrogate, subject_of
from minicarlo.precision.transplant import Range

if TYPE_CHECKING:
    import openvino

Array = NDArray[np.float32]

WRONG = {"int8": 0.0001, "bf16": 0.01, "fp16": 0.002, "w4": 0.0001, "w8": 0.0001}
"""Relative error (root mean square) beyond which a kernel is wrong. Right ones are seen to make 2e-6 in int8 and, as their
outputs are rounded to bf16, 0.002; saturation in int8 kernels without VNNI makes 0.0002 to 0.1, oneDNN's wrong kernels on AMX
about one."""

FORMATS = tuple(WRONG)
USUAL = ("int8", "bf16")

_COMPUTING = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}


@dataclass(frozen=True)
class KernelCheck:
    """One layer in one format: the kernel that the runtime chose and its error relative to the same arithmetic in float32.

    `error` is None when the runtime does not compute the layer in this format; `ran` says what it does instead. Where an int8
    kernel is wrong, `half_range` is its error with weights of half the range (`Scheme`), which cannot saturate.
    """

    layer: str
    format: str
    ran: str
    kernel: str
    error: float | None
    wrong: bool
    half_range: float | None = None

    @property
    def mended(self) -> bool:
        """Whether weights of half the range make it right."""
        return self.half_range is not None and self.half_range <= WRONG[self.format]


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
    formats: Sequence[str] = USUAL,
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
    checks = check_kernels(Quantizer.of(subject), formats, progress=progress)
    return AuditResult(subject.name, checks, machine())


def check_kernels(
    quantizer: Quantizer, formats: Sequence[str] = USUAL, *, progress: Callable[[int, int], None] | None = None
) -> tuple[KernelCheck, ...]:
    """The kernels of all layers in `formats`, on the first calibration events."""
    places = [(operation, 0) for operation in quantizer.operations]
    values = Values(quantizer.model, places, quantizer.shapes)(quantizer.batches[0])
    checks = []
    for operation, layer in quantizer.operations.items():
        reaching = values[operation, 0]
        single = alone(quantizer.model, operation, reaching.shape)
        for form in formats:
            found = _check(single, operation, layer, form, quantizer, DEFAULT, reaching)
            if form == "int8" and found.wrong:
                mended = _check(single, operation, layer, form, quantizer, Scheme(half_range=True), reaching)
                found = replace(found, half_range=mended.error)
            checks.append(found)
            if progress is not None:
                progress(len(checks), len(quantizer.operations) * len(formats))
    return tuple(checks)


def all_int8(quantizer: Quantizer) -> Plan:
    """Every layer in int8, those whose sums would saturate on this machine with weights of half their range."""
    checks = check_kernels(quantizer, ("int8",))
    return Plan.uniform(quantizer.layers, "int8").with_schemes(
        {check.layer: Scheme(half_range=True) for check in checks if check.mended}
    )


def _check(
    single: openvino.Model, operation: str, layer: str, form: str, quantizer: Quantizer, scheme: Scheme, values: Array
) -> KernelCheck:
    if form == "int8":
        quantised = quantizer.quantised(layer, scheme)
        if quantised is None:
            return KernelCheck(layer, form, "fp32", "", None, False)
        candidate, entry = int8_alone(single, operation, quantised)
        rounded, weights, bias = _fake_quantised(values, entry), evaluated(quantised.weights), quantised.bias
    elif form in BITS:
        candidate, rounded, bias = with_small_weights(single, {operation: form}), values, None
        weights = _unrounded(single, candidate, operation)
    else:
        candidate, nearest = single, _nearest_bf16 if form == "bf16" else _nearest_fp16
        rounded, weights, bias = nearest(values), nearest(weights_of(single, operation)), None
    precision = {"bf16": "bf16", "fp16": "f16"}.get(form, "f32")
    try:
        network = compiled(candidate, precision, values.shape)
        ran = network.precision_report().get(layer, "nothing")
    except RuntimeError:
        return KernelCheck(layer, form, "nothing", "", None, False)
    kernel = next((row["primitive"] for row in network.runtime_layers() if row["type"] in _COMPUTING), "")
    if ran != form:
        return KernelCheck(layer, form, ran, kernel, None, False)
    expected = output(compiled(with_weights(single, operation, weights, bias), "f32", values.shape), rounded)
    error = relative_error(expected, output(network, rounded))  # of values between two numbers each may take another one
    return KernelCheck(layer, form, ran, kernel, error, error > WRONG[form])


def _nearest_bf16(values: Array) -> Array:
    """The nearest numbers with eight bits of mantissa, ties to even."""
    return (bf16_bits(values).astype(np.uint32) << 16).view(np.float32)


def _nearest_fp16(values: Array) -> Array:
    """The nearest half-precision numbers."""
    return values.astype(np.float16).astype(np.float32)


def _unrounded(single: openvino.Model, candidate: openvino.Model, operation: str) -> Array:
    """What the small weights of `candidate` stand for, in the layout that the operation has in `single`."""
    stored, before = weights_of(candidate, operation), weights_of(single, operation)
    return stored if stored.shape == before.shape and not _turned(single, operation) else np.ascontiguousarray(stored.T)


def _turned(single: openvino.Model, operation: str) -> bool:
    op = operation_of(single, operation)
    return op.get_type_name() == "MatMul" and not op.get_attributes()["transpose_b"]


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
