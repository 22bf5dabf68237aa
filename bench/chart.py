"""Charts as SVG that stands alone: it brings its own background, light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

__all__ = ["bars", "lines"]

STYLE = """<style>
.ground{fill:#fff}.text{fill:#1f2328}.quiet{fill:#59636e}.grid{stroke:#d1d9e0}.one{stroke:#cf222e}
.c0{fill:#1a7f7f;stroke:#1a7f7f}.c1{fill:#8250df;stroke:#8250df}.c2{fill:#bc4c00;stroke:#bc4c00}
.c3{fill:#0969da;stroke:#0969da}.c4{fill:#bf3989;stroke:#bf3989}.c5{fill:#4d6b1f;stroke:#4d6b1f}
@media(prefers-color-scheme:dark){
.ground{fill:#0d1117}.text{fill:#f0f6fc}.quiet{fill:#9198a1}.grid{stroke:#3d444d}.one{stroke:#f85149}
.c0{fill:#5cc4c4;stroke:#5cc4c4}.c1{fill:#ab7df8;stroke:#ab7df8}.c2{fill:#db6d28;stroke:#db6d28}
.c3{fill:#4493f8;stroke:#4493f8}.c4{fill:#db61a2;stroke:#db61a2}.c5{fill:#8aab4f;stroke:#8aab4f}}
</style>"""

Bar = tuple[str, Sequence[float], str]  # operation, cost of each contender, what is written behind the bars
Line = Mapping[str, Sequence[float]]  # operation -> its cost at each step


def bars(title: str, names: Sequence[str], rows: Sequence[Bar], unit: str) -> str:
    """Costs side by side, in times of ``unit``, where a line is drawn. A longer bar is slower."""
    left, width, thick = 190, 330, 12
    height = thick * len(names) + 10
    most = max(1.25, *(cost for _, costs, _ in rows for cost in costs))
    top = 36 + 20 * (len(names) > 1)
    bottom = top + height * len(rows)
    parts = [_text(16, 22, title)]
    if len(names) > 1:
        parts += [
            part
            for at, name in enumerate(names)
            for part in (_box(at, left + at * 190, 36, 10, 10), _text(left + at * 190 + 16, 45, name, kind="quiet"))
        ]
    for at, (label, costs, note) in enumerate(rows):
        y = top + height * at
        middle = y + height / 2 + 4
        parts.append(_text(left - 10, middle, label, anchor="end"))
        parts += [_box(n, left, y + 5 + thick * n, cost / most * width, thick - 2) for n, cost in enumerate(costs)]
        end = left + max(costs) / most * width
        parts.append(_text(max(end, left + width / most) + 8, middle, note, kind="quiet"))
    line = left + width / most
    parts.append(f'<path class="one" d="M{line:.1f} {top}V{bottom}" stroke-dasharray="4 3"/>')
    parts.append(_text(line, bottom + 16, unit, anchor="middle", kind="quiet"))
    return _svg(760, bottom + 28, parts)


def lines(title: str, panels: Sequence[tuple[str, Sequence[int], Line]]) -> str:
    """Cost against growth, a panel for what grows; each line begins at 1, so its height is its growth."""
    wide, tall, top = 736 // len(panels), 170, 62
    names = list(panels[0][2])
    most = max(1.5, *(c / costs[0] for _, _, found in panels for costs in found.values() for c in costs))
    parts = [_text(16, 22, title)]
    for at, name in enumerate(names):
        parts += [_box(at, 16 + at * 120, 34, 10, 10), _text(32 + at * 120, 43, name, kind="quiet")]
    for number, (grows, steps, found) in enumerate(panels):
        left, right = 48 + number * (wide + 14), 14 + (number + 1) * (wide + 14)
        places = [left + (right - left) * at / max(len(steps) - 1, 1) for at in range(len(steps))]

        def height(times: float) -> float:
            return top + tall * (1 - times / most)

        for times in (0, 1, *([int(most)] if most >= 2 else [])):
            parts.append(f'<path class="grid" d="M{left} {height(times):.1f}H{right}"/>')
            if not number:
                parts.append(_text(left - 8, height(times) + 4, f"{times} x", anchor="end", kind="quiet"))
        for place, step in zip(places, steps, strict=True):
            shown = (
                f"{step // 1_000_000}M" if step >= 1_000_000 else f"{step // 1_000}k" if step >= 1_000 else str(step)
            )
            parts.append(_text(place, top + tall + 16, shown, anchor="middle", kind="quiet"))
        parts.append(_text((left + right) / 2, top + tall + 34, grows, anchor="middle"))
        for at, costs in enumerate(found.values()):
            points = " ".join(f"{x:.1f},{height(cost / costs[0]):.1f}" for x, cost in zip(places, costs, strict=True))
            parts.append(f'<polyline class="c{at}" style="fill:none" stroke-width="2" points="{points}"/>')
    return _svg(48 + len(panels) * (wide + 14), top + tall + 46, parts)


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    font = 'font-family="-apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="13"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" {font}>'
    ground = f'<rect class="ground" width="{width}" height="{height}" rx="8"/>'
    return "\n".join((head, STYLE, ground, *parts, "</svg>\n"))


def _text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "text") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _box(color: int, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="c{color}" stroke="none" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
