"""PyTorch modules and exported programs.

`torch.export.load` runs what a stranger wrote: it unpickles sample inputs, odd weights and custom objects without limits, loads
the shared libraries of a compiled package, evaluates expressions for shapes as Python (SymPy's `sympify`), and looks up any
function of `torch` by the name that a node gives (torch 2.13, `torch/_export/serde/serialize.py` and
`torch/export/pt2_archive/_package.py`). So a file is taken apart first: only the graph, in JSON, and raw weights go on, into an
archive written here, and only if every node calls an ATen operator and every expression is arithmetic.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicarlo.engines.network import Arrays
from minicarlo.errors import InvalidModel, MissingExtra
from minicarlo.models.network import Network
from minicarlo.models.onnx import last_line

if TYPE_CHECKING:
    import torch

_KIND = "a PyTorch exported program"
_ALLOWED_TARGET = re.compile(r"torch\.ops\.(aten|prims)\.\w+\.\w+|_operator\.\w+|math\.\w+|torch\.sym_\w+")
_NEVER_CALLED = re.compile(r".*\.(__\w+|attrgetter|methodcaller|itemgetter|call)(\..*)?")
_EXPRESSION = re.compile(  # SymPy's srepr, or infix
    r"(?:Symbol\('[su]\d+'(?:, \w+=(?:True|False))*\)|[su](?=\d)|\d|[-+*/%(), ]|oo|Integer|Rational|Add|Mul|Pow|Max|Min|Mod"
    r"|PythonMod|FloorDiv|CeilDiv|CleanDiv|Eq|Ne|Lt|Le|Gt|Ge)*"
)
_CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}


def from_file(path: Path) -> Network:
    """A network from what `torch.export.save` wrote. Raises InvalidModel, MissingExtra."""
    torch = _torch()
    name = f"Exported program {path}"
    archive = _without_code(path.read_bytes(), name)
    try:
        program = torch.export.load(archive)
    except Exception as error:
        raise InvalidModel(f"{name}: PyTorch cannot load it ({last_line(error)}). Export it again with torch 2.13.") from error
    return _converted(program, name)


def from_object(model: Any, example: Callable[[], Arrays]) -> Network:  # noqa: ANN401
    """A network from a module, exported here for any batch, or from an exported program. Raises InvalidModel, MissingExtra."""
    torch = _torch()
    name = f"Module {type(model).__name__}"
    if isinstance(model, torch.export.ExportedProgram):
        return _converted(model, name)
    arrays = {key: torch.as_tensor(array) for key, array in example().items()}
    free = {key: {0: torch.export.Dim.AUTO} for key in arrays}
    training = model.training
    try:
        program = torch.export.export(model.eval(), (), arrays, dynamic_shapes=free)
    except Exception as error:
        raise InvalidModel(
            f"{name}: torch.export cannot export it ({last_line(error)}). The names of the inputs must be those of `forward`."
        ) from error
    finally:
        model.train(training)
    return _converted(program, name)


def _converted(program: torch.export.ExportedProgram, name: str) -> Network:
    import openvino

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer, about PyTorch's own code
            graph = openvino.convert_model(program)
    except Exception as error:
        raise InvalidModel(f"{name}: OpenVINO cannot convert it ({last_line(error)}).") from error
    return Network.of(graph, name, _KIND)


def _without_code(data: bytes, name: str) -> io.BytesIO:
    """The archive with its graph and raw weights alone. Raises InvalidModel when it needs more, or could do more than compute."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise _refusal(name, "it is compressed, which torch.export.save does not do")
            files = {entry.filename.partition("/")[2]: archive.read(entry) for entry in archive.infolist()}
        if any(path.startswith("data/aotinductor/") for path in files):
            raise _refusal(name, "it holds compiled code (AOTInductor), which would be run")
        graphs = [path for path in files if path.startswith("models/")]
        if graphs != ["models/model.json"]:
            raise _refusal(name, f"it holds the graphs {graphs!r:.200}, not models/model.json alone")
        graph = json.loads(files["models/model.json"])
        _check_graph(graph, name)
        kept = {"models/model.json": json.dumps(graph).encode()}
        for folder, config in (("weights", "model_weights_config.json"), ("constants", "model_constants_config.json")):
            payload = json.loads(files[f"data/{folder}/{config}"])["config"]
            for key, entry in payload.items():
                if entry["use_pickle"] is not False or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
                    raise _refusal(name, f"{key!r:.80} is a pickled object, which would be run")
                raw = kept[f"data/{folder}/{entry['path_name']}"] = files[f"data/{folder}/{entry['path_name']}"]
                if not raw and all(
                    size["as_int"] for size in entry["tensor_meta"]["sizes"]
                ):  # PyTorch would make zeros of any size
                    raise _refusal(name, f"the weight {key!r:.80} is empty")
            kept[f"data/{folder}/{config}"] = json.dumps({"config": payload}).encode()
        for path in ("archive_format", "archive_version", "byteorder", ".data/version"):
            kept[path] = files[path]
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _refusal(name, f"it is not what torch.export.save writes ({type(error).__name__}: {last_line(error)})") from error
    kept["data/sample_inputs/model.pt"] = b""  # a pickle, and of no use here
    safe = io.BytesIO()
    with zipfile.ZipFile(safe, "w", zipfile.ZIP_STORED) as archive:
        for path, content in kept.items():
            archive.writestr(f"model/{path}", content)
    safe.seek(0)
    return safe


def _check_graph(graph: Any, name: str) -> None:  # noqa: ANN401
    for key, value in _entries(graph):
        if key == "target" and isinstance(value, str):
            if not _ALLOWED_TARGET.fullmatch(value) or _NEVER_CALLED.fullmatch(value):
                raise _refusal(name, f"a node calls {value!r:.80}, which is no ATen operator")
        elif key == "expr_str" and not (isinstance(value, str) and len(value) < 1000 and _EXPRESSION.fullmatch(value)):
            raise _refusal(name, f"the expression {value!r:.80} is more than arithmetic")
        elif key in ("in_spec", "out_spec", "treespec") and value:
            for inner, kind in _entries(json.loads(value)):
                if inner == "type" and kind not in _CONTAINERS:
                    raise _refusal(name, f"its inputs or outputs are of the Python type {kind!r:.80}")
        elif key in ("as_custom_obj", "as_graph", "as_operator", "guards_code") and value:
            raise _refusal(name, f"it holds {key.removeprefix('as_').replace('_', ' ')}, which is more than a plain graph")


def _entries(value: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from _entries(item)
    elif isinstance(value, list):
        for item in value:
            yield from _entries(item)


def _refusal(name: str, reason: str) -> InvalidModel:
    return InvalidModel(
        f"{name} is not loaded: {reason}. Ask for an ONNX file, or for a program of plain operators saved with torch.export.save."
    )


def _torch() -> Any:  # noqa: ANN401
    try:
        import torch
        import torch.export
    except ImportError as error:
        raise MissingExtra("Reading PyTorch networks needs PyTorch. Install it with: pip install 'minicarlo[pytorch]'") from error
    return torch
