"""A plot of cost against size, as SVG.

Knows: how to draw a few lines over logarithmic axes. Must not know: where the numbers come from.
Source: SVG 1.1. By hand: a plotting library would be a dependency of every node for one picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, RIGHT = 720, 300, 80, 44, 46, 220
COLOURS = ("#1f6feb", "#d29922", "#cf222e", "#1a7f37")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plot: its name, and a value above 0 for each x, or None where there is none."""

    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot.

    Attributes:
        title: what it shows.
        unit: of the values.
        lines: at most as many as there are colours.
    """

    title: str
    unit: str
    lines: tuple[Line, ...]


def plot(heading: str, axis: str, sizes: Sequence[int], panels: Sequence[Panel]) -> str:
    """Return panels below each other as an SVG document.

    Args:
        heading: stands above all.
        axis: what `sizes` are.
        sizes: x of the values, above 0, ascending.
        panels: what is drawn.
    """
    height = 36 + HEIGHT * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="24" font-size="14" font-weight="bold">{escape(heading)}</text>',
    ]
    for index, panel in enumerate(panels):
        parts.append(f'<g transform="translate(0,{36 + HEIGHT * index})">')
        parts.extend(_panel(panel, axis, sizes))
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, axis: str, sizes: Sequence[int]) -> list[str]:
    known = [value for line in panel.lines for value in line.values if value]
    low, high = _decades(known or [1.0])
    first, last = _decades(sizes)
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(size: float) -> str:
        return f"{LEFT + (right - LEFT) * (math.log10(size) - first) / (last - first):.1f}"

    def y(value: float) -> str:
        return f"{floor - (floor - TOP) * (math.log10(value) - low) / (high - low):.1f}"

    parts = [f'<text x="{LEFT}" y="{TOP - 14}">{escape(panel.title)}</text>']
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{at}" y2="{at}" stroke="#d0d7de"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{at}" dy="4" text-anchor="end">{_number(power)} {escape(panel.unit)}</text>'
        )
    for power in range(first, last + 1):
        at = x(10.0**power)
        parts.append(f'<line x1="{at}" x2="{at}" y1="{TOP}" y2="{floor}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{at}" y="{floor + 16}" text-anchor="middle">{_number(power)}</text>')
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{floor + 34}" text-anchor="middle">{escape(axis)}</text>')
    for row, (line, colour) in enumerate(zip(panel.lines, COLOURS, strict=False)):
        points = [(x(size), y(value)) for size, value in zip(sizes, line.values, strict=True) if value]
        joined = " ".join(f"{across},{up}" for across, up in points)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.extend(f'<circle cx="{across}" cy="{up}" r="3.5" fill="{colour}"/>' for across, up in points)
        down = TOP + 8 + 20 * row
        parts.append(f'<rect x="{right + 14}" y="{down - 6}" width="14" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{right + 34}" y="{down}">{escape(line.name)}</text>')
    return parts


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten around some values; never the same twice."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _number(power: int) -> str:
    if power < 0:
        return f"{10.0**power:.{-power}f}"
    return f"{10**power:,}"
