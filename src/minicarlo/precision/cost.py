"""What one layer costs in each format, by the runtime's clock."""

from __future__ import annotations

from collections.abc import Callable

from minicarlo.precision.plan import RELATIVE_COST, Layer

Seconds = Callable[[str], dict[str, float]]
"""Format to the seconds of every layer in a model that is in this format throughout."""


class LayerCost:
    """Time of each layer in each format: one profiled run per format, made when first asked for.

    Without `seconds` (a machine too busy to time anything) multiply-accumulates at RELATIVE_COST stand in for time.
    """

    def __init__(self, layers: tuple[Layer, ...], seconds: Seconds | None) -> None:
        self._macs = {layer.name: float(layer.macs) for layer in layers}
        self._seconds = seconds
        self._known: dict[str, dict[str, float]] = {}

    def __call__(self, layer: str, form: str) -> float:
        """Cost of a layer in a format, in the same unit for all."""
        if self._seconds is None:
            return self._macs[layer] * RELATIVE_COST[form]
        if form not in self._known:
            self._known[form] = self._seconds(form)
        return self._known[form].get(layer, 0.0)
