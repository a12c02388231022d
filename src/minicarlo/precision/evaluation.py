"""Run a plan: compile it, see what the runtime made of it, compare its outputs with the reference's, time it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from minicarlo.engines import usable_cores
from minicarlo.engines.network import Arrays, OpenVinoNetwork
from minicarlo.precision.criterion import Comparison, Summary, joined, movement
from minicarlo.precision.plan import Plan
from minicarlo.precision.quantization import Quantizer
from minicarlo.precision.sequential import stages, verdict
from minicarlo.precision.subject import Subject, Use
from minicarlo.precision.timing import Speedup, interleaved

PROBE_EVENTS = 512
"""Events that the sensitivity of one layer is measured on."""


class Evaluation:
    """Everything that is measured about plans for one network; the reference's side is computed once and kept."""

    def __init__(self, subject: Subject, quantizer: Quantizer, *, events: int) -> None:
        self._subject, self._quantizer, self._criterion = subject, quantizer, subject.criterion
        self.events = min(events, subject.most_events)
        self._batch = next(iter(subject.shapes.values()))[0]
        free = all(port.get_partial_shape()[0].is_dynamic for port in subject.model.inputs)
        self._single = {name: (1 if free else shape[0], *shape[1:]) for name, shape in subject.shapes.items()}
        self._reference: OpenVinoNetwork | None = None
        self._references: dict[Use, Summary] = {}

    @property
    def reference(self) -> OpenVinoNetwork:
        """The fp32 model."""
        if self._reference is None:
            self._reference = self.compile(Plan.uniform(self._quantizer.layers, "fp32"))
            self._reference.assert_precision("fp32")
        return self._reference

    def compile(self, plan: Plan) -> OpenVinoNetwork:
        """The plan, ready to run on all cores."""
        return self._quantizer.apply(plan).compile(self._subject.shapes, streams=usable_cores())

    def layer_seconds(self, plan: Plan, *, single: bool = False) -> dict[str, float]:
        """Time of each layer in one batch of a plan, on one core; with `single`, in one event."""
        shapes = self._single if single else self._subject.shapes
        profiled = self._quantizer.apply(plan).compile(shapes, profile=True)
        return profiled.layer_seconds(self._subject.events("search", 0, next(iter(shapes.values()))[0]))

    def search(self, network: OpenVinoNetwork) -> Comparison:
        """The criterion on the events of the search."""
        return self._compare(network, "search", self.events)

    def search_until_certain(self, network: OpenVinoNetwork, tolerance: float) -> tuple[Comparison, int, bool]:
        """The criterion on as many events of the search as its verdict needs, their number, and whether it passes.

        See `minicarlo.precision.sequential`.
        """
        parts: list[Summary] = []
        seen = 0
        reference = self._reference_summary("search", self.events)
        for count in stages(self.events):
            parts.append(self.summarised(network, self._subject.events("search", seen, count)))
            seen = count
            found = self._criterion.compare_summaries(reference[:seen], joined(parts))
            passed = verdict(found, tolerance, confidence=self._criterion.confidence, seen=seen, events=self.events)
            if passed is not None:
                return found, seen, passed
        raise AssertionError("the last stage decides")

    def probe(self, network: OpenVinoNetwork) -> tuple[Comparison, float]:
        """The criterion on the first events of the search, and how far these move (`criterion.movement`)."""
        candidate = self.summarised(network, self._subject.events("search", 0, self.probe_events))
        reference = self._reference_summary("search", self.probe_events)
        return self._criterion.compare_summaries(reference, candidate), movement(reference, candidate)

    @property
    def probe_events(self) -> int:
        """Events that a probe is made on."""
        return min(PROBE_EVENTS, self.events)

    def held_out(self, network: OpenVinoNetwork) -> Comparison:
        """The criterion on events that no search looks at."""
        return self._compare(network, "held_out", self.events)

    def floor(self) -> float | None:
        """The criterion between two independent fp32 samples: what as many events cannot tell apart without common inputs.

        None for a criterion that compares event by event.
        """
        return self._criterion.floor(
            self._reference_summary("search", self.events), self._reference_summary("held_out", self.events)
        )

    def speedup(self, network: OpenVinoNetwork, seconds: float) -> Speedup:
        """Speed over fp32, all cores, interleaved."""
        count = min(self._batch * 2 * usable_cores(), self._subject.most_events)
        inputs = self._subject.events("search", 0, count)
        return interleaved(self._pass(self.reference, inputs), self._pass(network, inputs), seconds=seconds)

    def latency(self, plan: Plan, seconds: float) -> Speedup:
        """Speed over fp32 of a single event on all cores, interleaved."""
        reference, candidate = (
            self._quantizer.apply(each).compile(self._single, threads=usable_cores())
            for each in (Plan.uniform(self._quantizer.layers, "fp32"), plan)
        )
        inputs = self._subject.events("search", 0, next(iter(self._single.values()))[0])
        return interleaved(lambda: reference.run(inputs), lambda: candidate.run(inputs), seconds=seconds)

    def summarised(self, network: OpenVinoNetwork, inputs: Arrays) -> Summary:
        """What the criterion keeps of a network's outputs, never more than a few batches of them in memory."""
        return joined(self._criterion.reduce(outputs, part) for part, outputs in self._outputs(network, inputs))

    def _compare(self, network: OpenVinoNetwork, use: Use, count: int) -> Comparison:
        candidate = self.summarised(network, self._subject.events(use, 0, count))
        return self._criterion.compare_summaries(self._reference_summary(use, count), candidate)

    def _reference_summary(self, use: Use, count: int) -> Summary:
        known = self._references.get(use)
        if known is None or len(known) < count:
            known = self.summarised(self.reference, self._subject.events(use, 0, count))
            self._references[use] = known
        return known[:count]

    def _pass(self, network: OpenVinoNetwork, inputs: Arrays) -> Callable[[], None]:
        def run() -> None:
            for _ in self._outputs(network, inputs):
                pass

        return run

    def _outputs(self, network: OpenVinoNetwork, inputs: Arrays) -> Iterator[tuple[Arrays, Arrays]]:
        count = len(next(iter(inputs.values())))
        parts = [
            {name: array[start : start + self._batch] for name, array in inputs.items()} for start in range(0, count, self._batch)
        ]
        for index, outputs in network.map(enumerate(parts)):
            yield parts[index], outputs
