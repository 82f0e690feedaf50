"""An answer as bytes, as the shared stores keep it: checked when it comes back, whoever wrote it and wherever it lay.

The checksum covers the key's digest as well, so that a record which ended up under another key is refused like a
damaged one.
"""

import hashlib

import msgspec

from cache.key import Answer

RECORD_VERSION = 1
"""Raised whenever `Answer` or what its digest is made of changes; stores keep versions apart."""
_CHECKSUM_BYTES = 8


def encode_record(digest: bytes, answer: Answer) -> bytes:
    """Return the record of an answer; raises UnicodeEncodeError for text that UTF-8 cannot hold."""
    body = msgspec.msgpack.encode(answer)
    return _checksum(digest, body) + body


def decode_record(digest: bytes, record: bytes) -> Answer | None:
    """Return the answer of a record; None if it is not exactly what was written under this digest."""
    checksum, body = record[:_CHECKSUM_BYTES], record[_CHECKSUM_BYTES:]
    if checksum != _checksum(digest, body):
        return None
    try:
        return msgspec.msgpack.decode(body, type=Answer)
    except msgspec.DecodeError:
        return None


def _checksum(digest: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES, key=digest).digest()
