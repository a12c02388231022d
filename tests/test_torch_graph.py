"""Every operator that a surrogate may hold computes in PyTorch what ONNX's own test cases say, or is refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from onnx import ModelProto, numpy_helper  # noqa: E402
from onnx.backend.test.case.node import collect_testcases  # noqa: E402

from minicarlo.engines.torch_graph import MAC_OPERATORS, TorchGraph  # noqa: E402
from minicarlo.errors import InvalidSurrogate  # noqa: E402
from minicarlo.graph.safety import ONNX_OPERATORS  # noqa: E402

REFUSED = {
    "AveragePool",
    "MaxPool",
    "Resize",
    "QuantizeLinear",
    "DequantizeLinear",
    "Pad",
    "CumSum",
    "Cast",
    "BatchNormalization",
}
"""Operators some of whose attributes PyTorch has nothing for: rounding up, uncommon interpolations, numbers of four
or eight bits or in blocks."""

NUMBERS = {"float32", "float64", "int64", "int32", "int8", "uint8", "bool"}
UNCHANGED = {"And", "Not", "Or"}  # older than operator set 13, and the same since
NO_CASES = {"Constant", "Upsample"}  # folded before; superseded by Resize


def official_cases() -> Iterator[tuple[str, ModelProto, np.ndarray, np.ndarray]]:
    """Name, a model of one operator with its other inputs as constants, first input, first output."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = {case.name: case for case in collect_testcases()}
    for name, case in cases.items():
        if len(case.model.graph.node) != 1 or case.model.graph.node[0].op_type not in ONNX_OPERATORS:
            continue
        operator, version = case.model.graph.node[0].op_type, case.model.opset_import[0].version
        if (version < 13 and operator not in UNCHANGED) or case.model.graph.node[0].domain or name.startswith("test_training_"):
            continue  # not accepted in surrogates; dropout that drops
        given, made = case.data_sets[0]
        if any(isinstance(each, list) or each is None for each in (*given, made[0])) or not given:
            continue
        arrays, expected = [as_array(each) for each in given], as_array(made[0])
        if any(array.dtype.name not in NUMBERS for array in (*arrays, expected)):
            continue
        model = ModelProto()
        model.CopyFrom(case.model)
        model.opset_import[0].version = max(13, version)
        inputs = list(model.graph.input)
        del model.graph.input[:], model.graph.output[1:]
        model.graph.input.append(inputs[0])
        for value, array in zip(inputs[1:], arrays[1:], strict=True):
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
        if arrays[0].ndim:  # of a single number, the folding of graphs would make the first of a batch
            yield name, model, arrays[0], expected


def as_array(value: object) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def test_onnx_own_test_cases_of_every_operator():
    """1,884 cases, of which those count that have one node, an operator of ours and numbers that NumPy has."""
    passed, refused, wrong = set(), set(), []
    for name, model, given, expected in official_cases():
        operator = model.graph.node[0].op_type
        try:
            graph = TorchGraph(model.SerializeToString(), name)
        except InvalidSurrogate:
            refused.add(operator)
            continue
        if 0 in given.shape:
            continue
        try:
            found = graph(**{model.graph.input[0].name: torch.from_numpy(given.copy())}).numpy()
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            wrong.append(f"{name}: {error}")
            continue
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True):
            wrong.append(name)
        passed.add(operator)
    assert wrong == []
    assert passed >= ONNX_OPERATORS - NO_CASES, sorted(ONNX_OPERATORS - NO_CASES - passed)
    assert refused <= REFUSED, sorted(refused)


def test_an_operator_that_is_not_understood_is_refused_with_its_name():
    node = onnx.helper.make_node("Pad", ["x", "pads"], ["y"], name="around", mode="reflect")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3]) for name in ("x", "y")]
    pads = numpy_helper.from_array(np.array([0, 1, 0, 1]), "pads")
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "one", values[:1], values[1:], [pads]))
    with pytest.raises(InvalidSurrogate, match="around.*Pad.*openvino"):
        TorchGraph(model.SerializeToString(), "x")


def test_layers_with_products_are_those_that_reports_name():
    assert MAC_OPERATORS <= ONNX_OPERATORS
