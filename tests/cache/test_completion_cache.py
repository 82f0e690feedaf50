"""The one face: what is found where, what is written when, and that no tier's trouble reaches a request."""

import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from cache.completion_cache import CompletionCache, open_store
from cache.config import CacheConfig
from cache.errors import CacheConfigError, SharedStoreError
from cache.key import Hit
from cache.sqlite_store import FILE_NAME, SqliteStore
from loadtest.load_run import free_port
from loadtest.redis_server import PROGRAM, running_redis
from tests.cache.made_keys import Clock, make_answer, make_key

Make = Callable[..., CompletionCache]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    opened = list[CompletionCache]()

    def make(clock: Clock | None = None, **changes: Any) -> CompletionCache:
        config = CacheConfig(**({"directory": str(tmp_path / "c"), "similar_min_score": 0.0} | changes))
        opened.append(CompletionCache(config, now=clock or Clock()))
        return opened[-1]

    yield make
    for cache in opened:
        cache.check_integrity()
        cache.close()


def flush(cache: CompletionCache) -> None:
    assert cache.flush(timeout_s=60)


def test_an_answer_is_in_memory_at_once_and_everywhere_soon(make: Make) -> None:
    cache = make()
    cache.store(make_key(), make_answer())
    assert cache.lookup(make_key()) == Hit(answer=make_answer(), source="memory")
    flush(cache)
    assert cache.draft_for(make_key()) is not None
    other = make()
    assert other.lookup_memory(make_key()) is None
    assert other.lookup_shared(make_key()) == Hit(answer=make_answer(), source="shared")
    assert other.lookup(make_key()) == Hit(answer=make_answer(), source="memory")


def test_the_time_of_an_answer_is_filled_in(make: Make) -> None:
    cache = make()
    cache.store(make_key(), make_answer(created_s=0.0))
    hit = cache.lookup(make_key())
    assert hit is not None
    assert hit.answer.created_s == Clock().now_s


def test_a_similar_place_gives_a_draft_and_never_an_answer(make: Make) -> None:
    cache = make()
    cache.store(make_key("class A:\n    return self."), make_answer("width"))
    flush(cache)
    like = make_key("class B:\n    return self.")
    assert cache.lookup(like) is None
    draft = cache.draft_for(like)
    assert draft is not None
    assert draft.text == "width"


@pytest.mark.parametrize("changed", ["model", "template", "context_hash"])
def test_changed_content_makes_an_answer_unreachable_in_every_tier(make: Make, changed: str) -> None:
    cache = make()
    cache.store(make_key(), make_answer())
    flush(cache)
    assert cache.lookup(make_key(**{changed: "changed"})) is None
    assert make().lookup(make_key(**{changed: "changed"})) is None


def test_tenants_share_nothing_in_any_tier(make: Make) -> None:
    cache = make()
    cache.store(make_key(tenant="t"), make_answer())
    flush(cache)
    for reader in (cache, make()):
        assert reader.lookup(make_key(tenant="u")) is None
        assert reader.lookup(make_key("def f():\n    return sel", tenant="u")) is None
        assert reader.draft_for(make_key(tenant="u")) is None
    with cache.join(make_key(tenant="t")), cache.join(make_key(tenant="u")) as other:
        assert other.is_leader


def test_tenants_share_everything_when_configured_so(make: Make) -> None:
    cache = make(is_shared_between_tenants=True)
    cache.store(make_key(tenant="t"), make_answer())
    flush(cache)
    assert cache.lookup(make_key(tenant="u")) is not None
    assert make(is_shared_between_tenants=True).lookup(make_key(tenant="u")) is not None
    assert cache.draft_for(make_key(tenant="u")) is not None
    assert make().lookup(make_key(tenant="u")) is None
    with pytest.raises(CacheConfigError) as raised:
        cache.clear("t")
    assert str(raised.value) == (
        "cannot clear only the tenant 't': cache.is_shared_between_tenants is set, so entries belong to no tenant; "
        "clear everything instead"
    )


def test_text_and_tenants_that_utf8_cannot_hold_disturb_nobody(make: Make) -> None:
    cache, odd = make(), make_key("\ud800 x", tenant="\ud800")
    assert cache.lookup(odd) is None
    cache.store(odd, make_answer("\ud800 y"))
    cache.store(make_key(), make_answer())
    flush(cache)
    assert cache.lookup(odd) is not None
    assert cache.draft_for(odd) is not None
    assert (cache.health, cache.stats().num_dropped_writes) == ("", 1)
    assert make().lookup(make_key()) is not None


def test_accepting_extends(make: Make) -> None:
    cache = make()
    cache.store(make_key("x = "), make_answer("a", beyond="; b"))
    cache.extend(make_key("x = "), "a")
    hit = cache.lookup(make_key("x = a"))
    assert hit is not None
    assert (hit.source, hit.answer.text, hit.answer.beyond) == ("memory", "", "; b")


def test_clearing_reaches_every_tier_and_what_waits_to_be_written(make: Make, tmp_path: Path) -> None:
    cache = make()
    for tenant in ("t", "u"):
        cache.store(make_key(tenant=tenant), make_answer())
    flush(cache)
    with cache._writing:  # as if the writer were busy
        cache.store(make_key("late", tenant="t"), make_answer())
        cache.store(make_key("late", tenant="u"), make_answer())
        clearing = threading.Thread(target=cache.clear, args=("t",))
        clearing.start()
    clearing.join()
    flush(cache)
    for reader in (cache, make()):
        assert reader.lookup(make_key(tenant="u")) is not None
        assert reader.lookup(make_key("late", tenant="u")) is not None
        assert reader.draft_for(make_key(tenant="t")) is None
    assert make().lookup(make_key(tenant="t")) is None
    cache.clear()
    assert make().lookup(make_key(tenant="u")) is None


def test_what_is_stored_while_too_much_waits_is_dropped_and_counted(make: Make) -> None:
    cache = make(max_waiting_writes=3)
    with cache._writing:
        for number in range(6):
            cache.store(make_key(f"{number}"), make_answer())
        cache.check_integrity()
        num_dropped = cache.stats().num_dropped_writes
    flush(cache)
    assert num_dropped == 3
    assert cache.lookup(make_key("5")) is not None, "memory has it all the same"
    assert make().lookup(make_key("0")) is not None
    assert make().lookup(make_key("5")) is None


def test_everything_is_counted(make: Make) -> None:
    cache = make()
    cache.lookup(make_key("x"))
    cache.draft_for(make_key("x"))
    cache.store(make_key("x"), make_answer("ab"))
    flush(cache)
    cache.lookup(make_key("x"))
    cache.lookup(make_key("xa"))
    cache.draft_for(make_key("x"))
    cache.note_accept("type-through")
    cache.note_false_hit("similar")
    cache.memory.clear()
    cache.lookup(make_key("x"))
    stats = cache.stats()
    assert (stats.num_lookups, stats.num_misses, stats.num_drafts_asked, stats.num_stored) == (4, 1, 2, 1)
    assert {name: one.num_hits for name, one in stats.sources.items()} == {
        "memory": 1,
        "type-through": 1,
        "shared": 1,
        "similar": 1,
    }
    assert stats.sources["type-through"].num_accepts == 1
    assert stats.sources["similar"].num_false_hits == 1
    assert stats.tiers["memory"].num_entries == stats.tiers["similar"].num_entries == 1
    assert stats.tiers["memory"].num_bytes > 0
    assert (stats.num_dropped_writes, stats.num_store_failures, stats.health) == (0, 0, "")


def test_a_full_disk_is_counted_said_and_disturbs_nobody(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise SharedStoreError("database or disk is full")

    cache = make()
    monkeypatch.setattr(SqliteStore, "put", fail)
    cache.store(make_key(), make_answer())
    flush(cache)
    stats = cache.stats()
    assert (stats.health, stats.num_dropped_writes, stats.num_store_failures) == ("database or disk is full", 1, 1)
    assert cache.lookup(make_key()) is not None
    assert cache.lookup(make_key("x")) is None
    assert cache.draft_for(make_key()) is not None


@pytest.mark.skipif(find_spec("redis") is None, reason="the redis package is not installed")
@pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed")
def test_a_shared_store_that_is_gone_is_said_and_used_again_when_it_is_back(make: Make, tmp_path: Path) -> None:
    port = free_port()
    address = {"shared": f"redis://127.0.0.1:{port}", "shared_timeout_s": 5.0}
    cache = make(**address)
    assert cache.lookup(make_key()) is None
    assert f"redis://127.0.0.1:{port}: " in cache.health
    cache.store(make_key(), make_answer())
    flush(cache)
    assert cache.lookup(make_key()) is not None
    with running_redis(port, tmp_path):
        assert cache.shared is not None
        cache.shared._breaker._next_try_s = 0  # the pause is over
        cache.store(make_key("again"), make_answer())
        flush(cache)
        assert cache.health == ""
        assert make(**address).lookup(make_key("again")) == Hit(answer=make_answer(), source="shared")


def test_tiers_can_be_left_out(make: Make, tmp_path: Path) -> None:
    cache = make(similar_entries=0, shared="none")
    cache.store(make_key(), make_answer())
    assert cache.lookup(make_key()) is not None
    assert cache.lookup(make_key("x")) is None
    assert cache.draft_for(make_key()) is None
    assert (cache.clear(), cache.health) == (1, "")
    assert not (tmp_path / "c").exists()


def test_closing_writes_what_waits_and_a_snapshot_and_twice_is_harmless(make: Make) -> None:
    cache = make()
    with cache._writing:
        for number in range(200):
            cache.store(make_key(f"x{number}"), make_answer(f"a{number}"))
    cache.close()
    cache.close()
    cache.store(make_key("late"), make_answer())
    assert cache.stats().num_dropped_writes == 1
    again = make()
    assert all(again.lookup(make_key(f"x{number}")) is not None for number in range(200))
    again.draft_for(make_key("x7"))
    flush(again)
    assert again.draft_for(make_key("x7")) is not None


def test_snapshots_are_written_while_it_runs(make: Make, tmp_path: Path) -> None:
    cache = make(snapshot_s=1e-9)
    cache.store(make_key(), make_answer())
    flush(cache)
    assert len(list((tmp_path / "c").glob("*.similar"))) == 1
    assert list((tmp_path / "c").glob("*.new")) == []


def test_an_older_file_is_set_aside_and_the_cache_opens(make: Make, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / FILE_NAME).write_bytes(b"older" * 1000)
    cache = make()
    assert cache.lookup(make_key()) is None
    cache.store(make_key(), make_answer())
    flush(cache)
    assert make().lookup(make_key()) is not None


def test_many_threads_at_once_leave_every_tier_whole(make: Make) -> None:
    cache = make(memory_bytes=20_000, similar_entries=50, shared_bytes=20_000)
    failures = list[BaseException]()

    def work(number: int) -> None:
        try:
            for i in range(60):
                key = make_key(f"line {i % 20}", tenant=f"t{number % 2}")
                cache.store(key, make_answer(f"text {i}"))
                cache.lookup(make_key(f"line {i % 20}t", tenant=f"t{number % 2}"))
                cache.draft_for(key)
                if i % 30 == number:
                    cache.clear(f"t{number % 2}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    flush(cache)
    assert failures == []
    cache.check_integrity()
    assert cache.shared is not None
    cache.shared.store.check_integrity()  # type: ignore[attr-defined]


def test_a_store_is_opened_as_configured(tmp_path: Path) -> None:
    assert open_store(CacheConfig(shared="none")) is None
    assert isinstance(open_store(CacheConfig(directory=str(tmp_path))), SqliteStore)


class CacheMachine(RuleBasedStateMachine):
    """All tiers together: whatever is served was stored for that tenant and follows from what was stored."""

    keys = st.builds(make_key, st.text("ab\n", max_size=4), tenant=st.sampled_from("tu"))

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.clock = Clock()
        self.config = CacheConfig(
            directory=str(directory), memory_bytes=4_000, similar_entries=5, shared_bytes=1_000, similar_min_score=0
        )
        self.cache = CompletionCache(self.config, now=self.clock)
        self.cache.clear()
        self.stored = list[tuple[Any, str]]()

    @rule(key=keys, text=st.text("ab", min_size=1, max_size=4))
    def store(self, key: Any, text: str) -> None:
        self.cache.store(key, make_answer(text))
        self.stored.append((key, text))

    @rule(key=keys)
    def lookup(self, key: Any) -> None:
        hit = self.cache.lookup(key)
        if hit is not None:
            assert any(
                earlier.place == key.place and earlier.line + text == key.line + hit.answer.text
                for earlier, text in self.stored
            )

    @rule(key=keys)
    def draft(self, key: Any) -> None:
        draft = self.cache.draft_for(key)
        if draft is not None:
            assert any(earlier.realm == key.realm for earlier, _ in self.stored)

    @rule(tenant=st.sampled_from(["t", None]))
    def clear(self, tenant: str | None) -> None:
        self.cache.clear(tenant)
        self.stored = [pair for pair in self.stored if tenant not in (None, pair[0].tenant)]

    @rule()
    def reopen(self) -> None:
        self.cache.close()
        self.cache = CompletionCache(self.config, now=self.clock)

    @invariant()
    def is_whole(self) -> None:
        self.cache.check_integrity()

    def teardown(self) -> None:
        self.cache.close()


def test_random_operations_keep_the_cache_whole(tmp_path: Path) -> None:
    run_state_machine_as_test(
        lambda: CacheMachine(tmp_path), settings=settings(max_examples=20, stateful_step_count=20)
    )
