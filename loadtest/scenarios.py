"""Scenarios of the load test: who does what, and whether they wait for the server.

In an *open* loop the load does not depend on the server: keys are pressed and requests sent when the recording says so,
also when the server is late. In a *closed* loop each user waits for an answer before going on, so a slow server gets
less to do; it finds how much a server can do, and hides how long people would have waited.
"""

from typing import Literal

import msgspec

from loadtest.errors import RunError


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of load."""

    name: str
    loop: Literal["open", "closed"]
    summary: str
    users: tuple[str, ...]
    """Classes of users in it."""
    needs_shape: bool = False
    """Whether the number of users follows a trace of rates."""


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            name="typing",
            loop="open",
            summary="people type recorded edits at the recorded times, each in a session; the next key cancels",
            users=("TypingUser",),
        ),
        Scenario(
            name="daily",
            loop="open",
            summary="the same, as many of them at once as a trace of rates has requests",
            users=("TypingUser",),
            needs_shape=True,
        ),
        Scenario(
            name="bursts",
            loop="open",
            summary="single requests at the times of a production trace, as long as there, of real source text",
            users=("BurstUser",),
        ),
        Scenario(
            name="patient",
            loop="closed",
            summary="each user asks at a place of real source text, waits for the whole answer, and asks elsewhere",
            users=("PatientUser",),
        ),
        Scenario(
            name="mixed",
            loop="open",
            summary="typing and bursts together",
            users=("TypingUser", "BurstUser"),
        ),
    )
}


def find_scenario(name: str) -> Scenario:
    """Return a scenario by its name; raises RunError."""
    if name not in SCENARIOS:
        raise RunError(f"{name!r} is no scenario; expected one of: {', '.join(SCENARIOS)}")
    return SCENARIOS[name]
