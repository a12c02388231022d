"""A cluster's workers make the files that one machine makes, also when they are killed, new or blind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from dask_cluster import EVENTS, OLDER, SHARD, command, free_port, kill, shards, start, wait_until, worker, working
from minicarlo.errors import ClusterError
from minicarlo.files import sha256
from minicarlo.generation import generate

pytest.importorskip("distributed")
pytestmark = pytest.mark.usefixtures("dask_folders")


def test_local_workers_are_killed_again_and_again_and_the_files_are_the_same(narrow, whole, tmp_path):
    """Dask's nannies start new workers; every kill -9 hits a process that computes a shard."""
    process = start(*command(narrow, tmp_path / "run", "local:2"))
    killed = 0
    while killed < 3:
        wait_until(lambda killed=killed: len(shards(tmp_path / "run")) > 2 * killed or process.poll() is not None)
        assert process.poll() is None
        killed += kill(working(process.pid))
    assert process.wait(timeout=200) == 0
    assert shards(tmp_path / "run") == whole
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith("shard-")) == ["run.json"]


def test_a_killed_run_on_a_cluster_is_completed_and_its_workers_end(narrow, whole, tmp_path):
    process = start(*command(narrow, tmp_path / "run", "local:1"))
    record = tmp_path / "run" / "run.json"
    wait_until(lambda: record.exists() and "sha256" in record.read_text())
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    result = generate(narrow, EVENTS, seed=7, output=tmp_path / "run", shard_size=SHARD)  # another way to the same files
    assert result.resumed >= SHARD and shards(tmp_path / "run") == whole
    assert not list((tmp_path / "run").glob(".cluster-*"))
    wait_until(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))


def test_workers_that_are_killed_are_replaced_by_others_that_come_later(narrow, whole, address, tmp_path):
    process = start(*command(narrow, tmp_path / "run", address))
    for number in range(3):
        with worker(address) as alive:
            wait_until(lambda number=number: len(shards(tmp_path / "run")) > 2 * number)
            alive.send_signal(signal.SIGKILL)
    with worker(address), worker(address):
        assert process.wait(timeout=200) == 0
    assert shards(tmp_path / "run") == whole


def test_workers_that_do_not_see_the_folder_send_their_shards(narrow, whole, address, tmp_path):
    """The worker has an empty file system of its own where the folder is for others."""
    hide = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {tmp_path} && exec "$@"', "sh")
    if subprocess.run([*hide, "true"], capture_output=True, check=False).returncode:
        pytest.skip("hiding a folder from a process needs privileges")
    with worker(address, hide):
        result = generate(narrow, EVENTS, seed=7, output=tmp_path / "run", shard_size=SHARD, cluster=address)
    assert shards(tmp_path / "run") == whole and result.streams == 1
    with worker(address, hide):
        generate(narrow, EVENTS, seed=7, output=tmp_path / "one.h5", shard_size=SHARD, cluster=address)
    generate(narrow, EVENTS, seed=7, output=tmp_path / "same.h5")
    assert sha256(tmp_path / "one.h5") == sha256(tmp_path / "same.h5")


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Our address, and two network namespaces, each linked to it: separate hosts, as far as TCP can tell."""
    names = [f"mc{os.getpid()}{letter}" for letter in "ab"]
    subnet = f"10.213.{os.getpid() % 250}"
    try:
        for number, name in enumerate(names):
            steps = [
                f"netns add {name}",
                f"link add {name} type veth peer name eth0 netns {name}",
                f"addr add {subnet}.{4 * number + 1}/30 dev {name}",
                f"link set {name} up",
                f"-n {name} addr add {subnet}.{4 * number + 2}/30 dev eth0",
                f"-n {name} link set eth0 up",
                f"-n {name} link set lo up",
                f"-n {name} route add default via {subnet}.{4 * number + 1}",
            ]
            for step in steps:
                if subprocess.run(["ip", *step.split()], capture_output=True, check=False).returncode:
                    pytest.skip("making network namespaces needs privileges")
        yield [f"{subnet}.1", *names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
            subprocess.run(["ip", "link", "del", name], capture_output=True, check=False)


def test_separate_hosts_make_the_same_files_when_one_is_cut_off(narrow, whole, hosts, tmp_path):
    """Neither host sees the folder; the cable of the one that works first is pulled, and the other takes over."""
    ours, first, second = hosts
    port = free_port()
    address = f"tcp://{ours}:{port}"
    hide = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {tmp_path} && exec "$@"', "sh")
    scheduler = start(
        sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "0.0.0.0", "--port", str(port), "--no-dashboard"
    )
    process = start(*command(narrow, tmp_path / "run", address))
    try:
        with worker(address, ("ip", "netns", "exec", first, *hide)) as cut_off:
            wait_until(lambda: len(shards(tmp_path / "run")) > 2)
            subprocess.run(["ip", "link", "set", first, "down"], check=True)
            cut_off.kill()
            with worker(address, ("ip", "netns", "exec", second, *hide)):
                subprocess.run(["ip", "link", "set", first, "up"], check=True)  # the end of the first host's connections arrives
                assert process.wait(timeout=200) == 0
    finally:
        for one in (process, scheduler):
            one.kill()
            one.wait()
    assert shards(tmp_path / "run") == whole


def test_a_scheduler_that_is_lost_ends_the_run_and_keeps_what_is_there(narrow, whole, tmp_path):
    port = free_port()
    scheduler = start(sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port))
    process = subprocess.Popen(command(narrow, tmp_path / "run", f"tcp://127.0.0.1:{port}"), stderr=subprocess.PIPE, text=True)
    with worker(f"tcp://127.0.0.1:{port}"):
        wait_until(lambda: len(shards(tmp_path / "run")) > 2)
        scheduler.kill()
        scheduler.wait()
        _, said = process.communicate(timeout=100)
    assert process.returncode == 2 and "repeat the command" in " ".join(said.split()) and "Traceback" not in said, said
    assert shards(tmp_path / "run").items() <= whole.items()
    assert generate(narrow, EVENTS, seed=7, output=tmp_path / "run", shard_size=SHARD).resumed >= 2 * SHARD
    assert shards(tmp_path / "run") == whole


def test_a_worker_that_computes_other_bits_is_refused(narrow, address, tmp_path):
    """An older instruction set rounds differently, as an older processor would."""
    with worker(address, ONEDNN_MAX_CPU_ISA=OLDER), pytest.raises(ClusterError, match="other bits"):
        generate(narrow, EVENTS, seed=7, output=tmp_path / "run", shard_size=SHARD, cluster=address)
    assert list(tmp_path.iterdir()) == []


def test_what_a_worker_refuses_is_an_error_here(narrow, address, tmp_path):
    with worker(address), pytest.raises(ClusterError, match="install the same versions"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("minicarlo.generation.bulk.__version__", "another")
        generate(narrow, EVENTS, seed=7, output=tmp_path / "run", shard_size=SHARD, cluster=address)
    assert list(tmp_path.iterdir()) == []
