"""The report: one file that loads nothing, runs nothing, escapes everything and shows what it was given."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from click.testing import CliRunner

from browser import CHROMIUM, Browser
from minicarlo.cli import main
from minicarlo.errors import IncompatibleEventSets, InvalidConfig, OutputError
from minicarlo.events import EventSet, write_events
from minicarlo.fidelity import Scorecard, validate
from minicarlo.report import report
from minicarlo.report.contents import Plot, Section
from minicarlo.report.export import write_figures
from minicarlo.report.figure import PALETTE, number, plain
from minicarlo.report.inputs import History, read_bench, read_history
from minicarlo.report.overview import overview
from minicarlo.report.page import render
from minicarlo.report.scores import observable_scores
from minicarlo.report.sections import sections
from minicarlo.report.tuning import pareto
from small_surrogate import LAYERS, make_small_surrogate

EVIL = "<script>document.title='owned'</script>\"'><img src=x onerror=alert(1)> $x_{2"


def events(count: int = 120, seed: int = 0, scale: float = 1.0, attributes: dict[str, Any] | None = None) -> EventSet:
    """Blurred showers: gamma-shaped in depth, exponential across, Poisson in number of hits."""
    random = np.random.default_rng(seed)
    energy = np.exp(random.uniform(np.log(1e3), np.log(1e5), count)).astype(np.float32)
    depth = np.arange(25) + 0.5
    profile = depth**2.5 * np.exp(-depth / 4.0)
    across = np.exp(-np.hypot(*np.mgrid[-12:13, -12:13]) / 1.6)
    mean = np.einsum("z,xy->zxy", profile / profile.sum(), across / across.sum())
    hits = random.poisson(scale * 0.1 * energy[:, None, None, None] * mean)
    samples = (hits * 0.25 * random.uniform(0.8, 1.2, hits.shape)).astype(np.float32)
    return EventSet(
        {"incident_energy": energy}, samples, "clic-ecal", attributes or {"generator": "Geant4 11.4.1", "particle": "e-"}
    )


def card(shift: float = 0.0, verdict: str = "indistinguishable") -> Scorecard:
    """A scorecard made by hand, checked against the real one's fields."""
    edges = np.linspace(0.02, 0.04, 21)
    shape = 1000 * np.exp(-0.5 * ((edges[:-1] - 0.03) / 0.003) ** 2)
    x = (np.arange(25) + 0.5) * 5.05
    curve = x**2 * np.exp(-x / 25)
    score = {"value": 0.01 + shift, "error": 0.002, "floor": 0.009}
    distances = {"separation_power": score, "wasserstein": score, "kolmogorov_smirnov": score}
    bins = [
        {"low": 1e3 * 2**k, "high": 2e3 * 2**k, "events": 100, "p_value": p, "verdict": word}
        for k, (p, word) in enumerate([(0.4, "indistinguishable"), (0.001, "differs"), (None, "not enough events")])
    ]
    difference = {"value": 1.2, "error": 0.3, "unit": "%", "words": "mean 1.2 ± 0.3 % higher"}
    observable = {"p_value": 0.4, **distances, "bins": bins, "worst_bin": 1, "difference": difference, "needed": 5000}
    layers = [{"layer": layer, **distances} for layer in range(3)]
    response = {"reference": 0.03, "reference_error": 1e-4, "candidate": 0.03 * (1 + shift), "candidate_error": 1e-4}
    events = {"reference_events": 100, "candidate_events": 100}
    intervals = [
        {"low": 1e3 * 2**k, "high": 2e3 * 2**k, "ratio": 1 + shift, "error": 0.01, **response, **events} for k in range(6)
    ]
    fit = {"stochastic": 0.12, "noise": 0.0, "constant": 0.03}

    def profile(values: np.ndarray) -> dict[str, Any]:
        changed = values * (1 + shift)
        errors = {"reference_error": (0.02 * values).tolist(), "candidate_error": (0.02 * changed).tolist()}
        both = {"reference": values.tolist(), "candidate": changed.tolist()}
        return {"x": x.tolist(), **both, **errors, "unit": "MeV", "x_unit": "mm"}

    def histogram(edges: np.ndarray, unit: str) -> dict[str, Any]:
        counts = {
            "reference": np.round(shape).astype(int).tolist(),
            "candidate": np.round(shape * (1 + shift)).astype(int).tolist(),
        }
        return {"edges": edges.tolist(), **counts, "unit": unit}

    image = np.outer(curve, curve).tolist()
    sample = {"path": None, "events": 120, "low_mev": 1e3, "high_mev": 1e5, "empty": 0, "duplicates": 0}
    seeds = [{"auc": 0.52, "jsd": 0.01}, {"auc": 0.54, "jsd": 0.02}]
    auc = {"auc": 0.53, "error": 0.01, "floor": 0.5, "p_value": 0.2, "verdict": verdict, "jsd": 0.015, "seeds": seeds}
    profiles = {"longitudinal": profile(curve), "lateral": profile(np.exp(-x / 20))}
    worth = {"events": 1234, "observable": "layer_energy", "low": 900, "high": 1700}
    names = ["response", "centre_z", *(f"layer_fraction_{layer}" for layer in range(6)), "layer_fraction_x"]
    return Scorecard.model_validate(
        {
            "verdict": verdict,
            "observables": {
                "response": {"verdict": "indistinguishable", **observable},
                "layer_energy": {"verdict": verdict, **observable, "visible_at": 1234, "worst_layer": 1, "layers": layers},
                "longitudinal_profile": {"verdict": "not enough events", "p_value": 0.1, "deviation": score},
            },
            "classifier": {"high": {**auc, "edges": [0, 1], "reference": [1], "candidate": [1]}, "trees": None, "low": None},
            "fpd": score,
            "kpd": score,
            "cern_error": {**score, "as_coded": 0.02, "profiles": score, "bins": [{**score, "low": 1e3, "high": 1e4}] * 2},
            "response": intervals,
            "resolution": intervals,
            "resolution_fit": {"reference": fit, "candidate": fit},
            "histograms": {"response": histogram(edges, ""), "cell_energy": histogram(np.geomspace(0.05, 100, 21), "MeV")},
            "layer_histograms": {"layer_energy": [histogram(edges, "MeV")] * 3},
            "profiles": profiles,
            "energy_profiles": [{"low": 1e3, "high": 1e4, **profiles}, {"low": 1e4, "high": 1e5, **profiles}],
            "images": {"zx": {"reference": image, "candidate": image}, "pr": {"reference": image, "candidate": image}},
            "correlations": {"names": names, "reference": np.eye(9).tolist(), "candidate": (np.eye(9) * 0.9).tolist()},
            "detector": "clic-ecal",
            "threshold_mev": 0.05,
            "reference": sample,
            "candidate": sample,
            "headline": None if verdict == "indistinguishable" else worth,
            "manifold": dict.fromkeys(("precision", "recall", "density", "coverage"), score),
            "warnings": ["Few events."],
        }
    )


PLAN = {"energies.0": "fp32", "shape.conv1": "int8", "shape.conv2": "int8", "shape.dense": "bf16"}
TUNING = {
    "accepted": True,
    "plan": PLAN,
    "ran": PLAN,
    "int8_share": 0.62,
    "criterion": {"name": "profile", "reference": 0.0, "value": 0.004, "low": 0.003, "high": 0.006, "tolerance": 0.01},
}
ALL_INT8 = dict.fromkeys(PLAN, "int8")
HISTORY = [
    {"kind": "request", "surrogate": "0"},
    {"kind": "sensitivity", "layer": "energies.0", "format": "int8", "value": 0.02, "seconds": 0.4},
    {"kind": "sensitivity", "layer": "shape.dense", "format": "int8", "value": None, "seconds": 0.4},
    {
        **{"kind": "trial", "trial": 1, "accepted": False, "description": "all INT8", "ran": ALL_INT8},
        **{"speedup": 3.6, "speedup_spread": 0.1, "value": 0.03, "low": 0.02, "high": 0.04},
    },
    {
        **{"kind": "trial", "trial": 2, "accepted": True, "description": "energies.0 in FP32", "ran": PLAN},
        **{"speedup": 3.1, "speedup_spread": None, "value": 0.004, "low": 0.003, "high": 0.006},
    },
]
BENCH = {
    "machine": "two cores",
    "runs": [
        {"engine": "openvino", "precision": "fp32", "streams": 1, "batch": 64, "events_per_second": 310.0, "spread": 9.0},
        {"engine": "openvino", "precision": "tuned", "streams": 2, "batch": 64, "events_per_second": 1893.0, "spread": 40.0},
    ],
    "speedup": {"tuned_over_fp32": 3.16, "bf16_over_fp32": 1.7, "streams": 1.9, "over_simulator": 240.0},
    "sweep": [
        {"precision": "tuned", "streams": streams, "batch": batch, "events_per_second": 100.0 * streams * batch, "spread": 9.0}
        for streams in (1, 2)
        for batch in (1, 8, 64)
    ],
}


def history() -> History:
    return read_history(map(json.dumps, HISTORY))


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@functools.cache
def page() -> str:
    return render_page()


def parts(cards: dict[str, Scorecard], reference: str, tuning: Any, bench: Any) -> tuple[Plot, tuple[Section, ...]]:
    found = sections(cards, reference, tuning, history() if tuning else History(), bench)
    return Plot("All observables", overview(cards, reference)), found


def render_page(cards: dict[str, Scorecard] | None = None, *, only: tuple[str, ...] | None = None, **changes: Any) -> str:
    """The page, or the part of it in the sections `only`; drawing all of them takes its time."""
    cards = cards or {"FP32": card(), "tuned": card(0.03, "differs")}
    arguments: dict[str, Any] = {
        "title": "clic-ecal against Geant4",
        "lead": "A few showers.",
        "reference": "Geant4",
        "tuning": TUNING,
        "bench": BENCH,
        "provenance": {"Surrogate": "small"},
        **changes,
    }
    hero, found = parts(cards, *(arguments[name] for name in ("reference", "tuning", "bench")))
    return render(cards, hero, [section for section in found if only is None or section.slug in only], **arguments)


@functools.cache
def evil_page() -> str:
    bad = card().to_dict()
    bad["observables"][EVIL] = {
        **bad["observables"]["response"],
        "difference": {"value": 1, "error": 1, "unit": EVIL, "words": EVIL},
    }
    bad["warnings"] = [EVIL]
    bad["histograms"][EVIL] = {**bad["histograms"]["response"], "unit": EVIL}
    bad["headline"] = {"events": 1, "observable": EVIL, "words": EVIL}
    bad["classifier"][EVIL] = bad["classifier"]["high"]
    bad["images"][EVIL] = bad["images"]["zx"]
    bad["correlations"]["names"][1:3] = [EVIL, f"layer_fraction_{EVIL}"]
    worst = Scorecard.model_validate(bad)
    run = {**BENCH["runs"][0], "precision": EVIL}  # type: ignore[index]
    return render_page(
        {EVIL: worst, "__" + EVIL: worst, "\x00\ud800": worst},
        title=EVIL,
        lead=EVIL,
        reference=EVIL,
        tuning={**TUNING, "plan": {EVIL: EVIL}, "ran": {EVIL: EVIL}, "criterion": {**TUNING["criterion"], "name": EVIL}},  # type: ignore[dict-item]
        bench={**BENCH, "machine": {EVIL: EVIL}, "runs": [run], "sweep": [{**BENCH["sweep"][0], "precision": EVIL}]},  # type: ignore[index]
        provenance={EVIL: EVIL},
    )


def test_page_loads_nothing_and_runs_nothing() -> None:
    elements = Elements(page()).found
    policy = next(a["content"] for _, a in elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert not {tag for tag, _ in elements} & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for _, attributes in elements:
        assert not {name for name in attributes if name.startswith("on") or name in ("style", "srcset", "action")}
        assert (attributes.get("href") or "#").startswith("#")
        assert (attributes.get("src") or "data:image/svg+xml,").startswith("data:image/svg+xml,")


def test_style_matches_its_hash_in_the_policy() -> None:
    html = page()
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    assert base64.b64encode(hashlib.sha256(style.group(1).encode()).digest()).decode() in html


def test_names_from_files_stay_text() -> None:
    elements = Elements(evil_page()).found
    assert not [tag for tag, attributes in elements if tag == "script" or "onerror" in attributes]
    assert {str(attributes["src"])[:24] for tag, attributes in elements if tag == "img"} == {"data:image/svg+xml,<?xml"}


@pytest.mark.parametrize("make", [page, evil_page])
def test_every_picture_is_well_formed_and_holds_no_script_or_address(make: Any) -> None:
    sources = [a["src"] for tag, a in Elements(make()).found if tag == "img"]
    assert len(sources) >= 8
    for source in sources:
        text = unquote(str(source).split(",", 1)[1])
        for element in ElementTree.fromstring(text).iter():
            assert element.tag.split("}")[1] != "script"
            for name, value in element.attrib.items():
                assert not name.startswith("on")
                assert "href" not in name or value.startswith(("#", "data:image/png;base64,"))


def test_every_picture_has_words_and_its_numbers() -> None:
    html = page()
    pictures = [attributes for tag, attributes in Elements(html).found if tag == "img"]
    assert all(attributes["alt"] for attributes in pictures)
    assert html.count("<details>") == len(pictures)
    assert "tuned differs from the reference by up to 3.0 %" in html


def test_contents_lead_to_every_section() -> None:
    elements = Elements(page()).found
    wanted = [str(attributes["href"])[1:] for tag, attributes in elements if tag == "a"]
    assert len(wanted) == len(set(wanted)) >= 12
    assert set(wanted) <= {attributes.get("id") for _, attributes in elements}


def test_headings_skip_no_level() -> None:
    levels = [int(tag[1]) for tag, _ in Elements(page()).found if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(deeper - level <= 1 for level, deeper in zip(levels, levels[1:], strict=False))


def test_summary_states_verdict_speed_plan_and_cost() -> None:
    text = re.sub(r"<[^>]+>", " ", page())
    for words in (
        "Differs from Geant4",
        "1 of 3 observables alike",
        "is worth 1,234 Geant4 showers",
        "900 to 1,700",
        "First seen in: layer energies",
        "3.16 ×",
        "240 times the simulator",
        "62 % INT8",
        "The runtime followed the plan",
        "0.40 %",
        "tolerance 1.0 %",
    ):
        assert words in text, words


def test_a_plan_that_the_runtime_did_not_follow_is_said() -> None:
    html = render_page(tuning={**TUNING, "ran": {**PLAN, "shape.conv1": "fp32"}}, only=("numerical-precision",))
    assert "did not follow the plan" in html
    assert '<td class="bad">fp32</td>' in html


def test_missing_parts_leave_no_gap() -> None:
    _, found = parts({"one": card()}, "Geant4", None, None)
    assert not {"Numerical precision", "Speed"} & {section.title for section in found}
    html = render_page({"one": card()}, tuning=None, bench=None, provenance=None, only=())
    assert html.count('class="tile ') == 4


def test_a_scorecard_of_an_earlier_version_makes_a_page() -> None:
    old = card().to_dict()
    for score in old["observables"].values():
        for name in ("bins", "worst_bin", "difference", "visible_at", "needed", "kolmogorov_smirnov"):
            score.pop(name, None)
    old |= {"manifold": None, "headline": None, "correlations": None, "resolution_fit": {}}
    cards = {"FP32": Scorecard.model_validate(old)}
    _, found = parts(cards, "Geant4", TUNING, BENCH)
    assert not {"By energy", "Correlations"} & {section.title for section in found}
    assert "&gt; 120 showers" in render_page(cards, only=("scores",))


def test_verdicts_have_three_values_and_a_mark_each() -> None:
    html = page()
    for words in ("✓ same", "✗ differs", "? too few"):
        assert words in html, words


def test_columns_without_any_number_are_left_out() -> None:
    full, old = card(), card()
    for score in old.observables.values():
        score.kolmogorov_smirnov = score.needed = score.visible_at = score.difference = None
    assert observable_scores({"a": full}).header[-1] == "asks for" and "KS" in observable_scores({"a": full}).header
    grid = observable_scores({"a": old, "b": old})
    assert grid.header == ("observable", "candidate", "verdict", "p", "separation", "floor", "distance [σ]", "floor")
    assert {len(row) for row in grid.rows} == {7, 8}


def test_the_table_by_energy_names_the_worst_bin() -> None:
    html = page()
    assert "2 of 6 pairs of observable and energy bin differ" in html
    assert "✗ 0.0010" in html and "– n" in html


def test_six_candidates_fit_and_a_seventh_is_refused(tmp_path: Path) -> None:
    cards = {f"candidate {number}": card(0.01 * number, "differs") for number in range(6)}
    html = render_page(cards, only=("by-energy", "energy"))
    assert all(f"candidate {number}" in html for number in range(6))
    with pytest.raises(InvalidConfig, match="1 to 6"):
        report(events(), {**cards, "seventh": card()}, tmp_path / "r.html")


def test_figures_are_written_one_by_one_and_together(tmp_path: Path) -> None:
    from PIL import Image

    cards = {"FP32": card()}
    hero, found = parts(cards, "Geant4", None, None)
    written = write_figures(tmp_path / "figures", hero, found[:2])
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert sorted(path.name for path in written) == names
    assert names[:2] == ["00-summary-all-observables.pdf", "00-summary-all-observables.png"] and names[-1] == "figures.pdf"
    for path in written:
        assert path.read_bytes().startswith(b"%PDF" if path.suffix == ".pdf" else b"\x89PNG")
    with Image.open(written[1]) as image:
        # Pixels are whole: the shape is kept to one in a few hundred.
        assert image.width / image.height == pytest.approx(hero.picture.width / hero.picture.height, rel=0.01)


def simulated(colour: str, matrix: list[list[float]]) -> np.ndarray:
    """CIELAB of a colour as someone with a deficiency of colour vision sees it."""
    encoded = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(matrix) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    f = np.where((t := xyz / np.array([0.9505, 1, 1.089])) > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira and Fernandes, IEEE Trans. Vis. Comput. Graph. 15 (2009) 1291, severity 1.0.
DEFICIENCIES = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_candidates_can_be_told_apart_by_everyone(deficiency: str) -> None:
    seen = [simulated(colour, DEFICIENCIES[deficiency]) for colour in PALETTE]
    apart = {
        (PALETTE[i], PALETTE[k]): float(np.linalg.norm(seen[i] - seen[k]))
        for i in range(len(seen))
        for k in range(i + 1, len(seen))
    }
    # A difference of 2.3 in CIELAB is just noticeable; markers and dashes differ as well.
    assert min(apart.values()) > 10, min(apart, key=lambda pair: apart[pair])


def test_empty_and_missing_values_are_drawn_as_dashes() -> None:
    bare = card()
    bare.response[0].ratio = bare.response[0].error = None
    bare.histograms["response"].candidate = [0] * 20
    bare.fpd = bare.kpd = None
    assert "–" in render_page({"FP32": bare}, only=("energy",))


def test_numbers_are_short_and_never_lie() -> None:
    assert number(None) == number(float("nan")) == "–"
    assert number(0.0) == "0.00"
    assert number(1234.5) == "1,234" or number(1234.5) == "1,235"
    assert number(-0.01234) == "−0.0123"
    assert number(1.5e-7) == "1.50×10⁻⁷"


def test_plain_disarms_matplotlib() -> None:
    assert plain("$x$") == r"\$x\$"
    assert not plain("_hidden").startswith("_")
    assert len(plain("x" * 1000)) == 32


def test_history_survives_a_line_cut_short() -> None:
    lines = [json.dumps(entry) for entry in HISTORY] + [
        '{"trial": 3, "accep',
        "[]",
        "{}",
        '{"accepted": true, "speedup": "fast", "value": NaN, "ran": 3}',
    ]
    found = read_history(lines)
    assert [trial.accepted for trial in found.trials] == [False, True, True]
    assert found.trials[1].ran == PLAN and found.trials[1].speedup_spread is None
    assert found.trials[2].speedup is None and found.trials[2].value is None and not found.trials[2].ran
    assert found.sensitivities == {("energies.0", "int8"): 0.02, ("shape.dense", "int8"): None}


def test_pareto_front_holds_what_nothing_beats() -> None:
    points = [(1.0, 0.0), (2.0, 0.3), (1.5, 0.4), (3.0, 0.5), (3.0, 0.6)]
    assert pareto(points) == [(1.0, 0.0), (2.0, 0.3), (3.0, 0.5)]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"runs": 3}', '{"runs": [{"precision": "fp32"}]}', "[" * 100_000])
def test_a_bench_file_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(InvalidConfig, match="bench.json"):
        read_bench(tmp_path / "bench.json")


# ------------------------------------------------------------------ the whole verb


def test_report_of_event_sets(tmp_path: Path) -> None:
    make_small_surrogate(tmp_path / "surrogate")
    surrogate = tmp_path / "surrogate"
    output = report(events(), {"FP32": events(seed=1)}, tmp_path / "report.html", surrogate=surrogate, bench=BENCH)
    html = output.read_text()
    assert "against Geant4" in html and "120 Geant4 showers" in html and "1.00" in html
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("report")] == ["report.html"]


def test_report_of_a_tuned_surrogate_lists_its_plan(tmp_path: Path) -> None:
    surrogate = make_small_surrogate(tmp_path / "surrogate")
    assert surrogate.tuned is None
    plan = dict.fromkeys(LAYERS, "int8")
    output = report(
        events(), {"x": card()}, tmp_path / "r.html", surrogate=surrogate, tuning={**TUNING, "plan": plan, "ran": plan}
    )
    assert all(f'<th scope="row">{layer}</th>' in output.read_text() for layer in LAYERS)


def test_command_line_writes_a_page_and_one_json_object(tmp_path: Path) -> None:
    write_events(tmp_path / "mc.h5", events())
    write_events(tmp_path / "fast.h5", events(seed=1))
    (tmp_path / "bench.json").write_text(json.dumps(BENCH))
    found = validate(tmp_path / "mc.h5", tmp_path / "fast.h5", classifiers=(), feature_distances=False)
    (tmp_path / "card.json").write_text(json.dumps(found.to_dict()))
    arguments = ["report", str(tmp_path / "mc.h5"), f"FP32={tmp_path / 'card.json'}", str(tmp_path / "fast.h5")]
    arguments += ["--bench", str(tmp_path / "bench.json"), "-o", str(tmp_path / "page.html"), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["candidates"] == ["FP32", "fast"]
    assert (tmp_path / "page.html").stat().st_size > 100_000


@pytest.mark.parametrize(
    ("candidates", "words"),
    [
        (["a=missing.h5"], "missing.h5"),
        (["a=bad.json"], "bad.json is not what `minicarlo validate --json` writes: verdict"),
        (["a=mc.h5", "a=mc.h5"], "used twice"),
        (["=mc.h5"], "empty"),
        ([f"l{k}=mc.h5" for k in range(7)], "1 to 6"),
    ],
)
def test_mistakes_are_one_paragraph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, candidates: list[str], words: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_events("mc.h5", events(40))
    Path("bad.json").write_text("{}")
    result = CliRunner().invoke(main, ["report", "mc.h5", *candidates])
    assert result.exit_code == 2 and words in result.stderr and "Traceback" not in result.stderr
    assert not Path("report.html").exists()


def test_scorecards_of_different_references_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="different references"):
        report(events(), {"a": card(), "b": events(seed=1)}, tmp_path / "r.html")


def test_unwritable_output_is_found_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no-such-folder"):
        report(events(), {"x": events(seed=1)}, tmp_path / "no-such-folder" / "r.html")


def test_different_energies_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    other = events(seed=1)
    other.conditions["incident_energy"] = other.incident_energy * 1e-3
    with pytest.raises(IncompatibleEventSets):
        report(events(), {"x": other}, tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ a real browser


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


@needs_browser
def test_a_browser_shows_the_page_and_runs_nothing_in_it(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "evil.html").write_text(evil_page(), encoding="utf-8", errors="replace")
    (tmp_path / "page.html").write_text(page(), encoding="utf-8")
    with Browser(tmp_path / "profile", 1280, 900) as browser:
        browser.open(tmp_path / "evil.html")
        assert browser.evaluate("document.title") == EVIL.replace("\x00", "") and not browser.problems
        browser.open(tmp_path / "page.html")
        pixels = np.asarray(Image.open(browser.screenshot(tmp_path / "page.png")).convert("RGB")).reshape(-1, 3)
    colours = {tuple(colour) for colour in np.unique(pixels, axis=0)}
    # The style is applied (the edges of a good and a bad tile), and the pictures are drawn (FP32's blue).
    assert {(0, 0x68, 0x4D), (0xA8, 0x43, 0), (0, 0x72, 0xB2)} <= colours


@needs_browser
@pytest.mark.parametrize("make", [page, evil_page])
def test_a_browser_has_nothing_to_complain_of(tmp_path: Path, make: Any) -> None:
    (tmp_path / "page.html").write_text(make(), encoding="utf-8", errors="replace")
    with Browser(tmp_path / "profile") as browser:
        for width in (1280, 390):
            browser.resize(width, 800, phone=width < 500)
            browser.open(tmp_path / "page.html")
            assert browser.evaluate("document.documentElement.scrollWidth") == width
            assert browser.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        printed = browser.pdf(tmp_path / "page.pdf").read_bytes()
        assert browser.problems == []
    assert printed.startswith(b"%PDF") and printed.count(b"/Type /Page\n") > 3


@needs_browser
def test_a_link_of_the_contents_leads_to_a_heading_in_sight(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page(), encoding="utf-8")
    with Browser(tmp_path / "profile") as browser:
        browser.open(tmp_path / "page.html")
        browser.evaluate("document.querySelector('nav a[href=\"#speed\"]').click()")
        box = "(({top, bottom}) => [top, bottom])(document.querySelector('%s').getBoundingClientRect())"
        bar, heading = browser.evaluate(box % "nav"), browser.evaluate(box % "#speed")
    assert bar[0] == 0 and bar[1] <= heading[0] < 800
