"""A surrogate from a stranger runs no code and reaches no other file (event sets: test_events.py, reports: test_report.py).

Every attack below carries right checksums: whoever alters a file can write the manifest too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper

from minicarlo.engines import compile_surrogate, read_model
from minicarlo.errors import InvalidSurrogate
from minicarlo.surrogate import Surrogate
from small_surrogate import make_small_surrogate

PLAN = {"plan": {"shape.conv1": "fp32"}, "ran": {"shape.conv1": "fp32"}, "inference_precision": "f32"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Surrogate:
    """A surrogate with a tuned model (here: FP32 as an OpenVINO IR)."""
    folder = tmp_path_factory.mktemp("surrogates")
    surrogate = make_small_surrogate(folder / "small", width=4)
    openvino.save_model(read_model(surrogate)[0], folder / "model.xml", compress_to_fp16=False)
    return surrogate.with_tuned(folder / "tuned", folder / "model.xml", folder / "model.bin", PLAN, b'{"trial": 0}\n')


@pytest.fixture
def copy(original: Surrogate, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original.path, tmp_path / "copy"))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.bin"
    path.write_bytes(bytes(range(256)) * 16)
    return path


def replace(directory: Path, name: str, data: bytes) -> None:
    (directory / name).write_bytes(data)
    manifest = json.loads((directory / "surrogate.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (directory / "surrogate.json").write_text(json.dumps(manifest))


def refused(directory: Path, message: str) -> None:
    with pytest.raises(InvalidSurrogate, match=message):
        Surrogate.load(directory)


def test_the_unaltered_surrogate_loads_and_runs(original):
    surrogate = Surrogate.load(original.path)
    showers = compile_surrogate(surrogate, "tuned", batch=2).run(np.zeros((2, 16), np.float32), np.full(2, 1e4, np.float32))
    assert showers.shape == (2, 25, 25, 25)


# ---- files, links, sizes ----


@pytest.mark.parametrize("name", ["surrogate.json", "fp32.onnx", "tuned/model.bin"])
def test_symbolic_links_are_not_followed(copy, tmp_path, name):
    moved = tmp_path / "elsewhere"
    shutil.move(copy / name, moved)
    (copy / name).symlink_to(moved)
    refused(copy, "is a link, which is never followed")


def test_a_linked_folder_inside_is_not_followed(copy, tmp_path):
    shutil.move(copy / "tuned", tmp_path / "elsewhere")
    (copy / "tuned").symlink_to(tmp_path / "elsewhere")
    refused(copy, "is a link, which is never followed")


@pytest.mark.parametrize(
    "name", ["../secret.bin", "/etc/passwd", "tuned/../../secret.bin", "weights.pkl", "fp32.onnx.data", "tuned\\model.xml"]
)
def test_the_manifest_can_name_no_other_file(copy, secret, name):
    manifest = json.loads((copy / "surrogate.json").read_text())
    data = secret.read_bytes()
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (copy / "surrogate.json").write_text(json.dumps(manifest))
    refused(copy, "which is no file of a surrogate")


def test_a_pipe_in_place_of_a_file_does_not_hang(copy):
    (copy / "fp32.onnx").unlink()
    os.mkfifo(copy / "fp32.onnx")
    refused(copy, "not a regular file")


def test_a_file_of_absurd_size_is_not_read(copy):
    with open(copy / "surrogate.json", "r+b") as stream:
        stream.truncate(2**33)  # sparse: takes no room
    refused(copy, "at most")


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "a", "name": "b"}',
        '{"latent_size": NaN}',
        '{"latent_size": 1e999}',
        "[" * 100_000,
        '{"a":' * 100_000,
        "null",
        "\xff",
    ],
    ids=["duplicate keys", "NaN", "infinity", "deep list", "deep object", "null", "not UTF-8"],
)
def test_hostile_json_is_refused(copy, text):
    (copy / "surrogate.json").write_bytes(text.encode("latin-1"))
    refused(copy, r"surrogate\.json")


def test_other_files_in_the_folder_are_never_opened(copy):
    (copy / "weights.pkl").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    (copy / "extension.so").write_bytes(b"\x7fELF")
    assert Surrogate.load(copy).precisions == ("fp32", "bf16", "tuned")


# ---- ONNX ----


def altered(directory: Path, change) -> None:
    model = onnx.load(directory / "fp32.onnx")
    change(model)
    replace(directory, "fp32.onnx", model.SerializeToString())


def external(location: str):
    def change(model: onnx.ModelProto) -> None:
        weight = model.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "4096")):
            entry = weight.external_data.add()
            entry.key, entry.value = key, value

    return change


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "weights.bin", "sub/../../secret.bin"])
def test_weights_in_another_file_are_refused(copy, secret, location):
    altered(copy, external(location))
    refused(copy, "lies in another file")


def test_external_data_is_refused_even_in_an_attribute_or_without_its_flag(copy):
    def in_attribute(model: onnx.ModelProto) -> None:
        tensor = helper.make_tensor("t", TensorProto.FLOAT, [1], [0.0])
        tensor.external_data.add(key="location", value="../secret.bin")
        model.graph.node.append(helper.make_node("Constant", [], ["unused"], name="hidden", value=tensor))

    altered(copy, in_attribute)
    refused(copy, "lies in another file")


@pytest.mark.parametrize("domain", ["com.evil", "com.microsoft", "ai.onnx.ml", "org.openvinotoolkit"])
def test_operators_of_other_domains_are_refused(copy, domain):
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[0].domain = domain
        model.opset_import.append(helper.make_opsetid(domain, 1))

    altered(copy, change)
    refused(copy, "domain")


@pytest.mark.parametrize("operator", ["Loop", "If", "Scan", "SequenceMap", "RandomNormal", "NonZero", "ImageDecoder", "PythonOp"])
def test_operators_that_are_not_on_the_list_are_refused(copy, operator):
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = operator

    altered(copy, change)
    refused(copy, "not among the accepted operators")


def test_graphs_in_attributes_and_functions_are_refused(copy):
    def graph_in_attribute(model: onnx.ModelProto) -> None:
        model.graph.node[0].attribute.append(helper.make_attribute("body", helper.make_graph([], "g", [], [])))

    def function(model: onnx.ModelProto) -> None:
        node = helper.make_node("Relu", ["x"], ["y"])
        model.functions.append(helper.make_function("", "Log", ["x"], ["y"], [node], [helper.make_opsetid("", 17)]))

    before = (copy / "fp32.onnx").read_bytes()
    altered(copy, graph_in_attribute)
    refused(copy, "holds a graph")
    replace(copy, "fp32.onnx", before)
    altered(copy, function)
    refused(copy, "functions")


@pytest.mark.parametrize("dims", [[2**31, 2**31], [-1, 4], [10**9], [2**62, 2**62, 2**62]])
def test_a_weight_that_claims_more_than_the_file_holds_is_refused(copy, dims):
    def change(model: onnx.ModelProto) -> None:
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)

    altered(copy, change)
    refused(copy, "weight")


def test_a_graph_that_would_fill_the_memory_is_refused_before_it_computes(copy):
    """ConstantOfShape needs 16 bytes of file for any size: the runtime is asked for shapes, and never for values."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        graph.initializer.append(helper.make_tensor("huge", TensorProto.INT64, [2], [2**20, 2**20]))
        graph.node.insert(0, helper.make_node("ConstantOfShape", ["huge"], ["zeros"], name="zeros"))
        graph.node.insert(1, helper.make_node("ReduceSum", ["zeros"], ["zero"], name="zero", keepdims=0))
        graph.node[2].input[0] = "energy_plus_zero"
        graph.node.insert(2, helper.make_node("Add", ["incident_energy", "zero"], ["energy_plus_zero"], name="add"))

    altered(copy, change)
    surrogate = Surrogate.load(copy)
    with pytest.raises(InvalidSurrogate, match="accepted|cannot"):
        compile_surrogate(surrogate, "fp32", batch=1)


@pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"PK\x03\x04", b"\x80\x04\x95cos\nsystem\n", os.urandom(5000)])
def test_what_is_no_onnx_is_refused(copy, data):
    replace(copy, "fp32.onnx", data)
    refused(copy, r"fp32\.onnx cannot be used")


def test_another_interface_is_refused(copy):
    def rename(model: onnx.ModelProto) -> None:
        model.graph.output[0].name = "other"

    altered(copy, rename)
    refused(copy, "outputs")


def test_the_bytes_that_were_checked_are_the_bytes_that_run(copy):
    """Exchanging the file after the check changes nothing: the runtime never opens it again."""
    surrogate = Surrogate.load(copy)
    (copy / "fp32.onnx").write_bytes(b"exchanged")
    (copy / "tuned" / "model.bin").write_bytes(b"exchanged")
    compile_surrogate(surrogate, "fp32", batch=1)
    compile_surrogate(surrogate, "tuned", batch=1)


# ---- OpenVINO IR ----

BOMB = b'<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><net>&b;</net>'
READER = b'<?xml version="1.0"?><!DOCTYPE net [<!ENTITY f SYSTEM "file:///etc/passwd">]><net version="11">&f;</net>'


@pytest.mark.parametrize("xml", [BOMB, READER, b"", b"<net", b"<html></html>", "<?xml version='1.0'?><net/>".encode("utf-16")])
def test_hostile_xml_is_refused(copy, xml):
    replace(copy, "tuned/model.xml", xml)
    refused(copy, r"model\.xml cannot be used")


def edited(directory: Path, old: str, new: str) -> None:
    text = (directory / "tuned/model.xml").read_text()
    assert old in text
    replace(directory, "tuned/model.xml", text.replace(old, new, 1).encode())


@pytest.mark.parametrize("kind", ["TensorIterator", "Loop", "If", "ReadValue", "PagedAttentionExtension", "Custom"])
def test_layers_that_are_not_on_the_list_are_refused(copy, kind):
    edited(copy, 'type="Log"', f'type="{kind}"')
    refused(copy, "not among the accepted operators")


def test_layers_of_an_extension_are_refused(copy):
    edited(copy, 'type="Log" version="opset1"', 'type="Log" version="extension"')
    refused(copy, "operator set")


def test_constants_outside_the_weights_are_refused(copy):
    edited(copy, 'offset="0"', 'offset="99999999"')
    refused(copy, "outside the weights")


def test_truncated_weights_are_refused(copy):
    replace(copy, "tuned/model.bin", (copy / "tuned/model.bin").read_bytes()[:100])
    refused(copy, "outside the weights")


def test_a_body_graph_is_refused(copy):
    edited(copy, "</layers>", "</layers><body><layers/></body>")
    refused(copy, "graphs inside graphs")


@pytest.mark.parametrize(
    "change", [{"plan": None}, {"inference_precision": "f64"}, {"ran": {"a": 1}}, {"int8_share": 2}], ids=lambda c: next(iter(c))
)
def test_a_wrong_plan_is_refused(copy, change):
    replace(copy, "tuned/plan.json", json.dumps(PLAN | change).encode())
    refused(copy, r"plan\.json, field " + next(iter(change)))
