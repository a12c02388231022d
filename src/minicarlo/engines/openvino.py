"""OpenVINO: compile a surrogate in a given precision and run it in several streams."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minicarlo.engines.base import Array, CompiledGenerator, Engine, Inference, Key, Offer, PrecisionReport
from minicarlo.engines.network import LARGEST_TENSOR, OpenVinoNetwork, oversized_layer, tensor_name
from minicarlo.engines.runtime import (
    ELEMENTWISE,
    InferencePrecision,
    core,
    event_shape,
    has_bf16,
    keep_precise,
    read_ir,
    write_ir,
)
from minicarlo.errors import InvalidSurrogate, UnsupportedPrecision
from minicarlo.surrogate import Surrogate

if TYPE_CHECKING:
    import openvino


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
        model = core().read_model(surrogate.onnx)
        return (model, "f32") if precision == "fp32" else (_keep_residues(model), "bf16")
    except RuntimeError as error:
        raise _unusable(surrogate, "read", precision, error) from error


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
        model = core().read_model(onnx)
    except RuntimeError as error:
        raise _unusable(surrogate, "read", "ONNX", error) from error
    shapes = {name: _of_one_event(model.input(name)) for name in ("latent", "incident_energy")}
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
    found = next((name for name in core().available_devices if name.split(".")[0] == device.upper()), None)
    if found is None:
        return Offer("openvino", version, device, None, (), "OpenVINO finds no such device, or not its driver")
    hardware = str(core().get_property(found, "FULL_DEVICE_NAME")).strip()
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


class OpenVinoGenerator(CompiledGenerator):
    """A surrogate's model compiled by OpenVINO; see `OpenVinoNetwork` for the settings."""

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
        whole: bool = False,
        device: str = "CPU",
    ) -> None:
        model = core().read_model(model) if isinstance(model, Path | str) else model
        inputs = {name: model.input(name) for name in ("latent", "incident_energy")}
        _check_sizes(model, {name: _of_one_event(port) for name, port in inputs.items()})
        self.network = OpenVinoNetwork(
            model,
            inference_precision,
            {name: [batch or -1, *(event_shape(port) or ())] for name, port in inputs.items()},
            streams=streams,
            threads=threads,
            profile=profile,
            emulate=emulate,
            whole=whole,
            device=device,
        )
        self.batch, self.streams, self.threads = batch, streams, threads
        self._output = tensor_name(model.outputs[0])
        self.sample_shape = self.network.output_shape(self._output)

    def inference(self) -> Inference:
        """See CompiledGenerator."""
        return OpenVinoInference(self.network, self.batch or 1, self.sample_shape)

    def run(self, latent: Array, incident_energy: Array) -> Array:
        """See CompiledGenerator."""
        samples: Array = self.network.run(self._inputs(latent, incident_energy))[self._output]
        return samples

    def map(self, batches: Iterable[tuple[Key, Array, Array]]) -> Iterator[tuple[Key, Array]]:
        """See CompiledGenerator."""
        given = ((key, self._inputs(latent, energy)) for key, latent, energy in batches)
        return ((key, results[self._output]) for key, results in self.network.map(given))

    @staticmethod
    def _inputs(latent: Array, incident_energy: Array) -> dict[str, Array]:
        return {"latent": latent, "incident_energy": np.asarray(incident_energy).reshape(-1, 1)}

    def precision_report(self) -> PrecisionReport:
        """See CompiledGenerator."""
        return self.network.precision_report()

    def runtime_layers(self) -> list[dict[str, str]]:
        """Every node of the compiled graph; see RuntimeAccount."""
        return self.network.runtime_layers()

    def layer_seconds(self, latent: Array, incident_energy: Array, rounds: int = 15) -> dict[str, float]:
        """See CompiledGenerator."""
        return self.network.layer_seconds(self._inputs(latent, incident_energy), rounds)


class OpenVinoInference(Inference):
    """An inference that reads and writes NumPy's memory."""

    def __init__(self, network: OpenVinoNetwork, batch: int, sample_shape: tuple[int, ...]) -> None:
        (latent_size,) = event_shape(network.compiled.input("latent")) or ()
        super().__init__(batch, latent_size, sample_shape)
        self.compute = network.bound({"latent": self.latent, "incident_energy": self.incident_energy}, self.samples)

    def __call__(self) -> Array:
        self.compute()
        return self._samples


def _of_one_event(port: Any) -> Any:  # noqa: ANN401
    shape = port.get_partial_shape()
    shape[0] = 1
    return shape


def _keep_residues(model: openvino.Model) -> openvino.Model:
    """`model` with float32 wherever something is rounded to whole numbers, back to the layer that makes it and once onwards.

    What a phase of many periods leaves modulo one is noise in bf16, whose eight bits the periods use up.
    """
    kept: set[str] = set()
    for op in model.get_ordered_ops():
        if op.get_type_name() not in ("Round", "Floor", "Ceiling"):
            continue
        chain = [op]
        while chain[-1].get_type_name() in (*ELEMENTWISE, "Round", "Floor", "Ceiling", "Reshape", "Squeeze", "Unsqueeze"):
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
    if (found := oversized_layer(model, shapes)) is not None:
        raise InvalidSurrogate(
            f"Layer {found[0]!r:.80} of the surrogate has the shape {found[1]} for one event; static shapes "
            f"of at most {LARGEST_TENSOR} elements are accepted. Get the surrogate again from its author."
        )


def _unusable(surrogate: Surrogate, what: str, precision: str, error: Exception) -> InvalidSurrogate:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = (lines[-1] if lines else type(error).__name__)[:200]
    return InvalidSurrogate(
        f"Surrogate {surrogate.path}: OpenVINO cannot {what} its {precision} model ({reason}). Get it again from its author."
    )
