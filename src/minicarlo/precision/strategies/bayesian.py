"""Bayesian optimisation with a Gaussian process."""

from __future__ import annotations

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
        import torch  # noqa: F401  Optuna would ask for it at the tenth trial only
        from optuna.samplers import GPSampler

        return GPSampler(seed=seed)
