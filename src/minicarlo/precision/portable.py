"""A tuned network for other runtimes: ONNX in which the int8 layers of the plan are QuantizeLinear and DequantizeLinear pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minicarlo.engines import read_ir
from minicarlo.engines.network import Arrays, OpenVinoNetwork, read_network_file, tensor_name
from minicarlo.engines.onnx_writer import to_onnx
from minicarlo.errors import InvalidConfig, InvalidModel, TuningError
from minicarlo.files import atomic_path
from minicarlo.graph.safety import check_ir_network
from minicarlo.precision.subjects import is_surrogate
from minicarlo.sampling import EnergyDistribution, normal_latents
from minicarlo.surrogate import Surrogate

if TYPE_CHECKING:
    import openvino

TOLERANCE = 0.01
"""How far the written graph may be from the tuned one in float32 arithmetic on random events: relative, in the L2 norm."""

_EVENTS = 16
_LARGEST = {"plan.json": 2**22, "model.xml": 2**26, "model.bin": 2**31 - 1}


@dataclass(frozen=True)
class QdqResult:
    """The graph and how many layers are int8 and float32 in it; `bf16` of the float32 ones are bf16 in the plan.

    `deviation` is its distance from the tuned model in OpenVINO on random events, relative, in the L2 norm.
    """

    path: Path
    int8: int
    fp32: int
    bf16: int
    deviation: float


def export_qdq(tuned: Surrogate | Path | str, output: Path | str) -> QdqResult:
    """Write a tuned surrogate, or what `tune` made of any other network, as one ONNX file for ONNX Runtime and others.

    Scales, zero points, int8 weights and corrected biases are those of the tuned model; layers that the plan has in bf16 are
    float32. What was written is read again and compared with the tuned model before it gets its name.
    Raises InvalidSurrogate, InvalidModel, InvalidConfig, TuningError when nothing is tuned, OutputError.
    """
    output = Path(output)
    if output.suffix != ".onnx":
        raise InvalidConfig(f"Give a name that ends in .onnx instead of {output}.")
    if is_surrogate(tuned):
        surrogate = tuned if isinstance(tuned, Surrogate) else Surrogate.load(tuned)
        if surrogate.tuned is None:
            raise TuningError(f"Surrogate {surrogate.path} is not tuned. Run `minicarlo tune` first and export its result.")
        name = f"Surrogate {surrogate.path}"
        plan: Mapping[str, str] = surrogate.tuned.plan.plan
        graph = read_ir(surrogate.tuned.xml, surrogate.tuned.weights)
        inputs = _events_of(surrogate)
    else:
        name = f"Tuned network {tuned}"
        graph, plan = _tuned_network(Path(str(tuned)), name)
        inputs = _random_inputs(graph)
    written = to_onnx(graph, name)
    deviation = _deviation(graph, written, inputs)
    if not deviation <= TOLERANCE:
        raise InvalidModel(
            f"{name} is not exported: what was written as ONNX differs from the tuned model by {deviation:.2g} (relative, in the "
            f"L2 norm), more than {TOLERANCE:g}. It holds an operation that ONNX defines in another way."
        )
    with atomic_path(output) as temporary:
        temporary.write_bytes(written)
    count = {form: sum(each == form for each in plan.values()) for form in ("int8", "bf16")}
    return QdqResult(output, count["int8"], len(plan) - count["int8"], count["bf16"], deviation)


def _tuned_network(path: Path, name: str) -> tuple[openvino.Model, Mapping[str, str]]:
    contents = {}
    for file, largest in _LARGEST.items():
        target = path / file
        if target.is_symlink() or not target.is_file() or target.stat().st_size > largest:
            raise InvalidModel(f"{name} has no {file} that can be read. Give the directory that `minicarlo tune` wrote.")
        contents[file] = target.read_bytes()
    check_ir_network(contents["model.xml"], len(contents["model.bin"]), f"{name}: model.xml")
    try:
        plan = json.loads(contents["plan.json"])["plan"]
        graph = read_ir(contents["model.xml"], contents["model.bin"])
    except (ValueError, KeyError, TypeError, RecursionError, RuntimeError) as error:
        raise InvalidModel(f"{name} cannot be read ({str(error)[:200]}). Copy the whole directory again.") from error
    if not isinstance(plan, dict):
        raise InvalidModel(f"{name}: the plan in plan.json is no object. Copy the whole directory again.")
    return graph, plan


def _deviation(graph: openvino.Model, written: bytes, inputs: Arrays) -> float:
    shapes = {name: array.shape for name, array in inputs.items()}
    pair = [OpenVinoNetwork(each, "f32", shapes, emulate=True).run(inputs) for each in (graph, read_network_file(written))]
    found = 0.0
    for name, tuned in pair[0].items():
        before, after = (each.astype(np.float64) for each in (tuned, pair[1][name]))
        size = float(np.linalg.norm(before))
        found = max(found, float(np.linalg.norm(after - before)) / size if size else float(np.any(after != before)))
    return found


def _events_of(surrogate: Surrogate) -> dict[str, Any]:
    allowed = surrogate.manifest.conditions["incident_energy"]
    energy = EnergyDistribution(allowed.low, allowed.high, "log" if allowed.low < allowed.high else "fixed")
    latent = normal_latents(0, 0, _EVENTS, surrogate.manifest.latent_size)
    return {"latent": latent, "incident_energy": energy.sample(0, 0, _EVENTS)[:, None]}


def _random_inputs(graph: openvino.Model) -> dict[str, Any]:
    """Normal numbers, and zeros for what is not floating point."""
    random = np.random.default_rng(0)
    made = {}
    for port in graph.inputs:
        shape = [_EVENTS if each.is_dynamic else each.get_length() for each in port.get_partial_shape()]
        kind = port.get_element_type().to_dtype()
        made[tensor_name(port)] = (random.normal(size=shape) if np.dtype(kind).kind == "f" else np.zeros(shape)).astype(kind)
    return made
