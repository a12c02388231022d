"""Fall back by kind of operation, then layer by layer, then layers together."""

from __future__ import annotations

from minicarlo.precision.strategies.base import Search, Strategy


class Basic(Strategy):
    """All layers in the cheapest format; then fall back to bf16 and, if nothing passes so, to fp32, in three rounds each.

    First all layers of one operation, then one layer, each alone; if none of these passes, layers together, in the order of
    what each one's return did to the criterion. Nothing is measured but full trials: about two for every layer and format.

    References:
        `basic` of Intel Neural Compressor 2.6, docs/source/tuning_strategies.md
    """

    name = "basic"

    def search(self) -> Search:
        """See Strategy."""
        cheapest = self.cheapest()
        if (yield cheapest).accepted:
            return
        for form in dict.fromkeys(form for forms in self.problem.formats.values() for form in forms[1:]):
            passed = False
            operations: dict[str, list[str]] = {}
            for layer in self.problem.layers:
                operations.setdefault(layer.operation, []).append(layer.name)
            for names in operations.values():
                trial = yield cheapest.with_formats(dict.fromkeys(names, form))
                passed = passed or trial.accepted
            upper: dict[str, float] = {}
            for layer in self.problem.layers:
                trial = yield cheapest.with_formats({layer.name: form})
                upper[layer.name], passed = trial.upper, passed or trial.accepted
            if passed:
                return
            plan = cheapest
            for name in sorted(upper, key=upper.__getitem__):
                plan = plan.with_formats({name: form})
                if (yield plan).accepted:
                    return
