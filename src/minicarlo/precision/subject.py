"""What is tuned: a graph, inputs to calibrate and to judge it on, and what a plan must not change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from minicarlo.engines.network import Arrays
from minicarlo.graph.recipe import Rewrite
from minicarlo.precision.criterion import Criterion

if TYPE_CHECKING:
    import openvino

    from minicarlo.precision.quantization import PlannedModel

Use = Literal["search", "held_out", "monte_carlo"]
"""What events are for: no event serves two uses."""


class Subject(Protocol):
    """A network to be tuned. Surrogates are one kind (`minicarlo.precision.surrogates`), all other models another."""

    @property
    def name(self) -> str:
        """For messages: "Surrogate clic-ecal", "Model net.onnx"."""

    @property
    def digest(self) -> str:
        """Of all that decides what the network computes and is judged on."""

    @property
    def model(self) -> openvino.Model:
        """The float32 graph; nobody changes it."""

    @property
    def rewrites(self) -> Sequence[Rewrite] | None:
        """Exact rewrites that made the graph from the normal form of the one that was given; None if it is the given one."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of the inputs of one inference: the batch comes first."""

    @property
    def criterion(self) -> Criterion:
        """What a plan is judged by."""

    @property
    def most_events(self) -> int:
        """How many events there are for each use, at most."""

    def calibration(self) -> list[Arrays]:
        """Inputs that activation ranges are measured on, one inference each."""

    def events(self, use: Use, start: int, stop: int) -> Arrays:
        """Inputs of events `start` to `stop` of those for a use, always the same."""

    def write(
        self,
        output: Path,
        planned: PlannedModel,
        facts: dict[str, Any],
        history: bytes,
        plan_yaml: bytes,
        speed: dict[str, Any] | None,
    ) -> None:
        """Write the network in its tuned precision to the new directory `output`. Raises OutputError."""
