"""Search strategies on invented landscapes: what they promise, and how few trials the default needs."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pytest

from minicarlo.errors import MissingExtra, TuningError
from minicarlo.precision.plan import RELATIVE_COST, Layer, Plan
from minicarlo.precision.strategies import GROUP, STRATEGIES, Problem, Strategy, Trial, get_strategy

FORMATS = ("int8", "bf16", "fp32")

TOLERANCE = 0.03
SEARCHING = [name for name in STRATEGIES if name not in ("exhaustive", "random")]


class Landscape:
    """Layers whose harms add up, and do more together where `pairs` says so; a plan passes within the tolerance.

    The first layer in bf16 does harm by `shared` more, whichever it is.
    """

    def __init__(self, harm, *, cost=None, pairs=None, missing=(), formats=None, shared=0.0):
        self.harm, self.pairs, self.missing, self.shared = harm, pairs or {}, set(missing), shared
        self.names = sorted({layer for layer, _ in harm})
        self.layers = tuple(Layer(n, ("MatMul", "Convolution")[i % 2], 10) for i, n in enumerate(self.names))
        self.cost = cost or (lambda layer, form: RELATIVE_COST[form])
        self.formats = formats or dict.fromkeys(self.names, FORMATS)
        self.probed = set()

    @classmethod
    def random(cls, seed, count, *, interacting=False, **settings):
        """Harms and times over two orders of magnitude, as layers of real networks have them."""
        generator = np.random.default_rng(seed)
        names = [f"layer{i:02d}" for i in range(count)]
        harm = {(n, f): generator.lognormal(-5, 1.5) * scale for n in names for f, scale in (("int8", 1.0), ("bf16", 0.2))}
        time = {n: generator.lognormal(0, 1) for n in names}
        pairs = {pair: generator.lognormal(-6, 1) for pair in itertools.pairwise(names)} if interacting else {}
        return cls(harm, cost=lambda layer, form: time[layer] * RELATIVE_COST[form], pairs=pairs, **settings)

    def problem(self, max_trials=100, seed=0):
        return Problem(self.layers, self.formats, TOLERANCE, self.sensitivity, self.cost, max_trials, seed)

    def sensitivity(self, layer, form):
        self.probed.add((layer, form))
        shared = self.shared if form == "bf16" else 0.0
        return math.inf if (layer, form) in self.missing else shared + self.harm.get((layer, form), 0.0)

    def value(self, plan):
        single = sum(self.harm.get(choice, 0.0) for choice in plan.items())
        return (
            single
            + self.shared * ("bf16" in plan.values())
            + sum(harm for (a, b), harm in self.pairs.items() if plan[a] == plan[b] == "int8")
        )

    def time(self, plan):
        return sum(self.cost(layer, form) for layer, form in plan.items())

    def run(self, strategy, most=None, seed=0):
        """The trials that a strategy makes; `complete` is whether it came to an end."""
        most = most or (12 if strategy == "bayesian" else 100)  # from its eleventh on, a trial costs seconds of modelling
        search = get_strategy(strategy)(self.problem(most, seed))
        trials = []
        while len(trials) < most and (plan := search.ask()) is not None:
            ran = {n: ("fp32" if (n, f) in self.missing else f) for n, f in plan.items()}
            followed = ran == dict(plan)
            value = self.value(plan) if followed else None
            accepted = followed and value <= TOLERANCE
            trials.append(Trial(len(trials) + 1, dict(plan), plan.describe(), ran, followed, accepted, "", high=value))
            search.tell(trials[-1])
        self.complete = len(trials) < most or search.ask() is None
        return trials

    def best(self, trials):
        """Time of the fastest plan that passed; infinite if none did."""
        return min((self.time(trial.plan) for trial in trials if trial.accepted), default=math.inf)


# What every strategy promises


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("interacting", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_every_strategy_ends_and_tries_no_plan_twice(name, interacting, seed):
    world = Landscape.random(seed, 4, interacting=interacting)
    trials = world.run(name)
    assert world.complete or name == "bayesian"
    assert len({Plan.of(trial.plan).key for trial in trials}) == len(trials)
    assert world.best(trials) <= world.time(Plan.uniform(world.layers, "fp32"))


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("seed", range(3))
def test_no_strategy_asks_again_for_what_the_runtime_did_not_run(name, seed):
    missing = {("layer00", "int8"), ("layer01", "bf16"), ("layer02", "int8"), ("layer02", "bf16")}
    world = Landscape.random(seed, 4, missing=missing)
    trials = world.run(name)
    struck = set()
    for trial in trials:
        assert not struck & set(trial.plan.items())
        struck |= missing & set(trial.plan.items())
    assert world.best(trials) < math.inf


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_strategy_uses_a_format_that_a_layer_is_not_offered(name):
    names = [f"layer{i:02d}" for i in range(4)]
    formats = {n: FORMATS for n in names} | {"layer01": ("bf16", "fp32"), "layer03": ("fp32",)}
    world = Landscape.random(1, 4, formats=formats)
    assert all(form in formats[layer] for trial in world.run(name) for layer, form in trial.plan.items())


@pytest.mark.parametrize("name", SEARCHING)
def test_a_strategy_is_content_with_the_cheapest_plan_when_it_passes(name):
    world = Landscape({(n, "int8"): 0.001 for n in "abcdef"})
    trials = world.run(name, most=10)
    assert [trial.plan for trial in trials] == [Plan.uniform(world.layers, "int8")] and not world.probed


@pytest.mark.parametrize("name", SEARCHING)
def test_when_nothing_else_passes_the_search_comes_down_to_fp32(name):
    world = Landscape({(n, form): 0.5 for n in "abc" for form in ("int8", "bf16")})
    accepted = [trial.plan for trial in world.run(name) if trial.accepted]
    assert accepted == [Plan.uniform(world.layers, "fp32")]


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_same_seed_gives_the_same_search(name):
    first, second = (Landscape.random(2, 4).run(name, seed=7) for _ in range(2))
    assert [trial.plan for trial in first] == [trial.plan for trial in second]


# The default


@pytest.mark.parametrize("seed", range(30))
def test_pareto_finds_the_fastest_plan_in_a_handful_of_trials_where_harms_add_up(seed):
    world = Landscape.random(seed, 6)
    trials = world.run("pareto")
    plans = [Plan.of(dict(zip(world.names, forms, strict=True))) for forms in itertools.product(FORMATS, repeat=6)]
    best = min(world.time(plan) for plan in plans if world.value(plan) <= TOLERANCE)
    assert world.best(trials) <= 1.02 * best  # plans within 1 % of each other are not both tried; time is rounded to 1/4096
    assert len(trials) <= 5


@pytest.mark.parametrize("seed", range(10))
def test_pareto_counts_once_what_layers_in_half_precision_have_in_common(seed):
    """Alone in bf16 every layer shows what stands between layers as well, of which the tolerance allows three times as much."""
    world = Landscape.random(seed, 6, shared=0.01)
    trials = world.run("pareto")
    plans = [Plan.of(dict(zip(world.names, forms, strict=True))) for forms in itertools.product(FORMATS, repeat=6)]
    best = min(world.time(plan) for plan in plans if world.value(plan) <= TOLERANCE)
    assert world.best(trials) <= 1.02 * best
    assert len(trials) <= 6


@pytest.mark.parametrize("rival", ["basic", "mse", "mse_v2", "random"])
@pytest.mark.parametrize("layers", [16, 24])
def test_pareto_needs_a_third_of_the_evaluations_of_others_and_finds_plans_as_fast(rival, layers):
    """Where harms add up; summed over twelve landscapes."""
    worlds = [Landscape.random(seed, layers) for seed in range(12)]
    ours, theirs = ([world.run(name) for world in worlds] for name in ("pareto", rival))
    assert 3 * sum(map(len, ours)) <= sum(map(len, theirs))
    for world, mine, other in zip(worlds, ours, theirs, strict=True):
        assert world.best(mine) <= world.best(other) * 1.01


@pytest.mark.parametrize(("rival", "most"), [("tpe", 60), ("bayesian", 20)])
def test_samplers_do_not_find_in_many_trials_what_pareto_finds_in_a_third(rival, most):
    world = Landscape.random(0, 16)
    ours = world.run("pareto")
    assert 3 * len(ours) <= most and world.best(ours) < world.best(world.run(rival, most=most))


@pytest.mark.parametrize("seed", range(8))
def test_pareto_stays_within_its_bound_where_harms_do_not_add_up(seed):
    world = Landscape.random(seed, 16, interacting=True)
    trials = world.run("pareto")
    assert world.best(trials) < world.time(Plan.uniform(world.layers, "fp32"))
    assert len(trials) <= 1 + 3 + 9 + 2  # the cheapest, guesses, a bisection, what the tolerance has left


def test_pareto_makes_its_chain_anew_without_a_format_that_is_not_there():
    harm = {(n, "int8"): 0.02 for n in "abcd"}
    world = Landscape(harm, missing=[("b", "bf16"), ("c", "int8")])
    trials = world.run("pareto")
    assert all(trial.accepted or not trial.followed or world.value(trial.plan) > TOLERANCE for trial in trials)
    assert world.best(trials) == 1 + 2 + 2 + 2  # b, which has no bf16, is the one in int8


# The others


def test_mse_v2_lowers_only_the_layers_that_hurt_and_to_the_format_that_helps():
    harm = {(n, "int8"): 0.002 for n in "abcdef"} | {("c", "int8"): 0.5, ("e", "int8"): 0.5, ("e", "bf16"): 0.4}
    trials = Landscape(harm).run("mse_v2")
    assert trials[-1].plan == {"a": "int8", "b": "int8", "c": "bf16", "d": "int8", "e": "fp32", "f": "int8"}
    assert len(trials) <= 3


def test_mse_v2_gives_precision_back_until_many_small_harms_fit():
    trials = Landscape({(n, "int8"): 0.01 for n in "abcdefgh"}).run("mse_v2")
    accepted = [trial for trial in trials if trial.accepted]
    assert list(accepted[-1].plan.values()).count("int8") == 3


def test_basic_falls_back_by_operation_then_alone_then_together():
    """a, c, e are matrix products, b, d convolutions; only a and b in bf16 together pass."""
    world = Landscape({(n, "int8"): 0.004 for n in "cde"} | {("a", "int8"): 0.05, ("b", "int8"): 0.03})
    dearer = [{n for n, form in trial.plan.items() if form != "int8"} for trial in world.run("basic")]
    assert dearer == [set(), {"a", "c", "e"}, {"b", "d"}, *({n} for n in "abcde"), {"a", "b"}]


def test_exhaustive_tries_every_plan_and_refuses_what_the_budget_cannot_cover():
    world = Landscape.random(0, 3)
    trials = world.run("exhaustive", most=27)
    assert len(trials) == 27 and world.complete
    times = [world.time(trial.plan) for trial in trials]
    assert times == sorted(times)
    with pytest.raises(TuningError, match="27 plans for 3 layers, and at most 26 trials"):
        get_strategy("exhaustive")(world.problem(max_trials=26))


def test_random_tries_every_plan_once_and_then_ends():
    world = Landscape.random(0, 3)
    assert len(world.run("random", most=100)) == 27 and world.complete


# Names


def test_the_name_of_an_alias_and_of_what_is_unknown():
    assert get_strategy("fallback") is STRATEGIES["mse_v2"]
    with pytest.raises(TuningError, match="'luck' is unknown; choose among pareto, basic, mse, mse_v2"):
        get_strategy("luck")


def test_a_strategy_of_another_package_is_found_by_its_entry_point(tmp_path, monkeypatch):
    metadata = tmp_path / "elsewhere-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\nonce = elsewhere:Once\n")
    (tmp_path / "elsewhere.py").write_text(
        "from minicarlo.precision.strategies import Strategy\n"
        "class Once(Strategy):\n"
        "    name = 'once'\n"
        "    def search(self):\n"
        "        yield self.cheapest()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert issubclass(get_strategy("once"), Strategy) and len(Landscape.random(0, 3).run("once")) == 1


def test_without_optuna_the_strategy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"pip install 'minicarlo\[strategies\]'"):
        get_strategy("tpe")(Landscape.random(0, 3).problem())
