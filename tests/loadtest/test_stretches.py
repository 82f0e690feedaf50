"""Stretches: the seed decides where each user begins, and typing is preferred to pauses."""

import pytest

from loadtest.errors import TraceError
from loadtest.stretches import Stretch, choose_stretches

SLOW, FAST = 10.0, 0.1
TIMES_S = [i * SLOW for i in range(50)] + [50 * SLOW + i * FAST for i in range(51)]


def test_stretches_come_from_where_typing_is() -> None:
    for seed in range(20):
        for stretch in choose_stretches(TIMES_S, users=3, count=10, seed=seed):
            assert stretch.first >= 40
            assert stretch.first + stretch.count <= len(TIMES_S)


def test_users_begin_at_different_places_and_more_users_do_not_move_the_first() -> None:
    three = choose_stretches(TIMES_S, users=3, count=10, seed=4)
    assert len({stretch.first for stretch in three}) == 3
    assert choose_stretches(TIMES_S, users=2, count=10, seed=4) == three[:2]
    assert choose_stretches(TIMES_S, users=3, count=10, seed=4) == three
    assert choose_stretches(TIMES_S, users=3, count=10, seed=5) != three


def test_places_are_used_again_when_there_are_more_users() -> None:
    assert [s.first for s in choose_stretches([0.0, 1.0, 2.0], users=5, count=3, seed=0)] == [0] * 5


def test_without_a_count_every_user_types_everything_the_first_from_the_beginning() -> None:
    one, other = choose_stretches(TIMES_S, users=2, count=None, seed=0)
    assert one == Stretch(0, 101)
    assert other.count == 101
    assert other.first > 0


def test_more_keystrokes_than_there_are_is_refused() -> None:
    with pytest.raises(TraceError) as raised:
        choose_stretches([0.0], users=1, count=2, seed=0)
    assert str(raised.value) == ("2 consecutive keystrokes were asked for, but the trace has 1; ask for fewer")
