"""A bar that shows how far the work is: on a terminal, on standard error, when it takes longer than a moment."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TypeAlias

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from core.commands.family import errors

__all__ = ["Report", "bar"]

SOON = 1.0  # seconds: what is done by then needs no bar

# Told what is done now, how much of it is done, and of how much; None when nobody knows the total.
Report: TypeAlias = Callable[[str, float, float | None], None]


@contextlib.contextmanager
def bar(what: str, *, show: bool) -> Iterator[Report]:
    """A bar that begins with ``what`` and moves as it is told; until then it shows that something is going on."""
    out = errors()
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        console=out,
        transient=True,
        disable=not (show and out.is_interactive),
        redirect_stdout=sys.stdout.isatty(),  # results that are piped on are not the bar's to print
    )
    task = progress.add_task(what, total=None)

    def report(now: str, done: float, total: float | None) -> None:
        progress.update(task, description=now, completed=done, total=total)

    soon = asyncio.get_running_loop().call_later(SOON, progress.start)
    try:
        yield report
    finally:
        soon.cancel()
        progress.stop()
