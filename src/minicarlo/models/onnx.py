"""ONNX models: checked before OpenVINO parses them."""

from __future__ import annotations

from minicarlo.engines.network import read_network_file
from minicarlo.errors import InvalidModel
from minicarlo.graph.safety import check_network
from minicarlo.models.network import Network


def from_bytes(data: bytes, name: str, kind: str = "an ONNX model") -> Network:
    """A network from the bytes of an ONNX file. Raises InvalidModel."""
    check_network(data, name)
    try:
        graph = read_network_file(data)
    except RuntimeError as error:
        raise InvalidModel(f"{name}: OpenVINO cannot read it ({last_line(error)}).") from error
    return Network.of(graph, name, kind, own_names=True)


def last_line(error: Exception) -> str:
    """What a runtime's long message ends with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
