"""Single flight: of equal requests that run at the same time one asks the model, the others wait for its answer.

Whoever joins first leads. A leader that leaves without an answer, because its client went away, lets the waiting ones
know, and they join again: one of them leads then. Nobody waits for somebody who has left.

Invariants, under the lock: a digest is flown exactly while its leader has neither finished nor left; every future of it
is still to be resolved.
"""

import threading
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from cache.key import Answer


class Flight:
    """One request's part in a flight; a context manager, which leaves at its end."""

    def __init__(self, flights: "Flights", digest: bytes, future: Future[Answer | None] | None) -> None:
        self._flights = flights
        self._digest = digest
        self._future = future

    @property
    def is_leader(self) -> bool:
        """Whether this one has to ask the model, and then to `finish`."""
        return self._future is None

    @property
    def future(self) -> Future[Answer | None]:
        """The leader's answer, or None when it left without: join again. Of this one alone: it may be cancelled.

        With asyncio: `await asyncio.wrap_future(flight.future)`.
        """
        assert self._future is not None, "the leader waits for nobody"
        return self._future

    def finish(self, answer: Answer) -> None:
        """Give everybody who waits the leader's answer. Only the first call counts."""
        assert self.is_leader, "only the leader has an answer"
        self._flights.end(self._digest, self, answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.is_leader:
            self._flights.end(self._digest, self, None)


class Flights:
    """Who waits for whom. May be used from any thread; nothing here waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._leaders: dict[bytes, Flight] = {}
        self._waiting: dict[bytes, list[Future[Answer | None]]] = {}

    def join(self, digest: bytes) -> Flight:
        """Take part in the flight of a digest: as its leader if there is none."""
        with self._lock:
            if digest not in self._leaders:
                leader = self._leaders[digest] = Flight(self, digest, None)
                self._waiting[digest] = []
                return leader
            future: Future[Answer | None] = Future()
            self._waiting[digest].append(future)
            return Flight(self, digest, future)

    def end(self, digest: bytes, leader: Flight, answer: Answer | None) -> None:
        """End a leader's flight; nothing happens when it has ended already."""
        with self._lock:
            if self._leaders.get(digest) is not leader:
                return
            del self._leaders[digest]
            waiting = self._waiting.pop(digest)
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(answer)

    def check_integrity(self) -> None:
        """Assert the invariants."""
        with self._lock:
            assert self._leaders.keys() == self._waiting.keys(), "somebody waits for a flight without a leader"
            assert not any(
                future.done() and not future.cancelled() for futures in self._waiting.values() for future in futures
            )
