"""The compiled programs on a tiny random model: each fast path against its obvious twin."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine import native
from engine.config import EngineConfig
from engine.errors import StepError
from engine.model.attention import native_attention, xla_attention
from engine.model.config import ModelConfig
from engine.model.transformer import attend_causally
from engine.plan import resolve
from engine.runner import DeviceRunner, Row
from engine.types import SamplingParams
from engine.weights.load import load_model, random_model

FIXTURES = Path(__file__).parents[1] / "fixtures" / "models"
OF_EVERY_FAMILY = (
    "tiny-qwen2", "qwen2-windows", "tiny-qwen3", "tiny-mistral", "mistral-window-old-config", "tiny-starcoder2",
    "tiny-gemma",
)  # fmt: skip
MODEL = ModelConfig(
    family="llama", vocab_size=70, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2,
    head_size=16, max_context=128,
)  # fmt: skip
NUM_TOKENS = 67
LOADED = random_model(MODEL, seed=3, dtype=jnp.float32)
GREEDY = SamplingParams()


def make_runner(attention) -> DeviceRunner:
    plan = resolve(EngineConfig(num_slots=4, prefill_chunk=32), MODEL, available_bytes=1 << 30)
    runner = DeviceRunner(
        graphdef=LOADED.graphdef, weights=LOADED.weights, config=MODEL, plan=plan, attention=attention,
        num_tokens=NUM_TOKENS,
    )  # fmt: skip
    runner.warm_up(lambda message: None)
    return runner


@pytest.fixture(scope="module", params=["xla", "native"])
def runner(request, tmp_path_factory) -> DeviceRunner:
    if request.param == "native":
        native.build(tmp_path_factory.mktemp("kernels"))
    return make_runner(native_attention if request.param == "native" else xla_attention)


def reference_logits(tokens: list[int]) -> np.ndarray:
    """The whole sequence at once, plain causal attention, no KV."""
    padded = np.zeros((1, MODEL.max_context + 8), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(all_logits(padded)[0, len(tokens) - 1])[:NUM_TOKENS]


@jax.jit
def all_logits(tokens):
    model = nnx.merge(LOADED.graphdef, LOADED.weights)
    return model.logits(model(tokens, jnp.arange(tokens.shape[1])[None], attend_causally))


def reference(tokens: list[int], count: int) -> list[int]:
    """Greedy completion, everything computed anew for each token."""
    out: list[int] = []
    for _ in range(count):
        out.append(int(reference_logits([*tokens, *out]).argmax()))
    return out


def prefill(runner: DeviceRunner, slot: int, tokens: list[int], *, chunk: int = 32, start: int = 0, **row) -> int:
    for i in range(start, len(tokens), chunk):
        [(token, _)] = runner.run(
            [Row(slot, i, tokens[i : i + chunk], row.get("sampling", GREEDY), 0, row.get("allowed"))]
        )
    return token


def decode(runner: DeviceRunner, slots: list[int], sequences: list[list[int]], count: int) -> list[list[int]]:
    for _ in range(count):
        rows = [Row(slot, len(s) - 1, s[-1:], GREEDY, 0) for slot, s in zip(slots, sequences, strict=True)]
        for sequence, choice in zip(sequences, runner.run(rows), strict=True):
            sequence.append(choice.token)
    return sequences


PROMPT = np.random.default_rng(0).integers(0, NUM_TOKENS, 45).tolist()


def test_prefill_and_decode_equal_the_whole_sequence_computed_anew(runner) -> None:
    first = prefill(runner, 2, PROMPT)
    [sequence] = decode(runner, [2], [[*PROMPT, first]], 6)
    assert sequence[len(PROMPT) :] == reference(PROMPT, 7)


@pytest.mark.parametrize("attention", [xla_attention, native_attention])
@pytest.mark.parametrize("name", OF_EVERY_FAMILY)
def test_models_of_every_family_continue_as_the_reference_implementation_does(
    name: str, attention, tmp_path_factory
) -> None:
    loaded = load_model(FIXTURES / name, dtype=jnp.float32)
    if attention is native_attention:
        native.build(tmp_path_factory.getbasetemp() / "kernels")
    with np.load(FIXTURES / name / "reference.npz", allow_pickle=False) as reference:
        tokens, logits = reference["tokens"][0].tolist(), reference["logits"][0]
    plan = resolve(EngineConfig(num_slots=1, prefill_chunk=16), loaded.config, available_bytes=1 << 30)
    runner = DeviceRunner(
        graphdef=loaded.graphdef, weights=loaded.weights, config=loaded.config, plan=plan, attention=attention,
        num_tokens=loaded.config.vocab_size,
    )  # fmt: skip
    for end in (5, 25, 40, 64):
        assert prefill(runner, 0, tokens[:end], chunk=16) == logits[end - 1].argmax()
    prefill(runner, 0, tokens[:30], chunk=16)
    for end in range(31, 64):  # one by one, as decoding does
        assert prefill(runner, 0, tokens[:end], start=end - 1) == logits[end - 1].argmax()


@pytest.mark.parametrize("chunk", [1, 5, 16, 31])
def test_chunked_prefill_equals_whole_prefill(runner, chunk: int) -> None:
    assert prefill(runner, 0, PROMPT, chunk=chunk) == reference(PROMPT, 1)[0]


def test_rows_decoded_together_equal_rows_decoded_alone(runner) -> None:
    prompts = [PROMPT[:7], PROMPT[3:40], PROMPT[20:]]
    slots = [3, 0, 2]
    together = [[*p, prefill(runner, slot, p)] for slot, p in zip(slots, prompts, strict=True)]
    decode(runner, slots, together, 5)
    assert [s[len(p) :] for s, p in zip(together, prompts, strict=True)] == [reference(p, 6) for p in prompts]


def test_a_prompt_on_kept_kv_equals_one_on_an_empty_slot(runner) -> None:
    prefill(runner, 1, PROMPT)
    changed = [*PROMPT[:30], 5, 6, 7]
    assert prefill(runner, 1, changed, start=30) == reference(changed, 1)[0]


def test_padding_of_a_chunk_reaches_no_other_slot_and_no_later_token(runner) -> None:
    other = prefill(runner, 0, PROMPT)
    first = prefill(runner, 1, PROMPT[:17])
    left, right = decode(runner, [0, 1], [[*PROMPT, other], [*PROMPT[:17], first]], 4)
    assert left[len(PROMPT) :] == reference(PROMPT, 5)
    assert right[17:] == reference(PROMPT[:17], 5)


def test_the_end_of_the_context_does_not_overwrite_older_positions(runner) -> None:
    full = np.random.default_rng(1).integers(0, NUM_TOKENS, MODEL.max_context - 1).tolist()
    assert prefill(runner, 3, full, chunk=29) == reference(full, 1)[0]


def test_only_allowed_tokens_come_out(runner) -> None:
    best = reference(PROMPT, 1)[0]
    logits = reference_logits(PROMPT)
    allowed = np.array([t for t in range(NUM_TOKENS) if t != best][::7], np.int32)
    assert prefill(runner, 0, PROMPT, allowed=allowed) == allowed[logits[allowed].argmax()]


def test_the_logit_gap_is_the_distance_of_the_two_best_scores(runner) -> None:
    [choice] = runner.run([Row(0, 0, PROMPT[:20], GREEDY, 0)])
    second, best = np.sort(reference_logits(PROMPT[:20]))[-2:]
    assert choice.logit_gap == pytest.approx(best - second, abs=1e-5)


def test_ids_that_only_the_model_has_never_come_out(runner) -> None:
    hot = SamplingParams(temperature=100.0)
    tokens = {prefill(runner, 0, PROMPT[:3], sampling=SamplingParams(temperature=100.0, seed=s)) for s in range(150)}
    assert hot.temperature > 0
    assert max(tokens) < NUM_TOKENS
    assert len(tokens) > 40, "sampling at a high temperature reaches most tokens"


def test_a_sampled_token_depends_on_its_seed_and_not_on_its_neighbours(runner) -> None:
    sampling = [SamplingParams(temperature=1.5, seed=seed, top_k=20, top_p=0.9) for seed in (1, 2, 3)]
    for slot in range(3):
        prefill(runner, slot, PROMPT)
    rows = [Row(i, len(PROMPT), [4], s, 1) for i, s in enumerate(sampling)]
    alone = [runner.run([row])[0].token for row in rows]
    assert [choice.token for choice in runner.run(rows)] == alone


def test_nothing_is_compiled_after_warm_up(runner) -> None:
    for count in (1, 2, 3, 4):
        runner.run([Row(i, 0, [1], GREEDY, 0) for i in range(count)])
    for count in (2, 16, 17, 32):
        runner.run([Row(0, 0, [1] * count, GREEDY, 0)])
    assert runner.num_recompiles == 0
    assert count_compilations(lambda: runner.run([Row(0, 0, [1] * 9, GREEDY, 0)])) == 0


def test_a_program_that_was_not_compiled_ahead_is_counted() -> None:
    plan = resolve(EngineConfig(num_slots=2, prefill_chunk=16), MODEL, available_bytes=1 << 30)
    cold = DeviceRunner(
        graphdef=LOADED.graphdef, weights=LOADED.weights, config=MODEL, plan=plan, attention=xla_attention,
        num_tokens=NUM_TOKENS,
    )  # fmt: skip
    assert [choice.token for choice in cold.run([Row(0, 0, [5], GREEDY, 0)])] == reference([5], 1)
    assert cold.num_recompiles == 1


def test_a_program_that_fails_on_the_device_is_a_step_error_and_reset_recovers(tmp_path) -> None:
    native.build(tmp_path)
    runner = make_runner(native_attention)
    with pytest.raises(StepError, match="a row lies outside the KV"):
        runner.run([Row(0, 10_000, [1], GREEDY, 0)])
    runner.reset()
    assert prefill(runner, 0, PROMPT) == reference(PROMPT, 1)[0]


def count_compilations(run: Callable[[], object]) -> int:
    """Count what JAX itself compiles meanwhile, by its own events."""
    events: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: events.append(name))
    run()
    return sum("backend_compile" in name for name in events)
