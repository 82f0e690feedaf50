"""Single requests at given times, each about a place of its own, so that no session and no cache knows an answer.

What comes back is what each cost and how long it took, for whoever sets a model of the server against it. Open loop:
what is due is sent, whatever became of those before.
"""

import asyncio
from collections.abc import Sequence

import msgspec

from loadtest.arrivals import Arrival
from loadtest.source_text import Place, choose_place
from loadtest.users import describe
from server.client import AsyncClient
from server.errors import RequestFailedError

_TIMEOUT_S = 300.0
"""What takes long is measured, not given up."""


class TimedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request, and what became of it."""

    at_s: float
    """When it was sent, from the first one's due time on."""
    computed_tokens: int = 0
    """Prompt tokens whose KV was not there already."""
    output_tokens: int = 0
    first_token_s: float = 0.0
    """From its sending to its first token, without what was held back to see where the text ends."""
    first_text_s: float = 0.0
    """From its sending to its first text, or to its end without any."""
    end_s: float = 0.0
    error: str = ""
    """Why there is no answer; empty: there is one."""


async def send(address: str, arrivals: Sequence[Arrival], *, first: int, seed: int) -> list[TimedRequest]:
    """Send requests at their times, and return them in that order; `first` numbers the first one's place."""
    places = [
        choose_place(first + number, num_tokens=arrival.num_prompt_tokens, seed=seed)
        for number, arrival in enumerate(arrivals)
    ]
    loop = asyncio.get_running_loop()
    async with AsyncClient(address, timeout_s=_TIMEOUT_S) as client, asyncio.TaskGroup() as tasks:
        began_s = loop.time()
        asking = []
        for arrival, place in zip(arrivals, places, strict=True):
            await asyncio.sleep(max(0.0, began_s + arrival.at_s - loop.time()))
            asking.append(tasks.create_task(_ask(client, place, arrival, began_s=began_s)))
    return [task.result() for task in asking]


async def _ask(client: AsyncClient, place: Place, arrival: Arrival, *, began_s: float) -> TimedRequest:
    loop = asyncio.get_running_loop()
    sent_s = loop.time()
    first_text_s: float | None = None
    try:
        async with client.stream(
            place.before, place.after, path=place.path, max_tokens=arrival.num_output_tokens
        ) as stream:
            async for _ in stream:
                first_text_s = first_text_s or loop.time() - sent_s
    except RequestFailedError as error:
        return TimedRequest(at_s=sent_s - began_s, error=describe(error))
    end_s = loop.time() - sent_s
    assert stream.completion is not None, "a stream that ends without an error has a completion"
    usage = stream.completion.usage
    return TimedRequest(
        at_s=sent_s - began_s,
        computed_tokens=usage.num_prompt_tokens - usage.num_reused_tokens,
        output_tokens=usage.num_generated_tokens,
        first_token_s=end_s - (usage.total_s - usage.first_token_s),
        first_text_s=end_s if first_text_s is None else first_text_s,
        end_s=end_s,
    )
