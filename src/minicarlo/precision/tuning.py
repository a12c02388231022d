"""From what a user asks for to a search, and to what it found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from minicarlo.cluster import Where
from minicarlo.engines import has_bf16, has_fp16, machine
from minicarlo.errors import MinicarloError, OutputError, TuningError
from minicarlo.events import events_info
from minicarlo.files import check_writable
from minicarlo.models import Inputs
from minicarlo.precision.budget import Budget, OutOfBudget
from minicarlo.precision.evaluation import Evaluation
from minicarlo.precision.fast_layers import choose_fast
from minicarlo.precision.history import History
from minicarlo.precision.losses import UserFunction
from minicarlo.precision.objectives import TIMED, Objectives, check_measurable, parse_objectives
from minicarlo.precision.plan import FORMATS, RELATIVE_SIZE, Plan
from minicarlo.precision.planfile import PlanFile
from minicarlo.precision.quantization import Quantizer
from minicarlo.precision.remote import workers
from minicarlo.precision.result import Status, TuneResult
from minicarlo.precision.rewriting import with_rewrites
from minicarlo.precision.scheme import RANGES, Scheme
from minicarlo.precision.strategies import Problem, get_strategy
from minicarlo.precision.study import Progress, Study
from minicarlo.precision.subject import Subject
from minicarlo.precision.subjects import is_surrogate, subject_of
from minicarlo.precision.surrogates import SurrogateSubject
from minicarlo.surrogate import Surrogate

ExitPolicy = Literal["first", "exhausted"]

CLEARLY = 0.95
"""Smoother channels are kept if int8 moves events by less than this share of what it does without them."""


def tune(
    model: Any,  # noqa: ANN401
    output: Path | str,
    *,
    inputs: Inputs | Path | str | None = None,
    batch: int | None = None,
    formats: tuple[str, ...] | None = None,
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
    ranges: Sequence[str] = RANGES,
    portable: bool = False,
    smooth: bool | None = None,
    plan: Path | str | None = None,
    sensitivity: bool = False,
    cluster: str | None = None,
    progress: Progress | None = None,
    status: Callable[[Status], None] | None = None,
) -> TuneResult:
    """Lower the precision of a network's layers as far as a criterion allows; write it, tuned, to the new directory `output`.

    A surrogate brings latents, energies and physics criteria of its own. Any other network (`minicarlo.models.read_network`)
    is calibrated and judged on `inputs`: arrays (events, ...) by name, or the path of an .npz file of them, or a function of the
    first and the last event's number that gives such arrays, always the same.

    `objective` is what a plan is to be better at than fp32: "throughput", "latency" (one event), "size" (bytes on disk), "memory"
    (peak), "energy" (where the processor reports it), or "macs" (an estimate for machines too busy to time anything); of several,
    the first decides and the others are measured for every plan. With one that is timed, a surrogate's graph is first rewritten
    into the fastest one that computes the same (see `minicarlo.precision.rewriting`); fp32 then means that graph.

    Candidates run on the same inputs as fp32. A plan passes when the upper bound of the criterion's bootstrap
    interval stays within `tolerance` on `evaluation_events` events and again on as many that the search never saw; with
    `reference`, a path of Monte Carlo events, CERN's figure against these must not be worse either. Of the plans that pass,
    the best is written. The search ends when the strategy has nothing left to try or `max_trials` are made; with
    `exit_policy="first"` at the first plan that passes everything and is better than fp32. Ctrl-C or `time_limit` (seconds) end
    it early with the best so far; a killed run that is started again with the same arguments takes up its history.

    With `plan`, the path of a plan file, nothing is searched: exactly this plan is applied, judged and written, whether it
    passes (`accepted`) or not.

    With `sensitivity`, what each layer does alone in each format is measured in the end, and its time, also where the search had
    no need of it.

    With `cluster` ("local", "ssh:host,host", "slurm:20", "tcp://host:port", … as for `generate`) workers measure what layers do
    alone, side by side, and judge plans that do not depend on one another; what is timed is timed here. The result is the same.

    Arguments:
        model: a surrogate (directory, shipped name, or loaded), the path of an ONNX, .pt2 or .keras file or of a SavedModel, or
            a PyTorch module, an exported program, a Keras model, a JAX function, an OpenVINO model.
        batch: events of one inference, for a network that is no surrogate and takes any number; 64 if nothing is said.
        formats: which of int8, bf16, fp16, w8 and w4 (weights alone in 8 or 4 bits) layers may have; fp32 is always allowed.
            Unless they are named, int8 and bf16, and w8 and w4 where size or latency is the first objective. What the
            processor lacks is not offered, nor is fp16 beside bf16, of which a compiled model has only one.
        criterion: for surrogates "fidelity" (largest relative change of any family of observables, unless another is named),
            "profile" (CERN's figure), or families with weights ("response=2,resolution=1"). For others "relative-l2" (unless
            another is named), "max-error", "cosine", "wasserstein", "accuracy", "module:function", or a function (see
            `minicarlo.precision.losses`).
        ranges: how int8 layers' ranges are found: min-max, percentile, mse or kl, and after it symmetric, if zero is to be the
            middle of the integers (`minicarlo.precision.scheme`). The first is what layers begin with; a layer that alone does
            more than its share of the tolerance is tried with the others, too.
        portable: give int8 weights half of their range, so that sums do not saturate on processors without VNNI either.
        smooth: make the channels between layers smoother before int8 (`minicarlo.precision.smoothing`); None tries it and keeps
            what moves events less.
        calibration_events: events that activation ranges are measured on; a surrogate's cover its whole energy range.

    Raises TuningError, InvalidSurrogate, InvalidModel, MissingExtra, InvalidEventSet, OutputError; with `cluster` also
    InvalidConfig and ClusterError.
    """
    output = Path(output)
    if cluster is not None:
        Where.parse(cluster)
    check_measurable(objectives := parse_objectives(objective))
    usual = ("int8", "bf16", *(("w8", "w4") if objectives[0] in ("size", "latency") else ()))
    wanted = _check(
        usual if formats is None else formats,
        tolerance,
        max_trials,
        time_limit,
        calibration_events,
        evaluation_events,
        exit_policy,
    )
    schemes = tuple(
        dict.fromkeys(replace(scheme, half_range=portable or scheme.half_range) for scheme in map(Scheme.parse, ranges))
    )
    if not schemes:
        raise TuningError(f"No ranges are given; choose among {', '.join(RANGES)}.")
    lacking = _lacking(wanted)
    allowed = tuple(form for form in wanted if form not in lacking)
    if objectives[0] == "size":
        allowed = tuple(sorted(allowed, key=lambda form: (RELATIVE_SIZE[form], FORMATS.index(form))))
    if lacking and allowed == ("fp32",):
        raise TuningError(f"{' '.join(lacking.values())} Allow another format than {', '.join(lacking)}.")
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
    smooth = smooth if given is None else given.smooth
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
        "ranges": list(ranges),
        "portable": portable,
        "smooth": smooth,
        "machine": machine(),
    }
    chosen_strategy = get_strategy(strategy)
    path = output.with_name(f".{output.name}.tuning.jsonl")
    check_writable(path)
    history = History(path, request)
    try:
        quantizer, evaluation = _prepared(subject, evaluation_events, history, smooth if "int8" in allowed else False)
        if given is not None:
            quantizer.fast = given.fast_layers(tuple(quantizer.fast_candidates))
        elif history.fast is not None:
            quantizer.fast = history.fast
        elif objectives[0] in TIMED:
            single = objectives[0] == "latency"
            history.add_fast(choose_fast(quantizer, evaluation, allowed, single=single, seconds=timing_seconds))
        if quantizer.fast:
            evaluation = Evaluation(subject, quantizer, events=evaluation_events)
        confirm = None
        if reference is not None and isinstance(subject, SurrogateSubject):
            confirm = partial(subject.against_monte_carlo, evaluation, path=Path(reference), tolerance=tolerance)
        study = Study(
            subject,
            quantizer,
            evaluation,
            history,
            tolerance=tolerance,
            budget=Budget(max_trials, time_limit),
            objectives=Objectives(objectives, quantizer, evaluation, timing_seconds, history),
            confirm=confirm,
            schemes=schemes,
            not_offered=lacking,
            progress=progress,
            status=status,
        )
        if given is not None:
            return study.replay(given.plan(quantizer.layers), output, probed=allowed if sensitivity else ())
        offered = study.offered(allowed)
        problem = Problem(
            quantizer.layers,
            offered,
            tolerance,
            study.sensitivity,
            study.cost,
            max_trials=max_trials,
            seed=seed,
            resolve=study.resolve,
        )
        search = chosen_strategy(problem)
    except MinicarloError:
        if not history.trials:
            history.remove()
        raise
    try:
        with ExitStack() as stack:
            if cluster is not None:
                reference_model = quantizer.apply(Plan.uniform(quantizer.layers, "fp32"))
                crew = stack.enter_context(workers(cluster, subject, evaluation, reference_model))
                study.with_workers(crew, offered, islice(search.ahead(), max_trials))
            while not study.budget.spent and (asked := search.ask()) is not None:
                search.tell(trial := study.evaluate(asked))
                if exit_policy == "first" and study.succeeded(trial):
                    break
            if sensitivity:
                study.probe_all(offered)
    except (KeyboardInterrupt, OutOfBudget) as stop:
        study.interrupted = isinstance(stop, KeyboardInterrupt)
    return study.finish(output)


def _prepared(subject: Subject, events: int, history: History, smooth: bool | None) -> tuple[Quantizer, Evaluation]:
    """The quantizer, with smoother channels if that is wanted or, unless it is said, if int8 moves events clearly less so."""
    plain = Quantizer.of(subject)
    evaluation = Evaluation(subject, plain, events=events)
    smooth = history.smooth if smooth is None else smooth
    if not plain.smooth_groups or smooth is False:
        return plain, evaluation
    other = Quantizer.of(subject, smooth=True)
    smoother = Evaluation(subject, other, events=events)
    if smooth is None:
        readers = [plain.operations[name] for group in plain.smooth_groups for name in group.readers]
        before, after = (each.movement_in_int8(readers) for each in (evaluation, smoother))
        smooth = after < CLEARLY * before
        history.add_smoothing(smooth, before, after)
    return (other, smoother) if smooth else (plain, evaluation)


def _lacking(wanted: tuple[str, ...]) -> dict[str, str]:
    """Of the formats that are wanted those that cannot be had here, and why."""
    found = {}
    for form, there in (("bf16", has_bf16), ("fp16", has_fp16)):
        if form in wanted and not there():
            found[form] = f"This processor has no arithmetic in {form}."
    if "fp16" in wanted and "bf16" in wanted and not found:
        found["fp16"] = "A compiled model computes in bf16 or in fp16, not in both."
    return found


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
