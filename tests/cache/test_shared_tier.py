"""Tier 3: what a store does wrong reaches nobody, and a store that comes back is used again."""

import logging
from collections.abc import Sequence

import pytest

from cache.errors import SharedStoreError
from cache.record import encode_record
from cache.shared_tier import FIRST_PAUSE_S, LONGEST_PAUSE_S, Breaker, SharedTier
from cache.store import Stored, StoreSize
from tests.cache.made_keys import Clock, make_answer, make_key


class DictStore:
    """A store in a dictionary, which fails when told so."""

    place = "a dictionary"

    def __init__(self) -> None:
        self.records: dict[tuple[str, bytes], bytes] = {}
        self.is_gone = False
        self.num_calls = 0
        self.is_closed = False

    def _call(self) -> None:
        self.num_calls += 1
        if self.is_gone:
            raise SharedStoreError("a dictionary: gone; the cache goes on without it and tries again")

    def get(self, tenant: str, digest: bytes) -> bytes | None:
        self._call()
        return self.records.get((tenant, digest))

    def put(self, batch: Sequence[Stored]) -> None:
        self._call()
        self.records |= {(stored.tenant, stored.digest): stored.record for stored in batch}

    def delete(self, tenant: str, digest: bytes) -> None:
        self._call()
        self.records.pop((tenant, digest), None)

    def clear(self, tenant: str | None = None) -> int:
        self._call()
        doomed = [pair for pair in self.records if tenant in (None, pair[0])]
        for pair in doomed:
            del self.records[pair]
        return len(doomed)

    def measure(self) -> StoreSize:
        return StoreSize(num_entries=len(self.records), num_bytes=sum(map(len, self.records.values())))

    def close(self) -> None:
        self.is_closed = True


def make_tier(store: DictStore, *, now: Clock | None = None, monotonic: Clock | None = None) -> SharedTier:
    return SharedTier(store, ttl_s=60, now=now or Clock(), monotonic=monotonic or Clock())


def test_an_answer_is_found_for_its_key_alone() -> None:
    tier = make_tier(DictStore())
    assert tier.put([(make_key(), make_answer())])
    assert tier.lookup(make_key()) == make_answer()
    assert tier.lookup(make_key(tenant="u")) is None
    assert tier.clear("u") == 0
    assert tier.clear("t") == 1


def test_what_is_too_old_is_not_served() -> None:
    clock = Clock()
    tier = make_tier(DictStore(), now=clock)
    tier.put([(make_key(), make_answer())])
    clock.now_s += 61
    assert tier.lookup(make_key()) is None


def test_a_record_that_is_not_what_was_written_is_deleted_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    store = DictStore()
    tier = make_tier(store)
    store.records["t", make_key().digest] = encode_record(make_key("other").digest, make_answer())
    with caplog.at_level(logging.WARNING):
        assert tier.lookup(make_key()) is None
    assert "a dictionary: a record is not what was written; it is deleted" in caplog.text
    assert (store.records, tier.num_refused_records, tier.health) == ({}, 1, "")


def test_text_that_utf8_cannot_hold_is_not_kept_and_disturbs_no_other() -> None:
    tier = make_tier(DictStore())
    assert tier.put([(make_key("a"), make_answer("\ud800")), (make_key("b"), make_answer())])
    assert tier.num_lost_writes == 1
    assert tier.lookup(make_key("b")) == make_answer()


def test_a_store_that_is_gone_is_left_alone_and_used_again_when_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    store, clock = DictStore(), Clock()
    tier = make_tier(store, monotonic=clock)
    store.is_gone = True
    with caplog.at_level(logging.INFO):
        assert tier.lookup(make_key()) is None
        assert tier.health == "a dictionary: gone; the cache goes on without it and tries again"
        assert not tier.put([(make_key(), make_answer())])
        assert (store.num_calls, tier.num_failures, tier.num_lost_writes) == (1, 1, 1)
        clock.now_s += FIRST_PAUSE_S
        assert tier.lookup(make_key()) is None
        assert (store.num_calls, tier.num_failures) == (2, 2)
        clock.now_s += FIRST_PAUSE_S  # the second pause is twice as long
        store.is_gone = False
        assert tier.lookup(make_key()) is None
        assert store.num_calls == 2
        clock.now_s += FIRST_PAUSE_S
        assert tier.put([(make_key(), make_answer())])
        assert tier.lookup(make_key()) == make_answer()
    assert tier.health == ""
    assert [record.message for record in caplog.records] == [
        "a dictionary: gone; the cache goes on without it and tries again",
        "a dictionary is back",
    ]


def test_who_clears_is_told_when_that_fails() -> None:
    store = DictStore()
    store.is_gone = True
    with pytest.raises(SharedStoreError, match="gone"):
        make_tier(store).clear()


def test_after_a_pause_one_caller_tries_and_pauses_do_not_grow_for_ever() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    assert breaker.fail("broken")
    for _ in range(20):
        clock.now_s += LONGEST_PAUSE_S
        assert (breaker.may_try(), breaker.may_try()) == (True, False)
        assert not breaker.fail("broken")
    clock.now_s += LONGEST_PAUSE_S
    assert breaker.may_try()
    assert breaker.succeed()
    assert not breaker.succeed()
    assert (breaker.may_try(), breaker.may_try(), breaker.reason) == (True, True, "")


def test_closing_lets_go_of_the_store() -> None:
    store = DictStore()
    make_tier(store).close()
    assert store.is_closed
