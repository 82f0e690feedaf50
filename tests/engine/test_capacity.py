"""The arithmetic of capacity against figures computed by hand, and what must hold whatever the numbers are."""

import re

import msgspec
import pytest

from engine.capacity import (
    DEVICES,
    Assumptions,
    Device,
    bubble_share,
    choose_layout,
    fill_share,
    fleet,
    lay_out,
    layouts,
    read_assumptions,
)
from engine.errors import ConfigError
from engine.model.config import ModelConfig

MODEL = ModelConfig(
    family="llama", vocab_size=1000, hidden_size=100, intermediate_size=400, num_layers=8, num_heads=4, num_kv_heads=4,
    head_size=25, max_context=100,
)  # fmt: skip
ROUND = Device(name="round", memory_bytes=10e6, memory_bytes_per_s=1e9, flops_per_s=1e12, link_bytes_per_s=1e9)
GIVEN = Assumptions(
    usable_memory_share=1, bandwidth_share=1, flops_share=1, hop_us=10, context=100, prompt_tokens=100,
    output_tokens=10, chunk_tokens=50, max_rows=8,
    utilisation=0.5, requests_per_s=1, typing_share=0.5, answered_share=0.5,
)  # fmt: skip


def test_one_device_is_what_is_computed_by_hand() -> None:
    layout = lay_out(MODEL, ROUND, GIVEN, tensor=1, stages=1)
    weights = MODEL.num_parameters * 2
    row = 8 * 2 * 4 * 25 * 2 * 100
    assert layout.rows == min(8, int((10e6 - weights) / row))
    step_s = (weights + layout.rows * row) / 1e9
    assert layout.tick_ms == pytest.approx(step_s * 1e3)
    assert layout.decode_tokens_per_s == pytest.approx(layout.rows / step_s)
    assert layout.hop_share == 0
    prefill = 1e12 / (2 * MODEL.num_parameters)
    assert layout.prefill_tokens_per_s == pytest.approx(prefill)
    assert layout.first_token_ms == pytest.approx(100 / prefill * 1e3)
    requests = 1 / (100 / prefill + 10 * step_s / layout.rows)
    assert layout.developers == pytest.approx(requests * 0.5 / 0.25)


def test_stages_multiply_throughput_and_do_not_shorten_a_request() -> None:
    one, four = (lay_out(MODEL, ROUND, GIVEN, tensor=1, stages=stages) for stages in (1, 4))
    assert four.decode_tokens_per_s > 3 * one.decode_tokens_per_s
    assert four.alone_token_ms == pytest.approx(one.alone_token_ms + 4 * (10e-3 + 200 / 1e9 * 1e3), rel=1e-6)


def test_tensor_shortens_a_request_and_pays_two_messages_a_layer() -> None:
    one, two = (lay_out(MODEL, ROUND, msgspec.structs.replace(GIVEN, hop_us=1e-6), tensor=n, stages=1) for n in (1, 2))
    assert two.alone_token_ms < 0.6 * one.alone_token_ms
    costly = lay_out(MODEL, ROUND, GIVEN, tensor=2, stages=1)
    sent_s = 2 * 8 * (10e-6 + costly.rows * 100 * 2 / 1e9)
    assert costly.hop_share == pytest.approx(sent_s / (costly.tick_ms / 1e3))


def test_uneven_stages_go_at_the_pace_of_the_longest() -> None:
    even, uneven = (lay_out(MODEL, ROUND, GIVEN, tensor=1, stages=stages) for stages in (4, 3))
    assert uneven.weights_bytes_per_device == pytest.approx(MODEL.num_parameters * 2 / 3 * 9 / 8)
    assert uneven.tick_ms > even.tick_ms


def test_what_does_not_fit_is_left_out_and_nothing_that_fits_is_an_error() -> None:
    small = msgspec.structs.replace(ROUND, memory_bytes=1e6)
    assert all(layout.num_devices > 1 for layout in layouts(MODEL, small, GIVEN))
    assert layouts(MODEL, msgspec.structs.replace(ROUND, memory_bytes=1e3), GIVEN) == []
    with pytest.raises(ConfigError, match=r"the model fits no layout of so many devices; expected weights and one se"):
        choose_layout([])


def test_the_smallest_of_nearly_equal_layouts_is_chosen_and_a_fleet_has_one_to_spare() -> None:
    found = layouts(MODEL, DEVICES["H100"], GIVEN)
    chosen = choose_layout(found)
    best = max(layout.developers / layout.num_devices for layout in found)
    assert chosen.developers / chosen.num_devices >= 0.95 * best
    assert fleet(chosen, int(chosen.developers), GIVEN)["replicas"] == 1
    assert fleet(chosen, int(chosen.developers * 2.5), GIVEN) == {
        "replicas": 4, "devices": 4 * chosen.num_devices, "hosts": -(-4 * chosen.num_devices // 8),
    }  # fmt: skip


def test_stages_on_several_hosts_hop_at_the_speed_between_hosts() -> None:
    apart = msgspec.structs.replace(GIVEN, max_devices=8, devices_per_host=4, host_link_bytes_per_s=1e6)
    near, far = (lay_out(MODEL, ROUND, given, tensor=1, stages=8) for given in (GIVEN, apart))
    assert far.tick_ms - near.tick_ms == pytest.approx(far.rows / 8 * 200 * (1 / 1e6 - 1 / 1e9) * 1e3)
    assert {layout.tensor for layout in layouts(MODEL, ROUND, apart)} <= {1, 2, 4}


def test_bubbles() -> None:
    assert [bubble_share(stages=4, microbatches=m) for m in (1, 2, 4, 8)] == [0.75, 0.5, 0, 0]
    assert fill_share(stages=4, chunks=1) == 0.75
    assert fill_share(stages=4, chunks=9) == 0.25


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("contxt=1", "--assume got 'contxt=1'; expected name=value with one of: weight_bytes, kv_value_bytes"),
        ("context=much", "--assume: Expected `int`"),
        ("context=0", "--assume context=0; expected a number above 0"),
        ("answered_share=1", "--assume answered_share=1; expected at least 0 and below 1"),
    ],
)
def test_an_assumption_that_cannot_be_is_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_assumptions([word])
    assert read_assumptions(["weight_bytes=1", "context=100"]) == Assumptions(weight_bytes=1, context=100)
