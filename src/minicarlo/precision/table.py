"""Which layers hold the physics, and why: what each alone does to the criterion, which observables it moves, what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minicarlo.precision.history import History
from minicarlo.precision.plan import Layer, Plan


def layer_table(layers: Sequence[Layer], plan: Plan, ran: dict[str, str], history: History) -> tuple[dict[str, Any], ...]:
    """A row for each layer in graph order, from what a history knows.

    Keys: `name`, `operation`, `macs` (multiply-accumulates per event), `mac_share`, `format` and `ran` (planned and run),
    `scheme` (how an int8 layer is quantised), and by format `harm` (the criterion with this layer alone so; infinite where it
    does not run), `moves` (the family of observables, or the output, that changes most), `seconds` (of the layer in one
    inference). A format that was not measured is missing.
    """
    total = sum(layer.macs for layer in layers) or 1
    clock = next((objective for objective, _ in history.times), None)
    return tuple(
        {
            **layer.__dict__,
            "mac_share": layer.macs / total,
            "format": plan[layer.name],
            "ran": ran.get(layer.name),
            "scheme": str(plan.scheme(layer.name)) if plan[layer.name] == "int8" else None,
            "harm": {form: probe.value for (name, form), probe in history.sensitivities.items() if name == layer.name},
            "moves": {
                form: max(probe.families, key=probe.families.__getitem__)
                for (name, form), probe in history.sensitivities.items()
                if name == layer.name and probe.families
            },
            "seconds": {
                form: seconds[layer.name]
                for (objective, form), seconds in history.times.items()
                if objective == clock and layer.name in seconds
            },
        }
        for layer in layers
    )
