"""What a model needs of accelerators, and what they give: arithmetic that a reader can do again with other numbers.

Every figure is a formula of a model's facts, a device's data sheet and `Assumptions`; nothing here was measured, and
nothing is rounded before it is shown. `docs/scaling.md` says what the formulas leave out. Knows no JAX.
"""

import math
from collections.abc import Sequence

import msgspec

from engine.errors import ConfigError
from engine.model.config import ModelConfig

_NEARLY = 0.95


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One accelerator, by its data sheet."""

    name: str
    memory_bytes: float
    memory_bytes_per_s: float
    flops_per_s: float
    """Dense, bfloat16."""
    link_bytes_per_s: float
    """To a neighbour in the same host, one direction."""


DEVICES = {
    device.name: device
    for device in (
        Device(name="H100", memory_bytes=80e9, memory_bytes_per_s=3.35e12, flops_per_s=989e12, link_bytes_per_s=450e9),
        Device(name="H200", memory_bytes=141e9, memory_bytes_per_s=4.8e12, flops_per_s=989e12, link_bytes_per_s=450e9),
    )
}
"""The SXM forms, eight in a host."""


class Assumptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the arithmetic takes for given; each can be set with `--assume name=value`."""

    weight_bytes: float = 2.0
    """Of one parameter: 2 for bfloat16, 1 for int8."""
    kv_value_bytes: float = 2.0
    """Of one value in the KV cache."""
    usable_memory_share: float = 0.9
    """Of a device's memory, for weights and KV; the rest is for programs and what they compute with."""
    bandwidth_share: float = 0.6
    """Of the data sheet's memory bandwidth that a decode step reaches."""
    flops_share: float = 0.4
    """Of the data sheet's operations that prefill reaches."""
    hop_us: float = 20.0
    """Until a message to a neighbouring device begins to arrive, in microseconds."""
    host_link_bytes_per_s: float = 50e9
    """Between hosts, a device's share: 400 Gbit/s."""
    devices_per_host: int = 8
    max_devices: int = 8
    """Of one replica; stages of a layout with more devices than a host has are on several hosts."""
    context: int = 4096
    """Tokens of a sequence in the KV cache."""
    prompt_tokens: float = 400.0
    """To be computed for a request that reaches the model: what its slot and the prefix store do not have."""
    output_tokens: float = 32.0
    """Written for a request that reaches the model."""
    max_rows: int = 64
    """Sequences of one microbatch at most."""
    chunk_tokens: int = 512
    """Prompt tokens of one step."""
    utilisation: float = 0.6
    """Of what the devices could serve, at the busiest minute: the rest keeps queues short."""
    requests_per_s: float = 0.5
    """Of one developer who is typing."""
    typing_share: float = 0.2
    """Of the developers who are connected, those who type in the busiest minute."""
    answered_share: float = 0.5
    """Of requests, those that sessions and the completion cache answer or that are given up before they start."""


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """One replica of a model on `tensor * stages` devices, and what it does."""

    device: str
    tensor: int
    stages: int
    weights_bytes_per_device: float
    kv_bytes_per_device: float
    """What is left for KV."""
    rows: int
    """Sequences that it decodes at once."""
    tick_ms: float
    """Every tick one microbatch leaves the last stage; with one stage that is a decode step."""
    hop_share: float
    """Of a tick, what goes to messages between devices."""
    token_ms: float
    """Between two tokens of one request: as many ticks as there are stages."""
    alone_token_ms: float
    """The same when it is the only request there is."""
    decode_tokens_per_s: float
    prefill_tokens_per_s: float
    first_token_ms: float
    """Of a prompt of `prompt_tokens` that waits for nothing."""
    developers: float
    """Who can be connected to this replica."""

    @property
    def num_devices(self) -> int:
        return self.tensor * self.stages


def layouts(model: ModelConfig, device: Device, given: Assumptions) -> list[Layout]:
    """Return every layout, tensor and stages powers of two, that holds the model and one sequence."""
    found = []
    sizes = [2**power for power in range(int(math.log2(given.max_devices)) + 1)]
    for tensor in sizes:
        for stages in sizes:
            is_possible = tensor * stages <= given.max_devices and tensor <= given.devices_per_host
            if is_possible and stages <= model.num_layers and model.num_kv_heads % tensor == 0:
                layout = lay_out(model, device, given, tensor=tensor, stages=stages)
                if layout.rows >= stages:
                    found.append(layout)
    return found


def lay_out(model: ModelConfig, device: Device, given: Assumptions, *, tensor: int, stages: int) -> Layout:
    """Return what one layout does; `rows` is 0 where it does not hold the model."""
    devices = tensor * stages
    weights = model.num_parameters * given.weight_bytes / devices
    # The stage with one layer more sets the pace: layers are not divided.
    uneven = -(-model.num_layers // stages) * stages / model.num_layers
    free = device.memory_bytes * given.usable_memory_share - weights * uneven
    row_bytes = model.kv_bytes_per_token / 4 * given.kv_value_bytes * given.context / devices
    rows = max(0, min(int(free / (row_bytes * uneven)), given.max_rows * stages))
    microbatch = max(1, rows // stages)
    bandwidth = device.memory_bytes_per_s * given.bandwidth_share
    flops = device.flops_per_s * given.flops_share

    def tick(microbatch_rows: float) -> tuple[float, float]:
        """Return seconds of a tick, and those of them that are messages."""
        read = (weights + microbatch_rows * row_bytes) * uneven / bandwidth
        computed = 2 * model.num_parameters / devices * uneven * microbatch_rows / flops
        sent = _message_s(model, device, given, rows=microbatch_rows, tensor=tensor, stages=stages)
        return max(read, computed) + sent, sent

    tick_s, sent_s = tick(microbatch)
    alone_s = stages * tick(1)[0]
    chunk_s = 2 * model.num_parameters / devices * uneven * given.chunk_tokens / flops
    chunk_s += _message_s(model, device, given, rows=given.chunk_tokens, tensor=tensor, stages=stages)
    num_chunks = math.ceil(given.prompt_tokens / given.chunk_tokens)
    decode, prefill = microbatch / tick_s, given.chunk_tokens / chunk_s
    # A request holds the devices for its prompt and then for its share of the ticks.
    requests = 1 / (given.prompt_tokens / prefill + given.output_tokens / decode) if rows else 0.0
    per_developer = given.requests_per_s * given.typing_share * (1 - given.answered_share)
    return Layout(
        device=device.name,
        tensor=tensor,
        stages=stages,
        weights_bytes_per_device=weights * uneven,
        kv_bytes_per_device=max(0.0, free),
        rows=rows,
        tick_ms=tick_s * 1e3,
        hop_share=sent_s / tick_s,
        token_ms=stages * tick_s * 1e3,
        alone_token_ms=alone_s * 1e3,
        decode_tokens_per_s=decode,
        prefill_tokens_per_s=prefill,
        first_token_ms=(num_chunks + stages - 1) * chunk_s * 1e3 * min(1.0, given.prompt_tokens / given.chunk_tokens),
        developers=requests * given.utilisation / per_developer,
    )


def choose_layout(found: Sequence[Layout]) -> Layout:
    """Return the smallest layout that serves nearly as many developers per device as any; raises ConfigError.

    Small ones waste less where few developers are, and take fewer sequences along when a device fails.
    """
    if not found:
        raise ConfigError(
            "the model fits no layout of so many devices; expected weights and one sequence within their memory; "
            "assume int8 weights (--assume weight_bytes=1), more max_devices, or a shorter context"
        )
    best = max(layout.developers / layout.num_devices for layout in found)
    near = [layout for layout in found if layout.developers / layout.num_devices >= _NEARLY * best]
    return min(near, key=lambda layout: (layout.num_devices, -layout.developers))


def bubble_share(*, stages: int, microbatches: int) -> float:
    """Return the share of ticks in which a stage of a ring idles because fewer microbatches circulate than stages."""
    return max(0.0, 1 - microbatches / stages)


def fill_share(*, stages: int, chunks: int) -> float:
    """Return the share of ticks lost to filling and draining when one prompt of `chunks` chunks is all there is."""
    return (stages - 1) / (chunks + stages - 1)


def fleet(layout: Layout, developers: int, given: Assumptions) -> dict[str, int]:
    """Return replicas, devices and hosts for so many connected developers, with one replica to spare from two on."""
    replicas = math.ceil(developers / layout.developers)
    replicas += replicas > 1
    devices = replicas * layout.num_devices
    return {"replicas": replicas, "devices": devices, "hosts": math.ceil(devices / given.devices_per_host)}


def read_assumptions(words: Sequence[str]) -> Assumptions:
    """Read `name=value` words; raises ConfigError."""
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in Assumptions.__struct_fields__:
            raise ConfigError(
                f"--assume got {word!r}; expected name=value with one of: {', '.join(Assumptions.__struct_fields__)}"
            )
        values[name] = value
    try:
        given = msgspec.convert(values, Assumptions, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--assume: {error}") from None
    for name in Assumptions.__struct_fields__:
        if name != "answered_share" and not getattr(given, name) > 0:
            raise ConfigError(f"--assume {name}={getattr(given, name):g}; expected a number above 0")
    if not 0 <= given.answered_share < 1:
        raise ConfigError(f"--assume answered_share={given.answered_share:g}; expected at least 0 and below 1")
    return given


def _message_s(
    model: ModelConfig, device: Device, given: Assumptions, *, rows: float, tensor: int, stages: int
) -> float:
    """Return seconds of messages in one tick: two sums a layer over `tensor`, one hop to the next stage."""
    activation = rows * model.hidden_size * given.kv_value_bytes
    seconds = 0.0
    if tensor > 1:
        each = given.hop_us * 1e-6 + 2 * (tensor - 1) / tensor * activation / device.link_bytes_per_s
        seconds += 2 * model.num_layers / stages * each
    if stages > 1:
        is_within = tensor * stages <= given.devices_per_host
        link = device.link_bytes_per_s if is_within else given.host_link_bytes_per_s
        seconds += given.hop_us * 1e-6 + activation / tensor / link
    return seconds
