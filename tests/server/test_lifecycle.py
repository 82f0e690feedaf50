"""Starting, serving, draining."""

import pytest

from server.errors import UnavailableError
from server.lifecycle import Lifecycle
from tests.server.counting_engine import CountingEngine


def test_a_starting_server_says_how_far_it_is() -> None:
    lifecycle = Lifecycle()
    lifecycle.report_progress("3 of 8 programs")
    with pytest.raises(UnavailableError) as raised:
        _ = lifecycle.engine
    assert str(raised.value) == "the server is still starting (3 of 8 programs); try again in a few seconds"


def test_an_engine_is_given_out_only_while_serving() -> None:
    lifecycle, engine = Lifecycle(), CountingEngine()
    lifecycle.open(engine)
    assert lifecycle.engine is engine
    lifecycle.drain()
    with pytest.raises(UnavailableError) as raised:
        _ = lifecycle.engine
    assert str(raised.value) == "the server is draining and takes no new requests; try another one, or try later"
    assert lifecycle.opened_engine is engine
    engine.close(timeout_s=0)


def test_an_engine_that_comes_after_draining_began_is_not_served_but_can_be_closed() -> None:
    lifecycle, engine = Lifecycle(), CountingEngine()
    lifecycle.drain()
    lifecycle.open(engine)
    assert lifecycle.state == "draining"
    assert lifecycle.opened_engine is engine
    engine.close(timeout_s=0)
