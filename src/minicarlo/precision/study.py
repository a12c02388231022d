"""The tuning loop: try the plans that a strategy asks for, keep a history, return the best plan with its evidence."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from minicarlo.engines import machine
from minicarlo.engines.network import OpenVinoNetwork
from minicarlo.errors import TuningError
from minicarlo.precision.audit import FORMATS as AUDITED
from minicarlo.precision.audit import KernelCheck, check_kernels
from minicarlo.precision.budget import Budget, OutOfBudget
from minicarlo.precision.criterion import Comparison
from minicarlo.precision.evaluation import Evaluation
from minicarlo.precision.history import History, plain
from minicarlo.precision.judge import Verdict
from minicarlo.precision.objectives import Objectives, listed
from minicarlo.precision.plan import FORMATS, Plan, int8_share
from minicarlo.precision.planfile import plan_yaml
from minicarlo.precision.quantization import Quantizer
from minicarlo.precision.remote import Probed, Workers, probed
from minicarlo.precision.result import Status, TuneResult, account
from minicarlo.precision.scheme import Scheme
from minicarlo.precision.sensitivity import LayerSensitivity, Probe
from minicarlo.precision.strategies import Trial
from minicarlo.precision.subject import Subject
from minicarlo.precision.table import layer_table

Progress = Callable[[int, int], None]
Confirm = Callable[[OpenVinoNetwork], dict[str, Any]]
"""A second judge: says of a network whether it is `accepted`, and why."""


class Study:
    """Tries plans and remembers what came of them."""

    def __init__(
        self,
        subject: Subject,
        quantizer: Quantizer,
        evaluation: Evaluation,
        history: History,
        *,
        tolerance: float,
        budget: Budget,
        objectives: Objectives,
        confirm: Confirm | None,
        schemes: Sequence[Scheme],
        not_offered: dict[str, str],
        progress: Progress | None,
        status: Callable[[Status], None] | None,
    ) -> None:
        self._subject, self._criterion, self._confirm, self._status = subject, subject.criterion, confirm, status
        self._quantizer, self._evaluation, self._history = quantizer, evaluation, history
        self._tolerance, self.budget, self._objectives, self._progress = tolerance, budget, objectives, progress
        self._known = {trial.planned.key: trial for trial in history.trials}
        self._confirmations: dict[int, dict[str, Any]] = {}
        self.interrupted = False
        self._probes = 0
        self._workers: Workers | None = None
        self._ahead: Iterator[tuple[str, Verdict | None]] = iter(())
        self._verdicts: dict[str, Verdict | None] = {}
        self._usual, self._not_offered = tuple(schemes), not_offered
        share = tolerance / math.sqrt(len(quantizer.layers))  # as what independent layers do adds up
        self.sensitivity = LayerSensitivity(quantizer.layers, self._probe, history, self._schemes, share)
        self.cost = objectives.cost
        self.trials: list[Trial] = []

    def wrong_kernels(self, formats: tuple[str, ...]) -> list[dict[str, Any]]:
        """The kernels that compute something else than they should (see `minicarlo.precision.audit`); none for fp32."""
        if self._history.wrong_kernels is None:
            self._tell("whether the kernels compute what they should")
            checks = check_kernels(self._quantizer, [form for form in formats if form in AUDITED])
            self._history.add_audit([plain(check.__dict__) for check in checks if check.wrong])
        return self._history.wrong_kernels or []

    def offered(self, formats: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        """The formats that each layer may have.

        Of `formats` those whose kernels are right, if only with half-range weights, and in which the layer is not slower than in
        a format with more digits, in which it is a fast convolution.
        """
        checks = (KernelCheck(**check) for check in self.wrong_kernels(formats))
        left_out = {(check.layer, check.format) for check in checks if not check.mended}
        for fast, names in self._quantizer.fast.items():
            if self._objectives.timed and fast in formats:
                lower = [form for form in FORMATS[: FORMATS.index(fast)] if form in formats]
                seconds = {form: self._objectives.layer_seconds(self._objectives.clock, form) for form in (*lower, fast)}
                left_out |= {(name, form) for form in lower for name in names if seconds[form][name] >= seconds[fast][name]}
        return {layer.name: tuple(f for f in formats if (layer.name, f) not in left_out) for layer in self._quantizer.layers}

    def probe_all(self, offered: Mapping[str, tuple[str, ...]]) -> None:
        """Measure what each layer does alone in each format, and its time; what is known is not measured again."""
        self.sensitivity.measure(pairs(offered))
        for form in dict.fromkeys(form for formats in offered.values() for form in formats):
            self._objectives.layer_seconds(self._objectives.clock, form)

    def with_workers(self, workers: Workers, offered: Mapping[str, tuple[str, ...]], plans: Iterable[Plan]) -> None:
        """Have workers probe layers, all at once when the first is asked for, and judge `plans`, known beforehand, ahead."""
        self._workers, self.sensitivity.together = workers, pairs(offered)
        ahead = [plan for plan in plans if plan.key not in self._known]
        candidates = ((self._quantizer.apply(plan), self._tolerance) for plan in ahead)
        verdicts = workers.judge(candidates, self._check_time)
        self._ahead = zip((plan.key for plan in ahead), verdicts, strict=True) if ahead else iter(())

    def resolve(self, plan: Plan) -> Plan:
        """A plan whose int8 layers are quantised in the way that is known to be best for each."""
        return plan.with_schemes({name: self._scheme(name) for name in plan.layers_in("int8")})

    def _scheme(self, layer: str) -> Scheme:
        probe = self._history.sensitivities.get((layer, "int8"))
        return self._schemes(layer)[0] if probe is None or probe.scheme is None else probe.scheme

    def _schemes(self, layer: str) -> list[Scheme]:
        """Those that an int8 layer may have, the usual one first."""
        checks = (KernelCheck(**check) for check in self._history.wrong_kernels or ())
        half = any(check.mended for check in checks if (check.layer, check.format) == (layer, "int8"))
        return [replace(scheme, half_range=half or scheme.half_range) for scheme in self._usual]

    def evaluate(self, plan: Plan) -> Trial:
        """Run a plan and judge it; what an earlier run of the same request found is not run again."""
        known = self._known.get(plan.key)
        self._tell(f"trial {len(self.trials) + 1}: {plan.describe()}")
        trial = known or self._run(plan)
        if known is None:
            self._history.add_trial(trial)
            self._known[plan.key] = trial
        self.trials.append(trial)
        self.budget.used += 1
        self._tick()
        return trial

    def _run(self, plan: Plan) -> Trial:
        start = time.monotonic()
        base: dict[str, Any] = {
            "trial": len(self._history.trials) + 1,
            "plan": dict(plan),
            "description": plan.describe(),
            "schemes": {name: str(scheme) for name, scheme in plan.schemes},
        }
        try:
            network = self._evaluation.compile(plan)
        except RuntimeError as error:
            reason = f"the runtime does not compile it: {str(error).strip().splitlines()[-1]:.200}"
            return Trial(**base, ran={}, followed=False, accepted=False, reason=reason, seconds=time.monotonic() - start)
        base["ran"] = ran = network.precision_report()
        share = int8_share(ran, self._quantizer.layers)
        wrong = {name: ran.get(name, "nothing") for name, form in plan.items() if ran.get(name) != form}
        if wrong:
            name, found = next(iter(wrong.items()))
            reason = f"the runtime ran {name} in {found}, not {plan[name]}" + (
                f", and {len(wrong) - 1} more layers" if len(wrong) > 1 else ""
            )
            return Trial(
                **base, followed=False, accepted=False, reason=reason, int8_share=share, seconds=time.monotonic() - start
            )
        verdict = self._foreseen(plan) or self._evaluation.judge(network, self._tolerance)
        comparison, events, held_out = verdict.search, verdict.events, verdict.held_out
        accepted = held_out is not None and held_out.high <= self._tolerance
        if accepted:
            reason = "within the tolerance on the search's and on held-out events"
        else:
            worst = max(comparison.families, key=comparison.families.__getitem__)
            on = f"{events:,} events (worst: {worst})" if held_out is None else "held-out events"
            reason = f"upper bound {(held_out or comparison).high:.3g} on {on} is above the tolerance {self._tolerance:g}"
        measured = self._objectives.measure(plan, network)
        speed = self._objectives.speedup(plan, measured)
        return Trial(
            **base,
            followed=True,
            accepted=accepted,
            reason=reason,
            value=comparison.value,
            low=comparison.low,
            high=comparison.high,
            families=comparison.families,
            held_out=None if held_out is None else {"value": held_out.value, "low": held_out.low, "high": held_out.high},
            events=events + (0 if held_out is None else self._evaluation.events),
            measures={name: each.value for name, each in measured.items()},
            speedup=speed.value,
            speedup_spread=speed.spread,
            int8_share=share,
            seconds=time.monotonic() - start,
        )

    def _foreseen(self, plan: Plan) -> Verdict | None:
        """The verdict that workers have come to already; None if nobody was asked."""
        while plan.key not in self._verdicts and (upcoming := next(self._ahead, None)) is not None:
            key, verdict = upcoming
            self._verdicts[key] = verdict
        return self._verdicts.get(plan.key)

    def _probe(self, plans: Sequence[Plan], criterion: bool) -> Iterator[Probe]:
        """What each plan does to the criterion and how far it moves events, in their order; infinite if it is not followed.

        Without `criterion` only how far it moves events.
        """
        found: Iterator[Probed]
        if self._workers is None:
            found = (probed(self._evaluation, partial(self._evaluation.compile, plan), criterion) for plan in plans)
        else:
            found = self._workers.probe(((self._quantizer.apply(plan), criterion) for plan in plans), self._check_time)
        start = time.monotonic()
        for plan in plans:
            self._check_time()
            self._tell(f"what {plan.describe().removeprefix('fp32, but ')} does alone")
            ran, comparison, movement = next(found) or ({}, None, math.inf)
            if any(ran.get(name) != form for name, form in plan.items()):
                comparison, movement = None, math.inf
            comparison = comparison or Comparison(math.inf, math.inf, math.inf, {})
            self._probes += 1
            self._tick()
            yield Probe(comparison.value, movement, comparison.families, time.monotonic() - start)
            start = time.monotonic()

    def _check_time(self) -> None:
        if self.budget.out_of_time:
            raise OutOfBudget

    def _tick(self) -> None:
        if self._progress is not None:
            probes = len(self._quantizer.layers) if self._probes else 0
            done = self.budget.used + self._probes
            self._progress(done, max(done, self.budget.trials + probes))

    def _tell(self, doing: str) -> None:
        if self._status is not None:
            best = max((trial for trial in self.trials if trial.accepted), key=lambda trial: trial.gain, default=None)
            self._status(Status(doing, best, self.budget.seconds_left))

    def succeeded(self, trial: Trial) -> bool:
        """Whether a trial below fp32 passed everything, the second judge included, and is better than fp32."""
        lowered = set(trial.plan.values()) != {"fp32"}  # fp32 is timed against itself, and may seem faster
        return trial.accepted and lowered and trial.gain > 1 and self._confirmation(trial).get("accepted", True)

    def _confirmation(self, trial: Trial) -> dict[str, Any]:
        """What the second judge says of a trial; empty if there is none."""
        if self._confirm is not None and trial.trial not in self._confirmations:
            self._confirmations[trial.trial] = self._confirm(self._evaluation.compile(trial.planned))
        return self._confirmations.get(trial.trial, {})

    def replay(self, plan: Plan, output: Path, *, probed: tuple[str, ...] = ()) -> TuneResult:
        """Apply, judge and write one plan, whether it passes or not. Raises TuningError when the runtime does not follow it.

        Each layer is probed in the formats `probed`.
        """
        offered = self.offered(tuple(dict.fromkeys((*probed, *plan.values()))))
        trial = self.evaluate(plan.with_schemes(dict(self.resolve(plan).schemes) | dict(plan.schemes)))
        if not trial.followed:
            self._history.remove()
            raise TuningError(f"The plan cannot be applied on this machine: {trial.reason}.")
        if probed:
            with suppress(OutOfBudget):
                self.probe_all(offered)
        confirmed = bool(self._confirmation(trial).get("accepted", True)) if trial.accepted else False
        reason = trial.reason if confirmed or not trial.accepted else "worse than fp32 against the Monte Carlo events"
        return self._result(output, trial, accepted=confirmed, reason=f"{trial.description}: {reason}")

    def finish(self, output: Path) -> TuneResult:
        """Choose the best plan that passed, have it confirmed if there is a second judge, and write it."""
        best: Trial | None = None
        worse = refused = 0
        lowered = (trial for trial in self.trials if trial.accepted and set(trial.plan.values()) != {"fp32"})
        for trial in sorted(lowered, key=lambda trial: trial.gain, reverse=True):
            if self.succeeded(trial):
                best = trial
                break
            worse += trial.gain <= 1
            refused += trial.gain > 1
        return self._result(output, best, accepted=best is not None, reason=account(best, worse, refused, self.trials))

    def _result(self, output: Path, best: Trial | None, *, accepted: bool, reason: str) -> TuneResult:
        """Judge the plan of a trial (fp32 if there is none) on held-out events and write it."""
        plan = Plan.uniform(self._quantizer.layers, "fp32") if best is None else best.planned
        compiled = self._evaluation.compile(plan)
        ran = compiled.precision_report()
        held_out = Comparison(0, 0, 0, {}) if best is None else self._evaluation.held_out(compiled)
        criterion = {
            "name": self._criterion.name,
            "description": self._criterion.description,
            "reference": 0.0,
            "value": held_out.value,
            "low": held_out.low,
            "high": held_out.high,
            "tolerance": self._tolerance,
            "confidence": self._criterion.confidence,
            "floor": self._evaluation.floor(),
            "families": held_out.families,
        }
        result = TuneResult(
            accepted=accepted,
            trials=len(self.trials) + len(self.sensitivity),
            full_evaluations=sum(trial.followed for trial in self.trials),
            events=sum(trial.events for trial in self.trials)
            + self.sensitivity.events(self._evaluation.probe_events, self._evaluation.moved_events),
            seconds=time.monotonic() - self.budget.start,
            plan=dict(plan),
            ran=ran,
            int8_share=int8_share(ran, self._quantizer.layers),
            speedup=1.0 if best is None or best.speedup is None else best.speedup,
            measures={} if best is None else best.measures,
            candidates=listed([trial for trial in self.trials if trial.accepted]),
            criterion=criterion,
            reason=reason,
            path=str(output),
            interrupted=self.interrupted,
            monte_carlo=self._confirmation(best) or None if best is not None else next(iter(self._confirmations.values()), None),
            wrong_kernels=tuple(self._history.wrong_kernels or ()),
            not_offered=self._not_offered,
            schemes={name: str(scheme) for name, scheme in plan.schemes},
            smooth=self._quantizer.smooth,
            fast=self._quantizer.fast_in(plan),
            layers=layer_table(self._quantizer.layers, plan, ran, self._history),
            history=tuple(self.trials),
        )
        self._write(output, plan, result)
        self._history.remove()
        return result

    def _write(self, output: Path, plan: Plan, result: TuneResult) -> None:
        planned = self._quantizer.apply(plan)
        facts = {
            "inference_precision": planned.inference_precision,
            "machine": machine(),
        }
        kept = {name: value for name, value in result.to_dict().items() if name not in ("path", "seconds")}
        speed = {"tuned_over_fp32": result.speedup, "machine": machine()} if self._objectives.timed else None
        plan_file = plan_yaml(
            plan, self._quantizer.layers, self._subject.rewrites, self._quantizer.smooth, self._quantizer.fast_in(plan)
        )
        self._subject.write(output, planned, kept | facts, self._history.content(), plan_file, speed)


def pairs(offered: Mapping[str, tuple[str, ...]]) -> tuple[tuple[str, str], ...]:
    """(layer, format) of all formats below fp32."""
    return tuple((layer, form) for layer, formats in offered.items() for form in formats if form != "fp32")
