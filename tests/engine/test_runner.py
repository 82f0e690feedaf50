"""The compiled programs on a tiny random model: each fast path against its obvious twin."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from flax import nnx

from engine.config import EngineConfig
from engine.errors import StepError
from engine.model.attention import native_attention, xla_attention
from engine.model.block_sparse import native_sparse_attention, xla_sparse_attention
from engine.model.config import ModelConfig
from engine.model.matrix import Form, hold
from engine.model.transformer import attend_causally
from engine.plan import resolve
from engine.prefix_store import BlockCopy
from engine.programs import Programs
from engine.runner import Choice, DeviceRunner, Row
from engine.shapes import ShapeFamily
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
PLAN = resolve(EngineConfig(num_slots=4, prefill_chunk=64, prefix_store_mb=1), MODEL, available_bytes=1 << 30)
SHAPES = PLAN.shapes


def make_runner(attention, form: Form = "plain", *, is_warm: bool = True) -> DeviceRunner:
    def keep(path, parameter):
        is_matrix = path[-1] in ("kernel", "embedding")
        return hold(parameter, form, is_table=path[-1] == "embedding") if is_matrix else parameter

    runner = DeviceRunner(config=MODEL, plan=PLAN, programs=Programs(
        graphdef=LOADED.graphdef, weights=random_model(MODEL, seed=3, dtype=jnp.float32, hold=keep).weights,
        config=MODEL, plan=PLAN, attention=attention, num_tokens=NUM_TOKENS,
    ))  # fmt: skip
    if is_warm:
        runner.warm_up(lambda message: None)
    return runner


@pytest.fixture(scope="module", params=["xla", "native"])
def runner(request) -> DeviceRunner:
    if request.param == "xla":
        return make_runner(xla_attention)
    request.getfixturevalue("kernels")
    return make_runner(native_attention, "panels")


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


def prefill(
    runner: DeviceRunner,
    slot: int,
    tokens: list[int],
    *,
    chunk: int = 32,
    start: int = 0,
    shapes: ShapeFamily = SHAPES,
    **row,
) -> int:
    for i in range(start, len(tokens), chunk):
        part = tokens[i : i + chunk]
        one = Row(slot, i, part, row.get("sampling", GREEDY), 0, 1, row.get("allowed"))
        [[(token, _)]] = runner.run(shapes.for_chunk(len(part)), [], one)
    return token


def run_rows(runner: DeviceRunner, rows: list[Row]) -> list[list[Choice]]:
    return runner.run(SHAPES.for_rows(len(rows), max(len(row.tokens) for row in rows)), rows)


def decode(runner: DeviceRunner, slots: list[int], sequences: list[list[int]], count: int) -> list[list[int]]:
    for _ in range(count):
        rows = [Row(slot, len(s) - 1, s[-1:], GREEDY, 0) for slot, s in zip(slots, sequences, strict=True)]
        for sequence, [choice] in zip(sequences, run_rows(runner, rows), strict=True):
            sequence.append(choice.token)
    return sequences


PROMPT = np.random.default_rng(0).integers(0, NUM_TOKENS, 45).tolist()


def test_prefill_and_decode_equal_the_whole_sequence_computed_anew(runner) -> None:
    first = prefill(runner, 2, PROMPT)
    [sequence] = decode(runner, [2], [[*PROMPT, first]], 6)
    assert sequence[len(PROMPT) :] == reference(PROMPT, 7)


@pytest.mark.parametrize("attention", [xla_attention, native_attention])
@pytest.mark.parametrize("name", OF_EVERY_FAMILY)
def test_models_of_every_family_continue_as_the_reference_implementation_does(name: str, attention, kernels) -> None:
    loaded = load_model(FIXTURES / name, dtype=jnp.float32)
    with np.load(FIXTURES / name / "reference.npz", allow_pickle=False) as reference:
        tokens, logits = reference["tokens"][0].tolist(), reference["logits"][0]
    plan = resolve(
        EngineConfig(num_slots=1, prefill_chunk=16, prefix_store_mb=0), loaded.config, available_bytes=1 << 30
    )
    runner = DeviceRunner(config=loaded.config, plan=plan, programs=Programs(
        graphdef=loaded.graphdef, weights=loaded.weights, config=loaded.config, plan=plan, attention=attention,
        num_tokens=loaded.config.vocab_size,
    ))  # fmt: skip
    for end in (5, 25, 40, 64):
        assert prefill(runner, 0, tokens[:end], chunk=16, shapes=plan.shapes) == logits[end - 1].argmax()
    prefill(runner, 0, tokens[:30], chunk=16, shapes=plan.shapes)
    for end in range(31, 64):  # one by one, as decoding does
        assert prefill(runner, 0, tokens[:end], start=end - 1, shapes=plan.shapes) == logits[end - 1].argmax()


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
    [[choice]] = runner.run(SHAPES.for_chunk(20), [], Row(0, 0, PROMPT[:20], GREEDY, 0))
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
    alone = [run_rows(runner, [row])[0][0].token for row in rows]
    assert [choice.token for [choice] in run_rows(runner, rows)] == alone


@pytest.mark.parametrize("size", [2, 7, 8])
def test_a_verified_draft_yields_what_one_token_at_a_time_yields(runner, size: int) -> None:
    for sampling in (GREEDY, SamplingParams(temperature=1.2, seed=5, top_k=30)):
        first = prefill(runner, 1, PROMPT, sampling=sampling)
        expected = [first]
        for i in range(size):
            row = Row(1, len(PROMPT) + i, [expected[-1]], sampling, i + 1)
            expected.append(run_rows(runner, [row])[0][0].token)
        row = Row(1, len(PROMPT), expected[:size], sampling, 1, num_wanted=size)
        assert [choice.token for choice in run_rows(runner, [row])[0]] == expected[1:]


def test_a_draft_behind_the_tail_of_a_prompt_is_verified_in_the_same_step(runner) -> None:
    expected = reference(PROMPT, 5)
    prefill(runner, 0, PROMPT[:-6])
    row = Row(0, len(PROMPT) - 6, [*PROMPT[-6:], *expected[:4]], GREEDY, 0, num_wanted=5)
    assert [choice.token for choice in run_rows(runner, [row])[0]] == expected


def test_only_the_first_token_wanted_is_constrained(runner) -> None:
    best = reference(PROMPT, 1)[0]
    prefill(runner, 0, PROMPT[:-1])
    other = (best + 1) % NUM_TOKENS
    row = Row(0, len(PROMPT) - 1, [PROMPT[-1], other, 3], GREEDY, 0, num_wanted=3, allowed=np.array([other]))
    got = [choice.token for choice in run_rows(runner, [row])[0]]
    assert got == [other, *reference([*PROMPT, other], 1), *reference([*PROMPT, other, 3], 1)]


def test_what_a_rejected_draft_left_in_the_kv_is_overwritten(runner) -> None:
    first, second, *_ = expected = reference(PROMPT, 6)
    prefill(runner, 2, PROMPT)
    wrong = (second + 1) % NUM_TOKENS
    row = Row(2, len(PROMPT), [first, wrong, wrong, wrong], GREEDY, 1, num_wanted=4)
    assert run_rows(runner, [row])[0][0].token == second
    [sequence] = decode(runner, [2], [[*PROMPT, first, second]], 4)
    assert sequence[len(PROMPT) :] == expected


@pytest.mark.parametrize("num_tokens", [20, 64])
def test_a_chunk_beside_decoding_rows_equals_both_alone(runner, num_tokens: int) -> None:
    long = np.random.default_rng(2).integers(0, NUM_TOKENS, num_tokens).tolist()
    prompts = [PROMPT[:9], PROMPT[5:]]
    firsts = [prefill(runner, slot, prompt) for slot, prompt in enumerate(prompts)]
    rows = [
        Row(i, len(prompt), [first], GREEDY, 1) for i, (prompt, first) in enumerate(zip(prompts, firsts, strict=True))
    ]
    shape = SHAPES.for_chunk(num_tokens, num_rows=2)
    *rows_got, [chunk_got] = runner.run(shape, rows, Row(3, 0, long, GREEDY, 0))
    assert [choice.token for [choice] in rows_got] == [reference(prompt, 2)[1] for prompt in prompts]
    assert chunk_got.token == reference(long, 1)[0]


def test_kv_from_the_prefix_store_equals_kv_computed_anew(runner) -> None:
    long = np.random.default_rng(3).integers(0, NUM_TOKENS, 101).tolist()
    expected = prefill(runner, 0, long)
    runner.copy_blocks([BlockCopy(0, 0, 5), BlockCopy(0, 32, 2), BlockCopy(0, 64, 9)], [])
    prefill(runner, 0, PROMPT)
    runner.copy_blocks([], [BlockCopy(3, 32, 2), BlockCopy(3, 64, 9), BlockCopy(3, 0, 5)])
    assert prefill(runner, 3, long, start=96) == expected


def test_a_sparse_prompt_with_every_block_kept_equals_a_dense_one(kernels) -> None:
    """Also: with fewer blocks the report says so, and decoding goes on from what was computed."""
    model = msgspec.structs.replace(MODEL, max_context=512)
    tokens = np.random.default_rng(7).integers(0, NUM_TOKENS, 400).tolist()
    got = {}
    for num_kept in (4, 8):
        for name, path in (("native", native_sparse_attention), ("xla", xla_sparse_attention)):
            config = EngineConfig(num_slots=1, prefill_chunk=64, prefix_store_mb=0, sparse_blocks=num_kept)
            plan = resolve(config, model, available_bytes=1 << 30)
            programs = Programs(
                graphdef=LOADED.graphdef, weights=LOADED.weights, config=model, plan=plan, num_tokens=NUM_TOKENS,
                attention=native_attention, sparse_attention=path,
            )  # fmt: skip
            runner = DeviceRunner(config=model, plan=plan, programs=programs)
            reports = []
            for i in range(0, len(tokens), 64):
                part = tokens[i : i + 64]
                row = Row(0, i, part, GREEDY, 0, focus=(100, 150))
                [[choice]] = runner.run(plan.shapes.for_chunk(64), [], row)
                reports.append(runner.last_report)
            got[name, num_kept] = choice
            assert all(report.num_kept == report.num_visible for report in reports) == (num_kept == 8)
    assert got["native", 8].token == got["xla", 8].token == whole(tokens)
    assert got["native", 4].token == got["xla", 4].token
    assert got["native", 4].logit_gap == pytest.approx(got["xla", 4].logit_gap, abs=1e-4)


def whole(tokens: list[int]) -> int:
    model = nnx.merge(LOADED.graphdef, LOADED.weights)
    logits = model.logits(model(jnp.array([tokens]), jnp.arange(len(tokens))[None], attend_causally))
    return int(logits[0, -1, :NUM_TOKENS].argmax())


def test_nothing_is_compiled_after_warm_up(runner) -> None:
    def run_everything() -> None:
        for shape in SHAPES.shapes():
            rows = [Row(i, 0, [1] * shape.width, GREEDY, 0) for i in range(min(shape.rows, 3))]
            runner.run(shape, rows, Row(3, 0, [1] * shape.chunk, GREEDY, 0) if shape.chunk else None)
        runner.copy_blocks([BlockCopy(0, 0, 0)] * 70, [BlockCopy(0, 0, 0)] * 3)

    assert count_compilations(run_everything) == 0
    assert runner.num_recompiles == 0


def test_a_program_that_was_not_compiled_ahead_is_counted() -> None:
    cold = DeviceRunner(config=MODEL, plan=PLAN, programs=Programs(
        graphdef=LOADED.graphdef, weights=LOADED.weights, config=MODEL, plan=PLAN, attention=xla_attention,
        num_tokens=NUM_TOKENS,
    ))  # fmt: skip
    assert run_rows(cold, [Row(0, 0, [5], GREEDY, 0)])[0][0].token == reference([5], 1)[0]
    assert cold.num_recompiles == 1


def test_a_program_that_fails_on_the_device_is_a_step_error_and_reset_recovers(kernels) -> None:
    runner = make_runner(native_attention, is_warm=False)
    with pytest.raises(StepError, match="a row lies outside the KV"):
        run_rows(runner, [Row(0, 10_000, [1], GREEDY, 0)])
    runner.reset()
    assert prefill(runner, 0, PROMPT) == reference(PROMPT, 1)[0]


def count_compilations(run: Callable[[], object]) -> int:
    """Count what JAX itself compiles meanwhile, by its own events."""
    events: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: events.append(name))
    run()
    return sum("backend_compile" in name for name in events)
