"""A surrogate on disk: a directory with a manifest, an ONNX graph and, when tuned, an OpenVINO model in reduced precision.

Nothing in it is executed on load and nothing outside it is read: names come from a fixed list, links are refused, sizes are
bounded and checksums compared before a file is parsed, and the bytes that were checked are the bytes the runtime gets.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from minicarlo.detectors import Detector, get_detector, is_built_in, parse_detector, register_detector
from minicarlo.errors import InvalidCondition, InvalidConfig, InvalidSurrogate, UnknownDetector
from minicarlo.events import ENERGY, events_info
from minicarlo.files import atomic_directory
from minicarlo.graph.safety import check_ir, check_onnx

MANIFEST = "surrogate.json"
FP32 = "fp32.onnx"
TUNED_XML, TUNED_BIN, TUNED_PLAN, TUNED_HISTORY = "tuned/model.xml", "tuned/model.bin", "tuned/plan.json", "tuned/history.jsonl"
TUNED_YAML = "tuned/plan.yaml"

# Every file a surrogate may have, and how many bytes it may hold.
_LARGEST = {
    FP32: 2**31 - 1,
    TUNED_XML: 2**26,
    TUNED_BIN: 2**31 - 1,
    TUNED_PLAN: 2**22,
    TUNED_HISTORY: 2**26,
    TUNED_YAML: 2**20,
    "README.md": 2**20,
}
_LARGEST_MANIFEST = 2**22
_TUNED = (TUNED_XML, TUNED_BIN, TUNED_PLAN)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+-]{0,79}$")]
_Model = TypeVar("_Model", bound=BaseModel)


class ConditionRange(BaseModel):
    """Unit and trained range of one condition."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    unit: Literal["MeV"]
    low: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    high: Annotated[float, Field(gt=0, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _ordered(self) -> ConditionRange:
        if self.low > self.high:
            raise ValueError("low must not be above high")
        return self


class FileRecord(BaseModel):
    """Checksum and size of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class Manifest(BaseModel):
    """`surrogate.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    name: Name
    generator: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
    conditions: dict[str, ConditionRange]
    latent_size: Annotated[int, Field(gt=0, le=2**20)]
    sample_shape: Annotated[tuple[int, ...], Field(min_length=1, max_length=5)]
    unit: Literal["MeV"]
    detector: Name
    geometry: dict[str, Any] | None = None
    readout_threshold_mev: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    training: dict[str, Any] = {}
    files: dict[str, FileRecord] = {}
    fidelity: dict[str, Any] | None = None
    speed: dict[str, Any] | None = None
    graph: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if set(self.conditions) != {ENERGY}:
            raise ValueError(f"conditions must be {ENERGY} alone")
        if self.geometry is not None and self._described().name != self.detector:
            raise ValueError(f"detector is {self.detector!r}, but geometry describes {self.geometry.get('name')!r:.80}")
        if get_detector(self.detector).shape != self.sample_shape:
            raise ValueError(f"sample_shape {list(self.sample_shape)} is not that of detector {self.detector}")
        unknown = sorted(set(self.files) - set(_LARGEST))
        if unknown:
            raise ValueError(f"files names {unknown[0]!r:.80}, which is no file of a surrogate")
        if FP32 not in self.files:
            raise ValueError(f"files must hold {FP32}")
        if 0 < sum(name in self.files for name in _TUNED) < len(_TUNED):
            raise ValueError(f"files must hold all of {', '.join(_TUNED)} or none")
        return self

    def _described(self) -> Detector:
        """The detector of `geometry`, known from now on."""
        assert self.geometry is not None
        try:
            return register_detector(parse_detector(self.geometry, "geometry"), "geometry")
        except InvalidConfig as error:
            raise ValueError(str(error)) from None


class TunedPlan(BaseModel):
    """`tuned/plan.json`: the formats that were asked for and those that ran; further keys are kept as they are."""

    model_config = ConfigDict(extra="allow", frozen=True)

    plan: dict[str, str]
    ran: dict[str, str]
    inference_precision: Literal["f32", "bf16", "f16"]
    int8_share: Annotated[float, Field(ge=0, le=1)] | None = None


@dataclass(frozen=True)
class Tuned:
    """The reduced-precision model: OpenVINO IR as bytes, and its plan."""

    xml: bytes
    weights: bytes
    plan: TunedPlan


@dataclass(frozen=True)
class Surrogate:
    """A loaded, verified surrogate. `onnx` holds the reference graph; `tuned` is None before tuning."""

    path: Path
    manifest: Manifest
    onnx: bytes
    tuned: Tuned | None = None

    @classmethod
    def load(cls, path_or_name: str | Path, *, verify: bool = True) -> Surrogate:
        """Load a surrogate directory, or a shipped surrogate by its bare name (`clic-ecal`).

        A bare name of a shipped surrogate always means that one; write `./clic-ecal` for a directory of the same name.
        `verify=False` skips the checksums only. Raises InvalidSurrogate.
        """
        path = surrogate_path(path_or_name)
        manifest = _read_manifest(path)
        contents = {}
        for name, record in manifest.files.items():
            contents[name] = _read(path, name, _LARGEST[name])
            if len(contents[name]) != record.bytes:
                raise InvalidSurrogate(
                    f"Surrogate {path}: {name} has {len(contents[name])} bytes, {record.bytes} are right. "
                    "It is truncated or was altered; copy it again."
                )
            if verify and hashlib.sha256(contents[name]).hexdigest() != record.sha256:
                raise InvalidSurrogate(
                    f"Surrogate {path}: {name} does not match its checksum in {MANIFEST}. It was altered; copy it again."
                )
        latent_size, sample_shape = manifest.latent_size, manifest.sample_shape
        check_onnx(contents[FP32], f"Surrogate {path}: {FP32}", latent_size=latent_size, sample_shape=sample_shape)
        tuned = None
        if TUNED_XML in contents:
            check_ir(
                contents[TUNED_XML],
                len(contents[TUNED_BIN]),
                f"Surrogate {path}: {TUNED_XML}",
                latent_size=latent_size,
                sample_shape=sample_shape,
            )
            plan = _validate(TunedPlan, _parse_json(contents[TUNED_PLAN], path, TUNED_PLAN), path, TUNED_PLAN)
            tuned = Tuned(contents[TUNED_XML], contents[TUNED_BIN], plan)
        return cls(path, manifest, contents[FP32], tuned)

    @property
    def hash(self) -> str:
        """Hexadecimal digest of everything that decides the samples: the graphs, the plan and the ranges."""
        m = self.manifest
        parts = {name: record.sha256 for name, record in m.files.items() if name in (FP32, *_TUNED)}
        ranges = {name: [r.low, r.high] for name, r in m.conditions.items()}
        geometry = [] if m.geometry is None else [m.geometry]
        return hashlib.sha256(json.dumps([parts, ranges, m.detector, *geometry], sort_keys=True).encode()).hexdigest()

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions this surrogate can be asked for."""
        return ("fp32", "bf16", "tuned") if self.tuned else ("fp32", "bf16")

    def check_conditions(self, conditions: Mapping[str, ArrayLike]) -> None:
        """Raise InvalidCondition unless every condition is known, finite and inside the trained range.

        A relative 1e-6 is allowed for float32 rounding at the ends.
        """
        for name in conditions:
            if name not in self.manifest.conditions:
                raise InvalidCondition(
                    f"Surrogate {self.manifest.name} has no condition {name!r:.80}; it has {', '.join(self.manifest.conditions)}."
                )
        for name, allowed in self.manifest.conditions.items():
            if name not in conditions:
                raise InvalidCondition(f"Surrogate {self.manifest.name} needs the condition {name} ({allowed.unit}).")
            values = np.asarray(conditions[name], np.float64).reshape(-1)
            outside = ~((values >= allowed.low * (1 - 1e-6)) & (values <= allowed.high * (1 + 1e-6)))
            if outside.any():
                event = int(np.argmax(outside))
                raise InvalidCondition(
                    f"{name} of event {event} is {values[event]:g} {allowed.unit}, outside the range {allowed.low:g} to "
                    f"{allowed.high:g} {allowed.unit} that surrogate {self.manifest.name} was trained for; it does not "
                    "extrapolate. Choose energies inside the range."
                )

    def with_tuned(
        self,
        output: Path | str,
        xml: bytes | Path,
        weights: bytes | Path,
        plan: Mapping[str, Any],
        history: bytes | Path | None = None,
        *,
        plan_yaml: bytes | None = None,
        fidelity: dict[str, Any] | None = None,
        speed: dict[str, Any] | None = None,
        overwrite: bool = False,
    ) -> Surrogate:
        """Write this surrogate with a reduced-precision model to the new directory `output` and return it loaded.

        `plan` needs `plan`, `ran` and `inference_precision`; `plan_yaml` says the same for people; `fidelity` and `speed` replace
        those of the manifest when given.
        Raises InvalidSurrogate, OutputError.
        """
        contents = {FP32: self.onnx, TUNED_XML: _content(xml), TUNED_BIN: _content(weights), TUNED_PLAN: _json_bytes(dict(plan))}
        if history is not None:
            contents[TUNED_HISTORY] = _content(history)
        if plan_yaml is not None:
            contents[TUNED_YAML] = plan_yaml
        if "README.md" in self.manifest.files:
            contents["README.md"] = _read(self.path, "README.md", _LARGEST["README.md"])
        fields = self.manifest.model_dump(exclude={"files"})
        fields["fidelity"] = self.manifest.fidelity if fidelity is None else fidelity
        fields["speed"] = self.manifest.speed if speed is None else speed
        return _write(Path(output), contents, fields, overwrite)

    def with_graph(self, output: Path | str, onnx: bytes, graph: Mapping[str, Any]) -> Surrogate:
        """Write this surrogate with another graph for the same function to the new directory `output` and return it loaded.

        `graph` says how it was made. A tuned model, made from the old graph, and measured speeds are left out.
        Raises InvalidSurrogate, OutputError.
        """
        contents = {FP32: onnx}
        if "README.md" in self.manifest.files:
            contents["README.md"] = _read(self.path, "README.md", _LARGEST["README.md"])
        fields = self.manifest.model_dump(exclude={"files"}) | {"graph": dict(graph), "speed": None}
        return _write(Path(output), contents, fields, False)


def save_surrogate(
    directory: Path | str,
    onnx: bytes,
    *,
    name: str,
    generator: str,
    conditions: Mapping[str, Any],
    latent_size: int,
    sample_shape: tuple[int, ...] = (25, 25, 25),
    unit: str = "MeV",
    detector: str = "clic-ecal",
    readout_threshold_mev: float,
    training: Mapping[str, Any] | None = None,
    fidelity: Mapping[str, Any] | None = None,
    speed: Mapping[str, Any] | None = None,
    readme: str | None = None,
    overwrite: bool = False,
) -> Surrogate:
    """Write a surrogate directory, whole or not at all, and return it loaded (and so verified).

    `onnx` takes `latent` (batch, latent_size) unit normal and `incident_energy` (batch, 1) MeV and gives `showers`
    (batch, *sample_shape) MeV, all float32, weights inside. Raises InvalidSurrogate, OutputError.
    """
    fields = {
        "name": name,
        "generator": generator,
        "conditions": dict(conditions),
        "latent_size": latent_size,
        "sample_shape": tuple(sample_shape),
        "unit": unit,
        "detector": detector,
        "geometry": None if is_built_in(get_detector(detector)) else get_detector(detector).to_description(),
        "readout_threshold_mev": readout_threshold_mev,
        "training": dict(training or {}),
        "fidelity": None if fidelity is None else dict(fidelity),
        "speed": None if speed is None else dict(speed),
    }
    contents = {FP32: onnx} if readme is None else {FP32: onnx, "README.md": readme.encode()}
    return _write(Path(directory), contents, fields, overwrite)


def surrogate_path(path_or_name: str | Path) -> Path:
    """The directory of a surrogate: a shipped one for its bare name, the path itself otherwise. Raises InvalidSurrogate."""
    shipped = shipped_surrogates()
    if isinstance(path_or_name, str) and path_or_name in shipped:
        return shipped[path_or_name]
    path = Path(path_or_name)
    if not (path / MANIFEST).exists():
        what = f"has no {MANIFEST}" if path.is_dir() else "is a file, not a directory" if path.exists() else "does not exist"
        names = f" or the name of a shipped one ({', '.join(shipped)})" if shipped else ""
        raise InvalidSurrogate(f"Surrogate {path} {what}. Give the directory of a surrogate{names}.")
    return path


def shipped_surrogates() -> dict[str, Path]:
    """Name and directory of every surrogate inside the package."""
    root = Path(str(resources.files("minicarlo"))) / "shipped"
    return {path.parent.name: path.parent for path in sorted(root.glob(f"*/{MANIFEST}"))}


def sample_path(detector: str = "clic-ecal") -> Path:
    """The Monte Carlo sample that the package ships for `detector`. Raises UnknownDetector when there is none."""
    path = Path(str(resources.files("minicarlo"))) / "shipped" / "samples" / f"{get_detector(detector).name}.h5"
    if not path.exists():
        raise UnknownDetector(f"There is no shipped sample of detector {detector}.")
    return path


def info(path: Path | str) -> dict[str, Any]:
    """What a surrogate or an event set is, from its manifest or header.

    Keys: `kind` ("surrogate" or "events"), `version`, `conditions`, `sample_shape`, `unit`, `detector`, `count` (None for a
    surrogate) and, by kind, `name`, `generator`, `latent_size`, `precisions`, `plan`, `training`, `fidelity`, `speed`, `graph`,
    `hash`, or `attributes`.
    Raises InvalidSurrogate, InvalidEventSet.
    """
    target = Path(path)
    is_surrogate = str(path) in shipped_surrogates() or (target / MANIFEST).exists()
    if not is_surrogate and (target.is_file() or any(target.glob("shard-*.h5"))):
        events = events_info(target)
        return {"kind": "events", "version": 1, **events, "path": str(target)}
    surrogate = Surrogate.load(path)
    m = surrogate.manifest
    return {
        "kind": "surrogate",
        "version": m.format_version,
        "name": m.name,
        "generator": m.generator,
        "conditions": {name: allowed.model_dump() for name, allowed in m.conditions.items()},
        "sample_shape": list(m.sample_shape),
        "unit": m.unit,
        "detector": m.detector,
        "count": None,
        "latent_size": m.latent_size,
        "readout_threshold_mev": m.readout_threshold_mev,
        "precisions": list(surrogate.precisions),
        "plan": surrogate.tuned.plan.model_dump() if surrogate.tuned else None,
        "training": m.training,
        "fidelity": m.fidelity,
        "speed": m.speed,
        "graph": m.graph,
        "hash": surrogate.hash,
        "path": str(surrogate.path),
    }


def _write(directory: Path, contents: Mapping[str, bytes], fields: Mapping[str, Any], overwrite: bool) -> Surrogate:
    files = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in contents.items()}
    manifest = _validate(Manifest, {**fields, "files": files}, directory, MANIFEST)
    with atomic_directory(directory, overwrite=overwrite) as temporary:
        for name, data in contents.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(data)
        (temporary / MANIFEST).write_bytes(_json_bytes(manifest.model_dump(mode="json")))
        Surrogate.load(temporary)  # refuses here what would be refused later
    return Surrogate.load(directory)


def _content(source: bytes | Path) -> bytes:
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def _json_bytes(value: object) -> bytes:
    try:
        return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise InvalidSurrogate(f"The description of the surrogate cannot be written as JSON: {error}.") from error


def _read_manifest(path: Path) -> Manifest:
    return _validate(Manifest, _parse_json(_read(path, MANIFEST, _LARGEST_MANIFEST), path, MANIFEST), path, MANIFEST)


def _read(root: Path, name: str, largest: int) -> bytes:
    """The bytes of a file inside `root`; no component of `name` may be a link and the file must be a regular one."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    target = root
    for part in Path(name).parts:
        target /= part
        if target.is_symlink():
            raise InvalidSurrogate(f"Surrogate {root}: {name} is a link, which is never followed. Put the file itself there.")
    try:
        handle = os.open(target, flags)
        with os.fdopen(handle, "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InvalidSurrogate(f"Surrogate {root}: {name} is not a regular file.")
            if status.st_size > largest:
                raise InvalidSurrogate(f"Surrogate {root}: {name} has {status.st_size} bytes; at most {largest} are accepted.")
            return stream.read(largest)
    except FileNotFoundError as error:
        raise InvalidSurrogate(f"Surrogate {root}: {name} is missing. Copy the whole directory again.") from error
    except OSError as error:
        raise InvalidSurrogate(f"Surrogate {root}: {name} cannot be read ({error.strerror}).") from error


def _parse_json(data: bytes, path: Path, name: str) -> Any:  # noqa: ANN401
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key stands twice in one object")
        return result

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{text:.40} is no finite number")
        return value

    def refuse(text: str) -> float:
        raise ValueError(f"{text} is no JSON number")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_float=number, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise InvalidSurrogate(f"Surrogate {path}: {name} is not valid JSON ({reason}). Copy it again.") from error


def _validate(model: type[_Model], value: Any, path: Path, name: str) -> _Model:  # noqa: ANN401
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])[:120] or "the whole"
        message = re.sub(r"\s+", " ", first["msg"])[:300]
        raise InvalidSurrogate(
            f"Surrogate {path}: {name}, field {field}: {message}. Copy the surrogate again or write it with minicarlo."
        ) from error
    except UnknownDetector as error:
        raise InvalidSurrogate(f"Surrogate {path}: {name}, field detector: {error}") from error
