"""Plots are well-formed SVG that says what it shows."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import ReportError
from loadtest.plots import cumulative_curve, stacked_bars, write_plots

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


def test_plots_are_written_into_their_directory(tmp_path: Path) -> None:
    (path,) = write_plots(tmp_path / "plots", {"latency": b"<svg/>"})
    assert (path, path.read_bytes()) == (tmp_path / "plots" / "latency.svg", b"<svg/>")
    with pytest.raises(ReportError, match=r"cannot write the plot to .*x/y.svg: No such file or directory"):
        write_plots(tmp_path, {"x/y": b""})
