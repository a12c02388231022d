"""Engines by name: ours, and those that other packages register as entry points of `minicarlo.engines`."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points

from minicarlo.engines.base import CompiledGenerator, Engine, Offer
from minicarlo.errors import UnsupportedEngine, UnsupportedPrecision
from minicarlo.surrogate import Surrogate

GROUP = "minicarlo.engines"

_OURS = {
    "openvino": "minicarlo.engines.openvino:OpenVinoEngine",
    "onnxruntime": "minicarlo.engines.onnxruntime:OnnxRuntimeEngine",
    "pytorch": "minicarlo.engines.pytorch:PyTorchEngine",
    "inductor": "minicarlo.engines.pytorch:InductorEngine",
}


def engine_names() -> list[str]:
    """Every known engine, the usual one first."""
    return [*_OURS, *sorted(entry_points(group=GROUP).names - _OURS.keys())]


def get_engine(name: str) -> Engine:
    """Return the engine called `name`. Raises UnsupportedEngine, which lists the known names."""
    if name in _OURS:
        module, _, kind = _OURS[name].partition(":")
        engine: Engine = getattr(importlib.import_module(module), kind)()
        return engine
    for entry in entry_points(group=GROUP, name=name):
        engine = entry.load()()
        return engine
    raise UnsupportedEngine(f"Unknown engine {name!r:.80}. Known engines: {', '.join(engine_names())}.")


def engines() -> list[Offer]:
    """What this machine offers: every engine on every device it can use, or the reason why not."""
    return [offer for name in engine_names() for offer in get_engine(name).offers()]


def find_offer(engine: str = "openvino") -> Offer:
    """The offer that "NAME" (its usual device) or "NAME:DEVICE" means.

    Raises UnsupportedEngine when there is none of that name or this machine does not have it.
    """
    name, _, device = engine.partition(":")
    offers = get_engine(name).offers()
    found = next((offer for offer in offers if offer.device == (device or offers[0].device)), None)
    if found is None:
        raise UnsupportedEngine(f"Engine {name} has no device {device!r:.40}; it knows {', '.join(o.device for o in offers)}.")
    if not found.formats:
        raise UnsupportedEngine(
            f"Engine {name} cannot compute on {found.device} here: {found.reason}. "
            "`minicarlo engines` lists what this machine has."
        )
    return found


def compile_surrogate(
    surrogate: Surrogate,
    precision: str = "fp32",
    *,
    engine: str = "openvino",
    batch: int | None = None,
    streams: int = 1,
    threads: int = 1,
) -> CompiledGenerator:
    """Compile `surrogate` in "fp32", "bf16" or "tuned" with `streams` inferences at once, `threads` threads each.

    Arguments:
        engine: a runtime ("openvino", "onnxruntime", "pytorch"), or with a device of it ("onnxruntime:cuda").
        batch: events per inference; other numbers of events are padded to it. None takes any number.

    That FP32 is FP32 is asserted from the runtime's own report. Raises UnsupportedEngine, UnsupportedPrecision, InvalidSurrogate.
    """
    offer = find_offer(engine)
    if precision not in ("fp32", "bf16", "tuned"):
        raise UnsupportedPrecision(f"Precision {precision!r:.40} is unknown; choose fp32, bf16 or tuned.")
    if precision not in offer.formats:
        raise UnsupportedPrecision(
            f"Engine {offer.engine} does not compute in {precision} on {offer.device} ({offer.hardware}). "
            f"Choose {' or '.join(offer.formats)}, or another engine."
        )
    return get_engine(offer.engine).compile(
        surrogate, precision, device=offer.device, batch=batch, streams=streams, threads=threads
    )
