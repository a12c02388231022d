"""Keep operations in float32 inside a model that is compiled for bf16 or fp16, by an attribute in its IR.

OpenVINO's processor plugin computes in `INFERENCE_PRECISION_HINT` wherever it can; an operation with `precise` in the
`rt_info` of the IR stays float32. Only `read_model` takes that attribute in: setting it on a model in Python has no effect.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping

from minicarlo.engines.runtime import keep_precise
from minicarlo.precision.plan import HALF

CARRIERS = frozenset(
    """Relu ReLU PRelu PReLU Clamp Reshape Transpose Squeeze Unsqueeze Interpolate Concat Split VariadicSplit Slice StridedSlice
    DepthToSpace SpaceToDepth MaxPool Pad FakeQuantize""".split()
)
"""Operations that move or clip values without arithmetic on them: low precision may pass through them."""


def mark_precise(xml: bytes, formats: Mapping[str, str]) -> bytes:
    """The IR `xml` with the attribute `precise` on everything that must stay float32 when it is compiled for bf16 or fp16.

    `formats` says the format of each planned operation. Left unmarked are the operations in bf16, fp16 or int8, the bias of a
    layer in one of the first two, and what merely carries values from one such operation to another.
    """
    graph = _Graph(xml)
    lowered = {i for i, layer in graph.layers.items() if formats.get(layer.get("name", "")) in (*HALF, "int8")}
    biases = {i for i in lowered if graph.is_bias(i)}
    low = lowered - biases
    candidates = biases | {i for i, layer in graph.layers.items() if layer.get("type") in CARRIERS}
    carrying = set(candidates)
    while True:  # drop what touches float32 on either side until nothing changes
        kept = {
            i
            for i in carrying
            if all(p in low or p in carrying for p in graph.producers(i))
            and all(c in low or c in carrying for c in graph.consumers(i))
        }
        if kept == carrying:
            break
        carrying = kept
    half_biases = {i for i in biases if formats.get(graph.layers[i].get("name", "")) in HALF}
    for identifier, layer in graph.layers.items():
        if (
            identifier in low | carrying | half_biases
            or layer.get("type") in ("Const", "Parameter", "Result")
            or graph.is_constant(identifier)
        ):
            continue
        keep_precise(layer)
    text: bytes = ElementTree.tostring(graph.root, encoding="utf-8", xml_declaration=True)
    return text


class _Graph:
    """The layers and edges of an IR that we wrote ourselves."""

    def __init__(self, xml: bytes) -> None:
        self.root = ElementTree.fromstring(xml)
        self.layers = {layer.get("id", ""): layer for layer in self.root.iterfind("./layers/layer")}
        self._producers: dict[str, list[str]] = {identifier: [] for identifier in self.layers}
        self._consumers: dict[str, list[str]] = {identifier: [] for identifier in self.layers}
        for edge in self.root.iterfind("./edges/edge"):
            source, target = edge.get("from-layer", ""), edge.get("to-layer", "")
            self._producers[target].append(source)
            self._consumers[source].append(target)

    def producers(self, identifier: str) -> list[str]:
        """What feeds a layer with data, constants aside."""
        return [source for source in self._producers[identifier] if not self.is_constant(source)]

    def consumers(self, identifier: str) -> list[str]:
        """What a layer feeds."""
        return self._consumers[identifier]

    def is_constant(self, identifier: str) -> bool:
        """Whether a layer is computed from constants alone (weights are int8 constants with a conversion and a scale)."""
        kind = self.layers[identifier].get("type")
        sources = self._producers[identifier]
        return kind == "Const" or (kind != "Parameter" and bool(sources) and all(self.is_constant(source) for source in sources))

    def is_bias(self, identifier: str) -> bool:
        """Whether a layer adds a constant to another."""
        return self.layers[identifier].get("type") == "Add" and len(self.producers(identifier)) == 1
