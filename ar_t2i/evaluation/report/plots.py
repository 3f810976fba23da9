"""Plots as inline SVG, in the colours of the page."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ar_t2i.evaluation.report.words import number, spoken, unit

SERIES = 5
"""Colours that the page has for series: --s0, --s1, ..."""
_WIDTH, _LEFT, _RIGHT, _TOP = 1000, 230, 96, 10


def interval_plot(rows: Mapping[str, Sequence[Mapping[str, Any] | None]], names: Sequence[str] = ("",)) -> str:
    """Shares, 0 to 1, each a dot with its 95 % interval.

    Args:
        rows: by label, a figure (value, low, high) of each series, None where there is none.
        names: of the series; a key tells them where they are several.
    """
    step = 16 if len(names) > 1 else 0
    height_of_row = 26 + step * (len(names) - 1)
    bottom = _TOP + height_of_row * len(rows)
    cosine = any(figure["scale"] == "cosine" for figures in rows.values() for figure in figures if figure is not None)
    parts = []
    for tick in range(0, 101, 20):
        x, told = _x(tick / 100), f"{tick / 100:.1f}" if cosine else f"{tick} %"
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="axis" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{told}</text>')
    for place, (label, figures) in enumerate(rows.items()):
        top = _TOP + place * height_of_row
        middle = top + height_of_row / 2
        shown = label if len(label) < 33 else label[:31] + "…"
        parts.append(f'<text x="{_LEFT - 14}" y="{middle + 4:.1f}" text-anchor="end">{escape(shown)}</text>')
        for series, figure in enumerate(figures):
            if figure is not None:
                parts.append(_dot(figure, top + 13 + step * series, series, f"{label} {names[series]}".strip()))
    key = ""
    if len(names) > 1:
        marks = "".join(
            f'<span><i style="background:var(--s{series % SERIES})"></i>{escape(name)}</span>'
            for series, name in enumerate(names)
        )
        key = f'<div class="key">{marks}</div>'
    return (
        f'<figure class="plot">{key}<svg viewBox="0 0 {_WIDTH} {bottom + 24}" role="img" '
        f'aria-label="shares with 95 % intervals">{"".join(parts)}</svg></figure>'
    )


def bar(figure: Mapping[str, Any]) -> str:
    """A share as a bar, with its interval as a shadow."""
    low, high = 100 * figure["low"], 100 * figure["high"]
    return (
        f'<div class="bar"><i style="width:{100 * figure["value"]:.1f}%"></i>'
        f'<b style="left:{low:.1f}%;width:{max(high - low, 0.5):.1f}%"></b></div>'
    )


def _x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _dot(figure: Mapping[str, Any], y: float, series: int, what: str) -> str:
    low, high, value = (_x(min(max(figure[name], 0.0), 1.0)) for name in ("low", "high", "value"))
    color = f"var(--s{series % SERIES})"
    told = f"{what}: {spoken(figure)}"
    return (
        f'<g><title>{escape(told)}</title><line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" '
        f'style="stroke:{color};stroke-width:5;stroke-opacity:.35;stroke-linecap:round"/>'
        f'<circle cx="{value:.1f}" cy="{y}" r="5" style="fill:{color}"/>'
        f'<text class="axis" x="{_WIDTH - _RIGHT + 16}" y="{y + 4}">{number(figure)}{unit(figure)}</text></g>'
    )
