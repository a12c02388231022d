"""Ways to a cluster: local and TLS, SSH, batch jobs; and what is refused."""

from __future__ import annotations

import os
import signal
import stat
import sys
from pathlib import Path

import psutil
import pytest

from dask_cluster import command, finish, shards, start, wait_until
from minicarlo.cluster import Where
from minicarlo.errors import ClusterError, InvalidConfig
from minicarlo.generation import generate

pytest.importorskip("distributed")
pytestmark = pytest.mark.usefixtures("dask_folders")


def test_a_local_cluster_listens_to_this_machine_alone_and_to_nobody_without_its_certificate(narrow, tmp_path):
    from distributed import Client

    process = start(*command(narrow, tmp_path / "run", "local:1"))
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


def test_batch_jobs_of_slurm_are_submitted_and_cancelled(narrow, whole, tmp_path, monkeypatch):
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
    result = finish(narrow, tmp_path / "run", "slurm:2", env=environment, cwd=tmp_path)
    assert shards(tmp_path / "run") == whole and 1 <= result["streams"] <= 2


def test_workers_are_started_over_ssh_with_a_certificate_that_no_file_keeps(narrow, whole, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    server = start(sys.executable, str(Path(__file__).with_name("ssh_server.py")), str(home))
    try:
        wait_until((home / ".ssh" / "config").exists)
        finish(narrow, tmp_path / "run", "ssh:127.0.0.1", env=os.environ | {"HOME": str(home)})
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert shards(tmp_path / "run") == whole
    assert not any(b"PRIVATE KEY" in path.read_bytes() for path in home.rglob("*") if path.is_file())


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
def test_an_unknown_place_is_refused_with_the_known_ones(narrow, tmp_path, text):
    with pytest.raises(InvalidConfig, match=r"local\[:WORKERS\], ssh:HOST"):
        generate(narrow, 10, output=tmp_path / "run", cluster=text)
    assert list(tmp_path.iterdir()) == []


def test_what_makes_no_sense_on_a_cluster_is_refused(narrow, tmp_path):
    for options in ({}, {"output": tmp_path / "run", "streams": 2}, {"output": tmp_path / "run", "threads": 2}):
        with pytest.raises(InvalidConfig, match="On a cluster"):
            generate(narrow, 10, cluster="local", **options)


def test_a_scheduler_that_is_not_there_is_named(narrow, tmp_path, monkeypatch):
    monkeypatch.setattr("minicarlo.cluster.places._SECONDS_TO_CONNECT", 1.0)
    with pytest.raises(ClusterError, match=r"tcp://127\.0\.0\.1:9 cannot be reached"):
        generate(narrow, 10, output=tmp_path / "run", cluster="tcp://127.0.0.1:9")
    assert list(tmp_path.iterdir()) == []
