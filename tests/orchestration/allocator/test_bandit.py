import numpy as np

from orchestration.allocator.bandit import LinUcb

WORTH = np.array([[1.0, 0.0, 0.2], [0.0, 1.0, 0.2], [0.5, 0.5, 0.0]])
"""[arm, context number]: what an arm pays is linear in the context."""


def play(bandit: LinUcb, worth: np.ndarray, num_rounds: int, seed: int) -> list[float]:
    """Return, for each round, how much less was paid than the best arm would have."""
    rng = np.random.default_rng(seed)
    lost = []
    for _ in range(num_rounds):
        busy = rng.uniform()
        context = (busy, 1 - busy, 1.0)
        paid = worth @ context
        arm = bandit.choose(context)
        bandit.learn(context, arm, paid[arm] + rng.normal(0, 0.2))
        lost.append(float(paid.max() - paid[arm]))
    return lost


def test_the_best_arm_of_each_context_is_found_as_an_oracle_would_take_it() -> None:
    lost = play(LinUcb(3, 3, exploration=0.5), WORTH, 3000, seed=0)
    # Arms taken by chance lose 0.3 on average; the regret must vanish, not only fall.
    assert np.mean(lost[-500:]) < 0.02
    assert np.mean(lost[:30]) > 0.05
    bandit = LinUcb(3, 3, exploration=0.5)
    play(bandit, WORTH, 2000, seed=1)
    assert [bandit.choose((busy, 1 - busy, 1.0)) for busy in (0.9, 0.1)] == [0, 1]


def test_an_arm_that_has_become_better_is_found_again() -> None:
    bandit = LinUcb(3, 3, exploration=0.5, keep=0.99)
    play(bandit, WORTH, 1000, seed=2)
    assert np.mean(play(bandit, WORTH[[1, 0, 2]], 2000, seed=3)[-500:]) < 0.06
