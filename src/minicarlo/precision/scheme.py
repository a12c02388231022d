"""How the numbers of an int8 layer become integers: where the range of its inputs comes from, and how much of int8 is used."""

from __future__ import annotations

from dataclasses import dataclass

from minicarlo.errors import TuningError

RANGES = ("min-max", "percentile", "mse", "kl")
"""Estimators of the range of a layer's inputs (see `minicarlo.precision.ranges`)."""


@dataclass(frozen=True)
class Scheme:
    """The choices that are made for one int8 layer.

    `ranges` estimates the range of its inputs. `symmetric` keeps zero in the middle of the integers, which some kernels want.
    `half_range` uses weights of 7 bits: two products of such a weight and 8 bits fit into the 16 bits in which processors
    without VNNI add them up.
    """

    ranges: str = "min-max"
    symmetric: bool = False
    half_range: bool = False

    def __str__(self) -> str:
        """As a plan file has it: "min-max", "kl symmetric half-range"."""
        return " ".join([self.ranges, *(["symmetric"] if self.symmetric else []), *(["half-range"] if self.half_range else [])])

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """The scheme that `str` wrote as `text`. Raises TuningError."""
        words = text.split()
        ranges = [word for word in words if word in RANGES]
        if len(ranges) > 1 or any(word not in (*RANGES, "symmetric", "half-range") for word in words) or not words:
            raise TuningError(
                f"{text!r:.60} does not say how a layer is quantised; one of {', '.join(RANGES)} is right, and after it "
                "symmetric or half-range or both."
            )
        return cls(ranges[0] if ranges else "min-max", "symmetric" in words, "half-range" in words)


DEFAULT = Scheme()
