"""The element-wise end of a network as one kernel: the same numbers as the runtime's, the same bits however it is asked."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import openvino
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from openvino import opset13 as ops

from minicarlo.engines.convolution_end import wide
from minicarlo.engines.dense_code import Columns, Dense, computable
from minicarlo.engines.epilogue import epilogue
from minicarlo.engines.network import OpenVinoNetwork, read_network_file
from minicarlo.engines.openvino import OpenVinoGenerator, read_model
from minicarlo.engines.vector_code import kernel
from minicarlo.engines.vector_program import Program, Step
from minicarlo.llvm import has
from minicarlo.surrogate import Surrogate

UNARY = {
    "sqrt": np.sqrt,
    "abs": np.abs,
    "round": np.round,
    "floor": np.floor,
    "ceiling": np.ceil,
    "negative": np.negative,
    "relu": lambda x: np.maximum(x, 0),
}
BINARY = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
}
COMPARE = {
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "equal": np.equal,
    "not_equal": np.not_equal,
}


KINDS = ["abs", "negative", "relu", "add", "multiply", "maximum", "minimum", "select", "number", "sum"]


def expected(program: Program, inputs: list[np.ndarray]) -> np.ndarray:
    """What NumPy makes of a program, (events, rows, row); every step in float32."""
    events, (rows, row) = len(inputs[0]), (program.rows, program.row)

    def of_cells(flat: np.ndarray) -> np.ndarray:
        if program.turned:
            return flat.reshape(-1, row, rows).transpose(0, 2, 1)
        return flat.reshape(-1, rows, row)

    values: dict[str, np.ndarray] = {}
    for name, step in program.steps.items():
        shape = {"cells": of_cells, "rows": lambda x: x.reshape(-1, rows, 1), "event": lambda x: x.reshape(-1, 1, 1)}[step.size]
        read = [values[each] for each in step.inputs]
        if step.kind == "constant":
            values[name] = shape(step.data)
        elif step.kind == "input":
            values[name] = shape(inputs[step.index])
        elif step.kind == "product":
            values[name] = shape(inputs[step.index] @ step.data)
        elif step.kind == "sum":
            values[name] = np.broadcast_to(read[0], (events, rows, row)).sum(2, keepdims=True)
        elif step.kind == "rolled":
            flat = np.broadcast_to(read[0], (events, rows, row))
            flat = flat.transpose(0, 2, 1) if program.turned else flat
            values[name] = of_cells(np.roll(flat.reshape(events, -1), -step.ahead, axis=1))
        elif step.kind == "select":
            values[name] = np.where(*read)
        elif step.kind == "number":
            values[name] = read[0].astype(np.float32)
        else:
            values[name] = (UNARY | BINARY | COMPARE)[step.kind](*read)
    return np.broadcast_to(values[list(program.steps)[-1]], (events, rows, row))


def computed(program: Program, inputs: list[np.ndarray], events: int) -> np.ndarray:
    """What the kernel makes of it, in memory that nothing else may be written to."""
    memory = np.full((events + 2, program.rows, program.row), 777.0, np.float32)
    kernel(program).prepare()([each.ctypes.data for each in inputs], memory[1].ctypes.data, events)
    assert (memory[0] == 777).all() and (memory[-1] == 777).all()
    return memory[1:-1]


@st.composite
def programs(draw: st.DrawFn) -> tuple[Program, list[np.ndarray], int]:
    """Programs of small whole numbers, which float32 adds up exactly in any order."""
    rows, row, events = draw(st.integers(1, 20)), draw(st.integers(1, 50)), draw(st.integers(1, 9))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def numbers(*shape: int) -> np.ndarray:
        return random.integers(-3, 4, shape).astype(np.float32)

    turned = draw(st.booleans())
    inputs = [numbers(events, rows * row), numbers(events, rows), numbers(events, 1), numbers(events, 3)]
    steps = {
        "cell": Step("input", "cells", index=0),
        "row": Step("input", "rows", index=1),
        "event": Step("input", "event", index=2),
        "product": Step("product", "cells", data=numbers(3, rows * row), index=3),
        "cell constant": Step("constant", "cells", data=numbers(rows * row)),
        "same in all rows": Step("constant", "cells", data=numbers(row).repeat(rows) if turned else np.tile(numbers(row), rows)),
        "row constant": Step("constant", "rows", data=numbers(rows)),
        "constant": Step("constant", "event", data=numbers(1)),
    }
    last, plain = "cell", {"cell", "product", "cell constant", "same in all rows"}  # what may be rolled
    for number in range(draw(st.integers(1, 10))):
        names = [name for name, step in steps.items() if step.kind not in COMPARE]

        def size(*read: str) -> str:
            return min((steps[each].size for each in read), key=["cells", "rows", "event"].index)

        one, two = (draw(st.sampled_from(names)) for _ in range(2))
        kind = draw(
            st.sampled_from(
                ["abs", "negative", "relu", "add", "multiply", "maximum", "minimum", "select", "number", "sum", "rolled"]
            )
        )
        read = {"abs": [last], "negative": [last], "relu": [last]}.get(kind, [last, one])
        if kind == "sum":
            read = [one if steps[one].size == "cells" else "cell"]
        elif kind == "rolled":
            read = [one if one in plain else "cell"]
        elif kind in ("select", "number"):
            steps[f"{number}?"] = Step(draw(st.sampled_from(list(COMPARE))), size(last, one), (last, one))
            read = [f"{number}?", two, last] if kind == "select" else [f"{number}?"]
        last = f"{number}"
        ahead = draw(st.integers(0, rows * row - 1)) if kind == "rolled" else 0
        steps[last] = Step(kind, "rows" if kind == "sum" else size(*read), tuple(read), ahead=ahead)
        if kind not in ("sum", "rolled", "number", "select") and steps[last].size == "cells" and plain.issuperset(read):
            plain.add(last)
    steps["end"] = Step("add", "cells", (last, "cell"))
    return Program(steps, rows, row, turned=turned), inputs, events


@given(programs())
@settings(max_examples=60, deadline=None)
def test_any_program_computes_what_numpy_does(case):
    program, inputs, events = case
    wanted = expected(program, inputs)
    assume(np.abs(wanted).max() < 1000)
    assert np.array_equal(computed(program, inputs, events), wanted)


@st.composite
def dense_programs(draw: st.DrawFn) -> tuple[Program, list[np.ndarray], np.ndarray]:
    """Sums of an input and of convolutions of single cells, of whole numbers, with their features anywhere in several arrays;
    and what the sums are."""
    rows, row, events = draw(st.integers(1, 40)), draw(st.integers(1, 60)), draw(st.integers(1, 9))
    depth, layers, arrays = 4 * draw(st.integers(1, 9)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["int8", "half range", "bf16", "fp32"]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    largest = {"int8": 127, "half range": 64}.get(kind, 7)
    lengths = tuple(int(length) for length in random.integers(1, 70, arrays))
    which = random.integers(0, arrays, row)
    places = np.stack([which, random.integers(0, np.array(lengths)[which])], 1)
    features = [random.integers(0, 256 if largest > 7 else 8, (events, length, depth)).astype(np.float32) for length in lengths]
    read = np.stack([features[one][:, place] for one, place in places], 1)
    cells = random.integers(-3, 4, (events, row * rows)).astype(np.float32)
    steps, last, wanted = {"cell": Step("input", "cells", index=0)}, "cell", cells.reshape(events, row, rows)
    for number in range(layers):
        weights = random.integers(-largest, largest + 1, (depth, rows)).astype(np.float32)
        scale, offset = 2.0 ** random.integers(-3, 2, rows), random.integers(-5, 6, rows)
        wanted = wanted + (read @ weights) * scale + offset
        dense = Dense(stored(weights, kind), scale.astype(np.float32), offset.astype(np.float32))
        steps |= {
            f"dense {number}": Step("dense", "cells", dense=dense),
            f"{number}": Step("add", "cells", (last, f"dense {number}")),
        }
        last = f"{number}"
    inputs = [cells, *(stored(each, kind if largest == 7 else "bytes") for each in features)]
    columns = Columns(tuple(range(1, arrays + 1)), lengths, places)
    return Program(steps, rows, row, turned=True, columns=columns), inputs, wanted.transpose(0, 2, 1)


def stored(numbers: np.ndarray, kind: str) -> np.ndarray:
    """Whole numbers as a kernel reads them."""
    if kind == "bf16":  # the upper half of float32
        return (numbers.view(np.uint32) >> 16).astype(np.uint16)
    return numbers.astype({"bytes": np.uint8, "fp32": np.float32}.get(kind, np.int8))


@given(dense_programs())
@settings(max_examples=60, deadline=None)
def test_any_convolution_of_single_cells_computes_what_numpy_does(case):
    program, inputs, wanted = case
    assume(all(computable(step.dense.weights) for step in program.steps.values() if step.dense is not None))
    assume(np.abs(wanted).max() < 2**20)
    assert np.array_equal(computed(program, inputs, len(wanted)), wanted)


@pytest.mark.parametrize("kind", [*UNARY, *BINARY, *COMPARE])
def test_every_operation_is_numpys_to_the_last_bit(kind):
    random = np.random.default_rng(1)
    first = (random.integers(-40, 40, (5, 3 * 37)) / 4).astype(np.float32)
    second = random.choice(np.array([-2.5, -1, -0.25, 0.5, 1, 3.1], np.float32), (5, 3 * 37))
    first[:, ::7] = second[:, ::7]
    first = np.abs(first) if kind == "sqrt" else first
    steps = {"a": Step("input", "cells", index=0), "b": Step("input", "cells", index=1)}
    steps["r"] = Step(kind, "cells", ("a",) if kind in UNARY else ("a", "b"))
    if kind in COMPARE:
        steps["r as a number"] = Step("number", "cells", ("r",))
    program = Program(steps, 3, 37, turned=False)
    assert np.array_equal(computed(program, [first, second], 5), expected(program, [first, second]))


@pytest.mark.parametrize("kind", ["maximum", "minimum", "relu"])
def test_what_is_not_a_number_stays_so(kind):
    values = np.full((1, 20), np.nan, np.float32)
    steps = {"a": Step("input", "cells", index=0), "one": Step("constant", "event", data=np.ones(1, np.float32))}
    steps["r"] = Step(kind, "cells", ("a",) if kind == "relu" else ("a", "one"))
    assert np.isnan(computed(Program(steps, 2, 10, turned=False), [values], 1)).all()


def test_a_sum_is_as_good_as_numpys():
    values = np.random.default_rng(2).lognormal(0, 3, (4, 25 * 625)).astype(np.float32)
    steps = {"a": Step("input", "cells", index=0), "s": Step("sum", "rows", ("a",)), "z": Step("subtract", "cells", ("a", "a"))}
    steps["r"] = Step("add", "cells", ("s", "z"))
    found = computed(Program(steps, 25, 625, turned=False), [values], 4)[:, :, 0]
    exact = values.reshape(4, 25, 625).sum(2, dtype=np.float64)
    assert np.abs(found / exact - 1).max() < 1e-6


def test_the_same_program_is_compiled_once_and_runs_in_threads():
    values = np.random.default_rng(3).normal(size=(64, 25 * 625)).astype(np.float32)
    steps = {"a": Step("input", "cells", index=0), "s": Step("sum", "rows", ("a",)), "r": Step("multiply", "cells", ("a", "s"))}
    program = Program(steps, 25, 625, turned=True)
    first = kernel(program)
    assert kernel(Program(dict(steps), 25, 625, turned=True)) is first
    with ThreadPoolExecutor(4) as pool:
        many = list(pool.map(lambda _: computed(program, [values], 64), range(16)))
    assert all(np.array_equal(each, many[0]) for each in many)


def test_the_bits_are_those_of_narrower_instructions(monkeypatch):
    """A processor with AVX2 and fused multiply-add, but without AVX-512."""
    binding = pytest.importorskip("llvmlite.binding")
    if not binding.get_host_cpu_features().get("avx2"):
        pytest.skip("this processor has no AVX2 (x86-64 only)")
    random = np.random.default_rng(10)
    for kind in ("half range", "fp32"):
        numbers = random.integers(-64, 65, (64, 25)) if kind == "half range" else random.normal(size=(64, 25))
        dense = Dense(stored(numbers, kind), *random.normal(size=(2, 25)).astype(np.float32))
        steps = {
            "p": Step("product", "cells", data=random.normal(size=(16, 25 * 625)).astype(np.float32), index=0),
            "d": Step("dense", "cells", dense=dense),
            "b": Step("add", "cells", ("p", "d")),
            "a": Step("abs", "cells", ("b",)),
            "q": Step("sqrt", "cells", ("a",)),
            "s": Step("sum", "rows", ("q",)),
            "r": Step("divide", "cells", ("q", "s")),
        }
        columns = Columns((1,), (625,), np.stack([np.zeros(625, np.int64), random.permutation(625)], 1))
        program, latent = Program(steps, 25, 625, turned=True, columns=columns), random.normal(size=(9, 16)).astype(np.float32)
        features = stored(random.integers(0, 256, (9, 625, 64)), "bytes" if kind == "half range" else kind)
        wide = computed(program, [latent, features], 9)
        with monkeypatch.context() as patch:
            patch.setattr("minicarlo.engines.vector_code._kernels", {})
            patch.setattr(binding, "get_host_cpu_name", lambda: "haswell")
            patch.setattr(binding, "get_host_cpu_features", lambda: binding.FeatureMap({"avx2": True, "fma": True}))
            has.cache_clear()
            narrow = computed(program, [latent, features], 9)
        has.cache_clear()
        assert np.array_equal(narrow, wide)


def events(surrogate: Surrogate, count: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(4)
    latent = random.standard_normal((count, surrogate.manifest.latent_size), dtype=np.float32)
    return latent, np.exp(random.uniform(np.log(1e3), np.log(1e5), (count, 1))).astype(np.float32)


@pytest.mark.parametrize("precision", ["fp32", "tuned"])
def test_the_shipped_surrogate_makes_the_same_showers(precision):
    surrogate = Surrogate.load("clic-ecal")
    model, inference_precision = read_model(surrogate, precision)
    latent, energy = events(surrogate, 100)
    runtime = OpenVinoGenerator(model, inference_precision, batch=32, whole=True)
    ours = OpenVinoGenerator(model, inference_precision, batch=32)
    assert "epilogue" in names(ours.network) and "epilogue" not in names(runtime.network)
    if precision == "fp32" or has("avx2"):
        assert not any("shape.tail" in name or "shape.conv5/" in name for name in names(ours.network))
    whole, made = runtime.run(latent, energy), ours.run(latent, energy)
    differences = np.linalg.norm((made - whole).reshape(100, -1), axis=1) / np.linalg.norm(whole.reshape(100, -1), axis=1)
    if precision == "fp32":
        assert np.linalg.norm(made - whole) < 1e-6 * np.linalg.norm(whole)
    assert differences.max() < 1e-3 and (differences > 1e-6).mean() <= 0.03  # where our convolutions round a number the other way
    assert ((made > 0) != (whole > 0)).sum() <= 2  # at the threshold
    assert ours.precision_report() == runtime.precision_report()
    for other in (
        OpenVinoGenerator(model, inference_precision, batch=7),
        OpenVinoGenerator(model, inference_precision, batch=32, threads=2),
    ):
        assert np.array_equal(other.run(latent, energy), made)
    pieces = ((i, latent[i : i + 32], energy[i : i + 32]) for i in range(0, 100, 32))
    streams = OpenVinoGenerator(model, inference_precision, batch=32, streams=2)
    assert np.array_equal(np.concatenate([showers for _, showers in streams.map(pieces)]), made)
    one = ours.inference()
    one.latent[:], one.incident_energy[:] = latent[:32], energy[:32]
    assert np.array_equal(one(), made[:32])


def test_half_precision_leaves_the_phase_of_the_noise_to_the_runtime():
    """Its inputs would arrive rounded, and what many periods leave of a phase would be another number."""
    surrogate = Surrogate.load("clic-ecal")
    latent, energy = events(surrogate, 100)
    whole = OpenVinoGenerator(*read_model(surrogate, "bf16"), batch=50, whole=True).run(latent, energy)
    ours = OpenVinoGenerator(*read_model(surrogate, "bf16"), batch=50)
    assert "epilogue" in names(ours.network)
    assert np.linalg.norm(ours.run(latent, energy) - whole) < 0.01 * np.linalg.norm(whole)


@pytest.mark.parametrize("precision", ["fp32", "tuned"])
def test_of_single_events_the_kernel_is_called_when_the_runtime_is_done(precision):
    surrogate = Surrogate.load("clic-ecal")
    latent, energy = events(surrogate, 9)
    alone, batches = (OpenVinoGenerator(*read_model(surrogate, precision), batch=batch) for batch in (1, 8))
    assert "epilogue" not in names(alone.network)
    assert alone.precision_report() == batches.precision_report()
    made, wanted = alone.run(latent, energy), batches.run(latent, energy)
    assert np.abs(made - wanted).max() < 1e-5 * wanted.max()
    two = OpenVinoGenerator(*read_model(surrogate, precision), batch=1, streams=2)
    pieces = ((i, latent[i : i + 1], energy[i : i + 1]) for i in range(len(latent)))
    assert np.array_equal(np.concatenate([showers for _, showers in two.map(pieces)]), made)
    inference = alone.inference()
    for i, shower in enumerate(made):
        inference.latent[:], inference.incident_energy[:] = latent[i], energy[i]
        assert np.array_equal(inference()[0], shower)


def test_the_noise_of_the_shipped_surrogate_is_made_in_the_kernel():
    """ONNX's slices, whose usual step is read as a number that is broadcast, and the runtime's."""
    surrogate = Surrogate.load("clic-ecal")
    for precision in ("fp32", "tuned"):
        end = epilogue(*read_model(surrogate, precision))
        assert end is not None and end.taken["noise.matmul"] == ("fp32", 0.0)  # which no other format could save
        assert abs(sum(taken.share for taken in end.taken.values()) - 1) < 1e-9
        assert max(np.prod(port.get_partial_shape()[1:].to_shape()) for port in end.rest().outputs) < 15_625


def test_convolutions_in_front_of_the_heads_are_the_runtimes_to_the_bit(monkeypatch):
    """Of the shipped surrogate in int8: the same bytes between layers, so the same showers."""
    if not wide():
        pytest.skip("this processor has no VNNI, or matrix units that are left to the runtime")
    surrogate = Surrogate.load("clic-ecal")
    latent = np.random.default_rng(4).standard_normal((13, surrogate.manifest.latent_size), np.float32)
    energy = np.geomspace(1e3, 1e5, 13, dtype=np.float32).reshape(-1, 1)
    ours = OpenVinoGenerator(*read_model(surrogate, "tuned"), batch=5)
    monkeypatch.setattr("minicarlo.engines.epilogue.wide", lambda: False)
    theirs = OpenVinoGenerator(*read_model(surrogate, "tuned"), batch=5)
    nodes = [names(each.network) for each in (ours, theirs)]
    assert not any("shape.conv3" in each for each in nodes[0]) and any("shape.conv3" in each for each in nodes[1])
    assert ours.precision_report() == theirs.precision_report()
    assert np.array_equal(ours.run(latent, energy), theirs.run(latent, energy))


@pytest.mark.parametrize("shape", [(45, 16, 9), (9, 5, 3), (12, 24, 24)])
def test_grids_of_any_shape(shape, tmp_path):
    torch = pytest.importorskip("torch")
    from minicarlo.generators.shower2d import Shower2D
    from minicarlo.training.export import to_onnx

    torch.manual_seed(1)
    generator = Shower2D(sample_shape=shape, channels=16)
    with torch.no_grad():
        generator.shape.place.normal_()
    (tmp_path / "model.onnx").write_bytes(to_onnx(generator))
    latent = np.random.default_rng(9).standard_normal((9, generator.latent_size), np.float32)
    energy = np.full((9, 1), 2e4, np.float32)
    ours = OpenVinoGenerator(tmp_path / "model.onnx", "f32", batch=4)
    whole = OpenVinoGenerator(tmp_path / "model.onnx", "f32", batch=4, whole=True).run(latent, energy)
    assert "epilogue" in names(ours.network)
    made = ours.run(latent, energy)
    assert whole.any() and np.abs(made - whole).max() < 1e-3 * whole.max()  # a fourth root near zero takes rounding up


def names(network: OpenVinoNetwork) -> set[str]:
    return {layer["name"] for layer in network.runtime_layers()}


def ends_in(*last: str, rows: int = 4) -> openvino.Model:
    """A model (batch, 4, 6, 6) -> (batch, rows, 6, 6): a convolution, a sum over each row, and operations that `last` names."""
    source = ops.parameter([-1, 4, 6, 6], np.float32, name="x")
    weights = ops.constant(np.random.default_rng(5).normal(size=(rows, 4, 3, 3)).astype(np.float32))
    value = ops.convolution(source, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    for kind in last:
        if kind == "normalise":
            value = ops.relu(value)
            sums = ops.reduce_sum(value, ops.constant(np.array([2, 3])), keep_dims=True)
            value = ops.divide(value, ops.add(sums, ops.constant(np.float32(1))))
        elif kind == "log":
            value = ops.log(ops.add(ops.abs(value), ops.constant(np.float32(1))))
        elif kind == "sum of channels":
            value = ops.multiply(value, ops.reduce_sum(value, ops.constant(np.array([1])), keep_dims=True))
        elif kind == "turn":
            value = ops.transpose(value, ops.constant(np.array([0, 2, 1, 3])))
        elif kind == "profile":
            value = ops.multiply(value, ops.constant(np.arange(rows, dtype=np.float32).reshape(rows, 1, 1)))
        elif kind == "at most":
            value = ops.select(ops.greater(value, ops.constant(np.float32(0.1))), ops.constant(np.float32(0.1)), value)
    model = openvino.Model([ops.result(value)], [source], "test")
    model.outputs[0].get_tensor().set_names({"y"})
    model.inputs[0].get_tensor().set_names({"x"})
    return model


@pytest.mark.parametrize(
    ("last", "taken"),
    [
        (("normalise",), True),
        (("normalise", "profile", "normalise", "at most"), True),
        (("profile", "normalise", "at most", "profile"), True),
        (("log", "normalise"), True),  # from behind the logarithm on
        (("normalise", "log"), False),  # which stands between the result and all that would pay
        (("sum of channels",), False),
        (("profile", "at most"), False),  # the runtime does as well
        (("normalise", "sum of channels", "profile"), False),
    ],
)
def test_what_is_understood_is_taken_and_nothing_else(last, taken):
    model = ends_in(*last)
    x = np.random.default_rng(6).normal(size=(10, 4, 6, 6)).astype(np.float32)
    pair = [OpenVinoNetwork(model, "f32", {"x": [5, 4, 6, 6]}, whole=whole) for whole in (False, True)]
    assert (epilogue(model) is not None) == taken
    made, wanted = (each.run({"x": x})["y"] for each in pair)
    assert np.abs(made - wanted).max() < 1e-5 * np.abs(wanted).max()


def with_heads(features: str, weights: str, ranges: tuple[float, ...] = (0.0, 3.0)) -> openvino.Model:
    """A model (batch, 4, 6, 6) -> (batch, 5, 11, 11): four convolutions, phases of a finer grid that is cut, and on that two
    convolutions of single cells, `weights` "fp32" or "int8" (of `features` within the first, last and `ranges` in between), a sum
    over each row, and more."""
    random = np.random.default_rng(11)
    source = ops.parameter([-1, 4, 6, 6], np.float32, name="x")

    def constant(*shape: int) -> openvino.Node:
        return ops.constant(random.normal(size=shape).astype(np.float32))

    phases = []
    for number in range(4):
        value = ops.convolution(source, constant(8, 4, 3, 3), [1, 1], [1, 1], [1, 1], [1, 1])
        if weights == "int8":
            ends = [ops.constant(np.float32(end)) for end in (ranges[0], ranges[1 + number % (len(ranges) - 1)])]
            value = ops.fake_quantize(value, *ends, *ends, 256)
        phases.append(value)
    value = ops.depth_to_space(ops.concat(phases, 1), "blocks_first", 2)
    one, end = ops.constant(np.array([1, 1])), ops.constant(np.array([12, 12]))
    value = ops.slice(value, one, end, one, ops.constant(np.array([2, 3])))
    if features == "shuffled":
        apart = ops.transpose(ops.reshape(value, np.array([0, 2, 4, 11, 11]), True), np.array([0, 2, 1, 3, 4]))
        value = ops.reshape(apart, np.array([0, 8, 11, 11]), True)
    depth = 8
    if features == "half":
        depth, zero = 4, ops.constant(np.array([0]))
        value = ops.slice(value, zero, ops.constant(np.array([4])), ops.constant(np.array([1])), ops.constant(np.array([1])))
    heads = []
    for number in range(2):
        kernel = constant(5, depth, 1, 1)
        if weights == "int8":
            bytes_ = ops.constant(random.integers(-127, 128, (5, depth, 1, 1)).astype(np.int8))
            kernel = ops.multiply(ops.convert(bytes_, np.float32), ops.constant(random.random((5, 1, 1, 1), np.float32) / 50))
        head = ops.convolution(value, kernel, [1, 1], [0, 0], [0, 0], [1, 1])
        head.set_friendly_name(f"head {number}")
        heads.append(ops.add(head, constant(1, 5, 1, 1)) if number else head)
    value = ops.abs(ops.multiply(heads[0], heads[1]))
    sums = ops.reduce_sum(value, ops.constant(np.array([2, 3])), keep_dims=True)
    model = openvino.Model([ops.result(ops.divide(value, ops.add(sums, ops.constant(np.float32(1)))))], [source], "heads")
    model.outputs[0].get_tensor().set_names({"y"})
    model.inputs[0].get_tensor().set_names({"x"})
    return model


@pytest.mark.parametrize(
    ("features", "weights", "ranges", "taken"),
    [
        ("all", "fp32", (), True),
        ("all", "int8", (0.0, 3.0), True),
        ("all", "int8", (-2.0, 3.0), True),
        ("all", "int8", (0.0, 3.0, 2.0), False),  # bytes of two scales
        ("shuffled", "fp32", (), False),
        ("half", "fp32", (), False),
    ],
)
def test_convolutions_of_single_cells_go_with_the_end(features, weights, ranges, taken):
    if weights == "int8" and not has("avx512vnni"):
        pytest.skip("this processor has no VNNI, and the weights are of the whole range")
    model = with_heads(features, weights, ranges)
    x = np.random.default_rng(12).normal(size=(10, 4, 6, 6)).astype(np.float32)
    ours, whole = (OpenVinoNetwork(model, "f32", {"x": [5, 4, 6, 6]}, whole=whole) for whole in (False, True))
    assert "epilogue" in names(ours)
    assert {"head 0", "head 1", "epilogue"} & names(ours) == ({"epilogue"} if taken else {"head 0", "head 1", "epilogue"})
    assert ours.precision_report() == whole.precision_report()
    made, wanted = (each.run({"x": x})["y"] for each in (ours, whole))
    assert np.abs(made - wanted).max() < 1e-5 * np.abs(wanted).max()
    for batch in (5, 1):
        seconds = OpenVinoNetwork(model, "f32", {"x": [batch, 4, 6, 6]}, profile=True).layer_seconds({"x": x[:batch]})
        assert {"head 0", "head 1"} < set(seconds) and min(seconds.values()) > 0


def test_what_moves_numbers_again_and_again_is_followed_once():
    """A stranger's graph in which every operation reads the one before twice."""
    model = with_heads("all", "fp32", ())
    heads = [op for op in model.get_ordered_ops() if op.get_friendly_name().startswith("head")]
    value = heads[0].input_value(0)
    numbers = [ops.constant(np.array([number])) for number in (0, 8, 1)]
    for _ in range(100):
        value = ops.slice(ops.concat([value, value], 1), numbers[0], numbers[1], numbers[2], numbers[2]).output(0)
    for head in heads:
        head.input(0).replace_source_output(value)
    model.validate_nodes_and_infer_types()
    end = epilogue(model)
    assert end is not None and end.taken.keys() == {"head 0", "head 1"}


def test_rows_that_are_turned_away_are_left_to_the_runtime():
    """Sums over what are columns in the end."""
    model = ends_in("normalise", "turn", rows=6)
    assert epilogue(model) is None


def test_graphs_that_give_nothing_to_gain_are_as_they_were():
    fixed = ends_in("normalise")
    fixed.reshape({"x": [3, 4, 6, 6]})
    two = ends_in("normalise")
    two = openvino.Model([*two.get_results(), ops.result(two.get_parameters()[0])], two.get_parameters(), "two")
    endless = ends_in(*["profile"] * 300, "normalise")
    for model in (fixed, two, endless):
        assert epilogue(model) is None


def test_an_onnx_file_of_ones_own_has_it_too(tmp_path):
    graph = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3] x) => (float[N, 2, 8] y) <float[3, 16] w, int64[3] s = {-1, 2, 8}, int64[1] a = {2}> {
            p = MatMul(x, w)
            q = Reshape(p, s)
            e = Abs(q)
            t = ReduceMax <axes = [2]> (e)
            m = Mul(e, e)
            y = Div(m, t)
        }"""
    )
    graph.graph.initializer.append(
        onnx.numpy_helper.from_array(np.random.default_rng(7).normal(size=(3, 16)).astype(np.float32), "w")
    )
    model = read_network_file(graph.SerializeToString())
    x = np.random.default_rng(8).normal(size=(6, 3)).astype(np.float32)
    made, wanted = (OpenVinoNetwork(model, "f32", {"x": [3, 3]}, whole=whole).run({"x": x})["y"] for whole in (False, True))
    assert np.allclose(made, wanted, rtol=1e-6)


ABANDONED = """
import sys, threading
import numpy as np
from minicarlo.engines import compile_surrogate
from minicarlo.surrogate import Surrogate

surrogate = Surrogate.load("clic-ecal")
compiled = compile_surrogate(surrogate, batch=64, streams=2)
latent, energy = np.zeros((64, surrogate.manifest.latent_size), np.float32), np.full((64, 1), 2e4, np.float32)

def showers():
    return compiled.map((i, latent, energy) for i in range(10000))

if sys.argv[1] == "thread":
    threading.Thread(target=lambda: list(showers()), daemon=True).start()
abandoned = showers()
next(abandoned)
if sys.argv[1] == "error":
    raise ValueError("of the user's")
"""


@pytest.mark.parametrize(("how", "code"), [("end", 0), ("error", 1), ("thread", 0)])
def test_a_program_may_end_while_showers_are_computed(how, code):
    """Threads of the runtime's call Python, which is not there any more when an interpreter has ended."""
    done = subprocess.run([sys.executable, "-c", ABANDONED, how], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == code, done.stderr


def test_graphs_are_split_in_several_threads_from_the_first_one_on():
    program = """
import threading
from minicarlo.engines import compile_surrogate
from minicarlo.surrogate import Surrogate
surrogate = Surrogate.load("clic-ecal")
threads = [threading.Thread(target=compile_surrogate, args=(surrogate,), kwargs={"batch": 8}) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
    subprocess.run([sys.executable, "-c", program], timeout=100, check=True)
