"""Fall back layer by layer in the order of what each does alone."""

from __future__ import annotations

from minicarlo.precision.strategies.base import Search, Strategy


class Mse(Strategy):
    """All layers in the cheapest format; then one layer more falls back per trial, most harmful first, until a plan passes.

    Layers fall back to bf16; if all of them in bf16 do not pass, to fp32 in the same order. Where Neural Compressor sorts by
    the squared error of a layer's output, this sorts by what the layer alone does to the criterion.

    References:
        `mse` of Intel Neural Compressor 2.6, docs/source/tuning_strategies.md
    """

    name = "mse"

    def search(self) -> Search:
        """See Strategy."""
        plan = self.cheapest()
        if (yield plan).accepted:
            return
        order = sorted(self.formats, key=lambda name: self.harm(name, self.formats[name][0]), reverse=True)
        for form in dict.fromkeys(form for forms in self.problem.formats.values() for form in forms[1:]):
            for name in order:
                plan = plan.with_formats({name: form})
                if (yield plan).accepted:
                    return
