"""What a command does to the process before anything else is imported: its standard streams, and Ctrl-C.

Light, because it must come before what takes a second to import.
"""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import TextIO

__all__ = ["nobody_reads", "stop_quietly"]


def stop_quietly() -> None:
    """Answer Ctrl-C before a command begins with one word, and ``--help | head`` with none, instead of a traceback."""
    if Path(sys.argv[0]).stem != "piccolo":
        return  # who only imports the tables keeps its own ways
    usual = sys.excepthook

    @atexit.register  # Python's own last flush would complain
    def flush() -> None:
        for stream in (sys.stdout, sys.stderr):
            try:
                if stream is not None:
                    stream.flush()
            except OSError:  # nobody reads the output, and the status tells
                nobody_reads(stream)

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("Stopped.", file=sys.stderr)
        elif issubclass(kind, BrokenPipeError):
            nobody_reads()
        else:
            usual(kind, error, trace)

    sys.excepthook = hook


def nobody_reads(stream: TextIO | None = None) -> None:
    """Keep Python from complaining, with a status of its own, when it flushes a stream that nobody reads any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), (stream or sys.stdout).fileno())
