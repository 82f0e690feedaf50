"""How much slower than alone people get their text: seconds waited for each second that the work takes alone.

Counted as it happens, not when a request ends: waiting and work of unfinished requests are in it, so whoever tunes
something by it can gain nothing by leaving a request behind. In each stretch of time

    slowdown = (seconds waited for a first token + `_WRITING` x seconds waited for further tokens)
             / (seconds that the prompts computed take alone + `_WRITING` x seconds that the tokens written take alone)

each summed over the interactive sequences. By Little's law what is summed up above are times to first tokens and gaps
between tokens. Alone the quotient is about 1, or less where drafts are accepted.

Knows no clock but the times it is told, no slots and no device.
"""

_WRITING = 0.5
"""A second without the next token counts so much of one without the first: meanwhile there is something to read."""


class Slowdown:
    """Interactive sequences that wait for their first token and that write, and what became of their time."""

    def __init__(self) -> None:
        self.num_waiting = 0
        """Sequences without a token so far,"""
        self.num_writing = 0
        """and with one."""
        self._last_s = 0.0
        self._waited_s = self._writing_s = 0.0
        self._num_prompt_tokens = self._num_new_tokens = 0

    def enter(self, submitted_s: float) -> None:
        """A sequence has come; it has waited since it was submitted."""
        self.pass_time(max(self._last_s, submitted_s))  # it has not waited through the calm before it
        self.num_waiting += 1
        self._waited_s += self._last_s - submitted_s  # the rest is counted when time passes

    def pass_time(self, now_s: float) -> None:
        """It has become later for all of them."""
        passed_s, self._last_s = now_s - self._last_s, now_s
        self._waited_s += self.num_waiting * passed_s
        self._writing_s += self.num_writing * passed_s

    def advance(self, num_prompt_tokens: int, num_new_tokens: int, *, is_first: bool) -> None:
        """A sequence got so much further; `is_first`: it had no token before."""
        self._num_prompt_tokens += num_prompt_tokens
        self._num_new_tokens += num_new_tokens
        if is_first and num_new_tokens:
            self.num_waiting -= 1
            self.num_writing += 1

    def leave(self, *, is_writing: bool) -> None:
        """A sequence has gone."""
        self.num_waiting -= not is_writing
        self.num_writing -= is_writing

    def take(self, *, prompt_token_s: float, new_token_s: float) -> float | None:
        """Return the slowdown since the last call, by what tokens take alone now; None: nothing was done."""
        waited_s = self._waited_s + _WRITING * self._writing_s
        alone_s = self._num_prompt_tokens * prompt_token_s + _WRITING * self._num_new_tokens * new_token_s
        self._waited_s = self._writing_s = 0.0
        self._num_prompt_tokens = self._num_new_tokens = 0
        return waited_s / alone_s if alone_s > 0 and waited_s > 0 else None
