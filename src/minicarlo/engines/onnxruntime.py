"""ONNX Runtime: on the processor, and on whatever its build has execution providers for."""

from __future__ import annotations

import json
import re
import tempfile
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from minicarlo.engines.base import Array, Engine, Inference, Offer, PrecisionReport, missing_package
from minicarlo.engines.onnx_writer import to_onnx
from minicarlo.engines.openvino import check_graph
from minicarlo.engines.runtime import machine, read_ir
from minicarlo.engines.streams import ThreadedGenerator
from minicarlo.errors import InvalidModel, InvalidSurrogate, UnsupportedEngine, UnsupportedPrecision
from minicarlo.surrogate import Surrogate

if TYPE_CHECKING:
    import onnxruntime

_PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "onednn": ("DnnlExecutionProvider",),
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider",),
    "rocm": ("MIGraphXExecutionProvider", "ROCMExecutionProvider"),
}
_OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}, "TensorrtExecutionProvider": {"trt_fp16_enable": "0"}}
"""FP32 is FP32: TF32 has ten bits of mantissa."""

_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_FORMATS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8", "uint8": "int8"}
_FUSED = re.compile(r"^fused |(_token_\d+|_nchwc|_quant|/MatMulAddFusion)$")


class OnnxRuntimeEngine(Engine):
    """ONNX Runtime with one of its execution providers."""

    name = "onnxruntime"

    def offers(self) -> list[Offer]:
        """See Engine."""
        return [_offer(device) for device in _PROVIDERS]

    def compile(
        self, surrogate: Surrogate, precision: str, *, device: str, batch: int | None, streams: int, threads: int
    ) -> OnnxRuntimeGenerator:
        """See Engine. That FP32 is FP32 is asserted wherever the provider reports layers."""
        data = surrogate.onnx if precision == "fp32" else _tuned_onnx(surrogate)
        check_graph(surrogate, data)
        try:
            compiled = OnnxRuntimeGenerator(data, batch=batch, streams=streams, threads=threads, device=device)
        except _failures() as error:
            reason = str(error).strip().splitlines()[-1][:200]
            raise InvalidSurrogate(
                f"Surrogate {surrogate.path}: ONNX Runtime cannot run its {precision} model ({reason}). Choose another engine."
            ) from error
        if precision == "fp32" and compiled.precision_report():
            compiled.assert_precision("fp32")
        return compiled


class OnnxRuntimeGenerator(ThreadedGenerator):
    """A model that ONNX Runtime runs: one session for all streams of one thread, or one session each.

    Inferences block, so that each stream has a thread; a session adds `threads` - 1 of its own. They do not spin while they wait,
    which would take time from other processes.
    """

    def __init__(
        self,
        model: bytes | Path | str,
        *,
        batch: int | None = None,
        streams: int = 1,
        threads: int = 1,
        device: str = "cpu",
    ) -> None:
        super().__init__(batch, streams, threads)
        data = model if isinstance(model, bytes) else Path(model).read_bytes()
        self._names = _layer_names(data)
        self._data, self._device = _with_batch(data, batch), device
        with tempfile.TemporaryDirectory() as folder:  # the first inference is profiled, to see what really ran
            session = self._session(Path(folder))
            inputs = {value.name: value for value in session.get_inputs()}
            self._latent_size = int(inputs["latent"].shape[1])
            first = session.run(None, self._ones(batch or 1))[0]
            self._ran = _nodes(session.end_profiling())
        self.sample_shape = tuple(first.shape[1:])
        sessions = [session] * streams if threads == 1 else [session, *(self._session() for _ in range(streams - 1))]
        self._idle: SimpleQueue[onnxruntime.InferenceSession] = SimpleQueue()
        for each in sessions:
            self._idle.put(each)

    def inference(self) -> Inference:
        """See CompiledGenerator."""
        session = self._idle.get()
        self._idle.put(session)
        return OnnxRuntimeInference(session, self.batch or 1, self._latent_size, self.sample_shape)

    def precision_report(self) -> PrecisionReport:
        """See CompiledGenerator: the types of the numbers that each kernel read in a profiled inference.

        Empty where a provider compiles the whole graph and reports no layers (TensorRT, MIGraphX).
        """
        report = {}
        for node in self._ran:
            layer, kinds = self._layer_of(node), node["args"].get("input_type_shape")
            if layer is not None and kinds:
                kind = next(iter(kinds[0]))
                report[layer] = _FORMATS.get(kind, kind)
        return {name: report[name] for name in dict.fromkeys(self._names.values()) if name in report}

    def layer_seconds(self, latent: Array, incident_energy: Array, rounds: int = 15) -> dict[str, float]:
        """See CompiledGenerator."""
        taken: dict[str, list[float]] = {name: [] for name in self._names.values()}
        feed = {"latent": latent, "incident_energy": np.reshape(incident_energy, (-1, 1))}
        with tempfile.TemporaryDirectory() as folder:
            session = self._session(Path(folder))
            for _ in range(rounds + 1):  # the first warms up
                session.run(None, feed)
            for node in _nodes(session.end_profiling()):
                if (layer := self._layer_of(node)) is not None:
                    taken[layer].append(1e-6 * node["dur"])
        return {name: min(seconds[1:]) for name, seconds in taken.items() if len(seconds) > 1}

    def _infer(self, latent: Array, energy: Array) -> Array:
        session = self._idle.get()
        try:
            samples: Array = session.run(None, {"latent": latent, "incident_energy": energy})[0]
        finally:
            self._idle.put(session)
        return samples

    def _ones(self, count: int) -> dict[str, Array]:
        return {"latent": np.ones((count, self._latent_size), np.float32), "incident_energy": np.ones((count, 1), np.float32)}

    def _session(self, profile: Path | None = None) -> onnxruntime.InferenceSession:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile / "profile")
        provider = _provider(self._device)
        chosen = [(provider, _OPTIONS.get(provider, {})), "CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(self._data, options, providers=chosen if self._device != "cpu" else chosen[1:])
        if provider not in session.get_providers():
            raise UnsupportedEngine(
                f"ONNX Runtime could not start its {provider}. `minicarlo engines` lists what this machine has."
            )
        return session

    def _layer_of(self, node: dict[str, Any]) -> str | None:
        """The layer of the model that a node of the optimised graph computes."""
        if not any(part in node["args"].get("op_name", "") for part in _LAYERS | {"QGemm"}):
            return None
        name = str(node["name"]).removesuffix("_kernel_time")
        while (shorter := _FUSED.sub("", name)) != name:
            name = shorter
        return self._names.get(name)


class OnnxRuntimeInference(Inference):
    """A binding of the session's inputs and output to NumPy's memory, which devices other than the processor copy from and to."""

    def __init__(self, session: Any, batch: int, latent_size: int, sample_shape: tuple[int, ...]) -> None:  # noqa: ANN401
        import onnxruntime

        super().__init__(batch, latent_size, sample_shape)
        self._session, self._binding = session, session.io_binding()
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._values = [value(array) for array in (self.latent, self.incident_energy, self.samples)]  # on the processor: no copy
        self._binding.bind_ortvalue_input("latent", self._values[0])
        self._binding.bind_ortvalue_input("incident_energy", self._values[1])
        self._binding.bind_ortvalue_output("showers", self._values[2])

    def __call__(self) -> Array:
        self._session.run_with_iobinding(self._binding)
        return self._samples


def _tuned_onnx(surrogate: Surrogate) -> bytes:
    """The tuned model with QuantizeLinear and DequantizeLinear around its int8 layers; what it has in bf16 is float32."""
    if surrogate.tuned is None:
        raise UnsupportedPrecision(f"Surrogate {surrogate.path} has no tuned model. Run `minicarlo tune` first, or choose fp32.")
    try:
        return to_onnx(read_ir(surrogate.tuned.xml, surrogate.tuned.weights), f"Surrogate {surrogate.path}")
    except InvalidModel as error:
        raise UnsupportedPrecision(f"{error} Choose fp32, or the engine openvino.") from error


def _failures() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return tuple(
        getattr(state, name) for name in ("Fail", "InvalidArgument", "InvalidGraph", "NotImplemented", "RuntimeException")
    )


def _provider(device: str) -> str:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    return next((name for name in _PROVIDERS[device] if name in available), _PROVIDERS[device][0])


@cache
def _offer(device: str) -> Offer:
    try:
        import onnxruntime
    except ImportError:
        return Offer("onnxruntime", None, device, None, (), missing_package("onnxruntime"))
    version, provider = onnxruntime.__version__, _provider(device)
    if provider not in onnxruntime.get_available_providers():
        return Offer("onnxruntime", version, device, None, (), f"this build of ONNX Runtime has no {provider}")
    if device != "cpu" and not _starts(provider):
        return Offer(
            "onnxruntime", version, device, None, (), f"its {provider} does not start: no such device, driver or library"
        )
    hardware = machine()["processor"] if device in ("cpu", "onednn") else provider.removesuffix("ExecutionProvider")
    return Offer("onnxruntime", version, device, hardware, ("fp32", "tuned"))


def _starts(provider: str) -> bool:
    """Whether a provider that is built in can be used; ONNX Runtime falls back to the processor and goes on if not."""
    import onnxruntime

    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "probe", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[provider])
    except Exception:  # the runtime raises whatever its provider raises
        return False
    return provider in session.get_providers()


def _with_batch(data: bytes, batch: int | None) -> bytes:
    """The model for a fixed number of events."""
    if batch is None:
        return data
    model = onnx.load_model_from_string(data)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return bytes(model.SerializeToString())


def _nodes(profile: str) -> list[dict[str, Any]]:
    """What a profile says about kernels: name, `dur` in microseconds, `args` with op_name, provider and types."""
    events: list[dict[str, Any]] = json.loads(Path(profile).read_text(encoding="utf-8"))
    return [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]


def _layer_names(data: bytes) -> dict[str, str]:
    """Layer by the names that the optimiser gives it: its own, or its output's, or that of what is fused into it."""
    graph = onnx.load_model_from_string(data).graph
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    names: dict[str, str] = {}
    layers = {node.name.removesuffix("/WithoutBiases"): node for node in graph.node if node.op_type in _LAYERS}
    for layer, node in layers.items():
        names |= {node.name: layer, node.output[0]: layer}
    for layer, node in layers.items():
        value = node.output[0]
        while len(readers.get(value, [])) == 1 and (after := readers[value][0]).op_type not in _LAYERS:
            value = after.output[0]
            if value in names:
                break  # another layer comes together with this one
            names[value] = layer
    return names
