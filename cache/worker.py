"""A thread that does one job after another, for work that nobody should wait for.

A job that raises is logged and counted, and the thread goes on. Knows nothing of what the jobs do.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Worker:
    """Runs jobs in the order in which they came. May be used from any thread."""

    def __init__(self, name: str) -> None:
        """Start the thread; it does not keep the process alive."""
        self._jobs: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._is_busy = self._is_closed = False
        self.num_failed = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], object]) -> bool:
        """Queue a job; False when the worker is closed."""
        with self._changed:
            if self._is_closed:
                return False
            self._jobs.append(job)
            self._changed.notify_all()
            return True

    def drain(self, *, timeout_s: float) -> bool:
        """Wait until there is nothing left to do; False when it took too long. Not for a job to call."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs and not self._is_busy, timeout_s)

    def close(self, *, timeout_s: float) -> bool:
        """Take no more jobs and let the queued ones end; False when they took too long, they are given up then."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        with self._changed:
            self._jobs.clear()
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._jobs or self._is_closed)
                if not self._jobs:
                    return
                job = self._jobs.popleft()
                self._is_busy = True
            try:
                job()
            except Exception:  # the boundary of a job
                self.num_failed += 1
                logger.exception("a job of %s failed; the next ones are done all the same", self._thread.name)
