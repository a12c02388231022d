"""The report: one file that loads nothing, runs nothing, escapes everything and shows what it was given."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from minicarlo.cli import main
from minicarlo.errors import IncompatibleEventSets, InvalidConfig, OutputError
from minicarlo.events import EventSet, write_events
from minicarlo.fidelity.scorecard import Scorecard
from minicarlo.report import report
from minicarlo.report.figure import number, plain
from minicarlo.report.inputs import read_bench, trials
from minicarlo.report.page import render
from small_surrogate import LAYERS, make_small_surrogate

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
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


def card(shift: float = 0.0, verdict: str = "indistinguishable") -> dict[str, Any]:
    """A scorecard made by hand, checked against the real one's fields."""
    edges = np.linspace(0.02, 0.04, 21)
    shape = 1000 * np.exp(-0.5 * ((edges[:-1] - 0.03) / 0.003) ** 2)
    x = (np.arange(25) + 0.5) * 5.05
    curve = x**2 * np.exp(-x / 25)
    score = {"value": 0.01 + shift, "error": 0.002, "floor": 0.009}
    observable = {"p_value": 0.4, "separation_power": score, "wasserstein": score}
    response = {"reference": 0.03, "reference_error": 1e-4, "candidate": 0.03 * (1 + shift), "candidate_error": 1e-4}
    events = {"reference_events": 100, "candidate_events": 100}
    intervals = [
        {"low": 1e3 * 2**k, "high": 2e3 * 2**k, "ratio": 1 + shift, "error": 0.01, **response, **events} for k in range(6)
    ]

    def profile(values: np.ndarray) -> dict[str, Any]:
        changed = values * (1 + shift)
        errors = {"reference_error": (0.02 * values).tolist(), "candidate_error": (0.02 * changed).tolist()}
        return {
            "x": x.tolist(),
            "reference": values.tolist(),
            "candidate": changed.tolist(),
            **errors,
            "unit": "MeV",
            "x_unit": "mm",
        }

    def histogram(edges: np.ndarray, unit: str) -> dict[str, Any]:
        counts = {
            "reference": np.round(shape).astype(int).tolist(),
            "candidate": np.round(shape * (1 + shift)).astype(int).tolist(),
        }
        return {"edges": edges.tolist(), **counts, "unit": unit}

    image = np.outer(curve, curve).tolist()
    sample = {"path": None, "events": 120, "low_mev": 1e3, "high_mev": 1e5, "empty": 0, "duplicates": 0}
    auc = {"auc": 0.53, "error": 0.01, "floor": 0.5, "p_value": 0.2, "verdict": verdict}
    profiles = {"longitudinal": profile(curve), "lateral": profile(np.exp(-x / 20))}
    return Scorecard.model_validate(
        {
            "verdict": verdict,
            "observables": {
                "response": {"verdict": "indistinguishable", **observable},
                "layer_energy": {"verdict": verdict, **observable},
                "longitudinal_profile": {"verdict": verdict, "p_value": 0.1, "deviation": score},
            },
            "classifier": {
                "high": {**auc, "edges": [0, 1], "reference": [1], "candidate": [1]},
                "trees": None,
                "low": None,
                "cnn": None,
            },
            "fpd": score,
            "kpd": score,
            "cern_error": {**score, "as_coded": 0.02, "profiles": score, "bins": []},
            "response": intervals,
            "resolution": intervals,
            "resolution_fit": {},
            "histograms": {"response": histogram(edges, ""), "cell_energy": histogram(np.geomspace(0.05, 100, 21), "MeV")},
            "layer_histograms": {"layer_energy": [histogram(edges, "MeV")] * 3},
            "profiles": profiles,
            "energy_profiles": [{"low": 1e3, "high": 1e4, **profiles}],
            "images": {"zx": {"reference": image, "candidate": image}},
            "correlations": None,
            "detector": "clic-ecal",
            "threshold_mev": 0.05,
            "reference": sample,
            "candidate": sample,
            "warnings": ["Few events."],
        }
    ).to_dict()


PLAN = {"energies.0": "fp32", "shape.conv1": "int8", "shape.conv2": "int8", "shape.dense": "bf16"}
TUNING = {
    "accepted": True,
    "plan": PLAN,
    "ran": PLAN,
    "int8_share": 0.62,
    "criterion": {"name": "profile", "reference": 0.0, "value": 0.004, "low": 0.003, "high": 0.006, "tolerance": 0.01},
}
TRIALS = [
    {"trial": 1, "accepted": False, "description": "all INT8", "speedup": 3.6, "value": 0.03, "low": 0.02, "high": 0.04},
    {
        "trial": 2,
        "accepted": True,
        "description": "energies.0 in FP32",
        "speedup": 3.1,
        "value": 0.004,
        "low": 0.003,
        "high": 0.006,
    },
]
BENCH = {
    "machine": "two cores",
    "runs": [
        {"engine": "openvino", "precision": "fp32", "streams": 1, "batch": 64, "events_per_second": 310.0, "spread": 9.0},
        {"engine": "openvino", "precision": "tuned", "streams": 2, "batch": 64, "events_per_second": 1893.0, "spread": 40.0},
    ],
    "speedup": {"tuned_over_fp32": 3.16, "bf16_over_fp32": 1.7, "streams": 1.9, "over_simulator": 240.0},
}


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


def render_page(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "cards": {"FP32": card(), "tuned": card(0.03, "differs")},
        "title": "clic-ecal against Geant4",
        "lead": "A few showers.",
        "tuning": TUNING,
        "trials": TRIALS,
        "bench": BENCH,
        "provenance": {"Surrogate": "small"},
    }
    return render(**{**arguments, **changes})


@functools.cache
def evil_page() -> str:
    bad = card()
    bad["observables"][EVIL] = {"verdict": EVIL, "separation_power": {"value": 1.0, "error": 0.1, "floor": 0.1}}
    bad["warnings"] = [EVIL]
    bad["histograms"][EVIL] = {**bad["histograms"]["response"], "unit": EVIL}
    bad["verdict"] = EVIL
    return render_page(
        cards={EVIL: bad, "__" + EVIL: bad, "\x00\ud800": bad},
        title=EVIL,
        lead=EVIL,
        reference=EVIL,
        tuning={**TUNING, "plan": {EVIL: EVIL}, "ran": {EVIL: EVIL}, "criterion": {**TUNING["criterion"], "name": EVIL}},  # type: ignore[dict-item]
        trials=[{**TRIALS[0], "description": EVIL}],
        bench={**BENCH, "machine": {EVIL: EVIL}, "runs": [{**BENCH["runs"][0], "precision": EVIL}]},  # type: ignore[index]
        provenance={EVIL: EVIL},
    )


def test_page_loads_nothing_and_runs_nothing() -> None:
    elements = Elements(page()).found
    policy = next(a["content"] for _, a in elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert not {tag for tag, _ in elements} & {"script", "link", "iframe", "object", "embed", "form", "base", "a"}
    for _, attributes in elements:
        assert not {name for name in attributes if name.startswith("on") or name in ("href", "style", "srcset", "action")}
        assert (attributes.get("src") or "data:image/svg+xml;base64,").startswith("data:image/svg+xml;base64,")


def test_style_matches_its_hash_in_the_policy() -> None:
    html = page()
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    assert base64.b64encode(hashlib.sha256(style.group(1).encode()).digest()).decode() in html


def test_names_from_files_stay_text() -> None:
    elements = Elements(evil_page()).found
    assert not [tag for tag, attributes in elements if tag == "script" or "onerror" in attributes]
    assert {attributes["src"][:26] for tag, attributes in elements if tag == "img"} == {"data:image/svg+xml;base64,"}


@pytest.mark.parametrize("make", [page, evil_page])
def test_every_picture_is_well_formed_and_holds_no_script_or_address(make: Any) -> None:
    sources = [a["src"] for tag, a in Elements(make()).found if tag == "img"]
    assert len(sources) >= 8
    for source in sources:
        text = base64.b64decode(source.split(",", 1)[1]).decode()
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


def test_summary_states_verdict_speed_plan_and_cost() -> None:
    text = re.sub(r"<[^>]+>", " ", page())
    for words in (
        "Differs",
        "3.16 ×",
        "240 times the simulator",
        "62 % INT8",
        "The runtime followed the plan",
        "0.40 %",
        "tolerance 1.0 %",
    ):
        assert words in text, words


def test_a_plan_that_the_runtime_did_not_follow_is_said() -> None:
    html = render_page(tuning={**TUNING, "ran": {**PLAN, "shape.conv1": "fp32"}})
    assert "did not follow the plan" in html
    assert '<td class="bad">fp32</td>' in html


def test_missing_parts_leave_no_gap() -> None:
    html = render_page(cards={"one": card()}, tuning=None, trials=(), bench=None, provenance=None)
    assert "Numerical precision" not in html and "Throughput" not in html
    assert html.count('class="tile ') == 3


def test_empty_and_missing_values_are_drawn_as_dashes() -> None:
    bare = card()
    bare["response"][0].update(ratio=None, error=None)
    bare["histograms"]["response"]["candidate"] = [0] * 20
    bare["fpd"] = bare["kpd"] = None
    assert "–" in render_page(cards={"FP32": bare})


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
    lines = [json.dumps(trial) for trial in TRIALS] + [
        '{"trial": 3, "accep',
        "[]",
        "{}",
        '{"accepted": true, "speedup": "fast", "value": NaN}',
    ]
    found = trials(lines)
    assert [trial["accepted"] for trial in found] == [False, True, True]
    assert found[2]["speedup"] is None and found[2]["value"] is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"runs": 3}', '{"runs": [{"precision": "fp32"}]}', "[" * 100_000])
def test_a_bench_file_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(InvalidConfig, match="bench.json"):
        read_bench(tmp_path / "bench.json")


# ------------------------------------------------------------------ the whole verb


def test_report_of_event_sets(tmp_path: Path) -> None:
    make_small_surrogate(tmp_path / "surrogate")
    output = report(events(), {"FP32": events(seed=1)}, tmp_path / "report.html", surrogate=tmp_path / "surrogate", bench=BENCH)
    html = output.read_text()
    assert "against Geant4" in html and "120 Geant4 showers" in html and "1.00" in html
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("report")] == ["report.html"]


def test_report_of_a_tuned_surrogate_lists_its_plan(tmp_path: Path) -> None:
    surrogate = make_small_surrogate(tmp_path / "surrogate")
    assert surrogate.tuned is None
    plan = dict.fromkeys(LAYERS, "int8")
    output = report(
        events(), {"x": events(seed=1)}, tmp_path / "r.html", surrogate=surrogate, tuning={**TUNING, "plan": plan, "ran": plan}
    )
    assert all(f"<code>{layer}</code>" in output.read_text() for layer in LAYERS)


def test_command_line_writes_a_page_and_one_json_object(tmp_path: Path) -> None:
    write_events(tmp_path / "mc.h5", events())
    write_events(tmp_path / "fast.h5", events(seed=1))
    (tmp_path / "bench.json").write_text(json.dumps(BENCH))
    arguments = ["report", str(tmp_path / "mc.h5"), f"FP32={tmp_path / 'fast.h5'}", str(tmp_path / "fast.h5")]
    arguments += ["--bench", str(tmp_path / "bench.json"), "-o", str(tmp_path / "page.html"), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["candidates"] == ["FP32", "fast"]
    assert (tmp_path / "page.html").stat().st_size > 100_000


@pytest.mark.parametrize(
    ("candidates", "words"),
    [
        (["a=missing.h5"], "missing.h5"),
        (["a=mc.h5", "a=mc.h5"], "used twice"),
        (["=mc.h5"], "empty"),
        ([f"l{k}=mc.h5" for k in range(7)], "1 to 6"),
    ],
)
def test_mistakes_are_one_paragraph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, candidates: list[str], words: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_events("mc.h5", events(40))
    result = CliRunner().invoke(main, ["report", "mc.h5", *candidates])
    assert result.exit_code == 2 and words in result.stderr and "Traceback" not in result.stderr
    assert not Path("report.html").exists()


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


def browse(path: Path, profile: Path, *arguments: str) -> str:
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}"]
    command = [str(CHROMIUM), *quiet, *arguments, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_shows_the_page_and_runs_nothing_in_it(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "evil.html").write_text(evil_page(), encoding="utf-8", errors="replace")
    shown = browse(tmp_path / "evil.html", tmp_path / "profile", "--dump-dom")
    assert "<title>owned" not in shown and "&lt;script&gt;" in shown

    (tmp_path / "page.html").write_text(page(), encoding="utf-8")
    screenshot = tmp_path / "page.png"
    browse(tmp_path / "page.html", tmp_path / "profile", "--window-size=1366,900", f"--screenshot={screenshot}")
    pixels = np.asarray(Image.open(screenshot).convert("RGB")).reshape(-1, 3)
    colours = {tuple(colour) for colour in np.unique(pixels, axis=0)}
    # The style is applied (the green edge of a good tile), and the pictures are drawn (the reference's fill, FP32's blue).
    assert {(0, 0x68, 0x4D), (0xD5, 0xD8, 0xDC), (0, 0x72, 0xB2)} <= colours
