"""Plots as SVG files that need nothing else: they follow the reader's light or dark setting.

Knows numbers and names only, nothing of a server: it stands here because what measures and what schedules draw alike,
and know each other as little (decision 0036). Series differ in colour and in dash, so that a print without colours can
be read.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

_WIDTH, _LEFT, _RIGHT, _TOP = 812, 96, 196, 64
_PLOT_WIDTH, _PLOT_HEIGHT = _WIDTH - _LEFT - _RIGHT, 260
_BAR_HEIGHT, _BAR_GAP = 30, 18
_DASHES = ("", "8 3", "2 3", "8 3 2 3", "14 4", "4 6")
_LEAST_MS = 0.1
"""Left end of an axis of times; what is shorter is drawn there."""
_LIGHT = ("#0072b2", "#b85c00", "#00795a", "#a8447f", "#6b5bd0", "#6e6e6e")
_DARK = ("#56b4e9", "#e69f00", "#2fc796", "#e58cc1", "#a99bff", "#b0b0b0")


class Estimate(NamedTuple):
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float


def _style() -> str:
    def rules(paper: str, ink: str, grid: str, colours: Sequence[str]) -> str:
        plain = f".paper {{ fill: {paper}; }} .ink {{ fill: {ink}; }} "
        plain += f".grid {{ stroke: {grid}; }} .rule {{ stroke: {ink}; }}"
        own = (f".curve.s{i} {{ stroke: {c}; }} .bar.s{i} {{ fill: {c}; }}" for i, c in enumerate(colours))
        return "\n".join((plain, *own))

    return (
        "svg { font: 13px system-ui, sans-serif; } .title { font-weight: 600; font-size: 15px; }\n"
        f".curve {{ fill: none; stroke-width: 2; }}\n{rules('#ffffff', '#1f2328', '#d0d7de', _LIGHT)}\n"
        f"@media (prefers-color-scheme: dark) {{\n{rules('#0d1117', '#e6edf3', '#30363d', _DARK)}\n}}"
    )


class _Drawing:
    """An SVG picture that is being drawn."""

    def __init__(self, title: str, height: int) -> None:
        self._root = ElementTree.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "viewBox": f"0 0 {_WIDTH} {height}",
                "width": f"{_WIDTH}",
                "height": f"{height}",
                "role": "img",
            },
        )
        ElementTree.SubElement(self._root, "title").text = _printable(title)
        ElementTree.SubElement(self._root, "style").text = _style()
        self.rect(0, 0, _WIDTH, height, "paper")
        self.text(_LEFT, 26, title, kind="ink title")

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str, dash: str = "") -> None:
        places = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
        self._add("line", kind, places, {"stroke-dasharray": dash} if dash else {})

    def rect(self, x: float, y: float, width: float, height: float, kind: str) -> ElementTree.Element:
        return self._add("rect", kind, {"x": x, "y": y, "width": width, "height": height}, {})

    def curve(self, points: Sequence[tuple[float, float]], kind: str, dash: str) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._add("polyline", kind, {}, {"points": path, **({"stroke-dasharray": dash} if dash else {})})

    def text(self, x: float, y: float, text: str, *, anchor: str = "start", kind: str = "ink") -> None:
        self._add("text", kind, {"x": x, "y": y}, {"text-anchor": anchor}).text = _printable(text)

    def to_svg(self) -> bytes:
        ElementTree.indent(self._root)
        svg: bytes = ElementTree.tostring(self._root, encoding="utf-8")
        return svg + b"\n"

    def _add(self, tag: str, kind: str, places: dict[str, float], more: dict[str, str]) -> ElementTree.Element:
        numbers = {name: f"{value:.1f}".removesuffix(".0") for name, value in places.items()}
        return ElementTree.SubElement(self._root, tag, {"class": kind, **numbers, **more})


def cumulative_curve(title: str, series: Mapping[str, Sequence[float]], *, x_label: str) -> bytes:
    """Return a picture of which share of each series of times in ms is at most x, which is logarithmic."""
    drawing = _Drawing(title, _TOP + _PLOT_HEIGHT + 56)
    drawing.text(_LEFT, _TOP - 12, "share at most that long")
    bottom = _TOP + _PLOT_HEIGHT
    ticks = _ticks([value for values in series.values() for value in values])

    def x_of(value: float) -> float:
        share = math.log(max(value, _LEAST_MS) / ticks[0]) / math.log(ticks[-1] / ticks[0])
        return _LEFT + _PLOT_WIDTH * share

    def y_of(share: float) -> float:
        return bottom - _PLOT_HEIGHT * share

    for share in (0, 0.25, 0.5, 0.75, 1):
        drawing.line(_LEFT, y_of(share), _LEFT + _PLOT_WIDTH, y_of(share), "grid")
        drawing.text(_LEFT - 8, y_of(share) + 4, f"{share:.0%}", anchor="end")
    for tick in ticks:
        drawing.line(x_of(tick), _TOP, x_of(tick), bottom, "grid")
        drawing.text(x_of(tick), bottom + 18, f"{tick:g}", anchor="middle")
    drawing.text(_LEFT + _PLOT_WIDTH / 2, bottom + 42, x_label, anchor="middle")
    for number, (name, values) in enumerate(series.items()):
        kind, dash = f"curve s{number % len(_LIGHT)}", _DASHES[number % len(_DASHES)]
        ordered = sorted(values)
        points = [(x_of(ordered[0]), y_of(0))] if ordered else []
        for index, value in enumerate(ordered):
            points += [(x_of(value), y_of(index / len(ordered))), (x_of(value), y_of((index + 1) / len(ordered)))]
        if points:
            drawing.curve(points, kind, dash)
        _name_curve(drawing, number, f"{name} ({len(values):,})", kind, dash)
    return drawing.to_svg()


def stacked_bars(title: str, bars: Mapping[str, Mapping[str, int]], *, x_label: str) -> bytes:
    """Return a picture of how each bar's whole is made up of named counts."""
    names = list(dict.fromkeys(name for counts in bars.values() for name in counts))
    bottom = _TOP + max(len(bars) * (_BAR_HEIGHT + _BAR_GAP), 22 * len(names))
    drawing = _Drawing(title, bottom + 56)
    _draw_scale(drawing, bottom, x_label, "{:.0%}")
    for row, (label, counts) in enumerate(bars.items()):
        y, x, total = _TOP + 9 + row * (_BAR_HEIGHT + _BAR_GAP), float(_LEFT), sum(counts.values())
        drawing.text(_LEFT - 8, y + _BAR_HEIGHT / 2 + 5, label, anchor="end")
        for name, count in counts.items():
            width = _PLOT_WIDTH * count / total if total else 0.0
            bar = drawing.rect(x, y, width, _BAR_HEIGHT, f"bar s{names.index(name) % len(_LIGHT)}")
            ElementTree.SubElement(bar, "title").text = _printable(f"{name}: {count:,} of {total:,}")
            x += width
    totals = {name: sum(counts.get(name, 0) for counts in bars.values()) for name in names}
    for number, (name, count) in enumerate(totals.items()):
        y = _TOP + 14 + 22 * number
        drawing.rect(_WIDTH - _RIGHT + 20, y - 11, 14, 14, f"bar s{number % len(_LIGHT)}")
        drawing.text(_WIDTH - _RIGHT + 42, y, f"{name} ({count:,})")
    return drawing.to_svg()


def bars(title: str, values: Mapping[str, float], *, x_label: str) -> bytes:
    """Return a picture of one number for each name, from 0 on."""
    bottom = _TOP + len(values) * (_BAR_HEIGHT + _BAR_GAP)
    drawing = _Drawing(title, bottom + 56)
    greatest = max(values.values(), default=0.0) or 1.0
    _draw_scale(drawing, bottom, x_label, "{:,.3g}", greatest)
    for row, (label, value) in enumerate(values.items()):
        y, width = _TOP + 9 + row * (_BAR_HEIGHT + _BAR_GAP), _PLOT_WIDTH * max(0.0, value) / greatest
        drawing.rect(_LEFT, y, width, _BAR_HEIGHT, "bar s0")
        drawing.text(_LEFT + width + 6, y + _BAR_HEIGHT / 2 + 5, f"{label}: {value:,.3g}")
    return drawing.to_svg()


def interval_bars(
    title: str, groups: Mapping[str, Mapping[str, Estimate]], *, x_label: str, limit: float | None = None
) -> bytes:
    """Return a picture of a mean and its confidence interval for each name, coloured by groups; `limit` is a line."""
    estimates = {name: (group, value) for group, values in groups.items() for name, value in values.items()}
    bottom = _TOP + len(estimates) * (_BAR_HEIGHT + _BAR_GAP)
    drawing = _Drawing(title, bottom + 56)
    ends = [end for _, value in estimates.values() for end in (value.mean, value.high)]
    greatest = max([*ends, limit or 0.0]) or 1.0
    for number, group in enumerate(groups):
        x = _LEFT + 240.0 * number
        drawing.rect(x, _TOP - 23, 14, 14, f"bar s{number % len(_LIGHT)}")
        drawing.text(x + 22, _TOP - 12, group)
    _draw_scale(drawing, bottom, x_label, "{:,.3g}", greatest)

    def x_of(value: float) -> float:
        return _LEFT + _PLOT_WIDTH * min(max(value, 0.0), greatest) / greatest

    for row, (name, (group, value)) in enumerate(estimates.items()):
        y = _TOP + 9 + row * (_BAR_HEIGHT + _BAR_GAP)
        middle, kind = y + _BAR_HEIGHT / 2, f"s{list(groups).index(group) % len(_LIGHT)}"
        drawing.rect(_LEFT, y, x_of(value.mean) - _LEFT, _BAR_HEIGHT, f"bar {kind}")
        drawing.line(x_of(value.low), middle, x_of(value.high), middle, "rule")
        for end in (value.low, value.high):
            drawing.line(x_of(end), middle - 6, x_of(end), middle + 6, "rule")
        drawing.text(max(x_of(value.mean), x_of(value.high)) + 6, y + _BAR_HEIGHT / 2 + 5, f"{name}: {value.mean:,.3g}")
    if limit is not None:
        drawing.line(x_of(limit), _TOP, x_of(limit), bottom, "rule", "4 4")
    return drawing.to_svg()


def courses(title: str, series: Mapping[str, Sequence[float]], *, span: float, x_label: str, y_label: str) -> bytes:
    """Return a picture of values over time: each of a series stands for an equal part of `span`, both axes from 0."""
    drawing = _Drawing(title, _TOP + _PLOT_HEIGHT + 56)
    drawing.text(_LEFT, _TOP - 12, y_label)
    bottom = _TOP + _PLOT_HEIGHT
    greatest = max([value for values in series.values() for value in values], default=0.0) or 1.0
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = _LEFT + _PLOT_WIDTH * share, bottom - _PLOT_HEIGHT * share
        drawing.line(_LEFT, y, _LEFT + _PLOT_WIDTH, y, "grid")
        drawing.text(_LEFT - 8, y + 4, f"{greatest * share:,.3g}", anchor="end")
        drawing.text(x, bottom + 18, f"{span * share:,.3g}", anchor="middle")
    drawing.text(_LEFT + _PLOT_WIDTH / 2, bottom + 42, x_label, anchor="middle")
    for number, (name, values) in enumerate(series.items()):
        kind, dash = f"curve s{number % len(_LIGHT)}", _DASHES[number % len(_DASHES)]
        points = []
        for index, value in enumerate(values):
            y = bottom - _PLOT_HEIGHT * max(value, 0.0) / greatest
            points += [(_LEFT + _PLOT_WIDTH * end / len(values), y) for end in (index, index + 1)]
        if points:
            drawing.curve(points, kind, dash)
        _name_curve(drawing, number, name, kind, dash)
    return drawing.to_svg()


def _draw_scale(drawing: _Drawing, bottom: float, x_label: str, form: str, greatest: float = 1.0) -> None:
    """Draw quarters of the way from 0 to the greatest value, each with its number."""
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = _LEFT + _PLOT_WIDTH * share
        drawing.line(x, _TOP, x, bottom, "grid")
        drawing.text(x, bottom + 18, form.format(greatest * share), anchor="middle")
    drawing.text(_LEFT + _PLOT_WIDTH / 2, bottom + 42, x_label, anchor="middle")


def _name_curve(drawing: _Drawing, number: int, name: str, kind: str, dash: str) -> None:
    y = _TOP + 12 + 22 * number
    drawing.line(_WIDTH - _RIGHT + 14, y - 4, _WIDTH - _RIGHT + 44, y - 4, kind, dash)
    drawing.text(_WIDTH - _RIGHT + 52, y, name)


def _ticks(values: Sequence[float]) -> list[float]:
    """Return 1, 2, 5, 10, ... from at or below the least value to at or above the greatest."""
    least, greatest = max(min(values, default=1), _LEAST_MS), max([*values, _LEAST_MS])
    low = math.floor(math.log10(least))
    high = math.ceil(math.log10(max(greatest, least)))
    ticks = [float(f"{mantissa}e{power}") for power in range(low, high + 1) for mantissa in (1, 2, 5)]
    first = max(index for index, tick in enumerate(ticks) if tick <= least)
    last = next((index for index, tick in enumerate(ticks) if tick >= greatest), len(ticks) - 1)
    return ticks[first : max(last, first + 1) + 1]


def _printable(text: str) -> str:
    """Return a text without the characters that XML cannot hold."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
