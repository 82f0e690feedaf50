"""The page of benchmarks: it says what the results say, and what is worse than a peer."""

from pathlib import Path

from loadtest.bench_page import judge, write_page
from loadtest.report import Result, write_json


def test_the_page_has_every_headline_its_command_and_its_machine(tmp_path: Path) -> None:
    directory = tmp_path / "benchmarks"
    directory.mkdir()
    result = Result(
        headline={"latency_p50_cut_share": 0.9, "sustained_users_ratio": 2.0, "other": None},
        rows=[{"variant": "all", "first_text_p95_ms": 20.0}, {"variant": "none", "first_text_p95_ms": 200.0}],
        command="cloudcomplete bench ablation",
        machine={"cores": 2},
        versions={"jax": "0.10.2"},
        notes=["a note"],
    )
    write_json(directory / "ablation.json", result)
    write_page(directory, tmp_path / "benchmarks.md")
    page = (tmp_path / "benchmarks.md").read_text()
    for expected in (
        "| `latency_p50_cut_share` | 0.9 | >= 0.762 | met |",
        "| `sustained_users_ratio` | 2 | >= 4.2 | not met |",
        "| `other` | not measured |  |  |",
        "`cloudcomplete bench ablation`",
        "cores 2",
        "jax 0.10.2",
        "- a note",
        "| none | 200 |",
        "![ablation-p95](benchmarks/ablation-p95.svg)",
    ):
        assert expected in page
    assert (directory / "ablation-p95.svg").exists()


def test_what_is_slower_than_a_peer_is_said_plainly() -> None:
    assert judge("first_text_p50_over_llamacpp", 1.2) == ("", "worse than llama.cpp")
    assert judge("first_text_p95_over_llamacpp", 1.2) == ("<= 0.5", "not met, worse than llama.cpp")
    assert judge("sustained_users_over_llamacpp", 0.5) == (">= 2", "not met, worse than llama.cpp")
    assert judge("first_text_p95_over_llamacpp", 0.4) == ("<= 0.5", "met")
    assert judge("first_text_p95_over_llamacpp", None) == ("<= 0.5", "not met")
    assert judge("decode_b8_int8_over_llamacpp_q8_110m", 0.9) == ("", "worse than llama.cpp")
    assert judge("decode_b8_int8_over_llamacpp_q8_110m", 1.1) == ("", "")
    assert judge("decode_b1_f32_over_transformers_110m", 0.9) == (">= 3", "not met, worse than transformers")
