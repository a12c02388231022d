"""Candidates judged by the workers of a cluster: same inputs, same criterion, same figures.

What is timed is timed on the machine that asks, while its workers wait.
"""

from __future__ import annotations

import hashlib
import platform
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from minicarlo import __version__
from minicarlo.cluster import Crew, connect
from minicarlo.engines import machine
from minicarlo.engines.network import Arrays, OpenVinoNetwork
from minicarlo.errors import ClusterError
from minicarlo.precision.criterion import Comparison, Criterion
from minicarlo.precision.judge import Judge, Verdict
from minicarlo.precision.quantization import PlannedModel
from minicarlo.precision.subject import Subject, Use

Probed = tuple[dict[str, str], Comparison | None, float] | None
"""What ran, the criterion if it was asked for, and the movement; None for a candidate that does not compile."""


class Workers:
    """The workers of a cluster, for candidates that are already planned."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew

    def probe(self, candidates: Iterable[tuple[PlannedModel, bool]], meanwhile: Callable[[], None]) -> Iterator[Probed]:
        """What came of each candidate, in their order; they are read a little ahead.

        Beside each stands whether the criterion is wanted, or only how far events move. `meanwhile` is called every second, and
        may end it all by raising.
        """
        return self._crew.map(_probe, candidates, name=lambda _: "A candidate", meanwhile=meanwhile)

    def judge(self, candidates: Iterable[tuple[PlannedModel, float]], meanwhile: Callable[[], None]) -> Iterator[Verdict | None]:
        """The verdict on each candidate at a tolerance, in their order; None for one that does not compile."""
        return self._crew.map(_judge, candidates, name=lambda _: "A candidate", meanwhile=meanwhile)


@contextmanager
def workers(where: str, subject: Subject, judge: Judge, reference: PlannedModel) -> Iterator[Workers]:
    """Workers of the cluster `where` that judge as `judge` does.

    Raises InvalidConfig, MissingExtra and ClusterError, the last also when a worker computes other bits.
    """
    order = JudgeOrder(subject.criterion, subject.shapes, inputs_of(subject, judge), reference, judge)
    with connect(where) as client, Crew(client, order) as crew:
        yield Workers(crew)


def inputs_of(subject: Subject, judge: Judge) -> dict[Use, Arrays]:
    """All inputs that a judge looks at."""
    uses: tuple[Use, ...] = ("search", "held_out")
    return {use: subject.events(use, 0, judge.events) for use in uses}


class JudgeOrder:
    """What a worker needs to judge any candidate as the machine that asks does. See Order."""

    def __init__(
        self,
        criterion: Criterion,
        shapes: Mapping[str, Sequence[int]],
        inputs: Mapping[Use, Arrays],
        reference: PlannedModel,
        judge: Judge,
    ) -> None:
        self.criterion, self.shapes, self.inputs, self.reference = criterion, dict(shapes), dict(inputs), reference
        self.events, self.software, self.processor = judge.events, _software(), machine()["processor"]
        self.fingerprint = _fingerprint(judge, self.inputs)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def check(self) -> None:
        """Compile the reference once per worker, and compare versions and the bits of some events. Raises ClusterError."""
        with _building:
            if hasattr(self, "_judge"):
                return
            if (found := _software()) != self.software:
                raise ClusterError(
                    f"Worker {socket.gethostname()} has {found}, but {self.software} is asking: install the same versions."
                )
            judge = Judge(self.criterion, self.shapes, self._inputs, self.reference, self.events, streams=1)
            if _fingerprint(judge, self.inputs) != self.fingerprint:
                raise ClusterError(
                    f"Worker {socket.gethostname()} ({machine()['processor']}) computes other bits than the machine that asks "
                    f"({self.processor}): one search needs processors of one kind."
                )
            self._judge = judge

    @property
    def judge(self) -> Judge:
        """This worker's judge."""
        return self._judge

    def _inputs(self, use: Use, start: int, stop: int) -> Arrays:
        return {name: array[start:stop] for name, array in self.inputs[use].items()}


_building = threading.Lock()


def probed(judge: Judge, ready: Callable[[], OpenVinoNetwork], criterion: bool) -> Probed:
    """What comes of the candidate that `ready` compiles, with the criterion or only how far events move."""
    try:
        network = ready()
        ran = network.precision_report()  # of layers without a plan, too
    except RuntimeError:
        return None
    return (ran, *judge.probe(network)) if criterion else (ran, None, judge.moved(network))


def _probe(order: JudgeOrder, candidate: tuple[PlannedModel, bool]) -> Probed:
    planned, criterion = candidate
    return probed(order.judge, partial(order.judge.ready, planned), criterion)


def _judge(order: JudgeOrder, candidate: tuple[PlannedModel, float]) -> Verdict | None:
    planned, tolerance = candidate
    try:
        network = order.judge.ready(planned)
    except RuntimeError:
        return None
    return order.judge.judge(network, tolerance)


def _fingerprint(judge: Judge, inputs: Mapping[Use, Arrays]) -> str:
    """Digest of the bits of a batch of the reference."""
    batch = next(iter(judge.shapes.values()))[0]
    outputs = judge.reference.run({name: array[:batch] for name, array in inputs["search"].items()})
    found = hashlib.sha256()
    for name in sorted(outputs):
        found.update(name.encode() + np.ascontiguousarray(outputs[name]).tobytes())
    return found.hexdigest()


def _software() -> dict[str, str]:
    return {
        "minicarlo": __version__,
        "openvino": machine()["openvino"],
        "numpy": np.__version__,
        "python": platform.python_version_tuple()[0] + "." + platform.python_version_tuple()[1],
    }
