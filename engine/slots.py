"""The slot table: which sequence holds which row of the resident KV, and which tokens' KV each row still holds.

A slot that is given up keeps its tokens until another sequence overwrites them, so that a prompt which begins as an
earlier one did computes only what differs. Tokens are compared, never text or hashes; tenants never share.

Invariants: a slot is held by at most one sequence; `tokens` of a free slot are exactly those whose KV is valid.
"""

import msgspec
import numpy as np


class Slot(msgspec.Struct):
    """One row of the resident KV."""

    tenant: str = ""
    tokens: np.ndarray = msgspec.field(default_factory=lambda: np.empty(0, np.int32))
    """What the KV holds, valid while the slot is free."""
    is_held: bool = False
    last_used: int = 0
    """Logical time of the last release."""


class SlotTable:
    """Hands out slots, best reuse first."""

    def __init__(self, num_slots: int) -> None:
        self._slots = [Slot() for _ in range(num_slots)]
        self._clock = 0

    @property
    def num_held(self) -> int:
        return sum(slot.is_held for slot in self._slots)

    def acquire(self, prompt: np.ndarray, tenant: str, *, may_reuse: bool = True) -> tuple[int, int] | None:
        """Take a free slot for `prompt` (int32 `[T]`); return it and how many leading tokens need no computing.

        At least one token is left to compute, since its scores are needed. The slot with the longest common prefix
        is taken if most of what it holds would be used again, else the one unused for longest, so that one
        request does not wipe out another file's KV for the sake of a few shared tokens. None: all slots are held.
        """
        free = [(i, slot) for i, slot in enumerate(self._slots) if not slot.is_held]
        if not free:
            return None
        common = {i: self._common(slot, prompt, tenant) if may_reuse else 0 for i, slot in free}
        chosen = max(common, key=lambda i: (common[i], -self._slots[i].last_used))
        if common[chosen] * 2 < min(len(self._slots[chosen].tokens), len(prompt)):
            chosen = min(free, key=lambda item: (item[1].last_used, item[0]))[0]
        self._slots[chosen].is_held = True
        return chosen, common[chosen]

    def release(self, index: int, tokens: np.ndarray, tenant: str) -> None:
        """Give a slot back; `tokens` are those whose KV it holds."""
        slot = self._slots[index]
        assert slot.is_held, f"slot {index} is released but nobody holds it"
        self._clock += 1
        slot.is_held, slot.tokens, slot.tenant, slot.last_used = False, tokens, tenant, self._clock

    def forget(self) -> None:
        """Mark the KV of every free slot invalid."""
        for slot in self._slots:
            slot.tokens = np.empty(0, np.int32)

    def check_integrity(self, held: set[int]) -> None:
        """Assert that exactly the slots in `held` are held."""
        actual = {i for i, slot in enumerate(self._slots) if slot.is_held}
        assert actual == held, f"slots held are {actual}, expected {held}"

    @staticmethod
    def _common(slot: Slot, prompt: np.ndarray, tenant: str) -> int:
        if slot.tenant != tenant:
            return 0
        length = min(len(slot.tokens), len(prompt) - 1)
        differs = np.flatnonzero(slot.tokens[:length] != prompt[:length])
        return int(differs[0]) if len(differs) else length
