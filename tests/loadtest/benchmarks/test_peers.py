"""What `bench peers` refuses before it measures anything."""

import pytest

from loadtest.benchmarks import peers
from loadtest.errors import RunError


def test_a_model_that_it_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDCOMPLETE_BENCH_SHAPES", "starter,7b")
    with pytest.raises(RunError, match="names '7b'; expected some of starter, 110m, with commas between"):
        peers.measure(print)


def test_without_the_peers_it_says_how_to_make_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLOUDCOMPLETE_PEERS", raising=False)
    monkeypatch.setenv("CLOUDCOMPLETE_BENCH_SHAPES", "starter")
    with pytest.raises(RunError, match=r"expected the directory made as docs/peers\.md says"):
        peers.measure(print)
