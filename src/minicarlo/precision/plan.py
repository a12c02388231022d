"""Which layer computes in which number format."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from minicarlo.errors import TuningError
from minicarlo.precision.scheme import DEFAULT, Scheme

FORMATS = ("int8", "bf16", "fp16", "w4", "w8", "fp32")
"""Number formats: in int8, bf16, fp16 and fp32 a layer computes; w4 and w8 are weights of 4 and 8 bits, computed with in fp32."""

HALF = ("bf16", "fp16")
"""Formats that are the runtime's inference precision.

A compiled model has one of them, and what stands between its layers may be computed in it, too.
"""

RELATIVE_COST = {"int8": 1.0, "bf16": 2.0, "fp16": 2.0, "w4": 4.0, "w8": 4.0, "fp32": 4.0}
"""Time of one multiply-accumulate relative to int8, where nothing is measured (AVX-512 with VNNI and bf16)."""

RELATIVE_SIZE = {"w4": 0.5, "int8": 1.0, "w8": 1.0, "bf16": 4.0, "fp16": 4.0, "fp32": 4.0}
"""Bytes of a weight on disk relative to int8: what computes in bf16 or fp16 is stored in fp32."""


@dataclass(frozen=True)
class Layer:
    """A layer whose format may be chosen: name, OpenVINO operation, multiply-accumulates per event, number of weights."""

    name: str
    operation: str
    macs: int
    weights: int = 0


@dataclass(frozen=True, eq=False)  # equal to whatever mapping says the same
class Plan(Mapping[str, str]):
    """An assignment of every layer to a format, in graph order.

    `schemes` says how int8 layers are quantised that are not quantised in the usual way.
    """

    formats: tuple[tuple[str, str], ...]
    schemes: tuple[tuple[str, Scheme], ...] = ()

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
        return Plan(tuple((name, _checked(changes.get(name, form))) for name, form in self.formats)).with_schemes(
            dict(self.schemes)
        )

    def with_schemes(self, schemes: Mapping[str, Scheme]) -> Plan:
        """The same plan with these schemes for those of its layers that are int8, and the usual one for all others."""
        kept = ((name, schemes.get(name, DEFAULT)) for name in self.layers_in("int8"))
        return Plan(self.formats, tuple((name, scheme) for name, scheme in kept if scheme != DEFAULT))

    def scheme(self, layer: str) -> Scheme:
        """How a layer is quantised if it is int8."""
        return dict(self.schemes).get(layer, DEFAULT)

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
    def inference_precision(self) -> Literal["f32", "bf16", "f16"]:
        """What the runtime computes unquantised layers in; float32 layers of a bf16 or fp16 model are marked one by one."""
        return "bf16" if self.layers_in("bf16") else "f16" if self.layers_in("fp16") else "f32"

    @property
    def key(self) -> str:
        """Short digest that names the plan."""
        schemes = [[[name, str(scheme)] for name, scheme in self.schemes]] if self.schemes else []
        return hashlib.sha256(json.dumps([*self.formats, *schemes]).encode()).hexdigest()[:16]

    def describe(self) -> str:
        """For a person: "all int8", "int8, but bf16: shape.conv1; fp32: noise", with schemes as "(kl: 2 layers)"."""
        present = [form for form in FORMATS if self.layers_in(form)]
        schemes = Counter(str(scheme) for _, scheme in self.schemes)
        note = ", ".join(f"{text}: {count} layer{'s' if count > 1 else ''}" for text, count in schemes.items())
        suffix = f" ({note})" if note else ""
        if len(present) == 1:
            return f"all {present[0]}{suffix}"
        main = max(present, key=lambda form: len(self.layers_in(form)))
        others = "; ".join(f"{form}: {', '.join(self.layers_in(form))}" for form in present if form != main)
        return f"{main}, but {others}{suffix}"


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
