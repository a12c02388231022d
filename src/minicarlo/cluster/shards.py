"""The shards of a run, made by the workers of a cluster.

A worker that sees the folder of the run writes its shards there; one that does not sends them back.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from minicarlo.cluster.crew import Crew, Order
from minicarlo.errors import ClusterError
from minicarlo.files import atomic_path
from minicarlo.shards import TOKEN, Run, Shard

if TYPE_CHECKING:
    from distributed import Client

_SECONDS_TO_SEE = 30.0  # until a file that another machine wrote shows on a network file system


class ShardOrder(Order, Protocol):
    """What a worker needs to make any shard of a run."""

    def make(self, shard: Shard) -> None:
        """Write the shard to its path."""
        ...


def complete(
    client: Client, run: Run, order: ShardOrder, missing: Sequence[Shard], accept: Callable[[Shard], None] = lambda shard: None
) -> Iterator[Shard]:
    """Have the workers make the `missing` shards of `run`; yield each when it is there, accepted and recorded.

    Raises what `accept` raises, whatever MinicarloError a worker raises, ClusterError when workers keep dying of a shard or the
    scheduler is lost.
    """
    token = run.folder / f"{TOKEN}{secrets.token_hex(8)}"
    waiting = deque(missing)
    token.touch()
    try:
        with Crew(client, order) as crew:
            while waiting or crew.busy:
                while waiting and crew.has_room:
                    shard = waiting.popleft()
                    crew.submit(shard, shard.path.name, make, token, shard.path.name, shard.start, shard.stop)
                for shard, made in crew.finished():
                    _take(made, shard)
                    accept(shard)
                    run.add(shard)
                    yield shard
    finally:
        token.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Made:
    """A shard that a worker made: its checksum, and its bytes where the worker does not see the folder."""

    host: str
    sha256: str
    size: int
    content: bytes | None


def make(order: ShardOrder, token: Path, file: str, start: int, stop: int) -> _Made:
    """Make a shard, on a worker."""
    if token.exists():
        order.make(Shard(token.parent / file, start, stop))
        return _describe(token.parent / file, keep=False)
    with tempfile.TemporaryDirectory() as folder:
        order.make(Shard(Path(folder, file), start, stop))
        return _describe(Path(folder, file), keep=True)


def _describe(path: Path, *, keep: bool) -> _Made:
    content = path.read_bytes()
    return _Made(socket.gethostname(), hashlib.sha256(content).hexdigest(), len(content), content if keep else None)


def _take(made: _Made, shard: Shard) -> None:
    """Put a shard that was sent back to its place; wait for one that was written by its worker."""
    if made.content is not None:
        if hashlib.sha256(made.content).hexdigest() != made.sha256:
            raise ClusterError(f"{shard.path.name} came back altered from {made.host}. Repeat the command to make it again.")
        with atomic_path(shard.path) as temporary:
            temporary.write_bytes(made.content)
        return
    end = time.monotonic() + _SECONDS_TO_SEE
    while not (shard.path.exists() and shard.path.stat().st_size == made.size):
        if time.monotonic() > end:
            raise ClusterError(f"{shard.path} was written on {made.host} and does not show here. Choose another folder.")
        os.listdir(shard.path.parent)  # has network file systems look again
        time.sleep(0.1)
