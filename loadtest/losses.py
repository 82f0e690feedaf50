"""Losses: after how many answers in a row that were lost a server counts as gone."""

from collections.abc import Sequence

from loadtest.dialects import ErrorKind, Reply


class Losses:
    """Counts answers that were lost in a row."""

    def __init__(self, *, most: int, kinds: Sequence[ErrorKind]) -> None:
        """`most` losses of these kinds in a row are a server that is gone."""
        self._most = most
        self._kinds = kinds
        self._num_lost = 0

    def take(self, reply: Reply) -> str:
        """Count an answer; returns why the server counts as gone, empty while it does not."""
        self._num_lost = self._num_lost + 1 if reply.error_kind in self._kinds else 0
        if self._num_lost < self._most:
            return ""
        return f"{self._num_lost} answers in a row were lost; the last: {reply.error}"
