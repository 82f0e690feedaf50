"""When a server counts as gone."""

from loadtest.dialects import Reply
from loadtest.losses import Losses

LOST, SLOW, WELL = Reply(error="gone", error_kind="lost"), Reply(error="slow", error_kind="deadline"), Reply(text="x")


def test_only_losses_in_a_row_and_of_the_kinds_named_are_a_server_that_is_gone() -> None:
    losses = Losses(most=2, kinds=["lost"])
    assert [losses.take(reply) for reply in (LOST, WELL, LOST, SLOW, LOST)] == [""] * 5
    assert losses.take(LOST) == "2 answers in a row were lost; the last: gone"
