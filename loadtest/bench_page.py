"""Writes `docs/benchmarks.md` and its plots from the results in `docs/benchmarks/*.json`, and from nothing else.

`python -m loadtest.bench_page DIRECTORY PAGE` after `bench NAME --json DIRECTORY/NAME.json`; `make bench` does both. A
figure on the page is one that a run has written; what is worse than the peer is marked as such.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtest.report import Finding, Result, format_number, read_result, write_plots
from server import plots

_TITLES = {
    "ablation": "What each part is worth",
    "rivals": "Beside llama.cpp's server",
    "bursts": "Bursts and overload",
    "soak": "Soak",
    "faults": "Faults under load",
    "replay-sveltecomponent": "Typing, one user: an editing history of a Svelte component",
    "replay-json-crdt-patch": "Typing, one user: an editing history of a Markdown specification",
    "keystroke": "One more character on a long prompt",
    "stall": "A long prompt beside running sequences",
    "peers": "Tokens per second beside llama.cpp and transformers",
    "peers-starter": "The same of the starter model alone, since a lone row reads whole lines of a panel",
    "sparse": "Block-sparse attention over dense attention",
    "sparse-quality": "What leaving out blocks costs",
    "int8": "int8 weights over float32",
    "similarity": "Similar places among 100,000",
    "context": "Lines right with text of other files, and without",
    "warm-cache": "What warming the tiers buys",
    "pipeline": "Two stages in two processes over one process",
    "partition": "A 7B shape into stages, and reading one",
    "foretell": "A server against its simulators",
    "budgets": "Learned budgets over fixed ones",
    "allocator-servegen": "Policies on held-out days of production traffic, simulated",
}
_AIMS: dict[str, tuple[str, float]] = {
    # ablation, rivals, bursts, faults
    "latency_p50_cut_share": (">=", 0.762),
    "sustained_users_ratio": (">=", 4.2),
    "first_text_p95_over_llamacpp": ("<=", 0.5),
    "sustained_users_over_llamacpp": (">=", 2.0),
    "overload_first_text_p95_over_unloaded": ("<=", 2.0),
    "overload_whole_p95_over_unloaded": ("<=", 2.0),
    "idle_sessions_mb": ("<=", 500.0),
    "largest_error_by_requests": ("<=", 0.15),
    "largest_error_by_fluid": ("<=", 0.15),
    # the engine
    "tokens_computed_p50": ("<=", 16.0),
    "time_over_cold_p50": ("<=", 0.1),
    "gap_p99_over_quiet_p50": ("<=", 3.0),
    "admitted_over_alone": ("<=", 1.5),
    "decode_b1_f32_over_llamacpp_110m": (">=", 0.8),
    "decode_b8_f32_over_llamacpp_110m": (">=", 1.0),
    "decode_b16_f32_over_llamacpp_110m": (">=", 1.0),
    "prefill_1k_f32_over_llamacpp_110m": (">=", 1.0),
    "decode_b1_f32_over_transformers_110m": (">=", 3.0),
    "decode_b1_f32_over_llamacpp_starter": (">=", 0.8),
    "decode_b8_f32_over_llamacpp_starter": (">=", 1.0),
    "decode_b16_f32_over_llamacpp_starter": (">=", 1.0),
    "prefill_1k_f32_over_llamacpp_starter": (">=", 1.0),
    "decode_b1_f32_over_transformers_starter": (">=", 3.0),
    "drafted_b1_over_llamacpp_starter": (">=", 1.0),
    "two_process_prefill_speedup": (">=", 1.8),
    "two_process_decode_share": (">=", 0.9),
    "partition_peak_gib": ("<=", 6.0),
    "stage_read_disk_share": (">=", 0.7),
    "attention_16k_over_dense": ("<=", 0.35),
    "prefill_8k_over_dense": ("<=", 1.0),
    "prefill_16k_over_dense": ("<=", 0.7),
    "exact_match_relative_change": (">=", -0.01),
    # answers without the model
    "first_text_p50_ms": ("<=", 30.0),
    "first_text_p95_ms": ("<=", 200.0),
    "answered_without_model_share": (">=", 0.5),
    "gap_closed_share": (">=", 0.4),
    "slo_attainment_share": (">=", 0.99),
    "search_p95_ms": ("<=", 0.3),
    "recall": (">=", 0.98),
    "known_answer_p95_within_ms": ("<=", 5.0),
    "prefetch_hit_share": (">=", 0.3),
    "prefetch_wasted_token_share": ("<=", 0.5),
    "accepts_continued_without_model_share": (">=", 0.5),
    "false_hits": ("<=", 0.0),
    "exact_match_relative_gain": (">=", 0.074),
}
_OVER_PEER = re.compile(r"(first_text|whole)?.*_over_(llamacpp|transformers)")
_PEERS = {"llamacpp": "llama.cpp", "transformers": "transformers"}
_MOST_ROWS = 24
_MOST_COLUMNS = 7


def write_page(directory: Path, page: Path) -> None:
    """Write the page and its plots; raises ReportError."""
    results = {path.stem: read_result(path) for path in sorted(directory.glob("*.json"))}
    order = [name for name in _TITLES if name in results] + [name for name in results if name not in _TITLES]
    drawn = write_plots(directory, draw(results))
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` from the results in `docs/benchmarks/`; nothing here is typed by hand. What a figure",
        "means is said in the benchmark's own file, `loadtest/benchmarks/NAME.py`, and in `docs/results.md`.",
    ]
    for name in order:
        lines += ["", *describe(name, results[name])]
        lines += [f"![{path.stem}]({directory.name}/{path.name})" for path in drawn if path.stem.split("-")[0] == name]
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def describe(name: str, result: Result) -> list[str]:
    """Return the section of one result."""
    machine = ", ".join(f"{what} {value}" for what, value in result.machine.items())
    versions = ", ".join(f"{package} {version}" for package, version in result.versions.items())
    lines = [
        f"## {_TITLES.get(name, name)}",
        "",
        f"`{result.command}`, {result.measured_at}. {machine}. {versions}.",
        "",
    ]
    if result.partial:
        lines += ["**Partial: the run ended early; these are the figures of what was done.**", ""]
    lines += ["| figure | value | aim | |", "|---|---:|---|---|"]
    for figure, value in result.headline.items():
        aim, verdict = judge(figure, value)
        lines.append(f"| `{figure}` | {format_number(value)} | {aim} | {verdict} |")
    lines += ["", *(f"- {note}" for note in result.notes)]
    return [*lines, *_table(result.rows)]


def judge(figure: str, value: Finding) -> tuple[str, str]:
    """Return a figure's aim and what came of it; empty where there is none."""
    value = None if isinstance(value, str) else value
    said = ""
    if value is not None and (peer := _OVER_PEER.match(figure)):
        is_time = peer.group(1) is not None
        said = f"worse than {_PEERS[peer.group(2)]}" if (value > 1 if is_time else value < 1) else ""
    if figure not in _AIMS:
        return "", said
    relation, bound = _AIMS[figure]
    is_met = value is not None and (value >= bound if relation == ">=" else value <= bound)
    return f"{relation} {bound:g}", ", ".join(part for part in ("met" if is_met else "not met", said) if part)


def draw(results: Mapping[str, Result]) -> dict[str, bytes]:
    """Return the plots by name, each beginning with the name of its result."""
    drawn = {}
    for name, result in results.items():
        if name in ("ablation", "bursts"):
            key = "variant" if name == "ablation" else "case"
            values = {row[key]: row["first_text_p95_ms"] for row in result.rows if row.get("first_text_p95_ms")}
            drawn[f"{name}-p95"] = plots.bars("95th percentile of the time to first text", values, x_label="ms")
    return drawn


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))[:_MOST_COLUMNS]
    if not rows or len(rows) > _MOST_ROWS:
        return []
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    return [
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
        *(f"| {' | '.join(line)} |" for line in cells),
        "",
    ]


def _cell(value: Any) -> str:
    if value is None or value == "":
        return ""
    return format_number(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


if __name__ == "__main__":
    write_page(Path(sys.argv[1]), Path(sys.argv[2]))
