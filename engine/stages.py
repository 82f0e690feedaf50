"""Which part of a model each stage of a mesh has: contiguous layers, and a share of the vocabulary.

The table of embeddings and the head are divided over all stages by rows, so both cost every stage the same; what
differs is the number of layers. A tick lasts as long as its slowest stage, so counts differ by one at most, and the
stages that carry one layer more are neither the first, which gathers embeddings, nor the last, which chooses tokens,
while there are others. Knows no JAX: the mesh and partitioned checkpoints both divide a model by this.
"""

import msgspec

from engine.errors import ConfigError
from engine.model.config import ModelConfig

VOCABULARY_ROWS = 64
"""Shares of the vocabulary are multiples of so many rows, the panels of the native products."""


class StagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What one stage has."""

    index: int
    first_layer: int
    num_layers: int
    first_token: int
    """Its share of the vocabulary: rows `first_token` to `last_token` of the table of embeddings and of the head."""
    last_token: int
    """The row after its share."""
    num_parameters: int
    """Parameters of its layers and of its share of the vocabulary, the last norm included (every stage has it)."""
    cost: float
    """What a token costs it, as a share of what it costs the whole model."""

    @property
    def layers(self) -> range:
        return range(self.first_layer, self.first_layer + self.num_layers)

    @property
    def num_tokens(self) -> int:
        return self.last_token - self.first_token

    @property
    def is_first(self) -> bool:
        """Whether tokens enter here."""
        return self.first_layer == 0


def plan_stages(config: ModelConfig, num_stages: int) -> list[StagePlan]:
    """Divide a model over stages; raises ConfigError when there are more stages than layers."""
    if num_stages < 1:
        raise ConfigError(f"the number of stages is {num_stages}; expected at least 1")
    if num_stages > config.num_layers:
        raise ConfigError(
            f"{num_stages} stages are more than the model's {config.num_layers} layers; expected at most one stage a "
            f"layer; choose --stages {config.num_layers} or fewer, and --tensor or --replicas for the other devices"
        )
    counts = _layer_counts(config.num_layers, num_stages)
    share = tokens_per_stage(config.vocab_size, num_stages)
    norm = config.hidden_size * (2 if config.norm == "layer" else 1)
    tables = config.hidden_size * (1 if config.has_tied_embeddings else 2)
    layer = (config.num_parameters - config.vocab_size * tables - norm) // config.num_layers
    # A token is looked up once and scored once: the lookup moves one row, the head multiplies all of them.
    whole = config.num_layers * layer + config.vocab_size * config.hidden_size
    plans, first_layer = [], 0
    for index, count in enumerate(counts):
        first_token = min(index * share, config.vocab_size)
        last_token = min(first_token + share, config.vocab_size)
        plans.append(
            StagePlan(
                index=index,
                first_layer=first_layer,
                num_layers=count,
                first_token=first_token,
                last_token=last_token,
                num_parameters=count * layer + (last_token - first_token) * tables + norm,
                cost=(count * layer + share * config.hidden_size) / whole,
            )
        )
        first_layer += count
    return plans


def tokens_per_stage(vocab_size: int, num_stages: int) -> int:
    """Return the rows of the vocabulary that a stage holds; the last ones may hold fewer, and pad."""
    return -(-vocab_size // (num_stages * VOCABULARY_ROWS)) * VOCABULARY_ROWS


def describe(plans: list[StagePlan]) -> str:
    """Return one line for the log: layers of each stage, and how evenly they are loaded."""
    slowest, mean = max(plan.cost for plan in plans), sum(plan.cost for plan in plans) / len(plans)
    layers = ", ".join(f"{plan.layers.start}-{plan.layers.stop - 1}" for plan in plans)
    return f"{len(plans)} stages of layers {layers}; the slowest has {slowest / mean:.2f} times the mean's work"


def _layer_counts(num_layers: int, num_stages: int) -> list[int]:
    least, rest = divmod(num_layers, num_stages)
    middle_first = sorted(range(num_stages), key=lambda i: (i in (0, num_stages - 1), i == num_stages - 1, i))
    longer = set(middle_first[:rest])
    return [least + (i in longer) for i in range(num_stages)]
