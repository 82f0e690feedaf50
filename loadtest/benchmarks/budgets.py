"""`bench budgets`: learned budgets against fixed ones on the same mixed load, in turn on two servers that both stay up.

Two people type a recorded history while long prompts of single requests come in, at times that are drawn once and are
the same for both servers; so are the places. Which server is first alternates. The learned one begins with nothing and
learns in its own rounds alone, so the later half of the rounds is told apart. Nothing is refused for being late, so
that both do the same work. Goodput is what had its first text within 0.3 s, of all keystrokes and requests.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from loadtest.benchmarks.served import serving, typing_trace
from loadtest.load_result import FAILED, FIRST_TEXT, NEVER_S, WHOLE
from loadtest.load_run import free_port
from loadtest.outcomes import percentile
from loadtest.source_text import choose_place
from loadtest.users import Figure, TypingUser, UserSettings, ask, run_user
from server.client import AsyncClient

_ROUNDS, _SECONDS = 6, 13.0
_WARM_UP_S = 4.0
"""The first requests of a process are slower: not counted."""
_TYPISTS = 2
_PROMPT_TOKENS, _MAX_TOKENS = 1500, 48
_LOAD = 0.4
"""Share of the time that the prompts would take one after the other."""
_NUM_ALONE = 6
_SLO_S = 0.3
_SETTINGS = {
    "fixed": ["engine.max_slowdown=0"],
    "learned": ["engine.max_slowdown=0", "engine.budgets=learned", "server.prefetch_budget=learned"],
}
_WINDOWS = "cloudcomplete_budget_windows_total"


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Let both servers answer alone, then play each round on both; compare what people waited."""
    trace = str(typing_trace())
    ports = {"fixed": free_port(), "learned": free_port()}
    with ExitStack() as servers:
        settings = {
            name: UserSettings(
                address=servers.enter_context(serving([*_SETTINGS[name], f"server.metrics_port={port}"])).address,
                typing_trace=trace,
                typing_path="C.svelte",
            )
            for name, port in ports.items()
        }
        figures, rows = asyncio.run(_play(settings, on_progress))
        counts = _windows(ports["learned"])
    rows += [{"window": name, "number": number} for name, number in sorted(counts.items())]
    return compare(figures["fixed"], figures["learned"]) | {"learned_windows": sum(counts.values())}, rows


async def _play(
    settings: dict[str, UserSettings], on_progress: Callable[[str], None]
) -> tuple[dict[str, list[list[Figure]]], list[dict[str, Any]]]:
    """Return the figures of each round by server, and what they sum up to."""
    figures: dict[str, list[list[Figure]]] = {name: [] for name in settings}
    rows: list[dict[str, Any]] = []
    every_s = min([await _alone(one.address) for one in settings.values()]) / _LOAD
    on_progress(f"a prompt comes every {every_s:.2f} s")
    for number in range(-1, _ROUNDS):
        seconds = _SECONDS if number >= 0 else _WARM_UP_S
        arrivals_s = draw_arrivals(number, every_s=every_s, seconds=seconds)
        for name in settings if number % 2 == 0 else reversed(settings):
            found = await _mix(settings[name], number, arrivals_s, seconds=seconds)
            if number >= 0:
                figures[name].append(found)
                rows.append({"round": number, "budgets": name, **sum_up(found)})
                on_progress(f"{rows[-1]}")
    return figures, rows


def draw_arrivals(number: int, *, every_s: float, seconds: float) -> list[float]:
    """Return when prompts come in a round, the mean gap being `every_s`."""
    draw, at_s, arrivals_s = random.Random(f"budgets/{number}"), 0.0, list[float]()
    while (at_s := at_s + draw.expovariate(1 / every_s)) < seconds:
        arrivals_s.append(at_s)
    return arrivals_s


def compare(fixed: Sequence[Sequence[Figure]], learned: Sequence[Sequence[Figure]]) -> dict[str, float]:
    """Return the headline, from the figures of each round."""
    headline: dict[str, float] = {}
    half = len(fixed) // 2
    for suffix, ours, theirs in (("", learned, fixed), ("_late", learned[half:], fixed[half:])):
        mine, other = sum_up(_flat(ours)), sum_up(_flat(theirs))
        for name in ("first_text_p95", "typing_first_text_p95", "prompt_first_text_p95", "prompt_whole_p95"):
            if mine[f"{name}_ms"] and other[f"{name}_ms"]:
                headline[f"learned_over_fixed_{name}{suffix}"] = mine[f"{name}_ms"] / other[f"{name}_ms"]
        headline[f"fixed_goodput_share{suffix}"] = other["goodput_share"]
        headline[f"learned_goodput_share{suffix}"] = mine["goodput_share"]
    by_round = [
        ours["first_text_p95_ms"] / theirs["first_text_p95_ms"]
        for ours, theirs in zip(map(sum_up, learned), map(sum_up, fixed), strict=True)
        if ours["first_text_p95_ms"] and theirs["first_text_p95_ms"]
    ]
    if by_round:
        headline["learned_over_fixed_first_text_p95_least_of_rounds"] = min(by_round)
        headline["learned_over_fixed_first_text_p95_most_of_rounds"] = max(by_round)
    return headline


def sum_up(figures: Sequence[Figure]) -> dict[str, Any]:
    """Return percentiles in milliseconds, None where one falls on what never came, and the goodput."""
    typing_s = [figure.seconds for figure in figures if figure.kind == "wait"]
    prompts_s = [figure.seconds for figure in figures if (figure.kind, figure.name) == ("answer", FIRST_TEXT)]
    whole_s = [figure.seconds for figure in figures if (figure.kind, figure.name) == ("answer", WHOLE)]
    num_failed = sum((figure.kind, figure.name) == ("answer", FAILED) for figure in figures)
    num_asked = len(typing_s) + len(prompts_s) + num_failed
    return {
        "keystrokes": len(typing_s),
        "prompts": len(prompts_s) + num_failed,
        "refused": num_failed,
        "first_text_p95_ms": _ms(typing_s + prompts_s, 0.95),
        "typing_first_text_p50_ms": _ms(typing_s, 0.5),
        "typing_first_text_p95_ms": _ms(typing_s, 0.95),
        "prompt_first_text_p50_ms": _ms(prompts_s, 0.5),
        "prompt_first_text_p95_ms": _ms(prompts_s, 0.95),
        "prompt_whole_p95_ms": _ms(whole_s, 0.95),
        "goodput_share": sum(seconds <= _SLO_S for seconds in typing_s + prompts_s) / max(1, num_asked),
    }


async def _alone(address: str) -> float:
    """Return the mean seconds of a prompt that nothing else delays."""
    figures: list[Figure] = []
    async with AsyncClient(address) as client:
        for number in range(_NUM_ALONE):
            place = choose_place(number, num_tokens=_PROMPT_TOKENS, seed=1)
            await ask(client, place, max_tokens=_MAX_TOKENS, report=figures.append)
    whole_s = [figure.seconds for figure in figures if figure.name == WHOLE]
    return sum(whole_s) / len(whole_s)


async def _mix(settings: UserSettings, number: int, arrivals_s: Sequence[float], *, seconds: float) -> list[Figure]:
    """Type and send prompts for so long; wait for the last answers."""
    figures: list[Figure] = []
    async with AsyncClient(settings.address, timeout_s=30.0) as client, asyncio.TaskGroup() as tasks:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        users = [(number + 1) * _TYPISTS + i for i in range(_TYPISTS)]  # each types from a place of its own on
        typing = [tasks.create_task(run_user(TypingUser(client, settings, one, figures.append))) for one in users]
        for index, at_s in enumerate(arrivals_s):
            await asyncio.sleep(max(0.0, began_s + at_s - loop.time()))
            place = choose_place(1000 * (number + 2) + index, num_tokens=_PROMPT_TOKENS)
            tasks.create_task(ask(client, place, max_tokens=_MAX_TOKENS, report=figures.append))
        await asyncio.sleep(max(0.0, began_s + seconds - loop.time()))
        for task in typing:
            task.cancel()
    return figures


def _windows(port: int) -> dict[str, float]:
    """Return how many windows a server had each value of a budget in."""
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            "/".join(sample.labels[label] for label in ("budget", "context", "value")): sample.value
            for family in families
            for sample in family.samples
            if sample.name == _WINDOWS
        }


def _flat(rounds: Sequence[Sequence[Figure]]) -> list[Figure]:
    return [figure for one in rounds for figure in one]


def _ms(seconds: Sequence[float], share: float) -> float | None:
    found = percentile(sorted(seconds), share)
    return None if found is None or found >= NEVER_S else round(found * 1e3, 1)
