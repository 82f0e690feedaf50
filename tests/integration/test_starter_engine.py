"""The starter model through the whole engine: what is reused and drafted changes nothing but time."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.loader import load_engine
from engine.thread import EngineThread
from engine.types import Output, Request, SamplingParams
from tests.engine.test_thread import Waiter

SAMPLE = Path(__file__).parents[2] / "loadtest" / "samples" / "cart.ts"
NEAR_TIE = 1e-3
"""Where the two best scores are this close, rounding may choose either (docs/decisions/0009)."""


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineThread]:
    running = load_engine(config=EngineConfig(num_slots=2, max_context=1024))
    yield running
    assert running.stats().num_recompiles == 0
    running.close(timeout_s=0)


def places() -> list[tuple[str, str]]:
    text = SAMPLE.read_text()
    return [(text[:i], text[i:]) for i in range(150, len(text), len(text) // 9)]


def complete(engine: EngineThread, name: str, before: str, after: str, **fields) -> list[Output]:
    sampling = fields.pop("sampling", SamplingParams(max_tokens=24))
    waiter = Waiter()
    cut = before.rfind("\n") + 1
    engine.submit(
        Request(request_id=name, before=before, after=after, cut=cut, sampling=sampling, session="s", **fields), waiter
    )
    assert waiter.finish().state == "finished"
    return waiter.outputs


def text_of(outputs: list[Output]) -> str:
    return "".join(output.text for output in outputs)


def smallest_gap(outputs: list[Output]) -> float:
    return min(output.logit_gap for output in outputs if output.logit_gap is not None)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_reuse_and_drafts_give_the_text_that_is_computed_anew(engine: EngineThread, temperature: float) -> None:
    sampling = SamplingParams(max_tokens=24, temperature=temperature, seed=7)
    differing = []
    for i, (before, after) in enumerate(places()):
        anew = complete(engine, f"anew {i}", before, after, sampling=sampling, is_fresh=True)
        draft = text_of(anew)[:11] + " other()"
        again = complete(engine, f"again {i}", before, after, sampling=sampling, draft=draft)
        if text_of(again) != text_of(anew) and (temperature or smallest_gap(anew) > NEAR_TIE):
            differing.append((before[-20:], text_of(anew), text_of(again)))
    assert not differing
    assert engine.stats().num_accepted_tokens > 0


def test_a_typed_character_computes_one_token(engine: EngineThread) -> None:
    before, after = places()[4]
    for i in range(1, 6):
        outputs = complete(engine, f"key {i}", before + "total"[:i], after)
    assert outputs[-1].finish is not None
    usage = outputs[-1].finish.usage
    assert usage.num_prompt_tokens - usage.num_reused_tokens <= 4
