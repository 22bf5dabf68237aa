"""What a record of each file says, checked: an organization, a provider, a patient. Pure.

| file | becomes | kept |
|---|---|---|
| organizations.csv | a facility | all columns; Id, REVENUE and UTILIZATION under ``settings["synthea"]`` |
| providers.csv | a user | Id (in the e-mail), NAME, ORGANIZATION (the facility that the user is bound to) |
| patients.csv | a client | Id (the MRN), names, BIRTHDATE, SSN, the whole address; DEATHDATE as the status *deceased* |

An SSN is kept as it is given: other countries have other numbers. Nothing else has a column to go to, and
a settings column is not sealed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from core.synthea.reader import BadRecord, CsvFile, Problem, Report

__all__ = ["Organization", "Patient", "Provider", "homeless", "organizations", "patients", "providers"]

LONGEST_FIELD = 1_000  # characters
LONGEST_ID = 64
OLDEST = 150 * 366  # days

ADDRESS = ("ADDRESS", "CITY", "STATE", "COUNTY", "ZIP", "FIPS")
ADDRESS_KEYS = ("street", "city", "state", "county", "zip", "fips")

# The order in which the functions below unpack them. Columns that a file lacks read as empty.
ORGANIZATION_COLUMNS = ("ID", "NAME", "PHONE", "REVENUE", "UTILIZATION", "LAT", "LON", *ADDRESS)
PROVIDER_COLUMNS = ("ID", "ORGANIZATION", "NAME")
PATIENT_COLUMNS = ("ID", "BIRTHDATE", "DEATHDATE", "SSN", "FIRST", "LAST", "LAT", "LON", *ADDRESS)
KEPT = {
    "organizations.csv": ORGANIZATION_COLUMNS,
    "providers.csv": PROVIDER_COLUMNS,
    "patients.csv": PATIENT_COLUMNS,
}

Row = TypeVar("Row")

_COLUMN_NAME = re.compile(r"[A-Z][A-Z0-9_ ]{0,39}")
_NOT_LETTERS = re.compile(r"[^a-z0-9]+")


class Organization(NamedTuple):
    """A row of organizations.csv."""

    id: str
    name: str
    phone: str | None
    address: dict[str, Any]
    settings: dict[str, Any]


class Provider(NamedTuple):
    """A row of providers.csv; ``organization`` is an organization's Id."""

    id: str
    name: str
    email: str
    organization: str


class Patient(NamedTuple):
    """A row of patients.csv. PHI, so its ``repr`` shows nothing."""

    id: str
    first_name: str
    last_name: str
    date_of_birth: date
    deceased: bool
    ssn: str | None
    address: dict[str, Any] | None

    def __repr__(self) -> str:
        return "<Patient>"


def organizations(file: CsvFile, report: Report) -> Iterator[tuple[int, Organization]]:
    """Line and content of each good row."""
    return _rows(file, ORGANIZATION_COLUMNS, _organization, report)


def providers(file: CsvFile, report: Report) -> Iterator[tuple[int, Provider]]:
    """Line and content of each good row."""
    return _rows(file, PROVIDER_COLUMNS, _provider, report)


def patients(file: CsvFile, report: Report, *, today: date | None = None) -> Iterator[tuple[int, Patient]]:
    """Line and content of each good row."""
    # Somewhere it is tomorrow already.
    latest = (today or datetime.now(UTC).date()) + timedelta(days=1)

    def patient(fields: Sequence[str]) -> Patient:
        return _patient(fields, latest)

    return _rows(file, PATIENT_COLUMNS, patient, report)


def homeless(file: CsvFile) -> list[str]:
    """The file's columns that no entity has a column for."""
    return [
        name if _COLUMN_NAME.fullmatch(name) else "a column without a proper name"
        for name in file.columns
        if name not in KEPT[file.name]
    ]


_DIGITS = re.compile(r"(?<=[^\W\d])\d+")


def _rows(
    file: CsvFile, columns: Sequence[str], parse: Callable[[Sequence[str]], Row], report: Report
) -> Iterator[tuple[int, Row]]:
    # A column that is not there points behind the record, where an empty field is put.
    places = {name: place for place, name in enumerate(file.columns)}
    pick = itemgetter(*(places.get(name, len(file.columns)) for name in columns))
    # Ids only, some 100 bytes each: what grows with the file, so that a second row of one Id is found.
    seen: set[str] = set()
    for line, record in file.records(report):
        record.append("")
        fields = [field.strip() for field in pick(record)]
        try:
            _check(fields, seen)
            row = parse(fields)
        except BadRecord as bad:
            report(Problem(file.name, line, str(bad)))
            continue
        seen.add(fields[0])
        yield line, row


def _check(fields: Sequence[str], seen: set[str]) -> None:
    identity = fields[0]
    if max(map(len, fields)) > LONGEST_FIELD:
        raise BadRecord(f"has a field of more than {LONGEST_FIELD:,} characters")
    if not identity:
        raise BadRecord("has no Id")
    if len(identity) > LONGEST_ID:
        raise BadRecord(f"has an Id of more than {LONGEST_ID} characters")
    if identity in seen:
        raise BadRecord("has the Id of a row before it")


def _organization(fields: Sequence[str]) -> Organization:
    identity, name, phone, revenue, utilization, *place = fields
    if not name:
        raise BadRecord("has no NAME")
    synthea: dict[str, Any] = {"id": identity}
    if revenue:
        synthea["revenue"] = _number("REVENUE", revenue, float("-1e15"), 1e15)
    if utilization:
        synthea["utilization"] = int(_number("UTILIZATION", utilization, 0, 1e15))
    return Organization(identity, name, phone or None, _address(place), {"synthea": synthea})


def _provider(fields: Sequence[str]) -> Provider:
    identity, organization, name = fields
    # Synthea marks made-up names with digits. Without them a provider and a patient of one name are told apart.
    name = _DIGITS.sub("", name).strip()
    if not name:
        raise BadRecord("has no NAME")
    if not organization:
        raise BadRecord("has no ORGANIZATION")
    return Provider(identity, name, _email(identity, name), organization)


def _patient(fields: Sequence[str], latest: date) -> Patient:
    identity, birth, death, ssn, first, last, *place = fields
    if not first or not last:
        raise BadRecord("has no FIRST name" if not first else "has no LAST name")
    if not birth:
        raise BadRecord("has no BIRTHDATE")
    born = _date("BIRTHDATE", birth)
    if born > latest:
        raise BadRecord("has a BIRTHDATE in the future")
    if (latest - born).days > OLDEST:
        raise BadRecord("has a BIRTHDATE more than 150 years ago")
    if death:
        died = _date("DEATHDATE", death)
        if died < born:
            raise BadRecord("has a DEATHDATE before its BIRTHDATE")
        if died > latest:
            raise BadRecord("has a DEATHDATE in the future")
    return Patient(identity, first, last, born, bool(death), ssn or None, _address(place) or None)


def _date(column: str, text: str) -> date:
    try:
        # fromisoformat also takes weeks and dates without hyphens, which no exporter writes.
        if len(text) == 10 and text[4] == text[7] == "-":
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise BadRecord(f"has a {column} that is not a date; it is written YYYY-MM-DD")


def _address(place: Sequence[str]) -> dict[str, Any]:
    latitude, longitude, *parts = place
    address: dict[str, Any] = {key: part for key, part in zip(ADDRESS_KEYS, parts, strict=True) if part}
    if latitude:
        address["lat"] = _number("LAT", latitude, -90, 90)
    if longitude:
        address["lon"] = _number("LON", longitude, -180, 180)
    return address


def _number(column: str, text: str, least: float, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not least <= number <= most:
        raise BadRecord(f"has a {column} that is not a number between {least:g} and {most:g}")
    return number


def _email(identity: str, name: str) -> str:
    """Synthea gives none. The same provider has the same one each time, which is how a second import finds the user."""
    try:
        tail = UUID(identity).hex[:8]
    except ValueError:
        tail = _slug(identity) or identity.encode().hex()
    return f"{_slug(name)[:40].rstrip('.') or 'provider'}.{tail}@providers.example"


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return _NOT_LETTERS.sub(".", plain).strip(".")
