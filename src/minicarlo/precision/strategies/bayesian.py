"""Bayesian optimisation with a Gaussian process."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from minicarlo.precision.strategies._optuna import OptunaStrategy

if TYPE_CHECKING:
    import optuna


class Bayesian(OptunaStrategy):
    """The sampler of Optuna that models cost and criterion by Gaussian processes. Needs many trials, and PyTorch.

    References:
        Practical Bayesian Optimization of Machine Learning Algorithms, J. Snoek et al., https://arxiv.org/abs/1206.2944
    """

    name = "bayesian"
    extras = "strategies,train"

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """See OptunaStrategy."""
        from optuna.samplers import GPSampler

        if find_spec("torch") is None:  # Optuna would ask for it at its eleventh trial only
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return GPSampler(seed=seed)
