"""What the report shows below its first screen, made from the results of the other verbs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minicarlo.events import PHI, THETA
from minicarlo.fidelity.scorecard import Scorecard
from minicarlo.report import classifiers, energy, images, sensitivity, speed, tuning
from minicarlo.report.contents import Group, Note, Plot, Section
from minicarlo.report.figure import number
from minicarlo.report.inputs import History, tuned_layers
from minicarlo.report.names import classifier_title
from minicarlo.report.observables import notes, observable_sections
from minicarlo.report.scores import Cell, Grid, observable_scores, plus_minus, verdict_cell, whole_shower_scores

_SCORES = (
    "Difference: the most telling one, with its bootstrap error. p: the chance that any observable of a perfect candidate looks "
    "as different as this one. Separation: half the sum of (h₁ − h₂)² / (h₁ + h₂) over the bins of unit-normalised histograms; "
    "0 is identical, 1 disjoint. Distance: Wasserstein-1 in standard deviations of the reference; for profiles, linearity, "
    "resolution and correlations the mean deviation. Floor: the same between two halves of the reference, brought to these "
    "sample sizes. KS: Kolmogorov-Smirnov. Shows with: events on either side at which the difference is found with 90 % power. "
    "Asks for: events at which a difference of the tolerance would be found."
)
_CONDITIONAL = (
    "p-values of every observable in bins of incident energy, corrected for the number of tests. ✗: differs; n: not enough "
    "events to say. The worst bin of each observable is framed, unless nothing in it is worth a look."
)
_CLASSIFIERS = (
    "A classifier is trained to tell the candidate from the reference and tested on events it has not seen. An area under the "
    "ROC curve of 0.5 means that it cannot; the floor is the same between two halves of the reference. Small dots: every run."
)
_TUNING = (
    "Which number format each layer computes in. Plans were compared with FP32 on the same latents and incident energies; "
    "“ran as” is what the runtime reports about the compiled model."
)
_SENSITIVITY = (
    "Every layer alone in a lower format, all others in FP32. Beside the bars: the family of observables that moves most. "
    "The dashed line is the tolerance for the whole network, the badge the format that was chosen."
)
_IMAGES = (
    "Mean of all showers, projected along the third axis. One logarithmic scale of colours per row; ratios from half to double."
)
_BY_ANGLE = (
    "p-values of every observable, at fixed incident energy, in bins of the angles of incidence, corrected for the number of "
    "tests. ✗: differs; n: not enough events for the tolerance. The worst bin of each observable is framed."
)
_ANGLES = {THETA: "angle to the normal", PHI: "azimuth"}
_IMAGE_TITLES = {"zx": "Side view", "zy": "View from above", "xy": "Front view"}


def sections(
    cards: Mapping[str, Scorecard],
    reference: str,
    tuned: Mapping[str, Any] | None,
    history: History,
    bench: Mapping[str, Any] | None,
) -> tuple[Section, ...]:
    """All sections that there is something to show in."""
    found = [
        Section("Scores", _SCORES, tables=(("", observable_scores(cards)),)),
        Section("By energy", _CONDITIONAL, _conditional(cards)),
        Section("By angle", _BY_ANGLE, _by_angle(cards)),
        *observable_sections(cards, reference),
        _average_showers(cards, reference),
        _correlations(cards, reference),
        _classifiers(cards, reference),
        _tuning(tuned, history) if tuned else None,
        _speed(bench) if bench and bench.get("runs") else None,
    ]
    return tuple(section for section in found if section and (section.groups or section.tables))


def _conditional(cards: Mapping[str, Scorecard]) -> tuple[Group, ...]:
    plots = tuple(
        Plot(label, energy.conditional(card.observables, title=f"p-values by energy of {label}"))
        for label, card in cards.items()
        if any(score.bins for score in card.observables.values())
    )
    return (Group("", plots, "one"),) if plots else ()


def _by_angle(cards: Mapping[str, Scorecard]) -> tuple[Group, ...]:
    angles = dict.fromkeys(
        angle for card in cards.values() for score in card.observables.values() for angle in score.angles or ()
    )
    plots = tuple(
        Plot(
            f"{label}, {_ANGLES.get(angle, angle)}",
            energy.conditional(card.observables, title=f"p-values by angle of {label}", condition=angle),
        )
        for angle in sorted(angles, reverse=True)
        for label, card in cards.items()
        if any(angle in (score.angles or ()) for score in card.observables.values())
    )
    return (Group("", plots, "one"),) if plots else ()


def _average_showers(cards: Mapping[str, Scorecard], reference: str) -> Section:
    plots = []
    for name in next(iter(cards.values())).images:
        if all(name in card.images for card in cards.values()):
            title = _IMAGE_TITLES.get(name, f"Projection {name}")
            plots.append(Plot(title, images.average_showers(name, cards, reference, title=title)))
            ratio = f"{title}, ratio to {reference}"
            plots.append(Plot(ratio, images.shower_ratios(name, cards, reference, title=title)))
    return Section("Average showers", _IMAGES, (Group("", tuple(plots), "one"),) if plots else ())


def _correlations(cards: Mapping[str, Scorecard], reference: str) -> Section:
    plots = tuple(
        Plot(
            label,
            images.correlation_matrices(card.correlations, label, reference),
            "",
            _only(notes(cards, "correlation"), index),
        )
        for index, (label, card) in enumerate(cards.items())
        if card.correlations
    )
    text = "Pearson coefficients, at fixed incident energy, of quantities of the shower and the energy fractions of its layers."
    return Section("Correlations", text, (Group("", plots, "one"),) if plots else ())


def _classifiers(cards: Mapping[str, Scorecard], reference: str) -> Section:
    methods = list(dict.fromkeys(name for card in cards.values() for name in card.classifier))
    found = {
        name: {label: score for label, card in cards.items() if (score := card.classifier.get(name)) is not None}
        for name in methods
    }
    found = {name: scores for name, scores in found.items() if scores}
    groups: list[Group] = []
    if found:
        groups.append(Group("", (Plot("Areas under the ROC curve", classifiers.areas(found)),), ""))
    labels = list(cards)
    plots = tuple(
        Plot(
            f"{label}: {classifier_title(method)}",
            classifiers.score_distribution(method, label, score, reference, labels.index(label)),
            "",
            (Note(labels.index(label), verdict_cell(score.verdict), f"AUC {plus_minus(score.auc, score.error)}"),),
        )
        for method, scores in found.items()
        for label, score in scores.items()
    )
    groups += [Group("Scores of held-out events", plots)] if plots else []
    grid = whole_shower_scores(cards)
    tables = (("All features at once", grid),) if grid.rows else ()
    return Section("Classifiers", _CLASSIFIERS, tuple(groups), tables)


def _only(notes: tuple[Note, ...], candidate: int) -> tuple[Note, ...]:
    return tuple(note for note in notes if note.candidate == candidate)


def _tuning(tuned: Mapping[str, Any], history: History) -> Section:
    criterion = tuned.get("criterion") or {}
    tolerance = criterion.get("tolerance")
    name = f"loss ({criterion.get('name', 'criterion')})"
    plots = []
    if history.trials:
        caption = "A point per plan, with its confidence interval; lower and further right is better."
        plots.append(Plot("Tuning history", tuning.trials_picture(history.trials, tolerance, name), caption))
    groups = [Group("", tuple(plots), "")] if plots else []
    layers = tuned_layers(tuned, history)
    if any(layer.harm for layer in layers):
        picture = sensitivity.picture(layers, tolerance, name)
        plot = Plot("Which layers hold the physics", picture, _SENSITIVITY)
        groups.append(Group("", (plot,), "one"))
    if any(trial.ran for trial in history.trials):
        caption = "What the runtime ran each layer in. ✓: accepted."
        groups.append(Group("", (Plot("Formats by layer and trial", tuning.plans_picture(history.trials), caption),), "one"))
    ran = tuned.get("ran") or {}
    rows = tuple(
        (Cell(str(layer), head=True), Cell(str(planned)), Cell(form, "" if form == str(planned) else "bad"))
        for layer, planned in tuned["plan"].items()
        for form in (str(ran.get(layer, "unknown")),)
    )
    return Section(
        "Numerical precision", _TUNING, tuple(groups), (("Precision plan", Grid(("layer", "planned", "ran as"), rows)),)
    )


def _speed(bench: Mapping[str, Any]) -> Section:
    runs = bench["runs"]
    simulator = bench.get("simulator")
    simulator = simulator if isinstance(simulator, Mapping) else {}
    cost = simulator.get("seconds_per_event")
    rate = 1 / cost if isinstance(cost, float) and cost > 0 else None
    name = str(simulator.get("name", "simulator")).split()
    plots = [
        Plot("Throughput", speed.throughput(runs, name[0] if name else "simulator", rate), "Median and spread of the windows.")
    ]
    swept = bench.get("sweep") or []
    for precision in dict.fromkeys(point["precision"] for point in swept):
        points = [point for point in swept if point["precision"] == precision]
        plots.append(Plot(f"Batch and streams, {speed.precision_title(precision)}", speed.sweep(points, precision)))
    header = ("precision", "streams", "batch", "showers/s", "spread", "ms, batch 1")
    numbers = ("events_per_second", "spread", "milliseconds_batch_1")
    rows = tuple(
        (
            Cell(speed.precision_title(run["precision"]), head=True),
            *(Cell(str(run[key])) for key in ("streams", "batch")),
            *(Cell(number(run.get(key))) for key in numbers),
        )
        for run in runs
    )
    words = machine_words(bench.get("machine"))
    text = f"Measured in interleaved windows of one run, so that other load cancels in the ratios. Machine: {words}."
    return Section("Speed", text, (Group("", tuple(plots), ""),), (("Measured runs", Grid(header, rows)),))


def machine_words(machine: object) -> str:
    """The processor, its cores and instructions, in a few words."""
    if not isinstance(machine, Mapping):
        return str(machine)
    instructions = machine.get("instructions")
    shown = " ".join(map(str, instructions)) if isinstance(instructions, list | tuple) else ""
    parts = (machine.get("processor"), f"{machine.get('cores')} cores", shown, f"OpenVINO {machine.get('openvino')}")
    return ", ".join(str(part) for part in parts if part)
