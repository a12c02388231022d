"""Write the checkpoint that the shipped surrogate's last training began from: the weights of the one shipped before it.

    git show ab0f302:src/minicarlo/shipped/clic-ecal/fp32.onnx > before.onnx
    python scripts/checkpoint_of_surrogate.py before.onnx configs/shower2d-critic.toml
    minicarlo train configs/shower2d-critic.toml

The numbers that make cells are enlarged, because cells before their layers were given their energies held less than half of it
then; the edges of the spectra are put where the Monte Carlo has them, and the gain and shift of layers are none: that network had
neither as they are now.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper

from minicarlo.training.config import read_config
from minicarlo.training.loop import CHECKPOINT, make_recipe
from minicarlo.training.showers import load_showers

ENLARGED = 1.45
CELLS = ("shape.location.", "shape.tail.", "shape.spread.", "shape.profile")


def main() -> None:
    given, path = sys.argv[1:]
    config = read_config(path)
    if config.initial is None:
        raise SystemExit(f"{path}: names no run to start from. Set `initial`.")
    weights = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in onnx.load(given).graph.initializer}
    recipe = make_recipe(config, load_showers(config.data.train, config.data.detector), torch.device("cpu"), bf16=False)
    state = recipe.state_dict()
    network = state["generator"]
    folded = sorted((name for name in weights if name.startswith("onnx::Add_")), key=lambda name: int(name[10:]))
    weights["shape.profile"] = torch.stack([weights[name] for name in folded])
    (noise,) = (name for name in weights if name.startswith("onnx::MatMul_"))
    weights["energies.noise.weight"] = weights[noise].T
    for name, value in network.items():
        if name in weights:
            value.copy_(weights[name])
            if name.startswith(CELLS):
                value.mul_(ENLARGED)
    config.initial.mkdir(parents=True, exist_ok=True)
    recipes = {"generator": network, "average": network, "scores": {}, "critic": {}}
    torch.save({"step": 0, "seconds": 0.0, "config": "", "recipe": recipes}, Path(config.initial, CHECKPOINT))


if __name__ == "__main__":
    main()
