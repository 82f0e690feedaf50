"""Counters of a server under test: what its model computed, read from its metrics for Prometheus.

An answer that was cancelled never tells what it cost; the server does. Understood are this product's metrics and those
of a llama.cpp server that was started with `--metrics`. What is read is of all the server's clients.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Self
from urllib.parse import urlsplit

import msgspec
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from loadtest.dialects import OPEN_TIMEOUT_S
from loadtest.errors import CountersError
from loadtest.http_exchange import ExchangeError, HttpServer

IDLE_TIMEOUT_S = 10.0
"""Seconds that a server gets to end what was cancelled."""
_POLL_S = 0.1
_EXACT_BELOW = 1_000_000
"""llama.cpp writes six digits of a number."""


class _Names(msgspec.Struct, frozen=True, kw_only=True):
    """Which samples are added up."""

    computed: Sequence[str]
    open: Sequence[str]
    is_rounded: bool


_KNOWN = (
    _Names(
        computed=("cloudcomplete_computed_tokens_total",),
        open=("cloudcomplete_num_requests_in_flight", "cloudcomplete_num_requests_running"),
        is_rounded=False,
    ),
    _Names(
        computed=("llamacpp:prompt_tokens_total", "llamacpp:tokens_predicted_total"),
        open=("llamacpp:requests_processing", "llamacpp:requests_deferred"),
        is_rounded=True,
    ),
)


_AHEAD = (
    "prefetches",
    "prefetch_hits",
    "prefetch_tokens",
    "prefetch_used_tokens",
    "accepts",
    "accepts_continued_without_model",
)
"""Counters of this product's work ahead, less `cloudcomplete_` and `_total`."""
_KNOWN_ANSWERS = "cloudcomplete_known_answer_seconds_bucket"


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a server had computed at some moment."""

    num_computed_tokens: int
    """Prompt tokens that its model ran over and tokens it generated, since the server's start."""
    num_open: int
    """Requests that it had in hand."""
    ahead: dict[str, int] = {}
    """What it did ahead of requests, by `_AHEAD`; empty where a server does not tell."""
    known_answers: dict[float, int] = {}
    """Answers that it had, by the seconds within which they left it; empty where a server does not tell."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a page of metrics; raises ValueError when nothing in it tells what was computed."""
        all_samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        samples = {sample.name: sample.value for sample in all_samples}
        for names in _KNOWN:
            if all(name in samples for name in (*names.computed, *names.open)):
                computed = [_exact(samples, name, is_rounded=names.is_rounded) for name in names.computed]
                num_open = sum(int(samples[name]) for name in names.open)
                return cls(
                    num_computed_tokens=sum(computed),
                    num_open=num_open,
                    ahead=_ahead(all_samples),
                    known_answers={
                        float(sample.labels["le"]): int(sample.value)
                        for sample in all_samples
                        if sample.name == _KNOWN_ANSWERS
                    },
                )
        raise ValueError("no counters of computed tokens in it")


class CounterSource:
    """Where a server's metrics are: `http://HOST:PORT`, with the path where it is not `/metrics`."""

    def __init__(self, url: str) -> None:
        """Take an address; raises CountersError for one that is none."""
        self._url = url
        try:
            self._server = HttpServer(url)
        except ValueError:
            raise CountersError(f"the metrics' address is {url!r}; expected http://HOST:PORT") from None
        self._path = "" if urlsplit(url).path.strip("/") else "/metrics"

    async def read(self) -> Reading:
        """Return what the server has computed so far; raises CountersError."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                page = await self._server.get(self._path)
            return Reading.parse(page.decode())
        except TimeoutError:
            problem = f"no answer within {OPEN_TIMEOUT_S:g} s"
        except (ExchangeError, ValueError) as error:
            problem = str(error)
        raise CountersError(
            f"cannot read the metrics at {self._url}: {problem}; expected those of a server of this product with "
            "server.metrics_port, or of llama.cpp with --metrics"
        )

    async def read_idle(self) -> Reading:
        """Return the same once the server has nothing in hand; raises CountersError also when that never comes.

        Between two requests of others a server is idle too: it has to be so twice.
        """
        last: Reading | None = None
        try:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                while True:
                    reading = await self.read()
                    if not reading.num_open and reading == last:
                        return reading
                    last = reading
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise CountersError(
                f"the server at {self._url} had requests in hand for {IDLE_TIMEOUT_S:g} s, so its counters are not of "
                "this run alone; expected a server that nobody else asks"
            ) from None


class ComputedTokens:
    """What a server computes between two moments. `count` and `problem` tell the result: one of them is there."""

    def __init__(self, source: CounterSource | None) -> None:
        self._source = source
        self._before: Reading | None = None
        self.count: int | None = None
        self.ahead: dict[str, int] = {}
        """What the server did ahead of requests meanwhile, as in `Reading`."""
        self.known_answers: dict[float, int] = {}
        """Answers that the server had meanwhile, as in `Reading`."""
        self.problem = "" if source is not None else "no metrics of the server to read; see --metrics"

    async def begin(self) -> None:
        """Read the counters before; raises CountersError, so that it is known before anything is asked."""
        if self._source is not None:
            self._before = await self._source.read_idle()
            self.problem = "the run ended before its counters could be read"

    async def end(self) -> None:
        """Read them again once the server is idle."""
        if self._source is None or self._before is None:
            return
        try:
            after = await self._source.read_idle()
        except CountersError as error:
            self.problem = str(error)
            return
        count = after.num_computed_tokens - self._before.num_computed_tokens
        if count < 0:
            self.problem = "the server's counters went backwards; it was started anew"
        else:
            self.count, self.problem = count, ""
            self.ahead = {name: number - self._before.ahead.get(name, 0) for name, number in after.ahead.items()}
            before = self._before.known_answers
            self.known_answers = {
                bound_s: number - before.get(bound_s, 0) for bound_s, number in after.known_answers.items()
            }

    def known_answer_s(self, percent: float) -> float | None:
        """Return the least bound in s within which `percent` of the answers that the server had left it, if any."""
        counts = sorted(self.known_answers.items())
        if not counts or not counts[-1][1]:
            return None
        return next(bound_s for bound_s, count in counts if count >= percent / 100 * counts[-1][1])


def _ahead(samples: Iterable[Sample]) -> dict[str, int]:
    """Return the sums of the counters of work ahead over their labels; empty when there are none."""
    sums: dict[str, int] = {}
    for sample in samples:
        name = sample.name.removeprefix("cloudcomplete_").removesuffix("_total")
        if name in _AHEAD and sample.name == f"cloudcomplete_{name}_total":
            sums[name] = sums.get(name, 0) + int(sample.value)
    return sums


def _exact(samples: Mapping[str, float], name: str, *, is_rounded: bool) -> int:
    value = samples[name]
    if is_rounded and value >= _EXACT_BELOW:
        raise ValueError(f"{name} is {value:g}, of which the server tells only six digits: start it anew")
    return int(value)
