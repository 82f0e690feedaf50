"""What a training run is: the model's shape, the rows it reads, how it learns. Nothing here is read while serving."""

from typing import Literal

import msgspec

from engine.model.config import ModelConfig


class ShapeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shape of the model that is trained; letters as in `ModelConfig`."""

    vocab_size: int = 4096
    """[V]"""
    hidden_size: int = 256
    """[D]"""
    intermediate_size: int = 512
    """[F]"""
    num_layers: int = 4
    """[L]"""
    num_heads: int = 4
    """[N]"""
    num_kv_heads: int = 2
    """[K]"""
    head_size: int = 64
    """[H]"""
    max_context: int = 2048
    """Most tokens the exported model promises to read; the decay phase trains on rows this long."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""

    def resolve(self) -> ModelConfig:
        """Return the model facts, as `engine/starter/config.json` will say them."""
        return ModelConfig(
            family="llama",
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_size=self.head_size,
            max_context=self.max_context,
            rope_theta=self.rope_theta,
            has_tied_embeddings=True,
            eos_token_ids=(0,),
        )


class ExamplesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How documents become examples (`examples.py`). Shares are probabilities."""

    plain_share: float = 0.25
    """Examples that read left to right, without a hole."""
    path_share: float = 0.8
    """Examples whose own path is told."""
    context_share: float = 0.5
    """FIM examples preceded by chunks of other files of the project."""
    joint_share: float = 0.7
    """Holes inside a token that are tokenised together with the text before them, as token healing sees them."""
    line_share: float = 0.55
    """Holes that are the rest of a line."""
    block_share: float = 0.22
    """Holes that are the rest of a line and one to four lines more; what is left over are random spans."""
    max_span_chars: int = 200
    """Longest random span."""


class TrainingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training run."""

    shape: ShapeConfig = ShapeConfig()
    """The model."""
    examples: ExamplesConfig = ExamplesConfig()
    """What it reads."""
    seed: int = 20
    """Of the initial weights and of every row."""
    row_length: int = 512
    """Tokens in a row of the stable phase."""
    rows_per_step: int = 8
    """Rows in a step of the stable phase."""
    decay_row_length: int = 2048
    """Tokens in a row of the decay phase: the context that is shipped."""
    decay_rows_per_step: int = 2
    """Rows in a step of the decay phase."""
    learning_rate: float = 0.006
    """Of Muon, for the hidden matrices."""
    adam_learning_rate: float = 0.0012
    """Of AdamW, for embedding and norms."""
    weight_decay: float = 0.02
    """Of the hidden matrices and the embedding."""
    warmup_steps: int = 200
    """Steps until the learning rate is whole."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    num_processes: int = 0
    """Processes that make rows, for steps that a thread cannot feed; 0: a thread."""
    products: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the operands of products; sums are float32. `auto`: bfloat16 on GPUs and on CPUs with AMX."""
    checkpoint_s: float = 240.0
    """Seconds between checkpoints."""
    held_out_steps: int = 500
    """Steps between measurements on held-out projects."""
    num_held_out_rows: int = 64
    """Rows in such a measurement."""
    loss_chunk_tokens: int = 0
    """Tokens whose scores over the vocabulary exist at once; 0: all of a step."""
    remat: bool = False
    """Compute activations a second time instead of keeping them; for machines short of memory."""
