"""Surrogates for Par04, Geant4's example of machine-learnt fast simulation in C++.

Par04 (geant4/examples/extended/parameterisations/Par04, `Par04InferenceSetup.cc` and `Par04OnnxInference.cc`) gives a graph one
float32 vector per particle: unit-normal latents, then E / E_max, angle / angle_max and a code of the geometry. It reads cell
energies in units of E, ordered (r, phi, z), the first sector beginning at -pi, and multiplies them by E.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from minicarlo.detectors import Detector, get_detector
from minicarlo.errors import InvalidConfig
from minicarlo.events import ENERGY
from minicarlo.files import atomic_path
from minicarlo.surrogate import Surrogate

MAX_ENERGY_MEV = 1_024_000.0
"""Par04's E_max, `fMaxEnergy` in `Par04InferenceSetup.hh`."""

CONDITIONS = 4
"""Numbers after the latents: energy, angle, and two of the geometry. Only the energy is used."""


@dataclass(frozen=True)
class ExportResult:
    """The graph and a macro with Par04's commands for it; `mesh` is its number of cells in (r, phi, z)."""

    path: Path
    macro: Path
    latent_size: int
    conditions: int
    mesh: tuple[int, int, int]


def export(surrogate: Surrogate | Path | str, output: Path | str, *, max_energy_mev: float = MAX_ENERGY_MEV) -> ExportResult:
    """Write a surrogate of a cylindrical detector as the ONNX graph that Par04 loads, and a macro beside it.

    The graph is the float32 one. It gives energies in the sensitive plates, as Par04's full simulation does: a detector's
    `energy_scale` is taken out. An energy outside the trained range gets the shower of the nearest one inside, scaled, because
    Par04 asks for any.
    Raises InvalidSurrogate, InvalidConfig for a cartesian detector, OutputError.
    """
    if not isinstance(surrogate, Surrogate):
        surrogate = Surrogate.load(surrogate)
    output = Path(output)
    detector = get_detector(surrogate.manifest.detector)
    if detector.grid != "cylindrical" or detector.shape[1] % 2:
        raise InvalidConfig(
            f"Surrogate {surrogate.manifest.name} is of detector {detector.name}, whose grid is {detector.grid} with cells "
            f"{' x '.join(map(str, detector.shape))}. Par04's mesh is cylindrical, and has an even number of sectors here: "
            "export a surrogate of such a detector, for example par04-siw."
        )
    if output.suffix != ".onnx":
        raise InvalidConfig(f"Par04 loads ONNX: give a name that ends in .onnx instead of {output}.")
    with atomic_path(output) as temporary:
        temporary.write_bytes(_graph(surrogate, detector, max_energy_mev))
    macro = output.with_suffix(".mac")
    with atomic_path(macro) as temporary:
        temporary.write_text(_macro(surrogate, detector, output), encoding="utf-8")
    layers, sectors, rings = detector.shape
    return ExportResult(output, macro, surrogate.manifest.latent_size, CONDITIONS, (rings, sectors, layers))


def _graph(surrogate: Surrogate, detector: Detector, max_energy_mev: float) -> bytes:
    model = onnx.load_from_string(surrogate.onnx)
    graph = model.graph
    latents, allowed = surrogate.manifest.latent_size, surrogate.manifest.conditions[ENERGY]
    layers, sectors, rings = detector.shape

    def constant(name: str, values: ArrayLike) -> str:
        array = np.asarray(values)
        array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        graph.initializer.append(numpy_helper.from_array(array, f"par04.{name}"))
        return f"par04.{name}"

    def part(source: str, result: str, name: str, axis: int, start: int, stop: int) -> onnx.NodeProto:
        bounds = [constant(f"{name}.{key}", [value]) for key, value in (("start", start), ("stop", stop), ("axis", axis))]
        return helper.make_node("Slice", [source, *bounds], [result], f"par04.{name}")

    before = [
        part("par04", "latent", "latent", 1, 0, latents),
        part("par04", "par04.fraction", "fraction", 1, latents, latents + 1),
        helper.make_node("Mul", ["par04.fraction", constant("max_energy", max_energy_mev)], ["par04.energy"], "par04.scale"),
        helper.make_node(
            "Clip", ["par04.energy", constant("low", allowed.low), constant("high", allowed.high)], [ENERGY], "par04.clip"
        ),
    ]
    after = [
        helper.make_node("Mul", [ENERGY, constant("energy_scale", detector.energy_scale)], ["par04.unit"], "par04.unit"),
        helper.make_node("Reshape", ["par04.unit", constant("column", [-1, 1, 1, 1])], ["par04.units"], "par04.column"),
        helper.make_node("Div", ["showers", "par04.units"], ["par04.relative"], "par04.relative"),
        helper.make_node("Transpose", ["par04.relative"], ["par04.turned"], "par04.turn", perm=[0, 3, 2, 1]),
        part("par04.turned", "par04.second", "second", 2, sectors // 2, sectors),
        part("par04.turned", "par04.first", "first", 2, 0, sectors // 2),
        helper.make_node("Concat", ["par04.second", "par04.first"], ["par04.rolled"], "par04.roll", axis=2),
        helper.make_node(
            "Reshape", ["par04.rolled", constant("flat", [-1, rings * sectors * layers])], ["par04.output"], "par04.flat"
        ),
    ]
    nodes = [*before, *graph.node, *after]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info("par04", TensorProto.FLOAT, ["batch", latents + CONDITIONS]))
    graph.output.append(helper.make_tensor_value_info("par04.output", TensorProto.FLOAT, ["batch", rings * sectors * layers]))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _macro(surrogate: Surrogate, detector: Detector, output: Path) -> str:
    layers, sectors, rings = detector.shape
    mesh = {
        "setSizeOfRhoCells": f"{detector.cell_size[2]:g} mm",
        "setSizeOfZCells": f"{detector.cell_size[0]:g} mm",
        "setNbOfRhoCells": rings,
        "setNbOfPhiCells": sectors,
        "setNbOfZCells": layers,
    }
    model = {
        "setSizeLatentVector": surrogate.manifest.latent_size,
        "setSizeConditionVector": CONDITIONS,
        "setModelPathName": output.name,
    }
    lines = [f"# Surrogate {surrogate.manifest.name} of detector {detector.name} in Geant4's example Par04"]
    lines += [f"/Par04/mesh/{name} {value}" for name, value in mesh.items()]
    lines += [f"/Par04/inference/{name} {value}" for name, value in {**model, **mesh}.items()]
    return "\n".join([*lines, "/Par04/inference/setInferenceLibrary ONNX", ""])
