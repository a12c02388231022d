"""What a user can do wrong: one class each.

Every message is one paragraph for a person: what is wrong, where (file, dataset, field), what would be right. The
command line prints it without a traceback and ends with `exit_code`.
"""

from __future__ import annotations


class MinicarloError(Exception):
    """Base of every mistake a user can make; anything else that is raised is a fault of minicarlo."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(message)


class InvalidEventSet(MinicarloError):
    """Raised when an event set is not readable HDF5, lacks a dataset, has a wrong shape or holds impossible values."""


class InvalidSurrogate(MinicarloError):
    """Raised when a surrogate directory is incomplete, altered, or holds something that is never loaded."""


class InvalidModel(MinicarloError):
    """Raised when a network file cannot be read, holds code, or does not fit the inputs it is given."""


class InvalidCondition(MinicarloError):
    """Raised when a condition (energy, seed, count) is malformed or outside the range a surrogate was trained for."""


class InvalidConfig(MinicarloError):
    """Raised when a configuration file or an option has an unknown key or an impossible value."""


class UnknownDetector(MinicarloError):
    """Raised when a detector name is not registered."""


class OutputError(MinicarloError):
    """Raised when a result cannot be written: disk full, no permission, missing folder, already there."""


class MissingExtra(MinicarloError):
    """Raised when a verb needs an optional dependency or data that is not installed."""


class IncompatibleEventSets(MinicarloError):
    """Raised when two event sets cannot be compared or joined."""


class UnsupportedPrecision(MinicarloError):
    """Raised when a surrogate or the processor does not offer the number format asked for."""


class UnsupportedEngine(MinicarloError):
    """Raised when an engine is not known, or this machine does not have what it needs."""


class TuningError(MinicarloError):
    """Raised when precision tuning cannot start or cannot go on."""


class SimulationError(MinicarloError):
    """Raised when a reference simulation dies before its events are done."""


class ClusterError(MinicarloError):
    """Raised when a cluster cannot be reached or started, its workers differ from this process, or they keep dying."""


class DownloadError(MinicarloError):
    """Raised when data cannot be fetched: no network, the server refuses, or what comes is not what was published."""
