"""From a trained network to a surrogate on disk."""

from __future__ import annotations

import copy
import io
import warnings

import onnx
import torch

from minicarlo.generators.base import Generator
from minicarlo.surrogate import Surrogate, save_surrogate
from minicarlo.training.config import TrainConfig

__all__ = ["export_surrogate", "to_onnx"]


def to_onnx(generator: Generator) -> bytes:
    """The generator as a self-contained ONNX graph with readable layer names and any batch size.

    Inputs `latent` (batch, latent_size) and `incident_energy` (batch, 1) in MeV, output `showers` (batch, *sample_shape) in MeV.
    """
    generator = copy.deepcopy(generator).to("cpu").to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    example = (torch.randn(2, generator.latent_size), torch.full((2, 1), generator.high_mev))
    names = ("latent", "incident_energy", "showers")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter without onnxscript announces its successor
        torch.onnx.export(
            generator,
            example,
            buffer,  # type: ignore[arg-type]
            input_names=list(names[:2]),
            output_names=[names[2]],
            dynamic_axes={name: {0: "batch"} for name in names},
            opset_version=17,
            dynamo=False,
        )
    model = onnx.load_from_string(buffer.getvalue())
    rename_layers(model)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def rename_layers(model: onnx.ModelProto) -> None:
    """Name each weight layer after its module (`shape.conv1`), so that precision plans can be read."""
    for node in model.graph.node:
        if node.op_type in {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
            path = [part for part in node.name.split("/") if part]
            node.name = ".".join(path[:-1]) or f"noise.{path[-1].lower()}"


def export_surrogate(
    generator: Generator,
    config: TrainConfig,
    detector: str,
    energy_range_mev: tuple[float, float],
    training: dict[str, str | int | float],
) -> Surrogate:
    """Write the surrogate that `config` names, in place of what an earlier run wrote there. Raises OutputError."""
    low, high = energy_range_mev
    return save_surrogate(
        config.output,
        to_onnx(generator),
        name=config.name,
        generator=config.generator,
        conditions={"incident_energy": {"unit": "MeV", "low": low, "high": high}},
        latent_size=generator.latent_size,
        sample_shape=generator.sample_shape,
        detector=detector,
        readout_threshold_mev=generator.threshold_mev,
        training=training,
        overwrite=True,
    )
