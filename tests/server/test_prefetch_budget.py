"""The budget of work ahead, against people whose waits depend on it."""

import random

from server.prefetch_budget import FACTORS, PrefetchBudget


class People:
    """They ask so often, and wait as the factor in force makes them."""

    def __init__(self, budget: PrefetchBudget, *, seed: int = 0) -> None:
        self.now_s = 50.0
        self._budget, self._draw = budget, random.Random(seed)

    def clock(self) -> float:
        return self.now_s

    def ask(self, count: int, *, per_s: float, worth: dict[float, float]) -> list[float]:
        taken = []
        for _ in range(count):
            factor = self._budget.factor()
            taken.append(factor)
            self.now_s += 1 / per_s
            self._budget.note_wait(0.1 * worth[factor] * self._draw.expovariate(1))
        return taken


def test_the_factor_that_makes_people_wait_least_is_found_for_one_and_for_many() -> None:
    people: People
    budget = PrefetchBudget("learned", lambda: people.clock())
    people = People(budget)
    alone, crowded = {1.0: 1.0, 0.5: 1.3, 1.75: 0.6}, {1.0: 1.0, 0.5: 0.6, 1.75: 1.4}
    shares = []
    for _ in range(2):
        for per_s, worth, best in ((2.0, alone, 1.75), (40.0, crowded, 0.5)):
            taken = people.ask(8000, per_s=per_s, worth=worth)
            shares.append(taken[4000:].count(best) / 4000)
    assert min(shares[2:]) > 0.7
    contexts = {name.split("/")[1] for name in budget.counts}
    assert contexts >= {"one types", "many type"}


def test_a_fixed_budget_never_changes_and_learns_nothing() -> None:
    people: People
    budget = PrefetchBudget("fixed", lambda: people.clock())
    people = People(budget)
    assert set(people.ask(500, per_s=5.0, worth=dict.fromkeys(FACTORS, 1.0))) == {1.0}
    assert budget.counts == {}
