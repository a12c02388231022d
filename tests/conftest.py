"""Fixtures that several files of tests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from dask_cluster import EVENTS, SHARD, free_port, own_folders, shards, start
from minicarlo import detectors
from minicarlo.generation import generate
from minicarlo.surrogate import Surrogate
from small_surrogate import make_small_surrogate


@pytest.fixture(scope="module", autouse=True)
def own_detectors() -> Iterator[None]:
    """Detectors that a file's tests make known are forgotten with it: another file has others of the same names."""
    known = dict(detectors._DETECTORS)
    yield
    detectors._DETECTORS.clear()
    detectors._DETECTORS.update(known)


@pytest.fixture(scope="module")
def dask_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches and Dask's configuration of the tests' own."""
    with own_folders(tmp_path_factory):
        yield


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Surrogate:
    """A surrogate that is quick."""
    return make_small_surrogate(tmp_path_factory.mktemp("surrogates") / "small", width=4)


@pytest.fixture(scope="module")
def whole(dask_folders: None, narrow: Surrogate, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The shards of `narrow` that one machine makes."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    generate(narrow, EVENTS, seed=7, output=folder, shard_size=SHARD)
    return shards(folder)


@pytest.fixture(scope="module")
def address(dask_folders: None) -> Iterator[str]:
    """A Dask scheduler in a process of its own, without workers."""
    port = free_port()
    process = start(
        sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"
    )
    yield f"tcp://127.0.0.1:{port}"
    process.kill()
    process.wait()
