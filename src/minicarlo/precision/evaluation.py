"""Run a plan: compile it, see what the runtime made of it, judge it, time it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from minicarlo.engines import usable_cores
from minicarlo.engines.network import OpenVinoNetwork
from minicarlo.precision.energy import EnergyMeter, settled
from minicarlo.precision.judge import Judge
from minicarlo.precision.layer import relative_error
from minicarlo.precision.plan import Plan
from minicarlo.precision.quantization import Quantizer
from minicarlo.precision.subject import Subject
from minicarlo.precision.timing import Speedup, interleaved


class Evaluation(Judge):
    """Everything that is measured about plans for one network on all cores of this machine."""

    def __init__(self, subject: Subject, quantizer: Quantizer, *, events: int) -> None:
        self._subject, self._quantizer = subject, quantizer
        super().__init__(
            subject.criterion,
            subject.shapes,
            subject.events,
            quantizer.apply(Plan.uniform(quantizer.layers, "fp32")),
            min(events, subject.most_events),
            usable_cores(),
        )
        free = all(port.get_partial_shape()[0].is_dynamic for port in subject.model.inputs)
        self._single = {name: (1 if free else shape[0], *shape[1:]) for name, shape in subject.shapes.items()}

    def compile(self, plan: Plan) -> OpenVinoNetwork:
        """The plan, ready to run on all cores."""
        return self.ready(self._quantizer.apply(plan))

    def movement_in_int8(self, layers: Iterable[str]) -> float:
        """How far events move with these layers in int8, by its numbers alone: no kernel plays a part."""
        plan = Plan.uniform(self._quantizer.layers, "fp32").with_formats(dict.fromkeys(layers, "int8"))
        network = self._quantizer.apply(plan).compile(self.shapes, streams=usable_cores(), emulate=True)
        return self.moved(network)

    def difference(self, expected: OpenVinoNetwork, found: OpenVinoNetwork) -> float:
        """The largest relative difference (root mean square) of an output of two networks on one batch."""
        inputs = self._subject.events("search", 0, min(self._batch, self._subject.most_events))
        outputs, others = (each.run(inputs) for each in (expected, found))
        return max(relative_error(values, others[name]) for name, values in outputs.items())

    def layer_seconds(self, plan: Plan, *, single: bool = False) -> dict[str, float]:
        """Time of each layer in one batch of a plan, on one core; with `single`, in one event."""
        shapes = self._single if single else self._subject.shapes
        profiled = self._quantizer.apply(plan).compile(shapes, profile=True)
        return profiled.layer_seconds(self._subject.events("search", 0, next(iter(shapes.values()))[0]))

    def speedup(self, network: OpenVinoNetwork, seconds: float) -> Speedup:
        """Speed over fp32, all cores, interleaved."""
        return interleaved(self.run_of(self.reference), self.run_of(network), seconds=seconds)

    def latency(self, plan: Plan, seconds: float) -> Speedup:
        """Speed over fp32 of a single event on all cores, interleaved."""
        reference, candidate = (
            self._quantizer.apply(each).compile(self._single, threads=usable_cores())
            for each in (Plan.uniform(self._quantizer.layers, "fp32"), plan)
        )
        inputs = self._subject.events("search", 0, next(iter(self._single.values()))[0])
        return interleaved(lambda: reference.run(inputs), lambda: candidate.run(inputs), seconds=seconds)

    def energy(self, network: OpenVinoNetwork, seconds: float) -> Speedup:
        """Joules of fp32 over those of a network for the same events, interleaved. Raises TuningError if none are reported."""
        meter = EnergyMeter()
        return interleaved(self.run_of(self.reference), self.run_of(network), seconds=seconds, meter=lambda: settled(meter))

    def run_of(self, network: OpenVinoNetwork) -> Callable[[], None]:
        """What is timed: two batches per core."""
        count = min(self._batch * 2 * usable_cores(), self._subject.most_events)
        inputs = self._subject.events("search", 0, count)

        def run() -> None:
            for _ in self._outputs(network, inputs):
                pass

        return run
