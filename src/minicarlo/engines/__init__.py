"""Engines: runtimes that execute a surrogate. One file per runtime; OpenVINO on the processor is the one of this version."""

from __future__ import annotations

from minicarlo.engines.base import CompiledGenerator, PrecisionReport, usable_cores
from minicarlo.engines.openvino import compile_model, compile_surrogate, has_bf16, mac_layers, machine, read_ir, read_model

__all__ = [
    "CompiledGenerator",
    "PrecisionReport",
    "compile_model",
    "compile_surrogate",
    "has_bf16",
    "mac_layers",
    "machine",
    "read_ir",
    "read_model",
    "usable_cores",
]
