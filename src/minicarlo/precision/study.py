"""The tuning loop: ask a strategy for plans, try them, keep a history, return the best plan with its evidence."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from minicarlo.engines import machine
from minicarlo.engines.network import OpenVinoNetwork
from minicarlo.errors import MinicarloError, OutputError, TuningError
from minicarlo.events import events_info
from minicarlo.files import check_writable
from minicarlo.models import Inputs
from minicarlo.precision.audit import FORMATS as AUDITED
from minicarlo.precision.audit import check_kernels
from minicarlo.precision.criterion import Comparison
from minicarlo.precision.evaluation import Evaluation
from minicarlo.precision.history import History, plain
from minicarlo.precision.losses import UserFunction
from minicarlo.precision.objectives import TIMED, Objectives, listed, parse_objectives
from minicarlo.precision.plan import FORMATS, Plan, int8_share
from minicarlo.precision.planfile import PlanFile, plan_yaml
from minicarlo.precision.quantization import Quantizer
from minicarlo.precision.rewriting import with_rewrites
from minicarlo.precision.sensitivity import LayerSensitivity
from minicarlo.precision.strategies import Problem, Trial, get_strategy
from minicarlo.precision.subject import Subject
from minicarlo.precision.subjects import is_surrogate, subject_of
from minicarlo.precision.surrogates import SurrogateSubject
from minicarlo.surrogate import Surrogate

Progress = Callable[[int, int], None]
ExitPolicy = Literal["first", "exhausted"]
Confirm = Callable[[OpenVinoNetwork], dict[str, Any]]
"""A second judge: says of a network whether it is `accepted`, and why."""


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
    `floor` (two independent fp32 samples). `wrong_kernels` were not offered to the search. `speedup` is relative to fp32,
    measured (or estimated from multiply-accumulates where nothing is timed); `measures` are the ratios to fp32 by objective.
    `candidates` are all trials that passed, with their measures; `front` marks those that no other beats in all objectives.
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
    history: tuple[Trial, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """For --json; the history is in the surrogate."""
        return {entry.name: plain(getattr(self, entry.name)) for entry in dataclasses.fields(self) if entry.name != "history"}


def tune(
    model: Any,  # noqa: ANN401
    output: Path | str,
    *,
    inputs: Inputs | Path | str | None = None,
    batch: int | None = None,
    formats: tuple[str, ...] = FORMATS,
    criterion: str | UserFunction | None = None,
    tolerance: float = 0.03,
    confidence: float = 0.95,
    max_trials: int = 20,
    time_limit: float | None = None,
    exit_policy: ExitPolicy = "exhausted",
    strategy: str = "pareto",
    seed: int = 1,
    calibration_events: int = 256,
    evaluation_events: int = 2048,
    reference: Path | str | None = None,
    objective: str | Sequence[str] = "throughput",
    timing_seconds: float = 1.0,
    plan: Path | str | None = None,
    progress: Progress | None = None,
    status: Callable[[Status], None] | None = None,
) -> TuneResult:
    """Lower the precision of a network's layers as far as a criterion allows; write it, tuned, to the new directory `output`.

    A surrogate brings latents, energies and physics criteria of its own. Any other network (`minicarlo.models.read_network`)
    is calibrated and judged on `inputs`: arrays (events, ...) by name, or the path of an .npz file of them, or a function of the
    first and the last event's number that gives such arrays, always the same.

    `objective` is what a plan is to be better at than fp32: "throughput", "latency" (one event), "size" (bytes), or "macs" (an
    estimate for machines too busy to time anything); of several, the first decides and the others are measured for every plan.
    With one that is timed, a surrogate's graph is first rewritten into the fastest one that computes the same (see
    `minicarlo.precision.rewriting`); fp32 then means that graph.

    Candidates run on the same inputs as fp32. A plan passes when the upper bound of the criterion's bootstrap
    interval stays within `tolerance` on `evaluation_events` events and again on as many that the search never saw; with
    `reference`, a path of Monte Carlo events, CERN's figure against these must not be worse either. Of the plans that pass,
    the best is written. The search ends when the strategy has nothing left to try or `max_trials` are made; with
    `exit_policy="first"` at the first plan that passes everything and is better than fp32. Ctrl-C or `time_limit` (seconds) end
    it early with the best so far; a killed run that is started again with the same arguments takes up its history.

    With `plan`, the path of a plan file, nothing is searched: exactly this plan is applied, judged and written, whether it
    passes (`accepted`) or not.

    Arguments:
        model: a surrogate (directory, shipped name, or loaded), the path of an ONNX, .pt2 or .keras file or of a SavedModel, or
            a PyTorch module, an exported program, a Keras model, a JAX function, an OpenVINO model.
        batch: events of one inference, for a network that is no surrogate and takes any number; 64 if nothing is said.
        formats: which of int8, bf16, fp32 layers may have; fp32 is always allowed.
        criterion: for surrogates "fidelity" (largest relative change of any family of observables, unless another is named) or
            "profile" (CERN's figure). For others "relative-l2" (unless another is named), "max-error", "cosine", "wasserstein",
            "accuracy", "module:function", or a function (see `minicarlo.precision.losses`).
        calibration_events: events that activation ranges are measured on; a surrogate's cover its whole energy range.

    Raises TuningError, InvalidSurrogate, InvalidModel, MissingExtra, InvalidEventSet, OutputError.
    """
    output = Path(output)
    allowed = _check(formats, tolerance, max_trials, time_limit, calibration_events, evaluation_events, exit_policy)
    objectives = parse_objectives(objective)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"Cannot write {output}: there is already something of that name; remove it or choose another name.")
    if reference is not None:
        events_info(reference)  # fails now if it cannot be read
    given = None if plan is None else PlanFile.read(plan)
    if given is not None and given.rewrites and not is_surrogate(model):
        raise TuningError(f"Plan {plan} belongs to a surrogate: it rewrites the graph. Give the surrogate.")
    if given is not None and is_surrogate(model):
        model = with_rewrites(model if isinstance(model, Surrogate) else Surrogate.load(model), given.rewrites)
    subject = subject_of(
        model,
        inputs=inputs,
        criterion=criterion,
        confidence=confidence,
        batch=batch,
        calibration_events=calibration_events,
        rewrite=not TIMED.isdisjoint(objectives) and given is None,
        seed=seed,
    )
    if reference is not None and not isinstance(subject, SurrogateSubject):
        raise TuningError("Monte Carlo events can judge a surrogate only; leave out the reference.")
    request = {
        "model": subject.digest,
        "formats": list(allowed),
        "criterion": subject.criterion.name,
        "tolerance": tolerance,
        "confidence": confidence,
        "strategy": strategy if given is None else given.layers,
        "seed": seed,
        "calibration_events": calibration_events,
        "evaluation_events": evaluation_events,
        "objective": list(objectives),
        "machine": machine(),
    }
    chosen_strategy = get_strategy(strategy)
    path = output.with_name(f".{output.name}.tuning.jsonl")
    check_writable(path)
    quantizer = Quantizer.of(subject)
    evaluation = Evaluation(subject, quantizer, events=evaluation_events)
    confirm = None
    if reference is not None and isinstance(subject, SurrogateSubject):
        confirm = partial(subject.against_monte_carlo, evaluation, path=Path(reference), tolerance=tolerance)
    study = Study(
        subject,
        quantizer,
        evaluation,
        history := History(path, request),
        tolerance=tolerance,
        budget=Budget(max_trials, time_limit),
        objectives=Objectives(objectives, quantizer, evaluation, timing_seconds),
        confirm=confirm,
        progress=progress,
        status=status,
    )
    try:
        if given is not None:
            return study.replay(given.plan(quantizer.layers), output)
        wrong = {(check["layer"], check["format"]) for check in study.wrong_kernels(allowed)}
        offered = {layer.name: tuple(f for f in allowed if (layer.name, f) not in wrong) for layer in quantizer.layers}
        search = chosen_strategy(
            Problem(quantizer.layers, offered, tolerance, study.sensitivity, study.cost, max_trials=max_trials, seed=seed)
        )
    except MinicarloError:
        if not history.trials:
            history.remove()
        raise
    try:
        while not study.budget.spent and (asked := search.ask()) is not None:
            search.tell(trial := study.evaluate(asked))
            if exit_policy == "first" and study.succeeded(trial):
                break
    except (KeyboardInterrupt, OutOfBudget) as stop:
        study.interrupted = isinstance(stop, KeyboardInterrupt)
    return study.finish(output)


class OutOfBudget(Exception):
    """The time is up in the middle of a strategy's measurements."""


class Budget:
    """Trials and seconds that may still be spent."""

    def __init__(self, trials: int, seconds: float | None) -> None:
        self.trials, self.used = trials, 0
        self.start = time.monotonic()
        self._end = math.inf if seconds is None else self.start + seconds

    @property
    def out_of_time(self) -> bool:
        """Whether the seconds are spent."""
        return time.monotonic() >= self._end

    @property
    def seconds_left(self) -> float | None:
        """What is left of the seconds; None without a limit."""
        return None if math.isinf(self._end) else max(self._end - time.monotonic(), 0.0)

    @property
    def spent(self) -> bool:
        """Whether trials or seconds are spent."""
        return self.used >= self.trials or self.out_of_time


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
        progress: Progress | None,
        status: Callable[[Status], None] | None,
    ) -> None:
        self._subject, self._criterion, self._confirm, self._status = subject, subject.criterion, confirm, status
        self._quantizer, self._evaluation, self._history = quantizer, evaluation, history
        self._tolerance, self.budget, self._objectives, self._progress = tolerance, budget, objectives, progress
        self._known = {Plan.of(trial.plan).key: trial for trial in history.trials}
        self._confirmations: dict[int, dict[str, Any]] = {}
        self.interrupted = False
        self._probes = 0
        self.sensitivity = LayerSensitivity(quantizer.layers, self._probe, history.sensitivities, self._record)
        self._probe_seconds = 0.0
        self.cost = objectives.cost
        self.trials: list[Trial] = []

    def wrong_kernels(self, formats: tuple[str, ...]) -> list[dict[str, Any]]:
        """The kernels that compute something else than they should (see `minicarlo.precision.audit`); none for fp32."""
        if self._history.wrong_kernels is None:
            self._tell("whether the kernels compute what they should")
            checks = check_kernels(self._subject, self._quantizer, [form for form in formats if form in AUDITED])
            self._history.add_audit([plain(check.__dict__) for check in checks if check.wrong])
        return self._history.wrong_kernels or []

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
        comparison, events, passed = self._evaluation.search_until_certain(network, self._tolerance)
        held_out = self._evaluation.held_out(network) if passed else None
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

    def _probe(self, plan: Plan) -> float:
        if self.budget.out_of_time:
            raise OutOfBudget
        start = time.monotonic()
        self._tell(f"what {plan.describe().removeprefix('fp32, but ')} does alone")
        try:
            network = self._evaluation.compile(plan)
            ran = network.precision_report()  # of layers without a plan, too
            followed = all(ran.get(name) == form for name, form in plan.items())
        except RuntimeError:
            followed = False
        value = self._evaluation.probe(network).value if followed else math.inf
        self._probes += 1
        self._probe_seconds = time.monotonic() - start
        self._tick()
        return value

    def _record(self, layer: str, form: str, value: float) -> None:
        self._history.add_sensitivity(layer, form, value, self._probe_seconds)

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
            self._confirmations[trial.trial] = self._confirm(self._evaluation.compile(Plan.of(trial.plan)))
        return self._confirmations.get(trial.trial, {})

    def replay(self, plan: Plan, output: Path) -> TuneResult:
        """Apply, judge and write one plan, whether it passes or not. Raises TuningError when the runtime does not follow it."""
        self.wrong_kernels(tuple(dict.fromkeys(plan.values())))
        trial = self.evaluate(plan)
        if not trial.followed:
            self._history.remove()
            raise TuningError(f"The plan cannot be applied on this machine: {trial.reason}.")
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
        return self._result(output, best, accepted=best is not None, reason=_account(best, worse, refused, self.trials))

    def _result(self, output: Path, best: Trial | None, *, accepted: bool, reason: str) -> TuneResult:
        """Judge the plan of a trial (fp32 if there is none) on held-out events and write it."""
        plan = Plan.uniform(self._quantizer.layers, "fp32") if best is None else Plan.of(best.plan)
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
            events=sum(trial.events for trial in self.trials) + len(self.sensitivity) * self._evaluation.probe_events,
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
            "layers": [layer.__dict__ for layer in self._quantizer.layers],
        }
        kept = {name: value for name, value in result.to_dict().items() if name not in ("path", "seconds")}
        speed = {"tuned_over_fp32": result.speedup, "machine": machine()} if self._objectives.timed else None
        plan_file = plan_yaml(plan, self._quantizer.layers, self._subject.rewrites)
        self._subject.write(output, planned, kept | facts, self._history.content(), plan_file, speed)


def _account(best: Trial | None, worse: int, refused: int, trials: list[Trial]) -> str:
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


def _check(
    formats: tuple[str, ...],
    tolerance: float,
    max_trials: int,
    time_limit: float | None,
    calibration_events: int,
    evaluation_events: int,
    exit_policy: str,
) -> tuple[str, ...]:
    unknown = [form for form in formats if form not in FORMATS]
    if unknown:
        raise TuningError(f"Format {unknown[0]!r:.40} is unknown; choose among {', '.join(FORMATS)}.")
    if not 0 < tolerance < 10:
        raise TuningError(
            f"The tolerance must be above zero, not {tolerance:g}; 0.03 means that nothing may move by more than 3 %."
        )
    if max_trials < 1 or (time_limit is not None and not time_limit > 0):
        raise TuningError(
            f"The budget must be at least one trial and above zero seconds, not {max_trials} trials and {time_limit} seconds."
        )
    if calibration_events < 16 or evaluation_events < 100:
        raise TuningError(
            f"At least 16 calibration events and 100 evaluation events are needed, "
            f"not {calibration_events} and {evaluation_events}."
        )
    if exit_policy not in ("first", "exhausted"):
        raise TuningError(f"Exit policy {exit_policy!r:.40} is unknown; choose first or exhausted.")
    return tuple(form for form in FORMATS if form in formats or form == "fp32")
