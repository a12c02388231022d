"""Networks of every framework: read without running code, tuned on the user's inputs, judged by general figures."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import onnx
import openvino
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from openvino import opset13

from minicarlo.cli import main
from minicarlo.engines.network import OpenVinoNetwork
from minicarlo.errors import InvalidModel, MissingExtra, TuningError
from minicarlo.models import read_network
from minicarlo.models.inputs import read_inputs
from minicarlo.precision import Plan, Quantizer, tune
from minicarlo.precision.criterion import Summary
from minicarlo.precision.losses import LOSSES, get_loss
from minicarlo.precision.networks import NetworkSubject
from minicarlo.precision.scheme import Scheme

SAVED_MODEL = Path(__file__).parent / "saved_model"
needs_keras = pytest.mark.skipif(find_spec("keras") is None, reason="Keras is missing: pip install 'minicarlo[keras]'")
FAST = {"objective": "macs", "calibration_events": 32, "evaluation_events": 100, "max_trials": 4}


def run(network, inputs):
    return OpenVinoNetwork(network.graph, "f32", {name: array.shape for name, array in inputs.items()}).run(inputs)


def gan_onnx(latent=8, width=16, seed=0):
    """A generator of 16x16 pictures that is no calorimeter's: dense, two transposed convolutions; two inputs, two outputs."""
    random = np.random.default_rng(seed)
    weights, nodes = [], []

    def constant(name, value):
        weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(operator, inputs, name, output=None, **attributes):
        nodes.append(helper.make_node(operator, inputs, [output or f"{name}_out"], name=name, **attributes))
        return output or f"{name}_out"

    def normal(name, shape, scale):
        return constant(name, random.normal(0, scale, shape).astype(np.float32))

    table = node("Gather", [normal("table", (10, latent), 1.0), "label"], "embed")
    x = node("Add", ["latent", table], "condition")
    x = node("Gemm", [x, normal("d.w", (latent, width * 16), 0.4), normal("d.b", (width * 16,), 0.1)], "dense")
    x = node("LeakyRelu", [node("Reshape", [x, constant("grid", np.array([-1, width, 4, 4]))], "to_grid")], "r0", alpha=0.2)
    for name, outputs in (("up1", width), ("up2", 1)):
        w = normal(f"{name}.w", (width, outputs, 4, 4), 0.15)
        b = normal(f"{name}.b", (outputs,), 0.1)
        x = node("ConvTranspose", [x, w, b], name, strides=[2, 2], pads=[1, 1, 1, 1])
        x = node("LeakyRelu", [x], f"{name}.act", alpha=0.2) if name == "up1" else node("Tanh", [x], "tanh", "picture")
    node("ReduceMean", ["picture", constant("axes", np.array([1, 2, 3]))], "mean", "brightness", keepdims=0)
    values = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("latent", TensorProto.FLOAT, ["n", latent]),
            ("label", TensorProto.INT64, ["n"]),
            ("picture", TensorProto.FLOAT, ["n", 1, 16, 16]),
            ("brightness", TensorProto.FLOAT, ["n"]),
        )
    ]
    graph = helper.make_graph(nodes, "gan", values[:2], values[2:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def gan_inputs(count=256):
    random = np.random.default_rng(1)
    return {"latent": random.normal(size=(count, 8)).astype(np.float32), "label": random.integers(10, size=count)}


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    path = tmp_path_factory.mktemp("gan") / "gan.onnx"
    path.write_bytes(gan_onnx())
    return path


@pytest.fixture(scope="module")
def tuned_gan(gan, tmp_path_factory):
    output = tmp_path_factory.mktemp("tuned") / "out"
    return tune(gan, output, inputs=gan_inputs(), batch=16, tolerance=0.1, **FAST), output


torch = pytest.importorskip("torch")


class Classifier(torch.nn.Module):
    """Two convolutions with batch normalisation, a dense layer: ten classes."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.BatchNorm2d(16)
        self.second, self.dense = torch.nn.Conv2d(16, 16, 3, stride=2, padding=1), torch.nn.Linear(16, 10)

    def forward(self, image):
        hidden = torch.relu(self.norm(self.first(image)))
        return self.dense(torch.relu(self.second(hidden)).mean((2, 3)))


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return Classifier().eval()


@pytest.fixture(scope="module")
def program(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("torch") / "net.pt2"
    free = {"image": {0: torch.export.Dim("batch")}}
    torch.export.save(torch.export.export(classifier, (torch.randn(2, 3, 16, 16),), dynamic_shapes=free), path)
    return path


def images(count=160):
    return {"image": np.random.default_rng(2).normal(size=(count, 3, 16, 16)).astype(np.float32)}


# Reading


def test_an_onnx_model_keeps_its_names_and_computes_what_onnx_runtime_does(gan):
    import onnxruntime

    network, inputs = read_network(gan, dict), gan_inputs(8)
    assert network.inputs == {"latent": (None, 8), "label": (None,)}
    expected = onnxruntime.InferenceSession(gan).run(["picture", "brightness"], inputs)
    found = run(network, inputs)
    for name, value in zip(("picture", "brightness"), expected, strict=True):
        np.testing.assert_allclose(found[name], value, atol=1e-5)


def test_an_exported_program_and_the_module_it_came_from_compute_the_same(program, classifier):
    inputs = images(4)
    expected = classifier(torch.from_numpy(inputs["image"])).detach().numpy()
    for source in (program, classifier):
        (found,) = run(read_network(source, lambda: inputs), inputs).values()
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_names_of_operations_do_not_depend_on_what_was_read_before(program):
    first, second = (read_network(program, dict) for _ in range(2))
    assert first.digest == second.digest
    assert [op.get_friendly_name() for op in first.graph.get_ops()] == [op.get_friendly_name() for op in second.graph.get_ops()]


def test_a_transposed_convolution_has_the_name_its_author_gave(gan):
    import openvino

    inputs = gan_inputs(16)
    quantizer = Quantizer(openvino.Core().read_model(gan), [inputs], "as a surrogate's graph is read")
    assert [layer.name for layer in quantizer.layers] == ["dense", "up1", "up2"]
    plan = Plan.uniform(quantizer.layers, "int8")
    shapes = {name: array.shape for name, array in inputs.items()}
    assert quantizer.apply(plan).compile(shapes).precision_report() == dict(plan)


def test_a_saved_model_is_read_without_tensorflow():
    """The SavedModel and its outputs are from tests/saved_model/make.py."""
    reference = np.load(SAVED_MODEL / "reference.npz")
    network = read_network(SAVED_MODEL / "network", dict)
    found = run(network, {name: reference[name] for name in ("image", "scale")})
    for name in ("classes", "total"):
        np.testing.assert_allclose(found[name], reference[name], atol=1e-5)


def gan3d_keras(path):
    """CERN's EnergyGAN generator at its real shape, from its layer list (keras/EcalEnergyGan.py of svalleco/3Dgan)."""
    os.environ.setdefault("KERAS_BACKEND", "openvino")
    import keras

    layers = keras.layers
    keras.utils.set_random_seed(1)
    latent, energy = keras.Input((200,), name="latent"), keras.Input((1,), name="energy")
    x = layers.Dense(64 * 7 * 7)(layers.Multiply()([latent, energy]))
    x = layers.Reshape((7, 7, 8, 8))(x)
    x = layers.BatchNormalization()(layers.LeakyReLU()(layers.Conv3D(64, (6, 6, 8), padding="same")(x)))
    x = layers.ZeroPadding3D((2, 2, 0))(layers.UpSampling3D((2, 2, 2))(x))
    x = layers.BatchNormalization()(layers.LeakyReLU()(layers.Conv3D(6, (6, 5, 8))(x)))
    x = layers.ZeroPadding3D((1, 0, 3))(layers.UpSampling3D((2, 2, 3))(x))
    x = layers.LeakyReLU()(layers.Conv3D(6, (3, 3, 8))(x))
    x = layers.ReLU(name="cells")(layers.Conv3D(1, (2, 2, 2), use_bias=False)(x))
    model = keras.Model([latent, energy], x)
    model.save(path)
    return model


def gan3d_inputs(first, last):
    random = np.random.default_rng([3, first])
    latent = random.normal(size=(last - first, 200)).astype(np.float32)
    return {"latent": latent, "energy": random.uniform(0.1, 5, (last - first, 1)).astype(np.float32)}


@needs_keras
def test_cerns_gan_built_in_keras_is_read_and_every_layer_of_it_runs_in_int8(tmp_path):
    gan3d_keras(tmp_path / "gan3d.keras")
    subject = NetworkSubject(
        tmp_path / "gan3d.keras", gan3d_inputs, get_loss("relative-l2", confidence=0.95, seed=1), batch=4, calibration_events=16
    )
    inputs = subject.events("search", 0, 4)
    quantizer = Quantizer.of(subject)
    assert [layer.macs for layer in quantizer.layers][1] == 7 * 7 * 8 * 64 * 8 * 6 * 6 * 8
    made = {}
    for form in ("fp32", "int8"):
        plan = Plan.uniform(quantizer.layers, form)
        plan = plan.with_schemes({name: Scheme(half_range=True) for name in plan})  # right without VNNI, too
        compiled = quantizer.apply(plan).compile(subject.shapes)
        assert compiled.precision_report() == dict(plan)
        made[form] = compiled.run(inputs)["cells"]
    assert made["fp32"].shape == (4, 25, 25, 25, 1)
    assert 0 < np.linalg.norm(made["int8"] - made["fp32"]) < 0.1 * np.linalg.norm(made["fp32"])


# Files with code in them


class Evil:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def repacked(source, target, change):
    """A copy of a zip archive with its entries changed: `change(name, content)` gives the new content, None for none."""
    with zipfile.ZipFile(source) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            if (content := change(name, content)) is not None:
                archive.writestr(name, content)
    return target


def test_a_pickle_in_an_exported_program_is_not_run(program, tmp_path):
    """PyTorch itself would run it: after its safe attempt it unpickles the sample inputs without limits."""
    marker = tmp_path / "ran"
    attack = tmp_path / "evil.pt2"
    repacked(program, attack, lambda n, c: pickle.dumps(Evil(marker)) if "sample_inputs" in n else c)
    inputs = images(2)
    found = run(read_network(attack, dict), inputs)
    assert not marker.exists()
    for name, value in run(read_network(program, dict), inputs).items():
        np.testing.assert_array_equal(found[name], value)
    with suppress(Exception):
        torch.export.load(attack)
    assert marker.exists(), "PyTorch has become safer: the reason for taking files apart may be gone"


def in_graph(before, after):
    return lambda name, content: content.replace(before, after) if name.endswith("models/model.json") else content


def in_weights(before, after):
    return lambda name, content: content.replace(before, after) if name.endswith("weights_config.json") else content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_graph(b"torch.ops.aten.relu.default", b"torch.hub.load"), "torch.hub.load"),
        (in_graph(b"torch.ops.aten.relu.default", b"_operator.methodcaller"), "methodcaller"),
        (in_graph(b"torch.ops.aten.relu.default", b"torch.ops.aten.__class__.mro"), "__class__"),
        (in_graph(b"torch.ops.aten.relu.default", b"#wrap:thing"), "#wrap"),
        (in_graph(b"Symbol('", b"__import__('os').system('id') or Symbol('"), "more than arithmetic"),
        (in_graph(b"builtins.tuple", b"os._Environ"), "os._Environ"),
        (in_weights(b'"use_pickle": false', b'"use_pickle": true'), "pickled"),
        (in_weights(b'"weight_0"', b'"../../weight_0"'), "pickled"),
        (lambda name, content: b"{" if name.endswith("model.json") else content, "not what torch.export.save writes"),
        (lambda name, content: None if "weight_1" in name else content, "not what torch.export.save writes"),
        (lambda name, content: b"" if "weight_1" in name else content, "is empty"),
    ],
)
def test_an_exported_program_that_could_do_more_than_compute_is_refused(program, tmp_path, change, message):
    attack = repacked(program, tmp_path / "evil.pt2", change)
    with pytest.raises(InvalidModel, match=message):
        read_network(attack, dict)


def test_a_compiled_package_is_refused(program, tmp_path):
    attack = tmp_path / "evil.pt2"
    shutil.copy(program, attack)
    with zipfile.ZipFile(attack, "a") as archive:
        archive.writestr("net/data/aotinductor/model/code.so", b"\x7fELF")
    with pytest.raises(InvalidModel, match="compiled code"):
        read_network(attack, dict)


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("keras") / "plain.keras"
    layer = {
        "module": "keras.layers",
        "class_name": "Dense",
        "config": {"units": 2, "activation": "relu"},
        "registered_name": None,
    }
    start = {
        "module": "keras.layers",
        "class_name": "InputLayer",
        "config": {"batch_shape": [None, 3], "dtype": "float32", "name": "x"},
        "registered_name": None,
    }
    config = {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"name": "s", "layers": [start, layer]},
        "registered_name": None,
    }
    weights = path.with_name("weights.h5")
    with h5py.File(weights, "w") as file:
        group = file.create_group("layers/dense/vars")
        group["0"], group["1"] = np.ones((3, 2), np.float32), np.zeros(2, np.float32)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(config))
        archive.write(weights, "model.weights.h5")
    return path


def in_config(**changes):
    def change(name, content):
        if name != "config.json":
            return content
        config = json.loads(content)
        config["config"]["layers"][1] |= changes
        return json.dumps(config).encode()

    return change


def evil_lambda(name, content):
    code = {"class_name": "__lambda__", "config": {"value": ["4wAAAA==", None, None]}}
    return in_config(class_name="Lambda", config={"function": code})(name, content)


@needs_keras
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (evil_lambda, "Lambda"),
        (in_config(class_name="TFSMLayer", config={"filepath": "/somewhere"}), "TFSMLayer"),
        (in_config(class_name="TorchModuleWrapper", config={"module": "gASV"}), "TorchModuleWrapper"),
        (in_config(class_name="StringLookup", config={"vocabulary": "/etc/passwd"}), "StringLookup"),
        (in_config(module="os", class_name="system"), "system"),
        (in_config(registered_name="package>Dense"), "Dense"),
        (
            in_config(config={"units": 2, "activation": {"module": "builtins", "class_name": "function", "config": "eval"}}),
            "function",
        ),
    ],
)
def test_a_keras_file_with_code_in_it_is_refused_before_keras_sees_it(keras_file, tmp_path, change, message):
    attack = repacked(keras_file, tmp_path / "evil.keras", change)
    with pytest.raises(InvalidModel, match=message):
        read_network(attack, dict)


@needs_keras
def test_a_keras_file_that_claims_a_gigantic_layer_is_refused_and_a_plain_one_is_read(keras_file, tmp_path):
    assert read_network(keras_file, dict).inputs == {"x": (None, 3)}
    attack = repacked(keras_file, tmp_path / "evil.keras", in_config(config={"units": 2**33}))
    with pytest.raises(InvalidModel, match="cannot load"):
        read_network(attack, dict)


@needs_keras
def test_weights_of_a_keras_file_never_come_from_another_file(keras_file, tmp_path):
    secret, linked = tmp_path / "secret.h5", tmp_path / "linked.h5"
    with h5py.File(secret, "w") as file:
        file["kernel"] = np.ones((3, 2), np.float32)
    with h5py.File(linked, "w") as file:
        file.create_group("layers/dense/vars")["0"] = h5py.ExternalLink(str(secret), "kernel")
    attack = repacked(keras_file, tmp_path / "evil.keras", lambda n, c: linked.read_bytes() if n == "model.weights.h5" else c)
    with pytest.raises(InvalidModel, match="link"):
        read_network(attack, dict)


def test_a_saved_model_that_calls_python_or_links_away_is_refused(tmp_path):
    attack = tmp_path / "evil"
    shutil.copytree(SAVED_MODEL / "network", attack)
    plain = (attack / "saved_model.pb").read_bytes()
    (attack / "saved_model.pb").write_bytes(plain.replace(b"\x12\x06MatMul", b"\x12\x06PyFunc"))
    with pytest.raises(InvalidModel, match="PyFunc"):
        read_network(attack, dict)
    (attack / "saved_model.pb").write_bytes(plain)
    (attack / "variables" / "more").symlink_to("/etc/passwd")
    with pytest.raises(InvalidModel, match="link"):
        read_network(attack, dict)


def test_onnx_weights_in_another_file_and_control_flow_are_refused(tmp_path):
    model = onnx.load_from_string(gan_onnx())
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModel, match="another file"):
        read_network(tmp_path / "a.onnx", dict)
    model = onnx.load_from_string(gan_onnx())
    model.graph.node[0].domain = "com.stranger"
    (tmp_path / "b.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModel, match=r"com\.stranger"):
        read_network(tmp_path / "b.onnx", dict)


@pytest.mark.parametrize("name", ["net.pt", "net.pth", "net.pkl", "net.h5"])
def test_files_of_weights_and_pickles_are_refused_with_what_would_be_right(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(InvalidModel, match=r"torch\.export\.save"):
        read_network(tmp_path / name, dict)
    assert not (tmp_path / "ran").exists()


def test_inputs_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.array([Evil(tmp_path / "ran")], object))
    with pytest.raises(InvalidModel, match="plain arrays"):
        read_inputs(tmp_path / "data.npz")
    assert not (tmp_path / "ran").exists()


# Figures of accuracy


def compared(name, reference, candidate, **inputs):
    pair = [Summary(inputs or {"x": np.zeros(len(reference))}, {"y": np.asarray(each)}) for each in (reference, candidate)]
    return get_loss(name, confidence=0.95, seed=0).compare_summaries(*pair)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(list(LOSSES)), st.integers(0, 2**32 - 1), st.sampled_from([(3,), (2, 5), (2, 4, 4)]))
def test_a_figure_is_zero_without_a_change_and_its_interval_holds_it(name, seed, shape):
    random = np.random.default_rng(seed)
    reference = random.normal(size=(80, *shape))
    same = compared(name, reference, reference)
    assert (same.value, same.low) == (0, 0)
    found = compared(name, reference, reference + random.normal(0, 0.1, reference.shape))
    assert 0 <= found.low <= found.value <= found.high


@pytest.mark.parametrize(
    ("name", "change", "value"),
    [
        ("relative-l2", lambda y: 1.02 * y, 0.02),
        ("max-error", lambda y: y + 0.1 * np.abs(y).max() * (np.arange(y.shape[1]) == 0), 0.1),
        ("cosine", lambda y: -y, 2.0),
        ("cosine", lambda y: 3 * y, 0.0),
        ("wasserstein", lambda y: y + 0.1 * y.std(0), 0.1),
        ("wasserstein", lambda y: y[::-1], 0.0),
        ("accuracy", lambda y: np.where(np.arange(len(y))[:, None] < 20, -y, y), 0.1),
    ],
)
def test_a_known_change_has_the_value_it_should(name, change, value):
    reference = np.random.default_rng(3).normal(size=(200, 3))
    assert compared(name, reference, change(reference)).value == pytest.approx(value, rel=0.03, abs=1e-6)


def test_wasserstein_agrees_with_scipy_on_a_large_output():
    from scipy.stats import wasserstein_distance

    random = np.random.default_rng(4)
    reference = random.gamma(2, 1, (100, 10, 10))
    changed = reference**1.1
    expected = wasserstein_distance(reference.ravel(), changed.ravel()) / reference.std()
    assert compared("wasserstein", reference, changed).value == pytest.approx(expected, rel=0.02)


def test_no_changed_decision_among_a_hundred_is_no_certainty():
    """The upper bound is that of Clopper and Pearson: 1 - (alpha/2)^(1/n)."""
    reference = np.random.default_rng(5).normal(size=(100, 4))
    assert compared("accuracy", reference, reference).high == pytest.approx(1 - 0.025**0.01)
    with pytest.raises(TuningError, match="classes along axis 1"):
        compared("accuracy", reference[:, :1], reference[:, :1])


@pytest.mark.parametrize("name", list(LOSSES))
def test_outputs_that_are_not_finite_never_pass(name):
    reference = np.random.default_rng(6).normal(size=(100, 4))
    broken = reference.copy()
    broken[7] = np.nan
    assert compared(name, reference, broken).high > 0.02


def test_a_function_of_ones_own_gives_losses_of_events_or_a_number(tmp_path, monkeypatch):
    reference = np.random.default_rng(7).normal(size=(300, 2))

    def per_event(true, made, inputs):
        return np.abs(made["y"] - true["y"]).mean(1) * inputs["weight"]

    def number(true, made, inputs):
        return float(np.abs(made["y"].mean(0) - true["y"].mean(0)).max())

    weight = np.full(300, 2.0)
    events = compared(per_event, reference, reference + 0.5, weight=weight)
    assert (events.low, events.value, events.high) == pytest.approx((1.0, 1.0, 1.0))
    single = compared(number, reference, 1.1 * reference, weight=weight)
    assert single.low < single.value < single.high
    with pytest.raises(TuningError, match="one loss for each event"):
        compared(lambda true, made, inputs: np.zeros(3), reference, reference)
    (tmp_path / "mine.py").write_text("def loss(true, made, inputs):\n    return 0.25\n")
    monkeypatch.chdir(tmp_path)
    assert compared("mine:loss", reference, reference).value == 0.25
    for wrong in ("mine:nothing", "nowhere:loss", "beauty"):
        with pytest.raises(TuningError):
            get_loss(wrong, confidence=0.95, seed=0)


def test_arrays_that_the_network_does_not_take_are_for_the_users_function(tmp_path):
    """Accuracy against labels: how many more events a candidate gets wrong than fp32."""
    random = np.random.default_rng(8)
    centres = random.normal(size=(4, 16))
    labels = random.integers(4, size=4000)
    x = (centres[labels] + random.normal(0, 0.8, (4000, 16))).astype(np.float32)
    weights = numpy_helper.from_array((centres.T / 0.64).astype(np.float32), "w")
    bias = numpy_helper.from_array((-(centres**2).sum(1) / 1.28).astype(np.float32), "b")
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["score"], name="score")]
    ends = (
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("score", 1, ["n", 4])],
    )
    graph = helper.make_graph(nodes, "classes", *ends, [weights, bias])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "net.onnx")

    def missed_more(true, made, inputs):
        wrong = [(each["score"].argmax(1) != inputs["label"]).astype(float) for each in (made, true)]
        return wrong[0] - wrong[1]

    given = {"x": x, "label": labels}
    settings = {"criterion": missed_more, "tolerance": 0.01, "calibration_events": 64, "objective": "macs", "portable": True}
    result = tune(tmp_path / "net.onnx", tmp_path / "out", inputs=given, **settings)
    assert result.accepted and result.plan == {"score": "int8"} and abs(result.criterion["value"]) < 0.01
    with pytest.raises(TuningError, match="'label' does not have the 4000 events"):
        tune(tmp_path / "net.onnx", tmp_path / "other", inputs=given | {"label": labels[:5]}, **settings)
    with pytest.raises(InvalidModel, match="takes the inputs"):
        tune(tmp_path / "net.onnx", tmp_path / "other", inputs=given, **(settings | {"criterion": "relative-l2"}))


# Tuning


def test_a_gan_of_several_inputs_and_outputs_is_tuned_and_the_result_loads_in_three_lines(gan, tuned_gan):
    import openvino

    result, output = tuned_gan
    assert result.accepted and result.int8_share > 0.5 and result.plan == result.ran
    assert set(result.criterion["families"]) == {"picture", "brightness"} and result.criterion["floor"] is None
    written = json.loads((output / "plan.json").read_text())
    assert written["plan"] == result.plan and written["source"]["kind"] == "an ONNX model"
    precision = written["inference_precision"]
    assert f'"{precision}"' in (output / "README.md").read_text()
    model = openvino.Core().compile_model(output / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": precision})
    inputs = gan_inputs(16)
    found = model(inputs)
    expected = run(read_network(gan, dict), inputs)
    for name, value in expected.items():
        assert 0 < np.linalg.norm(found[name] - value) < 3 * result.criterion["high"] * np.linalg.norm(value)


def test_fp32_timed_against_itself_is_never_a_success(gan, tmp_path):
    settings = FAST | {"objective": "time", "timing_seconds": 0.02}
    result = tune(gan, tmp_path / "out", inputs=gan_inputs(), batch=16, tolerance=1e-7, **settings)
    assert not result.accepted and result.speedup == 1 and set(result.plan.values()) == {"fp32"}


def test_an_exported_program_is_tuned_by_its_decisions_from_the_command_line(program, tmp_path):
    np.savez(tmp_path / "data.npz", **images())
    arguments = ["tune", str(program), "-o", str(tmp_path / "out"), "--inputs", str(tmp_path / "data.npz"), "--batch", "16"]
    more = ["--criterion", "accuracy", "--tolerance", "0.5", "--objective", "macs", "--evaluation-events", "100", "--json"]
    ran = CliRunner().invoke(main, [*arguments, *more])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert found["accepted"] and found["criterion"]["name"] == "accuracy" and len(found["plan"]) == 3


def test_a_network_of_a_fixed_batch_is_tuned_in_that_batch(tmp_path):
    model = onnx.load_from_string(gan_onnx())
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    (tmp_path / "fixed.onnx").write_bytes(model.SerializeToString())
    loss = get_loss("relative-l2", confidence=0.95, seed=1)
    assert NetworkSubject(tmp_path / "fixed.onnx", gan_inputs(), loss).shapes == {"latent": (4, 8), "label": (4,)}
    with pytest.raises(InvalidModel, match="fixed batch"):
        NetworkSubject(tmp_path / "fixed.onnx", gan_inputs(), loss, batch=8)


def test_products_of_two_computed_matrices_are_left_alone_and_all_else_is_tuned(tmp_path):
    """One head of attention: queries, keys and values have weights, their products have none."""
    torch.manual_seed(0)

    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value = (torch.nn.Linear(16, 16) for _ in range(3))

        def forward(self, tokens):
            scores = self.query(tokens) @ self.key(tokens).transpose(1, 2) / 4
            return torch.softmax(scores, -1) @ self.value(tokens)

    tokens = np.random.default_rng(8).normal(size=(160, 12, 16)).astype(np.float32)
    result = tune(Attention(), tmp_path / "out", inputs={"tokens": tokens}, batch=16, tolerance=0.001, **FAST)
    assert len(result.plan) == 3 and result.ran.keys() >= result.plan.keys()
    lines = [json.loads(line) for line in (tmp_path / "out" / "history.jsonl").read_text().splitlines()]
    probes = [line["value"] for line in lines if line["kind"] == "sensitivity" and line["format"] == "int8"]
    assert len(probes) == 3 and all(0 < value < 0.1 for value in probes)


def test_no_event_serves_two_uses(gan):
    inputs = gan_inputs() | {"label": np.zeros(256, np.int64)}
    inputs["latent"][:, 0] = np.arange(256)
    subject = NetworkSubject(gan, inputs, get_loss("cosine", confidence=0.95, seed=1), batch=16, calibration_events=32)
    uses = [np.concatenate([batch["latent"] for batch in subject.calibration()])]
    uses += [subject.events(use, 0, subject.most_events)["latent"] for use in ("search", "held_out")]
    numbers = [set(use[:, 0]) for use in uses]
    assert [len(each) for each in numbers] == [32, 112, 112] and len(set.union(*numbers)) == 256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda inputs: None, "inputs of yours"),
        (lambda inputs: {"latent": inputs["latent"]}, "takes the inputs"),
        (lambda inputs: inputs | {"label": inputs["label"][:9]}, "different numbers of events"),
        (lambda inputs: inputs | {"latent": inputs["latent"][:, :5]}, "has the shape"),
        (lambda inputs: inputs | {"label": inputs["label"] + 0.5}, "int64"),
        (lambda inputs: inputs | {"latent": np.full((256, 8), np.nan)}, "not finite"),
        (lambda inputs: {name: array[:20] for name, array in inputs.items()}, "at least 64"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_anything_is_written(gan, tmp_path, change, message):
    with pytest.raises((InvalidModel, TuningError), match=message):
        tune(gan, tmp_path / "out", inputs=change(gan_inputs()), **FAST)
    assert not list(tmp_path.iterdir())


def test_an_output_that_does_not_keep_events_apart_is_refused(tmp_path):
    model = onnx.load_from_string(gan_onnx())
    next(node for node in model.graph.node if node.name == "mean").input.pop()  # the mean of everything
    del model.graph.output[1].type.tensor_type.shape.dim[:]
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModel, match="axis must be events"):
        NetworkSubject(tmp_path / "net.onnx", gan_inputs(), get_loss("cosine", confidence=0.95, seed=1))


def test_what_is_missing_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jax2onnx", None)
    with pytest.raises(MissingExtra, match=r"minicarlo\[jax\]"):
        read_network(lambda x: x, lambda: {"x": np.zeros((2, 3), np.float32)})


def test_a_network_may_give_out_what_it_is_given() -> None:
    """To OpenVINO such an output is the tensor of the input."""
    source = opset13.parameter([-1, 8], np.float32, name="x")
    matrix = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    results = [opset13.result(source), opset13.result(opset13.matmul(source, opset13.constant(matrix), False, False))]
    values = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    for batch in (5, -1, 8):
        network = OpenVinoNetwork(openvino.Model(results, [source]), "f32", {"x": [batch, 8]})
        for _ in range(2):
            same, product = network.run({"x": values}).values()
            np.testing.assert_array_equal(same, values)
            np.testing.assert_allclose(product, values @ matrix, rtol=1e-5, atol=1e-6)
