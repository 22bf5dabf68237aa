"""A CSV file of a Synthea export, record by record: a bad record is reported and the next is read, whatever its bytes.

Threat: what a record holds is PHI. No problem quotes a value, and a header is quoted once it is known to be one.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from core.errors import ChartholdError

__all__ = ["BadRecord", "CsvFile", "Export", "ExportError", "Problem", "Report"]

# Far above what Synthea writes; a line or a record beyond is damage, and must not fill the memory.
LONGEST_LINE = 65_536  # characters
LONGEST_RECORD = 25  # lines: an address may be quoted over a few
UNCLOSED = "closes no quote, or closes one inside a field"

REQUIRED = {
    "organizations.csv": ("ID", "NAME"),
    "providers.csv": ("ID", "ORGANIZATION", "NAME"),
    "patients.csv": ("ID", "BIRTHDATE", "FIRST", "LAST"),
}
# Sites outside the US write one of these.
ALSO_KNOWN_AS = {"POSTCODE": "ZIP", "POSTAL_CODE": "ZIP", "SPECIALTY": "SPECIALITY"}


class ExportError(ChartholdError):
    """The folder is not a Synthea export, or not a whole one; nothing was written."""


class BadRecord(Exception):  # noqa: N818  # what is wrong with one record: reported, never raised to a caller
    """What is wrong with a record, without its values."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A record that was skipped: file, the line where it begins (from 1), and what is wrong with it."""

    file: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}"


Report = Callable[[Problem], None]


class _Lines:
    """A file's lines, which can be given back: a quote that is never closed must not swallow the records behind it."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._given_back: deque[str] = deque()
        self.number = 0
        self.record: list[str] = []

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._given_back.popleft() if self._given_back else self._file.readline(LONGEST_LINE)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) == LONGEST_LINE and line[-1] not in "\r\n":
            while (rest := self._file.readline(LONGEST_LINE)) and rest[-1] not in "\r\n":
                pass
            line += "\n"  # one character too many: the mark by which it is known when it was given back
        self.record.append(line)
        if len(self.record) > 1 and (len(line) > LONGEST_LINE or len(self.record) > LONGEST_RECORD):
            raise BadRecord(UNCLOSED)
        if len(line) > LONGEST_LINE:
            raise BadRecord(f"is a line of more than {LONGEST_LINE:,} characters")
        return line

    def give_back(self) -> None:
        """Take the record's lines again, but for the first."""
        again = self.record[1:]
        self._given_back.extendleft(reversed(again))
        self.number -= len(again)


class CsvFile:
    """One file of the export, its header read and checked."""

    def __init__(self, path: Path, file: IO[str], size: int) -> None:
        self.name = path.name
        self.size = size
        self._file = file
        self._lines = _Lines(file)
        # Strict: otherwise a stray quote could weld the beginning of one patient to the end of another.
        self._reader = csv.reader(self._lines, strict=True)
        self.columns = self._header()

    @property
    def position(self) -> int:
        """How many bytes have been read, for a progress bar."""
        return self._file.buffer.tell() if not self._file.closed else self.size  # type: ignore[attr-defined]  # as open() makes it

    def _header(self) -> tuple[str, ...]:
        try:
            names = next(self._reader)
        except StopIteration:
            raise ExportError(f"{self.name} is empty. Export it again with Synthea's CSV exporter.") from None
        except (csv.Error, BadRecord):
            names = []
        columns = tuple(ALSO_KNOWN_AS.get(name, name) for name in (n.strip().upper() for n in names))
        missing = [name for name in REQUIRED[self.name] if name not in columns]
        if missing:
            # What stands there instead is not quoted: without a header it is a patient.
            raise ExportError(
                f"{self.name} has no header with {', '.join(missing)}. Is it from Synthea's CSV exporter, in UTF-8?"
            )
        if len(set(columns)) != len(columns):
            raise ExportError(f"The header of {self.name} names a column twice. Export the file again.")
        return columns

    def records(self, report: Report) -> Iterator[tuple[int, list[str]]]:
        """Line and fields of each record that has as many as the header, in UTF-8; the others go to ``report``."""
        lines, reader, width = self._lines, self._reader, len(self.columns)
        while True:
            lines.record.clear()
            first = lines.number + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except BadRecord as bad:
                wrong = str(bad)
            except csv.Error:
                quoted = '"' in lines.record[0]
                wrong = UNCLOSED if quoted else "is not a line of CSV"
            else:
                if not fields:
                    continue  # an empty line
                wrong = _fault(fields, width)
                if not wrong:
                    yield first, fields
                    continue
            lines.give_back()
            report(Problem(self.name, first, wrong))


def _fault(fields: list[str], width: int) -> str:
    text = "".join(fields)
    if not text.isascii():
        try:
            # Bytes that are not UTF-8 were read as lone surrogates, which cannot be written again.
            text.encode()
        except UnicodeEncodeError:
            return "is not UTF-8"
    if len(fields) != width:
        return f"has {len(fields)} columns, and the header has {width}"
    return "holds a NUL byte" if "\0" in text else ""


class Export:
    """The three files of an export. Opening it checks that they are there and that their headers are good."""

    def __init__(self, directory: Path) -> None:
        self._open = ExitStack()
        if not directory.is_dir():
            raise ExportError(f"There is no folder {directory}. Name the folder of a Synthea CSV export.")
        try:
            self.organizations, self.providers, self.patients = (self._file(directory / name) for name in REQUIRED)
        except BaseException:
            self._open.close()
            raise

    @property
    def files(self) -> tuple[CsvFile, ...]:
        return self.organizations, self.providers, self.patients

    def _file(self, path: Path) -> CsvFile:
        try:
            # surrogateescape keeps the bad bytes of one record from ending the file.
            file = path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
            self._open.enter_context(file)
            return CsvFile(path, file, path.stat().st_size)
        except FileNotFoundError:
            raise ExportError(
                f"There is no {path.name} in {path.parent}. The importer needs {', '.join(REQUIRED)}."
            ) from None
        except OSError as error:
            raise ExportError(f"{path} cannot be read: {error.strerror}.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
