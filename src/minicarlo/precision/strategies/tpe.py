"""Tree-structured Parzen estimators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minicarlo.precision.strategies._optuna import OptunaStrategy

if TYPE_CHECKING:
    import optuna


class Tpe(OptunaStrategy):
    """The sampler of Optuna that models good and bad plans by the densities of their formats. Needs many trials.

    References:
        Algorithms for Hyper-Parameter Optimization, J. Bergstra et al., NIPS 2011
    """

    name = "tpe"

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """See OptunaStrategy."""
        from optuna.samplers import TPESampler

        return TPESampler(seed=seed)
