"""Training with int8 in the loop, and as the last resort of a tuning."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from minicarlo.cli import main  # noqa: E402
from minicarlo.errors import InvalidConfig, TuningError  # noqa: E402
from minicarlo.events import read_events, write_events  # noqa: E402
from minicarlo.qat import train_in_int8, tune_or_retrain  # noqa: E402
from minicarlo.surrogate import Surrogate, sample_path  # noqa: E402
from minicarlo.training.config import read_config  # noqa: E402
from minicarlo.training.int8 import compute_in_int8, rounded_inputs, rounded_weights  # noqa: E402
from minicarlo.training.loop import train  # noqa: E402

FAST = {"calibration_events": 64, "evaluation_events": 256, "objective": "macs", "portable": True, "smooth": False}
FAST |= {"strategy": "random", "max_trials": 1}  # one plan, without a probe
CONFIG = """
name = "small"
generator = "{generator}"
output = "surrogate"
run = "run"
[data]
train = ["showers.h5"]
validation = "showers.h5"
[training]
steps = 2
energy_steps = 2
score_steps = {score_steps}
batch = 4
validation_events = 20
validate_every = 1000
checkpoint_every = 1
precision = "fp32"
threads = 1
"""


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_values_are_rounded_to_levels_with_zero_among_them_and_gradients_pass(seed, positive):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(50, generator=generator)
    values = (values.relu() if positive else values).requires_grad_()
    made = rounded_inputs(values)
    plain = values.detach()
    step = (max(float(plain.max()), 0) - min(float(plain.min()), 0)) / 255
    assert float((made - values).detach().abs().max()) <= 1.01 * step  # half a step, and half for zero on the grid
    assert rounded_inputs(torch.cat([values.detach(), torch.zeros(1)]))[-1] == 0
    made.sum().backward()
    assert float((values.grad == 1).float().mean()) > 0.9  # but at an end that zero has moved


def test_every_output_channel_of_weights_has_its_scale():
    weights = (
        torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
        * torch.tensor([0.01, 1.0, 100.0])[:, None, None, None]
    )
    made = rounded_weights(weights, 0)
    step = weights.abs().amax((1, 2, 3)) / 127
    assert torch.all((made - weights).abs().amax((1, 2, 3)) <= 0.5001 * step)
    assert torch.all((rounded_weights(weights.transpose(0, 1), 1) - made.transpose(0, 1)).abs() < 1e-6)


def test_a_network_computes_with_rounded_numbers_and_keeps_its_own():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2), nn.Flatten(), nn.Linear(196, 5))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        plain = network(x)
        assert compute_in_int8(network) == ["0", "2", "4"]
        rounded = network(x)
        first = functional.conv2d(rounded_inputs(x), rounded_weights(network[0].weight, 0), network[0].bias)
        assert torch.equal(network[0](x), first)
    assert 0 < float((rounded - plain).norm()) < 0.05 * float(plain.norm())
    assert {name: torch.equal(value, before[name]) for name, value in network.state_dict().items()} == dict.fromkeys(before, True)


def test_training_with_int8_in_the_loop_makes_a_network_that_int8_hurts_less():
    """A narrow network that has learned with all its numbers, trained on with and without rounding, judged with rounding."""

    def loss(network):
        x = torch.linspace(-2, 2, 256)[:, None]
        return functional.mse_loss(network(x), torch.sin(4 * x) * x.exp())

    def trained(network, steps, rate):
        optimiser = torch.optim.Adam(network.parameters(), rate)
        for _ in range(steps):
            optimiser.zero_grad()
            loss(network).backward()
            optimiser.step()
        return network

    def make(weights=None, int8=False):
        torch.manual_seed(3)
        network = nn.Sequential(nn.Linear(1, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 1))
        if weights is not None:
            network.load_state_dict(weights)
        if int8:
            compute_in_int8(network)
        return network

    start = trained(make(), 1500, 3e-3).state_dict()
    longer = trained(make(start), 1500, 5e-4)
    hurt = float(loss(make(longer.state_dict(), int8=True)).detach())
    told = float(loss(trained(make(start, int8=True), 1500, 5e-4)).detach())
    assert told < 0.8 * hurt


@pytest.fixture
def run(tmp_path):
    """A run of a few steps on real showers."""

    def make(generator: str, score_steps: int = 0) -> Path:
        write_events(tmp_path / "showers.h5", read_events(sample_path(), stop=200))
        (tmp_path / "config.toml").write_text(CONFIG.format(generator=generator, score_steps=score_steps))
        train(tmp_path / "config.toml")
        return tmp_path / "config.toml"

    return make


def test_where_no_plan_passes_the_training_goes_on_with_int8_and_the_result_is_judged_by_both(run, tmp_path):
    config = run("shower2d")
    surrogate = Surrogate.load(tmp_path / "surrogate")
    result = tune_or_retrain(
        surrogate, tmp_path / "out", config, reference=tmp_path / "showers.h5", steps=2, tolerance=1e-7, **FAST
    )
    assert "after 2 steps with int8 in the loop" in result.reason and not result.accepted  # nothing passes so small a tolerance
    assert {"fp32", "tuned", "low", "high"} <= set(result.monte_carlo)
    assert (tmp_path / "run-int8" / "checkpoint.pt").exists() and (tmp_path / "run" / "checkpoint.pt").exists()
    assert Surrogate.load(tmp_path / "surrogate-int8").manifest.training["steps"] == 2
    assert Surrogate.load(tmp_path / "out").onnx != surrogate.onnx


def test_where_a_plan_passes_nothing_is_trained(run, tmp_path):
    config = run("shower2d")
    result = tune_or_retrain(
        tmp_path / "surrogate", tmp_path / "out", config, reference=tmp_path / "showers.h5", tolerance=9, **FAST
    )
    assert result.accepted and not (tmp_path / "run-int8").exists()


def test_a_gan_is_trained_on_by_its_own_losses_in_their_proportion(run, tmp_path):
    """Two steps of scores and two against the discriminator: one of each with int8."""
    config = run("gan3d", score_steps=2)
    after = train_in_int8(Surrogate.load(tmp_path / "surrogate"), config, steps=2)
    training = after.manifest.training["configuration"]
    assert '"score_steps":1' in training and '"steps":1' in training and '"int8":true' in training
    assert after.onnx != Surrogate.load(tmp_path / "surrogate").onnx


def test_mistakes_are_named(run, tmp_path):
    config = run("shower2d")
    with pytest.raises(InvalidConfig, match="int8 and compile exclude each other"):
        (tmp_path / "both.toml").write_text(config.read_text() + "int8 = true\ncompile = true\n")
        read_config(tmp_path / "both.toml")
    (tmp_path / "run" / "checkpoint.pt").unlink()
    settings = {"reference": tmp_path / "showers.h5", "tolerance": 1e-7} | FAST
    with pytest.raises(InvalidConfig, match="no run of .* to go on from"):
        tune_or_retrain(tmp_path / "surrogate", tmp_path / "out", config, **settings)
    with pytest.raises(TuningError, match="trains a gan3d, the surrogate is a shower2d"):
        (tmp_path / "other.toml").write_text(CONFIG.format(generator="gan3d", score_steps=0))
        tune_or_retrain(tmp_path / "surrogate", tmp_path / "out2", tmp_path / "other.toml", **settings)
    ran = CliRunner().invoke(main, ["tune", str(tmp_path / "surrogate"), "-o", str(tmp_path / "x"), "--qat", str(config)])
    assert ran.exit_code == 2 and "--reference" in ran.stderr
