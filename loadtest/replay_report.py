"""What a replay found: its result with notes, and what its plots show. Knows no command line."""

from collections import Counter
from collections.abc import Mapping, Sequence

from loadtest import report
from loadtest.outcomes import Outcome, summarise, to_row, wait_times_s
from loadtest.replay import Replay
from loadtest.verification import NEAR_TIE, Verification

_SHOWN = 5


def assemble(replay: Replay, verification: Verification | None, *, command: str) -> report.Result:
    """Return the result of a replay, whether it came to its end or not; `verification` when one was asked for."""
    outcomes = replay.outcomes
    waits_s = wait_times_s(outcomes)
    headline = summarise(outcomes, users=replay.settings.users)
    if (count := replay.computed_tokens.count) is not None and replay.num_asked:
        headline["tokens_computed_per_keystroke"] = count / replay.num_asked
    headline |= _ahead_shares(replay.computed_tokens.ahead)
    if (bound_s := replay.computed_tokens.known_answer_s(95)) is not None:
        headline["known_answer_p95_within_ms"] = bound_s * 1e3
    headline["replay_cpu_per_keystroke_ms"] = _per_keystroke_ms(replay.typing_cpu_s, outcomes)
    headline["process_cpu_per_keystroke_ms"] = _per_keystroke_ms(replay.cpu_s, outcomes)
    if verification is not None:
        headline["false_hits"] = verification.counts["false hit"]
        headline["verified_answers"] = verification.num_checked
    return report.assemble(
        headline,
        [to_row(outcome, waits_s[outcome.user, outcome.number]) for outcome in outcomes],
        command=command,
        notes=[*_notes(replay, waits_s), *_verification_notes(replay, verification)],
        is_partial=len(outcomes) < replay.num_planned,
    )


def latencies_ms(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    """Return the times to the first text: of all keystrokes as the headline has them, and of each source's answers."""
    waits_s = wait_times_s(outcomes).values()
    times_ms = {"all keystrokes": [wait_s * 1e3 for wait_s in waits_s if wait_s != float("inf")]}
    for outcome in outcomes:
        if outcome.source and outcome.first_text_s is not None:
            times_ms.setdefault(f"from {outcome.source}", []).append(outcome.first_text_s * 1e3)
    return times_ms


def _notes(replay: Replay, waits_s: dict[tuple[int, int], float]) -> list[str]:
    outcomes = replay.outcomes
    notes = []
    if (num_missing := replay.num_planned - len(outcomes)) > 0:
        why = replay.given_up or "the run was interrupted"
        notes.append(f"not typed: {num_missing:,} of {replay.num_planned:,} keystrokes; {why}")
    for user, stretch in enumerate(replay.stretches[:_SHOWN]):
        notes.append(f"user {user}: {stretch.count:,} keystrokes from {stretch.first:,} on of {replay.trace_length:,}")
    if len(replay.stretches) > _SHOWN:
        notes.append(f"and {len(replay.stretches) - _SHOWN:,} more users elsewhere")
    if num_never := sum(wait_s == float("inf") for wait_s in waits_s.values()):
        notes.append(f"first_text: {num_never:,} keystrokes never got any; they count as longer than all others")
    num_next = sum(outcome.matches_next_chars is not None for outcome in outcomes)
    num_lines = sum(outcome.matches_line is not None for outcome in outcomes)
    notes.append(f"matches: of {num_next:,} suggestions with typing after them, {num_lines:,} with more on their line")
    if ahead := replay.computed_tokens.ahead:
        notes.append(
            f"ahead: {ahead.get('prefetches', 0):,} requests, {ahead.get('prefetch_hits', 0):,} of them used; "
            f"{ahead.get('prefetch_tokens', 0):,} tokens, {ahead.get('prefetch_used_tokens', 0):,} of them used; "
            f"{ahead.get('accepts', 0):,} suggestions taken whole"
        )
    num_told = sum(outcome.num_computed_tokens is not None for outcome in outcomes)
    notes.append(f"tokens_computed_per_ended_answer: of {num_told:,} answers that ended and told")
    if replay.computed_tokens.count is None:
        notes.append(f"tokens_computed_per_keystroke: not measured; {replay.computed_tokens.problem}")
    notes.append(f"requests: {replay.num_asked:,} issued, SHA-256 of what and when {replay.requests_digest()}")
    errors = [outcome for outcome in outcomes if outcome.error is not None]
    return notes + report.error_notes([(outcome.error_kind or "failed", outcome.error or "") for outcome in errors])


def _verification_notes(replay: Replay, verification: Verification | None) -> list[str]:
    if verification is None:
        return []
    if not replay.num_stored:
        return ["verify: no answer came without the model, so there was nothing to verify"]
    counts = verification.counts
    notes = [
        f"verify: {verification.num_checked:,} answers that came without the model: {counts['same']:,} as the model's, "
        f"{counts['near-tie']:,} others within a near-tie of {NEAR_TIE:g}, {counts['false hit']:,} false hits"
    ]
    notes += [
        f"false hit: user {outcome.user}, keystroke {outcome.number}, from {outcome.source}: {outcome.text!r}"
        for outcome in verification.false_hits[:_SHOWN]
    ]
    reasons = Counter(verification.unchecked)
    reasons["the run ended early"] = replay.num_stored - verification.num_checked - len(verification.unchecked)
    notes += [f"verify: {count:,} not checked: {reason}" for reason, count in reasons.most_common(_SHOWN) if count]
    return notes


def _ahead_shares(ahead: Mapping[str, int]) -> dict[str, report.Number]:
    """Return what became of the server's work ahead, by its own counters."""

    def share(part: str, whole: str) -> float | None:
        return ahead.get(part, 0) / ahead[whole] if ahead.get(whole) else None

    used = share("prefetch_used_tokens", "prefetch_tokens")
    return {
        "prefetch_hit_share": share("prefetch_hits", "prefetches"),
        "prefetch_wasted_token_share": None if used is None else 1 - used,
        "accepts_continued_without_model_share": share("accepts_continued_without_model", "accepts"),
    }


def _per_keystroke_ms(seconds: float, outcomes: Sequence[Outcome]) -> float | None:
    return seconds * 1e3 / len(outcomes) if outcomes else None
