"""Runs that are killed at random moments, and disks that vanish or turn read-only under them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import minicarlo
from minicarlo.generation import generate
from minicarlo.surrogate import Surrogate
from small_surrogate import make_small_surrogate

ENVIRONMENT = {"PYTHONPATH": str(Path(minicarlo.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def surrogate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Surrogate]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield make_small_surrogate(tmp_path_factory.mktemp("surrogates") / "small", width=4)


def test_kills_at_random_moments_change_no_byte(surrogate):
    """A short run of benchmarks/kills.py, which kills 50 times and on a cluster too."""
    script = Path(__file__).parents[1] / "benchmarks" / "kills.py"
    arguments = ["--surrogate", surrogate.path, "--kills", 6, "--modes", "folder,file", "--events", 2000, "--shard-size", 256]
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)], env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["differences"] == []


def start(surrogate: Surrogate, output: Path) -> subprocess.Popen[str]:
    command = ["generate", surrogate.path, "-n", 200_000, "--shard-size", 256, "--batch", 16, "-o", output]
    program = [sys.executable, "-m", "minicarlo.cli", *map(str, command)]
    return subprocess.Popen(program, env=os.environ | ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def ends_with_a_clear_error(process: subprocess.Popen[str], *words: str) -> None:
    _, text = process.communicate(timeout=120)
    paragraph = " ".join(text.split())
    assert process.returncode == 2 and "Traceback" not in text, text
    assert all(word in paragraph for word in words), paragraph


@pytest.mark.parametrize("name", ["run", "run.h5"])
def test_a_folder_that_vanishes_ends_the_run_with_a_clear_error(surrogate, tmp_path, name):
    disk = tmp_path / "disk"
    disk.mkdir()
    process = start(surrogate, disk / name)
    while not list(disk.rglob("shard-*.h5")):
        assert process.poll() is None
        time.sleep(0.01)
    while disk.exists():
        shutil.rmtree(disk, ignore_errors=True)
    ends_with_a_clear_error(process, "Cannot write")


@pytest.mark.parametrize("name", ["run", "run.h5"])
def test_a_disk_that_turns_read_only_ends_the_run_with_a_clear_error_and_keeps_what_was_done(surrogate, tmp_path, name):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500M", "none", str(disk)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a file system needs privileges")
    try:
        process = start(surrogate, disk / name)
        while not list(disk.rglob("shard-*.h5")):
            assert process.poll() is None
            time.sleep(0.01)
        # refused while a file is open for writing: between two shards it succeeds
        while subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True, check=False).returncode:
            assert process.poll() is None
        ends_with_a_clear_error(process, "read-only")
        done = len(list(disk.rglob("shard-*.h5")))
        assert done >= 1 and not (disk / "run.h5").exists()
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        seen: list[int] = []

        def stop_soon(made: int, _: int) -> None:
            seen.append(made)
            if len(seen) > 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            generate(surrogate, 200_000, output=disk / name, shard_size=256, batch=16, progress=stop_soon)
        assert seen[0] >= 256 * (done - 1)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
