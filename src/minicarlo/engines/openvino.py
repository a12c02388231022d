"""OpenVINO: compile a surrogate in a given precision and run it in several streams."""

from __future__ import annotations

import os
import platform
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from minicarlo.engines.account import RuntimeAccount
from minicarlo.engines.base import Array, CompiledGenerator, Engine, Inference, Key, Offer, usable_cores
from minicarlo.errors import InvalidSurrogate, UnsupportedPrecision
from minicarlo.surrogate import Surrogate

if TYPE_CHECKING:
    import openvino

InferencePrecision = Literal["f32", "bf16", "f16"]

_ELEMENTWISE = {
    "Add",
    "Divide",
    "Gelu",
    "Maximum",
    "Minimum",
    "Multiply",
    "Power",
    "PRelu",
    "Relu",
    "Sigmoid",
    "Subtract",
    "Swish",
    "Tanh",
}
AS_PLANNED = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
"""Else OpenVINO rounds the inputs of a dense layer with small weights to 8 bits, and still reports float32."""

EMULATION = {"LP_TRANSFORMS_MODE": False}
"""Has OpenVINO compute what is int8 in a model in float32, on the same rounded numbers: what right kernels agree with."""

_LARGEST_TENSOR = 2**28  # elements per event that a graph may ask for


@cache
def _core() -> openvino.Core:
    os.environ.setdefault("OPENVINO_TELEMETRY_OPT_OUT", "1")
    import openvino

    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})
    return core


def read_model(surrogate: Surrogate, precision: str = "fp32") -> tuple[openvino.Model, InferencePrecision]:
    """The OpenVINO model of `surrogate` for a precision, and the inference precision to compile it with.

    Precisions: "fp32" (the reference), "bf16" (the reference, computed in bf16 but for layers of whose result only the residue is
    used), "tuned". The model is read from the bytes that
    were verified, never from the disk again. Raises UnsupportedPrecision, InvalidSurrogate.
    """
    if precision not in ("fp32", "bf16", "tuned"):
        raise UnsupportedPrecision(f"Precision {precision!r:.40} is unknown; choose fp32, bf16 or tuned.")
    try:
        if precision == "tuned":
            if surrogate.tuned is None:
                raise UnsupportedPrecision(
                    f"Surrogate {surrogate.path} has no tuned model. Run `minicarlo tune` first, or choose fp32 or bf16."
                )
            return read_ir(surrogate.tuned.xml, surrogate.tuned.weights), surrogate.tuned.plan.inference_precision
        model = _core().read_model(surrogate.onnx)
        return (model, "f32") if precision == "fp32" else (_keep_residues(model), "bf16")
    except RuntimeError as error:
        raise _unusable(surrogate, "read", precision, error) from error


def read_ir(xml: bytes, weights: bytes) -> openvino.Model:
    """An OpenVINO model from its IR in memory."""
    import openvino

    return _core().read_model(xml, openvino.Tensor(np.frombuffer(weights, np.uint8).copy()))


def write_ir(model: openvino.Model) -> tuple[bytes, bytes]:
    """The IR of an OpenVINO model: XML and weights, float32 as it is."""
    import openvino

    with tempfile.TemporaryDirectory(prefix="minicarlo-") as folder:
        path = Path(folder, "model.xml")
        openvino.save_model(model, path, compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()


def keep_precise(layer: ElementTree.Element) -> None:
    """Mark a layer of an IR: it stays float32 when the model is compiled for bf16 or fp16.

    Only reading a model takes that attribute in: setting it in Python has no effect.
    """
    info = layer.find("rt_info")
    if info is None:
        info = ElementTree.Element("rt_info")
        layer.insert(0 if layer.find("data") is None else 1, info)
    if not any(attribute.get("name") == "precise" for attribute in info):
        ElementTree.SubElement(info, "attribute", {"name": "precise", "version": "0"})


class OpenVinoEngine(Engine):
    """OpenVINO on Intel's and other x86 and Arm processors, and on Intel's graphics and neural processors."""

    name = "openvino"

    def offers(self) -> list[Offer]:
        """See Engine."""
        return [_offer(device) for device in ("cpu", "gpu", "npu")]

    def compile(
        self, surrogate: Surrogate, precision: str, *, device: str, batch: int | None, streams: int, threads: int
    ) -> OpenVinoGenerator:
        """See Engine. With `batch` the shapes are static, which is fastest. That FP32 is FP32 is asserted."""
        model, inference_precision = read_model(surrogate, precision)
        try:
            compiled = OpenVinoGenerator(
                model, inference_precision, batch=batch, streams=streams, threads=threads, device=device.upper()
            )
        except RuntimeError as error:
            raise _unusable(surrogate, "compile", precision, error) from error
        if compiled.sample_shape != surrogate.manifest.sample_shape:
            raise _wrong_samples(surrogate, precision, compiled.sample_shape)
        if precision == "fp32":
            compiled.assert_precision("fp32")
        return compiled


def check_graph(surrogate: Surrogate, onnx: bytes) -> None:
    """Raise InvalidSurrogate unless a graph of `surrogate` gives its samples and needs no absurd memory, whoever runs it."""
    try:
        model = _core().read_model(onnx)
    except RuntimeError as error:
        raise _unusable(surrogate, "read", "ONNX", error) from error
    shapes = {name: _shape(model.input(name), 1) for name in ("latent", "incident_energy")}
    _check_sizes(model, shapes)
    model.reshape({model.input(name): shape for name, shape in shapes.items()})
    made = tuple(model.output("showers").get_shape())[1:]
    if made != surrogate.manifest.sample_shape:
        raise _wrong_samples(surrogate, "ONNX", made)


def _wrong_samples(surrogate: Surrogate, precision: str, made: tuple[int, ...]) -> InvalidSurrogate:
    return InvalidSurrogate(
        f"Surrogate {surrogate.path}: its {precision} model gives samples of shape {made}, "
        f"{surrogate.manifest.sample_shape} are right. Get it again from its author."
    )


def _offer(device: str) -> Offer:
    import openvino

    version = openvino.__version__.split("-")[0]
    found = next((name for name in _core().available_devices if name.split(".")[0] == device.upper()), None)
    if found is None:
        return Offer("openvino", version, device, None, (), "OpenVINO finds no such device, or not its driver")
    hardware = str(_core().get_property(found, "FULL_DEVICE_NAME")).strip()
    if device == "npu":
        return Offer("openvino", version, device, hardware, (), "it computes in half precision and int8 only, not in fp32")
    formats = ("fp32", "bf16", "tuned") if device == "cpu" and has_bf16() else ("fp32", "tuned")
    return Offer("openvino", version, device, hardware, formats)


def compile_model(
    model: openvino.Model | Path | str,
    inference_precision: InferencePrecision,
    *,
    batch: int | None = None,
    streams: int = 1,
    threads: int = 1,
    profile: bool = False,
) -> OpenVinoGenerator:
    """Compile a model (or the path of an IR or ONNX file of one's own) for the processor; `model` is left as it was.

    Layers that the model itself does not quantise run in `inference_precision`. With `profile` the runtime takes the time of
    each layer (`layer_seconds`), at some cost in speed.
    """
    return OpenVinoGenerator(model, inference_precision, batch=batch, streams=streams, threads=threads, profile=profile)


class OpenVinoGenerator(RuntimeAccount, CompiledGenerator):
    """A model compiled by OpenVINO; with `emulate` what is int8 in it is computed in float32 on the same rounded numbers."""

    def __init__(
        self,
        model: openvino.Model | Path | str,
        inference_precision: InferencePrecision,
        *,
        batch: int | None = None,
        streams: int = 1,
        threads: int = 1,
        profile: bool = False,
        emulate: bool = False,
        device: str = "CPU",
    ) -> None:
        if min(streams, threads, batch or 1) < 1:
            raise ValueError("batch, streams and threads must be at least 1")
        model = _core().read_model(model) if isinstance(model, Path | str) else model.clone()
        self.batch, self.streams, self.threads = batch, streams, threads
        self._watch(model)
        inputs = {name: model.input(name) for name in ("latent", "incident_energy")}
        _check_sizes(model, {name: _shape(port, 1) for name, port in inputs.items()})
        model.reshape({port: _shape(port, batch) for port in inputs.values()})
        _keep_products_apart(model)
        properties = {
            # The default is bf16 where there is hardware for it; where there is none, bf16 would be emulated.
            "INFERENCE_PRECISION_HINT": available(inference_precision) if device == "CPU" else "f32",
            "EXECUTION_MODE_HINT": "PERFORMANCE",
            "NUM_STREAMS": streams,
            "PERF_COUNT": profile,
        }
        if device == "CPU":  # pinned, every process would sit on the same first cores
            properties |= {"INFERENCE_NUM_THREADS": streams * threads, "ENABLE_CPU_PINNING": False} | AS_PLANNED
        if emulate:
            properties |= EMULATION
        self._compiled = _core().compile_model(model, device, properties)
        self._latent, self._energy = (self._compiled.input(name) for name in inputs)
        self._output = self._compiled.output("showers")
        self.sample_shape = tuple(dimension.get_length() for dimension in list(self._output.get_partial_shape())[1:])
        self._requests: deque[Any] = deque()

    def inference(self) -> Inference:
        """See CompiledGenerator."""
        return OpenVinoInference(self._compiled, (self._latent, self._energy, self._output), self.batch or 1, self.sample_shape)

    def run(self, latent: Array, incident_energy: Array) -> Array:
        """See CompiledGenerator."""
        step = self.batch or max(len(latent), 1)
        starts = range(0, len(latent), step)
        request = self._requests.popleft() if self._requests else self._compiled.create_infer_request()
        try:
            parts = [self._start(request, latent[i : i + step], incident_energy[i : i + step], wait=True) for i in starts]
        finally:
            self._requests.append(request)
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def map(self, batches: Iterable[tuple[Key, Array, Array]]) -> Iterator[tuple[Key, Array]]:
        """See CompiledGenerator."""
        return self._map(batches, 2 * self.streams if self.streams > 1 else 1)

    def _map(self, batches: Iterable[tuple[Key, Array, Array]], depth: int) -> Iterator[tuple[Key, Array]]:
        """A ring of `depth` requests: the oldest is waited for, emptied and handed out before it is used again."""
        while len(self._requests) < depth:
            self._requests.append(self._compiled.create_infer_request())
        idle = deque(self._requests.popleft() for _ in range(depth))  # ours until done: a second map takes others
        running: deque[tuple[Key, Array, Any]] = deque()
        try:
            for key, latent, energy in batches:
                if not idle:
                    yield self._finish(running, idle)
                request = idle.popleft()
                running.append((key, self._start(request, latent, energy), request))
            while running:
                yield self._finish(running, idle)
        finally:
            for _, _, request in running:  # left behind by an error or by a caller who had enough
                with suppress(RuntimeError):
                    request.wait()
                idle.append(request)
            self._requests.extend(idle)

    def _start(self, request: Any, latent: Array, energy: Array, *, wait: bool = False) -> Array:  # noqa: ANN401
        """Begin an inference, or with `wait` make it in this thread; the samples are in the array returned, without a copy."""
        import openvino

        latent = np.ascontiguousarray(latent, np.float32)
        energy = np.ascontiguousarray(energy, np.float32).reshape(-1, 1)
        count = len(latent)
        if len(energy) != count or (self.batch is not None and not 0 < count <= self.batch):
            raise ValueError(f"{count} latents and {len(energy)} energies do not fit a batch of {self.batch}")
        if self.batch is not None and count < self.batch:
            latent = np.concatenate([latent, np.broadcast_to(latent[-1:], (self.batch - count, latent.shape[1]))])
            energy = np.concatenate([energy, np.broadcast_to(energy[-1:], (self.batch - count, 1))])
        samples = np.empty((len(latent), *self.sample_shape), np.float32)
        request.set_tensor(self._output, openvino.Tensor(samples, shared_memory=True))
        inputs = {self._latent: latent, self._energy: energy}
        if wait:
            request.infer(inputs, share_outputs=True)
        else:
            request.start_async(inputs)
        return samples[:count]

    def _finish(self, running: deque[tuple[Key, Array, Any]], idle: deque[Any]) -> tuple[Key, Array]:
        key, samples, request = running.popleft()
        request.wait()
        idle.append(request)
        return key, samples

    def layer_seconds(self, latent: Array, incident_energy: Array, rounds: int = 15) -> dict[str, float]:
        """See CompiledGenerator."""
        return self._profiled({self._latent: latent, self._energy: np.reshape(incident_energy, (-1, 1))}, rounds)


class OpenVinoInference(Inference):
    """An inference request that reads and writes NumPy's memory."""

    def __init__(self, compiled: Any, ports: tuple[Any, Any, Any], batch: int, sample_shape: tuple[int, ...]) -> None:  # noqa: ANN401
        import openvino

        super().__init__(batch, ports[0].get_partial_shape()[1].get_length(), sample_shape)
        self._request = compiled.create_infer_request()
        for port, array in zip(ports, (self.latent, self.incident_energy, self.samples), strict=True):
            self._request.set_tensor(port, openvino.Tensor(array, shared_memory=True))

    def __call__(self) -> Array:
        self._request.infer(share_outputs=True)
        return self._samples


@cache
def has_bf16() -> bool:
    """Whether the processor computes in bf16."""
    return "BF16" in map(str, _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


@cache
def has_fp16() -> bool:
    """Whether the processor computes in fp16."""
    return "FP16" in map(str, _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def available(precision: InferencePrecision) -> InferencePrecision:
    """`precision`, or f32 where the processor has no such arithmetic and the runtime would emulate it."""
    return precision if {"bf16": has_bf16, "f16": has_fp16}.get(precision, lambda: True)() else "f32"


def machine() -> dict[str, Any]:
    """Processor, cores and runtime that a measurement belongs to."""
    import openvino

    return {
        "processor": str(_core().get_property("CPU", "FULL_DEVICE_NAME")).strip(),
        "capabilities": sorted(map(str, _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))),
        "instructions": _instructions(),
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "openvino": openvino.__version__,
    }


@cache
def _instructions() -> list[str]:
    """Matrix and vector instruction sets that decide which low-precision kernels exist; empty where the system does not tell."""
    known = {"avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "amx_fp16"}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    flags = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return sorted(known & set(flags.split()))


def _shape(port: Any, batch: int | None) -> Any:  # noqa: ANN401
    import openvino

    shape = port.get_partial_shape()
    shape[0] = openvino.Dimension(-1 if batch is None else batch)
    return shape


def _keep_products_apart(model: openvino.Model) -> None:
    """Lift element-wise operations on matrices to three dimensions, so that matrix products are not fused across them.

    OpenVINO fuses sequences of small matrix products of rank two, with what is element-wise between them, into one kernel.
    2026.4.1 crashes while compiling one that ends in an operation on a second computed matrix (SIGSEGV), and does not report in
    which precision the products in it run.
    """
    from openvino import opset13 as operators

    last = operators.constant(np.array([-1]))
    for op in model.get_ordered_ops():
        if op.get_type_name() not in _ELEMENTWISE or op.get_output_partial_shape(0).rank != 2:
            continue
        if any(source.get_node().get_type_name() == "Constant" for source in op.input_values()):
            continue  # such as adding a bias, which belongs to its product
        users = op.output(0).get_target_inputs()
        for place in range(op.get_input_size()):
            op.input(place).replace_source_output(operators.unsqueeze(op.input_value(place), last).output(0))
        op.validate_and_infer_types()
        flat = operators.squeeze(op, last).output(0)
        for user in users:
            user.replace_source_output(flat)
    model.validate_nodes_and_infer_types()


def _keep_residues(model: openvino.Model) -> openvino.Model:
    """`model` with float32 wherever something is rounded to whole numbers, back to the layer that makes it and once onwards.

    What a phase of many periods leaves modulo one is noise in bf16, whose eight bits the periods use up.
    """
    kept: set[str] = set()
    for op in model.get_ordered_ops():
        if op.get_type_name() not in ("Round", "Floor", "Ceiling"):
            continue
        chain = [op]
        while chain[-1].get_type_name() in (*_ELEMENTWISE, "Round", "Floor", "Ceiling", "Reshape", "Squeeze", "Unsqueeze"):
            chain.append(chain[-1].input_value(0).get_node())
        readers = [target.get_node() for each in chain for target in each.output(0).get_target_inputs()]
        kept |= {each.get_friendly_name() for each in (*chain, *readers)}
    if not kept:
        return model
    xml, weights = write_ir(model)
    root = ElementTree.fromstring(xml)
    for layer in root.iterfind("./layers/layer"):
        if layer.get("name") in kept and layer.get("type") not in ("Const", "Parameter", "Result"):
            keep_precise(layer)
    return read_ir(ElementTree.tostring(root), weights)


def _check_sizes(model: openvino.Model, shapes: dict[str, Any]) -> None:
    """Refuse a graph of a stranger that would need absurd memory for a single event, before anything is computed."""
    single = model.clone()
    single.reshape({single.input(name): shape for name, shape in shapes.items()})
    for op in single.get_ordered_ops():
        for output in op.outputs():
            shape = output.get_partial_shape()
            if shape.is_dynamic or np.prod(np.asarray(shape.to_shape(), np.float64), initial=1) > _LARGEST_TENSOR:
                raise InvalidSurrogate(
                    f"Layer {op.get_friendly_name()!r:.80} of the surrogate has the shape {shape} for one event; static shapes "
                    f"of at most {_LARGEST_TENSOR} elements are accepted. Get the surrogate again from its author."
                )


def _unusable(surrogate: Surrogate, what: str, precision: str, error: Exception) -> InvalidSurrogate:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = (lines[-1] if lines else type(error).__name__)[:200]
    return InvalidSurrogate(
        f"Surrogate {surrogate.path}: OpenVINO cannot {what} its {precision} model ({reason}). Get it again from its author."
    )
