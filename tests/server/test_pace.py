"""When text goes out, on a clock that the test turns."""

from hypothesis import given
from hypothesis import strategies as st

from engine.types import Finish, Output, Usage
from server.pace import Pace

FINISH = Finish(state="finished", reason="stop", usage=Usage())


class Rig:
    """`rig("a", 0.01)` gives a text at a time and returns all texts handed on until then."""

    def __init__(self, interval_s: float) -> None:
        self.now_s = 0.0
        self.out: list[Output] = []
        self._pace = Pace(self.out.append, interval_s=interval_s, clock=lambda: self.now_s)

    def __call__(self, text: str, now_s: float, *, gap: float | None = None, finish: Finish | None = None) -> list[str]:
        self.now_s = now_s
        self._pace.take(Output(request_id="a", text=text, logit_gap=gap, finish=finish))
        return [output.text for output in self.out]


def test_the_first_text_goes_at_once_and_the_next_when_the_interval_is_over() -> None:
    rig = Rig(0.05)
    assert rig("a", 0.0) == ["a"]
    assert rig("b", 0.01) == ["a"]
    assert rig("c", 0.049) == ["a"]
    assert rig("d", 0.05) == ["a", "bcd"]
    assert rig("e", 0.2) == ["a", "bcd", "e"]


def test_the_first_whole_line_goes_at_once_and_later_ones_do_not() -> None:
    rig = Rig(0.05)
    rig("a", 0.0)
    assert rig("b\n", 0.01) == ["a", "b\n"]
    assert rig("c\n", 0.02) == ["a", "b\n"]


def test_the_end_takes_what_was_held_with_it() -> None:
    rig = Rig(0.05)
    rig("a", 0.0)
    rig("b", 0.01)
    assert rig("", 0.02, finish=FINISH) == ["a", "b"]
    assert rig.out[-1].finish == FINISH


def test_joined_text_is_as_sure_as_its_least_sure_token() -> None:
    rig = Rig(0.05)
    rig("a", 0.0, gap=0.1)
    rig("b", 0.01, gap=0.3)
    rig("c", 0.02, gap=0.2)
    rig("", 0.03, finish=FINISH)
    assert [output.logit_gap for output in rig.out] == [0.1, 0.2]


def test_without_an_interval_every_output_is_its_own() -> None:
    rig = Rig(0.0)
    assert [rig(text, 0.0) for text in "abc"][-1] == ["a", "b", "c"]


@given(st.lists(st.tuples(st.text("ab\n", max_size=3), st.floats(0, 0.1)), max_size=30), st.floats(0, 0.2))
def test_nothing_is_lost_or_changed(parts: list[tuple[str, float]], interval_s: float) -> None:
    rig, now_s = Rig(interval_s), 0.0
    for text, delay_s in parts:
        now_s += delay_s
        rig(text, now_s)
    rig("end", now_s, finish=FINISH)
    assert "".join(output.text for output in rig.out) == "".join(text for text, _ in parts) + "end"
    assert [output.finish for output in rig.out[:-1]] == [None] * (len(rig.out) - 1)
