"""The use case without a transport: every request ends once and leaves nothing behind."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest

from cache.completion_cache import CompletionCache
from engine.errors import EngineClosedError, QueueFullError, RequestError
from engine.types import Output, Request, Sink
from server.admission import Admission
from server.answers import Answers
from server.completer import Completer
from server.config import ServerConfig
from server.errors import (
    BusyError,
    CompletionFailedError,
    DeadlineError,
    InvalidRequestError,
    RequestCancelledError,
    UnavailableError,
)
from server.feedback import Feedback
from server.lifecycle import Lifecycle
from server.metrics import Metrics
from server.predictor import Guess
from server.repositories import Repositories
from server.sessions import Sessions
from server.types import CompletionRequest, SamplingOptions
from tests.server.counting_engine import CountingEngine, expected_text


class Rig:
    """A completer on a counting engine."""

    def __init__(self, engine: CountingEngine, config: ServerConfig, cache: CompletionCache | None = None) -> None:
        self.engine = engine
        self.config = config
        self.lifecycle = Lifecycle()
        self.lifecycle.open(engine)
        self.admission = Admission(config)
        self.metrics = metrics = Metrics(self.lifecycle, self.admission)
        self.sessions = Sessions(config)
        answers = Answers(cache, least_chars=config.session_least_chars)
        self.feedback = Feedback(config, metrics)
        self.guesses: list[Guess] = []
        self.feedback.note_guess = self.guesses.append  # type: ignore[method-assign]
        self.completer = Completer(
            config,
            self.lifecycle,
            self.admission,
            metrics,
            self.sessions,
            answers,
            Repositories(config),
            feedback=self.feedback,
        )

    def ask(
        self, before: str = "7", *, max_tokens: int = 3, deadline_s: float | None = None, request_id: str = ""
    ) -> AsyncGenerator[Output, None]:
        request = CompletionRequest(
            before=before, request_id=request_id, sampling=SamplingOptions(max_tokens=max_tokens)
        )
        return self.completer.complete(request, deadline_s=deadline_s)

    async def text(self, before: str = "7", *, max_tokens: int = 3) -> str:
        """Read a whole answer."""
        return "".join([output.text async for output in self.ask(before, max_tokens=max_tokens)])

    async def on_thread(self, wait: Callable[..., None], *arguments: Any) -> None:
        """Wait for the engine without holding up the loop."""
        await asyncio.to_thread(wait, *arguments)


def play(
    scenario: Callable[[Rig], Awaitable[None]],
    *,
    is_gated: bool = False,
    config: ServerConfig | None = None,
    num_slots: int = 4,
    max_waiting: int = 8,
) -> None:
    engine = CountingEngine(is_gated=is_gated, num_slots=num_slots, max_waiting=max_waiting)

    async def run() -> None:
        rig = Rig(engine, config or ServerConfig(trim="off", chunk_interval_s=0.0, prefetch=False))
        await scenario(rig)
        await rig.on_thread(engine.wait_until_empty)
        assert rig.admission.num_in_flight == 0

    try:
        asyncio.run(run())
    finally:
        engine.close(timeout_s=0)


def test_outputs_come_in_order_and_only_the_last_has_a_finish() -> None:
    async def scenario(rig: Rig) -> None:
        outputs = [output async for output in rig.ask("7", max_tokens=5, request_id="mine")]
        assert [output.text for output in outputs] == ["8 ", "9 ", "10 ", "11 ", "12 "]
        assert [output.finish is not None for output in outputs] == [False] * 4 + [True]
        assert {output.request_id for output in outputs} == {"mine"}

    play(scenario)


def test_many_requests_at_once_each_get_their_own_text() -> None:
    async def scenario(rig: Rig) -> None:
        texts = await asyncio.gather(*(rig.text(str(number), max_tokens=4) for number in range(0, 120, 10)))
        assert texts == [expected_text(str(number), 4) for number in range(0, 120, 10)]

    play(scenario)


def test_two_requests_with_one_id_are_served_both_and_cancelling_one_leaves_the_other() -> None:
    async def scenario(rig: Rig) -> None:
        first, second = (rig.ask(before, max_tokens=2, request_id="same") for before in ("10", "20"))
        rig.engine.allow()
        assert (await anext(first)).text == "11 "
        reading = asyncio.create_task(anext(second))
        await rig.on_thread(rig.engine.wait_until_running, 2)
        await first.aclose()
        rig.engine.allow(2)
        assert (await reading).text == "21 "
        assert [output.text async for output in second] == ["22 "]
        assert sorted(rig.engine.ends.values()) == ["cancelled", "finished"]

    play(scenario, is_gated=True)


def test_closing_the_generator_cancels_the_engines_request() -> None:
    async def scenario(rig: Rig) -> None:
        async with aclosing(rig.ask(max_tokens=50)) as outputs:
            rig.engine.allow()
            assert (await anext(outputs)).text == "8 "
        assert list(rig.engine.ends.values()) == ["cancelled"]

    play(scenario, is_gated=True)


def test_cancelling_the_task_that_waits_cancels_the_engines_request() -> None:
    async def scenario(rig: Rig) -> None:
        reading = asyncio.create_task(anext(rig.ask()))
        await rig.on_thread(rig.engine.wait_until_running, 1)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert list(rig.engine.ends.values()) == ["cancelled"]

    play(scenario, is_gated=True)


def test_cancelling_while_the_engine_takes_the_request_in_cancels_it_afterwards() -> None:
    async def scenario(rig: Rig) -> None:
        is_let_in, submit = threading.Event(), rig.engine.submit

        def submit_late(request: Request, sink: Sink) -> None:
            is_let_in.wait()
            submit(request, sink)

        rig.engine.submit = submit_late  # type: ignore[method-assign]
        reading = asyncio.create_task(anext(rig.ask()))
        await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        is_let_in.set()
        await rig.on_thread(rig.engine.wait_for, lambda: bool(rig.engine.ends))
        assert list(rig.engine.ends.values()) == ["cancelled"]

    play(scenario, is_gated=True)


def test_a_deadline_ends_the_request_on_both_sides() -> None:
    async def scenario(rig: Rig) -> None:
        with pytest.raises(DeadlineError) as raised:
            await anext(rig.ask(deadline_s=0.05))
        assert str(raised.value) == "the request did not end within 0.05 s; set a longer timeout, or ask for less"
        assert list(rig.engine.ends.values()) == ["cancelled"]

    play(scenario, is_gated=True)


def test_a_request_without_a_deadline_has_the_servers() -> None:
    async def scenario(rig: Rig) -> None:
        with pytest.raises(DeadlineError, match=r"within 0\.04 s"):
            await anext(rig.ask())

    play(scenario, is_gated=True, config=ServerConfig(trim="off", default_deadline_s=0.04))


def test_a_full_server_refuses_one_more_while_the_others_go_on() -> None:
    async def scenario(rig: Rig) -> None:
        running = [asyncio.create_task(rig.text(max_tokens=1)) for _ in range(2)]
        await rig.on_thread(rig.engine.wait_until_running, 2)
        with pytest.raises(BusyError, match="at their limit of 2"):
            await anext(rig.ask())
        rig.engine.allow()
        assert await asyncio.gather(*running) == ["8 ", "8 "]

    play(scenario, is_gated=True, config=ServerConfig(trim="off", max_in_flight=2))


def test_the_engines_own_refusals_pass_through_and_free_the_place() -> None:
    async def scenario(rig: Rig) -> None:
        with pytest.raises(RequestError, match="the prompt cannot be served"):
            await anext(rig.ask("unservable"))
        running = asyncio.create_task(rig.text(max_tokens=1))
        await rig.on_thread(rig.engine.wait_until_running, 1)
        with pytest.raises(QueueFullError, match="the engine's queue is full"):
            await anext(rig.ask())
        assert rig.admission.num_in_flight == 1
        rig.engine.allow()
        await running

    play(scenario, is_gated=True, num_slots=1, max_waiting=0)


def test_what_admission_refuses_never_reaches_the_engine() -> None:
    async def scenario(rig: Rig) -> None:
        with pytest.raises(InvalidRequestError, match="max_tokens is 0"):
            await anext(rig.ask(max_tokens=0))
        assert rig.engine.seen == []

    play(scenario)


def test_a_request_that_the_engine_fails_ends_with_its_reason_and_the_next_is_served() -> None:
    async def scenario(rig: Rig) -> None:
        rig.engine.fails_with = "the device program failed"
        with pytest.raises(CompletionFailedError) as raised:
            await anext(rig.ask())
        assert str(raised.value) == "the engine failed the request: the device program failed"
        assert await rig.text() == "8 9 10 "

    play(scenario)


def test_a_request_that_somebody_else_cancels_says_so() -> None:
    async def scenario(rig: Rig) -> None:
        reading = asyncio.create_task(anext(rig.ask()))
        await rig.on_thread(rig.engine.wait_until_running, 1)
        rig.engine.cancel(rig.engine.seen[0].request_id)
        with pytest.raises(RequestCancelledError) as raised:
            await reading
        assert str(raised.value) == "the engine cancelled the request; send it again if its answer is still wanted"

    play(scenario, is_gated=True)


def test_what_the_end_of_draining_cuts_short_is_told_that_the_server_stopped() -> None:
    async def scenario(rig: Rig) -> None:
        reading = asyncio.create_task(anext(rig.ask()))
        await rig.on_thread(rig.engine.wait_until_running, 1)
        rig.lifecycle.drain()
        await asyncio.to_thread(rig.engine.close, timeout_s=0)
        with pytest.raises(UnavailableError) as raised:
            await reading
        assert str(raised.value) == (
            "the server stopped after draining for 10 s, before the request ended; "
            "send it to another server, or raise server.drain_s"
        )

    play(scenario, is_gated=True)


def test_an_engine_that_ended_by_itself_marks_the_server_as_broken() -> None:
    async def scenario(rig: Rig) -> None:
        await asyncio.to_thread(rig.engine.close, timeout_s=0)
        with pytest.raises(EngineClosedError):
            await anext(rig.ask())
        assert rig.lifecycle.is_broken.is_set()

    play(scenario)


def test_an_engine_that_speaks_after_the_loop_has_closed_is_not_disturbed() -> None:
    engine = CountingEngine(is_gated=True)

    async def abandon() -> None:
        rig = Rig(engine, ServerConfig(trim="off"))
        request = rig.ask()
        reading = asyncio.create_task(anext(request))
        await rig.on_thread(engine.wait_until_running, 1)
        engine.cancel = lambda request_id: None  # type: ignore[method-assign]
        reading.cancel()

    asyncio.run(abandon())
    engine.allow(3)
    engine.wait_until_empty()
    assert list(engine.ends.values()) == ["finished"]
    engine.close(timeout_s=0)
