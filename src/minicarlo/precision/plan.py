"""Which layer computes in which number format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from minicarlo.errors import TuningError

FORMATS = ("int8", "bf16", "fp32")
"""Number formats, from the cheapest to the reference."""

RELATIVE_COST = {"int8": 1.0, "bf16": 2.0, "fp32": 4.0}
"""Time of one multiply-accumulate relative to int8, where nothing is measured (AVX-512 with VNNI and bf16)."""


@dataclass(frozen=True)
class Layer:
    """A layer whose format may be chosen: name, OpenVINO operation, multiply-accumulates per event."""

    name: str
    operation: str
    macs: int


@dataclass(frozen=True, eq=False)  # equal to whatever mapping says the same
class Plan(Mapping[str, str]):
    """An assignment of every layer to a format, in graph order."""

    formats: tuple[tuple[str, str], ...]

    @classmethod
    def uniform(cls, layers: Iterable[Layer], form: str) -> Plan:
        """Every layer in one format."""
        return cls(tuple((layer.name, _checked(form)) for layer in layers))

    @classmethod
    def of(cls, formats: Mapping[str, str]) -> Plan:
        """The plan written down as {layer: format}. Raises TuningError for a format that is none."""
        return cls(tuple((name, _checked(form)) for name, form in formats.items()))

    def with_formats(self, changes: Mapping[str, str]) -> Plan:
        """The same plan with other formats for some layers. Raises TuningError for a layer it does not have."""
        unknown = sorted(set(changes) - set(self))
        if unknown:
            raise TuningError(f"The plan has no layer {unknown[0]!r:.80}; it has {', '.join(self)}.")
        return Plan(tuple((name, _checked(changes.get(name, form))) for name, form in self.formats))

    def __getitem__(self, layer: str) -> str:
        return dict(self.formats)[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(name for name, _ in self.formats)

    def __len__(self) -> int:
        return len(self.formats)

    def layers_in(self, form: str) -> tuple[str, ...]:
        """Names of the layers in one format."""
        return tuple(name for name, chosen in self.formats if chosen == form)

    @property
    def inference_precision(self) -> Literal["f32", "bf16"]:
        """What to have the runtime compute unquantised layers in; float32 layers of a bf16 model are marked one by one."""
        return "bf16" if self.layers_in("bf16") else "f32"

    @property
    def key(self) -> str:
        """Short digest that names the plan."""
        return hashlib.sha256(json.dumps(self.formats).encode()).hexdigest()[:16]

    def describe(self) -> str:
        """For a person: "all int8" or "int8, but bf16: shape.conv1; fp32: noise"."""
        present = [form for form in FORMATS if self.layers_in(form)]
        if len(present) == 1:
            return f"all {present[0]}"
        main = max(present, key=lambda form: len(self.layers_in(form)))
        return f"{main}, but " + "; ".join(f"{form}: {', '.join(self.layers_in(form))}" for form in present if form != main)


def int8_share(formats: Mapping[str, str], layers: Sequence[Layer]) -> float:
    """Share of the multiply-accumulates of `layers` that compute in int8."""
    total = sum(layer.macs for layer in layers)
    return sum(layer.macs for layer in layers if formats.get(layer.name) == "int8") / total if total else 0.0


def estimated_speedup(formats: Mapping[str, str], layers: Sequence[Layer]) -> float:
    """Speed over fp32 that RELATIVE_COST predicts for `formats`; 1 without multiply-accumulates."""
    costs = sum(layer.macs * RELATIVE_COST[formats.get(layer.name, "fp32")] for layer in layers)
    return RELATIVE_COST["fp32"] * sum(layer.macs for layer in layers) / costs if costs else 1.0


def _checked(form: str) -> str:
    if form not in FORMATS:
        raise TuningError(f"Format {form!r:.40} is unknown; choose among {', '.join(FORMATS)}.")
    return form
