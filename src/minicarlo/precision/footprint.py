"""Peak memory of a network: what a process needs beyond the runtime itself to load, compile and run it once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from minicarlo.errors import TuningError
from minicarlo.precision.quantization import PlannedModel


def peak_bytes(planned: PlannedModel, shapes: Mapping[str, Sequence[int]]) -> int:
    """Peak memory in bytes, measured in a process of its own. Raises TuningError where that cannot be measured."""
    check_linux()
    with planned.on_disk() as path:
        request = json.dumps([str(path), planned.inference_precision, {name: list(shape) for name, shape in shapes.items()}])
        command = [sys.executable, "-m", "minicarlo.precision.footprint", request]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise TuningError(f"Peak memory could not be measured: {(ran.stderr.strip().splitlines() or ['no word'])[-1]:.200}")
    return int(ran.stdout.split()[-1])


def check_linux() -> None:
    """Raise TuningError where peak memory cannot be measured."""
    if not Path("/proc/self/clear_refs").exists():
        raise TuningError("Peak memory is measured by Linux's /proc, which is not here; choose the objective size instead.")


def measure(path: str, precision: str, shapes: Mapping[str, Sequence[int]]) -> int:
    """Peak memory in bytes beyond what this process has when the runtime is loaded; once per process."""
    import numpy as np

    from minicarlo.engines import machine
    from minicarlo.engines.network import OpenVinoNetwork

    machine()  # loads the runtime
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    network = OpenVinoNetwork(path, precision, shapes)  # type: ignore[arg-type]
    network.run({name: np.ones(shape, np.float32) for name, shape in shapes.items()})
    return max(_resident("VmHWM") - before, 1)


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


if __name__ == "__main__":
    sys.stdout.write(f"{measure(*json.loads(sys.argv[1]))}\n")
