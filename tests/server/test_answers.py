"""The completion cache in the server's path: which requests it answers, and that the others are left alone."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cache.completion_cache import CompletionCache
from cache.config import CacheConfig
from server.config import ServerConfig
from server.types import CompletionRequest, SamplingOptions
from tests.server.counting_engine import CountingEngine, expected_text
from tests.server.test_completer import Rig


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[CompletionCache]:
    cache = CompletionCache(CacheConfig(directory=str(tmp_path), snapshot_s=0.0))
    yield cache
    cache.close()


@pytest.fixture
def rig(cache: CompletionCache) -> Iterator[Rig]:
    engine = CountingEngine()
    yield Rig(engine, ServerConfig(trim="off"), cache)
    engine.close(timeout_s=1)


def ask(rig: Rig, before: str, *, tenant: str = "", is_fresh: bool = False, **fields: Any) -> tuple[str, str]:
    """Return text and source of an answer."""
    sampling = SamplingOptions(**({"max_tokens": 8, "temperature": 0.0} | fields.pop("sampling", {})))
    request = CompletionRequest(before=before, sampling=sampling, is_fresh=is_fresh, **fields)

    async def read() -> tuple[str, str]:
        parts = [part async for part in rig.completer.complete(request, deadline_s=None, tenant=tenant)]
        return "".join(part.text for part in parts), parts[-1].source

    return asyncio.run(read())


def test_a_question_asked_again_is_answered_from_memory(rig: Rig) -> None:
    first = ask(rig, "x = 7", after="\n", path="a.py")
    assert first == (expected_text("7", 8), "model")
    assert ask(rig, "x = 7", after="\n", path="a.py") == (first[0], "memory")
    assert len(rig.engine.seen) == 1
    assert rig.metrics.registry.get_sample_value("cloudcomplete_known_answer_seconds_count") == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"after": "!"},
        {"path": "b.py"},
        {"tenant": "other"},
        {"sampling": {"max_tokens": 9}},
        {"sampling": {"stop": ("1",)}},
    ],
)
def test_another_question_is_asked_of_the_model(rig: Rig, changed: dict[str, Any]) -> None:
    ask(rig, "x = 7", path="a.py")
    assert ask(rig, "x = 7", **({"path": "a.py"} | changed))[1] == "model"


def test_what_was_typed_of_an_answer_leaves_the_rest(rig: Rig) -> None:
    text, _ = ask(rig, "x = 7")
    typed = text[:4]
    rest, source = ask(rig, "x = 7" + typed)
    assert (typed + rest, source) == (text, "type-through")


def test_a_rest_that_is_too_short_is_asked_of_the_model(rig: Rig) -> None:
    text, _ = ask(rig, "x = 7")
    assert ask(rig, "x = 7" + text[:-1])[1] == "model"


def test_a_fresh_request_is_neither_answered_nor_kept(rig: Rig) -> None:
    ask(rig, "x = 7", is_fresh=True)
    ask(rig, "x = 7")
    assert ask(rig, "x = 7", is_fresh=True)[1] == "model"
    assert len(rig.engine.seen) == 3


def test_a_random_answer_is_kept_only_for_its_seed(rig: Rig) -> None:
    for _ in range(2):
        assert ask(rig, "x = 7", sampling={"temperature": 1.0})[1] == "model"
    ask(rig, "x = 7", sampling={"temperature": 1.0, "seed": 5})
    assert ask(rig, "x = 7", sampling={"temperature": 1.0, "seed": 5})[1] == "memory"
    assert ask(rig, "x = 7", sampling={"temperature": 1.0, "seed": 6})[1] == "model"


def test_what_followed_at_a_similar_place_is_a_draft_and_never_an_answer(rig: Rig, cache: CompletionCache) -> None:
    lines = "".join(f"value = compute(row, column, {i})\n" for i in range(12))
    text, _ = ask(rig, lines + "total = [7")
    assert cache.flush(timeout_s=10)
    asked = ask(rig, lines + "total = [17")
    assert asked == (expected_text("17", 8), "model")
    assert rig.engine.seen[-1].draft == text


def test_an_answer_outlives_the_process(tmp_path: Path) -> None:
    sources = []
    for _ in range(2):
        cache = CompletionCache(CacheConfig(directory=str(tmp_path), snapshot_s=0.0))
        engine = CountingEngine()
        sources.append(ask(Rig(engine, ServerConfig(trim="off"), cache), "x = 7")[1])
        cache.close()
        engine.close(timeout_s=1)
    assert sources == ["model", "shared"]


def test_a_trimmed_answer_ends_at_its_line_and_stops_the_engine() -> None:
    engine = CountingEngine(separator="\n")
    rig = Rig(engine, ServerConfig(trim="line"))
    assert ask(rig, "x = 7", sampling={"max_tokens": 500})[0] == "8"
    engine.close(timeout_s=1)
    assert set(engine.ends.values()) == {"cancelled"}


def test_another_tenants_answers_change_nothing_of_what_a_tenant_is_asked_for_it(cache: CompletionCache) -> None:
    """Neither texts nor hits of one tenant reach another: its requests take the same way with the same work."""
    works = []
    for is_after_another in (False, True):
        engine = CountingEngine()
        rig = Rig(engine, ServerConfig(trim="off", prefetch=False), cache)
        lines = "".join(f"value = compute(row, column, {i})\n" for i in range(12))
        if is_after_another:
            assert ask(rig, lines + "total = [7", tenant="another")[1] == "model"
            assert ask(rig, lines + "total = [7", tenant="another", session_id="s")[1] == "memory"
            assert cache.flush(timeout_s=10)
        tenant = f"tenant {is_after_another}"
        answers = [
            ask(rig, before, tenant=tenant, session_id="s") for before in (lines + "total = [7", lines + "total = [7 8")
        ]
        seen = [one for one in engine.seen if one.tenant == tenant]
        works.append((answers, [(one.before, one.draft) for one in seen]))
        engine.close(timeout_s=1)
    assert works[0] == works[1]
    assert works[0][1][0][1] == ""
