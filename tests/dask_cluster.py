"""What the tests of clusters share: the command, its processes and what it wrote."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

import minicarlo
from minicarlo.engines import machine
from minicarlo.files import sha256
from minicarlo.surrogate import Surrogate

EVENTS, SHARD = 3000, 200
OLDER = "AVX2" if "avx512f" in machine()["instructions"] else "SSE41"  # an instruction set before this processor's


@contextmanager
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches and Dask's configuration of the tests' own, for this process and those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "DASK_CONFIG"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name)))
        patch.setenv("PYTHONPATH", str(Path(minicarlo.__file__).parents[1]))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def shards(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(folder.glob("shard-*.h5"))}


def command(surrogate: Surrogate, output: Path, cluster: str) -> list[str]:
    program = [sys.executable, "-m", "minicarlo.cli", "generate", str(surrogate.path), "--json", "-o", str(output)]
    return [*program, "-n", str(EVENTS), "--seed", "7", "--shard-size", str(SHARD), "--cluster", cluster]


def start(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, **options)


def finish(surrogate: Surrogate, output: Path, cluster: str, **options: object) -> dict[str, object]:
    done = subprocess.run(
        command(surrogate, output, cluster), capture_output=True, text=True, timeout=200, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def working(process: int) -> list[psutil.Process]:
    """The processes of Dask's workers below a process; those that have just ended are not among them."""
    found = []
    for child in psutil.Process(process).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def kill(processes: list[psutil.Process]) -> int:
    """kill -9 all of them; how many were there."""
    killed = 0
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            each.send_signal(signal.SIGKILL)
            killed += 1
    return killed


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def worker(address: str, prefix: tuple[str, ...] = (), threads: int = 1, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    program = [
        *prefix,
        sys.executable,
        "-m",
        "distributed.cli.dask_worker",
        address,
        "--nthreads",
        str(threads),
        "--no-nanny",
        "--no-dashboard",
    ]
    process = start(*program, env=os.environ | environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
