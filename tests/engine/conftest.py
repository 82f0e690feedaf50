"""An engine on a runner that can be computed by hand, over the tiny tokenizer of the fixtures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine import native
from engine.budgets import FixedBudgets, make_budgets
from engine.config import EngineConfig
from engine.costs import StepCosts
from engine.engine import Engine
from engine.fim import FimTemplate
from engine.model.config import ModelConfig
from engine.plan import EnginePlan, resolve
from engine.shapes import Shape
from engine.tokenizer import Tokenizer
from engine.types import BudgetMode, Finish, Output
from tests.engine.counting_runner import CountingRunner

TINY_MODEL = Path(__file__).parent.parent / "fixtures" / "models" / "tiny-llama"


def make_plan(
    *,
    num_slots: int = 4,
    max_context: int = 256,
    prefill_chunk: int = 16,
    num_blocks: int = 4,
    drafts: bool = True,
    token_healing: bool = True,
    reuses_kv: bool = True,
    **choices: Any,
) -> EnginePlan:
    model = ModelConfig(
        family="llama", vocab_size=512, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=1,
        num_kv_heads=1, head_size=16, max_context=max_context,
    )  # fmt: skip
    config = EngineConfig(
        num_slots=num_slots,
        prefill_chunk=prefill_chunk,
        drafts=drafts,
        token_healing=token_healing,
        reuse_kv=reuses_kv,
        **choices,
    )
    return msgspec.structs.replace(resolve(config, model, available_bytes=1 << 30), num_blocks=num_blocks)


class FixedCosts(StepCosts):
    """Costs that no measurement changes."""

    def note(self, shape: Shape, seconds: float) -> None:
        del shape, seconds


class Recorder:
    """A sink that keeps what it was given."""

    def __init__(self) -> None:
        self.outputs: list[Output] = []

    def __call__(self, output: Output) -> None:
        assert not self.outputs or self.outputs[-1].finish is None, "an output after the last one"
        self.outputs.append(output)

    @property
    def text(self) -> str:
        return "".join(output.text for output in self.outputs)

    @property
    def finish(self) -> Finish | None:
        return self.outputs[-1].finish if self.outputs else None


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the library of native kernels, compiled and known to XLA."""
    library = native.build(tmp_path_factory.mktemp("kernels"))
    native.register(library)
    return library


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(TINY_MODEL)


@pytest.fixture(scope="session")
def template(tokenizer: Tokenizer) -> FimTemplate:
    return FimTemplate.detect(tokenizer)


@pytest.fixture(scope="session")
def ascii_ids(tokenizer: Tokenizer) -> list[int]:
    """Tokens of one printable character, so that every step shows text."""
    return [ids[0] for char in "abcdefghijklmnopqrstuvwxyz(): \n" if len(ids := tokenizer.encode(char)) == 1]


@pytest.fixture
def runner(ascii_ids: list[int]) -> CountingRunner:
    return CountingRunner(ascii_ids)


@pytest.fixture
def make_engine(runner: CountingRunner, tokenizer: Tokenizer, template: FimTemplate) -> Callable[..., Engine]:
    def make(
        *,
        max_waiting: int = 100,
        max_slowdown: float = 0.0,
        costs: dict[int, float] | None = None,
        budgets: BudgetMode | FixedBudgets = "fixed",
        **choices: Any,
    ) -> Engine:
        """`costs`: seconds of a step with a chunk of so many tokens; every other step takes 1 ms."""
        plan = make_plan(**choices)
        seconds = {shape: (costs or {}).get(shape.chunk, 1e-3) for shape in plan.shapes.shapes()}
        known = FixedCosts(seconds)
        if isinstance(budgets, str):
            budgets = make_budgets(budgets, known, plan.shapes, has_drafts=plan.has_drafts)
        return Engine(
            runner=runner,
            tokenizer=tokenizer,
            template=template,
            plan=plan,
            costs=known,
            max_waiting=max_waiting,
            max_slowdown=max_slowdown,
            budgets=budgets,
        )

    return make


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()
