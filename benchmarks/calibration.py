"""Are the verdicts right? `python benchmarks/calibration.py REFERENCE.h5 CANDIDATE.h5 [-o FOLDER]`.

Both files hold showers of one Monte Carlo, no shower in both. Null: random halves of sub-samples of REFERENCE are compared; the
chance of a false alarm is known. Power: the defects of tests/planted.py are planted in CANDIDATE; what does a comparison say,
how many events does it say the defect needs, and how often do comparisons of so many find the defect and name it?
REFERENCE and CANDIDATE may be folders of shards, which are planted and measured shard by shard. What is measured is kept in
FOLDER/measured, so that the same files need not be measured again. Writes calibration.json and calibration.png.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from scipy.stats import binom, kstest

from minicarlo.detectors import get_detector
from minicarlo.events import EventSet, events_info, iterate_events
from minicarlo.fidelity import DIFFERS, Measured, Scorecard, compare, measure
from minicarlo.fidelity.classifiers import CLASSIFIERS_ALPHA
from minicarlo.fidelity.comparison import OBSERVABLES_ALPHA
from minicarlo.fidelity.neighbours import CLOSENESS_ALPHA
from minicarlo.fidelity.observables import joined
from minicarlo.fidelity.verdicts import FEWEST

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from planted import DEFECTS, Defect

Sets = tuple[Measured, Measured]

_SHARD = 2000  # events that are planted and measured at once
_ARRAYS = ("energy", "rings", "cells", "voxels", "offsets", "below_cells", "below_energy")


def measured_once(path: Path, plant: Callable[[EventSet], EventSet] | None, events: int | None, kept: Path) -> Measured:
    """The first `events` of a set, with a defect if one is given, measured; or what is kept of an earlier time."""
    if not kept.exists():
        parts, done = [], 0
        for part in iterate_events(path, _SHARD):
            part = part[: None if events is None else events - done]
            done += len(part)
            parts.append(measure(plant(part) if plant else part))
            if done == events:
                break
        found = joined(parts)
        kept.parent.mkdir(parents=True, exist_ok=True)
        named = {f"values {name}": values for name, values in found.values.items()}
        named |= {f"along {name}": values for name, values in found.along.items()}
        np.savez(kept, **named, **{name: getattr(found, name) for name in _ARRAYS})
    with np.load(kept) as arrays:
        detector = get_detector(events_info(path)["detector"])
        return Measured(
            detector=detector,
            threshold_mev=detector.readout_threshold_mev,
            values={name[7:]: arrays[name] for name in arrays.files if name.startswith("values ")},
            along={name[6:]: arrays[name] for name in arrays.files if name.startswith("along ")},
            images={},
            empty=int((np.diff(arrays["offsets"]) == 0).sum()),
            **{name: arrays[name] for name in _ARRAYS},
        )


def disjoint(measured: Measured, events: int, random: np.random.Generator) -> Sets:
    """Two sub-samples without a common event."""
    rows = random.permutation(len(measured))[: 2 * events]
    return measured[rows[:events]], measured[rows[events:]]


def null(
    measured: Measured, *, splits: int, events: int, permutations: int, classifiers: Sequence[str] = (), seed: int = 0
) -> dict[str, Any]:
    """Smallest p-values of all observables, and p-values of classifiers, in random splits; how often they are below alpha."""
    p_values: dict[str, list[float]] = {name: [] for name in ("observables", "duplicates", *classifiers)}
    alarms: dict[str, int] = {}
    for split in range(splits):
        first, second = disjoint(measured, events, np.random.default_rng([seed, split]))
        card = compare(first, second, seed=split, permutations=permutations, bootstrap=10, classifiers=classifiers)
        p_values["observables"].append(min(score.p_value for name, score in card.observables.items() if name != "duplicates"))
        p_values["duplicates"].append(card.observables["duplicates"].p_value)
        for method in classifiers:
            p_values[method].append(card.classifier[method].p_value)
        for name in card.differing:
            alarms[name] = alarms.get(name, 0) + 1
        print(f"\rsplit {split + 1} of {splits}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    nominal = dict.fromkeys(classifiers, CLASSIFIERS_ALPHA / max(len(classifiers), 1)) | {
        "observables": OBSERVABLES_ALPHA,
        "duplicates": CLOSENESS_ALPHA,
    }
    # p-values are whole numbers of permutations: the largest below alpha is the level
    level = nominal | {"observables": (math.ceil(OBSERVABLES_ALPHA * (1 + permutations)) - 1) / (1 + permutations)}
    return {
        "splits": splits,
        "events": events,
        "permutations": permutations,
        "verdicts": {
            name: {
                "level": level[name],
                "alarms": int(np.sum(np.array(values) < nominal[name])),
                "expected": [int(limit) for limit in binom.interval(0.95, splits, level[name])],
                "uniformity": float(kstest(values, "uniform").pvalue),
            }
            for name, values in p_values.items()
        },
        "alarms": alarms,
        "p_values": p_values,
    }


def named(card: Scorecard, defect: Defect) -> bool:
    """Whether an observable that should differ does, in the layer that is wrong."""
    for name in defect.names & set(card.differing):
        score = card.observables[name]
        if defect.layer is None or score.worst_layer in (None, defect.layer):
            return True
    return False


def power(
    reference: Measured,
    clean: Measured,
    planted: Measured,
    defect: Defect,
    *,
    asked: int,
    repeats: int,
    permutations: int,
    factors: Sequence[float],
    seed: int = 0,
) -> dict[str, Any]:
    """What `asked` events on either side say, and how often the defect is found and named with the events which that asks for."""
    first = (
        planted[:asked] if defect.rows is None else clean[:asked][defect.rows(min(asked, len(clean)), np.random.default_rng(5))]
    )
    whole = compare(reference[:asked], first, seed=seed, permutations=permutations, bootstrap=50)
    visible = {name: whole.observables[name].visible_at for name in defect.names & set(whole.observables)}
    found = {name: events for name, events in visible.items() if events is not None}
    result: dict[str, Any] = {
        "defect": defect.words,
        "events": [min(asked, len(reference)), len(first)],
        "differing": whole.differing,
        "headline": whole.headline.model_dump() if whole.headline else None,
        "named": named(whole, defect),
        "observable": min(found, key=lambda name: found[name]) if found else None,
        "visible_at": min(found.values()) if found else None,
        "words": None,
        "trials": [],
    }
    if not found:
        return result
    best = whole.observables[result["observable"]]
    result["words"] = best.difference.words if best.difference else None
    for factor in factors:
        events = max(FEWEST, round(factor * result["visible_at"]))
        if events > min(len(reference), len(planted)):
            continue
        cards = []
        for repeat in range(repeats):
            random = np.random.default_rng([seed, repeat, events])
            rows = random.permutation(len(reference))[:events], random.permutation(len(planted))[:events]
            theirs = planted[rows[1]] if defect.rows is None else clean[rows[1]][defect.rows(events, random)]
            cards.append(compare(reference[rows[0]], theirs, seed=repeat, permutations=permutations, bootstrap=10))
        result["trials"].append(
            {
                "events": events,
                "factor": factor,
                "repeats": repeats,
                "found": sum(card.verdict == DIFFERS for card in cards),
                "named": sum(named(card, defect) for card in cards),
                "first": [card.differing[0] for card in cards if card.differing],
            }
        )
    return result


def _planted(defect: Defect, events: EventSet) -> EventSet:
    return defect.plant(events, np.random.default_rng(3))


def draw(results: dict[str, Any], path: Path) -> None:
    """Cumulative p-values of the splits, and how often defects were found."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    null = results["null"] or {"splits": 0, "p_values": {}}
    for name, values in null["p_values"].items():
        left.step(np.sort(values), np.arange(1, len(values) + 1) / len(values), where="post", label=name)
    left.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="expected")
    left.set(xlabel="p-value", ylabel=f"share of {null['splits']} splits", xlim=(0, 1), ylim=(0, 1))
    left.legend(loc="upper left", frameon=False)
    for name, result in results["power"].items():
        trials = result["trials"]
        if trials:
            shares = [trial["named"] / trial["repeats"] for trial in trials]
            right.plot([trial["factor"] for trial in trials], shares, marker="o", label=name)
    right.axhline(0.9, color="0.6", linewidth=1, linestyle="--")
    right.set(xlabel="events / events that the tool asks for", ylabel="found and named", xscale="log", ylim=(0, 1.05))
    if right.lines[1:]:
        right.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("candidate", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/calibration"))
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--events", type=int, default=1000, help="on either side of a split")
    parser.add_argument("--candidates", type=int, help="showers of CANDIDATE that get defects; default all")
    parser.add_argument("--asked", type=int, default=10_000, help="on either side of the comparison that says how many it takes")
    parser.add_argument("--permutations", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--factors", nargs="*", type=float, default=[0.5, 1], help="of the events asked for, to compare with")
    parser.add_argument("--classifiers", nargs="*", default=["trees"], choices=["trees", "high"])
    parser.add_argument("--defects", nargs="*", default=list(DEFECTS), choices=list(DEFECTS))
    arguments = parser.parse_args()

    kept = arguments.output / "measured"
    reference = measured_once(arguments.reference, None, None, kept / "reference.npz")
    arguments.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "null": null(
            reference,
            splits=arguments.splits,
            events=arguments.events,
            permutations=arguments.permutations,
            classifiers=arguments.classifiers,
        )
        if arguments.splits
        else None,
        "power": {},
    }
    kept_results = arguments.output / "calibration.json"
    kept_results.write_text(json.dumps(results, indent=1))
    if results["null"]:
        print(json.dumps({key: value for key, value in results["null"].items() if key != "p_values"}))
    candidate = partial(measured_once, arguments.candidate, events=arguments.candidates)
    clean = candidate(None, kept=kept / "candidate.npz")
    for name in arguments.defects:
        plant = partial(_planted, DEFECTS[name])
        results["power"][name] = power(
            reference,
            clean,
            candidate(plant, kept=kept / f"candidate, {name}.npz"),
            DEFECTS[name],
            asked=arguments.asked,
            repeats=arguments.repeats,
            permutations=arguments.permutations,
            factors=arguments.factors,
        )
        print(name, json.dumps({key: value for key, value in results["power"][name].items() if key != "headline"}))
        kept_results.write_text(json.dumps(results, indent=1))
    draw(results, arguments.output / "calibration.png")


if __name__ == "__main__":
    main()
