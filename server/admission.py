"""Who gets in: one request is checked against the limits, and the number of them in flight is bounded.

Knows no transport and no engine. Invariant: `num_in_flight` is the number of `place()` blocks entered and not left.
"""

import asyncio
import math
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

from engine.types import SamplingParams
from server.config import ServerConfig
from server.errors import BusyError, DeadlineError, InvalidRequestError
from server.types import CompletionRequest, SamplingOptions

MAX_TEMPERATURE = 2.0
MAX_SEED = 2**31 - 1
MAX_TOP_K = 2**31 - 1
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_NAME_CHARS = 128
MAX_PATH_CHARS = 1024
_DURATION_WEIGHT = 0.1
"""Weight of the newest request in the moving average of durations: about the last ten count."""


class Admission:
    """Checks requests and counts those in flight. Used from the event loop's thread only."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._num_in_flight = 0
        self.num_rejected = 0
        """Requests for which there was no place."""
        self._duration_s = 0.5
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_in_flight(self) -> int:
        """Requests admitted and not yet ended."""
        return self._num_in_flight

    def check(self, request: CompletionRequest, *, deadline_s: float | None) -> SamplingParams:
        """Return the request's sampling with defaults filled in; raises InvalidRequestError or DeadlineError."""
        if deadline_s is not None and deadline_s <= 0:
            raise DeadlineError(
                "the deadline had passed before the request was read; expected time left; set a longer timeout"
            )
        self._check_text(request)
        return self._resolve_sampling(request.sampling)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Occupy one of the places for requests in flight; raises BusyError when all are taken."""
        limit = self._config.max_in_flight
        if self._num_in_flight >= limit:
            self.num_rejected += 1
            raise BusyError(
                f"the requests in flight are at their limit of {limit}; try again in {self._duration_s:.2f} s, "
                "or raise server.max_in_flight",
                retry_after_s=self._duration_s,
            )
        self._num_in_flight += 1
        self._idle.clear()
        started_s = time.monotonic()
        try:
            yield
        finally:
            self._duration_s += _DURATION_WEIGHT * (time.monotonic() - started_s - self._duration_s)
            self._num_in_flight -= 1
            if self._num_in_flight == 0:
                self._idle.set()

    async def wait_idle(self, *, timeout_s: float) -> bool:
        """Wait until nothing is in flight; returns whether that came to be within `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _check_text(self, request: CompletionRequest) -> None:
        config = self._config
        num_bytes = sum(len(text.encode()) for text in (request.before, request.after))
        num_bytes += sum(len(chunk.text.encode()) for chunk in request.context)
        if num_bytes > config.max_text_bytes:
            raise InvalidRequestError(
                f"prefix, suffix and context have {num_bytes:,} bytes; expected at most {config.max_text_bytes:,}; "
                "send the text around the cursor, or raise server.max_text_bytes"
            )
        if len(request.context) > config.max_context_chunks:
            raise InvalidRequestError(
                f"the request has {len(request.context)} context chunks; expected at most {config.max_context_chunks}; "
                "send the most useful ones, or raise server.max_context_chunks"
            )
        for name, text, limit in (
            ("request_id", request.request_id, MAX_NAME_CHARS),
            ("session_id", request.session_id, MAX_NAME_CHARS),
            ("language", request.language, MAX_NAME_CHARS),
            ("path", request.path, MAX_PATH_CHARS),
            *((f"context[{i}].path", chunk.path, MAX_PATH_CHARS) for i, chunk in enumerate(request.context)),
        ):
            if len(text) > limit:
                raise InvalidRequestError(
                    f"{name} has {len(text):,} characters; expected at most {limit:,}; send a shorter one"
                )
            if not text.isprintable():
                raise InvalidRequestError(
                    f"{name} is {text!r}; expected printable characters without line breaks; send it without them"
                )

    def _resolve_sampling(self, options: SamplingOptions) -> SamplingParams:
        config = self._config
        temperature = 0.0 if options.temperature is None else options.temperature
        if not 0 <= temperature <= MAX_TEMPERATURE:  # also false for NaN
            raise InvalidRequestError(
                f"temperature is {temperature}; expected 0 (greedy) to {MAX_TEMPERATURE:g}; 0 is greedy"
            )
        top_k = 0 if options.top_k is None else options.top_k
        if not 0 <= top_k <= MAX_TOP_K:
            raise InvalidRequestError(f"top_k is {top_k}; expected 0 (all tokens) or more; leave it out to keep all")
        top_p = 1.0 if options.top_p is None else options.top_p
        if math.isnan(top_p) or not 0 < top_p <= 1:
            raise InvalidRequestError(f"top_p is {top_p}; expected above 0 and at most 1; leave it out to keep all")
        seed = secrets.randbelow(MAX_SEED + 1) if options.seed is None else options.seed
        if not 0 <= seed <= MAX_SEED:
            raise InvalidRequestError(f"seed is {seed}; expected 0 to {MAX_SEED}; leave it out for a random one")
        max_tokens = config.default_max_tokens if options.max_tokens is None else options.max_tokens
        if not 1 <= max_tokens <= config.greatest_max_tokens:
            raise InvalidRequestError(
                f"max_tokens is {max_tokens}; expected 1 to {config.greatest_max_tokens}; "
                "ask for fewer, or raise server.greatest_max_tokens"
            )
        if len(options.stop) > MAX_STOPS:
            raise InvalidRequestError(
                f"the request has {len(options.stop)} stop texts; expected at most {MAX_STOPS}; send fewer"
            )
        for i, stop in enumerate(options.stop):
            if not 1 <= len(stop) <= MAX_STOP_CHARS:
                raise InvalidRequestError(
                    f"stop[{i}] has {len(stop)} characters; expected 1 to {MAX_STOP_CHARS}; leave it out or shorten it"
                )
        return SamplingParams(
            temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, max_tokens=max_tokens, stop=options.stop
        )
