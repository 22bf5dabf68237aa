"""The README's examples run as they stand."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from core.engine import ChartholdEngine

README = Path(__file__).parent.parent / "README.md"


def block(number: int, language: str) -> str:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[
        number
    ]


async def test_the_twelve_lines_run(database: ChartholdEngine) -> None:
    source = f"async def example():\n{textwrap.indent(block(0, 'python'), '    ')}\n    return same, trail\n"
    namespace: dict = {}
    exec(compile(source, "README.md", "exec"), namespace)  # noqa: S102
    same, trail = await namespace["example"]()
    assert (same.first_name, same.phone) == ("Ana", "+1 617 555 0100")
    assert [change.action for change in trail] == ["insert", "update"]
