"""OpenVINO itself: what it can do on this processor, how models are read, written and made fit for it."""

from __future__ import annotations

import os
import platform
import tempfile
import xml.etree.ElementTree as ElementTree
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from minicarlo.engines.base import usable_cores

if TYPE_CHECKING:
    import openvino

InferencePrecision = Literal["f32", "bf16", "f16"]

ELEMENTWISE = {
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
one_at_a_time = Lock()
"""Two threads that ask OpenVINO for a constant's numbers for the first time wait for one another forever (2026.4.1)."""

MOVERS = frozenset("Concat DepthToSpace Reshape Slice StridedSlice Transpose".split())
"""Operations that only move values."""

FORMATS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}
"""What the runtime calls a type of numbers, and what a plan calls the format."""

AS_PLANNED = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
"""Else OpenVINO rounds the inputs of a dense layer with small weights to 8 bits, and still reports float32."""

EMULATION = {"LP_TRANSFORMS_MODE": False}
"""Has OpenVINO compute what is int8 in a model in float32, on the same rounded numbers: what right kernels agree with."""


@cache
def core() -> openvino.Core:
    os.environ.setdefault("OPENVINO_TELEMETRY_OPT_OUT", "1")
    import openvino

    found = openvino.Core()
    found.set_property({"ENABLE_MMAP": False})
    return found


def read_ir(xml: bytes, weights: bytes) -> openvino.Model:
    """An OpenVINO model from its IR in memory."""
    import openvino

    return core().read_model(xml, openvino.Tensor(np.frombuffer(weights, np.uint8).copy()))


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


def is_precise(op: Any) -> bool:  # noqa: ANN401
    """Whether an operation of a model that was read is marked to stay float32."""
    return "DisablePrecisionConversion_0" in op.get_rt_info()


@cache
def has_bf16() -> bool:
    """Whether the processor computes in bf16."""
    return "BF16" in map(str, core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


@cache
def has_fp16() -> bool:
    """Whether the processor computes in fp16."""
    return "FP16" in map(str, core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def available(precision: InferencePrecision) -> InferencePrecision:
    """`precision`, or f32 where the processor has no such arithmetic and the runtime would emulate it."""
    return precision if {"bf16": has_bf16, "f16": has_fp16}.get(precision, lambda: True)() else "f32"


def machine() -> dict[str, Any]:
    """Processor, cores and runtime that a measurement belongs to."""
    import openvino

    return {
        "processor": str(core().get_property("CPU", "FULL_DEVICE_NAME")).strip(),
        "capabilities": sorted(map(str, core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))),
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


def moved_inputs(op: Any) -> list[Any]:  # noqa: ANN401
    """The inputs of one of `MOVERS` that hold the values it moves."""
    return list(op.inputs()) if op.get_type_name() == "Concat" else [op.input(0)]


def element_type(value: Any) -> str:  # noqa: ANN401
    """The type of the numbers of a value of a graph, as the runtime calls it."""
    return str(value.get_element_type().get_type_name())


def event_shape(value: Any) -> tuple[int, ...] | None:  # noqa: ANN401
    """The shape of a value (batch, ...) of a graph without the batch; None if it has none, or another size is open."""
    shape = value.get_partial_shape()
    if shape.rank.is_dynamic or not len(shape) or any(length.is_dynamic for length in list(shape)[1:]):
        return None
    return tuple(length.get_length() for length in list(shape)[1:])


def keep_products_apart(model: openvino.Model) -> None:
    """Lift element-wise operations on matrices to three dimensions, so that matrix products are not fused across them.

    OpenVINO fuses sequences of small matrix products of rank two, with what is element-wise between them, into one kernel.
    2026.4.1 crashes while compiling one that ends in an operation on a second computed matrix (SIGSEGV), and does not report in
    which precision the products in it run.
    """
    from openvino import opset13 as operators

    last = operators.constant(np.array([-1]))
    for op in model.get_ordered_ops():
        if op.get_type_name() not in ELEMENTWISE or op.get_output_partial_shape(0).rank != 2:
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
