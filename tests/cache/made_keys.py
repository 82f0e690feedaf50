"""Keys and answers to try the cache with, and a clock that tests move."""

from typing import Any

from cache.key import Answer, Key


class Clock:
    """Seconds, as tests set them."""

    def __init__(self, now_s: float = 1_000_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def make_key(before: str = "def f():\n    return ", **changes: Any) -> Key:
    """Make a key whose cut is the start of the cursor's line."""
    parts = {
        "tenant": "t",
        "model": "m",
        "template": "fim",
        "after": "\n",
        "cut": before.rfind("\n") + 1,
        "context_hash": "c",
        "stop": ("END",),
    }
    return Key(before=before, **(parts | changes))


def make_answer(text: str = "self.value", **changes: Any) -> Answer:
    """Make an answer of the time at which `Clock` starts."""
    return Answer(text=text, **({"finish_reason": "stop", "created_s": Clock().now_s} | changes))
