"""The training loop: steps, checkpoints, log, validation plots, and the surrogate at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from minicarlo.errors import InvalidConfig, OutputError
from minicarlo.files import atomic_path
from minicarlo.generators.base import Generator
from minicarlo.generators.gan2d import Gan2D
from minicarlo.generators.gan3d import Gan3D
from minicarlo.generators.shower2d import Shower2D
from minicarlo.surrogate import Surrogate
from minicarlo.training.adversarial import AdversarialRecipe
from minicarlo.training.config import TrainConfig, read_config
from minicarlo.training.export import export_surrogate
from minicarlo.training.monitor import Monitor
from minicarlo.training.scoring import ScoringRecipe, cell_unit, layer_units
from minicarlo.training.showers import Showers, load_showers

__all__ = ["Recipe", "TrainResult", "train"]

CHECKPOINT = "checkpoint.pt"


class Recipe(Protocol):
    """How one kind of generator is trained. A step depends on its number and the state only, so that a run can resume."""

    total_steps: int

    @property
    def average(self) -> Generator:
        """The generator to keep: weights averaged over recent steps."""
        ...

    def step(self, step: int) -> dict[str, Tensor]: ...
    def start_from(self, state: dict[str, Any]) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class TrainResult:
    """What a training run gave."""

    surrogate: Path
    steps: int
    seconds: float
    resumed_from: int


def train(
    config: str | Path | TrainConfig,
    *,
    steps: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrainResult:
    """Train a generator and save it as a surrogate.

    A run that was stopped is taken up again at its last checkpoint when it is started with the same configuration.

    Arguments:
        config: a configuration, or the path of one in TOML.
        steps: stop after this many steps of this call (the run can be taken up again); the surrogate is written all the same.
        progress: called with (steps done, steps in all).

    Raises:
        InvalidConfig: the configuration is wrong, or the run's folder holds a run with another configuration.
        InvalidEventSet, IncompatibleEventSets: the training data is not what the configuration says.
        OutputError: a result cannot be written.
    """
    config = config if isinstance(config, TrainConfig) else read_config(config)
    device = choose_device(config.training.device)
    bf16 = choose_bf16(config.training.precision, device)
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    try:
        config.run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{config.run}: cannot be made ({error.strerror}). Set `run` to a folder that can be written."
        ) from None
    showers = load_showers(config.data.train, config.data.detector)
    validation = load_showers([config.data.validation], showers.detector.name, config.training.validation_events)
    torch.manual_seed(config.training.seed)
    recipe = make_recipe(config, showers, device, bf16)
    if config.initial is not None:
        path = config.initial / CHECKPOINT
        take_up(path, recipe.start_from, read_checkpoint(path)["recipe"])
    first, seconds = load_checkpoint(config, recipe)
    monitor = Monitor(config.run, validation, device)
    last = recipe.total_steps if steps is None else min(recipe.total_steps, first + steps)
    started = time.monotonic() - seconds
    with SummaryWriter(str(config.run / "tensorboard"), purge_step=first) as log:
        for step in range(first, last):
            losses = recipe.step(step)
            if step % 20 == 0:
                for name, loss in losses.items():
                    log.add_scalar(name, float(loss), step)
            if progress is not None:
                progress(step + 1, recipe.total_steps)
            done = step + 1
            if done % config.training.validate_every == 0 or done == last:
                for name, value in monitor.check(recipe.average, done).items():
                    log.add_scalar(f"validation/{name}", value, done)
            if done % config.training.checkpoint_every == 0 or done == last:
                save_checkpoint(config, recipe, done, time.monotonic() - started)
    seconds = time.monotonic() - started
    surrogate = save(config, recipe.average, showers, last, seconds)
    return TrainResult(surrogate.path, last, seconds, first)


def make_recipe(config: TrainConfig, showers: Showers, device: torch.device, bf16: bool) -> Recipe:
    detector = showers.detector
    threshold, shape = detector.readout_threshold_mev, detector.shape
    low, high = energy_range(showers.incident_energy)
    if config.generator == "shower2d":
        units, cell_mev = layer_units(showers), cell_unit(showers, threshold)
        generator = Shower2D(low, high, threshold_mev=threshold, sample_shape=shape, layer_units=units, cell_mev=cell_mev)
        return ScoringRecipe(generator, showers, config.training, device, bf16)
    network: type[Gan3D | Gan2D] = Gan3D if config.generator == "gan3d" else Gan2D
    if shape != network.sample_shape or detector.grid != "cartesian":
        raise InvalidConfig(
            f"generator: {config.generator} makes showers of {' x '.join(map(str, network.sample_shape))} cells (z, x, y), "
            f"detector {detector.name} has {' x '.join(map(str, shape))} ({', '.join(detector.axes)}). Use shower2d."
        )
    return AdversarialRecipe(network(low_mev=low, high_mev=high, threshold_mev=threshold), showers, config.training, device, bf16)


def energy_range(incident_energy: Tensor) -> tuple[float, float]:
    """Trained range in MeV: the data's, widened to two digits so that a range such as 1 to 100 GeV comes out as it was meant."""
    low, high = float(incident_energy.min()), float(incident_energy.max())
    return float(f"{low:.1e}"), float(f"{high:.1e}")


def choose_device(name: str) -> torch.device:
    """The device to train on: the one asked for, or a GPU when there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "xpu" if torch.xpu.is_available() else "cpu"
    elif (name == "cuda" and not torch.cuda.is_available()) or (name == "xpu" and not torch.xpu.is_available()):
        raise InvalidConfig(f"training.device: '{name}' is not available to PyTorch on this machine. Use 'auto' or 'cpu'.")
    return torch.device(name)


def choose_bf16(precision: str, device: torch.device) -> bool:
    """Whether convolutions compute in bf16: on GPUs and on processors with bf16 instructions, unless told otherwise."""
    if precision != "auto":
        return precision == "bf16"
    return device.type != "cpu" or bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def save_checkpoint(config: TrainConfig, recipe: Recipe, step: int, seconds: float) -> None:
    state = {"step": step, "seconds": seconds, "config": config.model_dump_json(), "recipe": recipe.state_dict()}
    with atomic_path(config.run / CHECKPOINT) as temporary:
        torch.save(state, temporary)


def load_checkpoint(config: TrainConfig, recipe: Recipe) -> tuple[int, float]:
    """Steps and seconds already done; (0, 0) for a new run."""
    path = config.run / CHECKPOINT
    if not path.exists():
        return 0, 0.0
    state = read_checkpoint(path)
    if state["config"] != config.model_dump_json():
        raise InvalidConfig(f"{config.run}: holds a run with another configuration. Set `run` to another folder, or remove it.")
    take_up(path, recipe.load_state_dict, state["recipe"])
    return int(state["step"]), float(state["seconds"])


def take_up(path: Path, load: Callable[[dict[str, Any]], None], state: dict[str, Any]) -> None:
    """Load a state with `load`. Raises InvalidConfig when it is that of another network."""
    try:
        load(state)
    except (KeyError, RuntimeError, ValueError):
        raise InvalidConfig(
            f"{path}: holds another network than this configuration makes, of another kind or size or from another version of "
            "minicarlo. Name the folder of a run that fits, or begin anew."
        ) from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, read so that nothing in it is executed. Raises InvalidConfig when it is not one of ours."""
    try:
        state = torch.load(path, weights_only=True)
        if set(state) != {"step", "seconds", "config", "recipe"}:
            raise ValueError
    except Exception:
        raise InvalidConfig(f"{path}: is not a checkpoint of minicarlo. Remove it, or name another folder.") from None
    return dict(state)


def save(config: TrainConfig, generator: Generator, showers: Showers, steps: int, seconds: float) -> Surrogate:
    low, high = energy_range(showers.incident_energy)
    training: dict[str, str | int | float] = {
        "steps": steps,
        "seconds": round(seconds, 1),
        "events": len(showers),
        **({} if showers.particle is None else {"particle": showers.particle}),
        "configuration": config.training.model_dump_json(),
        "torch": torch.__version__,
        "processor_count": os.cpu_count() or 1,
    }
    return export_surrogate(generator, config, showers.detector.name, (low, high), training)
