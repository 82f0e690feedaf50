"""Tokens of one sequence to text that may be shown at once and never has to be taken back.

Knows no sampling and no network. Three things are held back until they are certain: the bytes of a character that is
not complete, the bytes before the cursor that token healing makes the model write again (never shown), and text that
may turn out to be the beginning of a stop string.
"""

import codecs

from engine.tokenizer import Tokenizer


class Detokenizer:
    """Streams the text of one sequence; what `push` and `flush` return, joined, is the completion.

    The result depends on the bytes alone, not on how they are divided into tokens: the stop string that is *complete*
    first wins, the longest of several that end at the same character.
    """

    def __init__(self, tokenizer: Tokenizer, *, heal: bytes = b"", stop: tuple[str, ...] = ()) -> None:
        self._tokenizer = tokenizer
        self._heal = heal
        self._stops = tuple(text for text in stop if text)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.is_stopped = False
        """A stop string has appeared; nothing more comes out."""

    def push(self, token_id: int) -> str:
        """Take the next token and return the text that has become final."""
        if self.is_stopped:
            return ""
        token = self._tokenizer.token_bytes(token_id)
        if self._heal:
            healed = min(len(self._heal), len(token))
            assert token[:healed] == self._heal[:healed], "a token came that does not heal the cursor"
            token, self._heal = token[healed:], self._heal[healed:]
        text = self._decoder.decode(token)
        return self._release(text) if self._stops else text

    def flush(self) -> str:
        """Return what was held back, at the end of the sequence. A character that stayed incomplete is left out."""
        self._decoder.reset()
        text, self._held = self._held, ""
        return text

    def _release(self, text: str) -> str:
        """Add `text` to what is held back and return what no stop string can take away any more."""
        self._held += text
        ends = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if ends:
            _, start = min(ends)
            text, self._held, self.is_stopped = self._held[:start], "", True
            return text
        keep = max(self._num_begun(stop) for stop in self._stops)
        split = len(self._held) - keep
        text, self._held = self._held[:split], self._held[split:]
        return text

    def _num_begun(self, stop: str) -> int:
        """Return how many characters of `stop` the held text ends with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
