"""Write a checkpoint from which `minicarlo train` starts with the weights of a surrogate of `shower2d`, as the shipped one is.

    python scripts/checkpoint_of_surrogate.py src/minicarlo/shipped/clic-ecal/fp32.onnx configs/shower2d-critic.toml
    minicarlo train configs/shower2d-critic.toml

It is written where the configuration's `initial` says. Convolutions for each phase of an upsampled grid are made one again.
Critics are not part of a surrogate; the run begins with new ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from minicarlo.generators.shower2d import UNIT_MAPS
from minicarlo.training.config import read_config
from minicarlo.training.loop import CHECKPOINT, make_recipe
from minicarlo.training.showers import load_showers


def main() -> None:
    given, path = sys.argv[1:]
    config = read_config(path)
    if config.initial is None:
        raise SystemExit(f"{path}: names no run to start from. Set `initial`.")
    model = onnx.load(given)
    recipe = make_recipe(config, load_showers(config.data.train, config.data.detector), torch.device("cpu"), bf16=False)
    network = recipe.state_dict()["generator"]
    weights = named_weights(model, network)
    for name, value in network.items():
        if name in weights:
            value.copy_(weights[name])
    config.initial.mkdir(parents=True, exist_ok=True)
    recipes = {"generator": network, "average": network, "scores": {}, "critic": {}}
    torch.save({"step": 0, "seconds": 0.0, "config": "", "recipe": recipes}, Path(config.initial, CHECKPOINT))


def named_weights(model: onnx.ModelProto, network: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the network's own names, of which exporting and rewriting have changed some."""
    weights = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in model.graph.initializer}
    for node in model.graph.node:
        if node.name == "energies.noise":
            weights["energies.noise.weight"] = weights[node.input[1]].T
    for name, folded in {"shape.profile": "onnx::Add_", "shape.link": "/Squeeze_"}.items():
        maps = [each for each in weights if each.startswith(folded) and weights[each].dim() == 3]
        if maps:  # in the order in which the network takes them apart
            found = torch.stack([weights[each] for each in sorted(maps, key=lambda each: (len(each), each))])
            weights[name] = torch.cat([found, network[name][len(found) :]])
    for convolution, place in UNIT_MAPS.items():  # those behind upsamplings
        if f"{convolution}.11.weight" in weights:
            weights[f"{convolution}.weight"] = weights[f"{convolution}.11.weight"]
            weights[f"{convolution}.bias"] = weights[f"{convolution}.11.bias"]
            phases = torch.stack([weights[f"{place}.{number}"][0] for number in range(1, 5)], dim=1)
            side = network[place].shape[2:]
            weights[place] = torch.nn.functional.pixel_shuffle(phases.flatten(0, 1), 2)[None, :, : side[0], : side[1]]
    return weights


if __name__ == "__main__":
    main()
