"""Units behind a ReLU that have stopped firing: no gradient reaches them any more, so that they are made anew.

A new unit has the weights of a new layer, and what reads it weighs it with nothing, so that the network computes what it computed
before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["RARELY", "revive"]

RARELY = 1e-4  # a unit that fires at fewer than this share of events and places is made anew


@torch.no_grad()
def revive(
    networks: Sequence[nn.Module],
    readers: Mapping[str, Sequence[str]],
    maps: Mapping[str, str],
    run: Callable[[], object],
) -> dict[str, int]:
    """Make units anew that hardly ever fire, and return how many of each layer.

    Arguments:
        networks: the one that `run` runs, and others of the same structure, in which the same units get the same weights.
        readers: by the name of a layer those of the layers that read it behind its ReLU.
        maps: by the name of a layer a parameter (1, units, ...) that is added to its units.
        run: computes events.
    """
    first, *others = (dict(network.named_modules()) for network in networks)
    firing = firing_of(first, readers, run)
    for made, names in readers.items():
        dead = (firing[made] < RARELY).nonzero()[:, 0]
        if not len(dead):
            continue
        bound = first[made].weight[0].numel() ** -0.5  # PyTorch's own for new layers
        weight = torch.empty_like(first[made].weight[dead]).uniform_(-bound, bound)
        bias = torch.empty_like(first[made].bias[dead]).uniform_(-bound, bound)
        for modules, network in zip((first, *others), networks, strict=True):
            modules[made].weight[dead], modules[made].bias[dead] = weight, bias
            for name in names:
                modules[name].weight[:, dead] = 0.0
            if made in maps:
                network.get_parameter(maps[made])[:, dead] = 0.0
    return {made: int((values < RARELY).sum()) for made, values in firing.items()}


def firing_of(
    modules: Mapping[str, nn.Module], readers: Mapping[str, Sequence[str]], run: Callable[[], object]
) -> dict[str, Tensor]:
    """By layer (units,) the share of events and places at which each is above zero while `run` runs, as its readers see it."""
    seen: dict[str, list[Tensor]] = {made: [] for made in readers}

    def hook(made: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: seen[made].append((inputs[0] > 0).float().transpose(0, 1).flatten(1).mean(1))

    handles = [modules[names[0]].register_forward_pre_hook(hook(made)) for made, names in readers.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return {made: torch.stack(shares).mean(0) for made, shares in seen.items()}
