from engine.costs import StepCosts
from engine.shapes import Shape

SHAPE = Shape(1, 1, 0)


def test_costs_follow_what_is_measured() -> None:
    costs = StepCosts({SHAPE: 1.0})
    for _ in range(200):
        costs.note(SHAPE, 2.0)
    assert 1.99 < costs.seconds(SHAPE) <= 2.0


def test_what_slows_one_shape_is_expected_of_the_others_too() -> None:
    costs = StepCosts({SHAPE: 1.0, Shape(1, 8, 0): 1.5})
    for _ in range(200):
        costs.note(SHAPE, 2.0)
    assert costs.seconds(SHAPE) < costs.seconds(Shape(1, 8, 0)) < 3.0


def test_one_disturbed_step_moves_a_cost_little() -> None:
    costs = StepCosts({SHAPE: 1.0})
    costs.note(SHAPE, 1000.0)
    assert costs.seconds(SHAPE) < 1.2
