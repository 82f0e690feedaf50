"""A dialect that answers as it is told, by the text before the hole; counts what was cancelled and what ran at once."""

import asyncio
from collections.abc import Mapping
from typing import Self

from loadtest.dialects import MODEL_SOURCE, Query, Reply, TextSink, ignore_text


class Forever:
    """An answer that goes on until it is cancelled."""

    def __init__(self, part: str, *, after: str = "") -> None:
        self.part, self.after = part, after


Script = str | list[str] | Reply | Forever | Exception


class ScriptedDialect:
    """`script` says what follows each `before`: a text, its parts, a whole reply, an endless one, or what is raised."""

    def __init__(self, script: Mapping[str, Script] | None = None, *, otherwise: Script = "") -> None:
        self._script = dict(script or {})
        self._otherwise = otherwise
        self.queries: list[Query] = []
        self.num_cancelled = 0
        self.num_running = 0
        self.most_running = 0
        self.is_open = False
        self.is_there = True

    async def __aenter__(self) -> Self:
        self.is_open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self.is_open = False

    async def is_alive(self) -> bool:
        return self.is_there

    async def complete(self, query: Query, *, deadline_s: float, on_text: TextSink = ignore_text) -> Reply:
        self.queries.append(query)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            return await self._answer(self._script.get(query.before, self._otherwise), on_text)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_running -= 1

    async def _answer(self, script: Script, on_text: TextSink) -> Reply:
        await asyncio.sleep(0)
        if isinstance(script, Exception):
            raise script
        if isinstance(script, Reply):
            if script.text:
                on_text(script.text)
            return script
        if isinstance(script, Forever):
            on_text(script.after)
            while True:
                on_text(script.part)
                await asyncio.sleep(0.001)
        parts = [script] if isinstance(script, str) else script
        for part in parts:
            on_text(part)
            await asyncio.sleep(0)
        return Reply(text="".join(parts), source=MODEL_SOURCE, first_text_s=0.001, total_s=0.002)
