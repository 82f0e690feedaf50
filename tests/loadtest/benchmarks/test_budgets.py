"""What `bench budgets` makes of its figures."""

import pytest

from loadtest.benchmarks.budgets import compare, draw_arrivals, sum_up
from loadtest.load_result import FAILED, FIRST_TEXT, NEVER_S, WHOLE
from loadtest.users import Figure


def figures(typing_s: float, prompt_s: float, *, num_refused: int = 0) -> list[Figure]:
    return [
        *[Figure("wait", FIRST_TEXT, typing_s)] * 8,
        *[Figure("answer", FIRST_TEXT, prompt_s)] * 2,
        *[Figure("answer", WHOLE, 2 * prompt_s)] * 2,
        *[Figure("answer", FAILED, 0.0, error="no room")] * num_refused,
        Figure("keystroke", "answered by model", typing_s),
    ]


def test_goodput_counts_keystrokes_and_prompts_and_those_refused() -> None:
    found = sum_up([*figures(0.1, 0.5, num_refused=5), Figure("wait", FIRST_TEXT, NEVER_S)])
    assert found["goodput_share"] == 8 / 16
    assert (found["keystrokes"], found["prompts"], found["refused"]) == (9, 7, 5)
    assert found["typing_first_text_p50_ms"] == 100.0
    assert found["typing_first_text_p95_ms"] is None
    assert found["prompt_first_text_p95_ms"] == 500.0


def test_learned_is_set_over_fixed_and_the_later_half_told_apart() -> None:
    fixed = [figures(0.1, 0.4)] * 4
    learned = [figures(0.1, 0.8), figures(0.1, 0.8), figures(0.1, 0.2), figures(0.1, 0.2)]
    found = compare(fixed, learned)
    assert found["learned_over_fixed_first_text_p95"] == pytest.approx(2.0)
    assert found["learned_over_fixed_first_text_p95_late"] == pytest.approx(0.5)
    assert found["learned_over_fixed_typing_first_text_p95"] == pytest.approx(1.0)
    assert found["learned_over_fixed_first_text_p95_least_of_rounds"] == pytest.approx(0.5)
    assert found["learned_over_fixed_first_text_p95_most_of_rounds"] == pytest.approx(2.0)
    assert (found["fixed_goodput_share"], found["learned_goodput_share_late"]) == (0.8, 1.0)


def test_arrivals_are_the_same_for_both_and_others_in_each_round() -> None:
    arrivals_s = draw_arrivals(3, every_s=0.1, seconds=50.0)
    assert arrivals_s == draw_arrivals(3, every_s=0.1, seconds=50.0) != draw_arrivals(4, every_s=0.1, seconds=50.0)
    assert 400 < len(arrivals_s) < 600
    assert arrivals_s == sorted(arrivals_s)
