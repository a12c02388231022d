"""What a network graph of a stranger may hold: a short list of plain operators, its own weights, nothing else.

Both checks look at the description only; no runtime has seen the file yet. They refuse what has gone wrong elsewhere: external
data and the paths in it (CVE-2022-25882, CVE-2024-27318, CVE-2025-51480, CVE-2026-27489), claimed sizes that exhaust memory
(CVE-2026-34445), custom operators, model-local functions, control flow, XML entities.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from xml.etree.ElementTree import Element, ParseError

import onnx
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from minicarlo.errors import InvalidModel, InvalidSurrogate

MOST_NODES = 20_000
LARGEST_TENSOR = 2**28
"""Elements; also the bound for what the runtime may have to hold per event (see `minicarlo.engines`)."""

ONNX_OPERATORS = frozenset(
    """Abs Add And AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos CumSum
    DepthToSpace DequantizeLinear Div Dropout Elu Equal Erf Exp Expand Flatten Floor Gather Gelu Gemm GlobalAveragePool Greater
    GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu Less
    LessOrEqual Log MatMul Max MaxPool Mean Min Mod Mul Neg Not Or PRelu Pad Pow QuantizeLinear Reciprocal ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Round Selu Shape Sigmoid Sign Sin Slice Softmax Softplus
    Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile Transpose Unsqueeze Upsample Where""".split()
)

IR_OPERATORS = frozenset(
    """Abs Add AvgPool BatchNormInference Broadcast Ceiling Clamp Concat Const Convert ConvertLike Convolution
    ConvolutionBackpropData Cos CumSum DepthToSpace Divide Elu Equal Erf Exp FakeConvert FakeQuantize Floor FloorMod Gather Gelu
    Greater GreaterEqual GroupConvolution GroupConvolutionBackpropData GroupNormalization HSigmoid HSwish HardSigmoid Interpolate
    Less LessEqual Log LogicalAnd LogicalNot LogicalOr LogicalXor MVN MatMul MaxPool Maximum Minimum Mish Mod Multiply Negative
    NormalizeL2 NotEqual PRelu PReLU Pad Parameter Power ReLU ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum Reshape Result Round Select Selu ShapeOf Sigmoid Sign Sin Slice SoftMax SoftPlus SoftSign Softmax SpaceToDepth Split
    Sqrt SquaredDifference Squeeze StridedSlice Subtract Swish Tan Tanh Tile Transpose Unsqueeze VariadicSplit""".split()
)

_ADVICE = " Get the surrogate again from its author, or export it again with minicarlo."

_ELEMENT_BYTES = {
    TensorProto.FLOAT: 4,
    TensorProto.FLOAT16: 2,
    TensorProto.BFLOAT16: 2,
    TensorProto.DOUBLE: 8,
    TensorProto.INT64: 8,
    TensorProto.INT32: 4,
    TensorProto.INT8: 1,
    TensorProto.UINT8: 1,
    TensorProto.BOOL: 1,
}


def check_onnx(data: bytes, where: str, *, latent_size: int, sample_shape: tuple[int, ...]) -> None:
    """Raise InvalidSurrogate, its message beginning with `where`, unless `data` is an ONNX model that may be loaded.

    It must take `latent` (batch, latent_size) and `incident_energy` (batch, 1) and give `showers` (batch, *sample_shape), all
    float32, with its weights inside and only operators of ONNX_OPERATORS.
    """
    graph = _checked(data, where, ONNX_OPERATORS).graph
    weights = [tensor.name for tensor in graph.initializer]
    _check_interface(graph.input, {"latent": (latent_size,), "incident_energy": (1,)}, "input", where, weights)
    _check_interface(graph.output, {"showers": tuple(sample_shape)}, "output", where)


def check_network(data: bytes, where: str) -> None:
    """Raise InvalidModel, its message beginning with `where`, unless `data` is an ONNX model that may be loaded.

    Any inputs and outputs, and all of ONNX's own operators but control flow; its weights must be inside.
    """
    try:
        _checked(data, where, {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""})
    except InvalidSurrogate as refusal:
        reason = str(refusal).removesuffix(_ADVICE)
        raise InvalidModel(f"{reason} Export it again with ONNX's own operators and the weights in the file.") from refusal


def _checked(data: bytes, where: str, operators: Collection[str]) -> ModelProto:
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise _refusal(where, "it is not an ONNX model") from error
    graph = model.graph
    if not graph.node or not model.opset_import:
        raise _refusal(where, "it is not an ONNX model, or an empty one")
    for opset in model.opset_import:
        if opset.domain not in ("", "ai.onnx"):
            if operators is ONNX_OPERATORS:
                raise _refusal(where, f"it uses operators of the domain {opset.domain!r:.60}; only ONNX's own are accepted")
        elif not 13 <= opset.version <= onnx.defs.onnx_opset_version():
            raise _refusal(where, f"its operator set {opset.version} is not between 13 and {onnx.defs.onnx_opset_version()}")
    if model.functions or model.training_info or graph.sparse_initializer or graph.quantization_annotation:
        raise _refusal(where, "it holds functions, training information, sparse weights or annotations, which are not accepted")
    if len(graph.node) > MOST_NODES:
        raise _refusal(where, f"it has {len(graph.node)} nodes; at most {MOST_NODES} are accepted")
    for node in graph.node:
        _check_node(node, where, operators)
    for tensor in _tensors(graph.initializer, graph.node):
        _check_tensor(tensor, len(data), where)
    return model


def _check_node(node: NodeProto, where: str, operators: Collection[str]) -> None:
    if node.domain not in ("", "ai.onnx"):
        raise _refusal(where, f"node {node.name!r:.60} is of the domain {node.domain!r:.60}; only ONNX's own are accepted")
    if node.op_type not in operators:
        raise _refusal(where, f"node {node.name!r:.60} is a {node.op_type!r:.60}, which is not among the accepted operators")
    for attribute in node.attribute:
        plain = (
            AttributeProto.FLOAT,
            AttributeProto.INT,
            AttributeProto.STRING,
            AttributeProto.TENSOR,
            AttributeProto.FLOATS,
            AttributeProto.INTS,
        )
        holds_more = attribute.HasField("g") or attribute.HasField("sparse_tensor") or attribute.graphs or attribute.ref_attr_name
        if attribute.type not in plain or holds_more:
            what = f"attribute {attribute.name!r:.60} of node {node.name!r:.60}"
            raise _refusal(where, f"{what} holds a graph or another thing that is not accepted")


def _tensors(initializers: Iterable[TensorProto], nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    yield from initializers
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _check_tensor(tensor: TensorProto, size: int, where: str) -> None:
    if tensor.external_data or tensor.data_location != TensorProto.DEFAULT:
        raise _refusal(where, f"weight {tensor.name!r:.60} lies in another file (external data); it must be inside the ONNX file")
    width = _ELEMENT_BYTES.get(tensor.data_type)
    if width is None:
        raise _refusal(where, f"weight {tensor.name!r:.60} has element type {tensor.data_type}, which is not accepted")
    if tensor.HasField("segment") or any(length < 0 for length in tensor.dims):
        raise _refusal(where, f"weight {tensor.name!r:.60} has an impossible shape")
    count = math.prod(tensor.dims)
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    held = len(tensor.raw_data) if tensor.HasField("raw_data") else width * sum(map(len, fields))
    if count * width > size or held != count * width:
        raise _refusal(where, f"weight {tensor.name!r:.60} claims {count * width} bytes and holds {held}")


def _check_interface(
    values: Iterable[ValueInfoProto], expected: dict[str, tuple[int, ...]], kind: str, where: str, ignored: Iterable[str] = ()
) -> None:
    found = {value.name: value for value in values if value.name not in set(ignored)}
    if set(found) != set(expected):
        raise _refusal(where, f"its {kind}s are {sorted(found)!r:.200}; {sorted(expected)} are right")
    for name, shape in expected.items():
        tensor = found[name].type.tensor_type
        dimensions = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
        free = (None,) if kind == "output" else ()  # exporters leave them open; the engine compares what it then infers
        fits = len(dimensions) == 1 + len(shape) and all(d in (n, *free) for d, n in zip(dimensions[1:], shape, strict=True))
        if tensor.elem_type != TensorProto.FLOAT or not fits:
            right = ", ".join(["batch", *map(str, shape)])
            raise _refusal(where, f"its {kind} {name!r} is not float32 of shape ({right})")
        if dimensions[0] is not None:
            raise _refusal(where, f"its {kind} {name!r} has a fixed batch of {dimensions[0]}; the batch must be a free dimension")


def check_ir(xml: bytes, weights_size: int, where: str, *, latent_size: int, sample_shape: tuple[int, ...]) -> None:
    """Raise InvalidSurrogate unless `xml` is an OpenVINO IR that may be loaded with `weights_size` bytes of weights.

    Layers must be of OpenVINO's own operator sets and in IR_OPERATORS (none has a body graph), constants must lie inside the
    weights.
    """
    layers = _checked_layers(xml, weights_size, where, IR_OPERATORS)
    inputs, outputs = (sum(layer.get("type") == kind for layer in layers) for kind in ("Parameter", "Result"))
    if (inputs, outputs) != (2, 1):
        raise _refusal(where, f"it has {inputs} inputs and {outputs} outputs; latent and incident_energy, and showers are right")
    _check_ir_interface(layers, {"latent": (latent_size,), "incident_energy": (1,)}, {"showers": sample_shape}, where)


def check_ir_network(xml: bytes, weights_size: int, where: str) -> None:
    """The same for any inputs and outputs and all of OpenVINO's own operators; raises InvalidModel."""
    try:
        _checked_layers(xml, weights_size, where, None)
    except InvalidSurrogate as refusal:
        raise InvalidModel(f"{str(refusal).removesuffix(_ADVICE)} Tune the network again.") from refusal


def _checked_layers(xml: bytes, weights_size: int, where: str, operators: Collection[str] | None) -> list[Element]:
    if not xml.startswith((b"<?xml", b"<net")):
        raise _refusal(where, "it is not an OpenVINO IR")
    try:
        net = fromstring(xml, forbid_dtd=True)
    except DefusedXmlException as error:
        raise _refusal(where, "it holds a document type or entities, which are not accepted") from error
    except (ParseError, ValueError, LookupError) as error:
        raise _refusal(where, "it is not well-formed XML") from error
    layers: list[Element] = net.findall("./layers/layer")
    if net.tag != "net" or net.get("version") not in ("10", "11") or not 0 < len(layers) <= MOST_NODES:
        raise _refusal(where, "it is not an OpenVINO IR of version 10 or 11 with a sensible number of layers")
    if len(layers) != len(net.findall(".//layer")) or net.find(".//body") is not None:
        raise _refusal(where, "it holds graphs inside graphs, which are not accepted")
    for layer in layers:
        name, kind, version = layer.get("name", ""), layer.get("type", ""), layer.get("version", "")
        if operators is not None and kind not in operators:
            raise _refusal(where, f"layer {name!r:.60} is a {kind!r:.60}, which is not among the accepted operators")
        if not (version.startswith("opset") and version[5:].isdigit() and len(version) <= 7):
            raise _refusal(where, f"layer {name!r:.60} is of the operator set {version!r:.60}; only OpenVINO's own are accepted")
        for port in layer.findall("./output/port"):
            sizes = [int(dim.text) for dim in port.findall("dim") if dim.text and dim.text.strip().isdigit()]
            if math.prod(sizes) > LARGEST_TENSOR:
                raise _refusal(where, f"layer {name!r:.60} claims {math.prod(sizes)} elements, more than {LARGEST_TENSOR}")
        if kind == "Const":
            _check_constant(layer, weights_size, where)
    return layers


def _check_ir_interface(
    layers: list[Element], inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]], where: str
) -> None:
    named: dict[str, tuple[str | None, ...]] = {}
    for layer in layers:
        for port in layer.findall("./output/port"):
            dimensions = tuple(dim.text for dim in port.findall("dim"))
            named |= {name: dimensions for name in (port.get("names") or "").split(",") if name}
    for name, shape in (inputs | outputs).items():
        if name not in named or named[name][1:] != tuple(map(str, shape)):
            raise _refusal(where, f"it has no {name!r} of shape ({', '.join(['batch', *map(str, shape)])})")
    ports = [port for layer in layers if layer.get("type") == "Parameter" for port in layer.findall("./output/port")]
    parameters = {name for port in ports for name in (port.get("names") or "").split(",")}
    if not set(inputs) <= parameters:
        raise _refusal(where, f"its inputs are {sorted(parameters)!r:.200}; {sorted(inputs)} are right")


def _check_constant(layer: Element, weights_size: int, where: str) -> None:
    data = layer.find("data")
    try:
        offset, size = int(data.get("offset", "")), int(data.get("size", ""))  # type: ignore[union-attr]
    except (AttributeError, ValueError) as error:
        raise _refusal(where, f"constant {layer.get('name', '')!r:.60} has no place in the weights") from error
    if not 0 <= offset <= offset + size <= weights_size or size < 0:
        raise _refusal(where, f"constant {layer.get('name', '')!r:.60} lies outside the weights of {weights_size} bytes")


def _refusal(where: str, reason: str) -> InvalidSurrogate:
    return InvalidSurrogate(f"{where} cannot be used: {reason}.{_ADVICE}")
