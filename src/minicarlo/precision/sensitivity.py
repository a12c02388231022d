"""What one layer alone does to the criterion."""

from __future__ import annotations

from collections.abc import Callable

from minicarlo.precision.plan import Layer, Plan

Probe = Callable[[Plan], float]


class LayerSensitivity:
    """The criterion's value with one layer alone in a lower format, all others fp32: measured once, then known.

    `known` may bring values from an interrupted run; `record` is called with (layer, format, value) for each new one.
    """

    def __init__(
        self,
        layers: tuple[Layer, ...],
        probe: Probe,
        known: dict[tuple[str, str], float],
        record: Callable[[str, str, float], None],
    ) -> None:
        self._reference = Plan.uniform(layers, "fp32")
        self._probe, self._known, self._record = probe, dict(known), record

    def __call__(self, layer: str, form: str) -> float:
        """Value for one layer in one format; infinite when the runtime does not compute it so."""
        if (layer, form) not in self._known:
            value = self._probe(self._reference.with_formats({layer: form}))
            self._record(layer, form, value)
            self._known[layer, form] = value
        return self._known[layer, form]

    def __len__(self) -> int:
        return len(self._known)
