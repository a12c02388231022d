"""The end of a network as a kernel of ours, once `epilogue` has found it: as the last operation of the runtime's graph, or called
when the runtime is done with the rest."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minicarlo.engines.vector_code import Call, Kernel

if TYPE_CHECKING:
    import openvino

NAME = "epilogue"
"""Of the operation of ours in the graph."""


class Taken(NamedTuple):
    """A layer that became part of the kernel: the format that it runs in, and its share of the kernel's time.

    Convolutions share it by their multiply-accumulates. A product of few inputs has none: in another format, outside of the
    kernel, it would save nothing.
    """

    format: str
    share: float


@dataclass(frozen=True)
class KernelEnd:
    """The end of a network, computed by `kernel` from what the rest of it makes; `taken` are the layers with multiply-accumulates
    in it, `sample` is the shape of an event of the result."""

    kernel: Kernel
    sample: tuple[int, ...]
    taken: dict[str, Taken]
    _inputs: list[Any]
    _parameters: list[Any]
    _names: set[str]

    def joined(self) -> openvino.Model:
        """The whole network, with an operation of ours in place of the end. It can be compiled for the processor, not written."""
        import openvino
        from openvino import opset13 as operators

        last = _operation()(self._inputs, self.kernel, self.sample)
        last.set_friendly_name(NAME)
        last.output(0).get_tensor().set_names(self._names)
        return openvino.Model([operators.result(last.output(0))], self._parameters, "with epilogue")

    def rest(self) -> openvino.Model:
        """The network without its end: its outputs are the kernel's inputs, in their order."""
        import openvino
        from openvino import opset13 as operators

        return openvino.Model(list(map(operators.result, self._inputs)), self._parameters, "without epilogue")

    def bound(self, request: Any, compiled: Any, inputs: Mapping[str, NDArray[Any]]) -> Callable[[NDArray[Any]], None]:  # noqa: ANN401
        """What computes a result when `request` of the compiled `rest` is done, which from now on writes where the kernel reads.

        `inputs` are the request's, by name, whose arrays stay the same, of a fixed number of events.
        """
        import openvino

        arrays = []
        for port in compiled.outputs:
            kind, shape = port.get_element_type(), list(port.get_shape())
            array = next((array for name, array in inputs.items() if name in port.get_names()), None)  # the same tensor
            if array is None:
                array = np.empty(shape, np.uint16 if kind == openvino.Type.bf16 else kind.to_dtype())
                request.set_tensor(port, openvino.Tensor(array, shape, kind))
            arrays.append(array)
        call, addresses = self.kernel.prepare(), [array.ctypes.data for array in arrays]

        def finish(result: NDArray[Any], _memory: Sequence[NDArray[Any]] = arrays) -> None:
            call(addresses, result.ctypes.data, len(result))

        return finish


@cache
def _operation() -> type:
    """The class of the operation; OpenVINO is imported when it is first needed."""
    from openvino import Op, PartialShape, Type

    class Epilogue(Op):  # type: ignore[misc]
        """Calls a kernel, in the thread of the runtime's that has just computed its inputs."""

        def __init__(self, inputs: list[Any], compiled: Kernel, sample: tuple[int, ...]) -> None:
            self._kernel, self._sample = compiled, sample
            self._idle: list[Call] = []
            super().__init__(self, inputs)

        def validate_and_infer_types(self) -> None:
            batch = self.get_input_partial_shape(0)[0]
            self.set_output_type(0, Type.f32, PartialShape([batch, *self._sample]))

        def clone_with_new_inputs(self, inputs: list[Any]) -> Epilogue:
            return Epilogue(inputs, self._kernel, self._sample)

        def has_evaluate(self) -> bool:
            return True

        def evaluate(self, outputs: list[Any], inputs: list[Any]) -> bool:
            # A thread that is not Python's has nothing of its own: what Python keeps of it ends with every call.
            call = self._idle.pop() if self._idle else self._kernel.prepare()
            *given, result = (each.data for each in (*inputs, outputs[0]))
            call([_address(each) for each in given], _address(result), len(result))
            self._idle.append(call)
            return True

    return Epilogue


def _address(array: NDArray[np.float32]) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type] # in half the time of NumPy's
