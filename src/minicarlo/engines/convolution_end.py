"""The last convolutions of a network that a kernel of ours computes better than the runtime, found in its graph.

Those are of few channels, in which a runtime leaves most of the arithmetic unit idle (`convolution_code`), and what is made of
them number by number or only moved. The search goes from the result to the front, convolution by convolution, and ends at the
first that is not understood, or that has channels enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.engines.account import mac_layers
from minicarlo.engines.convolution_code import SUMS, ChainWriter, Coding, Convolution, Places, Trunk
from minicarlo.engines.dense import as_features, range_of_bytes, stored_weights, with_bias
from minicarlo.engines.dense_code import ARITHMETIC, Bits, bf16_bits, computable
from minicarlo.engines.kernel_end import KernelEnd, Taken
from minicarlo.engines.runtime import InferencePrecision, element_type, event_shape, is_precise, one_at_a_time
from minicarlo.engines.vector_code import kernel_of
from minicarlo.engines.vector_program import KINDS, Array, Step
from minicarlo.graph.fast import PART as FAST_PART
from minicarlo.llvm import has

if TYPE_CHECKING:
    import openvino

_VIEWS = {"Reshape", "Squeeze", "Unsqueeze"}
_MOVERS = {*_VIEWS, "Transpose", "Slice", "Interpolate"}
_MOST_ELEMENTS, _MOST_ROWS, _MOST_STEPS, _MOST_LAYERS = 2**22, 256, 64, 32
"""Of a convolution, and of these in a kernel: a stranger's graph must not take time and memory."""

_FEATURES = {"int8": np.uint8, "bf16": np.uint16, "fp32": np.float32}
"""What features are kept as."""

_MOST_BYTES = 2**18
"""Of a convolution's weights. More than that do not stay in a cache near by, and such layers the runtime computes well."""


def convolution_end(model: openvino.Model, precision: InferencePrecision = "f32") -> KernelEnd | None:
    """The last convolutions of `model` as a kernel: those in int8, and those in the `precision` of what is not quantised, if that
    is float32 or bf16. None if none of them has few channels. `model` is left as it was.
    """
    if len(model.outputs) != 1:
        return None
    with one_at_a_time:
        return _end(model.clone(), precision)


def _end(model: openvino.Model, precision: InferencePrecision) -> KernelEnd | None:
    last = model.outputs[0].get_node().input_value(0)
    sample = event_shape(last)
    if sample is None or element_type(last) != "f32":
        return None
    found = trunk([last], precision)
    if found is None or not found.few_channels:
        return None
    layers, (order, shape) = found.trunk.convolutions, found.made[0]
    macs, total = mac_layers(model), sum(layer.macs for layer in layers)
    taken = {
        macs[name]: Taken(form, layer.macs / total) for (name, form), layer in zip(found.layers.items(), layers, strict=True)
    }
    compiled = kernel_of(ChainWriter(found.trunk, _places_first(order, shape)))
    return KernelEnd(compiled, sample, taken, [found.features()], model.get_parameters(), last.get_names())


def wide() -> bool:
    """Whether convolutions of many channels in int8 are faster here than in the runtime: with VNNI, but no matrix unit."""
    return has("avx512vnni") and not has("amx-int8")


@dataclass(frozen=True)
class FoundTrunk:
    """Convolutions in front of some values.

    `layers` has the format of each by the name of its operation, in the order of the trunk's. The one `source` of their features
    is rounded to bytes or not, `made` is of each value the order in which it has the elements of the last convolution's result,
    and the shape of that, (rows, *places).
    """

    trunk: Trunk
    layers: dict[str, str]
    source: Any
    made: list[tuple[Places, tuple[int, ...]]]
    few_channels: bool

    def features(self) -> Any:  # noqa: ANN401
        """What the first convolutions read, for the runtime to compute."""
        return as_features(self.source, next(iter(self.layers.values())))


def trunk(values: list[Any], precision: InferencePrecision) -> FoundTrunk | None:
    """The convolutions in front of `values` that our code can compute, from one source; None if they do not all have one.

    The last ones read the same; from there on to the front it is one after another.
    """
    ends = [_part(value, precision) for value in values]
    parts = [part for part in ends if part is not None]
    same = {(part.read_name, part.given, part.format) for part in parts}
    if len(parts) != len(values) or not 0 < len(values) <= _MOST_LAYERS or len(same) != 1:
        return None
    before: list[_Part] = []
    value = parts[0].convolution.input_value(0)
    while (part := _part(value, precision)) is not None and part.coding == (before or parts)[0].given:
        if (has("amx-int8") and not part.few_channels) or len(before) + len(parts) >= _MOST_LAYERS:
            break  # a matrix unit has use for many channels
        before.insert(0, part)
        value = part.convolution.input_value(0)
    source, order = _moved(value)
    shape = event_shape(source)
    if order is None or not shape or math.prod(shape) > _MOST_ELEMENTS:
        return None
    if len(shape) == 1:  # places of one channel
        shape = (1, *shape)
    layers: list[Convolution | None] = []
    for number, part in enumerate(before):
        layers.append(part.layer(order, shape, number - 1, [*before, parts[0]][number + 1]))
        order, shape = part.order, part.shape
    layers += [part.layer(order, shape, len(before) - 1, None) for part in parts]
    whole = tuple(layer for layer in layers if layer is not None)
    if len(whole) != len(layers):
        return None
    every = [*before, *parts]
    read = math.prod(event_shape(source) or ())
    return FoundTrunk(
        Trunk(whole, read, tuple(range(len(before), len(whole)))),
        {part.convolution.get_friendly_name(): part.format for part in every},
        source,
        [(part.order, part.shape) for part in parts],
        any(part.few_channels for part in every),
    )


@dataclass(frozen=True)
class _Part:
    """A convolution and what is made of it, up to a value.

    `given` is how the features of its input become bytes (None: they do not), `weights` are int8 then, else what features are:
    bits of bf16 or float32. `order` has for each element of the value the number of that of the convolution's result, (rows,
    *places).
    """

    convolution: Any
    weights: NDArray[np.int8] | Bits | Array
    scale: Array
    bias: Array
    given: Coding | None
    steps: dict[str, Step]
    coding: Coding | None
    order: Places

    @property
    def format(self) -> str:
        return ARITHMETIC[self.weights.dtype].name

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the convolution's result."""
        return event_shape(self.convolution.output(0)) or ()

    @property
    def read_name(self) -> str:
        """What tells its input from others."""
        value = self.convolution.input_value(0)
        return f"{value.get_node().get_name()}:{value.get_index()}"

    @property
    def few_channels(self) -> bool:
        """Whether a runtime pads them."""
        return bool(self.weights.shape[1] % 16)

    def layer(self, order: Places, shape: tuple[int, ...], reads: int, later: _Part | None) -> Convolution | None:
        """With its input's elements in an `order` of what it `reads`, an event of which has `shape`, channels first: what the
        convolution of that number makes, or what the runtime does. What it makes is for a `later` one, or a result. None if there
        is no byte for the zeros around it."""
        depth, *grid = event_shape(self.convolution.input_value(0)) or ()
        _, *made = self.shape
        padding, offset = 0, self.bias.astype(np.float64)
        scale = self.scale.astype(np.float64)
        if self.given is not None:
            low, step = self.given.low, self.given.step
            padding = round(-low / step)
            if not 0 <= padding <= 255 or abs(low + padding * step) > 1e-3 * step:
                return None
            offset = offset + low * scale * self.weights.sum(tuple(range(1, self.weights.ndim)), dtype=np.float64)
            scale = scale * step
        straight = reads >= 0 and np.array_equal(order, np.arange(math.prod(shape)))
        return Convolution(
            self.weights,
            scale.astype(np.float32),
            offset.astype(np.float32),
            tuple(grid),
            tuple(_padding(self.convolution)[0]),
            tuple(made),
            padding,
            self.steps,
            self.coding,
            np.dtype(_FEATURES["fp32" if later is None else later.format] if self.coding is None else np.uint8),
            None if straight else _places_first(order, shape).reshape(depth, -1).T.reshape(-1),
            reads,
        )


def _part(value: Any, precision: InferencePrecision) -> _Part | None:  # noqa: ANN401
    """The convolution in front of `value`, if all between is understood and our code can compute it."""
    between, convolution = _between(value)
    if convolution is None or event_shape(convolution.output(0)) is None:
        return None
    if FAST_PART in convolution.get_friendly_name():  # a matrix of a fast convolution, which is no layer
        return None
    attributes = convolution.get_attributes()
    if {*attributes["strides"], *attributes["dilations"]} != {1} or attributes["auto_pad"] != "explicit":
        return None
    stored = stored_weights(convolution.input_value(1).get_node())
    if stored is None:
        return None
    weights: NDArray[np.int8] | Bits | Array = stored[0]
    scale = stored[1]
    rows, made = len(weights), event_shape(convolution.output(0)) or ()
    grid = event_shape(convolution.input_value(0))
    if grid is None or weights.ndim < 3 or scale.size not in (1, rows) or rows > _MOST_ROWS:
        return None
    around = [length + before + after for length, before, after in zip(grid[1:], *_padding(convolution), strict=True)]
    if min(min(each) for each in _padding(convolution)) < 0 or len(between) > _MOST_STEPS:
        return None
    if max(grid[0] * math.prod(around), math.prod(made)) > _MOST_ELEMENTS:
        return None
    given = None
    if weights.dtype == np.int8:
        ends = range_of_bytes(_moved(convolution.input_value(0))[0].get_node())
        if ends is None:
            return None
        given = _coding(ends)
    elif precision == "bf16" and not is_precise(convolution):
        weights = bf16_bits(weights)
    elif precision != "f32":
        return None
    if weights.nbytes > _MOST_BYTES or not computable(weights):
        return None
    name, bias = with_bias(convolution, rows)
    made_of = _steps(value, between, convolution, name, made)
    if made_of is None:
        return None
    return _Part(convolution, weights, np.broadcast_to(scale.reshape(-1), rows), bias, given, *made_of)


def _padding(convolution: Any) -> tuple[list[int], list[int]]:  # noqa: ANN401
    attributes = convolution.get_attributes()
    return list(attributes["pads_begin"]), list(attributes["pads_end"])


def _between(value: Any) -> tuple[list[Any], Any | None]:  # noqa: ANN401
    """The operations from a convolution to `value`, each after those that it reads, and the convolution if there is one."""
    found: dict[str, Any] = {}
    convolution = None

    def visit(node: Any) -> bool:  # noqa: ANN401
        nonlocal convolution
        kind, name = node.get_type_name(), node.get_name()
        if name in found:
            return True
        if kind == "Convolution":
            convolution = convolution or node
            return bool(convolution.get_name() == name)
        if kind not in (*_MOVERS, *KINDS, "PRelu", "BatchNormInference", "FakeQuantize") or len(found) > _MOST_STEPS:
            return False
        operands = node.input_values()[:1] if kind in _MOVERS else node.input_values()
        if not all(_numbers(each) is not None or visit(each.get_node()) for each in operands):
            return False
        found[name] = node
        return True

    return (list(found.values()), convolution) if visit(value.get_node()) else ([], None)


def _steps(value: Any, between: list[Any], convolution: Any, biased: str, made: tuple[int, ...]) -> tuple[Any, ...] | None:  # noqa: ANN401
    """What is made of a convolution's result, how that becomes bytes, and the order of its elements."""
    steps: dict[str, Step] = {}
    straight = np.arange(math.prod(made))
    names = {convolution.get_name(): SUMS}
    orders = {convolution.get_name(): straight}
    coding: Coding | None = None
    if biased != convolution.get_name():
        names[biased], orders[biased] = SUMS, straight
    for op in between:
        kind, name = op.get_type_name(), op.get_name()
        if name in names:
            continue
        operands = [each for each in op.input_values() if _numbers(each) is None]
        read = [each.get_node().get_name() for each in (op.input_values()[:1] if kind in _MOVERS else operands)]
        order = orders[read[0]]
        if any(not np.array_equal(orders[each], order) for each in read[1:]):
            return None
        if kind not in _MOVERS and math.prod(event_shape(op.output(0)) or ()) != len(order):  # one is repeated for another
            return None
        if kind in _MOVERS:
            changed = _after(op, order)
            if changed is None:
                return None
            names[name], orders[name] = names[read[0]], changed
            continue
        if element_type(op.output(0)) not in ("f32", "boolean"):
            return None
        if kind == "FakeQuantize":
            ends = range_of_bytes(op)
            if ends is None or coding not in (None, _coding(ends)):
                return None
            coding = _coding(ends)
            names[name], orders[name] = names[read[0]], order
            continue
        if coding is not None:
            return None
        known = [each for each in op.input_values() if _numbers(each) is not None]
        constants = [_for_rows(each, op, made, straight=order is straight) for each in known]
        if any(each is None for each in constants):
            return None
        more = _as_steps(op, name, [names[each] for each in read], constants)
        if more is None:
            return None
        steps |= more
        names[name], orders[name] = name, order
    last = value.get_node().get_name()
    used = names[last]
    if used != SUMS and used != next(reversed(steps), SUMS):
        return None
    if element_type(value) != "f32" or (used == SUMS and steps):
        return None
    return steps, coding, orders[last]


def _as_steps(op: Any, name: str, read: list[str], constants: list[Any]) -> dict[str, Step] | None:  # noqa: ANN401
    """An operation on numbers as steps, the last of which has its name."""
    kind = op.get_type_name()

    def known(number: int) -> tuple[str, Step]:
        return f"{name} {number}", Step("constant", "rows", data=constants[number])

    if kind == "PRelu" and constants[0].min() >= 0 and constants[0].max() <= 1:
        below = (f"{name} below", Step("multiply", "cells", (read[0], f"{name} 0")))
        return dict([known(0), below, (name, Step("maximum", "cells", (read[0], below[0])))])
    if kind == "PRelu":
        slope, zero = known(0), (f"{name} zero", Step("constant", "event", data=np.zeros(1, np.float32)))
        below = (f"{name} below", Step("multiply", "cells", (read[0], slope[0])))
        negative = (f"{name} negative", Step("less", "cells", (read[0], zero[0])))
        return dict([slope, zero, below, negative, (name, Step("select", "cells", (negative[0], below[0], read[0])))])
    if kind == "BatchNormInference":
        gamma, beta, mean, variance = (np.asarray(each, np.float64) for each in constants)
        factor = gamma / np.sqrt(variance + op.get_attributes()["epsilon"])
        constants = [each.astype(np.float32) for each in (factor, beta - factor * mean)]
        scaled = (f"{name} scaled", Step("multiply", "cells", (read[0], f"{name} 0")))
        return dict([known(0), known(1), scaled, (name, Step("add", "cells", (scaled[0], f"{name} 1")))])
    if kind == "Round" and op.get_attributes()["mode"] != "half_to_even":
        return None
    if kind == "Convert" and element_type(op.input_value(0)) != "boolean":
        return None
    variables, numbers = iter(read), iter(range(len(constants)))
    steps, inputs = {}, []
    for each in op.input_values():
        if _numbers(each) is None:
            inputs.append(next(variables))
        else:
            key, step = known(next(numbers))
            steps[key] = step
            inputs.append(key)
    return steps | {name: Step(KINDS[kind], "cells", tuple(inputs))}


def _for_rows(value: Any, op: Any, made: tuple[int, ...], *, straight: bool) -> Array | None:  # noqa: ANN401
    """A constant as one number, one for each row of the convolution, or (places, rows); None if it is neither."""
    numbers = _numbers(value)
    if numbers is None or element_type(value) != "f32":
        return None
    if numbers.size == 1:
        return numbers.astype(np.float32).reshape(1)
    if not straight or event_shape(op.output(0)) != made:
        return None
    if numbers.shape in (made, (1, *made)):
        return numbers.astype(np.float32).reshape(made[0], -1).T
    if numbers.size != made[0]:
        return None
    if op.get_type_name() in ("PRelu", "BatchNormInference") and numbers.ndim == 1:
        return numbers.astype(np.float32)
    wanted = (made[0], *(1,) * (len(made) - 1))
    return numbers.astype(np.float32).reshape(-1) if numbers.shape[-len(made) :] == wanted else None


def _coding(ends: tuple[float, float]) -> Coding:
    return Coding(ends[0], (ends[1] - ends[0]) / 255)


def _numbers(value: Any) -> NDArray[Any] | None:  # noqa: ANN401
    """A constant's numbers, also behind views of it; None of anything else."""
    node = value.get_node()
    if node.get_type_name() == "Constant":
        return np.asarray(node.get_data())
    if node.get_type_name() not in _VIEWS or value.get_partial_shape().is_dynamic:
        return None
    found = _numbers(node.input_value(0))
    return None if found is None else found.reshape(tuple(value.get_shape()))


def _moved(value: Any) -> tuple[Any, Places | None]:  # noqa: ANN401
    """What a value is in front of all that only moves numbers, and the order in which it has that one's, if that is known."""
    movers: list[Any] = []
    while value.get_node().get_type_name() in _MOVERS:
        movers.insert(0, value.get_node())
        value = movers[0].input_value(0)
    order: Places | None = np.arange(math.prod(event_shape(value) or ()))
    for op in movers:
        order = None if order is None else _after(op, order)
    return value, order


def _after(op: Any, order: Places) -> Places | None:  # noqa: ANN401
    """The order of what an operation that moves numbers makes of a value in `order`; None if events do not stay apart."""
    import openvino
    from openvino import opset13 as operators

    given, made = event_shape(op.input_value(0)), event_shape(op.output(0))
    if given is None or made is None or math.prod(given) != len(order) or math.prod(made) > _MOST_ELEMENTS:
        return None
    kind = op.get_type_name()
    if kind in _VIEWS:
        return order if math.prod(made) == len(order) else None
    if kind == "Transpose":
        axes = _numbers(op.input_value(1))
        stays = axes is not None and axes[0] == 0
        return np.asarray(order.reshape(1, *given).transpose(axes)).reshape(-1) if stays else None
    source = operators.parameter([1, *given], np.float32)  # which has all numbers up to 2^24
    others = op.input_values()[1:]
    if kind == "Slice":
        made_of = operators.slice(source.output(0), *others)
    elif op.get_attributes().get("mode") == "nearest":
        made_of = operators.interpolate(source.output(0), others[0], **op.get_attributes(), axes=(*others[1:], None)[0])
    else:
        return None
    moved = openvino.Model([made_of.output(0)], [source])
    found: Any = openvino.Tensor(np.empty([1, *made], np.float32))
    numbers = openvino.Tensor(order.astype(np.float32).reshape(1, *given))
    if list(moved.outputs[0].get_partial_shape()) != [1, *made] or not moved.evaluate([found], [numbers]):
        return None
    return np.array(found.data, np.int64).reshape(-1)


def _places_first(order: Places, shape: tuple[int, ...]) -> Places:
    """Numbers of elements of (channels, *places) as numbers of those of (*places, channels)."""
    channel, place = np.divmod(order, math.prod(shape[1:]))
    return place * shape[0] + channel
