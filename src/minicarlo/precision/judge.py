"""The judge of candidates: their outputs against the reference's on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from minicarlo.engines.network import Arrays, OpenVinoNetwork
from minicarlo.precision.criterion import Comparison, Criterion, Summary, joined, movement
from minicarlo.precision.quantization import PlannedModel
from minicarlo.precision.sequential import stages, verdict
from minicarlo.precision.subject import Use

PROBE_EVENTS = 512
"""Events that the sensitivity of one layer is measured on."""

MOVED_EVENTS = 128
"""Events that candidates are told apart on by how far each event moves, which takes fewer of them."""


@dataclass(frozen=True)
class Verdict:
    """What became of a plan: the criterion on so many events of the search, and on the held-out ones if it passed those."""

    search: Comparison
    events: int
    held_out: Comparison | None


class Judge:
    """Compares candidates with the reference, whose side is computed once and kept.

    Arguments:
        criterion: what is compared.
        shapes: of the inputs of one inference.
        inputs: of events for a use, from one number to another.
        reference: the float32 network.
        events: how many there are for each use.
        streams: inferences at once.
    """

    def __init__(
        self,
        criterion: Criterion,
        shapes: Mapping[str, Sequence[int]],
        inputs: Callable[[Use, int, int], Arrays],
        reference: PlannedModel,
        events: int,
        streams: int,
    ) -> None:
        self._criterion, self.shapes, self._inputs = criterion, shapes, inputs
        self._planned_reference, self.events, self._streams = reference, events, streams
        self._batch = next(iter(shapes.values()))[0]
        self._reference: OpenVinoNetwork | None = None
        self._references: dict[Use, Summary] = {}

    @property
    def reference(self) -> OpenVinoNetwork:
        """The fp32 model."""
        if self._reference is None:
            reference = self.ready(self._planned_reference)
            reference.assert_precision("fp32")
            self._reference = reference
        return self._reference

    def ready(self, planned: PlannedModel) -> OpenVinoNetwork:
        """A planned model, compiled for batches of events."""
        return planned.compile(self.shapes, streams=self._streams)

    def judge(self, network: OpenVinoNetwork, tolerance: float) -> Verdict:
        """Whether a network passes: on the search's events, and then on held-out ones."""
        comparison, events, passed = self.search_until_certain(network, tolerance)
        return Verdict(comparison, events, self.held_out(network) if passed else None)

    def search(self, network: OpenVinoNetwork) -> Comparison:
        """The criterion on all events of the search."""
        candidate = self.summarised(network, self._inputs("search", 0, self.events))
        return self._criterion.compare_summaries(self._reference_summary("search", self.events), candidate)

    def search_until_certain(self, network: OpenVinoNetwork, tolerance: float) -> tuple[Comparison, int, bool]:
        """The criterion on as many events of the search as its verdict needs, their number, and whether it passes.

        See `minicarlo.precision.sequential`.
        """
        parts: list[Summary] = []
        seen = 0
        reference = self._reference_summary("search", self.events)
        for count in stages(self.events):
            parts.append(self.summarised(network, self._inputs("search", seen, count)))
            seen = count
            found = self._criterion.compare_summaries(reference[:seen], joined(parts))
            passed = verdict(found, tolerance, confidence=self._criterion.confidence, seen=seen, events=self.events)
            if passed is not None:
                return found, seen, passed
        raise AssertionError("the last stage decides")

    def probe(self, network: OpenVinoNetwork) -> tuple[Comparison, float]:
        """The criterion on the first events of the search, and what `moved` gives."""
        candidate = self.summarised(network, self._inputs("search", 0, self.probe_events))
        reference = self._reference_summary("search", self.probe_events)
        moved = movement(reference[: self.moved_events], candidate[: self.moved_events])
        return self._criterion.compare_summaries(reference, candidate), moved

    def moved(self, network: OpenVinoNetwork) -> float:
        """How far the very first events of the search move (`criterion.movement`)."""
        candidate = self.summarised(network, self._inputs("search", 0, self.moved_events))
        return movement(self._reference_summary("search", self.moved_events), candidate)

    @property
    def probe_events(self) -> int:
        """Events that a probe is made on."""
        return min(PROBE_EVENTS, self.events)

    @property
    def moved_events(self) -> int:
        """Events that `moved` looks at."""
        return min(MOVED_EVENTS, self.events)

    def held_out(self, network: OpenVinoNetwork) -> Comparison:
        """The criterion on events that no search looks at."""
        candidate = self.summarised(network, self._inputs("held_out", 0, self.events))
        return self._criterion.compare_summaries(self._reference_summary("held_out", self.events), candidate)

    def floor(self) -> float | None:
        """The criterion between two independent fp32 samples: what as many events cannot tell apart without common inputs.

        None for a criterion that compares event by event.
        """
        return self._criterion.floor(
            self._reference_summary("search", self.events), self._reference_summary("held_out", self.events)
        )

    def summarised(self, network: OpenVinoNetwork, inputs: Arrays) -> Summary:
        """What the criterion keeps of a network's outputs, never more than a few batches of them in memory."""
        return joined(self._criterion.reduce(outputs, part) for part, outputs in self._outputs(network, inputs))

    def _reference_summary(self, use: Use, count: int) -> Summary:
        known = self._references.get(use)
        if known is None or len(known) < count:
            known = self.summarised(self.reference, self._inputs(use, 0, count))
            self._references[use] = known
        return known[:count]

    def _outputs(self, network: OpenVinoNetwork, inputs: Arrays) -> Iterator[tuple[Arrays, Arrays]]:
        count = len(next(iter(inputs.values())))
        parts = [
            {name: array[start : start + self._batch] for name, array in inputs.items()} for start in range(0, count, self._batch)
        ]
        for index, outputs in network.map(enumerate(parts)):
            yield parts[index], outputs
