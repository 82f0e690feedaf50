"""The bound on requests in hand: it follows how late they are, shares itself among tenants, and leaves others alone."""

import random

import pytest

from engine.room import Room
from engine.types import Usage


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def make_room(clock: Clock | None = None, *, max_slowdown: float = 2.0, first: int = 4, most: int = 32) -> Room:
    return Room(max_slowdown=max_slowdown, unhurried_s=0.0, first=first, most=most, alone_s=1.0, clock=clock or Clock())


def usage(total_s: float, *, first_s: float | None = None, num_prompt: int = 0) -> Usage:
    first_s = total_s / 2 if first_s is None else first_s
    return Usage(
        first_token_s=first_s, total_s=total_s, num_prompt_tokens=num_prompt, num_reused_tokens=num_prompt // 2
    )


def enter(room: Room, tenant: str = "") -> object:
    assert room.retry_after_s(tenant) is None
    return room.enter(tenant, is_bounded=True)


def test_requests_come_in_until_the_limit_and_again_when_one_has_left() -> None:
    room = make_room(first=2)
    place = room.enter("", is_bounded=True)
    enter(room)
    assert room.retry_after_s("") is not None
    room.leave(place, "finished", usage(1.0))
    assert room.retry_after_s("") is None


def test_late_requests_make_the_room_smaller_but_never_nothing() -> None:
    room = make_room()
    for _ in range(100):
        room.leave(room.enter("", is_bounded=True), "finished", usage(9.0, first_s=0.1))
        room.enter("", is_bounded=True)  # company, so that nothing is learned of being alone
    assert room.limit == 1


def test_a_late_first_token_counts_even_when_the_request_was_given_up() -> None:
    room = make_room()
    room.enter("", is_bounded=True)
    for _ in range(20):
        room.leave(room.enter("", is_bounded=True), "cancelled", usage(9.0, first_s=0.0))
    assert room.limit < 4


def test_the_room_grows_while_it_is_full_and_nobody_is_late() -> None:
    room = make_room(first=2)
    room.enter("", is_bounded=True)
    for _ in range(100):
        room.leave(room.enter("", is_bounded=True), "finished", usage(0.5))
    assert room.limit > 2


def test_where_slowness_follows_company_about_one_in_twenty_is_late() -> None:
    """A server on which `n` requests at once take `n` times as long, with sizes that vary eightfold."""
    draw = random.Random(3)
    room = make_room(first=16)

    def take(num_at_once: int) -> Usage:
        size = draw.uniform(0.5, 4.0)
        total_s = size * num_at_once * draw.uniform(0.8, 1.2)
        return usage(total_s, first_s=total_s, num_prompt=round(2000 * size))

    for _ in range(200):
        room.leave(room.enter("", is_bounded=True), "finished", take(1))
    num_late = 0
    held: list = []
    for number in range(4000):
        while room.retry_after_s("") is None:
            held.append(room.enter("", is_bounded=True))
        taken = take(len(held))
        num_late += number >= 2000 and taken.first_token_s > room.late_after_s(taken)[0]
        room.leave(held.pop(0), "finished", taken)
    assert 0.02 <= num_late / 2000 <= 0.10
    assert room.limit <= 3


def test_what_a_request_takes_alone_is_learned_from_those_without_company() -> None:
    room = make_room()
    for _ in range(8):
        room.leave(room.enter("", is_bounded=True), "finished", usage(3.0, first_s=1.0))
    assert room.late_after_s(usage(0)) == pytest.approx((2.0, 6.0))
    first = room.enter("", is_bounded=True)
    second = room.enter("", is_bounded=True)
    room.leave(first, "finished", usage(30.0))
    room.leave(second, "finished", usage(30.0))
    assert room.late_after_s(usage(0)) == pytest.approx((2.0, 6.0))


@pytest.mark.parametrize(("first_s", "is_late"), [(0.59, False), (0.61, True)])
def test_what_long_prompts_take_does_not_excuse_short_ones(first_s: float, is_late: bool) -> None:
    room = make_room()
    for _ in range(8):
        room.leave(room.enter("", is_bounded=True), "finished", usage(2.0, first_s=2.0, num_prompt=4000))
    room.enter("", is_bounded=True)
    before = room._limit
    room.leave(room.enter("", is_bounded=True), "finished", usage(first_s, first_s=first_s, num_prompt=600))
    assert (room._limit < before) == is_late


def test_below_what_anybody_notices_nothing_is_late() -> None:
    room = Room(max_slowdown=2.0, unhurried_s=0.1, first=2, most=4, alone_s=0.01, clock=Clock())
    room.enter("", is_bounded=True)
    for _ in range(50):
        room.leave(room.enter("", is_bounded=True), "finished", usage(0.09))
    assert room.limit >= 2


def test_a_tenant_that_asks_much_does_not_keep_out_one_that_asks_little() -> None:
    clock = Clock()
    room = make_room(clock)
    for _ in range(4):
        enter(room, "greedy")
    assert room.retry_after_s("greedy") is not None
    enter(room, "modest")
    enter(room, "modest")
    assert room.retry_after_s("modest") is not None, "it has its half"
    assert room.retry_after_s("greedy") is not None


def test_a_tenant_that_has_gone_leaves_its_part_to_the_others() -> None:
    clock = Clock()
    room = make_room(clock)
    room.leave(room.enter("gone", is_bounded=True), "finished", usage(1.0))
    assert room.retry_after_s("gone") is None
    for _ in range(2):
        enter(room, "other")
    assert room.retry_after_s("other") is not None
    clock.now_s = 3.0
    assert room.retry_after_s("other") is None


def test_with_more_tenants_than_places_each_may_hold_one_of_them() -> None:
    room = make_room(first=2)
    for tenant in ("a", "b"):
        enter(room, tenant)
    assert room.retry_after_s("a") is not None
    assert room.retry_after_s("c") is not None


@pytest.mark.parametrize("max_slowdown", [0.0])
def test_without_a_bound_everybody_comes_in(max_slowdown: float) -> None:
    room = make_room(max_slowdown=max_slowdown, first=1)
    for _ in range(10):
        enter(room)


def test_work_for_which_nobody_waits_takes_no_place() -> None:
    room = make_room(first=1)
    place = room.enter("", is_bounded=False)
    assert room.num_in_hand == 0
    room.leave(place, "finished", usage(100.0))
    assert room.limit == 1
