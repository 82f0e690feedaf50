"""The running count of waits against the definition that looks at all outcomes afterwards."""

import random

from loadtest.outcomes import Outcome, wait_times_s
from loadtest.waiting import Wait


def outcome(number: int, *, at_s: float, live_s: float, first_text_s: float | None) -> Outcome:
    return Outcome(
        user=0,
        number=number,
        at_s=at_s,
        clock_error_s=0.0,
        live_s=live_s,
        first_text_s=first_text_s,
        ended_s=None,
        text="" if first_text_s is None else "x",
        source="",
        is_from_model=True,
        is_cut_short=False,
        num_typed=0,
        num_computed_tokens=None,
        error=None,
        error_kind=None,
        matches_next_chars=None,
        matches_line=None,
    )


def test_a_late_keystroke_waits_on_with_the_next_one() -> None:
    wait = Wait()
    wait.press(0.0)
    wait.press(1.0)
    assert [round(waited_s, 6) for waited_s in wait.show(1.25)] == [0.25, 1.25]
    assert (wait.num_keystrokes, wait.num_on_time, wait.num_never) == (2, 1, 0)


def test_time_in_which_nothing_was_asked_does_not_count() -> None:
    wait = Wait()
    wait.press(0.0)
    wait.change(0.5)
    wait.press(10.0)
    assert [round(waited_s, 6) for waited_s in wait.show(10.1)] == [0.1, 0.6]


def test_text_that_comes_twice_counts_once() -> None:
    wait = Wait()
    wait.press(0.0)
    assert wait.show(0.1)
    assert wait.show(0.2) == []


def test_it_agrees_with_the_definition_on_random_typing() -> None:
    draw = random.Random(7)
    wait, waits, outcomes, now_s = Wait(), list[float](), list[Outcome](), 0.0
    for number in range(300):
        live_s = draw.uniform(0.05, 0.5)
        text_s = draw.uniform(0.01, 0.6)
        is_on_time = text_s <= live_s
        wait.press(now_s)
        if is_on_time:
            waits += wait.show(now_s + text_s)
        outcomes.append(outcome(number, at_s=now_s, live_s=live_s, first_text_s=text_s if is_on_time else None))
        now_s += live_s
        wait.change(now_s)
        now_s += draw.choice((0.0, 0.0, 1.0))
    expected = [waited_s for waited_s in wait_times_s(outcomes).values() if waited_s != float("inf")]
    assert sorted(round(each, 6) for each in waits) == sorted(round(each, 6) for each in expected)
    assert wait.num_never == len(outcomes) - len(expected)
