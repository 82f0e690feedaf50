"""How many users there are while a load test goes on."""

import pytest

from loadtest.errors import RunError
from loadtest.scenarios import SCENARIOS, find_scenario
from loadtest.shapes import LoadShape


def test_users_follow_the_rates_at_the_scale_of_the_peak() -> None:
    shape = LoadShape.from_rates([(0, 1.0), (600, 4.0), (1200, 2.0), (1800, 0.0)], num_steps=4)
    at = [shape.users_at(second, duration_s=40, peak=8) for second in (0, 15, 25, 39.9)]
    assert at == [2, 8, 4, 1]  # at least one


def test_windows_that_share_a_step_are_averaged() -> None:
    shape = LoadShape.from_rates([(0, 1.0), (1, 3.0), (2, 4.0), (3, 0.0)], num_steps=2)
    assert shape.shares == (1.0, 1.0)


def test_the_test_is_over_after_its_time() -> None:
    assert LoadShape(shares=(1.0,)).users_at(10.0, duration_s=10.0, peak=3) is None


def test_every_scenario_names_its_loop_and_an_unknown_one_is_refused() -> None:
    assert {scenario.loop for scenario in SCENARIOS.values()} == {"open", "closed"}
    with pytest.raises(
        RunError, match="'typig' is no scenario; expected one of: typing, daily, bursts, patient, mixed"
    ):
        find_scenario("typig")
