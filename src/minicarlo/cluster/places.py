"""Where to work: a cluster that runs, or one that is started here, and a connection to it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicarlo.errors import ClusterError, InvalidConfig, MissingExtra

if TYPE_CHECKING:
    from distributed import Client

FORMS = "local[:WORKERS], ssh:HOST,HOST, slurm[:WORKERS], htcondor[:WORKERS], tcp://HOST:PORT or tls://HOST:PORT"

_SECONDS_TO_CONNECT = 60.0
_SECONDS_BETWEEN_SSH = (1.0, 5.0)


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
    """A scheduler here and a worker with one thread per core on each host, which is told its certificate over SSH."""
    import asyncssh
    import dask
    from distributed.deploy.ssh import Process

    pem = "\n".join(dict.fromkeys(_credentials(security)))
    variables = {
        **_tls_variables(pem, pem, pem),
        "DASK_INTERNAL_INHERIT_CONFIG": dask.config.serialize(dask.config.global_config),
    }
    exports = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]

    class SshWorker(Process):  # type: ignore[misc]
        def __init__(self, scheduler: str, address: str, name: Any = None) -> None:  # noqa: ANN401
            super().__init__()
            spec = json.dumps({"cls": "distributed.Nanny", "opts": {"protocol": "tls", "death_timeout": 60}})
            worker = shlex.join([sys.executable, "-m", "dask", "spec", scheduler, "--spec", spec])
            self.address, self.script = address, "".join([*exports, f"exec {worker} </dev/null\n"])

        async def start(self) -> None:
            for seconds in _SECONDS_BETWEEN_SSH:  # a host that is busy now and then closes a connection as it opens
                try:
                    await self._run()
                    return
                except (asyncssh.ConnectionLost, ConnectionResetError):
                    await asyncio.sleep(seconds)
            await self._run()

        async def _run(self) -> None:
            self.connection = await asyncssh.connect(self.address)
            self.proc = await self.connection.create_process("sh -s")  # a command line could be read by other users
            self.proc.stdin.write(self.script)
            self.proc.stdin.write_eof()
            said = []
            async for line in self.proc.stderr:
                said.append(line)
                if "worker at" in line:
                    await super().start()
                    return
            raise OSError(f"no worker started on {self.address}: {''.join(said[-1:]).strip() or 'it said nothing'}")

    return _specified({n: {"cls": SshWorker, "options": {"address": host}} for n, host in enumerate(hosts)}, security, host=None)


def _specified(workers: dict[int, dict[str, Any]], security: Any, host: str | None) -> Any:  # noqa: ANN401
    from distributed import Scheduler, SpecCluster

    options = {"host": host, "port": 0, "protocol": "tls://", "security": security, "dashboard": False}
    options["dashboard_address"] = "127.0.0.1:0"  # its web server is there without a dashboard, too
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
        scheduler_options={"dashboard": False, "dashboard_address": "127.0.0.1:0", **options},
    )
