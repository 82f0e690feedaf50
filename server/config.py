"""Deployment choices of the server: the [server] section of the configuration file."""

import os
from pathlib import Path

import msgspec

from engine.types import BudgetMode
from server.types import TrimMode


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one server listens, what it accepts and how it stops."""

    host: str = "127.0.0.1"
    """Address to listen on. There is no authentication yet: other than loopback only inside a trusted network."""
    grpc_port: int = 50051
    """Port to listen on; 0 takes a free one, which is printed."""
    metrics_port: int = 0
    """Port of the metrics for Prometheus, over HTTP on the same host; 0: none."""
    max_in_flight: int = 256
    """Requests that may run or wait at once; one more is refused with a hint when to try again."""
    max_message_bytes: int = 4 * 1024 * 1024
    """Largest gRPC message accepted."""
    max_text_bytes: int = 1024 * 1024
    """Most UTF-8 bytes of before, after and context together."""
    max_context_chunks: int = 64
    """Most context chunks in one request."""
    default_max_tokens: int = 64
    """New tokens for a request that names no limit."""
    greatest_max_tokens: int = 1024
    """Largest limit of new tokens that a request may name."""
    default_deadline_s: float = 60.0
    """Seconds that a request may take when it brings no deadline of its own."""
    chunk_interval_s: float = 0.05
    """Least seconds between two chunks of one answer, after its first text and its first whole line; 0: a chunk for
    every token."""
    trim: TrimMode = "auto"
    """Where completions end: auto: at a line or a block, by what stands around the cursor; line, block; off: where the
    model ends them."""
    sessions: bool = True
    """Answer from what was suggested in the same session; off only to measure what that is worth."""
    session_linger_s: float = 0.25
    """Seconds that a request of a session goes on when its client has given it up: the next keystroke may adopt it."""
    session_least_chars: int = 16
    """A suggestion that its limit of tokens cut off answers later keystrokes while at least so much of it is left."""
    prefetch: bool = True
    """Answer what a session is likely to ask next before it does, while nobody waits for the engine."""
    prefetch_least_probability: float = 0.4
    """How likely a request has to be to be answered ahead; more where too much of the work turns out to be wasted."""
    prefetch_wasted_share: float = 0.45
    """Share of the tokens written ahead that may be wasted, 0 to 1."""
    prefetch_budget: BudgetMode = "fixed"
    """fixed: the share that may be wasted is as above; learned: half of it, or nearly twice, while that was found to
    make requests wait less for their first text."""
    prefetch_at_once: int = 2
    """Requests answered ahead at once, of all sessions."""
    feedback_directory: str = ""
    """Where records of what became of suggestions are kept, and what the predictor has learned; "": nowhere."""
    feedback_bytes: int = 64 * 1024 * 1024
    """Most bytes of these records; the oldest half goes first."""
    feedback_has_text: bool = False
    """Record the suggestions' text too, which is source code."""
    request_log: str = ""
    """File of what clients asked, for `flows run warm-cache`; it holds source code. "": none."""
    request_log_bytes: int = 256 * 1024 * 1024
    """Most bytes of that log; the oldest half goes first."""
    session_idle_s: float = 1800.0
    """Seconds without a request after which a session may be forgotten."""
    session_bytes: int = 8 * 1024 * 1024
    """Memory that the texts of one session may take; its oldest suggestions go first."""
    sessions_bytes: int = 256 * 1024 * 1024
    """Memory that the texts of all sessions may take; the session unused for longest goes first."""
    max_sessions: int = 4096
    """Most sessions kept."""
    repository_context: bool = True
    """Whether text of other files of a project goes ahead of prompts: of projects that `cloudcomplete index` has read,
    and of whole files that clients send along."""
    repository_directory: str = ""
    """Directory of those indexes; "": cloudcomplete/repositories in the user's cache directory."""
    repositories_bytes: int = 512 * 1024 * 1024
    """Memory that the indexes of all projects may take; the oldest go first."""
    drain_s: float = 10.0
    """Seconds that running requests get to end after the signal to stop."""
    before_lines: int = 256
    """Most lines above the cursor's that the model is shown."""
    after_lines: int = 128
    """Most lines below the cursor's that the model is shown."""
    step_lines: int = 64
    """The edges of the window move by this many lines at once, so that most keystrokes leave them where they are."""
    before_chars: int = 24_576
    """Most characters of text left of the cursor that the model is shown, whatever the length of its lines."""
    after_chars: int = 12_288
    """Most characters of text right of the cursor that the model is shown."""
    step_chars: int = 4_096
    """Where lines are so long that characters decide, the edges move by this many characters at once."""

    @property
    def resolved_repository_directory(self) -> Path:
        """Where the indexes of projects belong."""
        if self.repository_directory:
            return Path(self.repository_directory).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cloudcomplete" / "repositories"

    def __post_init__(self) -> None:
        """Refuse values that cannot hold, with ValueError; msgspec adds the path of the section."""
        for name, zero in (("grpc_port", "any free port"), ("metrics_port", "none")):
            if not 0 <= getattr(self, name) <= 65_535:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 ({zero}) to 65535")
        for name in _POSITIVE:
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}; expected a number above 0")
        for name in ("drain_s", "chunk_interval_s", "session_linger_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more seconds")
        for name in ("prefetch_least_probability", "prefetch_wasted_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number between 0 and 1")
        for chars in ("before_chars", "after_chars"):
            if getattr(self, chars) < 2 * self.step_chars:  # else the edge could lie in the text being typed
                raise ValueError(
                    f"{chars} is {getattr(self, chars)}; expected at least twice step_chars, which is {self.step_chars}"
                )
        for small, large in _ORDERED:
            if getattr(self, small) > getattr(self, large):
                raise ValueError(
                    f"{small} is {getattr(self, small)}; expected at most {large}, which is {getattr(self, large)}"
                )


_POSITIVE = (
    "max_in_flight",
    "max_message_bytes",
    "max_text_bytes",
    "max_context_chunks",
    "default_max_tokens",
    "greatest_max_tokens",
    "default_deadline_s",
    "session_least_chars",
    "prefetch_at_once",
    "feedback_bytes",
    "request_log_bytes",
    "session_idle_s",
    "session_bytes",
    "sessions_bytes",
    "max_sessions",
    "repositories_bytes",
    "before_lines",
    "after_lines",
    "step_lines",
    "before_chars",
    "after_chars",
    "step_chars",
)
_ORDERED = (
    ("default_max_tokens", "greatest_max_tokens"),
    ("max_text_bytes", "max_message_bytes"),
    ("session_bytes", "sessions_bytes"),
    ("step_lines", "before_lines"),
    ("step_lines", "after_lines"),
)
