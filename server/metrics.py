"""Metrics for Prometheus, over HTTP on a port of their own: what the engine counts, and how soon texts begin.

The suffixes are those that dashboards for inference servers already know. Counters of tokens come from the engine when
somebody asks for them, so they cost a request nothing. Knows no gRPC. `Metrics.open` listens on a thread of its own.
"""

from collections.abc import Iterator
from threading import Thread
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.replicas import Replicas
from engine.types import EngineStats
from server.admission import Admission
from server.lifecycle import Lifecycle
from server.predictor import Kind
from server.prefetch_budget import PrefetchBudget
from server.types import Source, SuggestionEvent

PREFIX = "cloudcomplete_"
FIRST_TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
KNOWN_ANSWER_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1)


class Metrics:
    """The metrics of one server."""

    def __init__(self, lifecycle: Lifecycle, admission: Admission) -> None:
        """Read the engine from `lifecycle` once it is there; before, its counters are 0."""
        self.registry = CollectorRegistry()
        self._counts = _Counts(lifecycle, admission)
        self.registry.register(self._counts)
        self._first_token = Histogram(
            f"{PREFIX}time_to_first_token_seconds",
            "From a request's arrival to its first text, or to its end without any",
            buckets=FIRST_TOKEN_BUCKETS_S,
            registry=self.registry,
        )
        self._answers = Counter(
            f"{PREFIX}answers", "Answers by where they came from", labelnames=["source"], registry=self.registry
        )
        self._suggestions = Counter(
            f"{PREFIX}suggestions",
            "What became of suggestions that clients of sessions told of, by where they came from",
            labelnames=["event", "source"],
            registry=self.registry,
        )
        self._known_answer = Histogram(
            f"{PREFIX}known_answer_seconds",
            "From a request's arrival to its answer, of those that its session or a tier of the cache had",
            buckets=KNOWN_ANSWER_BUCKETS_S,
            registry=self.registry,
        )
        self._prefetches = Counter(
            f"{PREFIX}prefetches", "Requests answered ahead, by what was guessed", ["kind"], registry=self.registry
        )
        self._prefetch_hits = Counter(
            f"{PREFIX}prefetch_hits", "Those that somebody was served of", ["kind"], registry=self.registry
        )
        self._prefetch_tokens, self._prefetch_used_tokens, self._prefetch_prompt_tokens = (
            Counter(f"{PREFIX}{name}", what, registry=self.registry)
            for name, what in (
                ("prefetch_tokens", "Tokens written ahead"),
                ("prefetch_used_tokens", "Those of answers that somebody was served of"),
                ("prefetch_prompt_tokens", "Prompt tokens computed ahead"),
            )
        )
        self._accepts, self._accepts_continued = (
            Counter(f"{PREFIX}{name}", what, registry=self.registry)
            for name, what in (
                ("accepts", "Answers at places right behind a whole suggestion, accepted or typed to its end"),
                ("accepts_continued_without_model", "Those that needed no run of the model any more"),
            )
        )
        self._degraded = Gauge(
            f"{PREFIX}degraded",
            "1 while a part does not work that the server can do without",
            labelnames=["part"],
            registry=self.registry,
        )
        self._serving: tuple[Any, Thread] | None = None

    def watch_budget(self, budget: PrefetchBudget) -> None:
        """Tell what the budget of work ahead learns, too."""
        self._counts.budget = budget

    def observe_first_token(self, seconds: float) -> None:
        """Count one request's time to its first token."""
        self._first_token.observe(seconds)

    def observe_known_answer(self, seconds: float) -> None:
        """Count what an answer took that its session had."""
        self._known_answer.observe(seconds)

    def count_prefetch(self, kind: Kind) -> None:
        """Count a request that is answered ahead."""
        self._prefetches.labels(kind=kind).inc()

    def count_prefetch_hit(self, kind: Kind) -> None:
        """Count one of them that somebody is served of."""
        self._prefetch_hits.labels(kind=kind).inc()

    def count_prefetch_tokens(self, *, num_generated: int, num_prompt: int) -> None:
        """Count what one of them has cost, when it has ended."""
        self._prefetch_tokens.inc(num_generated)
        self._prefetch_prompt_tokens.inc(num_prompt)

    def count_prefetch_used(self, num_tokens: int) -> None:
        """Count the tokens of one that somebody is served of."""
        self._prefetch_used_tokens.inc(num_tokens)

    def set_degraded(self, part: str, *, is_degraded: bool) -> None:
        """Say whether a part works that the server can do without."""
        self._degraded.labels(part=part).set(is_degraded)

    def count_accept(self, *, is_continued: bool) -> None:
        """Count an answer right behind a whole suggestion, and whether it came without the model."""
        self._accepts.inc()
        if is_continued:
            self._accepts_continued.inc()

    def count_answer(self, source: Source) -> None:
        """Count one answer that is whole."""
        self._answers.labels(source=source).inc()

    def count_suggestion(self, event: SuggestionEvent, source: Source) -> None:
        """Count what became of a suggestion."""
        self._suggestions.labels(event=event, source=source).inc()

    def open(self, host: str, port: int) -> int:
        """Serve from now on and return the port; raises OSError. The thread ends with the process, or by `close`."""
        server, thread = start_http_server(port, host, registry=self.registry)
        self._serving = server, thread
        return int(server.server_port)

    def close(self) -> None:
        """Stop serving; blocks for up to half a second. Harmless when nothing is served."""
        if self._serving is not None:
            server, thread = self._serving
            server.shutdown()
            thread.join()
            server.server_close()
            self._serving = None


class _Counts(Collector):
    def __init__(self, lifecycle: Lifecycle, admission: Admission) -> None:
        self._lifecycle = lifecycle
        self._admission = admission
        self.budget: PrefetchBudget | None = None

    def collect(self) -> Iterator[Metric]:
        """Yield everything as it is now; called on the threads that answer."""
        engine = self._lifecycle.opened_engine
        stats = EngineStats() if engine is None else engine.stats()
        num_rejected = stats.num_rejected + self._admission.num_rejected
        for name, what, value in (
            ("num_requests_running", "Requests that the engine works on", stats.num_running),
            ("num_requests_waiting", "Requests that wait for a slot", stats.num_waiting),
            ("num_requests_in_flight", "Requests admitted and not yet ended", self._admission.num_in_flight),
            ("kv_cache_usage_perc", "Share of the KV slots in use, 0 to 1", stats.kv_usage),
            ("sparse_kept_mass", "Share of the attention in the blocks kept, by their scores, 0 to 1", stats.kept_mass),
        ):
            yield GaugeMetricFamily(PREFIX + name, what, value)
        replicas = GaugeMetricFamily(f"{PREFIX}num_replicas", "Engines of this process, by state", labels=["state"])
        for state in ("warming", "ready", "draining"):
            replicas.add_metric([state], self._num_replicas(state))
        yield replicas
        for name, what, value in (
            ("requests_finished", "Requests that got their answer", stats.num_finished),
            ("requests_cancelled", "Requests that their client gave up", stats.num_cancelled),
            ("requests_failed", "Requests that broke on this side", stats.num_failed),
            ("requests_rejected", "Requests for which there was no room", num_rejected),
            ("prefix_cache_queries", "Prompt tokens of ended requests", stats.num_prompt_tokens),
            ("prefix_cache_hits", "Those whose KV was already there", stats.num_reused_tokens),
            ("generation_tokens", "Tokens generated for ended requests", stats.num_generated_tokens),
            (
                "computed_tokens",
                "Tokens the model ran over, of prompts and generated, counted as they happen, for all requests",
                stats.num_computed_tokens,
            ),
            ("sparse_requests", "Requests whose prompts got block-sparse attention", stats.num_sparse),
            ("sparse_blocks_kept", "Blocks that block-sparse attention met", stats.num_kept_blocks),
            ("sparse_blocks_visible", "Blocks that dense attention would have met", stats.num_visible_blocks),
            ("steps", "Rounds of the engine", stats.num_steps),
            ("recompiles", "Programs compiled after warm-up; anything but 0 is a defect", stats.num_recompiles),
        ):
            yield CounterMetricFamily(PREFIX + name, what, value)
        fallbacks = CounterMetricFamily(
            f"{PREFIX}sparse_fallbacks",
            "Requests that should have been block-sparse and were dense, by the reason",
            labels=["reason"],
        )
        for reason, number in stats.num_sparse_fallbacks.items():
            fallbacks.add_metric([reason], number)
        yield fallbacks
        windows = CounterMetricFamily(
            f"{PREFIX}budget_windows",
            "Windows of about a second in which a learned budget had some value, by the context it was asked in",
            labels=["budget", "context", "value"],
        )
        for name, number in (stats.num_budget_windows | self._budget_windows()).items():
            windows.add_metric(name.split("/"), number)
        yield windows

    def _budget_windows(self) -> dict[str, int]:
        return {} if self.budget is None else self.budget.counts

    def _num_replicas(self, state: Literal["warming", "ready", "draining"]) -> int:
        engine = self._lifecycle.opened_engine
        if isinstance(engine, Replicas):
            return engine.count(state)
        return int(state == ("warming" if engine is None else "ready"))
