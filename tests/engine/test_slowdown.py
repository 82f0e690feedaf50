"""The sums of `Slowdown` against the same history added up sequence by sequence."""

import random

import pytest

from engine.slowdown import Slowdown


def test_waiting_and_work_are_what_they_are_sequence_by_sequence() -> None:
    draw, slowdown = random.Random(0), Slowdown()
    now_s, waited_s, writing_s, num_prompt, num_new = 100.0, 0.0, 0.0, 0, 0
    open_ones: list[dict[str, float]] = []
    for step in range(400):
        slept_s = 3.0 if step % 50 == 0 and not open_ones else 0.0
        if draw.random() < 0.3:
            submitted_s = now_s + slept_s - draw.uniform(0, 0.02)
            open_ones.append({"submitted_s": submitted_s, "first_s": 0.0})
            slowdown.enter(submitted_s)
        now_s += slept_s + draw.uniform(0.01, 0.05)
        slowdown.pass_time(now_s)
        for one in list(open_ones):
            if not one["first_s"]:
                is_through = draw.random() < 0.4
                slowdown.advance(32, int(is_through), is_first=True)
                num_prompt, num_new = num_prompt + 32, num_new + is_through
                one["first_s"] = now_s * is_through
            elif draw.random() < 0.9:
                slowdown.advance(0, 2, is_first=False)
                num_new += 2
            else:
                slowdown.leave(is_writing=True)
                open_ones.remove(one)
                waited_s += one["first_s"] - one["submitted_s"]
                writing_s += now_s - one["first_s"]
    for one in open_ones:
        waited_s += (one["first_s"] or now_s) - one["submitted_s"]
        writing_s += now_s - one["first_s"] if one["first_s"] else 0.0
    assert slowdown.num_waiting == sum(not one["first_s"] for one in open_ones)
    assert slowdown.num_waiting + slowdown.num_writing == len(open_ones)
    expected = (waited_s + 0.5 * writing_s) / (num_prompt * 1e-3 + 0.5 * num_new * 1e-2)
    assert slowdown.take(prompt_token_s=1e-3, new_token_s=1e-2) == pytest.approx(expected)


def test_who_leaves_at_once_after_a_calm_leaves_nothing_behind() -> None:
    slowdown = Slowdown()
    slowdown.pass_time(1.0)
    slowdown.enter(100.0)
    slowdown.leave(is_writing=False)
    slowdown.enter(200.0)
    slowdown.pass_time(200.3)
    slowdown.advance(100, 0, is_first=True)
    assert slowdown.take(prompt_token_s=1e-3, new_token_s=1e-2) == pytest.approx(3)


def test_one_request_alone_is_as_slow_as_alone() -> None:
    slowdown = Slowdown()
    slowdown.enter(5.0)
    slowdown.pass_time(5.3)
    slowdown.advance(300, 1, is_first=True)
    slowdown.pass_time(5.5)
    slowdown.advance(0, 20, is_first=False)
    assert slowdown.take(prompt_token_s=1e-3, new_token_s=1e-2) == pytest.approx(0.4 / (0.3 + 0.5 * 0.21))


def test_leaving_a_prompt_behind_does_not_make_it_better() -> None:
    """The same second, with a chunk computed beside the row and without."""
    found = []
    for num_prompt_tokens in (0, 40):
        slowdown = Slowdown()
        slowdown.enter(0.0)
        slowdown.enter(0.0)
        slowdown.advance(0, 1, is_first=True)
        slowdown.pass_time(1.0)
        slowdown.advance(num_prompt_tokens, 0, is_first=True)
        slowdown.advance(0, 10, is_first=False)
        found.append(slowdown.take(prompt_token_s=1e-3, new_token_s=1e-2))
    assert found[0] > found[1]


def test_where_nothing_was_done_nothing_is_said() -> None:
    slowdown = Slowdown()
    slowdown.enter(0.0)
    slowdown.pass_time(1.0)
    assert slowdown.take(prompt_token_s=1.0, new_token_s=1.0) is None
