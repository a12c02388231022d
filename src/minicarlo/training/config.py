"""What a training run is told: a TOML file, checked before anything is computed."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from minicarlo.errors import InvalidConfig

__all__ = ["TrainConfig", "read_config"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Section):
    """Event sets; `train` is learned from, `validation` is only looked at."""

    train: list[Path] = Field(min_length=1)
    validation: Path
    detector: str | None = None  # that of the event sets


class Training(Section):
    """`steps` are of the main network.

    Before them come `energy_steps` of the layer-energy network of `shower2d`, or `score_steps` of a GAN's generator alone,
    by proper scoring rules, at `score_learning_rate`.
    """

    steps: int = Field(ge=0)
    energy_steps: int = Field(default=6000, ge=0)
    score_steps: int = Field(default=0, ge=0)
    score_learning_rate: float = Field(default=1e-3, gt=0)
    batch: int = Field(default=96, gt=1)
    energy_batch: int = Field(default=1024, gt=1)
    learning_rate: float = Field(default=1.5e-3, gt=0)
    discriminator_learning_rate: float = Field(default=1e-4, gt=0)
    critic: bool = False  # also score features by which a classifier, trained beside, tells generated showers apart
    critic_learning_rate: float = Field(default=2e-4, gt=0)
    seed: int = Field(default=1, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False  # fuse with torch.compile; needs a C++ compiler
    int8: bool = False  # train with int8 in the loop: what is tuned afterwards has been told
    threads: int | None = Field(default=None, gt=0)
    device: Literal["auto", "cpu", "cuda", "xpu"] = "auto"
    checkpoint_every: int = Field(default=500, gt=0)
    validate_every: int = Field(default=500, gt=0)
    validation_events: int = Field(default=1000, gt=0)

    @model_validator(mode="after")
    def check_int8(self) -> Training:
        """What computes in int8 by hooks cannot be fused."""
        if self.int8 and self.compile:
            raise ValueError("int8 and compile exclude each other; leave out compile")
        return self


class TrainConfig(Section):
    """A whole training run. `output` becomes the surrogate; checkpoints, logs and plots go to `run`.

    `initial` is the folder of an earlier run whose averaged weights, and critics if both have them, this one starts from.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    generator: Literal["shower2d", "gan3d", "gan2d"]
    output: Path
    run: Path
    initial: Path | None = None
    data: Data
    training: Training


def read_config(path: str | Path) -> TrainConfig:
    """Read and check a training configuration.

    Paths in it are relative to the file.

    Raises:
        InvalidConfig: the file is missing, is not TOML, or a field is wrong; the message names the field.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidConfig(
            f"{path}: cannot be read ({error.strerror}). Give the path of a training configuration in TOML."
        ) from None
    except UnicodeDecodeError:
        raise InvalidConfig(f"{path}: is not a text file. Give the path of a training configuration in TOML.") from None
    try:
        config = TrainConfig.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig(f"{path}: is not valid TOML: {error}.") from None
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors())
        raise InvalidConfig(f"{path}: {wrong}. See `minicarlo train --help` for an example.") from None
    base = path.parent
    data = config.data.model_copy(
        update={"train": [base / item for item in config.data.train], "validation": base / config.data.validation}
    )
    paths = {"output": base / config.output, "run": base / config.run, "data": data}
    if config.initial is not None:
        paths["initial"] = base / config.initial
    return config.model_copy(update=paths)
