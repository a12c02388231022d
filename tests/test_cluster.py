"""A cluster's workers make the files that one machine makes, also when they are killed, new, blind or reached in other ways."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import minicarlo
from minicarlo.cluster import Where
from minicarlo.errors import ClusterError, InvalidConfig
from minicarlo.files import sha256
from minicarlo.generation import generate
from minicarlo.surrogate import Surrogate
from small_surrogate import make_small_surrogate

pytest.importorskip("distributed")

EVENTS, SHARD = 3000, 200


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "DASK_CONFIG"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name)))
        patch.setenv("PYTHONPATH", str(Path(minicarlo.__file__).parents[1]))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def surrogate(tmp_path_factory: pytest.TempPathFactory) -> Surrogate:
    return make_small_surrogate(tmp_path_factory.mktemp("surrogates") / "small", width=4)


@pytest.fixture(scope="module")
def whole(surrogate: Surrogate, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one machine makes."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    generate(surrogate, EVENTS, seed=7, output=folder, shard_size=SHARD)
    return shards(folder)


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


def wait_until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Dask scheduler in a process of its own, without workers."""
    port = free_port()
    process = start(
        sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"
    )
    yield f"tcp://127.0.0.1:{port}"
    process.kill()
    process.wait()


@contextmanager
def worker(address: str, prefix: tuple[str, ...] = (), **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    program = [
        *prefix,
        sys.executable,
        "-m",
        "distributed.cli.dask_worker",
        address,
        "--nthreads",
        "1",
        "--no-nanny",
        "--no-dashboard",
    ]
    process = start(*program, env=os.environ | environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_local_workers_are_killed_again_and_again_and_the_files_are_the_same(surrogate, whole, tmp_path):
    """Dask's nannies start new workers; every kill -9 hits a process that computes a shard."""
    process = start(*command(surrogate, tmp_path / "run", "local:2"))
    killed = 0
    while killed < 3:
        wait_until(lambda killed=killed: len(shards(tmp_path / "run")) > 2 * killed or process.poll() is not None)
        assert process.poll() is None
        workers = [
            child for child in psutil.Process(process.pid).children(recursive=True) if "spawn_main" in " ".join(child.cmdline())
        ]
        for child in workers:
            child.send_signal(signal.SIGKILL)
            killed += 1
    assert process.wait(timeout=200) == 0
    assert shards(tmp_path / "run") == whole
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith("shard-")) == ["run.json"]


def test_a_killed_run_on_a_cluster_is_completed_and_its_workers_end(surrogate, whole, tmp_path):
    process = start(*command(surrogate, tmp_path / "run", "local:1"))
    wait_until(lambda: len(shards(tmp_path / "run")) >= 2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    result = generate(surrogate, EVENTS, seed=7, output=tmp_path / "run", shard_size=SHARD)  # another way to the same files
    assert result.resumed >= SHARD and shards(tmp_path / "run") == whole
    wait_until(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))


def test_workers_that_are_killed_are_replaced_by_others_that_come_later(surrogate, whole, address, tmp_path):
    process = start(*command(surrogate, tmp_path / "run", address))
    for number in range(3):
        with worker(address) as alive:
            wait_until(lambda number=number: len(shards(tmp_path / "run")) > 2 * number)
            alive.send_signal(signal.SIGKILL)
    with worker(address), worker(address):
        assert process.wait(timeout=200) == 0
    assert shards(tmp_path / "run") == whole


def test_workers_that_do_not_see_the_folder_send_their_shards(surrogate, whole, address, tmp_path):
    """The worker has an empty file system of its own where the folder is for others."""
    hide = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {tmp_path} && exec "$@"', "sh")
    if subprocess.run([*hide, "true"], capture_output=True, check=False).returncode:
        pytest.skip("hiding a folder from a process needs privileges")
    with worker(address, hide):
        result = generate(surrogate, EVENTS, seed=7, output=tmp_path / "run", shard_size=SHARD, cluster=address)
    assert shards(tmp_path / "run") == whole and result.streams == 1
    with worker(address, hide):
        generate(surrogate, EVENTS, seed=7, output=tmp_path / "one.h5", shard_size=SHARD, cluster=address)
    generate(surrogate, EVENTS, seed=7, output=tmp_path / "same.h5")
    assert sha256(tmp_path / "one.h5") == sha256(tmp_path / "same.h5")


def test_a_worker_that_computes_other_bits_is_refused(surrogate, address, tmp_path):
    """An older instruction set rounds differently, as an older processor would."""
    with worker(address, ONEDNN_MAX_CPU_ISA="AVX2"), pytest.raises(ClusterError, match="other bits"):
        generate(surrogate, EVENTS, seed=7, output=tmp_path / "run", shard_size=SHARD, cluster=address)
    assert list(tmp_path.iterdir()) == []


def test_what_a_worker_refuses_is_an_error_here(surrogate, address, tmp_path):
    with worker(address), pytest.raises(ClusterError, match="install the same versions"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("minicarlo.generation.bulk.__version__", "another")
        generate(surrogate, EVENTS, seed=7, output=tmp_path / "run", shard_size=SHARD, cluster=address)
    assert list(tmp_path.iterdir()) == []


def test_a_local_cluster_listens_to_this_machine_alone_and_to_nobody_without_its_certificate(surrogate, tmp_path):
    from distributed import Client

    process = start(*command(surrogate, tmp_path / "run", "local:1"))
    try:
        wait_until(lambda: len(shards(tmp_path / "run")) >= 1)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        listening = {c.laddr for one in family for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        assert listening and {place.ip for place in listening} == {"127.0.0.1"}
        for place in listening:
            with pytest.raises(OSError):
                Client(f"tcp://127.0.0.1:{place.port}", timeout=1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


SBATCH = """#!{python}
# What Slurm does with a job, for one machine: run its script and tell a number.
import subprocess, sys
job = subprocess.Popen(["sh", sys.argv[1]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
print(f"Submitted batch job {{job.pid}}")
"""
SCANCEL = """#!{python}
import os, signal, sys
try:
    os.killpg(int(sys.argv[-1]), signal.SIGKILL)
except ProcessLookupError:
    pass
"""


def test_batch_jobs_of_slurm_are_submitted_and_cancelled(surrogate, whole, tmp_path, monkeypatch):
    """Dask's own job scripts, run by a stand-in for Slurm's commands."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (commands / name).write_text(text.format(python=sys.executable))
        (commands / name).chmod(stat.S_IRWXU)
    (tmp_path / "dask.yaml").write_text(
        "jobqueue: {slurm: {cores: 1, memory: 2GB, walltime: '00:10:00', scheduler-options: {host: 127.0.0.1}}}"
    )
    environment = os.environ | {"PATH": f"{commands}:{os.environ['PATH']}", "DASK_CONFIG": str(tmp_path / "dask.yaml")}
    result = finish(surrogate, tmp_path / "run", "slurm:2", env=environment, cwd=tmp_path)
    assert shards(tmp_path / "run") == whole and 1 <= result["streams"] <= 2


def test_workers_are_started_over_ssh_with_a_certificate_that_does_not_stay(surrogate, whole, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    server = start(sys.executable, str(Path(__file__).with_name("ssh_server.py")), str(home))
    try:
        wait_until((home / ".ssh" / "config").exists)
        finish(surrogate, tmp_path / "run", "ssh:127.0.0.1", env=os.environ | {"HOME": str(home)})
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert shards(tmp_path / "run") == whole
    assert list(home.glob("*.pem")) == [] and list(home.glob(".*.pem")) == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("local", Where("local")),
        ("local:4", Where("local", workers=4)),
        ("ssh:a,b.example.org", Where("ssh", hosts=("a", "b.example.org"))),
        ("slurm:200", Where("slurm", workers=200)),
        ("tls://host:8786", Where("address", address="tls://host:8786")),
    ],
)
def test_places_are_read(text, place):
    assert Where.parse(text) == place


@pytest.mark.parametrize("text", ["", "pbs", "local:0", "local:x", "ssh", "ssh:", "host:8786"])
def test_an_unknown_place_is_refused_with_the_known_ones(surrogate, tmp_path, text):
    with pytest.raises(InvalidConfig, match=r"local\[:WORKERS\], ssh:HOST"):
        generate(surrogate, 10, output=tmp_path / "run", cluster=text)
    assert list(tmp_path.iterdir()) == []


def test_what_makes_no_sense_on_a_cluster_is_refused(surrogate, tmp_path):
    for options in ({}, {"output": tmp_path / "run", "streams": 2}, {"output": tmp_path / "run", "threads": 2}):
        with pytest.raises(InvalidConfig, match="On a cluster"):
            generate(surrogate, 10, cluster="local", **options)


def test_a_scheduler_that_is_not_there_is_named(surrogate, tmp_path, monkeypatch):
    monkeypatch.setattr("minicarlo.cluster._SECONDS_TO_CONNECT", 1.0)
    with pytest.raises(ClusterError, match=r"tcp://127\.0\.0\.1:9 cannot be reached"):
        generate(surrogate, 10, output=tmp_path / "run", cluster="tcp://127.0.0.1:9")
    assert list(tmp_path.iterdir()) == []
