"""Several engines behind one door: `CompletionEngine` for a server, live growth and shrinkage for the allocator.

A request of a session goes to the same replica while the replicas stay the same, since its KV is there: by rendezvous
hashing, so that a replica that comes or goes moves only the sessions that are its own. A request without a session goes
where the fewest are open. A replica that is full, stopping or lost is passed over for the next in the same order.

    warming → ready → draining → gone          lost: its engine ended by itself

Invariants (`check_integrity`): an accepted request is open at exactly one replica until its last output; a draining
replica gets no new ones and is closed when its last one has ended, so none is lost. Knows no device and no network.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Literal

import msgspec

from engine.errors import EngineClosedError, QueueFullError, RequestError
from engine.types import CompletionEngine, EngineStats, Output, Request, Sink

logger = logging.getLogger(__name__)

ReplicaState = Literal["warming", "ready", "draining", "lost"]

MakeEngine = Callable[[int], CompletionEngine]
"""(replica) -> a warm engine; blocks for seconds. Replicas are numbered from 0 and no number comes twice."""

_GAUGES = ("num_slots", "num_running", "num_waiting", "num_stored_blocks")
_BY_NAME = ("num_sparse_fallbacks", "num_budget_windows")
"""Counters of several things, each by its name."""


class ReplicaStats(msgspec.Struct, frozen=True, kw_only=True):
    """One replica at this moment."""

    replica: int
    state: ReplicaState
    num_open: int
    """Requests that were accepted and have not ended."""
    engine: EngineStats


class _Replica:
    def __init__(self, number: int) -> None:
        self.number = number
        self.state: ReplicaState = "warming"
        self.engine: CompletionEngine | None = None
        self.open: set[str] = set()


class Replicas:
    """A router over engines (`types.CompletionEngine`). All methods may be called from any thread."""

    def __init__(self, make: MakeEngine, num_replicas: int) -> None:
        """Make the first engines one after the other; blocks until all are ready, raises what `make` raises."""
        assert num_replicas >= 1, "no replica"
        self._make = make
        # Guarded by the lock; `_changed` tells of an end of a request and of every new state.
        self._changed = threading.Condition(threading.Lock())
        self._replicas: dict[int, _Replica] = {}
        self._places: dict[str, _Replica] = {}
        """Where each open request is."""
        self._next_number = 0
        self._past = EngineStats()
        """Counters of replicas that are gone."""
        self._is_closed = False
        self._identity = ""
        try:
            for _ in range(num_replicas):
                self._warm(self._register())
        except BaseException:
            self.close(timeout_s=0.0)
            raise

    # --- CompletionEngine ------------------------------------------------------------------------------------------

    @property
    def is_alive(self) -> bool:
        """False once no replica is left that answers or will; those that ended by themselves are told of here."""
        with self._changed:
            self._notice_lost()
            going_on = any(replica.state in ("warming", "ready") for replica in self._replicas.values())
            return going_on and not self._is_closed

    @property
    def identity(self) -> str:
        """See `CompletionEngine.identity`: all replicas run the same model in the same way."""
        return self._identity

    def submit(self, request: Request, sink: Sink) -> None:
        """Accept a request at the replica of its session, or at the next that takes it."""
        refused: QueueFullError | None = None
        with self._changed:
            if request.request_id in self._places:
                raise RequestError(
                    f"request_id {request.request_id!r} is in use; expected one that no open request has"
                )
            order = self._order(request)
        for replica in order:
            if not self._reserve(replica, request.request_id):
                continue
            assert replica.engine is not None, "ready without an engine"
            try:
                replica.engine.submit(request, self._watch(replica, request.request_id, sink))
            except QueueFullError as error:
                self._release(replica, request.request_id)
                refused = error if refused is None or error.retry_after_s < refused.retry_after_s else refused
            except EngineClosedError:
                self._release(replica, request.request_id)
            except BaseException:
                self._release(replica, request.request_id)
                raise
            else:
                return
        raise refused or EngineClosedError("no replica accepts requests; send it again later or to another server")

    def cancel(self, request_id: str) -> None:
        """End a request within one step; unknown or ended ids are ignored."""
        with self._changed:
            replica = self._places.get(request_id)
        if replica is not None and replica.engine is not None:
            replica.engine.cancel(request_id)

    def stats(self) -> EngineStats:
        """Return the sums over all replicas; counters go on counting those that are gone."""
        stats = [replica.engine for replica in self.replica_stats()]
        with self._changed:
            return _sum([self._past, *stats])

    def close(self, *, timeout_s: float) -> None:
        """Refuse new requests, let accepted ones end, fail what is left after `timeout_s`, stop. Twice is harmless."""
        with self._changed:
            self._is_closed = True
            engines = [replica.engine for replica in self._replicas.values() if replica.engine is not None]
        closing = [
            threading.Thread(target=engine.close, kwargs={"timeout_s": timeout_s}, name="close-replica")
            for engine in engines
        ]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()

    # --- for the allocator -----------------------------------------------------------------------------------------

    def add(self) -> int:
        """Start one more replica on a thread of its own and return its number; it is `warming` until it is ready.

        If it cannot be made, it disappears again and the log says why. Raises EngineClosedError after `close`.
        """
        replica = self._register()

        def work() -> None:
            try:
                self._warm(replica)
            except Exception:
                logger.exception("replica %d could not be made", replica.number)

        threading.Thread(target=work, name=f"warm-replica-{replica.number}", daemon=True).start()
        return replica.number

    def drain(self, replica: int) -> None:
        """Send a ready replica no more requests, and close it once its open ones have ended; returns at once.

        Raises ValueError for one that is not ready, or is the last that is.
        """
        with self._changed:
            self._notice_lost()
            ready = [number for number, found in self._replicas.items() if found.state == "ready"]
            if replica not in ready:
                raise ValueError(f"replica {replica} is not ready; expected one of {ready}")
            if len(ready) == 1:
                raise ValueError(f"replica {replica} is the last that is ready; expected another to take its requests")
            found = self._replicas[replica]
            found.state = "draining"
            self._changed.notify_all()
        threading.Thread(target=self._finish, args=(found,), name=f"drain-replica-{replica}", daemon=True).start()

    def replica_stats(self) -> list[ReplicaStats]:
        """Return every replica that is not gone."""
        with self._changed:
            self._notice_lost()
            replicas = list(self._replicas.values())
        return [
            ReplicaStats(
                replica=replica.number,
                state=replica.state,
                num_open=len(replica.open),
                engine=replica.engine.stats() if replica.engine is not None else EngineStats(),
            )
            for replica in replicas
        ]

    def count(self, state: ReplicaState) -> int:
        """Count the replicas in a state."""
        with self._changed:
            self._notice_lost()
            return sum(replica.state == state for replica in self._replicas.values())

    def check_integrity(self) -> None:
        """Assert the invariants."""
        with self._changed:
            for request_id, replica in self._places.items():
                assert request_id in replica.open, f"{request_id} is open nowhere"
            num_open = sum(len(replica.open) for replica in self._replicas.values())
            assert num_open == len(self._places), "a request is open at two replicas"

    # --- within ----------------------------------------------------------------------------------------------------

    def _register(self) -> _Replica:
        with self._changed:
            if self._is_closed:
                raise EngineClosedError("the replicas are closing; expected no more of them")
            replica = self._replicas[self._next_number] = _Replica(self._next_number)
            self._next_number += 1
            return replica

    def _warm(self, replica: _Replica) -> None:
        try:
            engine = self._make(replica.number)
        except BaseException:
            with self._changed:
                self._replicas.pop(replica.number, None)
                self._changed.notify_all()
            raise
        with self._changed:
            replica.engine, replica.state = engine, "ready"
            self._identity = self._identity or engine.identity
            is_closed = self._is_closed
            self._changed.notify_all()
        if is_closed:
            engine.close(timeout_s=0.0)

    def _finish(self, replica: _Replica) -> None:
        """Wait for a draining replica's last request, then close it."""
        with self._changed:
            self._changed.wait_for(lambda: not replica.open)
        assert replica.engine is not None, "draining without an engine"
        replica.engine.close(timeout_s=0.0)
        with self._changed:
            self._past = _sum([self._past, _counters(replica.engine.stats())])
            self._replicas.pop(replica.number, None)
            self._changed.notify_all()

    def _notice_lost(self) -> None:
        """Take note of engines that ended by themselves; their threads have ended their requests. Holds the lock."""
        for replica in self._replicas.values():
            if self._is_closed or replica.state != "ready" or replica.engine is None or replica.engine.is_alive:
                continue
            replica.state = "lost"
            logger.error("replica %d was lost: its engine ended by itself; see its error above", replica.number)
            self._changed.notify_all()

    def _order(self, request: Request) -> list[_Replica]:
        """Return the ready replicas, the one to ask first first. Holds the lock."""
        if self._is_closed:
            return []
        ready = [replica for replica in self._replicas.values() if replica.state == "ready"]
        if not request.session:
            return sorted(ready, key=lambda replica: (len(replica.open), replica.number))
        session = f"{len(request.tenant)} {request.tenant} {request.session}"
        return sorted(ready, key=lambda replica: _weight(session, replica.number), reverse=True)

    def _reserve(self, replica: _Replica, request_id: str) -> bool:
        with self._changed:
            if replica.state != "ready" or self._is_closed or request_id in self._places:
                return False
            replica.open.add(request_id)
            self._places[request_id] = replica
            return True

    def _release(self, replica: _Replica, request_id: str) -> None:
        with self._changed:
            replica.open.discard(request_id)
            self._places.pop(request_id, None)
            self._changed.notify_all()

    def _watch(self, replica: _Replica, request_id: str, sink: Sink) -> Sink:
        def take(output: Output) -> None:
            if output.finish is not None:
                self._release(replica, request_id)
            sink(output)

        return take


def _weight(session: str, replica: int) -> bytes:
    return blake2b(f"{replica} {session}".encode(), digest_size=8).digest()


def _counters(stats: EngineStats) -> EngineStats:
    """Return the stats without what is true of this moment only."""
    return msgspec.structs.replace(stats, kv_usage=0.0, **dict.fromkeys(_GAUGES, 0))


def _sum(stats: list[EngineStats]) -> EngineStats:
    names = [field.name for field in msgspec.structs.fields(EngineStats)]
    sums: dict[str, Any] = {}
    for name in names:
        if name in _BY_NAME:
            sums[name] = dict(sum((Counter(getattr(one, name)) for one in stats), Counter()))
        else:
            sums[name] = sum(getattr(one, name) for one in stats)
    held = sum(one.kv_usage * one.num_slots for one in stats)
    usage = held / sums["num_slots"] if sums["num_slots"] else 0.0
    return EngineStats(**sums | {"kv_usage": usage, "max_context": max(one.max_context for one in stats)})
