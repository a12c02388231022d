"""The directions particles may come from."""

from __future__ import annotations

from minicarlo.errors import InvalidCondition
from minicarlo.sampling import AngleDistribution

STEEPEST = 80.0
"""Largest angle of incidence in degrees: beyond it a particle leaves through the side of the plates."""


def incidence(theta: str | AngleDistribution, phi: str | AngleDistribution) -> tuple[AngleDistribution, AngleDistribution]:
    """Distributions of the polar and the azimuthal angle. Raises InvalidCondition."""
    polar, azimuth = (AngleDistribution.parse(angle) if isinstance(angle, str) else angle for angle in (theta, phi))
    if not 0 <= polar.low_deg <= polar.high_deg <= STEEPEST:
        raise InvalidCondition(
            f"Theta {polar} is out of range: the angle to the normal must lie between 0deg and {STEEPEST:g}deg."
        )
    if polar.high_deg == 0 and (azimuth.low_deg, azimuth.high_deg) != (0, 0):
        raise InvalidCondition(f"Phi {azimuth} has no meaning at normal incidence: give theta as well, for example 0deg:30deg.")
    return polar, azimuth
