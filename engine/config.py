"""Deployment choices of the engine. Model facts are in `model/config.py`, request parameters in `types.py`."""

from typing import Literal

import msgspec

from engine.types import BudgetMode


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one engine runs."""

    num_replicas: int = 1
    """Separate engines at start, each with its own KV; a session stays with one. More can be added while serving."""
    num_stages: int = 1
    """Parts that the layers are divided into, each on devices of its own; 0: as few as the devices' memory allows."""
    num_tensor: int = 1
    """Devices that share each layer's heads and columns."""
    num_slots: int = 16
    """Sequences that can run at once; each slot holds the KV of one."""
    max_context: int = 0
    """Most tokens per sequence, prompt and completion together; 0: what the model was made for, at most 8192."""
    max_waiting: int = 256
    """Requests that may wait for a slot; one more is refused."""
    max_slowdown: float = 2.0
    """Interactive requests are refused as long as they would be slower than this times what they would be alone;
    0: only `max_waiting` bounds them."""
    unhurried_s: float = 0.1
    """Seconds below which no request counts as slow."""
    prefill_chunk: int = 256
    """Prompt tokens computed in one step, so that running sequences never wait for a whole prompt."""
    budgets: BudgetMode = "fixed"
    """How much a chunk may slow down running sequences, and how wide drafts may be: fixed: by rules and measured costs
    alone; learned: within those, as it was found out while serving which values make people wait least."""
    drafts: bool = True
    """Verify text that is likely to come next, several tokens in one step, where that was measured to pay."""
    reuse_kv: bool = True
    """Use KV of earlier requests; off only to measure what that is worth."""
    prefix_store_mb: int = 256
    """Memory for KV of prompts whose slot was given up, in MB (10^6 bytes); 0: none is kept."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of weights and KV; auto: bfloat16 on a GPU, float32 on a CPU."""
    attention: Literal["auto", "xla", "native"] = "auto"
    """Attention path; auto: the fastest that passes a numeric self-test on this machine."""
    weights: Literal["auto", "int8"] = "auto"
    """How matrices are kept; auto: in `dtype`; int8: a byte a weight, which costs a little quality."""
    sparse: Literal["auto", "on", "off"] = "auto"
    """Block-sparse attention while prompts are computed, for requests that do not say; auto: for prompts of at least
    `sparse_tokens`; on: wherever blocks can be left out; off: never, whatever requests say."""
    sparse_tokens: int = 4096
    """From so many prompt tokens on attention is block-sparse with `sparse = "auto"`."""
    sparse_blocks: int = 32
    """Blocks of 64 positions that each block of queries attends to; the fewer, the faster and the less exact."""
    products: Literal["auto", "xla", "native"] = "auto"
    """Path of the products with matrices; auto: the fastest that passes a numeric self-test on this machine."""
    token_healing: bool = True
    """Let the model write the last token before the cursor again; off only to measure what that is worth."""
    compile_cache: str = ""
    """Directory of compiled programs; empty: `cloudcomplete/` in the user's cache directory."""
