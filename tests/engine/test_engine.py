from collections.abc import Callable

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.engine import Engine
from engine.errors import EngineClosedError, QueueFullError, RequestError
from engine.fim import FimTemplate, build_prompt
from engine.shapes import Shape
from engine.tokenizer import Tokenizer
from engine.types import PRIORITIES, Request, SamplingParams
from tests.engine.conftest import Recorder
from tests.engine.counting_runner import CountingRunner, completion_of


def request(name: str, before: str = "def f():\n", *, max_tokens: int = 5, **fields) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, stop=fields.pop("stop", ()))
    return Request(request_id=name, before=before, cut=before.rfind("\n") + 1, sampling=sampling, **fields)


def run_until_idle(engine: Engine) -> int:
    steps = 0
    while engine.has_work():
        engine.step()
        engine.check_integrity()
        steps += 1
        assert steps < 10_000, "the engine never comes to rest"
    return steps


def submit(engine: Engine, one: Request) -> Recorder:
    recorder = Recorder()
    engine.submit(one, recorder)
    return recorder


def expected_text(one: Request, tokenizer: Tokenizer, template: FimTemplate, choices: list[int]) -> str:
    """What the request's prompt yields when it runs alone and whole, healing written out step by step."""
    prompt = build_prompt(one, tokenizer, template, max_prompt_tokens=256 - max(1, one.sampling.max_tokens))
    tokens, heal, produced, num_new = list(prompt.tokens), prompt.heal, b"", 0
    while num_new < one.sampling.max_tokens and len(tokens) < 256:
        allowed = tokenizer.tokens_for_bytes(heal).tolist() if heal else choices
        [token] = completion_of(tokens, allowed, 1)
        tokens.append(token)
        written = tokenizer.token_bytes(token)
        produced += written[len(heal) :]
        num_new += len(written) > len(heal)
        heal = heal[len(written) :]
    return produced.decode()


def test_a_completion_is_what_the_prompt_yields_alone(engine, tokenizer, template, ascii_ids) -> None:
    one = request("a", "import os\n\n\ndef f():\n", max_tokens=8)
    recorder = submit(engine, one)
    run_until_idle(engine)
    assert recorder.text == expected_text(one, tokenizer, template, ascii_ids)
    assert recorder.finish.state == "finished"
    assert recorder.finish.reason == "length"
    assert recorder.finish.usage.num_generated_tokens == 8


def test_the_token_before_the_cursor_is_healed_and_not_shown_again(engine, tokenizer, template, ascii_ids) -> None:
    one = request("a", "def f():\n    retu", max_tokens=6)
    recorder = submit(engine, one)
    run_until_idle(engine)
    assert recorder.text == expected_text(one, tokenizer, template, ascii_ids)


def test_without_healing_the_model_goes_on_after_the_token_before_the_cursor(
    make_engine, tokenizer, template, ascii_ids
) -> None:
    one = request("a", "def f():\n    retu", max_tokens=6)
    engine = make_engine(token_healing=False)
    recorder = submit(engine, one)
    run_until_idle(engine)
    prompt = build_prompt(one, tokenizer, template, max_prompt_tokens=250, heals=False)
    produced = completion_of(prompt.tokens, ascii_ids, 6)
    assert recorder.text == b"".join(map(tokenizer.token_bytes, produced)).decode()


def test_healing_is_not_held_against_the_token_limit(engine, tokenizer, template, ascii_ids) -> None:
    requests = [request(str(i), "def f():\n" + "    return"[:i], max_tokens=1) for i in range(2, 11)]
    recorders = [submit(engine, one) for one in requests]
    run_until_idle(engine)
    for one, recorder in zip(requests, recorders, strict=True):
        assert recorder.text == expected_text(one, tokenizer, template, ascii_ids)
    assert max(recorder.finish.usage.num_generated_tokens for recorder in recorders) > 1


def test_many_requests_at_once_yield_what_each_yields_alone(engine, tokenizer, template, ascii_ids) -> None:
    requests = [request(str(i), f"# file {i}\n" * (i + 1) + "x = ", max_tokens=3 + i) for i in range(11)]
    recorders = [submit(engine, one) for one in requests]
    run_until_idle(engine)
    for one, recorder in zip(requests, recorders, strict=True):
        assert recorder.text == expected_text(one, tokenizer, template, ascii_ids)


def test_a_long_prompt_is_prefilled_in_chunks_while_others_go_on(engine) -> None:
    running = submit(engine, request("running", "a\n", max_tokens=50))
    engine.step()
    long = submit(engine, request("long", "value = 1\n" * 12, max_tokens=2))
    before = len(running.outputs)
    steps = 0
    while not long.outputs:
        engine.step()
        steps += 1
    assert steps >= 3, "the prompt was prefilled in one step"
    assert len(running.outputs) - before >= steps - 1, "the running sequence had to wait"


def test_a_prompt_that_continues_an_earlier_one_is_not_computed_again(make_engine, runner) -> None:
    engine = make_engine(drafts=False)
    first = request("first", "def f():\n    return 1\n" * 4 + "x", max_tokens=2)
    submit(engine, first)
    run_until_idle(engine)
    computed = runner.computed_tokens
    second = Request(request_id="second", before=first.before + " = 1", cut=first.cut, sampling=first.sampling)
    recorder = submit(engine, second)
    run_until_idle(engine)
    usage = recorder.finish.usage
    assert usage.num_reused_tokens > 0.8 * usage.num_prompt_tokens
    # Each generated token but the last is computed too.
    assert runner.computed_tokens - computed == (
        usage.num_prompt_tokens - usage.num_reused_tokens + usage.num_generated_tokens - 1
    )


def test_a_fresh_request_uses_no_kept_kv(engine) -> None:
    submit(engine, request("first", "x = 1\n" * 9))
    run_until_idle(engine)
    again = request("again", "x = 1\n" * 9, is_fresh=True)
    recorder = submit(engine, again)
    run_until_idle(engine)
    assert recorder.finish.usage.num_reused_tokens == 0


def test_an_output_tells_the_smallest_logit_gap_of_its_tokens(engine, tokenizer) -> None:
    recorder = submit(engine, request("a", max_tokens=6))
    run_until_idle(engine)
    # The runner's gap is the token itself.
    assert [output.logit_gap for output in recorder.outputs] == [float(tokenizer.encode(c)[0]) for c in recorder.text]


def test_a_stop_string_ends_a_completion_and_is_not_part_of_it(engine, tokenizer, template, ascii_ids) -> None:
    one = request("a", max_tokens=40)
    whole = expected_text(one, tokenizer, template, ascii_ids)
    recorder = submit(engine, request("b", max_tokens=40, stop=(whole[9:12],)))
    run_until_idle(engine)
    assert recorder.text == whole[: whole.find(whole[9:12])]
    assert recorder.finish.reason == "stop"


def test_a_stop_token_ends_a_completion(engine, runner, template) -> None:
    runner.choices = [template.stop_ids[0]]
    recorder = submit(engine, request("a"))
    run_until_idle(engine)
    assert recorder.text == ""
    assert recorder.finish.reason == "stop"


def test_a_request_for_no_tokens_only_warms_the_kv(engine) -> None:
    recorder = submit(engine, request("a", "x = 1\n" * 5, max_tokens=0))
    run_until_idle(engine)
    assert recorder.text == ""
    assert recorder.finish.reason == "length"
    again = submit(engine, request("b", "x = 1\n" * 5))
    run_until_idle(engine)
    assert again.finish.usage.num_reused_tokens == again.finish.usage.num_prompt_tokens - 1


@pytest.mark.parametrize("steps_before", [0, 1, 2, 5])
def test_cancelling_frees_the_slot_within_one_step(engine, steps_before: int) -> None:
    recorder = submit(engine, request("a", "x = 1\n" * 8, max_tokens=100))
    for _ in range(steps_before):
        engine.step()
    engine.cancel("a")
    engine.cancel("a")
    engine.step()
    assert recorder.finish.state == "cancelled"
    assert engine.stats().num_running == 0
    assert not engine.has_work()
    engine.cancel("a")
    engine.step()


def test_cancelled_work_stays_valid_kv(engine, tokenizer, template, ascii_ids) -> None:
    one = request("a", "x = 1\n" * 12, max_tokens=100)
    submit(engine, one)
    engine.step()
    engine.cancel("a")
    run_until_idle(engine)
    two = request("b", "x = 1\n" * 12, max_tokens=10)
    recorder = submit(engine, two)
    run_until_idle(engine)
    assert recorder.finish.usage.num_reused_tokens == 16
    assert recorder.text == expected_text(two, tokenizer, template, ascii_ids)


def test_what_the_device_ran_over_is_counted_as_it_happens_whatever_becomes_of_it(engine, runner) -> None:
    for name, steps in (("in its prompt", 1), ("while writing", 5), ("to its end", 100)):
        recorder = submit(engine, request(name, "x = 1\n" * 12, max_tokens=9))
        before, ran_before = engine.stats().num_computed_tokens, runner.computed_tokens
        for _ in range(steps):
            engine.step()
        counted = engine.stats().num_computed_tokens - before
        engine.cancel(name)
        run_until_idle(engine)
        num_generated = recorder.finish.usage.num_generated_tokens
        # The last token that was chosen has not been run over.
        assert counted == runner.computed_tokens - ran_before + (num_generated > 0) > 0
        assert counted == engine.stats().num_computed_tokens - before
    assert num_generated == 9


def test_a_full_queue_refuses_and_says_when_to_come_back(make_engine) -> None:
    engine = make_engine(num_slots=1, max_waiting=2)
    recorders = [submit(engine, request(str(i))) for i in range(3)]
    with pytest.raises(QueueFullError, match="the queue is full: 3 requests wait and at most 2 may") as caught:
        submit(engine, request("one too many"))
    assert caught.value.retry_after_s > 0
    run_until_idle(engine)
    assert all(recorder.finish.state == "finished" for recorder in recorders)
    assert engine.stats().num_rejected == 1


def test_a_request_id_in_use_is_refused(engine) -> None:
    submit(engine, request("a"))
    with pytest.raises(RequestError, match="request_id 'a' is in use"):
        submit(engine, request("a"))
    run_until_idle(engine)
    submit(engine, request("a"))


@pytest.mark.parametrize("max_tokens", [-1, 256])
def test_a_token_limit_outside_the_context_is_refused(engine, max_tokens: int) -> None:
    with pytest.raises(RequestError, match=rf"max_tokens is {max_tokens}; expected 0 to 255"):
        submit(engine, request("a", max_tokens=max_tokens))


def test_a_failed_step_fails_what_ran_and_the_rest_goes_on(make_engine, runner, tokenizer, template, ascii_ids) -> None:
    engine = make_engine(num_slots=2)
    first = [submit(engine, request(str(i))) for i in range(2)]
    waiting = request("waiting", "y = 2\n")
    recorder = submit(engine, waiting)
    engine.step()
    runner.fails = True
    engine.step()
    assert {one.finish.state for one in first} == {"failed"}
    assert {one.finish.error for one in first} == {"the device is out of order"}
    run_until_idle(engine)
    assert recorder.text == expected_text(waiting, tokenizer, template, ascii_ids)


def test_a_closed_engine_refuses_and_finishes_what_it_has(engine) -> None:
    recorder = submit(engine, request("a"))
    engine.refuse_new()
    with pytest.raises(EngineClosedError, match="the engine is stopping"):
        submit(engine, request("b"))
    run_until_idle(engine)
    assert recorder.finish.state == "finished"


def test_failing_everything_leaves_nothing_behind(engine) -> None:
    recorders = [submit(engine, request(str(i), max_tokens=50)) for i in range(9)]
    engine.step()
    recorders.append(submit(engine, request("late")))
    engine.fail_all("stopped")
    assert {recorder.finish.state for recorder in recorders} == {"failed"}
    assert not engine.has_work()


def test_a_step_takes_one_chunk_of_a_long_prompt_beside_every_decoding_row(engine, runner) -> None:
    for i in range(2):
        submit(engine, request(f"running {i}", "a\n", max_tokens=50))
    engine.step()
    submit(engine, request("long", "value = 1\n" * 12, max_tokens=2))
    engine.step()
    assert runner.runs[-1] == (Shape(4, 1, 16), [0, 1, 2])


def test_tails_of_prompts_run_side_by_side(engine, runner) -> None:
    for i in range(3):
        submit(engine, request(str(i), "a\n"))
    engine.step()
    [(shape, slots)] = runner.runs
    assert (shape.rows, shape.chunk, slots) == (4, 0, [0, 1, 2])


def test_the_chunk_beside_running_rows_is_one_that_does_not_stall_them(make_engine, runner) -> None:
    def chunks_beside_a_row(cost_of_large: float) -> set[int]:
        runner.runs.clear()
        engine = make_engine(prefill_chunk=64, costs={64: cost_of_large, 32: 2e-3})
        submit(engine, request("running", "a\n", max_tokens=50))
        engine.step()
        submit(engine, request("long", "value = 1\n" * 24, max_tokens=1))
        run_until_idle(engine)
        return {shape.chunk for shape, _ in runner.runs if shape.rows and shape.chunk}

    assert chunks_beside_a_row(3e-3) == {32}
    assert 64 in chunks_beside_a_row(2.4e-3)


def test_lower_priority_stands_still_while_somebody_waits(engine) -> None:
    ahead = submit(engine, request("ahead", max_tokens=50, priority="background"))
    engine.step()
    waiter = submit(engine, request("waiter", max_tokens=5))
    num_outputs = len(ahead.outputs)
    while waiter.finish is None:
        engine.step()
    assert len(ahead.outputs) == num_outputs
    run_until_idle(engine)
    assert ahead.finish.state == "finished"


def test_a_sequence_of_lower_priority_gives_up_its_slot_and_goes_on_later(
    make_engine, tokenizer, template, ascii_ids
) -> None:
    engine = make_engine(num_slots=1)
    work = request("work", "y = 2\n" * 3, max_tokens=9, priority="speculative")
    recorder = submit(engine, work)
    for _ in range(4):
        engine.step()
    assert recorder.outputs
    waiter = submit(engine, request("waiter", "another = file\n"))
    run_until_idle(engine)
    assert engine.stats().num_preempted == 1
    assert waiter.finish.state == recorder.finish.state == "finished"
    assert recorder.text == expected_text(work, tokenizer, template, ascii_ids)


def test_work_of_lower_priority_does_not_fill_the_queue_for_others(make_engine) -> None:
    engine = make_engine(num_slots=1, max_waiting=1)
    for i in range(2):
        submit(engine, request(f"ahead {i}", priority="background"))
    with pytest.raises(QueueFullError):
        submit(engine, request("more", priority="background"))
    for i in range(2):
        submit(engine, request(f"waiter {i}"))
    with pytest.raises(QueueFullError):
        submit(engine, request("one too many"))
    run_until_idle(engine)
    assert engine.stats().num_finished == 4


@pytest.mark.parametrize(("is_aside", "num_reused"), [(True, 60), (False, 0)])
def test_work_aside_leaves_the_slot_of_its_session_as_it_is(make_engine, is_aside, num_reused) -> None:
    engine = make_engine(num_slots=2, prefix_store_mb=0)
    line = request("line", "abc = 1\n" * 8, session="s")
    submit(engine, line)
    run_until_idle(engine)
    submit(engine, request("next line", "other = 2\n" * 8, session="s", is_aside=is_aside, priority="speculative"))
    run_until_idle(engine)
    again = submit(engine, msgspec.structs.replace(line, request_id="again"))
    run_until_idle(engine)
    assert (again.finish.usage.num_reused_tokens >= 60) == (num_reused >= 60)


def test_a_prompt_whose_slot_was_given_up_comes_back_from_the_prefix_store(
    make_engine, tokenizer, template, ascii_ids
) -> None:
    engine = make_engine(num_slots=1, num_blocks=8)
    mine = request("mine", "def f():\n    return 1\n" * 12 + "x", session="mine")
    theirs = request("theirs", "y = 2\n" * 20, session="theirs")
    for one in (mine, theirs):
        submit(engine, one)
        run_until_idle(engine)
    again = Request(request_id="again", before=mine.before, cut=mine.cut, sampling=mine.sampling, session="mine")
    recorder = submit(engine, again)
    run_until_idle(engine)
    assert recorder.finish.usage.num_reused_tokens >= 64
    assert engine.stats().num_restored_blocks >= 2
    assert recorder.text == expected_text(again, tokenizer, template, ascii_ids)


def test_a_draft_that_is_right_saves_steps_and_changes_nothing(make_engine, tokenizer, template, ascii_ids) -> None:
    before = "def f():\n"
    one = request("plain", before, max_tokens=20)
    expected = expected_text(one, tokenizer, template, ascii_ids)
    steps = {}
    for draft in ("", expected, expected[:7] + "#" + expected[8:]):
        engine = make_engine()
        recorder = submit(engine, request("drafted", before, max_tokens=20, draft=draft))
        steps[draft] = run_until_idle(engine)
        assert recorder.text == expected
        assert recorder.finish.reason == "length"
    plain, right, nearly_right = steps.values()
    assert right < nearly_right < plain


def test_a_draft_longer_than_the_room_left_changes_nothing(engine, tokenizer, template, ascii_ids) -> None:
    one = request("a", max_tokens=3)
    expected = expected_text(one, tokenizer, template, ascii_ids)
    recorder = submit(engine, request("b", max_tokens=3, draft=expected * 50))
    run_until_idle(engine)
    assert recorder.text == expected
    assert recorder.finish.usage.num_generated_tokens == 3


def test_a_stop_within_an_accepted_draft_ends_the_completion_there(engine, tokenizer, template, ascii_ids) -> None:
    whole = expected_text(request("a", max_tokens=20), tokenizer, template, ascii_ids)
    recorder = submit(engine, request("b", max_tokens=20, draft=whole, stop=(whole[4:6],)))
    run_until_idle(engine)
    assert recorder.text == whole[: whole.find(whole[4:6])]
    assert recorder.finish.reason == "stop"


def test_what_was_drafted_and_accepted_is_counted(engine, tokenizer, template, ascii_ids) -> None:
    expected = expected_text(request("a", max_tokens=6), tokenizer, template, ascii_ids)
    submit(engine, request("b", max_tokens=6, draft=expected))
    run_until_idle(engine)
    assert 0 < engine.stats().num_accepted_tokens <= engine.stats().num_drafted_tokens


def test_repeated_text_is_drafted_from_the_prompt(make_engine, runner, tokenizer) -> None:
    runner.choices = tokenizer.encode("a")
    engine = make_engine()
    recorder = submit(engine, request("a", "aaaaaaaaaaaaaaaaaaaaaaaa\n", max_tokens=64))
    assert run_until_idle(engine) < 40
    assert recorder.text == "a" * 64


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_happens_each_request_ends_once_and_finished_ones_are_right(
    data: st.DataObject,
    make_engine: Callable[..., Engine],
    runner: CountingRunner,
    tokenizer: Tokenizer,
    template: FimTemplate,
    ascii_ids: list[int],
) -> None:
    runner.reset()
    engine = make_engine(num_slots=data.draw(st.integers(1, 4)), num_blocks=data.draw(st.integers(0, 3)))
    taken: dict[str, tuple[Request, Recorder]] = {}
    for number in range(data.draw(st.integers(1, 30))):
        match data.draw(st.sampled_from(["submit", "submit", "cancel", "step", "step", "fail"])):
            case "submit":
                before = data.draw(st.sampled_from(["x = 1\n", "x = 1\ny = ", "def g():\n    r", ""])) * data.draw(
                    st.integers(1, 12)
                )
                one = request(
                    str(number),
                    before,
                    max_tokens=data.draw(st.integers(1, 7)),
                    tenant=data.draw(st.sampled_from(["", "other"])),
                    session=data.draw(st.sampled_from(["", "one", "two"])),
                    priority=data.draw(st.sampled_from(PRIORITIES)),
                )
                right = expected_text(one, tokenizer, template, ascii_ids)
                draft = right[: data.draw(st.integers(0, 9))] + data.draw(st.sampled_from(["", "x = 1", "#"]))
                one = msgspec.structs.replace(one, draft=draft)
                taken[one.request_id] = one, submit(engine, one)
            case "cancel" if taken:
                engine.cancel(data.draw(st.sampled_from(sorted(taken))))
            case "fail":
                runner.fails = True
                engine.step()
                runner.fails = False
            case _:
                engine.step()
        engine.check_integrity()
    run_until_idle(engine)
    for one, recorder in taken.values():
        assert recorder.finish is not None, "an accepted request never ended"
        expected = expected_text(one, tokenizer, template, ascii_ids)
        if recorder.finish.state == "finished":
            assert recorder.text == expected
        else:
            assert expected.startswith(recorder.text)
    stats = engine.stats()
    assert stats.num_finished + stats.num_cancelled + stats.num_failed == len(taken)


def test_an_interactive_request_without_room_is_refused_with_a_hint_and_a_background_one_waits(make_engine) -> None:
    engine = make_engine(num_slots=1, max_slowdown=2.0)
    submit(engine, request("first"))
    with pytest.raises(QueueFullError) as raised:
        submit(engine, request("second"))
    assert raised.value.retry_after_s > 0
    assert str(raised.value).startswith(
        "1 requests are in hand, and one more would be answered too late; expected at most 1, fairly shared by tenants"
    )
    submit(engine, request("background", priority="background"))
    run_until_idle(engine)
    assert (engine.stats().num_finished, engine.stats().num_rejected) == (2, 1)


def test_slots_go_to_tenants_in_turn(make_engine) -> None:
    engine = make_engine(num_slots=2)
    recorders = {name: submit(engine, request(name, tenant="greedy", max_tokens=4)) for name in ("1", "2", "3", "4")}
    modest = submit(engine, request("modest", tenant="modest", max_tokens=4))
    engine.step()
    run_until_idle(engine)
    ended = [recorder.finish.usage.queue_s for recorder in recorders.values()]
    assert modest.finish.usage.queue_s <= min(ended[2:])


def test_without_reuse_every_prompt_is_computed_whole(make_engine) -> None:
    engine = make_engine(num_slots=1, reuses_kv=False, num_blocks=8)
    for name in ("once", "again"):
        recorder = submit(engine, request(name, "y = 2\n" * 30))
        run_until_idle(engine)
        assert recorder.finish.usage.num_reused_tokens == 0


LONG = "".join(f"value_{i} = compute({i})\n" for i in range(200))


def test_a_request_chooses_sparse_attention_and_its_kv_serves_no_dense_request(make_engine) -> None:
    engine = make_engine(num_slots=2, max_context=2048, sparse_blocks=4)
    before = LONG + "def f():\n"
    submit(engine, request("sparse", before, sparse="on"))
    run_until_idle(engine)
    stats = engine.stats()
    assert (stats.num_sparse, stats.num_sparse_fallbacks) == (1, {})
    assert stats.num_kept_blocks * 2 == stats.num_visible_blocks
    assert stats.kept_mass == pytest.approx(0.9)
    again = submit(engine, request("again", before, sparse="on"))
    dense = submit(engine, request("dense", before))
    run_until_idle(engine)
    assert again.finish.usage.num_reused_tokens > 1000
    assert dense.finish.usage.num_reused_tokens == 0
    later = submit(engine, request("later", before))
    run_until_idle(engine)
    assert later.finish.usage.num_reused_tokens > 1000, "dense KV serves dense requests as ever"


def test_sparse_kv_never_enters_the_prefix_store(make_engine) -> None:
    engine = make_engine(num_slots=1, max_context=2048, sparse_blocks=4, num_blocks=64)
    submit(engine, request("sparse", LONG, sparse="on", session="a"))
    run_until_idle(engine)
    submit(engine, request("other", "x = 1\n", session="b"))
    run_until_idle(engine)
    assert engine.stats().num_stored_blocks == 0
    submit(engine, request("dense", LONG, session="c"))
    run_until_idle(engine)
    submit(engine, request("another", "y = 1\n", session="d"))
    run_until_idle(engine)
    assert engine.stats().num_stored_blocks > 0


@pytest.mark.parametrize(
    ("reason", "before", "choices"),
    [
        ("off", LONG, {"sparse": "off"}),
        ("short", "x\n", {}),
        ("all_kept", LONG, {"sparse_blocks": 10_000}),
    ],
)
def test_what_cannot_be_sparse_is_dense_and_counted(make_engine, reason, before, choices) -> None:
    engine = make_engine(max_context=2048, **choices)
    recorder = submit(engine, request("a", before, sparse="on"))
    run_until_idle(engine)
    assert recorder.finish.state == "finished"
    assert engine.stats().num_sparse_fallbacks == {reason: 1}
    assert engine.stats().num_sparse == 0


def test_sparse_attention_comes_by_itself_from_the_threshold_on(make_engine) -> None:
    engine = make_engine(max_context=2048, sparse_tokens=600, sparse_blocks=4)
    submit(engine, request("long", LONG))
    submit(engine, request("refused", LONG, sparse="off", tenant="b"))
    submit(engine, request("short", "x = 1\n"))
    run_until_idle(engine)
    assert (engine.stats().num_sparse, engine.stats().num_sparse_fallbacks) == (1, {})
