import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.slots import SlotTable


def tokens(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_a_prompt_that_begins_like_an_earlier_one_computes_only_the_rest() -> None:
    table = SlotTable(2)
    slot, reused, *_ = table.acquire(tokens(1, 2, 3), "")
    assert reused == 0
    table.release(slot, tokens(1, 2, 3, 4), "")
    assert table.acquire(tokens(1, 2, 3, 9, 9), "")[:2] == (slot, 3)


def test_at_least_one_token_is_left_to_compute() -> None:
    table = SlotTable(1)
    slot, *_ = table.acquire(tokens(1, 2, 3), "")
    table.release(slot, tokens(1, 2, 3), "")
    assert table.acquire(tokens(1, 2, 3), "")[:2] == (slot, 2)


def test_tenants_do_not_share_tokens() -> None:
    table = SlotTable(1)
    slot, *_ = table.acquire(tokens(1, 2, 3), "one")
    table.release(slot, tokens(1, 2, 3), "one")
    assert table.acquire(tokens(1, 2, 3), "two")[:2] == (slot, 0)


def test_a_few_shared_tokens_do_not_wipe_out_another_file() -> None:
    table = SlotTable(2)
    busy, *_ = table.acquire(tokens(1, 2), "")
    slot, *_ = table.acquire(tokens(*range(100)), "")
    table.release(busy, tokens(), "")
    table.release(slot, tokens(*range(100)), "")
    assert table.acquire(tokens(0, 1, *range(500, 550)), "")[:2] == (busy, 0)


def test_no_free_slot_gives_none() -> None:
    table = SlotTable(1)
    table.acquire(tokens(1), "")
    assert table.acquire(tokens(1), "") is None


def test_forgotten_kv_is_never_reused() -> None:
    table = SlotTable(1)
    slot, *_ = table.acquire(tokens(1, 2, 3), "")
    table.release(slot, tokens(1, 2, 3), "")
    table.forget()
    assert table.acquire(tokens(1, 2, 3), "")[:2] == (slot, 0)


def test_releasing_a_free_slot_is_a_defect() -> None:
    table = SlotTable(1)
    with pytest.raises(AssertionError, match="slot 0 is released but nobody holds it"):
        table.release(0, tokens(), "")


@given(st.data())
def test_reuse_is_the_longest_common_prefix_of_one_tenant_whatever_happened_before(data: st.DataObject) -> None:
    table, held = SlotTable(3), {}
    kept: dict[int, tuple[str, list[int]]] = {}
    for _ in range(data.draw(st.integers(1, 25))):
        if held and data.draw(st.booleans()):
            slot = data.draw(st.sampled_from(sorted(held)))
            kept[slot] = held.pop(slot)
            table.release(slot, tokens(*kept[slot][1]), kept[slot][0])
        else:
            tenant = data.draw(st.sampled_from(["a", "b"]))
            prompt = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=8))
            taken = table.acquire(tokens(*prompt), tenant)
            assert (taken is None) == (len(held) == 3)
            if taken is not None:
                slot, reused, *_ = taken
                owner, before = kept.get(slot, ("", []))
                common = 0
                while common < min(len(before), len(prompt) - 1) and before[common] == prompt[common]:
                    common += 1
                assert reused == (common if owner == tenant else 0)
                held[slot] = (tenant, prompt)
        table.check_integrity(set(held))


def test_a_session_returns_to_its_own_slot_among_equals() -> None:
    table = SlotTable(2)
    held = [table.acquire(tokens(1, 2, 3), "", name).slot for name in ("one", "two")]
    for slot, name in zip(held, ("one", "two"), strict=True):
        table.release(slot, tokens(1, 2, 3, 4), "", name)
    for slot, name in zip(held, ("one", "two"), strict=True):
        assert table.acquire(tokens(1, 2, 3, 5), "", name)[:2] == (slot, 3)


def test_a_session_name_of_another_tenant_is_another_session() -> None:
    table = SlotTable(1)
    slot = table.acquire(tokens(1, 2, 3), "theirs", "session").slot
    table.release(slot, tokens(1, 2, 3), "theirs", "session")
    grant = table.acquire(tokens(1, 2, 3), "ours", "session")
    assert grant.num_reused == 0
    assert (grant.displaced.tolist(), grant.displaced_tenant) == ([1, 2, 3], "theirs")


def test_what_another_session_left_is_reported_as_displaced_and_ones_own_is_not() -> None:
    table = SlotTable(1)
    slot = table.acquire(tokens(1, 2), "", "one").slot
    table.release(slot, tokens(1, 2, 3), "", "one")
    assert table.acquire(tokens(1, 9), "", "one").displaced.tolist() == []
    table.release(slot, tokens(1, 9), "", "one")
    assert table.acquire(tokens(1, 2), "", "two").displaced.tolist() == [1, 9]
