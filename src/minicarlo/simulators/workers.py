"""Sessions in fresh processes of their own, so that the caller's process stays clean and survives whatever they do.

The processes are started anew rather than forked, and never import the caller's `__main__`: scripts and notebooks need no
guard. They talk over a socket each; when the caller dies they see its end and leave.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import IO, Any

from minicarlo.errors import MinicarloError, SimulationError
from minicarlo.simulators.base import Attributes, Batch, Setup, Simulator
from minicarlo.simulators.tasks import Task

_PROGRAM = "import sys; sys.path[:] = {path!r}; from minicarlo.simulators import workers; workers.serve({handle})"


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection[Any, Any]
    log: IO[bytes]
    task: tuple[int, Task] | None = None


class Workers:
    """A context manager that runs one session of `simulator` in each of `jobs` processes."""

    def __init__(self, simulator: Simulator, setup: Setup, environment: Mapping[str, str], jobs: int) -> None:
        self._simulator = simulator
        self._order = pickle.dumps((simulator, setup))
        self._environment = {**os.environ, **environment}
        self._jobs = jobs
        self._workers: dict[Connection[Any, Any], _Worker] = {}
        self._idle: list[_Worker] = []
        self.provenance: Attributes = {}

    def __enter__(self) -> Workers:
        try:
            for _ in range(self._jobs):
                self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.process.kill()  # nothing in a worker is worth saving, and Geant4's own clean-up may crash
        for worker in self._workers.values():
            worker.process.wait()
            worker.connection.close()
            worker.log.close()

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Batch]]:
        """Yield each task with its events, in the order of the tasks, while the workers are at most 4 tasks each ahead.

        `provenance` is known from the first result on. May be called again when all is done. Raises SimulationError when a
        worker dies, and whatever MinicarloError a session raises.
        """
        queue = enumerate(tasks)
        upcoming = next(queue, None)
        finished: dict[int, tuple[Task, Batch]] = {}
        emitted = 0
        while upcoming is not None or finished or any(worker.task for worker in self._workers.values()):
            while upcoming is not None and self._idle and upcoming[0] < emitted + 4 * self._jobs:
                self._assign(self._idle.pop(), upcoming)
                upcoming = next(queue, None)
            for connection in wait([c for c, worker in self._workers.items() if worker not in self._idle]):
                worker = self._workers[connection]  # type: ignore[index]
                message = self._receive(worker)
                if worker.task is None:
                    self.provenance = message
                else:
                    finished[worker.task[0]] = worker.task[1], message
                    worker.task = None
                self._idle.append(worker)
            while emitted in finished:
                yield finished.pop(emitted)
                emitted += 1

    def _start(self) -> None:
        ours, theirs = Pipe()
        log = tempfile.TemporaryFile()  # nameless: a kill leaves nothing behind
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM.format(path=sys.path, handle=theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # Geant4 greets and chats here
                stderr=log,
                pass_fds=[theirs.fileno()],
                env=self._environment,
            )
        worker = _Worker(process, ours, log)
        self._workers[ours] = worker
        with suppress(BrokenPipeError, ConnectionResetError):  # a worker that died at once is noticed when read from
            ours.send_bytes(self._order)

    def _assign(self, worker: _Worker, task: tuple[int, Task]) -> None:
        worker.task = task
        with suppress(BrokenPipeError, ConnectionResetError):
            worker.connection.send(task[1].primaries)

    def _receive(self, worker: _Worker) -> Any:  # noqa: ANN401
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            raise SimulationError(_obituary(worker, self._simulator)) from None
        if isinstance(message, MinicarloError):
            raise message
        return message


def serve(handle: int) -> None:
    """Be a worker: what its process runs. `handle` is the file descriptor of the socket to the caller."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, who ends the workers
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection: Connection[Any, Any] = Connection(handle)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the caller is gone
        try:
            simulator, setup = pickle.loads(connection.recv_bytes())
            session = simulator.open(setup)
            connection.send(session.provenance())
            while True:
                connection.send(session.run(connection.recv()))
        except MinicarloError as error:
            connection.send(error)
        except (EOFError, OSError):
            raise
        except Exception:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    os._exit(0)  # past Geant4's destructors, which may crash


def _obituary(worker: _Worker, simulator: Simulator) -> str:
    status = worker.process.wait()
    cause = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
    where = "while the simulation was being set up"
    if worker.task is not None:
        task = worker.task[1]
        where = f"at events {task.first} to {task.first + len(task.primaries) - 1}"
    worker.log.seek(0)
    log = worker.log.read().decode(errors="replace")
    words = [line.strip() for line in log.splitlines() if line.strip()]
    reason = simulator.explain(log) or (f"It wrote: {words[-1]:.300}." if words else "")
    if status == -signal.SIGKILL:
        reason = f"Memory may have run out: try fewer jobs. {reason}"
    return f"A simulation process {cause} {where}; only complete shards are kept. {reason}"
