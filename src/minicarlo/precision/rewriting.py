"""The fastest of the graphs that compute a surrogate's function, measured on this machine and verified after every step."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import platformdirs
from numpy.typing import NDArray

from minicarlo import __version__
from minicarlo.engines import CompiledGenerator, compile_surrogate, has_bf16, machine, read_model, usable_cores
from minicarlo.engines.openvino import OpenVinoGenerator
from minicarlo.errors import InvalidSurrogate, MinicarloError, OutputError, TuningError
from minicarlo.files import write_json
from minicarlo.graph.model import Graph
from minicarlo.graph.recipe import KINDS, Kind, Rewrite, multiply_accumulates, rewrites, rewritten
from minicarlo.graph.verify import ROUNDING, SingleLayer, deviation, single_layers, wrong_formats
from minicarlo.precision.history import plain
from minicarlo.precision.plan import Plan
from minicarlo.precision.quantization import compile_planned
from minicarlo.precision.surrogates import surrogate_quantizer
from minicarlo.precision.timing import Speedup, measure_speedup
from minicarlo.sampling import EnergyDistribution, normal_latents
from minicarlo.surrogate import FP32, FileRecord, Surrogate

Array = NDArray[np.float32]
Progress = Callable[[int, int], None]

WORTH = 1.02
"""How much faster a graph must be to take the place of another."""

SLOWER = 0.95
"""How much slower it may be in one format if it is faster in the mean of all."""

PLAIN = tuple(kind for kind in KINDS if kind != "fast")
"""Rewrites that leave every layer one that can have any format."""

EVENTS = 64
BATCH = 32


@dataclass(frozen=True)
class Attempt:
    """One rewrite that was tried, of one layer or of several alike.

    How much faster it made the graph (mean of the formats), how far it is from the original, whether it was kept.
    """

    kind: str
    target: str
    speedup: float
    deviation: float
    wrong_kernels: int
    kept: bool


@dataclass(frozen=True)
class OptimiseResult:
    """What `optimise` found.

    `speedup` is that of the new graph over the given one in each format; `deviation` the largest difference of a cell in
    float32, in units of the largest cell of its shower; `wrong_kernels` the layers, with formats, that this machine's runtime
    computes wrong.
    """

    path: str
    attempts: tuple[Attempt, ...]
    speedup: dict[str, float]
    deviation: float
    macs_before: int
    macs_after: int
    wrong_kernels: dict[str, tuple[str, ...]]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For --json and the manifest."""
        return {name: plain(value) for name, value in dataclasses.asdict(self).items()}


def optimise(
    surrogate: Surrogate | Path | str,
    output: Path | str,
    *,
    objective: Literal["time", "macs"] = "time",
    timing_seconds: float = 1.0,
    progress: Progress | None = None,
) -> OptimiseResult:
    """Write `surrogate` with the fastest graph for the same function that rewriting finds, to the new directory `output`.

    Each rewrite is verified against the given graph in float32 on the engine, timed in turns with what was best so far, and
    kept only if it pays (`objective="macs"`: if it saves multiply-accumulates, for machines too busy to time anything). What
    was done is in the manifest's `graph`. A tuned model belongs to the graph it was made from and is left out: tune the result.

    Raises InvalidSurrogate, OutputError.
    """
    loaded = surrogate if isinstance(surrogate, Surrogate) else Surrogate.load(surrogate)
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"Cannot write {output}: there is already something of that name; remove it or choose another name.")
    best, result = _find(loaded, objective, timing_seconds, progress)
    loaded.with_graph(output, best.onnx, _facts(loaded, best, result))
    return dataclasses.replace(result, path=str(output))


def fastest(surrogate: Surrogate, *, timing_seconds: float = 1.0) -> Surrogate:
    """`surrogate` with the fastest graph for its function, as `optimise` finds it: in memory, without its tuned model.

    But without fast convolutions: whether a layer should be one depends on its format (`minicarlo.precision.fast_layers`).

    The surrogate itself when there is nothing to rewrite, or when it comes from `optimise` on a machine like this one. What was
    found is remembered for this surrogate and machine, so that asking again gives the same bits at once.
    """
    known = surrogate.manifest.graph
    if known is not None and known.get("machine") == machine():
        return surrogate
    path = Path(platformdirs.user_cache_dir("minicarlo")) / "graphs.json"
    key = hashlib.sha256(json.dumps([surrogate.hash, machine(), __version__, PLAIN], sort_keys=True).encode()).hexdigest()
    facts = _recall(path).get(key)
    if facts is None:
        best, result = _find(surrogate, "time", timing_seconds, None, PLAIN)
        facts = _facts(surrogate, best, result)
        with suppress(OSError, MinicarloError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, _recall(path) | {key: facts})
    return _applied(surrogate, facts)


def with_rewrites(surrogate: Surrogate, recipe: Sequence[Rewrite] | None) -> Surrogate:
    """`surrogate` with the graph that a recipe makes of it, in memory; itself if its graph was made by this very recipe.

    An empty recipe gives the normal form (`minicarlo.graph.normal_form`), None leaves the graph as it is. Raises TuningError
    when the graph does not offer one of the rewrites.
    """
    made_by = (surrogate.manifest.graph or {}).get("recipe")
    if recipe is None or made_by == [dataclasses.asdict(rewrite) for rewrite in recipe]:
        return surrogate
    graph = Graph(surrogate.onnx)
    for index, rewrite in enumerate(recipe):
        if rewrite.kind not in KINDS or rewrite not in rewrites(rewritten(graph, recipe[:index]), rewrite.kind):
            raise TuningError(
                f"The graph of surrogate {surrogate.path} does not offer the rewrite {rewrite.kind} of {rewrite.target!r:.80}. "
                "The plan belongs to another network."
            )
    made_from = hashlib.sha256(surrogate.onnx).hexdigest()
    return _applied(surrogate, {"made_from_sha256": made_from, "recipe": [dataclasses.asdict(each) for each in recipe]})


def _applied(surrogate: Surrogate, facts: dict[str, Any]) -> Surrogate:
    """`surrogate` with the graph of the recipe in `facts`, which its manifest then says; itself if there is nothing to do."""
    if facts["recipe"] is None:
        return surrogate
    given = Graph(surrogate.onnx)
    onnx = rewritten(given, [Rewrite(**rewrite) for rewrite in facts["recipe"]]).serialise()
    if onnx == given.serialise():
        return surrogate
    record = FileRecord(sha256=hashlib.sha256(onnx).hexdigest(), bytes=len(onnx))
    files = {name: each for name, each in surrogate.manifest.files.items() if name == "README.md"} | {FP32: record}
    manifest = surrogate.manifest.model_copy(update={"files": files, "graph": facts, "speed": None})
    return dataclasses.replace(surrogate, manifest=manifest, onnx=onnx, tuned=None)


def _recall(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _find(
    surrogate: Surrogate,
    objective: Literal["time", "macs"],
    timing_seconds: float,
    progress: Progress | None,
    kinds: Sequence[Kind] = KINDS,
) -> tuple[_Candidate, OptimiseResult]:
    start = time.monotonic()
    search = _Search(surrogate, objective, timing_seconds, progress)
    search.run(kinds)
    best = search.best
    result = OptimiseResult(
        path="",
        attempts=tuple(search.attempts),
        speedup=search.over_original(),
        deviation=best.deviation,
        macs_before=multiply_accumulates(search.original),
        macs_after=multiply_accumulates(best.graph),
        wrong_kernels=best.wrong_kernels,
        seconds=time.monotonic() - start,
    )
    return best, result


def _facts(surrogate: Surrogate, best: _Candidate, result: OptimiseResult) -> dict[str, Any]:
    """What the manifest says about the graph."""
    made_from = hashlib.sha256(surrogate.onnx).hexdigest()
    recipe = None if best.recipe is None else [dataclasses.asdict(rewrite) for rewrite in best.recipe]
    found = {name: value for name, value in result.to_dict().items() if name not in ("path", "seconds")}
    return {"made_from_sha256": made_from, "recipe": recipe, "tolerance": ROUNDING, "machine": machine()} | found


@dataclass
class _Candidate:
    """A graph, what made it (None: it is the one that was given), and what was found about it."""

    recipe: list[Rewrite] | None
    graph: Graph
    onnx: bytes
    deviation: float
    wrong_kernels: dict[str, tuple[str, ...]]


class _Search:
    """One rewrite after the other, each kept if it pays."""

    def __init__(
        self, surrogate: Surrogate, objective: Literal["time", "macs"], seconds: float, progress: Progress | None
    ) -> None:
        self._surrogate, self._objective, self._seconds, self._progress = surrogate, objective, seconds, progress
        allowed = surrogate.manifest.conditions["incident_energy"]
        kind: Literal["log", "fixed"] = "log" if allowed.low < allowed.high else "fixed"
        self._energy = EnergyDistribution(allowed.low, allowed.high, kind).sample(0, 0, EVENTS)
        self._latent = normal_latents(0, 0, EVENTS, surrogate.manifest.latent_size)
        self._formats = ("fp32", "bf16") if has_bf16() else ("fp32",)
        self._audited: dict[bytes, tuple[str, ...]] = {}
        self._compiled: dict[tuple[bytes, str], CompiledGenerator] = {}
        self._expected = self._compile(surrogate.onnx, "fp32").run(self._latent, self._energy)
        if objective == "time":
            with suppress(MinicarloError, RuntimeError):  # a network without anything to quantise
                self._compile(surrogate.onnx, "int8")
                self._formats = (*self._formats, "int8")
        self.attempts: list[Attempt] = []
        self.original = Graph(surrogate.onnx)
        self.best = _Candidate(None, self.original, surrogate.onnx, 0.0, self._audit(self.original))

    def run(self, kinds: Sequence[Kind]) -> None:
        """Try everything of these kinds that is on offer."""
        normal = self._candidate([])
        if normal.deviation <= ROUNDING:
            self.best = normal
        tried: set[Rewrite] = set()
        for kind in kinds:
            if kind == "axes" and self._objective == "macs" and not self.best.wrong_kernels:
                continue  # an order saves no multiply-accumulates
            if kind == "fast" and self._objective == "macs":
                continue  # saves them where they are cheapest; whether that pays, only a clock says
            while groups := self._alike([rewrite for rewrite in rewrites(self.best.graph, kind) if rewrite not in tried]):
                tried.update(groups[0])
                self._try(groups[0])
                if self._progress is not None:
                    self._progress(len(self.attempts), len(self.attempts) + len(groups) - 1)

    def over_original(self) -> dict[str, float]:
        """Speed of the best graph over the original's, by format."""
        if self._objective == "macs":
            return {}
        return {form: self._speedup(self._surrogate.onnx, self.best.onnx, form).value for form in self._formats}

    def _alike(self, offered: list[Rewrite]) -> list[list[Rewrite]]:
        """Rewrites of layers with the same shapes together, as in branches of a network: one alone may be too little to time."""
        nodes = {node.name: node for node in self.best.graph.nodes}
        groups: dict[object, list[Rewrite]] = {}
        for rewrite in offered:
            node = nodes.get(rewrite.target)
            values = () if node is None else (*node.input, *node.output)
            shapes = tuple(self.best.graph.shapes.get(name) for name in values)
            groups.setdefault(rewrite if node is None else (rewrite.kind, shapes), []).append(rewrite)
        return list(groups.values())

    def _try(self, group: list[Rewrite]) -> None:
        kind, recipe = group[0].kind, list(self.best.recipe or ())
        if kind == "axes":  # before all else, in place of another order
            recipe = [*group, *(each for each in recipe if each.kind != "axes")]
        else:
            for rewrite in group:
                if rewrite in rewrites(rewritten(self.original, recipe), kind):
                    recipe.append(rewrite)
        made = self._candidate(recipe)
        wrong, before = (sum(map(len, each.wrong_kernels.values())) for each in (made, self.best))
        same = made.deviation <= ROUNDING
        gain, pays = self._gain(made) if same else (0.0, False)
        mended = wrong < before and kind != "fast"  # which has no layer to audit any more
        kept = same and (mended or (wrong <= before and pays))
        target = ", ".join(rewrite.target for rewrite in group)
        self.attempts.append(Attempt(kind, target, gain, made.deviation, wrong, kept))
        loser = self.best if kept else made
        if kept:
            self.best = made
        if loser.onnx != self._surrogate.onnx:
            self._compiled = {key: value for key, value in self._compiled.items() if key[0] != _digest(loser.onnx)}

    def _candidate(self, recipe: list[Rewrite]) -> _Candidate:
        graph = rewritten(self.original, recipe)
        onnx = graph.serialise()
        try:
            found = self._compile(onnx, "fp32").run(self._latent, self._energy)
        except InvalidSurrogate:  # the runtime does not take it
            return _Candidate(recipe, graph, onnx, math.inf, {})
        difference = deviation(self._expected, found, self._surrogate.manifest.readout_threshold_mev)
        return _Candidate(recipe, graph, onnx, difference, self._audit(graph))

    def _gain(self, made: _Candidate) -> tuple[float, bool]:
        """How much faster than the best so far in the mean of the formats, and whether that is sure beyond the scatter."""
        if self._objective == "macs":
            ratio = multiply_accumulates(self.best.graph) / max(multiply_accumulates(made.graph), 1)
            return ratio, ratio > WORTH
        found: list[Speedup] = []
        for form in self._formats:
            try:
                found.append(self._speedup(self.best.onnx, made.onnx, form))
            except (MinicarloError, RuntimeError):
                return 0.0, False
            if found[-1].value + found[-1].spread < SLOWER:
                break
        mean = math.exp(sum(math.log(each.value) for each in found) / len(found))
        slower = any(each.value + each.spread < SLOWER for each in found)
        return mean, mean > WORTH and not slower and any(each.value - each.spread > 1 for each in found)

    def _speedup(self, before: bytes, after: bytes, form: str) -> Speedup:
        pair = (self._compile(before, form), self._compile(after, form))
        return measure_speedup(*pair, self._latent, self._energy, seconds=self._seconds)

    def _compile(self, onnx: bytes, form: str) -> CompiledGenerator:
        key = (_digest(onnx), form)
        if key not in self._compiled:
            surrogate = dataclasses.replace(self._surrogate, onnx=onnx)
            streams = usable_cores()
            if form == "int8":
                quantizer = surrogate_quantizer(surrogate, EVENTS)
                planned = quantizer.apply(Plan.uniform(quantizer.layers, "int8"))
                self._compiled[key] = compile_planned(planned, batch=BATCH, streams=streams)
            else:
                self._compiled[key] = compile_surrogate(surrogate, form, batch=BATCH, streams=streams)
        return self._compiled[key]

    def _audit(self, graph: Graph) -> dict[str, tuple[str, ...]]:
        found = {}
        for layer in single_layers(graph):
            if layer.plain not in self._audited:
                self._audited[layer.plain] = wrong_formats(layer, self._run_layer)
            found[layer.name] = self._audited[layer.plain]
        return {name: formats for name, formats in found.items() if formats}

    def _run_layer(self, layer: SingleLayer, form: str, values: Array) -> Array | None:
        return run_layer(self._surrogate, layer, form, values)


def wrong_kernels(surrogate: Surrogate) -> dict[str, tuple[str, ...]]:
    """The layers of a surrogate that this machine's runtime computes wrong in bf16 or int8, with those formats.

    Each layer runs alone, with its own weights, on random numbers, and is compared with fp32.
    """

    def run(layer: SingleLayer, form: str, values: Array) -> Array | None:
        return run_layer(surrogate, layer, form, values)

    found = {layer.name: wrong_formats(layer, run) for layer in single_layers(Graph(surrogate.onnx))}
    return {name: formats for name, formats in found.items() if formats}


def _digest(onnx: bytes) -> bytes:
    return hashlib.sha256(onnx).digest()


def run_layer(surrogate: Surrogate, layer: SingleLayer, form: str, values: Array) -> Array | None:
    """What the runtime makes of one layer of `surrogate` in a format; None if it does not compute it in that format."""
    onnx = layer.quantised if form == "int8" else layer.plain
    model, _ = read_model(dataclasses.replace(surrogate, onnx=onnx))
    compiled = OpenVinoGenerator(model, "bf16" if form == "bf16" else "f32", batch=len(values), whole=True)
    if set(compiled.precision_report().values()) != {form}:
        return None
    return compiled.run(values, np.ones(len(values), np.float32))
