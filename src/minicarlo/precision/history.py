"""The tuning history: one JSON object per line, on the disk as soon as it is known, for a killed run to go on from."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minicarlo.errors import TuningError
from minicarlo.files import output_error
from minicarlo.precision.scheme import Scheme
from minicarlo.precision.sensitivity import Probe
from minicarlo.precision.strategies.base import Trial

_CHECK = {"layer", "format", "ran", "kernel", "error", "wrong", "half_range"}


class History:
    """The history of one request in the file `path`; what is there from the same request is taken up, all else dropped.

    Raises OutputError when the file cannot be written.
    """

    def __init__(self, path: Path, request: dict[str, Any]) -> None:
        self.path = path
        self.trials: list[Trial] = []
        self.sensitivities: dict[tuple[str, str], Probe] = {}
        self.times: dict[tuple[str, str], dict[str, float]] = {}
        self.wrong_kernels: list[dict[str, Any]] | None = None
        self.smooth: bool | None = None
        self.fast: dict[str, tuple[str, ...]] | None = None
        header = {"kind": "request", **request}
        lines = _complete_lines(path)
        if lines and _parse(lines[0]) == _parse(_line(header)):
            kept = [line for line in lines[1:] if self._take_up(line)]
            self._rewrite([lines[0], *kept])
        else:
            self._rewrite([_line(header)])

    def add_trial(self, trial: Trial) -> None:
        """Keep a trial."""
        self.trials.append(trial)
        self._append(trial.to_dict())

    def add_sensitivity(self, layer: str, form: str, probe: Probe) -> None:
        """Keep what one layer alone in one format does; infinity is written as null."""
        self.sensitivities[layer, form] = probe
        entry = {"layer": layer, "format": form, "value": probe.value, "movement": probe.movement}
        entry |= {"families": dict(probe.families), "seconds": probe.seconds}
        schemes = {} if probe.scheme is None else {"scheme": str(probe.scheme), "tried": dict(probe.tried)}
        self._append({"kind": "sensitivity", **entry, **schemes})

    def add_times(self, objective: str, form: str, seconds: Mapping[str, float]) -> None:
        """Keep the seconds of each layer in a format, as measured for an objective."""
        self.times[objective, form] = dict(seconds)
        self._append({"kind": "times", "objective": objective, "format": form, "seconds": self.times[objective, form]})

    def add_audit(self, wrong_kernels: list[dict[str, Any]]) -> None:
        """Keep which kernels the audit found wrong, a dictionary each."""
        self.wrong_kernels = wrong_kernels
        self._append({"kind": "audit", "wrong": wrong_kernels})

    def add_smoothing(self, taken: bool, plain: float, smooth: float) -> None:
        """Keep whether channels are made smoother, and how far int8 moves events without and with it."""
        self.smooth = taken
        self._append({"kind": "smoothing", "taken": taken, "plain": plain, "smooth": smooth})

    def add_fast(self, layers: Mapping[str, tuple[str, ...]]) -> None:
        """Keep which layers are fast convolutions, by format."""
        self.fast = dict(layers)
        self._append({"kind": "fast", "layers": {form: list(names) for form, names in layers.items()}})

    def content(self) -> bytes:
        """The file as it is."""
        return self.path.read_bytes()

    def remove(self) -> None:
        """Delete the file; its content lives on in the tuned surrogate."""
        self.path.unlink(missing_ok=True)

    def _take_up(self, line: str) -> bool:
        entry = _parse(line)
        if not isinstance(entry, dict):
            return False
        try:
            if entry.get("kind") == "trial":
                names = {field.name for field in dataclasses.fields(Trial)}
                self.trials.append(Trial(**{name: value for name, value in entry.items() if name in names}))
            elif entry.get("kind") == "sensitivity":
                scheme = Scheme.parse(entry["scheme"]) if "scheme" in entry else None
                families, tried = (_numbers(entry.get(name, {})) for name in ("families", "tried"))
                value, movement = (math.inf if entry[name] is None else float(entry[name]) for name in ("value", "movement"))
                probe = Probe(value, movement, families, float(entry["seconds"]), scheme, tried)
                self.sensitivities[entry["layer"], entry["format"]] = probe
            elif entry.get("kind") == "times":
                self.times[entry["objective"], entry["format"]] = _numbers(entry["seconds"])
            elif entry.get("kind") == "smoothing":
                self.smooth = bool(entry["taken"])
            elif entry.get("kind") == "fast":
                self.fast = {str(form): tuple(map(str, names)) for form, names in entry["layers"].items()}
            elif entry.get("kind") == "audit":
                if any(set(check) - _CHECK for check in entry["wrong"]):
                    return False
                self.wrong_kernels = [{**check} for check in entry["wrong"]]
        except (AttributeError, KeyError, TypeError, ValueError, TuningError):
            return False
        return entry.get("kind") in ("trial", "sensitivity", "times", "smoothing", "fast", "audit")

    def _rewrite(self, lines: list[str]) -> None:
        try:
            temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            os.replace(temporary, self.path)
        except OSError as error:
            raise output_error(self.path, error) from error

    def _append(self, entry: dict[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(_line(entry) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise output_error(self.path, error) from error


def plain(value: Any) -> Any:  # noqa: ANN401
    """`value` with infinities and NaN as None, as JSON wants it."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    return {name: math.inf if value is None else float(value) for name, value in entry.items()}


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(plain(entry), ensure_ascii=False, allow_nan=False)


def _parse(line: str) -> Any:  # noqa: ANN401
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _complete_lines(path: Path) -> list[str]:
    """Lines that were written to their end."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.split("\n")[:-1]
