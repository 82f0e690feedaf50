"""The bandit against environments whose best arms are known, and against drawing arms blindly."""

import random

import numpy as np

from engine.bandit import Bandit

WORTH = {"calm": (0.0, 0.15, -0.1), "busy": (0.0, -0.2, 0.1), "full": (0.1, 0.0, 0.05)}
NOISE = 0.2


def play(bandit: Bandit | None, num_rounds: int, *, seed: int, worth=WORTH, drift: float = 0.0) -> list[float]:
    """Return, for each round, how much less was paid than by the best arm; None draws arms blindly.

    `drift`: by how much everything pays less from one round to the next.
    """
    draw, lost = random.Random(seed), []
    for number in range(num_rounds):
        context = draw.choice(list(worth))
        paid = worth[context]
        arm = draw.randrange(3) if bandit is None else bandit.choose(context).arm
        if bandit is not None:
            bandit.learn(context, arm, paid[arm] - drift * number + draw.gauss(0, NOISE))
        lost.append(max(paid) - paid[arm])
    return lost


def best_arms(bandit: Bandit) -> dict[str, int]:
    return {context: bandit.best(context) for context in WORTH}


def test_the_best_arm_of_each_context_is_found_and_regret_falls() -> None:
    bandit = Bandit(3, seed=1)
    lost = play(bandit, 3000, seed=1)
    assert best_arms(bandit) == {"calm": 1, "busy": 2, "full": 0}
    blind = np.mean(play(None, 3000, seed=1))
    assert np.mean(lost[-1000:]) < 0.25 * np.mean(lost[:100])
    assert np.mean(lost[-1000:]) < 0.15 * blind


def test_it_is_found_while_everything_becomes_slower() -> None:
    bandit = Bandit(3, seed=2)
    play(bandit, 3000, seed=2, drift=1e-3)
    assert best_arms(bandit) == {"calm": 1, "busy": 2, "full": 0}


def test_an_arm_that_has_become_the_best_is_found_again() -> None:
    bandit = Bandit(3, seed=3)
    play(bandit, 2000, seed=3)
    turned = {context: worth[::-1] for context, worth in WORTH.items()}
    lost = play(bandit, 4000, seed=4, worth=turned)
    assert best_arms(bandit) == {"calm": 1, "busy": 0, "full": 2}
    assert np.mean(lost[-1000:]) < 0.3 * np.mean(lost[:100])


def test_where_arms_are_alike_others_are_tried_at_most_once_in_six_and_the_first_stays() -> None:
    bandit, draw, tried = Bandit(3, seed=4), random.Random(4), []
    for _ in range(600):
        arm, is_tried = bandit.choose("alike")
        assert is_tried == (arm != bandit.best("alike"))
        tried.append(is_tried)
        bandit.learn("alike", arm, -abs(arm) * 1e-3 + draw.gauss(0, 1e-3))
    assert 0 < sum(tried) <= 100
    assert bandit.best("alike") == 0
    for first, second in zip(np.flatnonzero(tried), np.flatnonzero(tried)[1:], strict=False):
        assert second - first >= 6


def test_before_anything_is_learned_the_first_arm_is_taken() -> None:
    assert [Bandit(3, seed=seed).choose("new") for seed in range(20)] == [(0, False)] * 20


def test_a_reward_that_is_hardly_due_to_an_arm_says_little_of_it() -> None:
    errors = []
    for weight in (1.0, 0.05):
        bandit = Bandit(2)
        for reward in (0.0, 0.2, -0.2) * 10:
            bandit.learn("c", 1, reward, weight=weight)
        errors.append(bandit.estimate("c", 1).error)
    assert errors[0] < 0.6 * errors[1]


def test_the_same_calls_give_the_same_arms() -> None:
    assert play(Bandit(3, seed=5), 300, seed=5) == play(Bandit(3, seed=5), 300, seed=5)
