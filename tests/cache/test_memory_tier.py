"""Tier 1: exact answers, the rest of answers that were typed into, and what is given up."""

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cache.key import Answer, Hit, Key
from cache.memory_tier import LOOK_BEHIND_CHARS, MemoryTier, rest_of
from tests.cache.made_keys import Clock, make_answer, make_key


def make_tier(max_bytes: int = 1 << 20, clock: Clock | None = None) -> MemoryTier:
    return MemoryTier(max_bytes=max_bytes, ttl_s=60, now=clock or Clock())


def test_an_answer_is_found_for_its_key_and_no_other() -> None:
    tier = make_tier()
    tier.store(make_key(), make_answer())
    assert tier.lookup(make_key()) == Hit(answer=make_answer(), source="memory")
    assert tier.lookup(make_key(after="x")) is None


def test_what_was_typed_of_an_answer_is_taken_off() -> None:
    tier = make_tier()
    tier.store(make_key("x = "), make_answer("first.second"))
    assert tier.lookup(make_key("x = first")) == Hit(answer=make_answer(".second"), source="type-through", num_typed=5)


def test_typing_something_else_is_a_miss() -> None:
    tier = make_tier()
    tier.store(make_key("x = "), make_answer("first"))
    assert tier.lookup(make_key("x = s")) is None


def test_a_wholly_typed_answer_leaves_nothing_to_serve() -> None:
    tier = make_tier()
    tier.store(make_key("x = "), make_answer("first"))
    assert tier.lookup(make_key("x = first")) is None


def test_an_empty_answer_is_an_answer() -> None:
    tier = make_tier()
    tier.store(make_key("x"), make_answer(""))
    assert tier.lookup(make_key("x")) == Hit(answer=make_answer(""), source="memory")


def test_what_was_written_beyond_the_shown_text_answers_after_an_accept() -> None:
    tier = make_tier()
    tier.store(make_key("x = "), make_answer("a", beyond="; y = b", logit_gap=0.5))
    left = make_answer("", beyond="; y = b", logit_gap=0.5, finish_reason="length")
    assert tier.lookup(make_key("x = a")) == Hit(answer=left, source="type-through", num_typed=1)
    assert tier.lookup(make_key("x = a;")) == Hit(
        answer=msgspec.structs.replace(left, beyond=" y = b"), source="type-through", num_typed=2
    )


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": "u"},
        {"model": "n"},
        {"template": "n"},
        {"after": "z"},
        {"context_hash": "z"},
        {"max_tokens": 3},
        {"stop": ()},
        {"top_k": 1},
        {"cut": 0},
    ],
)
def test_type_through_needs_everything_else_to_be_equal(change: dict[str, object]) -> None:
    tier = make_tier()
    tier.store(make_key("a\nx = "), make_answer("first"))
    assert tier.lookup(make_key("a\nx = f")) is not None
    assert tier.lookup(make_key("a\nx = f", **change)) is None


def test_type_through_needs_the_text_above_the_cut_to_be_equal() -> None:
    tier = make_tier()
    tier.store(make_key("a\nx = "), make_answer("first"))
    assert tier.lookup(make_key("b\nx = f")) is None


def test_sampled_answers_are_served_for_their_own_key_only() -> None:
    tier = make_tier()
    tier.store(make_key("x = ", temperature=0.5), make_answer("first"))
    assert tier.lookup(make_key("x = ", temperature=0.5)) is not None
    assert tier.lookup(make_key("x = f", temperature=0.5)) is None
    tier.extend(make_key("x = ", temperature=0.5), "f")
    assert tier.lookup(make_key("x = f", temperature=0.5)) is None


def test_the_nearest_earlier_key_wins() -> None:
    tier = make_tier()
    tier.store(make_key("x = "), make_answer("first.old"))
    tier.store(make_key("x = fir"), make_answer("st.new"))
    hit = tier.lookup(make_key("x = first"))
    assert hit is not None
    assert hit.answer.text == ".new"


@pytest.mark.parametrize(("num_typed", "is_found"), [(LOOK_BEHIND_CHARS, True), (LOOK_BEHIND_CHARS + 1, False)])
def test_looking_behind_is_bounded(num_typed: int, is_found: bool) -> None:
    tier = make_tier()
    tier.store(make_key("x"), make_answer("y" * 200))
    assert (tier.lookup(make_key("x" + "y" * num_typed)) is not None) == is_found


def test_accepting_extends_an_answer_however_far() -> None:
    tier = make_tier()
    tier.store(make_key("x"), make_answer("y" * 200 + "tail"))
    tier.extend(make_key("x"), "y" * 200)
    assert tier.lookup(make_key("x" + "y" * 200)) == Hit(answer=make_answer("tail"), source="memory")
    tier.extend(make_key("x" + "y" * 200 + "t"), "ai")  # of an answer that was itself typed into
    assert tier.lookup(make_key("x" + "y" * 200 + "tai")) == Hit(answer=make_answer("l"), source="memory")


def test_accepting_keeps_what_the_model_said_there_already_and_what_was_never_said_is_nothing() -> None:
    tier = make_tier()
    tier.store(make_key("x"), make_answer("abc"))
    tier.store(make_key("xa"), make_answer("B"))
    tier.extend(make_key("x"), "a")
    tier.extend(make_key("x"), "z")
    tier.extend(make_key("nothing"), "a")
    assert tier.lookup(make_key("xa")) == Hit(answer=make_answer("B"), source="memory")
    assert len(tier) == 2


def test_what_is_too_old_is_gone() -> None:
    clock = Clock()
    tier = make_tier(clock=clock)
    tier.store(make_key("x"), make_answer("abc"))
    clock.now_s += 61
    assert tier.lookup(make_key("xa")) is None
    assert tier.lookup(make_key("x")) is None
    assert (len(tier), tier.num_bytes, tier.num_evicted) == (0, 0, 1)


def test_the_least_recently_used_answer_makes_room() -> None:
    tier = make_tier(max_bytes=2_000)
    for before in ("a", "b"):
        tier.store(make_key(before), make_answer("z" * 200))
    tier.lookup(make_key("a"))
    tier.store(make_key("c"), make_answer("z" * 200))
    assert [tier.lookup(make_key(before)) is not None for before in "abc"] == [True, False, True]


def test_an_answer_larger_than_the_tier_is_not_kept_and_displaces_only_its_predecessor() -> None:
    tier = make_tier(max_bytes=2_000)
    tier.store(make_key("a"), make_answer("kept"))
    tier.store(make_key("b"), make_answer("small"))
    tier.store(make_key("b"), make_answer("z" * 2_000))
    assert tier.lookup(make_key("a")) is not None
    assert tier.lookup(make_key("b")) is None


def test_clearing_one_tenant_leaves_the_others() -> None:
    tier = make_tier()
    for tenant in ("t", "u"):
        tier.store(make_key(tenant=tenant), make_answer())
    assert tier.clear("t") == 1
    assert tier.lookup(make_key(tenant="t")) is None
    assert tier.lookup(make_key(tenant="u")) is not None
    assert tier.clear() == 1


def test_the_rest_of_an_answer() -> None:
    answer = make_answer("ab", beyond="cd")
    assert [rest_of(answer, typed) for typed in ("b", "abx", "abcd", "abcde")] == [None] * 4
    assert rest_of(answer, "") == answer
    assert rest_of(make_answer(""), "") == make_answer("")
    assert rest_of(answer, "abc") == make_answer("", beyond="d", finish_reason="length")


class MemoryMachine(RuleBasedStateMachine):
    """The tier against a list of everything ever stored: what it serves must follow from it."""

    keys = st.builds(
        make_key, st.text("ab\n", max_size=5), tenant=st.sampled_from("tu"), temperature=st.sampled_from([0.0, 1.0])
    )

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.tier = MemoryTier(max_bytes=6_000, ttl_s=10, now=self.clock)
        self.twin: list[tuple[Key, Answer]] = []

    @rule(key=keys, text=st.text("abé", max_size=4), beyond=st.text("ab", max_size=2))
    def store(self, key: Key, text: str, beyond: str) -> None:
        answer = make_answer(text, beyond=beyond, created_s=self.clock.now_s)
        self.tier.store(key, answer)
        self.twin.append((key, answer))

    @rule(key=keys, accepted=st.text("ab", min_size=1, max_size=3))
    def extend(self, key: Key, accepted: str) -> None:
        self.tier.extend(key, accepted)

    @rule(key=keys)
    def lookup(self, key: Key) -> None:
        hit = self.tier.lookup(key)
        if hit is None:
            return
        possible = [
            rest
            for earlier, answer in self.twin
            if key.line.startswith(earlier.line)
            and earlier.place == key.place
            and (key.is_greedy or key.line == earlier.line)
            and self.clock.now_s - answer.created_s <= 10
            and (rest := rest_of(answer, key.line[len(earlier.line) :])) is not None
        ]
        assert hit.answer in possible

    @rule(key=keys)
    def store_and_lookup(self, key: Key) -> None:
        self.store(key, "ab", "")
        assert self.tier.lookup(key) == Hit(answer=self.twin[-1][1], source="memory")

    @rule(tenant=st.sampled_from(["t", None]))
    def clear(self, tenant: str | None) -> None:
        self.tier.clear(tenant)
        self.twin = [pair for pair in self.twin if tenant not in (None, pair[0].tenant)]

    @rule(seconds=st.integers(1, 6))
    def wait(self, seconds: int) -> None:
        self.clock.now_s += seconds

    @invariant()
    def is_whole(self) -> None:
        self.tier.check_integrity()


TestMemoryMachine = MemoryMachine.TestCase
