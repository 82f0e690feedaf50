"""What a live fleet tells: metrics of one or many servers, joined and differenced to intervals.

`Telemetry.look` gives an `Interval`: what the controller decides by, what is recorded, and what `retrain-policy` learns
from. A server is an address; one that is new, or was started again, is counted from its second reading on. Rates are of
requests that reached an engine, since answers from a session or a cache cost no replica anything. Knows no policy.
"""

import logging
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import msgspec
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.parser import text_string_to_metric_families

from orchestration.allocator.controller import LiveState
from orchestration.allocator.errors import TelemetryError

logger = logging.getLogger(__name__)

PREFIX = "cloudcomplete_"
_TIMEOUT_S = 2.0
_FIRST_TOKEN = f"{PREFIX}time_to_first_token_seconds"


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What one server has counted since its start, and its gauges of this moment."""

    arrived: float
    """Requests that came to an engine, whatever became of them."""
    answered: float
    cancelled: float
    rejected: float
    first_tokens: float
    late: float
    """First tokens after the SLO."""
    prompt_tokens: float
    """Of requests that have ended, like the next two."""
    reused_tokens: float
    generated_tokens: float
    running: float
    waiting: float
    ready: float
    """Replicas that serve."""
    warming: float


_GAUGES = ("running", "waiting", "ready", "warming")


class Interval(Counts, frozen=True, kw_only=True):
    """What a fleet counted in one interval, and its gauges at the end of it."""

    time_s: float
    """Its end, in Unix time."""
    length_s: float

    @property
    def live(self) -> LiveState:
        """What the controller decides by; requests that were rejected are late, and still run what came and waits."""
        asked = self.first_tokens + self.rejected
        return LiveState(
            rate=self.arrived / self.length_s,
            throughput=self.answered / self.length_s,
            waiting=self.waiting,
            ready=round(self.ready),
            warming=round(self.warming),
            late_share=(self.late + self.rejected) / asked if asked else 0.0,
        )


def read_counts(families: Iterable[Metric], *, slo_s: float) -> Counts:
    """Read a server's metrics; raises TelemetryError where they are not a server's of this product."""
    samples: dict[str, float] = {}
    buckets: list[tuple[float, float]] = []
    for family in families:
        for sample in family.samples:
            if sample.name == f"{_FIRST_TOKEN}_bucket":
                buckets.append((float(sample.labels["le"]), sample.value))
            else:
                state = sample.labels.get("state", "")
                samples[sample.name.removeprefix(PREFIX) + (f":{state}" if state else "")] = sample.value
    try:
        ended = {name: samples[f"requests_{name}_total"] for name in ("finished", "cancelled", "failed", "rejected")}
        running, waiting = samples["num_requests_running"], samples["num_requests_waiting"]
        return Counts(
            arrived=sum(ended.values()) + running + waiting,
            answered=ended["finished"] + ended["cancelled"],
            cancelled=ended["cancelled"],
            rejected=ended["rejected"],
            first_tokens=samples["time_to_first_token_seconds_count"],
            late=_count_over(sorted(buckets), slo_s),
            prompt_tokens=samples["prefix_cache_queries_total"],
            reused_tokens=samples["prefix_cache_hits_total"],
            generated_tokens=samples["generation_tokens_total"],
            running=running,
            waiting=waiting,
            ready=samples["num_replicas:ready"],
            warming=samples["num_replicas:warming"],
        )
    except KeyError as error:
        raise TelemetryError(
            f"the metrics have no {PREFIX}{error.args[0]}; expected those of `cloudcomplete serve --set "
            "server.metrics_port=N` of this version"
        ) from None


def _count_over(buckets: list[tuple[float, float]], bound_s: float) -> float:
    """Return how many took longer, by the histogram; within a bucket all times are taken as equally likely."""
    low_s, low = 0.0, 0.0
    total = buckets[-1][1] if buckets else 0.0
    for high_s, high in buckets:
        if bound_s <= high_s:
            share = (bound_s - low_s) / (high_s - low_s) if high_s != float("inf") else 0.0
            return total - low - share * (high - low)
        low_s, low = high_s, high
    return 0.0


class Telemetry:
    """Looks at a fleet again and again."""

    def __init__(self, read: Callable[[], Mapping[str, Counts]], *, clock: Callable[[], float] = time.time) -> None:
        """`read` returns what each server that answers has counted."""
        self._read, self._clock = read, clock
        self._before: dict[str, Counts] = {}
        self._time_s = clock()
        self._has_looked = False

    def look(self) -> Interval | None:
        """Return what was counted since the last look; None for the first one, and where no server answers."""
        now = self._read()
        time_s = self._clock()
        length_s, self._time_s = max(time_s - self._time_s, 1e-3), time_s
        before, self._before = self._before, dict(now)
        is_first, self._has_looked = not self._has_looked, True
        if is_first or not now:
            return None
        sums = dict.fromkeys(Counts.__struct_fields__, 0.0)
        for address, counts in now.items():
            for name in sums:
                value = getattr(counts, name)
                if name not in _GAUGES:
                    value = max(value - getattr(before.get(address, counts), name), 0.0)
                sums[name] += value
        return Interval(time_s=time_s, length_s=length_s, **sums)


def read_registry(registry: CollectorRegistry, *, slo_s: float) -> Callable[[], Mapping[str, Counts]]:
    """Return what reads the metrics of this process."""
    return lambda: {"here": read_counts(registry.collect(), slo_s=slo_s)}


def read_servers(urls: Iterable[str], *, slo_s: float) -> Callable[[], Mapping[str, Counts]]:
    """Return what reads the metrics of servers over HTTP: `http://HOST:PORT`, of all addresses that HOST has.

    So the name of a headless Kubernetes service stands for all of its pods. Servers that do not answer are left out.
    Raises TelemetryError for what is no address.
    """
    places = [_parse(url) for url in urls]

    def fetch(address: tuple[str, int]) -> Counts | None:
        host, port = address
        try:
            with urlopen(f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics", timeout=_TIMEOUT_S) as answer:
                return read_counts(text_string_to_metric_families(answer.read().decode()), slo_s=slo_s)
        except (OSError, URLError, ValueError, TelemetryError) as error:
            logger.warning("no metrics from %s:%d: %s", host, port, error)
            return None

    def read() -> Mapping[str, Counts]:
        addresses: dict[tuple[str, int], None] = {}
        for host, port in places:
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except OSError as error:
                logger.warning("cannot resolve %s: %s", host, error)
                continue
            addresses |= {(str(one[4][0]), port): None for one in found}
        if not addresses:
            return {}
        with ThreadPoolExecutor(min(len(addresses), 32)) as pool:
            counts = zip(addresses, pool.map(fetch, addresses), strict=True)
            return {f"{host}:{port}": one for (host, port), one in counts if one is not None}

    return read


def _parse(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        if parts.scheme == "http" and parts.hostname and parts.port:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise TelemetryError(f"{url!r} is no address of metrics; expected http://HOST:PORT, as server.metrics_port opens")
