"""What other verbs left on disk, brought into the shape the page wants. Files may come from strangers: nothing is trusted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from minicarlo.errors import InvalidConfig
from minicarlo.fidelity import Scorecard
from minicarlo.surrogate import TUNED_HISTORY, Surrogate

_LARGEST = 2**24


@dataclass(frozen=True)
class Trial:
    """A plan that tuning tried: speed and loss relative to FP32 where known, the interval of the loss, formats by layer."""

    trial: str
    accepted: bool
    description: str = ""
    speedup: float | None = None
    speedup_spread: float | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    ran: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class History:
    """The trials of a tuning, and of each (layer, format) what it alone costs, what it moves most, and its seconds.

    A cost of None is beyond all bounds.
    """

    trials: tuple[Trial, ...] = ()
    sensitivities: Mapping[tuple[str, str], float | None] = field(default_factory=dict)
    moves: Mapping[tuple[str, str], str] = field(default_factory=dict)
    seconds: Mapping[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True)
class TunedLayer:
    """A layer of a tuned network: its format, its share of the multiply-accumulates, and by format what the history knows.

    `harm` is what it alone costs (None: beyond all bounds), `moves` what that changes most, `seconds` its time.
    """

    name: str
    form: str
    mac_share: float | None
    harm: Mapping[str, float | None]
    moves: Mapping[str, str]
    seconds: Mapping[str, float]


def read_json(path: Path | str) -> dict[str, Any]:
    """A JSON object saved from `--json`. Raises InvalidConfig naming the file."""
    try:
        if Path(path).stat().st_size > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST >> 20} MiB")
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it does not hold a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidConfig(f"Cannot read {path}: {error}. Give a file saved from a verb's --json.") from None
    return found


def read_scorecard(path: Path | str) -> Scorecard:
    """The scorecard of `minicarlo validate --json`. Raises InvalidConfig naming file and field."""
    try:
        return Scorecard.from_dict(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InvalidConfig(
            f"{path} is not what `minicarlo validate --json` writes: {where}: {first['msg']}. Validate again."
        ) from None


def read_bench(path: Path | str) -> dict[str, Any]:
    """The JSON object of `minicarlo bench --json`. Raises InvalidConfig naming file and field."""
    found = read_json(path)
    try:
        runs = [{**dict(run), "precision": str(run["precision"])} for run in found["runs"]]
        for run in runs:
            run["streams"], run["batch"] = int(run["streams"]), int(run["batch"])
            run["events_per_second"] = float(run["events_per_second"])
            for name in ("spread", "milliseconds_batch_1"):
                run[name] = _finite(run.get(name))
            if not (math.isfinite(run["events_per_second"]) and run["events_per_second"] > 0):
                raise ValueError("events_per_second must be positive")
        speedup = {str(name): _finite(value) for name, value in (found.get("speedup") or {}).items()}
        sweep = [_swept(point) for point in found.get("sweep") or () if int(point.get("threads", 1)) == 1]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidConfig(f"{path}: runs is not what `minicarlo bench --json` writes ({error}). Measure again.") from None
    return {**found, "runs": runs, "speedup": speedup, "sweep": sweep}


def _swept(point: Mapping[str, Any]) -> dict[str, Any]:
    counts = {name: int(point[name]) for name in ("streams", "batch")}
    rates = {"events_per_second": float(point["events_per_second"]), "spread": _finite(point.get("spread"))}
    return {"precision": str(point["precision"]), **counts, **rates}


def tuning_of(surrogate: Surrogate) -> dict[str, Any] | None:
    """The plan that a tuned surrogate carries, as the result of `tune`; None when it was not tuned."""
    if surrogate.tuned is None:
        return None
    plan = surrogate.tuned.plan.model_dump()
    criterion = plan.get("criterion")
    if not isinstance(criterion, Mapping):
        criterion = {}
    numbers = {name: _finite(criterion.get(name)) for name in ("reference", "value", "low", "high", "tolerance")}
    return {
        **plan,
        "accepted": plan.get("accepted") is not False,
        "criterion": {"name": str(criterion.get("name", "criterion")), **numbers},
    }


def history_of(surrogate: Surrogate) -> History:
    """The history of a tuned surrogate; empty when it has none."""
    if TUNED_HISTORY not in surrogate.manifest.files:
        return History()
    return read_history((surrogate.path / TUNED_HISTORY).read_text(encoding="utf-8", errors="replace").splitlines())


def tuned_layers(tuned: Mapping[str, Any], history: History) -> tuple[TunedLayer, ...]:
    """The layers of a plan in graph order."""
    entries = tuned.get("layers")
    known = [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list | tuple) else []
    macs = {str(entry.get("name")): _finite(entry.get("macs")) or 0.0 for entry in known}
    total = sum(macs.values())
    names = {layer: str(form) for layer, form in tuned["plan"].items()}

    def of(layer: str, values: Mapping[tuple[str, str], Any]) -> dict[str, Any]:
        return {form: value for (name, form), value in values.items() if name == layer}

    return tuple(
        TunedLayer(
            layer,
            form,
            macs[layer] / total if total > 0 and layer in macs else None,
            of(layer, history.sensitivities),
            of(layer, history.moves),
            of(layer, history.seconds),
        )
        for layer, form in names.items()
    )


def read_history(lines: Iterable[str]) -> History:
    """The history in these lines; a line that is none (cut short by a kill) is left out."""
    trials: list[Trial] = []
    sensitivities: dict[tuple[str, str], float | None] = {}
    moves: dict[tuple[str, str], str] = {}
    seconds: dict[tuple[str, str], float] = {}
    clock = None
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(entry, Mapping):
            continue
        if entry.get("kind") == "sensitivity":
            key = str(entry.get("layer")), str(entry.get("format"))
            sensitivities[key] = _finite(entry.get("value"))
            if families := _numbers(entry.get("families")):
                moves[key] = max(families, key=families.__getitem__)
        elif entry.get("kind") == "times":
            clock = clock or entry.get("objective")
            if entry.get("objective") == clock:
                form = str(entry.get("format"))
                seconds |= {(layer, form): value for layer, value in _numbers(entry.get("seconds")).items()}
        elif "accepted" in entry:
            trials.append(_trial(entry, len(trials) + 1))
    return History(tuple(trials), sensitivities, moves, seconds)


def _trial(entry: Mapping[str, Any], count: int) -> Trial:
    criterion, ran = entry.get("criterion"), entry.get("ran")
    numbers = criterion if isinstance(criterion, Mapping) else entry
    return Trial(
        trial=str(entry.get("trial", count))[:12],
        accepted=entry["accepted"] is True,
        description=str(entry.get("description") or entry.get("reason") or "")[:200],
        speedup=_finite(entry.get("speedup")),
        speedup_spread=_finite(entry.get("speedup_spread")),
        **{name: _finite(numbers.get(name)) for name in ("value", "low", "high")},
        ran={str(layer): str(form) for layer, form in ran.items()} if isinstance(ran, Mapping) else {},
    )


def _numbers(values: object) -> dict[str, float]:
    pairs = values.items() if isinstance(values, Mapping) else ()
    return {str(name): number for name, value in pairs if (number := _finite(value)) is not None}


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
