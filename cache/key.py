"""What decides an answer (`Key`), and what is kept of one (`Answer`).

Two keys are equal exactly when the model would be asked the same thing in the same way on behalf of the same tenant.
Whatever changes the answer is part of the key, above all what the texts come from: when a file, the model or the
template changes, its hash does, and what was stored before cannot be reached any more. Nothing has to be deleted.

Knows no tokens, no files, no requests: hashes and names are the caller's.
"""

import hashlib
from functools import cached_property
from typing import Literal

import msgspec

Source = Literal["memory", "type-through", "shared"]
"""Where an answer came from: stored for this very key in this process, the rest of one that was typed into, or stored
by any process."""


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """Everything that decides an answer."""

    tenant: str
    """Whose request it is. Tenants never share entries, unless the cache is configured so."""
    model: str
    """Which weights compute, and how: a content hash with the numeric type and whatever else may turn a token."""
    template: str
    """How a prompt is laid out and a text finished: name and version of the markers' layout and of the trimming."""
    before: str
    """Text left of the cursor, as far as the model is shown it."""
    after: str
    """Text right of the cursor, as far as the model is shown it."""
    cut: int
    """Index into `before` from which on text stands behind the text after the cursor."""
    context_hash: str = ""
    """Content hash of everything else the model is shown: other places of the project, the file's path."""
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 64
    stop: tuple[str, ...] = ()

    @property
    def is_greedy(self) -> bool:
        """Tell whether the answer is what the model finds likeliest, whatever the seed."""
        return self.temperature == 0

    @cached_property
    def line(self) -> str:
        """The text from the cut to the cursor: what typing lengthens."""
        return self.before[self.cut :]

    @cached_property
    def place(self) -> bytes:
        """32 bytes that stand for everything but `line`: equal for the keystrokes of one line."""
        return _digest(
            *(self.tenant, self.model, self.template, self.context_hash, self.before[: self.cut], self.after),
            repr((self.cut, self.temperature, self.top_k, self.top_p, self.seed, self.max_tokens)),
            *self.stop,
        )

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that stand for the whole key."""
        return _digest(self.place.hex(), self.line)

    @cached_property
    def realm(self) -> bytes:
        """16 bytes that stand for tenant, model and template: what similar places must have in common."""
        return _digest(self.tenant, self.model, self.template)[:16]


class Answer(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A stored completion. Its fields are the record of the shared tier: a change needs a new `RECORD_VERSION`."""

    text: str
    """What belongs at the cursor."""
    finish_reason: str
    """Why it ended: "stop", or "length" where the model would have gone on."""
    beyond: str = ""
    """What the model wrote after `text` and nobody was shown: the beginning of the answer after an accept."""
    logit_gap: float | None = None
    """Smallest distance between the two best scores at any token; None: unknown."""
    source: str = "model"
    """Who made it."""
    created_s: float = 0.0
    """When, in seconds since 1970; 0: the cache fills it in."""
    made_from: tuple[str, ...] = ()
    """Content hashes of what it was made from, for people who look into a store."""


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that may be served as it is."""

    answer: Answer
    """For "type-through" without what was typed; its `text` is empty when only `beyond` is left."""
    source: Source
    num_typed: int = 0
    """For "type-through": characters of the earlier answer that were typed since."""


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """What followed at a similar place. May be wrong: the model verifies it, nobody is ever shown it unverified."""

    text: str
    score: float
    """Cosine of the two places, -1 to 1; 1: alike."""


def tenant_name(tenant: str) -> str:
    """Return the name under which stores and files know a tenant: 32 characters that mean nothing anywhere."""
    return _digest(tenant).hex()[:32]


def _digest(*texts: str) -> bytes:
    """Hash texts so that moving a border between two of them gives another digest; any text has one."""
    digest = hashlib.blake2b(digest_size=32)
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()
