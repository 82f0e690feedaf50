from typing import Any
from xml.etree import ElementTree

import pytest

from orchestration.allocator.evaluate import Comparison
from orchestration.allocator.plots import draw


def row(policy: str, hours: float, attainment: float, **more: float) -> dict[str, Any]:
    return {"policy": policy, "replica_hours": hours, "attainment": attainment, **more}


ROWS = [
    row("static", 8.0, 0.995, attainment_ci_low=0.99, attainment_ci_high=1.0),
    row("learned", 4.0, 0.97, replica_hours_ci_low=3.0, replica_hours_ci_high=5.0),
    row("oracle", 2.0, 0.999),
]
COMPARISON = Comparison(
    headline={"best_baseline": "static", "test_hours": 12.0},
    rows=ROWS,
    notes=[],
    courses={"static": [8.0, 8.0], "learned": [3.0, 5.0], "hpa": [1.0, 1.0], "oracle": [2.0, 2.0]},
)


def texts(svg: bytes) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def bars(svg: bytes) -> dict[str, float]:
    rects = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect")
    return {one.attrib["class"]: float(one.attrib["width"]) for one in rects if float(one.attrib["height"]) == 30}


def test_costs_and_missed_windows_are_drawn_by_who_keeps_the_service_level() -> None:
    drawn = draw(COMPARISON, attainment=0.99)
    costs = texts(drawn["costs"])
    assert [text for text in costs if ":" in text] == ["oracle: 2", "static: 8", "learned: 4"]
    assert bars(drawn["costs"])["bar s1"] == pytest.approx(520 / 2), "the learned one does not keep it"
    missed = [text for text in texts(drawn["service-level"]) if not text.startswith("%")]
    assert [text for text in missed if ":" in text] == ["oracle: 0.1", "static: 0.5", "learned: 3"]


def test_replicas_over_time_are_those_of_the_best_baseline_the_learned_policy_and_the_oracle() -> None:
    shown = texts(draw(COMPARISON, attainment=0.99)["replicas"])
    assert [text for text in shown if text in COMPARISON.courses] == ["static", "learned", "oracle"]
    assert {"12", "8", "hours"} <= set(shown)
