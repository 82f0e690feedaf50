import pytest

from engine.costs import StepCosts, WidthCosts
from engine.shapes import Shape, ShapeFamily

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


def test_shapes_that_run_in_turn_find_their_own_costs() -> None:
    wide = Shape(1, 8, 0)
    costs = StepCosts({SHAPE: 1.0, wide: 1.5})
    for _ in range(300):
        costs.note(SHAPE, 2.0)
        costs.note(wide, 2.2)
    assert [costs.seconds(SHAPE), costs.seconds(wide)] == pytest.approx([2.0, 2.2], rel=0.02)


def test_the_cost_of_a_width_is_that_of_the_program_with_room_for_the_rows() -> None:
    family = ShapeFamily(row_buckets=(1, 2, 4), width_buckets=(1, 8, 16), chunk_buckets=(32,))
    seconds = {shape: float(shape.num_tokens) for shape in family.shapes()}
    costs = WidthCosts(StepCosts(seconds), family)
    assert costs.widths == (1, 8)
    assert [costs.cost_s(rows, 8) for rows in (1, 2, 3)] == pytest.approx([8, 32, 32])


def test_one_disturbed_step_moves_a_cost_little() -> None:
    costs = StepCosts({SHAPE: 1.0})
    costs.note(SHAPE, 1000.0)
    assert costs.seconds(SHAPE) < 1.2
