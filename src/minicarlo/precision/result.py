"""What a search for a plan says: while it goes on, and at its end."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from minicarlo.precision.history import plain
from minicarlo.precision.strategies import Trial


@dataclass(frozen=True)
class Status:
    """What a search is doing: the trial or probe, the best trial so far, the seconds left of a time limit (None: no limit)."""

    doing: str
    best: Trial | None
    seconds_left: float | None


@dataclass(frozen=True)
class TuneResult:
    """What `tune` found.

    `accepted` says whether a plan below fp32 met the criterion and is better; otherwise `plan` is all fp32 and `reason`
    says why. `trials` counts every plan that was run, sensitivity probes included, `full_evaluations` those that the criterion
    judged, each on as many events as its verdict needed; `events` counts these events, probes included. `criterion` has
    `name`, `reference` (fp32 against itself: zero), `value`, `low`, `high` (on held-out events), `tolerance`, `confidence` and
    `floor` (two independent fp32 samples). `not_offered` are the formats that the processor lacks, with the reason, and
    `wrong_kernels` those kernels that compute something else: they were not offered to the search, or only with weights of half
    the range where these make them right (`half_range`). `schemes` says how int8 layers are quantised that are not in the usual
    way, `smooth` whether channels were made smoother before, `fast` which layers are fast convolutions. `speedup` is relative to
    fp32, measured (or estimated from multiply-accumulates where nothing is timed); `measures` are the ratios to fp32 by
    objective.
    `candidates` are all trials that passed, with their measures; `front` marks those that no other beats in all objectives.
    `layers` is the table of `minicarlo.precision.table`: what each layer alone does to the criterion and costs.
    """

    accepted: bool
    trials: int
    full_evaluations: int
    events: int
    seconds: float
    plan: dict[str, str]
    ran: dict[str, str]
    int8_share: float
    speedup: float
    measures: dict[str, float]
    candidates: tuple[dict[str, Any], ...]
    criterion: dict[str, Any]
    reason: str
    path: str
    interrupted: bool = False
    monte_carlo: dict[str, Any] | None = None
    wrong_kernels: tuple[dict[str, Any], ...] = ()
    not_offered: dict[str, str] = field(default_factory=dict)
    schemes: dict[str, str] = field(default_factory=dict)
    smooth: bool = False
    fast: tuple[str, ...] = ()
    layers: tuple[dict[str, Any], ...] = ()
    history: tuple[Trial, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """For --json; the history is in the surrogate."""
        return {entry.name: plain(getattr(self, entry.name)) for entry in dataclasses.fields(self) if entry.name != "history"}


def account(best: Trial | None, worse: int, refused: int, trials: list[Trial]) -> str:
    """Why the result is what it is: the best trial's reason, or what became of all others."""
    if best is not None:
        return f"{best.description}: {best.reason}"
    reasons = []
    if worse:
        reasons.append(f"{worse} passed but were no better than fp32")
    if refused:
        reasons.append(f"{refused} passed but were worse against the Monte Carlo events")
    failed = sum(not trial.accepted for trial in trials)
    if failed:
        closest = min(trials, key=lambda trial: trial.upper)
        reasons.append(f"{failed} failed, the closest with an upper bound of {closest.upper:.3g} ({closest.description})")
    return f"No plan below fp32 was found in {len(trials)} trials: {'; '.join(reasons) or 'none was finished'}."
