"""What other verbs left on disk, brought into the shape the page wants. Files may come from strangers: nothing is trusted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from minicarlo.errors import InvalidConfig
from minicarlo.surrogate import TUNED_HISTORY, Surrogate

_LARGEST = 2**24


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
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidConfig(f"{path}: runs is not what `minicarlo bench --json` writes ({error}). Measure again.") from None
    return {**found, "runs": runs, "speedup": speedup}


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


def history_of(surrogate: Surrogate) -> list[dict[str, Any]]:
    """The trials of a tuned surrogate's history; empty when it has none."""
    if TUNED_HISTORY not in surrogate.manifest.files:
        return []
    return trials((surrogate.path / TUNED_HISTORY).read_text(encoding="utf-8", errors="replace").splitlines())


def trials(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Trials from the lines of a history; a line that is none (cut short by a kill) is left out."""
    found: list[dict[str, Any]] = []
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, Mapping) and (trial := _trial(entry, len(found) + 1)) is not None:
            found.append(trial)
    return found


def _trial(entry: Mapping[str, Any], count: int) -> dict[str, Any] | None:
    if "accepted" not in entry:
        return None
    criterion = entry.get("criterion")
    numbers = criterion if isinstance(criterion, Mapping) else entry
    return {
        "trial": str(entry.get("trial", count))[:12],
        "accepted": entry["accepted"] is True,
        "description": str(entry.get("description") or entry.get("reason") or "")[:200],
        "speedup": _finite(entry.get("speedup")),
        **{name: _finite(numbers.get(name)) for name in ("value", "low", "high")},
    }


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
