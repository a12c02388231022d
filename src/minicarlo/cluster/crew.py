"""Tasks for the workers of a cluster, each of which has an order that says how they are done.

What comes of a task does not depend on who does it, so that one that is done twice, or by two workers at once, does no harm.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from minicarlo.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client

_AHEAD = 2  # tasks per thread of the cluster that are handed out
_DEATHS = 10  # workers that one task may outlive
_SECONDS_BETWEEN_LOOKS = 1.0

Task = TypeVar("Task")
Result = TypeVar("Result")


class Order(Protocol):
    """What a worker must know to do any task; it is sent to every worker once."""

    def check(self) -> None:
        """Raise ClusterError if this worker would do something else than the process that asks. Called before every task."""
        ...


@dataclass
class _Job:
    task: Any
    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    deaths: int = 0


class Crew:
    """The workers of a cluster under an order, those that come later too; a context manager, which ends what is under way.

    A task is done again when its worker dies. All methods raise ClusterError when the scheduler is lost.
    """

    def __init__(self, client: Client, order: Order) -> None:
        self._client, self._name = client, f"minicarlo-{secrets.token_hex(8)}"
        self._running: dict[Any, _Job] = {}
        with _scheduler(client):
            client.register_plugin(_plugin(order, self._name), name=self._name)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()
        if self._client.status == "running":
            with suppress(Exception):
                self._client.unregister_worker_plugin(self._name)

    @property
    def threads(self) -> int:
        """Tasks that the workers do at the same time."""
        with _scheduler(self._client):
            return int(sum(self._client.nthreads().values()))

    @property
    def busy(self) -> bool:
        """Whether any task is under way."""
        return bool(self._running)

    @property
    def has_room(self) -> bool:
        """Whether the workers should have more tasks in store."""
        return len(self._running) < max(1, _AHEAD * self.threads)

    def submit(self, task: Any, name: str, function: Callable[..., Any], *arguments: Any) -> None:  # noqa: ANN401
        """Have a worker call `function` with its order and `arguments`; `name` is what messages call the task."""
        self._submit(_Job(task, name, function, arguments))

    def finished(self) -> Iterator[tuple[Any, Any]]:
        """Tasks that have ended, within a second, and what came of them; there may be none yet.

        Raises whatever MinicarloError a worker raises, and ClusterError when workers keep dying of a task.
        """
        from distributed import KilledWorker, wait
        from distributed.client import FutureCancelledError
        from distributed.comm.core import CommClosedError

        with _scheduler(self._client), suppress(TimeoutError):
            wait(list(self._running), timeout=_SECONDS_BETWEEN_LOOKS, return_when="FIRST_COMPLETED")
        for future in [future for future in self._running if future.done()]:
            job = self._running.pop(future)
            try:
                result = future.result()
            except CommClosedError as error:
                raise _lost(error) from error
            except (KilledWorker, FutureCancelledError) as error:
                if self._client.status != "running":
                    raise _lost(error) from error
                job.deaths += 1
                if job.deaths == _DEATHS:
                    raise ClusterError(
                        f"{job.name:.100} was lost {_DEATHS} times with the workers that made it ({error}). They may "
                        "run out of memory. What is complete is kept: repeat the command to go on."
                    ) from error
                self._submit(job)
                continue
            yield job.task, result

    def map(
        self,
        function: Callable[[Any, Task], Result],
        tasks: Iterable[Task],
        *,
        name: Callable[[Task], str] = str,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Iterator[Result]:
        """What `function` makes of the order and each of `tasks`, in their order; they are read a little ahead.

        `name` is what messages call a task; `meanwhile` is called every second, and may end it all by raising. Raises what
        `finished` raises. Nothing else may be under way.
        """
        queue = enumerate(tasks)
        upcoming = next(queue, None)
        done: dict[int, Result] = {}
        emitted = 0
        try:
            while upcoming is not None or self.busy:
                while upcoming is not None and self.has_room:
                    number, task = upcoming
                    self.submit(number, name(task), function, task)
                    upcoming = next(queue, None)
                meanwhile()
                for number, result in self.finished():
                    done[number] = result
                    while emitted in done:
                        yield done.pop(emitted)
                        emitted += 1
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Forget all tasks that are under way."""
        if self._running and self._client.status == "running":
            with suppress(Exception):
                self._client.cancel(list(self._running))
        self._running.clear()

    def _submit(self, job: _Job) -> None:
        key = f"{self._name}-{secrets.token_hex(8)}"
        with _scheduler(self._client), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph")
            future = self._client.submit(work, self._name, job.function, *job.arguments, key=key, pure=False)
        self._running[future] = job


def work(name: str, function: Callable[..., Result], *arguments: Any) -> Result:  # noqa: ANN401
    """Do a task: what a worker runs."""
    from distributed import get_worker

    order: Order = get_worker().plugins[name].order
    order.check()
    return function(order, *arguments)


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
        f"The Dask scheduler was lost ({(str(error) or type(error).__name__):.150}). What is complete is kept: repeat the "
        "command to go on."
    )


def _plugin(order: Order, name: str) -> Any:  # noqa: ANN401
    from distributed import WorkerPlugin

    class OrderPlugin(WorkerPlugin):  # type: ignore[misc]
        """Carries the order to workers that are there and to those that come later."""

        def __init__(self) -> None:
            self.order, self.name = order, name

    return OrderPlugin()
