"""What one shower costs beyond the engine's bare call: `minicarlo.load` against the runtime alone, interleaved.

    python benchmarks/latency.py [SURROGATE] [--seconds 20] [--engine openvino] [--threads N] [--json FILE]

The bare call of OpenVINO is `InferRequest.infer` of the whole graph on tensors that were set once, without our kernel for its
end; of ONNX Runtime it is `run_with_iobinding`. Run on a quiet machine; what counts is the ratio of the medians (aim: under 1.3).
Also shown: the call with latents drawn before each shower, and `CompiledGenerator.run`, which copies its inputs and its result.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import minicarlo
from minicarlo.engines import compile_surrogate, machine
from minicarlo.engines.openvino import OpenVinoGenerator, OpenVinoInference, read_model
from minicarlo.surrogate import Surrogate


def calls(surrogate: Surrogate, precision: str | None, engine: str, threads: int | None) -> dict[str, Callable[[], Any]]:
    """What is compared, by name, each with a network of its own."""
    prepared = minicarlo.load(surrogate, precision, engine=engine, threads=threads)
    random = np.random.default_rng(1)
    allowed = surrogate.manifest.conditions["incident_energy"]
    energy = np.full((1, 1), (allowed.low * allowed.high) ** 0.5, np.float32)
    latent = random.standard_normal(prepared.latent.shape, dtype=np.float32)
    settings = {"engine": engine, "batch": 1, "threads": prepared.threads}
    compiled, alone = (compile_surrogate(surrogate, prepared.precision, **settings) for _ in range(2))  # type: ignore[arg-type]
    if isinstance(alone, OpenVinoGenerator):
        alone = OpenVinoGenerator(*read_model(surrogate, prepared.precision), batch=1, threads=prepared.threads, whole=True)
    inference = alone.inference()
    for each in (prepared, inference):
        each.latent[:], each.incident_energy[:] = latent, energy

    def drawn() -> None:
        random.standard_normal(out=prepared.latent, dtype=np.float32)
        prepared()

    bare: Callable[[], Any] = inference
    if isinstance(inference, OpenVinoInference):
        bare = inference.compute
    elif (session := getattr(inference, "_session", None)) is not None:
        bare = partial(session.run_with_iobinding, getattr(inference, "_binding"))  # noqa: B009 # ONNX Runtime's alone has it
    return {"bare call": bare, "load": prepared, "load, latents drawn": drawn, "run": lambda: compiled.run(latent, energy)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("surrogate", nargs="?", default="clic-ecal")
    parser.add_argument("--precision")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    compared = calls(Surrogate.load(options.surrogate), options.precision, options.engine, options.threads)
    times: dict[str, list[float]] = {name: [] for name in compared}
    for call in compared.values():
        call()
    start = time.perf_counter()
    names = list(compared)
    while time.perf_counter() - start < options.seconds:
        names.append(names.pop(0))  # nobody always comes after the same one
        for name in names:
            call = compared[name]
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    result = {}
    for name, taken in times.items():
        low, middle, high = np.quantile(taken, [0.25, 0.5, 0.75])
        over = float(middle / np.median(times["bare call"]))
        result[name] = {
            "milliseconds": 1e3 * float(middle),
            "quartiles": [1e3 * float(low), 1e3 * float(high)],
            "over_bare": over,
        }
        print(f"{name:22s} {1e3 * middle:7.3f} ms ({1e3 * low:.3f} to {1e3 * high:.3f})  {over:.2f} of the bare call")
    if options.json:
        facts = {"machine": machine(), "surrogate": options.surrogate, "engine": options.engine, "calls": len(taken)}
        options.json.write_text(json.dumps(facts | {"results": result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
