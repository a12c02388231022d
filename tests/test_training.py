"""Training on real showers: losses that are proper, runs that resume to the same bits, surrogates that come out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra `train`)")

from minicarlo.detectors import get_detector  # noqa: E402
from minicarlo.errors import IncompatibleEventSets, InvalidConfig, InvalidEventSet  # noqa: E402
from minicarlo.events import read_events, write_events  # noqa: E402
from minicarlo.generators.gan2d import Gan2D  # noqa: E402
from minicarlo.generators.gan3d import Discriminator3D, Gan3D  # noqa: E402
from minicarlo.generators.shower2d import (  # noqa: E402
    LATENT_NOISE,
    LATENT_SHAPE,
    READERS,
    TRACE,
    UNIT_MAPS,
    Edge,
    Shower2D,
    Spectra,
    from_root,
    to_root,
)
from minicarlo.simulators import simulate  # noqa: E402
from minicarlo.surrogate import Surrogate, sample_path  # noqa: E402
from minicarlo.training.config import read_config  # noqa: E402
from minicarlo.training.critic import CriticScores  # noqa: E402
from minicarlo.training.features import SPECTRUM_BINS, SPECTRUM_RATIO, ShowerFeatures  # noqa: E402
from minicarlo.training.loop import train  # noqa: E402
from minicarlo.training.revival import revive  # noqa: E402
from minicarlo.training.scores import TAIL, Balance, energy_score, ranked_probability_score, squared_bias, tails  # noqa: E402
from minicarlo.training.showers import turned  # noqa: E402

SHARED = os.environ.get("MINICARLO_SHARED")

CONFIG = """
name = "small"
generator = "{generator}"
output = "surrogate"
run = "run"
[data]
train = ["showers.h5"]
validation = "showers.h5"
[training]
steps = {steps}
energy_steps = 4
score_steps = 2
batch = 4
critic = true
validation_events = 20
validate_every = 1000
checkpoint_every = 2
precision = "fp32"
threads = 1
"""


@pytest.fixture(scope="module")
def showers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty real Geant4 showers."""
    path = tmp_path_factory.mktemp("showers") / "showers.h5"
    write_events(path, read_events(sample_path(), stop=60))
    return path


def configuration(folder: Path, showers: Path, generator: str = "shower2d", steps: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "showers.h5").symlink_to(showers)
    path = folder / "config.toml"
    path.write_text(CONFIG.format(generator=generator, steps=steps))
    return path


@pytest.mark.parametrize("generator", ["shower2d", "gan3d", "gan2d"])
def test_training_gives_a_surrogate_that_computes_what_the_network_computes(
    generator: str, tmp_path: Path, showers: Path
) -> None:
    from minicarlo.engines import compile_surrogate

    result = train(configuration(tmp_path, showers, generator, steps=2))
    surrogate = Surrogate.load(result.surrogate)
    assert surrogate.manifest.generator == generator
    assert surrogate.manifest.training["particle"] == "e-"  # of the showers: what may use it inside Geant4
    assert surrogate.manifest.conditions["incident_energy"].high <= 1e5
    assert list((tmp_path / "run" / "plots").glob("*.png"))
    assert list((tmp_path / "run" / "tensorboard").iterdir())

    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    networks = {"shower2d": Shower2D, "gan3d": Gan3D, "gan2d": Gan2D}
    network = networks[generator](high_mev=surrogate.manifest.conditions["incident_energy"].high)
    if generator == "shower2d":
        network.low_mev = surrogate.manifest.conditions["incident_energy"].low
    network.load_state_dict(state["recipe"]["average"])
    latent = torch.randn(3, network.latent_size, generator=torch.Generator().manual_seed(1))
    energy = torch.tensor([[2e3], [1e4], [9e4]])
    with torch.no_grad():
        expected = network.eval()(latent, energy).numpy()
    made = compile_surrogate(surrogate, "fp32", batch=3).run(latent.numpy(), energy.numpy())
    assert made.shape == (3, 25, 25, 25)
    same = np.isclose(made, expected, rtol=1e-3, atol=1e-3)  # float32 sums in another order; a cell at the threshold may flip
    assert same.mean() > 0.999


MINE = """
name = "mine"
grid = "cartesian"
cells = [12, 9, 8]
cell_mm = [12, 10]
energy_scale = 20.0
readout_threshold_mev = 0.5
[[layers]]
material = "G4_Pb"
mm = 5
[[layers]]
material = "G4_POLYSTYRENE"
mm = 5
read_out = true
"""


@pytest.mark.skipif(
    not SHARED or find_spec("geant4_pybind") is None,
    reason="needs geant4-pybind, and MINICARLO_SHARED with Geant4's data sets",
)
@pytest.mark.parametrize("detector", ["par04-siw", "mine"])
def test_showers_of_any_detector_train_a_surrogate_that_knows_its_geometry(
    detector: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEANT4_DATA_DIR", str(Path(str(SHARED), "geant4-data")))
    (tmp_path / "mine.toml").write_text(MINE)
    geant4 = str(tmp_path / "mine.toml") if detector == "mine" else detector
    simulate(50, "200MeV:2GeV:log", output=tmp_path / "geant4.h5", detector=geant4, seed=2)
    path = configuration(tmp_path, tmp_path / "geant4.h5", steps=3)
    train(path)
    # another process knows neither the TOML file nor what was trained here
    made = tmp_path / "made.h5"
    command = ["generate", str(tmp_path / "surrogate"), "-n", "20", "--energy", "500MeV", "--batch", "4", "--streams", "1"]
    subprocess.run([sys.executable, "-m", "minicarlo.cli", *command, "-o", str(made)], check=True)
    events, truth = read_events(made), read_events(tmp_path / "geant4.h5")
    assert events.samples.shape[1:] == truth.samples.shape[1:]
    # the layer energies begin as a Gaussian fit, so that even three steps give the response
    response = [float((e.samples.sum((1, 2, 3)) / e.incident_energy).mean()) for e in (truth, events)]
    assert 0.6 < response[1] / response[0] < 1.6

    path.write_text(path.read_text().replace("shower2d", "gan3d"))
    with pytest.raises(InvalidConfig, match="Use shower2d"):
        train(path)


@pytest.mark.parametrize("detector", ["clic-ecal", "par04-siw"])
def test_turning_a_shower_leaves_what_does_not_depend_on_the_direction(detector: str) -> None:
    grid = get_detector(detector)
    energy = torch.rand(2, *grid.shape, generator=torch.Generator().manual_seed(4))
    radii = torch.from_numpy(grid.radii_mm()).float()
    random = np.random.default_rng(1)
    seen = set()
    for _ in range(20):
        other = turned(energy, grid, random)
        torch.testing.assert_close(other.sum((2, 3)), energy.sum((2, 3)))
        torch.testing.assert_close(other.flatten(2) @ radii, energy.flatten(2) @ radii)
        seen.add(float(other[0, 0, 0, 0]))
    assert len(seen) > 3


def test_showers_at_an_angle_are_refused(tmp_path: Path, showers: Path) -> None:
    events = read_events(showers)
    events.conditions["incident_theta"] = np.full(len(events), 0.3, np.float32)
    path = configuration(tmp_path, showers)
    (tmp_path / "showers.h5").unlink()
    write_events(tmp_path / "showers.h5", events)
    with pytest.raises(IncompatibleEventSets, match="incident_theta"):
        train(path)


def test_a_run_killed_and_started_again_ends_with_the_same_weights(tmp_path: Path, showers: Path) -> None:
    whole, killed = configuration(tmp_path / "whole", showers, steps=8), configuration(tmp_path / "killed", showers, steps=8)
    train(whole)
    process = subprocess.Popen([sys.executable, "-m", "minicarlo.cli", "train", str(killed)], stderr=subprocess.PIPE)
    checkpoint = tmp_path / "killed" / "run" / "checkpoint.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert checkpoint.exists()
    result = train(killed)
    assert result.resumed_from >= 2
    states = [torch.load(tmp_path / name / "run" / "checkpoint.pt", weights_only=True)["recipe"] for name in ("whole", "killed")]
    for name, value in states[0]["generator"].items():
        assert torch.equal(value, states[1]["generator"][name]), name


def test_an_adversarial_run_stopped_among_its_scores_ends_with_the_same_weights(tmp_path: Path, showers: Path) -> None:
    whole, stopped = (configuration(tmp_path / name, showers, "gan3d", steps=1) for name in ("whole", "stopped"))
    assert train(whole).steps == 3  # two by scores, one against the discriminator
    train(stopped, steps=1)
    train(stopped)
    states = [torch.load(tmp_path / name / "run" / "checkpoint.pt", weights_only=True)["recipe"] for name in ("whole", "stopped")]
    for network in ("generator", "discriminator"):
        for name, value in states[0][network].items():
            assert torch.equal(value, states[1][network][name]), name


def test_the_command_line_trains_and_reports_as_json(tmp_path: Path, showers: Path) -> None:
    config = configuration(tmp_path, showers, steps=2)
    done = subprocess.run(
        [sys.executable, "-m", "minicarlo.cli", "train", str(config), "--json"], capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    assert result["steps"] == 6
    assert Path(result["surrogate"]).joinpath("surrogate.json").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch = 4", "batch = 0", "training.batch"),
        ("batch = 4", "bach = 4", "training.bach"),
        ('generator = "shower2d"', 'generator = "vae"', "generator"),
        ("[data]", "[data", "TOML"),
    ],
)
def test_a_wrong_configuration_is_refused_with_the_field_named(
    old: str, new: str, message: str, tmp_path: Path, showers: Path
) -> None:
    path = configuration(tmp_path, showers)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InvalidConfig, match=message.replace("[", r"\[")):
        read_config(path)


def test_missing_data_another_run_and_a_foreign_checkpoint_are_refused(tmp_path: Path, showers: Path) -> None:
    path = configuration(tmp_path, showers, steps=2)
    text = path.read_text()
    path.write_text(text.replace('train = ["showers.h5"]', 'train = ["none.h5"]'))
    with pytest.raises(InvalidEventSet, match=r"none\.h5"):
        train(path)
    path.write_text(text)
    train(path, steps=2)
    path.write_text(text.replace("batch = 4", "batch = 5"))
    with pytest.raises(InvalidConfig, match="another configuration"):
        train(path)
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    state = torch.load(checkpoint, weights_only=True)
    del state["recipe"]["generator"]["shape.layer2.weight"]
    torch.save(state, checkpoint)
    path.write_text(text)
    with pytest.raises(InvalidConfig, match="another network"):
        train(path)
    path.write_text(text.replace('run = "run"', 'run = "second"\ninitial = "run"').replace("steps = 2", "steps = 1"))
    del state["recipe"]["average"]["shape.layer2.weight"]
    torch.save(state, checkpoint)
    with pytest.raises(InvalidConfig, match="another network"):
        train(path)
    path.write_text(text)
    checkpoint.write_bytes(b"not a checkpoint")
    with pytest.raises(InvalidConfig, match="checkpoint"):
        train(path)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, showers: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'harm'}",)

    path = configuration(tmp_path, showers)
    (tmp_path / "run").mkdir()
    torch.save({"config": Harmful()}, tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(InvalidConfig, match="checkpoint"):
        train(path)
    assert not (tmp_path / "harm").exists()


def test_another_detectors_showers_are_refused(tmp_path: Path, showers: Path) -> None:
    path = configuration(tmp_path, showers)
    path.write_text(path.read_text().replace("[data]", '[data]\ndetector = "elsewhere"'))
    with pytest.raises(IncompatibleEventSets, match="elsewhere"):
        train(path)


def test_scores_are_least_at_the_true_distribution() -> None:
    random = torch.Generator().manual_seed(3)
    truth = torch.randn(40_000, 2, generator=random)

    def scores(shift: float, scale: float) -> tuple[float, float]:
        a, b = (shift + scale * torch.randn(40_000, 2, generator=random) for _ in range(2))
        return float(ranked_probability_score(a, b, truth)), float(energy_score(a, b, truth))

    best = scores(0.0, 1.0)
    for shift, scale in ((0.3, 1.0), (0.0, 1.4), (0.0, 0.6)):
        worse = scores(shift, scale)
        assert worse[0] > best[0] + 0.005
        assert worse[1] > best[1] + 0.005


def test_scores_of_tails_see_rare_events_that_the_others_hardly_see() -> None:
    random = torch.Generator().manual_seed(7)
    truth, *pair = (1.9 * torch.randn(200_000, 1, generator=random) for _ in range(3))
    truth[:2000] -= 8.0  # one event in a hundred
    assert torch.equal(tails(torch.tensor([-TAIL - 1, -1.0, TAIL + 2]), TAIL), torch.tensor([-1.0, 0.0, 2.0]))
    mended = [each.clone() for each in pair]
    for each in mended:
        each[torch.randperm(200_000, generator=random)[:2000]] -= 8.0
    plain, tail = (
        (score(*pair), score(*mended))
        for score in (
            lambda a, b: ranked_probability_score(a, b, truth),
            lambda a, b: ranked_probability_score(*(tails(each, TAIL) for each in (a, b, truth))),
        )
    )
    assert plain[0] > plain[1]
    assert tail[0] / tail[1] - 1 > 5 * (plain[0] / plain[1] - 1)


def test_the_squared_bias_is_that_of_the_means_whatever_the_spread() -> None:
    random = torch.Generator().manual_seed(8)
    found = []
    for _ in range(400):
        truth = 3 * torch.randn(40, 5, generator=random)
        generated = 0.6 + torch.randn(2, 40, 5, generator=random)
        found.append(squared_bias(generated, truth))
    assert abs(float(torch.stack(found).mean()) - (0.6 / 3.1) ** 2) < 0.01
    balance = Balance()
    assert float(balance({"bias of rings": torch.tensor(-0.1)})) == pytest.approx(-2.0)
    assert not balance.running


def test_pairs_of_hit_cells_match_plain_loops() -> None:
    features = ShowerFeatures(get_detector("clic-ecal"), 0.05)
    fired = (torch.rand(2, 25, 25, 25, generator=torch.Generator().manual_seed(9)) > 0.9).float()
    pairs = features.pairs(fired).view(2, 4, 25, 3)  # distance, layer, zone
    layer = fired[1, 7]
    adjacent = (layer[1:] * layer[:-1]).sum() + (layer[:, 1:] * layer[:, :-1]).sum()
    diagonal = (layer[1:, 1:] * layer[:-1, :-1]).sum() + (layer[1:, :-1] * layer[:-1, 1:]).sum()
    further = (layer[2:] * layer[:-2]).sum() + (layer[:, 2:] * layer[:, :-2]).sum()
    torch.testing.assert_close(pairs[1, :3, 7].sum(1), torch.stack([adjacent, diagonal, further]))
    torch.testing.assert_close(pairs[1, 3, 7].sum(), (layer * fired[1, 8]).sum())
    assert float(pairs[1, 3, 24].sum()) == 0


def test_units_that_never_fire_are_made_anew_and_change_nothing() -> None:
    torch.manual_seed(5)
    network, other = Shower2D(sample_shape=(5, 9, 9)), Shower2D(sample_shape=(5, 9, 9))
    dead = {"energies.dense2": [1, 7], "shape.conv3": [0, 5], "shape.conv5": [3]}
    for made, units in dead.items():
        network.get_submodule(made).bias.data[units] = -1e3  # type: ignore[operator]
    network.shape.place.data[:, dead["shape.conv5"]] = -1.0
    inputs = torch.randn(300, network.latent_size), torch.full((300, 1), 3e4)
    with torch.no_grad():
        before = network(*inputs)
        found = revive((network, other), READERS, UNIT_MAPS, lambda: network(*inputs))
        after = network(*inputs)
        again = revive((network, other), READERS, UNIT_MAPS, lambda: network(*inputs))
    assert torch.equal(before, after)
    for made, units in dead.items():
        assert found[made] >= len(units)
        torch.testing.assert_close(network.get_submodule(made).weight[units], other.get_submodule(made).weight[units])  # type: ignore[index]
    assert not network.shape.place[:, dead["shape.conv5"]].any()
    assert sum(again.values()) < sum(found.values())  # a new unit may be one that does not fire, either


class Pairs(torch.nn.Module):
    """A critic of pairs of numbers; its last feature is the logit."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.LeakyReLU(), torch.nn.Linear(32, 8))

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layers(pairs)
        return result


def test_a_critic_finds_a_correlation_that_no_feature_shows_and_the_score_of_its_features_mends_it() -> None:
    torch.manual_seed(4)
    correlation = torch.zeros((), requires_grad=True)  # of the generated pairs; the true one is 0.8
    optimiser = torch.optim.Adam([correlation], lr=0.02)
    scores = CriticScores(Pairs(), 3e-3, torch.device("cpu"), bf16=False)

    def pairs(count: int, value: torch.Tensor) -> torch.Tensor:
        first, second = torch.randn(2, count)
        return torch.stack([first, value * first + torch.sqrt(1 - value.square() + 1e-6) * second], 1)

    for _ in range(200):
        losses = scores(torch.cat([pairs(512, correlation.clamp(-0.99, 0.99)), pairs(256, torch.tensor(0.8))]))
        optimiser.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        optimiser.step()
    assert 0.7 < float(correlation.detach()) < 0.9


def test_a_spectrums_edge_is_continuous_and_thins_out_what_lies_below_it() -> None:
    edge = Edge()
    edge.put(0.2, 3.0)
    x = torch.linspace(0, 1, 100_001)
    with torch.no_grad():
        y = edge(x)
    assert torch.all(y.diff() > 0)
    assert float(y.diff().max()) < 5e-5
    below, above = ((y > low) & (y < low + 0.1) for low in (0.05, 0.25))
    assert abs(int(above.sum()) / int(below.sum()) - 4.0) < 0.01


def test_cell_noise_is_uniform_and_independent_from_cell_to_cell() -> None:
    network = Shower2D()
    uniform, *_ = network.noise(torch.randn(4000, LATENT_NOISE, generator=torch.Generator().manual_seed(5)))
    cells = uniform.flatten(1)[:, ::37].double()
    assert abs(float(cells.mean()) - 0.5) < 0.002
    assert abs(float(cells.std()) - 12**-0.5) < 0.002
    correlation = torch.corrcoef(cells[:, :200].T) - torch.eye(200)
    assert float(correlation.abs().max()) < 6 / 4000**0.5  # 20,000 pairs: five to six standard deviations at most


def alike(location: float, tail: float, links: tuple[float, ...] = (0, 0, 25, 0, 0), answer: float = 0.0) -> Shower2D:
    """A network whose cells are all alike: hit where `location` and `tail` times a number of mean 0.8 are above zero."""
    network = Shower2D(sample_shape=(3, 11, 11))
    for head in (network.shape.location, network.shape.tail, network.shape.spread):
        for parameter in head.parameters():
            torch.nn.init.zeros_(parameter)
    network.shape.profile.data[:2] = torch.tensor([location, tail])[:, None, None, None]
    network.shape.link.data[:] = torch.tensor(links)[:, None, None, None]
    network.shape.across.data.fill_(0.0)
    network.shape.answer.data.fill_(answer)
    return network


@pytest.mark.parametrize(
    ("links", "adjacent", "diagonal", "behind"),
    [
        ((0, 0, 2.5, 0, 0), 0.0, 0.0, 0.0),
        ((0.4, 0, 2.5, 0, 0), 0.1, 0.0, 0.0),
        ((0, 1.3, 2.5, 0, 0), 0.1, 0.0, 0.0),
        ((0, 0, 2.5, 0.4, 0), 0.0, 0.1, 0.0),
        ((0, 0, 2.5, 0, 0.4), 0.0, 0.0, 0.1),
    ],
)
def test_cells_share_in_what_strikes_their_neighbours(
    links: tuple[float, ...], adjacent: float, diagonal: float, behind: float
) -> None:
    network = alike(-0.8, 0.4, links)  # hit one time in sixteen
    noise = torch.randn(4000, LATENT_NOISE, generator=torch.Generator().manual_seed(6))
    inputs = torch.zeros(4000, LATENT_SHAPE), noise, torch.zeros(4000, 3), torch.full((4000, 1), 1e4)
    with torch.no_grad():
        hit = (network.raw_cells(*inputs) > 2 * TRACE).float()
    hit = (hit - hit.mean(0)) / hit.std(0)
    assert abs(float((hit[:, :, 1:] * hit[:, :, :-1]).mean()) - adjacent) < 0.03
    assert abs(float((hit[:, :, :, 1:] * hit[:, :, :, :-1]).mean()) - adjacent) < 0.03
    assert abs(float((hit[:, :, 1:, 1:] * hit[:, :, :-1, :-1]).mean()) - diagonal) < 0.03
    assert abs(float((hit[:, :, 2:] * hit[:, :, :-2]).mean())) < 0.03
    assert abs(float((hit[:, 1:] * hit[:, :-1]).mean()) - behind) < (0.03 if behind else 0.01)


def test_layers_hold_exactly_the_energy_they_were_given() -> None:
    network = Shower2D()
    network.shape.profile.data[0] = 0.5  # some cells of every layer fire
    layers = torch.rand(5, 25, generator=torch.Generator().manual_seed(1)) * 100
    with torch.no_grad():
        cells = network.cells(torch.randn(5, 136), torch.randn(5, 16), layers, torch.full((5, 1), 2e4))
    torch.testing.assert_close(cells.sum((2, 3)), layers, rtol=1e-4, atol=1e-4)


def test_a_layer_whose_cells_are_not_hit_gives_its_energy_to_the_one_that_came_nearest() -> None:
    network = alike(-0.6, 0.15)  # the largest of the numbers is 4
    noise = torch.randn(500, LATENT_NOISE, generator=torch.Generator().manual_seed(6))
    layers = torch.full((500, 3), 0.16)
    with torch.no_grad():
        raw = network.raw_cells(torch.zeros(500, LATENT_SHAPE), noise, layers, torch.full((500, 1), 1e4))
        cells = network.over_threshold(network.with_layer_energies(raw, layers))
    assert float(raw.max()) <= TRACE
    hits = (cells > 0).sum((2, 3)).float()
    assert float((hits > 0).float().mean()) > 0.97 and float(hits.mean()) < 1.3
    assert torch.equal(cells.flatten(2).argmax(2)[hits > 0], raw.flatten(2).argmax(2)[hits > 0])
    assert 0.85 * 0.16 < float(cells.sum((2, 3)).mean()) <= 0.16


def test_cells_answer_to_what_their_layer_lacks_of_its_energy() -> None:
    """The number of cells that are hit is no longer that of independent ones, of which the variance is the mean."""
    noise = torch.randn(4000, LATENT_NOISE, generator=torch.Generator().manual_seed(6))
    spreads = []
    for answer in (0.0, 0.1):
        network = alike(-0.4, 0.2, answer=answer)
        with torch.no_grad():
            inputs = torch.zeros(4000, LATENT_SHAPE), noise, torch.full((4000, 3), 2.0), torch.full((4000, 1), 1e4)
            hits = (network.raw_cells(*inputs) > 2 * TRACE).sum((2, 3)).double()
        spreads.append(float(hits.var() / hits.mean()))
    assert spreads[0] > 0.7 and spreads[1] < 0.8 * spreads[0]


def test_maps_of_layer_energies_rise_and_begin_with_an_edge_and_end_straight() -> None:
    spectra, edge = Spectra(2), Edge()
    spectra.put(0.12, 5.0)
    edge.put(0.12, 5.0)
    energy = torch.linspace(0, 20, 20_001)
    with torch.no_grad():
        made, wanted = spectra(energy[:, None].expand(-1, 2))[:, 0], edge(energy)
    assert torch.all(made.diff() > 0)
    assert float((made - wanted).abs().max()) < 0.02  # pieces end where the edge does, or nearly so
    torch.testing.assert_close(made[-5000:].diff(), energy[-5000:].diff(), rtol=0.01, atol=0)
    torch.nn.init.ones_(spectra.slopes)
    torch.testing.assert_close(spectra(energy[:, None].expand(-1, 2))[:, 1].detach(), energy)


def test_small_cells_keep_their_energy_where_large_ones_can_take_up_the_layers() -> None:
    network = Shower2D()
    raw = torch.zeros(1, 25, 25, 25)
    raw[0, :, 3, 3], raw[0, :, 12, 12] = 0.14, 10.0
    network.raw_cells = lambda *_: raw  # type: ignore[method-assign,assignment]
    for total in (6.0, 10.14, 15.0):
        layers = torch.full((1, 25), total)
        with torch.no_grad():
            cells = network.cells(torch.empty(0), torch.empty(0), layers, torch.empty(0))
        torch.testing.assert_close(cells.sum((2, 3)), layers)
        assert abs(float(cells[0, 0, 3, 3]) / 0.14 - 1) < 0.1
    assert float(cells[0, 0, 12, 12]) > 14.8


def test_the_root_scale_inverts() -> None:
    energy = torch.logspace(-4, 3, 200)
    torch.testing.assert_close(from_root(to_root(energy)), energy, rtol=1e-3, atol=1e-6)


def test_features_of_showers_match_plain_loops(showers: Path) -> None:
    energy = torch.from_numpy(read_events(showers, stop=3).samples)
    features = ShowerFeatures(get_detector("clic-ecal"), 0.05).sums(energy, energy.sum((2, 3)))
    column = to_root(energy[1, :, 12, 12].sum())
    torch.testing.assert_close(features["columns"][1, 12 * 25 + 12], column)
    y = torch.arange(25) - 12.0
    mean = (energy[2].sum((0, 1)) * y).sum() / (energy[2].sum() + 0.3)
    torch.testing.assert_close(features["moments"][2, 1], mean, rtol=1e-4, atol=1e-5)
    x, diagonal = y[:, None].expand(25, 25), y[:, None] * y
    first = energy[0].sum(0)[(y >= 0) & (x > y)].sum() / (energy[0].sum() + 0.3)  # from an axis to the diagonal
    torch.testing.assert_close(features["sector shares"][0, 0], first, rtol=1e-4, atol=1e-5)
    product = (energy[0].sum(0) * diagonal).sum() / (energy[0].sum() + 0.3)
    torch.testing.assert_close(features["moments"][0, 4], product, rtol=1e-3, atol=1e-4)


def test_spectra_count_the_cells_of_layers_and_rings_above_energies(showers: Path) -> None:
    energy = torch.from_numpy(read_events(showers, stop=3).samples)
    root = to_root(energy)
    features = ShowerFeatures(get_detector("clic-ecal"), 0.05)
    spectra = features.spectra(root)
    counts = (spectra["spectra of layers"].square() - 0.1).view(3, SPECTRUM_BINS, 25)
    rings = (spectra["spectra of rings"].square() - 0.1).view(3, SPECTRUM_BINS, -1)
    torch.testing.assert_close(counts.sum(2), rings.sum(2), rtol=1e-4, atol=1e-3)
    for number in range(SPECTRUM_BINS):
        low, high = (features.threshold * SPECTRUM_RATIO**edge for edge in (number, number + 1))
        assert torch.all(counts[:, number] <= (root > low).sum((2, 3)) + 1e-3)
        assert torch.all(counts[:, number] >= (root > high).sum((2, 3)) - 1e-3)


def test_an_edge_is_learned_where_there_is_one() -> None:
    network = Shower2D()
    assert not any(parameter.requires_grad for parameter in network.shape.edge.parameters())
    network.shape.edge.put(0.2, 3.0)
    root = torch.rand(1000)
    network.shape.edge(root).sum().backward()
    below = 3.0 * root < 0.15  # there y = 4 x, above x + 0.2 c / (1 + c)
    torch.testing.assert_close(network.shape.edge.contrast.grad, root[below].sum() + (~below).sum() * 0.2 / 16)


def test_a_layers_gain_and_shift_move_its_cells_and_no_others() -> None:
    network = Shower2D()
    network.shape.answer.data.fill_(0.0)
    inputs = torch.randn(8, LATENT_SHAPE), torch.randn(8, LATENT_NOISE), torch.rand(8, 25) * 100, torch.full((8, 1), 1e4)
    with torch.no_grad():
        before = to_root(network.raw_cells(*inputs))
        network.shape.layer2.bias[3], network.shape.layer2.bias[25 + 3] = 1.0, 0.25
        after = to_root(network.raw_cells(*inputs))
    hit = before[:, 3] > to_root(torch.tensor(2 * TRACE))
    assert hit.any()
    torch.testing.assert_close(after[:, 3][hit], 2 * before[:, 3][hit] + 0.25, rtol=1e-3, atol=1e-3)
    others = [layer for layer in range(25) if layer != 3]
    assert torch.equal(after[:, others], before[:, others])


def test_the_published_network_has_the_published_size() -> None:
    assert sum(parameter.numel() for parameter in Gan3D().parameters()) == 872_808  # 0.87 million
    logit, energy, total = Discriminator3D()(torch.ones(2, 25, 25, 25))
    assert logit.shape == energy.shape == (2,)
    assert float(total[0]) == 25**3
