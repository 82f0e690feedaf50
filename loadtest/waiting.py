"""How long people who type wait for text, counted as it happens: the definition of `outcomes.py`, without the outcomes.

A keystroke that got no text before the text changed again waits on, for the time it was open and the time of the next
keystroke; time in which nothing was asked does not count.
"""


class Wait:
    """One typist's open and late keystrokes."""

    def __init__(self) -> None:
        self._late_s: list[float] = []
        self._opened_s: float | None = None
        self.num_keystrokes = 0
        self.num_on_time = 0

    def press(self, now_s: float) -> None:
        """A keystroke that asks, in place of what was open."""
        self.change(now_s)
        self._opened_s = now_s
        self.num_keystrokes += 1

    def change(self, now_s: float) -> None:
        """The text changed: what is still open is late."""
        if self._opened_s is not None:
            live_s = now_s - self._opened_s
            self._late_s = [waited_s + live_s for waited_s in (*self._late_s, 0.0)]
            self._opened_s = None

    def show(self, now_s: float) -> list[float]:
        """The newest keystroke got its text: return how long it and all that were late before it have waited."""
        if self._opened_s is None:
            return []
        own_s = now_s - self._opened_s
        self._opened_s = None
        self.num_on_time += 1
        waits = [own_s, *(waited_s + own_s for waited_s in self._late_s)]
        self._late_s = []
        return waits

    @property
    def is_open(self) -> bool:
        """Whether the newest keystroke still waits."""
        return self._opened_s is not None

    @property
    def num_never(self) -> int:
        """Keystrokes that have not got any text so far."""
        return len(self._late_s) + self.is_open
