"""Draws the results of policies on a shape as SVG: load, lag, replicas and decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from sim.run import ALLOWED_LAG, Point, Result

_WIDTH, _LEFT, _PLOT = 960, 70, 870
_COLOURS = ("#0b6e99", "#c2571a", "#5b8c3a", "#8a5aa8")


def draw(title: str, results: Sequence[Result]) -> str:
    """Return the picture of a shape's results. Decisions are those of the first result."""
    seconds = max(point.at for result in results for point in result.trace)
    parts = [_text(_LEFT, 24, title, size=16)]
    for number, result in enumerate(results):
        colour = _COLOURS[number % len(_COLOURS)]
        label = f"{result.policy}: {result.replica_hours} replica-hours, {result.changes} changes"
        parts.append(_text(_LEFT + 220 * number, 44, label, size=11, colour=colour))
    rates = [(point.at, point.rate) for point in results[0].trace]
    parts += _panel(70, 120, "events/s", [(rates, "#555")], seconds)
    lags = [
        ([(p.at, min(p.lag, 20 * ALLOWED_LAG)) for p in r.trace], c) for r, c in zip(results, _COLOURS, strict=False)
    ]
    parts += _panel(230, 160, "lag (cut)", lags, seconds, mark=ALLOWED_LAG)
    steps = [(_steps(r.trace), colour) for r, colour in zip(results, _COLOURS, strict=False)]
    parts += _panel(430, 160, "replicas", steps, seconds)
    parts += _reasons(610, results[0].trace, seconds)
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} 660" font-family="sans-serif">\n'
        f'<rect width="{_WIDTH}" height="660" fill="white"/>\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, text: str, *, size: int = 10, colour: str = "#222", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _panel(
    top: float,
    height: float,
    label: str,
    lines: Sequence[tuple[Sequence[tuple[float, float]], str]],
    seconds: float,
    *,
    mark: float | None = None,
) -> list[str]:
    highest = max(1.0, *(value for line, _ in lines for _, value in line))
    across: Callable[[float], float] = lambda at: _LEFT + at / seconds * _PLOT  # noqa: E731
    down: Callable[[float], float] = lambda value: top + height - value / highest * height  # noqa: E731
    parts = [
        f'<rect x="{_LEFT}" y="{top}" width="{_PLOT}" height="{height}" fill="none" stroke="#bbb"/>',
        _text(_LEFT - 6, top + 10, f"{highest:,.0f}", anchor="end"),
        _text(_LEFT - 6, top + height, "0", anchor="end"),
        _text(_LEFT - 6, top + height / 2, label, anchor="end"),
        _text(_LEFT + _PLOT, top + height + 12, f"{seconds / 3600:.1f} h", anchor="end"),
    ]
    if mark is not None and mark < highest:
        y = down(mark)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_LEFT + _PLOT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#d33" stroke-dasharray="4"/>'
        )
    for line, colour in lines:
        points = " ".join(f"{across(at):.1f},{down(value):.1f}" for at, value in line)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
    return parts


def _steps(trace: Sequence[Point]) -> list[tuple[float, float]]:
    line: list[tuple[float, float]] = []
    for point in trace:
        if line:
            line.append((point.at, line[-1][1]))
        line.append((point.at, float(point.replicas)))
    return line


def _reasons(top: float, trace: Sequence[Point], seconds: float) -> list[str]:
    """Return a dot for each change of a policy, with the reason as a tooltip."""
    parts = [_text(_LEFT - 6, top + 14, "decisions", anchor="end")]
    before = trace[0].replicas
    for point in trace:
        if point.replicas != before:
            x = _LEFT + point.at / seconds * _PLOT
            label = f"{point.at / 60:.1f} min: {before} → {point.replicas}, {point.reason}"
            colour = "#2a7f3f" if point.replicas > before else "#a33"
            title = f"<title>{escape(label)}</title>"
            parts.append(f'<circle cx="{x:.1f}" cy="{top + 10}" r="5" fill="{colour}">{title}</circle>')
        before = point.replicas
    return parts
