"""Any network on OpenVINO: arrays by name in, arrays by name out."""

from __future__ import annotations

import atexit
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import RLock, active_count
from time import sleep
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.engines.account import RuntimeAccount
from minicarlo.engines.base import Key, PrecisionReport
from minicarlo.engines.convolution_end import convolution_end
from minicarlo.engines.epilogue import epilogue
from minicarlo.engines.kernel_end import NAME, KernelEnd
from minicarlo.engines.runtime import AS_PLANNED, EMULATION, InferencePrecision, available, core, event_shape, keep_products_apart
from minicarlo.errors import UnsupportedPrecision

if TYPE_CHECKING:
    import openvino

Arrays = Mapping[str, NDArray[Any]]
"""Name of an input or output to its values, (events, ...)."""

LARGEST_TENSOR = 2**28
"""Elements per event that a graph may ask for."""


class OpenVinoNetwork(RuntimeAccount):
    """A model compiled by OpenVINO for inputs of fixed shapes, -1 standing for any length.

    `batch` is the number of events in one inference (None: any), `streams` how many inferences run at once, `threads` how many
    threads each stream has. Layers that the model itself does not quantise run in `inference_precision`. With `profile` the
    runtime takes the time of each layer (`layer_seconds`), at some cost in speed. With `emulate` what is int8 in the model is
    computed in float32 on the same rounded numbers.

    On the processor, an end for which it pays is computed by a kernel of ours (`minicarlo.engines.epilogue`,
    `minicarlo.engines.convolution_end`), as an operation of the runtime's graph; of single events it is called when the runtime
    is done, which costs less (but not where times are taken). The runtime computes everything with `whole` or `emulate`.
    """

    def __init__(
        self,
        model: openvino.Model | Path | str,
        inference_precision: InferencePrecision,
        shapes: Mapping[str, Sequence[int]],
        *,
        streams: int = 1,
        threads: int = 1,
        profile: bool = False,
        emulate: bool = False,
        whole: bool = False,
        device: str = "CPU",
    ) -> None:
        batch = next(iter(shapes.values()))[0]
        if min(streams, threads, abs(batch)) < 1:
            raise ValueError("batch, streams and threads must be at least 1")
        model = core().read_model(model) if isinstance(model, Path | str) else model.clone()
        self.batch, self.streams, self.threads = None if batch == -1 else batch, streams, threads
        self._watch(model)
        on_processor = device == "CPU"
        precision = available(inference_precision) if on_processor else "f32"
        ours = on_processor and not (whole or emulate)
        end = (epilogue(model, precision) or convolution_end(model, precision)) if ours else None
        self._ours = {} if end is None else end.taken
        self._end = end if batch == 1 and not profile else None  # whose time only the runtime takes
        self._names = [tensor_name(port) for port in model.outputs]
        if end is not None:
            model = end.joined() if self._end is None else end.rest()
        model.reshape({model.input(name): list(shape) for name, shape in shapes.items()})
        keep_products_apart(model)
        properties: dict[str, Any] = {
            # The default is bf16 where there is hardware for it; where there is none, bf16 would be emulated.
            "INFERENCE_PRECISION_HINT": precision,
            "EXECUTION_MODE_HINT": "PERFORMANCE",
            "NUM_STREAMS": streams,
            "PERF_COUNT": profile,
        }
        if on_processor:  # pinned, every process would sit on the same first cores
            properties |= {"INFERENCE_NUM_THREADS": streams * threads, "ENABLE_CPU_PINNING": False} | AS_PLANNED
        self._compiled = core().compile_model(model, device, properties | (EMULATION if emulate else {}))
        self._inputs = {name: self._compiled.input(name) for name in shapes}
        self._requests: deque[Request] = deque()

    def output_shape(self, name: str) -> tuple[int, ...]:
        """Shape of one event of an output."""
        if self._end is not None:
            return self._end.sample
        return event_shape(self._compiled.outputs[self._names.index(name)]) or ()

    @property
    def compiled(self) -> openvino.CompiledModel:
        """OpenVINO's compiled model; of single events it may lack the end."""
        return self._compiled

    def bound(self, inputs: Arrays, result: NDArray[Any]) -> Callable[[], None]:
        """A function that computes `result` of `inputs`, (batch, ...) by name: always of the same memory."""
        import openvino

        request = self._compiled.create_infer_request()
        for name, port in self._inputs.items():
            request.set_tensor(port, openvino.Tensor(inputs[name], shared_memory=True))
        finish = None
        if self._end is None:
            request.set_tensor(self._compiled.outputs[0], openvino.Tensor(result, shared_memory=True))
        else:
            finish = self._end.bound(request, self._compiled, inputs)

        def compute(_memory: Arrays = inputs) -> None:  # which the runtime has the addresses of
            request.infer(share_outputs=True)
            if finish is not None:
                finish(result)

        return compute

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Outputs (N, ...) for inputs (N, ...), one inference after another."""
        count = len(next(iter(inputs.values())))
        step = self.batch or max(count, 1)
        pieces = ((i, {name: array[i : i + step] for name, array in inputs.items()}) for i in range(0, count, step))
        parts = [outputs for _, outputs in self._map(pieces, 1)]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._names}

    def map(self, batches: Iterable[tuple[Key, Arrays]]) -> Iterator[tuple[Key, dict[str, NDArray[Any]]]]:
        """(key, outputs) for each (key, inputs), in the order given, up to `streams` inferences at once.

        `batches` is read a little ahead; the arrays given out belong to the caller.
        """
        return self._map(batches, 2 * self.streams if self.streams > 1 else 1)

    def _map(self, batches: Iterable[tuple[Key, Arrays]], depth: int) -> Iterator[tuple[Key, dict[str, NDArray[Any]]]]:
        """A ring of `depth` requests: the oldest is waited for and its results handed out before it is used again."""
        while len(self._requests) < depth:
            self._requests.append(self._request())
        idle = deque(self._requests.popleft() for _ in range(depth))  # ours until done: a second map takes others
        running: deque[tuple[Key, Request]] = deque()
        try:
            for key, inputs in batches:
                if not idle:
                    yield self._finish(running, idle)
                self._start(idle[0], inputs)
                running.append((key, idle.popleft()))
            while running:
                yield self._finish(running, idle)
        finally:
            for _, request in running:  # left behind by an error or by a caller who had enough
                with suppress(RuntimeError):
                    request.results()
                idle.append(request)
            self._requests.extend(idle)

    def _request(self) -> Request:
        if self._end is not None:
            return RestRequest(self._compiled, self._inputs, self._names[0], self._end)
        return Request(self._compiled, self._inputs, dict(zip(self._names, self._compiled.outputs, strict=True)))

    def _start(self, request: Request, inputs: Arrays) -> None:
        lengths = {name: len(inputs[name]) for name in self._inputs}
        count = next(iter(lengths.values()))
        if len(set(lengths.values())) != 1 or (self.batch is not None and not 0 < count <= self.batch):
            raise ValueError(f"inputs of {lengths} events do not fit a batch of {self.batch}")
        request.start(inputs, count, self.batch or count)

    @staticmethod
    def _finish(running: deque[tuple[Key, Request]], idle: deque[Request]) -> tuple[Key, dict[str, NDArray[Any]]]:
        key, request = running.popleft()
        idle.append(request)
        return key, request.results()

    def precision_report(self) -> PrecisionReport:
        """The format each layer with multiply-accumulates runs in: as the runtime itself reports it, and those of our kernel."""
        report = super().precision_report() | {name: taken.format for name, taken in self._ours.items()}
        return {name: report[name] for name in self._layers.values() if name in report}

    def assert_precision(self, expected: str) -> None:
        """Raise UnsupportedPrecision unless all layers run in the format `expected`."""
        ran = self.precision_report()
        wrong = [f"{name} in {form}" for name, form in ran.items() if form != expected]
        if wrong or not ran:
            listed = ", ".join(wrong[:5]) or "it reports no layer"
            raise UnsupportedPrecision(f"The runtime does not compute in {expected}: {listed}. Choose another precision.")

    def _owners(self, node: str) -> Mapping[str, float]:
        return super()._owners(node) if node != NAME else {name: taken.share for name, taken in self._ours.items()}

    def layer_seconds(self, inputs: Arrays, rounds: int = 15) -> dict[str, float]:
        """Seconds of each layer in one inference of a batch: the least of `rounds`, by the runtime's own clock.

        With a layer count what the runtime fused into it and the reorders and conversions before and after it. The time of our
        kernel is shared among its layers (`Taken`). The network must have been compiled to be profiled.
        """
        return self._profiled({self._inputs[name]: array for name, array in inputs.items()}, rounds)


class Request:
    """An inference request. Its results lie in arrays of their own, which belong to whoever asks for them."""

    def __init__(self, compiled: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:  # noqa: ANN401
        self._request, self._inputs, self._outputs = compiled.create_infer_request(), inputs, outputs
        names = [port.get_names() for port in inputs.values()]  # an output that is an input is the same tensor to the runtime
        self._shapes = {n: None if port.get_names() in names else event_shape(port) for n, port in outputs.items()}
        self._given: dict[str, NDArray[Any]] = {}
        self._arrays: dict[str, NDArray[Any]] = {}
        self._count = 0

    def start(self, inputs: Arrays, count: int, batch: int) -> None:
        """Begin to compute `count` events; the last one fills what is left of the batch."""
        import openvino

        self._count, self._arrays = count, {}
        for name, port in self._inputs.items():  # not by the runtime's dispatch, which costs as much as all the rest
            array, given = np.asarray(inputs[name]), self._given.get(name)
            if given is None or given.shape != (batch, *array.shape[1:]):
                given = self._given[name] = np.empty((batch, *array.shape[1:]), port.get_element_type().to_dtype())
                self._request.set_tensor(port, openvino.Tensor(given, shared_memory=True))
            given[:count] = array
            given[count:] = array[-1:]
        self._make_room(batch)
        with _starting:
            self._request.start_async()
            _under_way.add(self)

    def _make_room(self, batch: int) -> None:
        import openvino

        for name, port in self._outputs.items():
            shape = self._shapes[name]
            if shape is not None:  # straight into memory of the caller's
                self._arrays[name] = np.empty((batch, *shape), port.get_element_type().to_dtype())
                self._request.set_tensor(port, openvino.Tensor(self._arrays[name], shared_memory=True))

    def wait(self) -> None:
        """Wait until nothing is computed any more."""
        try:
            self._request.wait()
        finally:
            _under_way.discard(self)

    def results(self) -> dict[str, NDArray[Any]]:
        """Wait for the results, by name."""
        self.wait()
        arrays, self._arrays = self._arrays, {}
        for name, port in self._outputs.items():
            if name not in arrays:
                arrays[name] = self._request.get_tensor(port).data.copy()
        return {name: arrays[name][: self._count] for name in self._outputs}


class RestRequest(Request):
    """A request of a graph without its end, of a fixed number of events; its result, `name`, is what `end` makes of that."""

    def __init__(self, compiled: Any, inputs: Mapping[str, Any], name: str, end: KernelEnd) -> None:  # noqa: ANN401
        super().__init__(compiled, inputs, {})
        self._compiled, self._name, self._end = compiled, name, end
        self._finish: Callable[[NDArray[Any]], None] | None = None

    def _make_room(self, batch: int) -> None:
        self._finish = self._finish or self._end.bound(self._request, self._compiled, self._given)
        self._arrays[self._name] = np.empty((batch, *self._end.sample), np.float32)

    def results(self) -> dict[str, NDArray[Any]]:
        """Wait for the runtime, and compute the end."""
        self.wait()
        result = self._arrays.pop(self._name)
        assert self._finish is not None
        self._finish(result)
        return {self._name: result[: self._count]}


_under_way: set[Request] = set()
_starting = RLock()


@atexit.register
def _end() -> None:
    """The runtime's threads call Python, which must still be there when they do: what was abandoned is waited for, and threads
    that are still left begin nothing more."""
    _starting.acquire()
    for request in list(_under_way):
        with suppress(RuntimeError):
            request.wait()
    if active_count() > 1:
        sleep(0.02)  # for them to see that it is done, and stop here


def read_network_file(source: Path | bytes) -> openvino.Model:
    """The graph in a file that OpenVINO reads by itself: ONNX (also as bytes), IR, a TensorFlow SavedModel."""
    return core().read_model(source)


def tensor_name(port: Any) -> str:  # noqa: ANN401
    """What a port of a model is called: the first of its names, or its layer's where it has none."""
    return str(min(port.get_names(), default=port.get_node().get_friendly_name()))


def oversized_layer(model: openvino.Model, shapes: Mapping[str, Sequence[int]]) -> tuple[str, str] | None:
    """Name and shape of a layer that would need absurd memory for inputs of `shapes`, or whose shape stays open."""
    single = model.clone()
    single.reshape({single.input(name): list(shape) for name, shape in shapes.items()})
    for op in single.get_ordered_ops():
        for output in op.outputs():
            shape = output.get_partial_shape()
            if shape.is_dynamic or np.prod(np.asarray(shape.to_shape(), np.float64), initial=1) > LARGEST_TENSOR:
                return op.get_friendly_name(), str(shape)
    return None
