"""A short load from which step times can be told: prompts of several sizes alone, then some at once, each in turn.

Every burst has ended before the next is sent. Knows what is asked and measured, not what follows from it.
"""

from collections.abc import Callable
from typing import NamedTuple

from loadtest.arrivals import Arrival
from loadtest.timed_requests import TimedRequest, send


class Burst(NamedTuple):
    """So many requests at once, all of one size."""

    num_requests: int
    prompt_tokens: int
    output_tokens: int


_WARM_UP = (Burst(1, 600, 32), Burst(8, 600, 32))
_ROUND = (
    *(Burst(1, tokens, 32) for tokens in (64, 150, 300, 600, 1000, 1500, 1900)),
    *(Burst(count, 64, 64) for count in (2, 4, 8)),
    *(Burst(count, 800, 32) for count in (2, 4, 8)),
)
_NUM_ROUNDS = 4


async def measure_bursts(address: str, *, seed: int, on_progress: Callable[[str], None]) -> list[list[TimedRequest]]:
    """Ask a server that does nothing else; return the bursts, without the requests that it did not answer."""
    bursts: list[list[TimedRequest]] = []
    first = num_unanswered = 0
    for number, burst in enumerate((*_WARM_UP, *_ROUND * _NUM_ROUNDS)):
        arrivals = [Arrival(0.0, burst.prompt_tokens, burst.output_tokens)] * burst.num_requests
        requests = await send(address, arrivals, first=first, seed=seed)
        first += burst.num_requests
        if number < len(_WARM_UP):
            continue
        answered = [request for request in requests if not request.error]
        num_unanswered += len(requests) - len(answered)
        if answered:
            bursts.append(answered)
    on_progress(f"{sum(map(len, bursts))} requests measured in {len(bursts)} bursts, {num_unanswered} unanswered")
    return bursts
