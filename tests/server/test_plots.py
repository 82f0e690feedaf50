"""Plots are well-formed SVG that says what it shows."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.plots import Estimate, courses, cumulative_curve, interval_bars, stacked_bars

NAMESPACE = "{http://www.w3.org/2000/svg}"
values = st.lists(st.floats(0, 1e6), max_size=8)


def texts(svg: bytes) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{NAMESPACE}text")]


def curves(svg: bytes) -> list[list[tuple[float, float]]]:
    lines = ElementTree.fromstring(svg).iter(f"{NAMESPACE}polyline")
    return [[(float(x), float(y)) for x, y in (p.split(",") for p in line.attrib["points"].split())] for line in lines]


def test_a_curve_has_its_title_axes_with_units_and_a_legend() -> None:
    svg = cumulative_curve("First text", {"model": [20, 30, 400], "exact": [1.5]}, x_label="time, ms (logarithmic)")
    shown = texts(svg)
    assert {"First text", "time, ms (logarithmic)", "share at most that long", "50%", "model (3)"} <= set(shown)
    assert [text for text in shown if text.isdigit()] == ["1", "2", "5", "10", "20", "50", "100", "200", "500"]
    assert "prefers-color-scheme: dark" in svg.decode()


@given(st.dictionaries(st.text(max_size=3), values, max_size=8))
def test_curves_rise_and_stay_inside_whatever_the_values(series: dict[str, list[float]]) -> None:
    svg = cumulative_curve("t", series, x_label="ms")
    box = ElementTree.fromstring(svg).attrib
    drawn = curves(svg)
    assert len(drawn) == sum(bool(each) for each in series.values())
    for points in drawn:
        assert points == sorted(points, key=lambda point: (point[0], -point[1]))
        assert all(0 <= x <= float(box["width"]) and 0 <= y <= float(box["height"]) for x, y in points)


def test_bars_are_as_wide_as_their_shares() -> None:
    svg = stacked_bars("Answers", {"A": {"model": 30, "exact": 10}, "B": {"exact": 0}}, x_label="share of answers")
    bars = [
        element
        for element in ElementTree.fromstring(svg).iter(f"{NAMESPACE}rect")
        if "bar" in element.attrib["class"] and element.find(f"{NAMESPACE}title") is not None
    ]
    model, exact, none = (float(bar.attrib["width"]) for bar in bars)
    assert model == pytest.approx(3 * exact, rel=0.01)
    assert none == 0
    assert {"Answers", "A", "B", "share of answers", "model (30)", "exact (10)"} <= set(texts(svg))


@given(st.text(max_size=5))
def test_any_text_can_be_a_name(name: str) -> None:
    assert ElementTree.fromstring(stacked_bars(name, {name: {name: 1}}, x_label=name)) is not None


def test_interval_bars_show_means_ends_and_the_limit_by_group() -> None:
    groups = {"keeps": {"learned": Estimate(2.0, 1.5, 2.5)}, "does not": {"static": Estimate(4.0, 4.0, 4.0)}}
    svg = interval_bars("Costs", groups, x_label="hours", limit=1.0)
    root = ElementTree.fromstring(svg)
    widths = {
        element.attrib["class"]: float(element.attrib["width"])
        for element in root.iter(f"{NAMESPACE}rect")
        if float(element.attrib["height"]) == 30
    }
    assert widths["bar s1"] == pytest.approx(2 * widths["bar s0"])
    rules = [element.attrib for element in root.iter(f"{NAMESPACE}line") if element.attrib["class"] == "rule"]
    scale = widths["bar s1"] / 4
    low, high = (float(rules[0][end]) - 96 for end in ("x1", "x2"))
    assert (low, high) == (pytest.approx(1.5 * scale), pytest.approx(2.5 * scale))
    assert float(rules[-1]["x1"]) - 96 == pytest.approx(scale)
    assert {"Costs", "hours", "keeps", "does not", "learned: 2", "static: 4"} <= set(texts(svg))


@given(st.dictionaries(st.text(max_size=3), values, max_size=8))
def test_courses_go_from_one_end_to_the_other_and_stay_inside(series: dict[str, list[float]]) -> None:
    svg = courses("t", series, span=12, x_label="hours", y_label="replicas")
    box = ElementTree.fromstring(svg).attrib
    drawn = curves(svg)
    assert len(drawn) == sum(bool(each) for each in series.values())
    for points in drawn:
        assert (points[0][0], points[-1][0]) == (96, 96 + 520)
        assert all(0 <= x <= float(box["width"]) and 0 <= y <= float(box["height"]) for x, y in points)
    assert {"12", "hours", "replicas"} <= set(texts(svg))
