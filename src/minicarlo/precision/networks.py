"""Any network as what is tuned: the user's inputs, shared out between calibration, search and a last check."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.engines.network import LARGEST_TENSOR, Arrays, oversized_layer, tensor_name
from minicarlo.errors import InvalidModel, TuningError
from minicarlo.files import atomic_directory
from minicarlo.graph.recipe import Rewrite
from minicarlo.models import Inputs, Network, read_network
from minicarlo.precision.losses import Loss, UserLoss, source_of
from minicarlo.precision.quantization import PlannedModel
from minicarlo.precision.subject import Use

BATCH = 64
FEWEST_EVENTS = 64

_FIRST: dict[Use, int] = {"search": 1 << 20, "held_out": 1 << 21, "monte_carlo": 1 << 22}


class NetworkSubject:
    """A network that is no surrogate. See Subject.

    Arrays that are no inputs of the network, such as labels, are for the criterion, if that is a function of the user's.
    Arrays are shared out in an order drawn from `seed`: a quarter, at most `calibration_events`, to calibrate, half of the rest
    for the search and half held out. A function of events (first, last) is asked for events of its own for each use.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401
        inputs: Inputs,
        criterion: Loss | UserLoss,
        *,
        batch: int | None = None,
        calibration_events: int = 256,
        seed: int = 1,
    ) -> None:
        self.rewrites: Sequence[Rewrite] | None = None
        self._inputs = inputs
        self._network = read_network(model, lambda: self._given(0, 2))
        self.name, self.criterion = self._network.name, criterion
        self._share(calibration_events, seed)
        example = {name: array for name, array in self._at(0, 1).items() if name in self._network.inputs}
        self.shapes, free = _shapes(self._network, example, batch, self.most_events)
        self.model = _reshaped(self._network, self.shapes, free)
        self.digest = self._digest(source_of(criterion))

    def calibration(self) -> list[Arrays]:
        """See Subject."""
        batch = next(iter(self.shapes.values()))[0]
        last = self._calibrating - self._calibrating % batch
        taken = self._network.inputs
        batches = (self._at(start, start + batch) for start in range(0, max(last, batch), batch))
        return [{name: array for name, array in arrays.items() if name in taken} for arrays in batches]

    def events(self, use: Use, start: int, stop: int) -> Arrays:
        """See Subject."""
        first = _FIRST[use] if callable(self._inputs) else self._calibrating + (self.most_events if use == "held_out" else 0)
        return self._at(first + start, first + stop)

    def write(
        self,
        output: Path,
        planned: PlannedModel,
        facts: dict[str, Any],
        history: bytes,
        plan_yaml: bytes,
        speed: dict[str, Any] | None,
    ) -> None:
        """See Subject: OpenVINO's IR, the plan, the history, and how to load it."""
        facts = facts | {
            "speed": speed,
            "source": {"name": Path(self.name).name, "kind": self._network.kind, "sha256": self._network.digest},
        }
        with atomic_directory(output) as folder:
            (folder / "model.xml").write_bytes(planned.xml)
            (folder / "model.bin").write_bytes(planned.weights)
            (folder / "plan.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
            (folder / "plan.yaml").write_bytes(plan_yaml)
            (folder / "history.jsonl").write_bytes(history)
            (folder / "README.md").write_text(self._readme(planned, facts), encoding="utf-8")

    def _share(self, calibration_events: int, seed: int) -> None:
        if callable(self._inputs):
            self._calibrating, self.most_events, self._order = calibration_events, 1 << 20, None
            return
        arrays = self._fitted(self._inputs)
        count = len(next(iter(arrays.values())))
        if count < FEWEST_EVENTS:
            raise TuningError(
                f"{count} events are given; {self.name} needs at least {FEWEST_EVENTS}, to calibrate on some, search on others "
                "and check on others again. Give more."
            )
        self._calibrating = min(calibration_events, count // 4)
        self.most_events = (count - self._calibrating) // 2
        self._order = np.random.default_rng([seed, count]).permutation(count)
        self._inputs = arrays

    def _at(self, first: int, last: int) -> Arrays:
        if self._order is None or callable(self._inputs):
            return self._fitted(self._given(first, last))
        chosen = self._order[np.arange(first, last) % len(self._order)]
        return {name: array[chosen] for name, array in self._inputs.items()}

    def _fitted(self, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The network's inputs as it takes them and, for a function of the user's, what else is given of each event."""
        taken = set(self._network.inputs)
        more = isinstance(self.criterion, UserLoss) and taken < set(given)
        arrays = self._network.fitted({name: array for name, array in given.items() if name in taken or not more})
        others = {name: np.asarray(array) for name, array in given.items() if more and name not in taken}
        count = len(next(iter(arrays.values())))
        if wrong := [name for name, array in others.items() if array.ndim == 0 or len(array) != count]:
            raise TuningError(
                f"The array {wrong[0]!r:.80} does not have the {count} events of the network's inputs. Give one for each."
            )
        return arrays | others

    def _given(self, first: int, last: int) -> Mapping[str, NDArray[Any]]:
        if not callable(self._inputs):
            return {name: np.asarray(array)[first:last] for name, array in self._inputs.items()}
        made = {name: np.asarray(array) for name, array in self._inputs(first, last).items()}
        if wrong := [name for name, array in made.items() if array.ndim == 0 or len(array) != last - first]:
            raise TuningError(f"The function of inputs was asked for {last - first} events and gave others for {wrong[0]!r:.80}.")
        return made

    def _digest(self, criterion: str) -> str:
        found = hashlib.sha256(f"{self._network.digest}{criterion}{self.shapes}{self._calibrating}".encode())
        for name, array in self._at(0, self._calibrating + (0 if callable(self._inputs) else 2 * self.most_events)).items():
            found.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    def _readme(self, planned: PlannedModel, facts: Mapping[str, Any]) -> str:
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in self.shapes.items())
        figure = facts["criterion"]
        return f"""# {Path(self.name).name}, tuned

{facts["reason"]}

{figure["name"]} ({figure["description"]}): {figure["value"]:.3g}, {figure["confidence"]:.0%} interval {figure["low"]:.3g} to
{figure["high"]:.3g}, on inputs that the search never saw.

```python
import openvino
how = {{"INFERENCE_PRECISION_HINT": "{planned.inference_precision}", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}}
model = openvino.Core().compile_model("model.xml", "CPU", how)
outputs = model(inputs)  # a dictionary; the batch that was tuned: {shapes}
```

`plan.json` says which layer computes in which format, as asked for and as it ran on {facts["machine"]["processor"]};
`history.jsonl` holds every trial. `minicarlo export . --to onnx-qdq -o model.onnx` writes it for ONNX Runtime.
"""


def _shapes(network: Network, example: Arrays, batch: int | None, most_events: int) -> tuple[dict[str, tuple[int, ...]], bool]:
    """Shapes of one batch, and whether the network takes any batch."""
    example = network.fitted(example)
    fixed = {shape[0] for shape in network.inputs.values() if shape[0] is not None}
    if len(fixed) > 1 or (fixed and batch not in (None, *fixed)):
        raise InvalidModel(f"{network.name} has a fixed batch of {sorted(fixed)}; it cannot be tuned for a batch of {batch}.")
    if batch is not None and batch < 1:
        raise TuningError(f"The batch must be at least 1, not {batch}.")
    size = next(iter(fixed), batch or min(BATCH, most_events))
    return {name: (size, *array.shape[1:]) for name, array in example.items()}, not fixed


def _reshaped(network: Network, shapes: Mapping[str, tuple[int, ...]], free: bool) -> Any:  # noqa: ANN401
    """The graph for inputs of `shapes`, of any batch if it is `free`. Raises InvalidModel when it cannot compute them."""
    graph = network.graph.clone()
    try:
        too_large = oversized_layer(graph, {name: (1 if free else shape[0], *shape[1:]) for name, shape in shapes.items()})
        single = graph.clone()
        single.reshape({name: list(shape) for name, shape in shapes.items()})
        graph.reshape({name: [-1 if free else shape[0], *shape[1:]] for name, shape in shapes.items()})
    except RuntimeError as error:
        line = [each.strip() for each in str(error).splitlines() if each.strip()][-1]
        raise InvalidModel(f"{network.name} cannot compute inputs of the shapes {dict(shapes)} ({line:.200}).") from error
    if too_large is not None:
        raise InvalidModel(
            f"Layer {too_large[0]!r:.80} of {network.name} has the shape {too_large[1]} for one event; static shapes of at most "
            f"{LARGEST_TENSOR} elements are accepted."
        )
    batch = next(iter(shapes.values()))[0]
    for port in single.outputs:
        shape = port.get_partial_shape()
        if len(shape) == 0 or shape[0] != batch:
            raise InvalidModel(
                f"Output {tensor_name(port)!r:.80} of {network.name} has the shape {shape} for a batch of {batch}; its first "
                "axis must be events, for the criterion and its interval. Remove that output."
            )
    return graph
