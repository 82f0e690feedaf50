import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import prefix_store
from engine.prefix_store import BLOCK_TOKENS, PrefixStore


def tokens(*blocks: int, rest: int = 0) -> np.ndarray:
    """Blocks of equal tokens, and `rest` tokens more."""
    return np.concatenate([np.repeat(np.array(blocks, np.int32), BLOCK_TOKENS), np.zeros(rest, np.int32)])


def positions(copies) -> list[int]:
    return [copy.position // BLOCK_TOKENS for copy in copies]


def test_full_blocks_are_saved_once_and_found_by_the_same_beginning() -> None:
    store = PrefixStore(10)
    saved = store.save(3, tokens(1, 2, rest=5), "", start=0)
    assert [(copy.slot, copy.position) for copy in saved] == [(3, 0), (3, BLOCK_TOKENS)]
    assert store.save(3, tokens(1, 2, rest=5), "", start=0) == []
    found = store.match(7, tokens(1, 2, 3), "", start=0)
    assert [copy.block for copy in found] == [copy.block for copy in saved]
    assert {copy.slot for copy in found} == {7}


def test_a_block_is_of_no_use_after_another_beginning() -> None:
    store = PrefixStore(10)
    store.save(0, tokens(1, 2), "", start=0)
    assert store.match(0, tokens(9, 2), "", start=0) == []


def test_a_match_begins_where_the_slot_ends() -> None:
    store = PrefixStore(10)
    store.save(0, tokens(1, 2, 3, 4), "", start=0)
    assert positions(store.match(0, tokens(1, 2, 3, 4), "", start=BLOCK_TOKENS + 5)) == [1, 2, 3]
    assert positions(store.match(0, tokens(1, 2, 3, 9), "", start=2 * BLOCK_TOKENS)) == [2]


def test_only_what_is_about_to_be_overwritten_is_saved() -> None:
    store = PrefixStore(10)
    assert positions(store.save(0, tokens(1, 2, 3), "", start=BLOCK_TOKENS + 1)) == [1, 2]


def test_tenants_never_share_blocks() -> None:
    store = PrefixStore(10)
    store.save(0, tokens(1, 2), "one", start=0)
    assert store.match(0, tokens(1, 2), "two", start=0) == []
    assert len(store.save(0, tokens(1, 2), "two", start=0)) == 2


def test_the_least_recently_used_block_makes_room_the_end_of_a_chain_first() -> None:
    store = PrefixStore(3)
    store.save(0, tokens(1, 2), "", start=0)
    store.save(0, tokens(5), "", start=0)
    store.match(0, tokens(1, 2), "", start=0)
    store.save(0, tokens(6), "", start=0)
    assert store.match(0, tokens(5), "", start=0) == []
    store.save(0, tokens(7), "", start=0)
    assert positions(store.match(0, tokens(1, 2), "", start=0)) == [0]


def test_blocks_that_are_about_to_be_read_are_not_overwritten() -> None:
    store = PrefixStore(2)
    store.save(0, tokens(1, 2), "", start=0)
    found = store.match(0, tokens(1, 2), "", start=0)
    assert store.save(0, tokens(8, 9), "", start=0, kept=frozenset(copy.block for copy in found)) == []
    assert store.match(0, tokens(1, 2), "", start=0) == found


def test_a_store_of_no_blocks_keeps_nothing() -> None:
    store = PrefixStore(0)
    assert store.save(0, tokens(1), "", start=0) == []
    assert store.match(0, tokens(1), "", start=0) == []


def test_prompts_whose_hashes_collide_share_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_store, "_address", lambda parent, tokens: b"always the same")
    store = PrefixStore(4)
    store.save(0, tokens(1), "", start=0)
    assert store.match(0, tokens(2), "", start=0) == []
    assert len(store.match(0, tokens(1), "", start=0)) == 1


@given(st.data())
def test_a_match_is_a_run_of_blocks_that_were_saved_with_the_same_beginning(data: st.DataObject) -> None:
    store, kv = PrefixStore(4), {}
    for _ in range(data.draw(st.integers(1, 20))):
        blocks = data.draw(st.lists(st.integers(0, 1), max_size=4))
        tenant = data.draw(st.sampled_from(["a", "b"]))
        start = data.draw(st.integers(0, len(blocks))) * BLOCK_TOKENS
        prompt = tokens(*blocks)
        if data.draw(st.booleans()):
            for copy in store.save(0, prompt, tenant, start=start):
                kv[copy.block] = (tenant, prompt[: copy.position + BLOCK_TOKENS].tolist())
        else:
            found = store.match(0, prompt, tenant, start=start)
            assert [copy.position for copy in found] == [start + i * BLOCK_TOKENS for i in range(len(found))]
            for copy in found:
                assert kv[copy.block] == (tenant, prompt[: copy.position + BLOCK_TOKENS].tolist())
        store.check_integrity()
