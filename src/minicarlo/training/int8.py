"""Training with int8 in the loop: layers see their inputs and weights rounded to 8 bits, and gradients pass as if they did not.

References:
    B. Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
    arXiv:1712.05877
    Gradients straight through: Y. Bengio et al., arXiv:1308.3432
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["compute_in_int8", "rounded_inputs", "rounded_weights"]

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def compute_in_int8(network: nn.Module) -> list[str]:
    """Have every dense layer and convolution of `network` compute with 8-bit inputs and weights from now on; gives their names.

    Its parameters, their names and what is saved of it stay as they are.
    """
    names = []
    for name, layer in network.named_modules():
        if isinstance(layer, _LAYERS):
            layer.register_forward_pre_hook(_before)
            layer.register_forward_hook(_after, always_call=True)
            names.append(name)
    return names


def rounded_inputs(values: Tensor) -> Tensor:
    """`values` on a grid of 256 levels from their least to their largest, zero among them."""
    values = values.float()
    low, high = (end.detach() for end in torch.aminmax(values))
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = ((high - low) / 255).clamp_min(1e-12)
    zero = torch.round(-low / scale).clamp(0, 255).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, 255)


def rounded_weights(weights: Tensor, axis: int) -> Tensor:
    """`weights` on 255 levels around zero, with a scale for each output channel along `axis`."""
    weights = weights.float()
    others = [each for each in range(weights.ndim) if each != axis]
    scale = (weights.detach().abs().amax(others) / 127).clamp_min(1e-12)
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weights, scale, zeros, axis, -127, 127)


def _before(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    axis = 1 if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) else 0
    weight = layer._parameters["weight"]
    assert weight is not None
    layer.__dict__["weight"] = rounded_weights(weight, axis)  # found before the parameter of that name
    return (rounded_inputs(inputs[0]), *inputs[1:])


def _after(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
    layer.__dict__.pop("weight", None)
