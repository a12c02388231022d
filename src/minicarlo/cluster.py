"""Shards on many processes and machines, through Dask: workers may come, be killed and come again; no scheduler of ours.

A shard is a task. A worker that sees the folder of the run writes its shards there; one that does not sends them back. What a
shard holds does not depend on who makes it, so a task that is done twice, or by two workers at once, gives the same file.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import secrets
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from minicarlo.errors import ClusterError, InvalidConfig, MissingExtra
from minicarlo.files import atomic_path
from minicarlo.shards import TOKEN, Run, Shard

if TYPE_CHECKING:
    from distributed import Client, Future

FORMS = "local[:WORKERS], ssh:HOST,HOST, slurm[:WORKERS], htcondor[:WORKERS], tcp://HOST:PORT or tls://HOST:PORT"

_AHEAD = 2  # tasks per thread of the cluster that are handed out
_DEATHS = 10  # workers that one shard may outlive
_SECONDS_TO_CONNECT = 60.0
_SECONDS_TO_SEE = 30.0  # until a file that another machine wrote shows on a network file system
_SECONDS_BETWEEN_LOOKS = 1.0


class Order(Protocol):
    """What a worker needs to make any shard of a run; it is sent to every worker once."""

    def check(self) -> None:
        """Raise ClusterError if this worker would make something else than the process that asks."""
        ...

    def make(self, shard: Shard) -> None:
        """Write the shard to its path."""
        ...


@dataclass(frozen=True)
class Where:
    """A place to work: kind and, for some, a number of workers, hosts or an address."""

    kind: str
    workers: int | None = None
    hosts: tuple[str, ...] = ()
    address: str = ""

    @classmethod
    def parse(cls, text: str) -> Where:
        """Read one of FORMS. Raises InvalidConfig."""
        if text.startswith(("tcp://", "tls://")):
            return cls("address", address=text)
        kind, _, rest = text.partition(":")
        if kind == "ssh" and rest:
            return cls(kind, hosts=tuple(rest.split(",")))
        if kind in ("local", "slurm", "htcondor") and (not rest or (rest.isdecimal() and 1 <= int(rest) <= 100_000)):
            return cls(kind, workers=int(rest) if rest else None)
        raise InvalidConfig(f"Cluster {text!r:.80} is unknown: give {FORMS}.")


@contextmanager
def connect(where: str, cores: int | None = None) -> Iterator[Client]:
    """A Dask client of the cluster `where`, which is started here unless it is an address.

    `local` means `cores` workers, by default one per core that this process may use.
    Started clusters speak TLS with certificates of their own, made for this run. An address is used as Dask's configuration says
    (`distributed.comm.tls`). Raises InvalidConfig, MissingExtra, ClusterError.
    """
    place = Where.parse(where)
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"Working on a cluster needs Dask ({error.name} is not installed). Install it with: pip install 'minicarlo[cluster]'"
        ) from error
    with _quiet(), tempfile.TemporaryFile() as log:
        cluster: Any = place.address
        try:
            if place.kind != "address":
                cluster = _start(place, cores or _cores(), log.fileno())
            client = Client(cluster, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
        except ModuleNotFoundError as error:
            raise MissingExtra(
                f"Cluster {where} needs {error.name}, which is not installed. Install it with: pip install 'minicarlo[cluster]'"
            ) from error
        except Exception as error:
            log.seek(0)
            reason = str(error) or type(error).__name__
            said = log.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise ClusterError(f"Cluster {where} cannot be reached or started: {reason}. {said:.300}") from error
        try:
            yield client
        finally:
            with suppress(Exception):  # what is not ended now ends with this process
                client.close(timeout=5)
            if place.kind != "address":
                with suppress(Exception):
                    cluster.close(timeout=20)


def complete(
    client: Client, run: Run, order: Order, missing: Sequence[Shard], accept: Callable[[Shard], None] = lambda shard: None
) -> Iterator[Shard]:
    """Have the workers make the `missing` shards of `run`; yield each when it is there, accepted and recorded.

    Raises what `accept` raises, whatever MinicarloError a worker raises, ClusterError when workers keep dying of a shard or the
    scheduler is lost.
    """
    from distributed import KilledWorker, wait
    from distributed.client import FutureCancelledError
    from distributed.comm.core import CommClosedError

    name, token = f"minicarlo-{secrets.token_hex(8)}", run.folder / f"{TOKEN}{secrets.token_hex(8)}"
    waiting, running, deaths = deque(missing), dict[Any, Shard](), dict.fromkeys(missing, 0)
    token.touch()
    try:
        with _scheduler(client):
            client.register_plugin(_plugin(order, name), name=name)
        while waiting or running:
            with _scheduler(client):
                threads = sum(client.nthreads().values())
                while waiting and len(running) < max(1, _AHEAD * threads):
                    shard = waiting.popleft()
                    running[_submit(client, name, token, shard)] = shard
                with suppress(TimeoutError):
                    wait(list(running), timeout=_SECONDS_BETWEEN_LOOKS, return_when="FIRST_COMPLETED")
            for future in [future for future in running if future.done()]:
                shard = running.pop(future)
                try:
                    made = future.result()
                except CommClosedError as error:
                    raise _lost(error) from error
                except (KilledWorker, FutureCancelledError) as error:
                    if client.status != "running":
                        raise _lost(error) from error
                    deaths[shard] += 1
                    if deaths[shard] == _DEATHS:
                        raise ClusterError(
                            f"{shard.path.name} was lost {_DEATHS} times with the workers that made it ({error}). They may "
                            "run out of memory. Complete shards are kept: repeat the command to go on."
                        ) from error
                    waiting.append(shard)
                    continue
                _take(made, shard)
                accept(shard)
                run.add(shard)
                yield shard
    finally:
        if client.status == "running":
            with suppress(Exception):
                client.cancel(list(running))
                client.unregister_worker_plugin(name)
        token.unlink(missing_ok=True)


@contextmanager
def _scheduler(client: Client) -> Iterator[None]:
    """What goes wrong while the scheduler is spoken to."""
    from distributed import CancelledError

    try:
        with client.as_current():
            yield
    except (CancelledError, OSError, RuntimeError, ValueError) as error:
        raise _lost(error) from error
    if client.status != "running":
        raise _lost(ConnectionError(f"the connection is {client.status}"))


def _lost(error: BaseException) -> ClusterError:
    return ClusterError(
        f"The Dask scheduler was lost ({(str(error) or type(error).__name__):.150}). Complete shards are kept: repeat the "
        "command to go on."
    )


@dataclass(frozen=True)
class _Made:
    """A shard that a worker made: its checksum, and its bytes where the worker does not see the folder."""

    host: str
    sha256: str
    size: int
    content: bytes | None


def work(name: str, token: Path, file: str, start: int, stop: int) -> _Made:
    """Make a shard: what a worker runs."""
    from distributed import get_worker

    order: Order = get_worker().plugins[name].order
    order.check()
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


def _submit(client: Client, name: str, token: Path, shard: Shard) -> Future:
    key = f"{name}-{shard.path.stem}-{secrets.token_hex(4)}"
    return client.submit(work, name, token, shard.path.name, shard.start, shard.stop, key=key, pure=False)


def _plugin(order: Order, name: str) -> Any:  # noqa: ANN401
    from distributed import WorkerPlugin

    class OrderPlugin(WorkerPlugin):  # type: ignore[misc]
        """Carries the order to workers that are there and to those that come later."""

        def __init__(self) -> None:
            self.order, self.name = order, name

    return OrderPlugin()


@contextmanager
def _quiet() -> Iterator[None]:
    """Lost workers are no news here: their shards are made again."""
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "distributed"]
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(place: Where, cores: int, log: int) -> Any:  # noqa: ANN401
    if place.kind in ("slurm", "htcondor"):
        return _start_jobs(place)
    from distributed.security import Security

    security = Security.temporary()
    return _start_local(place.workers or cores, security, log) if place.kind == "local" else _start_ssh(place.hosts, security)


def _start_local(count: int, security: Any, log: int) -> Any:  # noqa: ANN401
    """A scheduler here and workers in processes of their own, which never import the caller's `__main__`."""
    from distributed.deploy.subprocess import SubprocessWorker

    class LocalWorker(SubprocessWorker):  # type: ignore[misc]
        async def _start(self) -> None:
            spec = json.dumps({"cls": self.worker_class, "opts": self.worker_kwargs})
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "dask", "spec", self.scheduler, "--spec", spec),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
                env=os.environ | _tls_variables(*_credentials(security)),
            )

    options = {"worker_kwargs": {"host": "127.0.0.1", "protocol": "tls", "nthreads": 1, "death_timeout": 60}}
    workers = {number: {"cls": LocalWorker, "options": options} for number in range(count)}
    return _specified(workers, security, host="127.0.0.1")


def _start_ssh(hosts: Sequence[str], security: Any) -> Any:  # noqa: ANN401
    """A scheduler here and a worker with one thread per core on each host, which gets the certificate over SSH."""
    import asyncssh
    from distributed.deploy.ssh import Worker

    pem = "\n".join(dict.fromkeys(_credentials(security)))
    path = f".minicarlo-{secrets.token_hex(8)}.pem"

    class SshWorker(Worker):  # type: ignore[misc]
        async def start(self) -> None:
            async with asyncssh.connect(self.address, **self.connect_options) as connection:
                await connection.run(f"umask 077 && cat > {path}", input=pem, check=True)
            variables = _tls_variables(ca_file=path, cert=path, key=path)
            self.remote_python = " ".join(["env", *(f"{name}={value}" for name, value in variables.items()), sys.executable])
            await super().start()

        async def close(self) -> None:
            with suppress(OSError, asyncssh.Error):
                await self.connection.run(f"rm -f {path}")
            await super().close()

    options = {"connect_options": {}, "kwargs": {"protocol": "tls", "death_timeout": 60}}
    workers = {number: {"cls": SshWorker, "options": {"address": host, **options}} for number, host in enumerate(hosts)}
    return _specified(workers, security, host=None)


def _specified(workers: dict[int, dict[str, Any]], security: Any, host: str | None) -> Any:  # noqa: ANN401
    from distributed import Scheduler, SpecCluster

    options = {"host": host, "port": 0, "protocol": "tls://", "security": security, "dashboard": False}
    return SpecCluster(workers, {"cls": Scheduler, "options": options}, security=security, silence_logs=logging.CRITICAL)


def _credentials(security: Any) -> list[str]:  # noqa: ANN401
    """A worker's PEM: authority, certificate, key."""
    found = security.get_tls_config_for_role("worker")
    return [found["ca_file"], found["cert"], found["key"]]


def _tls_variables(ca_file: str, cert: str, key: str) -> dict[str, str]:
    """What tells a worker its certificate: paths, or the PEM itself."""
    section = "DASK_DISTRIBUTED__COMM__"
    return {
        f"{section}REQUIRE_ENCRYPTION": "True",
        f"{section}TLS__CA_FILE": ca_file,
        f"{section}TLS__WORKER__CERT": cert,
        f"{section}TLS__WORKER__KEY": key,
    }


def _start_jobs(place: Where) -> Any:  # noqa: ANN401
    """Batch jobs as Dask's configuration describes them (`jobqueue.slurm`, `jobqueue.htcondor`)."""
    import dask
    import dask_jobqueue
    import platformdirs

    section = f"jobqueue.{place.kind}"
    shared = dask.config.get(f"{section}.shared-temp-directory", None) or platformdirs.user_cache_dir("minicarlo")
    Path(shared).mkdir(parents=True, exist_ok=True)
    kind = {"slurm": dask_jobqueue.SLURMCluster, "htcondor": dask_jobqueue.HTCondorCluster}[place.kind]
    options = dask.config.get(f"{section}.scheduler-options", None) or {}
    return kind(
        n_workers=place.workers or 1,
        security=True,
        shared_temp_directory=shared,
        scheduler_options={"dashboard": False, **options},
    )
