"""Budgets change when something is computed and never what; learned ones find what makes people wait least."""

import logging
import math
import random
from dataclasses import dataclass, field

import jax.numpy as jnp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import budgets
from engine.budgets import STALL, FixedBudgets, LearnedBudgets, make_budgets
from engine.costs import StepCosts
from engine.engine import Engine
from engine.shapes import Shape, ShapeFamily
from engine.types import Request, SamplingParams
from engine.weights.load import load_model
from tests.engine.conftest import TINY_MODEL, FixedCosts, Recorder
from tests.engine.real_engine import Given, run
from tests.engine.test_engine import expected_text, request, run_until_idle, submit

SHAPES = ShapeFamily(row_buckets=(1, 2, 4, 8, 16), width_buckets=(1, 8, 16), chunk_buckets=(32, 64, 128, 256))


class Drawn(FixedBudgets):
    """Budgets by chance, new ones at each step."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._draw = random.Random(seed)

    def stall(self, num_rows: int) -> float:
        return self._draw.choice((0.0, STALL, math.inf))

    def widest_draft(self, num_rows: int) -> int | None:
        return self._draw.choice((1, 8, None))


class Seeing(Engine):
    """Keeps the shapes that it ran; a step costs some time, and more with its tokens, so that drafts pay."""

    def __init__(self, **arguments) -> None:
        shapes = arguments["plan"].shapes.shapes()
        super().__init__(
            **arguments | {"costs": FixedCosts({shape: 1e-3 * (8 + shape.num_tokens) for shape in shapes})}
        )
        self.shapes: set[Shape] = set()

    def _run(self, plan) -> None:
        self.shapes |= {run.shape for run in plan.runs}
        super()._run(plan)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), sizes=st.lists(st.integers(1, 30), min_size=1, max_size=7))
def test_whatever_the_budgets_every_request_gets_what_it_gets_alone(
    make_engine, tokenizer, template, ascii_ids, seed: int, sizes: list[int]
) -> None:
    engine = make_engine(budgets=Drawn(seed), prefill_chunk=64, costs={64: 3e-3, 32: 2e-3})
    requests = [
        request(str(i), f"# {i}\n" + "v = 1\n" * size, max_tokens=9, draft="abc abc abc")
        for i, size in enumerate(sizes)
    ]
    recorders = [submit(engine, one) for one in requests]
    run_until_idle(engine)
    for one, recorder in zip(requests, recorders, strict=True):
        assert recorder.text == expected_text(one, tokenizer, template, ascii_ids)


def test_tokens_are_equal_under_any_sequence_of_budgets_on_a_real_model(tokenizer, template) -> None:
    loaded = load_model(TINY_MODEL, dtype=jnp.float32)
    engine = Given(tokenizer, template).engine(loaded, Seeing, num_slots=4, reuse_kv=False, sparse="off")

    def complete(salt: int) -> list[Recorder]:
        return run(
            engine,
            [
                Request(
                    request_id=f"{salt} {i}",
                    before=f"# file {i}\n" + "self.x = self.width\n" * (3 + 9 * (i % 3)) + "self.x = self.",
                    draft="widthwidthwidth",
                    sampling=SamplingParams(temperature=0.9 * (i % 2), top_k=5, seed=i, max_tokens=12 + i),
                )
                for i in range(5)
            ],
        )

    expected = complete(-1)
    for seed in range(3):
        engine._scheduler._budgets = Drawn(seed)
        for ours, theirs in zip(complete(seed), expected, strict=True):
            gaps = [output.logit_gap for output in theirs.outputs if output.logit_gap is not None]
            assert ours.text == theirs.text or min(gaps) < 1e-3
    mixed = {shape.chunk for shape in engine.shapes if shape.rows and shape.chunk}
    assert len(mixed) == 2, "the budgets must have had some effect"
    assert {shape.width for shape in engine.shapes} >= {1, 8}


@dataclass
class Standing:
    """A sequence as budgets see it."""

    num_generated: int = 0
    submitted_at: float = 0.0
    request: Request = field(default_factory=lambda: Request(request_id="", before=""))


def costs() -> StepCosts:
    return FixedCosts({shape: 2e-3 + 1e-4 * shape.num_tokens for shape in SHAPES.shapes()})


class Environment:
    """A chunk's step takes 40 ms times what the budget in force is worth in the context; all get equally far in it."""

    def __init__(self, learned: LearnedBudgets, worth: dict[int, dict[float, float]], *, seed: int) -> None:
        self._learned, self._worth, self._draw = learned, worth, random.Random(seed)
        self._now_s = 1000.0

    def run(self, num_windows: int) -> list[tuple[int, float]]:
        """Return the rows and the budget of each step."""
        taken = []
        for _ in range(num_windows):
            num_rows = self._draw.choice(list(self._worth))
            ones = [Standing(submitted_at=self._now_s) for _ in range(num_rows + 1)]
            for one in ones:
                self._learned.note_entered(one)
            for one in ones[1:]:
                self._learned.note_progress(one, 0, num_new_tokens=1)
                one.num_generated = 1
            for _ in range(25):
                self._learned.begin_step()
                stall = self._learned.stall(num_rows)
                taken.append((num_rows, stall))
                seconds = 0.05 * self._worth[num_rows][stall] * self._draw.uniform(0.6, 1.4)
                self._now_s += seconds
                self._learned.note_step(self._now_s, seconds)
                self._learned.note_progress(ones[0], 64)
                for one in ones[1:]:
                    self._learned.note_progress(one, 0, num_new_tokens=1)
            for one in ones:
                self._learned.note_left(one)
        return taken


def test_learned_budgets_find_what_makes_people_wait_least_in_each_context() -> None:
    learned = LearnedBudgets(costs(), SHAPES, has_drafts=True)
    worth = {1: {STALL: 1.0, 1.25: 1.2, 8.0: 0.8}, 8: {STALL: 1.0, 1.25: 0.8, 8.0: 1.2}}
    taken = Environment(learned, worth, seed=0).run(400)
    late = taken[len(taken) // 2 :]
    for num_rows, best in ((1, 8.0), (8, 1.25)):
        share = [stall == best for rows, stall in late if rows == num_rows]
        assert sum(share) / len(share) > 0.75, num_rows
    begun = [stall for _, stall in taken[:125]]
    assert set(begun) == {STALL}, "what is set comes first"
    assert learned.counts["chunk/rows up to 1, few wait/8"] > 50
    assert all(name.startswith("chunk/") for name in learned.counts)


def test_a_row_is_told_from_many_by_the_program_that_computes_them() -> None:
    learned = LearnedBudgets(costs(), SHAPES, has_drafts=True)
    for one in (Standing(), *(Standing(num_generated=1) for _ in range(2))):
        learned.note_entered(one)
    learned._slowdown.num_waiting, learned._slowdown.num_writing = 1, 2
    for num_rows in (1, 2, 4, 5, 16):
        learned.stall(num_rows)
    assert list(learned._stalls._num_asked) == [f"rows up to {rows}, few wait" for rows in (1, 4, 16)]


def test_for_work_that_nobody_waits_for_nothing_is_tried() -> None:
    learned = LearnedBudgets(costs(), SHAPES, has_drafts=True)
    ahead = Standing(request=Request(request_id="", before="", priority="speculative"))
    now_s = 0.0
    for _ in range(500):
        learned.begin_step()
        assert (learned.stall(3), learned.widest_draft(3)) == (STALL, None)
        learned.note_entered(ahead)
        learned.note_step(now_s := now_s + 0.1, 0.1)
        learned.note_progress(ahead, 64)
        learned.note_left(ahead)
    assert learned.counts == {}


def test_drafts_of_one_sequence_are_left_to_what_they_cost() -> None:
    learned = LearnedBudgets(costs(), SHAPES, has_drafts=True)
    learned._slowdown.num_writing = 2
    assert (learned.widest_draft(1), learned.widest_draft(2)) == (None, 8)
    assert LearnedBudgets(costs(), SHAPES, has_drafts=False).widest_draft(2) is None


def test_the_draft_budget_is_tried_and_counted_in_the_running_engine(make_engine, runner, monkeypatch) -> None:
    monkeypatch.setattr(budgets, "_WINDOW_S", 0.0)
    monkeypatch.setattr(budgets, "_WINDOW_STEPS", 2)
    engine = make_engine(budgets="learned", prefill_chunk=64, costs={64: 3e-3, 32: 2e-3})
    for wave in range(5):  # values that are drawn by what steps take are each drawn at some time
        for i in range(40):
            submit(engine, request(f"{wave} {i}", f"# {i}\n" + "value = 1\n" * (3 + 20 * (i % 2)), max_tokens=20))
        run_until_idle(engine)
    told = engine.stats().num_budget_windows
    values = {tuple(name.split("/")[::2]) for name in told}
    assert values == {("chunk", "2.5"), ("chunk", "1.25"), ("chunk", "8"), ("drafts", "8"), ("drafts", "1")}


def test_who_waits_and_who_is_written_for_stays_true_whatever_happens(make_engine, runner) -> None:
    engine, draw = make_engine(budgets="learned", num_slots=2), random.Random(7)
    slowdown = engine._budgets._slowdown
    for number in range(300):
        if draw.random() < 0.3:
            priority = draw.choice(("interactive", "interactive", "speculative"))
            size, count = draw.randrange(1, 12), draw.choice((0, 1, 4))
            submit(engine, request(str(number), "v = 1\n" * size, max_tokens=count, priority=priority))
        if draw.random() < 0.1:
            engine.cancel(str(number - draw.randrange(5)))
        runner.fails = draw.random() < 0.03
        engine.step()
        people = [one for one in engine._scheduler._all() if one.request.priority == "interactive"]
        assert slowdown.num_writing == sum(one.num_generated > 0 for one in people)
        assert slowdown.num_waiting + slowdown.num_writing == len(people)
    engine.fail_all("the end")
    assert (slowdown.num_waiting, slowdown.num_writing) == (0, 0)


def test_every_choice_is_logged_with_its_reason(caplog) -> None:
    learned = LearnedBudgets(costs(), SHAPES, has_drafts=True)
    with caplog.at_level(logging.DEBUG, logger="engine"):
        Environment(learned, {1: {STALL: 1.0, 1.25: 1.2, 8.0: 0.5}}, seed=1).run(60)
    lines = [record.getMessage() for record in caplog.records]
    assert "chunk budget, rows up to 1, few wait: 2.5 (pays +0.000, give or take 0.224), the best so far" in lines
    assert any(", tried; the best so far is 2.5 (pays " in line for line in lines)
    [turn] = [record for record in caplog.records if record.levelno == logging.INFO]
    assert turn.getMessage().startswith("chunk budget, rows up to 1, few wait: now 8 (pays +")
    assert ", which was 2.5 (pays " in turn.getMessage()


def test_fixed_is_what_there_is_unless_asked_for() -> None:
    assert type(make_budgets("fixed", costs(), SHAPES, has_drafts=True)) is FixedBudgets
    assert isinstance(make_budgets("learned", costs(), SHAPES, has_drafts=True), LearnedBudgets)
