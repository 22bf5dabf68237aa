"""Geometry of the report's drawings. The template draws; nothing here knows HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from piccolo.columns import ForeignKey
from piccolo.table import Table

from core.columns import BlindIndex, CreatedAt, Encrypted, RowId, TenantForeignKey, TenantId
from core.schema import References
from core.schema.declarations import objects_of
from core.schema.quoting import table_name

__all__ = ["Activity", "Diagram", "activity", "diagram"]

WIDTH, ROW, HEAD, GAP, LANE = 196, 15, 26, 22, 128  # of a box, a column's line, its title, between boxes, between ranks
DAY, LINE, LEFT = 26, 40, 116  # of a day, an action's row, and the room for its name


@dataclass(frozen=True)
class Line:
    """A column in a box; ``mark`` is ``sealed``, ``key``, ``waived`` or empty."""

    text: str
    mark: str


@dataclass(frozen=True)
class Box:
    name: str
    x: int
    y: int
    height: int
    lines: list[Line]


@dataclass(frozen=True)
class Edge:
    """A reference; ``soft``: the database holds no foreign key for it."""

    path: str
    arrow: str
    label: str
    x: int
    y: int
    soft: bool


@dataclass(frozen=True)
class Diagram:
    width: int
    height: int
    boxes: list[Box]
    edges: list[Edge]
    box_width: int = WIDTH
    row: int = ROW
    head: int = HEAD


def diagram(tables: Sequence[type[Table]]) -> Diagram:
    """The tables in ranks from left to right: what is referenced stands left of what refers to it."""
    ours = {table_name(t): t for t in tables if t._meta.schema in (None, "public")}
    needs = {name: references(table, ours) for name, table in ours.items()}
    ranks: dict[str, int] = {}

    def rank(name: str, above: tuple[str, ...] = ()) -> int:
        if name not in ranks:
            targets = [target for target, _, _ in needs[name] if target != name and target not in above]
            ranks[name] = max((rank(target, (*above, name)) + 1 for target in targets), default=0)
        return ranks[name]

    for name in ours:
        rank(name)
    lines = {name: lines_of(table) for name, table in ours.items()}
    columns: dict[int, list[str]] = {}
    # Those with references of their own come first, so that the lines cross less.
    for name in sorted(ours, key=lambda n: (ranks[n], -sum(t == n for r in needs.values() for t, _, _ in r), n)):
        columns.setdefault(ranks[name], []).append(name)
    heights = {name: HEAD + ROW * len(lines[name]) + 10 for name in ours}
    total = max((sum(heights[n] + GAP for n in names) for names in columns.values()), default=0)
    boxes: dict[str, Box] = {}
    for number, names in columns.items():
        y = (total - sum(heights[n] + GAP for n in names)) // 2 + GAP // 2
        for name in names:
            boxes[name] = Box(name, 8 + number * (WIDTH + LANE), y, heights[name], lines[name])
            y += heights[name] + GAP
    width = 16 + max(columns, default=0) * (WIDTH + LANE) + WIDTH
    return Diagram(width, total + 8, list(boxes.values()), edges(needs, boxes))


def references(table: type[Table], ours: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """What the table refers to: the other's name, through which column, and whether the database has no key for it."""
    found = {(item.to_table, item.columns[-1]): False for item in objects_of(table) if isinstance(item, References)}
    for column in table._meta.columns:
        if isinstance(column, ForeignKey):
            target = table_name(column._foreign_key_meta.resolved_references)
            found.setdefault((target, column._meta.db_column_name), True)
    return [(target, column, soft) for (target, column), soft in found.items() if target in ours]


def lines_of(table: type[Table]) -> list[Line]:
    """The columns that tell something; what every table has, and the hashes, are summed up."""
    waived: Mapping[str, str] = getattr(table, "waived", {})
    lines, hashes = [], 0
    for column in table._meta.columns:
        name = column._meta.db_column_name
        if isinstance(column, BlindIndex):
            hashes += 1
        elif isinstance(column, Encrypted):
            lines.append(Line(name, "sealed"))
        elif isinstance(column, TenantForeignKey):
            lines.append(Line(name, "key"))
        elif not isinstance(column, RowId | TenantId | CreatedAt):
            lines.append(Line(name, "waived" if name in waived else ""))
    return [*lines, Line(f"and {hashes} blind indexes", "")] if hashes else lines


def edges(needs: Mapping[str, list[tuple[str, str, bool]]], boxes: Mapping[str, Box]) -> list[Edge]:
    """Curves from the left side of what refers to the right side of what it refers to."""
    drawn = []
    arriving: dict[str, int] = {}
    for name, targets in needs.items():
        for target, column, soft in targets:
            here, there = boxes[name], boxes[target]
            line = next((n for n, line in enumerate(here.lines) if line.text == column), None)
            # From the column's own line; tenant_id, which every table has, has none.
            y1 = here.y + (HEAD // 2 - 2 if line is None else HEAD + 4 + ROW * line)
            y2 = there.y + HEAD // 2 + 12 * (count := arriving.get(target, 0))
            arriving[target] = count + 1
            x1, x2 = here.x, there.x + WIDTH
            bend = max(36, (x1 - x2) // 2)
            path = f"M{x1},{y1} C{x1 - bend},{y1} {x2 + bend},{y2} {x2 + 8},{y2}"
            head = f"M{x2},{y2} l9,-4 l0,8 z"
            drawn.append(Edge(path, head, "" if line is not None else column, x1 - 4, y1 - 6, soft))
    return drawn


@dataclass(frozen=True)
class Bar:
    x: int
    height: float
    count: int
    day: date


@dataclass(frozen=True)
class Row:
    action: str
    total: int
    peak: int
    y: int
    bars: list[Bar]


@dataclass(frozen=True)
class Activity:
    """One row of bars an action; each row has its own scale, and says its peak in words."""

    width: int
    height: int
    left: int
    right: int
    line: int
    rows: list[Row]
    ticks: list[tuple[int, str]]
    first: date
    last: date


def activity(counts: Mapping[tuple[date, str], int], days: int, today: date) -> Activity:
    """Records per day by action."""
    first = today - timedelta(days=days - 1)
    totals: dict[str, int] = {}
    for (day, action), count in counts.items():
        if day >= first:
            totals[action] = totals.get(action, 0) + count
    rows = []
    for number, (action, total) in enumerate(sorted(totals.items(), key=lambda item: (-item[1], item[0]))):
        of = {day: count for (day, name), count in counts.items() if name == action and day >= first}
        peak = max(of.values())
        bars = [
            Bar(LEFT + (day - first).days * DAY + 2, max(1.5, (LINE - 12) * count / peak), count, day)
            for day, count in sorted(of.items())
        ]
        rows.append(Row(action, total, peak, (number + 1) * LINE, bars))
    ticks = [
        (LEFT + offset * DAY + DAY // 2, f"{first + timedelta(days=offset):%d %b}")
        for offset in range(days)
        if offset % 7 == (days - 1) % 7
    ]
    right = LEFT + days * DAY
    return Activity(right + 150, len(rows) * LINE + 30, LEFT, right, LINE, rows, ticks, first, today)
