"""Bar charts as plain SVG, with one panel below the other."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

_WIDTH, _LEFT, _ROOM, _ROW = 800, 170, 500, 22


def bars(title: str, panels: Mapping[str, Mapping[str, float]]) -> str:
    """Return the chart as SVG: a panel for each title, with a bar for each label. Each panel has a scale."""
    parts, y = [_text(16, 26, title, size=16)], 40
    for heading, values in panels.items():
        if not values:
            continue
        y += 28
        parts.append(_text(16, y, heading, size=13))
        highest = max(values.values())
        for label, value in values.items():
            y += _ROW
            width = max(1.0, value / highest * _ROOM) if highest > 0 else 1.0
            colour = "#0b6e99" if label.startswith("tidemill") else "#8a8f98"
            shown = f"{value:,.0f}" if highest >= 1_000 else f"{value:.2f}"
            parts.append(_text(_LEFT - 8, y, label, anchor="end"))
            parts.append(f'<rect x="{_LEFT}" y="{y - 12}" width="{width:.1f}" height="16" fill="{colour}"/>')
            parts.append(_text(_LEFT + width + 6, y, shown))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 24}" font-family="sans-serif">\n'
        f'<rect width="{_WIDTH}" height="{y + 24}" fill="white"/>\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="#222" text-anchor="{anchor}">{escape(text)}</text>'
