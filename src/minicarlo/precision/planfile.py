"""A precision plan as a YAML file for people: written beside every tuned network, edited, and applied again.

```yaml
version: 1
smooth: false              # whether channels are made smoother before int8 (`minicarlo.precision.smoothing`)
rewrites: []               # of a surrogate's graph in normal form (see `minicarlo optimise`), each with its kind and target;
                           # null: the graph stays as it is
fast: [shape.conv2]        # layers computed as fast convolutions (`minicarlo.precision.fast_layers`)
layers:
  shape.conv1: int8        # every layer of the graph in graph order
  shape.conv2: fp32
  shape.conv3: int8 kl     # int8 with a scheme (`minicarlo.precision.scheme`); without one, what is right on the machine
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from minicarlo.errors import TuningError
from minicarlo.graph.recipe import Rewrite
from minicarlo.precision.fast_layers import FORMATS as FAST_FORMATS
from minicarlo.precision.plan import FORMATS, Layer, Plan
from minicarlo.precision.scheme import Scheme

_LARGEST = 1 << 20

_HEADER = """\
# The number format of each layer, {formats}.
# To change it, copy this file, edit the copy, and apply it:
#   minicarlo tune MODEL --plan COPY -o OUTPUT
"""


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    smooth: bool = False
    rewrites: list[Rewrite] | None = None
    fast: list[str] = []
    layers: Annotated[dict[str, str], Field(min_length=1)]


@dataclass(frozen=True)
class PlanFile:
    """What a plan file says: rewrites of the graph, then the format of each layer."""

    path: Path
    rewrites: tuple[Rewrite, ...] | None
    layers: dict[str, str]
    smooth: bool = False
    fast: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path | str) -> PlanFile:
        """Read a plan file. Raises TuningError when it is missing, no YAML, or says something else than a plan."""
        path = Path(path)
        try:
            with path.open("rb") as stream:
                data = stream.read(_LARGEST + 1)
            if len(data) > _LARGEST:
                raise TuningError(f"Plan {path} is larger than {_LARGEST:,} bytes and cannot be a plan.")
            content = _Content.model_validate(yaml.safe_load(data))
        except OSError as error:
            raise TuningError(f"Plan {path} cannot be read ({error.strerror}). Give the path of a YAML file.") from error
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            where = getattr(error, "problem_mark", None)
            line = "" if where is None else f", line {where.line + 1}"
            raise TuningError(f"Plan {path} is no valid YAML{line}. Take a plan.yaml that `minicarlo tune` wrote.") from error
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the whole"
            raise TuningError(f"Plan {path}, field {field:.80}: {first['msg']:.200}.") from error
        rewrites = None if content.rewrites is None else tuple(content.rewrites)
        return cls(path, rewrites, content.layers, content.smooth, tuple(content.fast))

    def fast_layers(self, possible: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The fast convolutions by the format that the plan has for them, of those that are `possible`. Raises TuningError."""
        found: dict[str, tuple[str, ...]] = {}
        for name in self.fast:
            form = self.layers.get(name, "").strip()
            if name not in possible or form not in FAST_FORMATS:
                raise TuningError(
                    f"Plan {self.path}: layer {name!r:.80} in {form or 'no format'!r:.40} cannot be a fast convolution; "
                    f"those that can, in {' or '.join(FAST_FORMATS)}, are {', '.join(possible) or 'none'}."
                )
            found[form] = (*found.get(form, ()), name)
        return found

    def plan(self, layers: Sequence[Layer]) -> Plan:
        """The plan for a graph of these layers. Raises TuningError unless each has a known format and there are no others."""
        names = [layer.name for layer in layers]
        forms: dict[str, str] = {}
        schemes: dict[str, Scheme] = {}
        for name, text in self.layers.items():
            form, _, scheme = text.strip().partition(" ")
            if name not in names:
                raise TuningError(f"Plan {self.path}: the network has no layer {name!r:.80}; its layers are {', '.join(names)}.")
            if form not in FORMATS:
                raise TuningError(
                    f"Plan {self.path}: layer {name} has the format {form!r:.40}; choose among {', '.join(FORMATS)}."
                )
            if scheme and form != "int8":
                raise TuningError(f"Plan {self.path}: layer {name} is {form}, which takes no {scheme!r:.40}. Leave that out.")
            forms[name] = form
            if scheme:
                try:
                    schemes[name] = Scheme.parse(scheme)
                except TuningError as error:
                    raise TuningError(f"Plan {self.path}, layer {name}: {error}") from error
        if missing := [name for name in names if name not in forms]:
            raise TuningError(f"Plan {self.path}: layer {missing[0]} has no format. Add it, with one of {', '.join(FORMATS)}.")
        return Plan.of({name: forms[name] for name in names}).with_schemes(schemes)


def plan_yaml(
    plan: Plan,
    layers: Sequence[Layer],
    rewrites: Sequence[Rewrite] | None,
    smooth: bool = False,
    fast: Sequence[str] = (),
) -> bytes:
    """The plan file of `plan`: beside each layer stands its share of the multiply-accumulates."""
    total = sum(layer.macs for layer in layers) or 1
    schemes = dict(plan.schemes)
    texts = {name: f"{form} {schemes[name]}" if name in schemes else form for name, form in plan.items()}
    entries = {layer.name: yaml.safe_dump({layer.name: texts[layer.name]}, allow_unicode=True).strip() for layer in layers}
    width = max(map(len, entries.values()))
    lines = [f"  {entries[layer.name]:{width}}  # {layer.macs / total:.1%} of the multiply-accumulates" for layer in layers]
    done = {"rewrites": None if rewrites is None else [asdict(rewrite) for rewrite in rewrites], "fast": list(fast)}
    head = yaml.safe_dump({"version": 1, "smooth": smooth, **done}, sort_keys=False)
    return (_HEADER.format(formats=" or ".join(FORMATS)) + head + "layers:\n" + "\n".join(lines) + "\n").encode()
