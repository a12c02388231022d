"""Streams for runtimes without an asynchronous queue of their own: a thread for each."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from minicarlo.engines.base import Array, CompiledGenerator, Key


class ThreadedGenerator(CompiledGenerator):
    """A generator whose inferences block: `streams` threads wait for them, each inference having `threads` threads."""

    def __init__(self, batch: int | None, streams: int, threads: int) -> None:
        if min(streams, threads, batch or 1) < 1:
            raise ValueError("batch, streams and threads must be at least 1")
        self.batch, self.streams, self.threads = batch, streams, threads
        self._pool = ThreadPoolExecutor(streams, thread_name_prefix="stream", initializer=self._begin)

    def _begin(self) -> None:
        """Called once in the thread of each stream."""

    @abstractmethod
    def _infer(self, latent: Array, energy: Array) -> Array:
        """Samples of one inference of (n, L) and (n, 1), n being `batch` where that is set; in the thread of a stream."""

    def run(self, latent: Array, incident_energy: Array) -> Array:
        """See CompiledGenerator."""
        step = self.batch or max(len(latent), 1)
        starts = range(0, len(latent), step)
        pieces = ((start, latent[start : start + step], incident_energy[start : start + step]) for start in starts)
        parts = [samples for _, samples in self._map(pieces, 1)]
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def map(self, batches: Iterable[tuple[Key, Array, Array]]) -> Iterator[tuple[Key, Array]]:
        """See CompiledGenerator."""
        return self._map(batches, 2 * self.streams if self.streams > 1 else 1)

    def _map(self, batches: Iterable[tuple[Key, Array, Array]], depth: int) -> Iterator[tuple[Key, Array]]:
        running: deque[tuple[Key, int, Future[Array]]] = deque()

        def finished() -> tuple[Key, Array]:
            key, count, future = running.popleft()
            return key, future.result()[:count]

        try:
            for key, latent, energy in batches:
                if len(running) == depth:
                    yield finished()
                running.append((key, len(latent), self._pool.submit(self._infer, *fitted(latent, energy, self.batch))))
            while running:
                yield finished()
        finally:
            left = [future for _, _, future in running if not future.cancel()]
            wait(left)  # left behind by an error or by a caller who had enough


def fitted(latent: Array, energy: Array, batch: int | None) -> tuple[Array, Array]:
    """Copies (batch, L) and (batch, 1), the last event being repeated when there are fewer; ValueError when there are more."""
    latent = np.array(latent, np.float32, order="C")
    energy = np.array(energy, np.float32, order="C").reshape(-1, 1)
    count = len(latent)
    if len(energy) != count or (batch is not None and not 0 < count <= batch):
        raise ValueError(f"{count} latents and {len(energy)} energies do not fit a batch of {batch}")
    if batch is not None and count < batch:
        latent = np.concatenate([latent, np.broadcast_to(latent[-1:], (batch - count, latent.shape[1]))])
        energy = np.concatenate([energy, np.broadcast_to(energy[-1:], (batch - count, 1))])
    return latent, energy
