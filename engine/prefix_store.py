"""The prefix store's index: which block of stored KV belongs to which beginning of a prompt.

A slot keeps the KV of its last sequence; when another sequence is about to overwrite it, its full blocks are copied
into the store, and copied back when a prompt begins that way again. A block's address is a hash of its tokens chained
to the hash of all before it, salted per tenant; the tokens themselves are compared on every hit, so that two prompts
whose hashes collide never share KV. Holds no KV: `runner.copy_blocks` moves it. Knows no JAX.

Invariants (`check_integrity`): a block number is used by at most one entry or is free; every entry's address follows
from its parent's address and its tokens.
"""

from collections import OrderedDict
from hashlib import blake2b
from typing import NamedTuple

import msgspec
import numpy as np

BLOCK_TOKENS = 32
"""KV positions of a block."""


class BlockCopy(NamedTuple):
    """Move one block between the store and a slot."""

    slot: int
    position: int
    """First position in the slot."""
    block: int


class _Entry(msgspec.Struct):
    block: int
    parent: bytes
    tokens: bytes
    """Of this block, int32."""


class PrefixStore:
    """Least recently used blocks leave first."""

    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = num_blocks
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        """By address, the least recently used first."""
        self._free = list(range(num_blocks))

    block_tokens = BLOCK_TOKENS

    @property
    def num_used_blocks(self) -> int:
        return len(self._entries)

    def match(self, slot: int, tokens: np.ndarray, tenant: str, *, start: int) -> list[BlockCopy]:
        """Return the copies that extend a slot's KV of `tokens[:start]`: one run of stored blocks, maybe none.

        The first may overlap what the slot has. `tokens`: int32 `[T]`.
        """
        copies, addresses = [], []
        for position, address, block_tokens, parent in _chain(tokens, tenant):
            if position + BLOCK_TOKENS <= start:
                continue
            entry = self._entries.get(address)
            if entry is None or entry.tokens != block_tokens or entry.parent != parent:
                break
            copies.append(BlockCopy(slot, position, entry.block))
            addresses.append(address)
        self._touch(addresses)
        return copies

    def save(
        self, slot: int, tokens: np.ndarray, tenant: str, *, start: int, kept: frozenset[int] = frozenset()
    ) -> list[BlockCopy]:
        """Take in the blocks of a slot's `tokens` from `start` on that are not here; return the copies to make.

        Blocks in `kept` are not given to anyone else.
        """
        copies, addresses = [], []
        for position, address, block_tokens, parent in _chain(tokens, tenant):
            if position + BLOCK_TOKENS <= start:
                continue
            entry = self._entries.get(address)
            if entry is None:
                block = self._take_block(kept)
                if block is None:
                    break
                entry = self._entries[address] = _Entry(block, parent, block_tokens)
                copies.append(BlockCopy(slot, position, block))
            kept |= {entry.block}
            addresses.append(address)
        self._touch(addresses)
        return copies

    def clear(self) -> None:
        """Forget everything, because the KV is gone."""
        self._entries.clear()
        self._free = list(range(self._num_blocks))

    def check_integrity(self) -> None:
        """Assert the invariants."""
        used = [entry.block for entry in self._entries.values()]
        assert sorted(used + self._free) == list(range(self._num_blocks)), "a block is lost or used twice"
        for address, entry in self._entries.items():
            assert address == _address(entry.parent, entry.tokens), "an address that its tokens do not have"

    def _take_block(self, kept: frozenset[int]) -> int | None:
        if self._free:
            return self._free.pop()
        address = next((address for address, entry in self._entries.items() if entry.block not in kept), None)
        return None if address is None else self._entries.pop(address).block

    def _touch(self, addresses: list[bytes]) -> None:
        """Mark as used, a block after those that are of no use without it."""
        for address in reversed(addresses):
            self._entries.move_to_end(address)


def _address(parent: bytes, tokens: bytes) -> bytes:
    return blake2b(parent + tokens, digest_size=16).digest()


def _chain(tokens: np.ndarray, tenant: str) -> list[tuple[int, bytes, bytes, bytes]]:
    """Return (position, address, tokens, parent's address) of every full block."""
    parent = blake2b(tenant.encode(), digest_size=16).digest()
    chain = []
    for position in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        block_tokens = tokens[position : position + BLOCK_TOKENS].tobytes()
        address = _address(parent, block_tokens)
        chain.append((position, address, block_tokens, parent))
        parent = address
    return chain
