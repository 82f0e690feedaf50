"""The slot table: which sequence holds which row of the resident KV, and which tokens' KV each row still holds.

A slot that is given up keeps its tokens until another sequence overwrites them, so that a prompt which begins as an
earlier one did computes only what differs. Tokens are compared, never text or hashes; tenants never share.

Invariants: a slot is held by at most one sequence; `tokens` of a free slot are exactly those whose KV is valid.
"""

from typing import NamedTuple

import msgspec
import numpy as np

_NONE = np.empty(0, np.int32)


class Slot(msgspec.Struct):
    """One row of the resident KV."""

    tenant: str = ""
    session: str = ""
    """Session of the last sequence; empty: none."""
    tokens: np.ndarray = _NONE
    """What the KV holds, int32, valid while the slot is free."""
    num_dense: int | None = None
    """Leading tokens whose KV is dense attention's; None: all. The rest is for sequences that are sparse themselves."""
    is_held: bool = False
    last_used: int = 0
    """Logical time of the last release."""


class Grant(NamedTuple):
    """A slot for a sequence."""

    slot: int
    num_reused: int
    """Leading tokens of the prompt whose KV is there."""
    displaced: np.ndarray
    """Another session's tokens whose KV will be overwritten from `num_reused` on; empty: none worth keeping."""
    displaced_tenant: str
    num_dense: int | None
    """Leading tokens of those reused whose KV is dense attention's; None: all."""


class SlotTable:
    """Hands out slots, best reuse first."""

    def __init__(self, num_slots: int) -> None:
        self._slots = [Slot() for _ in range(num_slots)]
        self._clock = 0

    @property
    def num_slots(self) -> int:
        return len(self._slots)

    def acquire(
        self, prompt: np.ndarray, tenant: str, session: str = "", *, may_reuse: bool = True, is_sparse: bool = False
    ) -> Grant | None:
        """Take a free slot for `prompt` (int32 `[T]`); None: all slots are held.

        Only a sequence that `is_sparse` reuses KV that block-sparse attention made, and nobody else ever stores it.

        At least one token is left to compute, since its scores are needed. The slot with the longest common prefix
        is taken, the session's own among equals, if most of what it holds would be used again; else the one unused
        for longest, so that one request does not wipe out another file's KV for the sake of a few shared tokens.
        """
        free = [i for i, slot in enumerate(self._slots) if not slot.is_held]
        if not free:
            return None
        common = {
            i: self._common(self._slots[i], prompt, tenant, is_sparse=is_sparse) if may_reuse else 0 for i in free
        }

        def is_own(i: int) -> bool:
            return bool(session) and (self._slots[i].session, self._slots[i].tenant) == (session, tenant)

        chosen = max(free, key=lambda i: (common[i], is_own(i), -self._slots[i].last_used))
        if common[chosen] * 2 < min(len(self._slots[chosen].tokens), len(prompt)) and not is_own(chosen):
            chosen = min(free, key=lambda i: (self._slots[i].last_used, i))
        slot = self._slots[chosen]
        displaced = _NONE if is_own(chosen) else slot.tokens[: slot.num_dense]
        num_dense = slot.num_dense if slot.num_dense is not None and slot.num_dense < common[chosen] else None
        slot.is_held = True
        return Grant(chosen, common[chosen], displaced, slot.tenant, num_dense)

    def release(
        self, index: int, tokens: np.ndarray, tenant: str, session: str = "", *, num_dense: int | None = None
    ) -> None:
        """Give a slot back; `tokens` (int32) are those whose KV it holds, the first `num_dense` by dense attention."""
        slot = self._slots[index]
        assert slot.is_held, f"slot {index} is released but nobody holds it"
        self._clock += 1
        slot.is_held, slot.tokens, slot.last_used = False, tokens, self._clock
        slot.tenant, slot.session, slot.num_dense = tenant, session, num_dense

    def forget(self) -> None:
        """Mark the KV of every free slot invalid."""
        for slot in self._slots:
            slot.tokens = _NONE

    def check_integrity(self, held: set[int]) -> None:
        """Assert that exactly the slots in `held` are held."""
        actual = {i for i, slot in enumerate(self._slots) if slot.is_held}
        assert actual == held, f"slots held are {actual}, expected {held}"

    @staticmethod
    def _common(slot: Slot, prompt: np.ndarray, tenant: str, *, is_sparse: bool) -> int:
        if slot.tenant != tenant:
            return 0
        length = min(len(slot.tokens if is_sparse else slot.tokens[: slot.num_dense]), len(prompt) - 1)
        differs = np.flatnonzero(slot.tokens[:length] != prompt[:length])
        return int(differs[0]) if len(differs) else length
