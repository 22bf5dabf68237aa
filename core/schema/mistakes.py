"""A mistake in a table's class is told in one sentence, with the place where it stands.

The command line imports the tables before it looks for a command, and would print forty lines of its own insides.
"""

from __future__ import annotations

import sys
import sysconfig
import traceback
from pathlib import Path
from types import TracebackType

from core.errors import ChartholdError

__all__ = ["say_mistakes"]

# What begins with "<" is no file: frozen modules, and the __init__ that a dataclass makes.
OURS = (str(Path(__file__).parent.parent), *{sysconfig.get_path(name) for name in ("purelib", "stdlib")}, "<")


def say_mistakes() -> None:
    """Tell them so in ``piccolo``; programs print errors as they like. With ``--trace`` the traceback is printed."""
    before = sys.excepthook

    def say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, ChartholdError):
            print(f"{place_of(trace)}{error}", file=sys.stderr)
        else:
            before(kind, error, trace)

    if Path(sys.argv[0]).stem == "piccolo" and "--trace" not in sys.argv:
        sys.excepthook = say


def place_of(trace: TracebackType | None) -> str:
    """The last line of the user's own on the way to an error."""
    theirs = [frame for frame in traceback.extract_tb(trace) if not frame.filename.startswith(OURS)]
    return f"{theirs[-1].filename}:{theirs[-1].lineno}: " if theirs else ""
