"""Layers with large kernels as fast convolutions (`minicarlo.graph.fast`), in the formats in which that is faster.

The same numbers come of fewer multiply-accumulates, which low precision makes cheap as well: whether a layer should be a fast
convolution depends on its format. In float32 it may be three times as fast, and with the int8 instructions of the same
processor not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from minicarlo.engines.network import read_network_file
from minicarlo.graph.fast import PART, fast_alone
from minicarlo.graph.verify import ROUNDING
from minicarlo.precision.plan import HALF, Plan
from minicarlo.precision.timing import interleaved

if TYPE_CHECKING:
    import openvino

    from minicarlo.precision.evaluation import Evaluation
    from minicarlo.precision.quantization import Quantizer

FORMATS = ("fp32", *HALF)
"""Those that a fast convolution can have: its points have another range each."""

FASTER = 0.95
"""The share of its time that a layer may take as a fast convolution for that to be worth it."""

WORTH = 1.02
"""How much faster the whole network must be with all of them."""

MOVES = 2.0
"""How many times as far events may move in half precision if its layers are fast convolutions."""

Fast = Mapping[str, tuple[str, ...]]
"""Format to the layers that are fast convolutions in it."""


def candidates(model: openvino.Model, names: Mapping[str, str]) -> dict[str, bytes]:
    """By operation the ONNX model of the same convolution done fast, where that takes fewer multiply-accumulates.

    `names` are the operations that may be replaced: stride and dilation 1, one group, fixed sizes.
    """
    found = {}
    for op in model.get_ordered_ops():
        name = op.get_friendly_name()
        if name not in names or op.get_type_name() != "Convolution":
            continue
        weights, facts = op.input_value(1).get_node(), op.get_attributes()
        grid = list(op.input_value(0).get_partial_shape())[2:]
        plain = all(each == 1 for each in (*facts["strides"], *facts["dilations"])) and facts["auto_pad"] in ("explicit", "valid")
        if not plain or weights.get_type_name() != "Constant" or any(size.is_dynamic for size in grid):
            continue
        padding = ([0] * len(grid), [0] * len(grid)) if facts["auto_pad"] == "valid" else (facts["pads_begin"], facts["pads_end"])
        begins, ends = map(list, padding)
        if min(begins + ends) < 0:
            continue
        part = fast_alone(name, np.array(weights.get_data(), np.float32), begins, ends, [size.get_length() for size in grid])
        if part is not None:
            found[name] = part
    return found


def with_fast(model: openvino.Model, parts: Mapping[str, bytes]) -> tuple[openvino.Model, dict[str, str]]:
    """A copy of `model` with the convolutions of `parts` (see `candidates`) done fast, and what stands around them.

    Their products keep the convolutions' names; the second result says of all else which convolution it belongs to.
    """
    copy = model.clone()
    operations = {op.get_friendly_name(): op for op in copy.get_ordered_ops()}
    around: dict[str, str] = {}
    for name, data in parts.items():
        op, part = operations[name], read_network_file(data)
        around |= {each.get_friendly_name(): name for each in part.get_ordered_ops() if PART in each.get_friendly_name()}
        for target in part.inputs[0].get_target_inputs():
            target.replace_source_output(op.input_value(0))
        result = part.outputs[0].get_node().input_value(0)
        for target in op.output(0).get_target_inputs():
            target.replace_source_output(result)
        op.set_friendly_name(f"{name}/replaced")  # no two of one name, should something hold on to it
    copy.validate_nodes_and_infer_types()
    return copy, around


def choose_fast(
    quantizer: Quantizer, evaluation: Evaluation, formats: Iterable[str], *, single: bool = False, seconds: float = 1.0
) -> dict[str, tuple[str, ...]]:
    """The layers that are faster as fast convolutions, by format, measured on this machine; none where that is not sure.

    `evaluation` is that of `quantizer` without any, and `quantizer` has what was found; with `single` the time of a single event
    counts. In float32 no output may change by more than rounding does, in half precision no event move much further.
    """
    offered = tuple(quantizer.fast_candidates)
    found: dict[str, tuple[str, ...]] = {}
    for form in (each for each in FORMATS if offered and each in formats):
        plan = Plan.uniform(quantizer.layers, form)
        quantizer.fast = {}
        before, direct = evaluation.layer_seconds(plan, single=single), evaluation.compile(plan)
        quantizer.fast = {form: offered}
        after = evaluation.layer_seconds(plan, single=single)
        chosen = tuple(name for name in offered if after[name] < FASTER * before[name])
        quantizer.fast = {form: chosen}
        if not chosen:
            continue
        network = evaluation.compile(plan)
        speed = interleaved(evaluation.run_of(direct), evaluation.run_of(network), seconds=seconds)
        if speed.value < WORTH or speed.value - speed.spread < 1:
            continue
        if form == "fp32":
            same = evaluation.difference(direct, network) <= ROUNDING
        else:
            same = evaluation.moved(network) <= MOVES * evaluation.moved(direct)
        if same:
            found[form] = chosen
    quantizer.fast = found
    return found
