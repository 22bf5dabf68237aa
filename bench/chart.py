"""A chart of the comparison, as SVG that stands alone."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

__all__ = ["bars"]

LEFT, WIDTH, ROW = 210, 430, 26
MOST = 2.0  # where the axis ends, in times of plain Piccolo


def bars(rows: list[dict[str, Any]], names: list[str]) -> str:
    """Each operation's cost in Charthold against plain Piccolo: one bar, a line at 1; longer is slower."""
    height = ROW * len(rows) + 58
    line = LEFT + WIDTH / MOST
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {height}" font-family="sans-serif" font-size="13">',
        "<style>text{fill:#333}.b{fill:#2a7f7f}@media(prefers-color-scheme:dark){text{fill:#ddd}.b{fill:#5cc4c4}}</style>",
        f'<text x="{LEFT}" y="16">time of Charthold, fully protected, against {escape(names[1])}, unprotected</text>',
    ]
    for at, row in enumerate(rows):
        cost = row["ratio"] if row["unit"] == "ms" else 1 / row["ratio"]
        y = 30 + at * ROW
        length = min(cost, MOST) / MOST * WIDTH
        label = escape(row["operation"].replace("_", " "))
        parts.append(f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{label}</text>')
        parts.append(f'<rect class="b" x="{LEFT}" y="{y + 3}" width="{length:.1f}" height="{ROW - 8}"/>')
        parts.append(f'<text x="{LEFT + length + 6:.1f}" y="{y + 15}">{cost:.2f}</text>')
    parts.append(f'<line x1="{line}" x2="{line}" y1="24" y2="{height - 24}" stroke="#c33" stroke-dasharray="4 3"/>')
    parts.append(f'<text x="{line}" y="{height - 8}" text-anchor="middle">as plain Piccolo</text></svg>')
    return "\n".join(parts)
