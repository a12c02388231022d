"""Engines: runtimes that execute a surrogate. One file per runtime."""

from __future__ import annotations

from minicarlo.engines.account import mac_layers
from minicarlo.engines.base import CompiledGenerator, Engine, Inference, Offer, PrecisionReport, usable_cores
from minicarlo.engines.openvino import compile_model, read_model
from minicarlo.engines.registry import compile_surrogate, engines, find_offer, get_engine
from minicarlo.engines.runtime import has_bf16, has_fp16, machine, read_ir

__all__ = [
    "CompiledGenerator",
    "Engine",
    "Inference",
    "Offer",
    "PrecisionReport",
    "compile_model",
    "compile_surrogate",
    "engines",
    "find_offer",
    "get_engine",
    "has_bf16",
    "has_fp16",
    "mac_layers",
    "machine",
    "read_ir",
    "read_model",
    "usable_cores",
]
