"""A dialect whose answers come when and as a test says, on the event loop's clock."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Self

import msgspec

from loadtest.dialects import Query, Reply, TextSink, ignore_text


class Answer(msgspec.Struct, frozen=True):
    """Texts with the seconds before each, and what is said in the end; `reply.text` is filled in."""

    texts: Sequence[tuple[float, str]] = ()
    reply: Reply = Reply(source="model", num_prompt_tokens=10, num_reused_tokens=8, num_generated_tokens=2)
    end_delay_s: float = 0.0


class TimedDialect:
    """`answer` says what each query gets; `asked` and `cancelled` have the queries with their times."""

    def __init__(self, answer: Callable[[Query], Answer]) -> None:
        self._answer = answer
        self.asked: list[tuple[float, Query]] = []
        self.cancelled: list[tuple[float, Query]] = []
        self.is_there = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def is_alive(self) -> bool:
        return self.is_there

    async def complete(self, query: Query, *, deadline_s: float, on_text: TextSink = ignore_text) -> Reply:
        loop = asyncio.get_running_loop()
        self.asked.append((loop.time(), query))
        answer = self._answer(query)
        try:
            for delay_s, text in answer.texts:
                await asyncio.sleep(delay_s)
                on_text(text)
            await asyncio.sleep(answer.end_delay_s)
        except asyncio.CancelledError:
            self.cancelled.append((loop.time(), query))
            raise
        return msgspec.structs.replace(answer.reply, text="".join(text for _, text in answer.texts))
