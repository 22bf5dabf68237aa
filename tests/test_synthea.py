"""The reader of Synthea exports: whatever bytes a file holds, a bad row is reported and the next is read."""

from __future__ import annotations

import csv
import io
import tempfile
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.synthea.reader import LONGEST_LINE, Export, ExportError, Problem
from core.synthea.rows import PATIENT_COLUMNS, homeless, organizations, patients, providers

TODAY = date(2026, 1, 1)
ORGANIZATIONS = b"Id,NAME\no1,Main street\n"
PROVIDERS = b"Id,ORGANIZATION,NAME\n"
HEADER = b"Id,BIRTHDATE,DEATHDATE,SSN,FIRST,LAST,ADDRESS,CITY,LAT,LON\n"
GOOD = b"p1,1980-02-29,,999-17-5017,Ana,Nguyen,1 Main Street,Somerville,42.5,-71.5\n"


def write(folder: Path, patients: bytes, *, organizations: bytes = ORGANIZATIONS, providers: bytes = PROVIDERS) -> Path:
    (folder / "organizations.csv").write_bytes(organizations)
    (folder / "providers.csv").write_bytes(providers)
    (folder / "patients.csv").write_bytes(patients)
    return folder


def read(folder: Path, content: bytes) -> tuple[list[str], list[str]]:
    """The Ids of the good patients and the problems of the others."""
    problems: list[Problem] = []
    with Export(write(folder, content)) as export:
        rows = list(patients(export.patients, problems.append, today=TODAY))
    return [row.id for _, row in rows], [str(problem) for problem in problems]


def row(number: int, **fields: str) -> bytes:
    values = {
        "Id": f"p{number}", "BIRTHDATE": "1980-02-29", "DEATHDATE": "", "SSN": "", "FIRST": "Ana", "LAST": "Nguyen",
        "ADDRESS": "", "CITY": "", "LAT": "", "LON": "",
    } | fields  # fmt: skip
    out = io.StringIO()
    csv.writer(out).writerow(values.values())
    return out.getvalue().encode()


def test_the_sample_is_read_whole(sample: Path) -> None:
    problems: list[Problem] = []
    with Export(sample) as export:
        assert len(list(organizations(export.organizations, problems.append))) == 63
        assert len(list(providers(export.providers, problems.append))) == 166
        assert len(list(patients(export.patients, problems.append))) == 27
        assert [file.position for file in export.files] == [file.size for file in export.files]
        assert homeless(export.organizations) == []
        assert "RACE" in homeless(export.patients)
        assert "SSN" not in homeless(export.patients)
    assert problems == []


def test_a_patient_keeps_every_column_that_has_a_home(tmp_path: Path) -> None:
    header = b"Id,BIRTHDATE,DEATHDATE,SSN,FIRST,MIDDLE,LAST,ADDRESS,CITY,STATE,COUNTY,FIPS,ZIP,LAT,LON,INCOME\n"
    line = b"p1,1980-02-29,2020-01-02,999-1,Ana,B,Nguyen,1 Main,Somerville,MA,Middlesex,25017,02155,42.5,-71.5,9\n"
    with Export(write(tmp_path, header + line)) as export:
        [(number, patient)] = patients(export.patients, pytest.fail, today=TODAY)
        assert homeless(export.patients) == ["MIDDLE", "INCOME"]
    assert number == 2
    assert patient == (
        "p1", "Ana", "Nguyen", date(1980, 2, 29), True, "999-1",
        {"street": "1 Main", "city": "Somerville", "state": "MA", "county": "Middlesex", "zip": "02155", "fips": "25017",
         "lat": 42.5, "lon": -71.5},
    )  # fmt: skip
    assert repr(patient) == "<Patient>"


@pytest.mark.parametrize(
    ("file", "ids"),
    [
        (b"\xef\xbb\xbf" + HEADER + GOOD, ["p1"]),
        (HEADER.replace(b"\n", b"\r\n") + GOOD.replace(b"\n", b"\r\n"), ["p1"]),
        (HEADER.replace(b"\n", b"\r") + GOOD.replace(b"\n", b"\r"), ["p1"]),
        (HEADER + b"\n\n" + GOOD + b"\n", ["p1"]),
        (HEADER + GOOD.rstrip(), ["p1"]),
        (HEADER + row(1, ADDRESS="1 Main Street\nBack yard") + row(2, FIRST="Zoë, the 2nd"), ["p1", "p2"]),
        (b"LAST,FIRST,BIRTHDATE,ID\nNguyen,Ana,1980-02-29,p1\n", ["p1"]),
        (b"Id,BIRTHDATE,FIRST,LAST,POSTCODE\np1,1980-02-29,Ana,Nguyen,SW1A 1AA\n", ["p1"]),
        (HEADER, []),
    ],
    ids=["bom", "crlf", "cr", "empty lines", "no last newline", "quoted", "other order", "no state", "no rows"],
)
def test_exports_differ_and_are_read_all_the_same(tmp_path: Path, file: bytes, ids: list[str]) -> None:
    assert read(tmp_path, file) == (ids, [])


def test_a_postcode_is_a_zip(tmp_path: Path) -> None:
    with Export(write(tmp_path, b"Id,BIRTHDATE,FIRST,LAST,POSTCODE\np1,1980-02-29,A,B,SW1A\n")) as export:
        [(_, patient)] = patients(export.patients, pytest.fail)
    assert patient.address == {"zip": "SW1A"}


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (row(2, FIRST=""), "has no FIRST name"),
        (row(2, LAST="  "), "has no LAST name"),
        (row(2, Id=""), "has no Id"),
        (row(2, Id="x" * 65), "has an Id of more than 64 characters"),
        (GOOD, "has the Id of a row before it"),
        (row(2, BIRTHDATE=""), "has no BIRTHDATE"),
        (row(2, BIRTHDATE="1981-02-29"), "has a BIRTHDATE that is not a date; it is written YYYY-MM-DD"),
        (row(2, BIRTHDATE="19810228"), "has a BIRTHDATE that is not a date; it is written YYYY-MM-DD"),
        (row(2, BIRTHDATE="1981-W05-1"), "has a BIRTHDATE that is not a date; it is written YYYY-MM-DD"),
        (row(2, BIRTHDATE="2026-01-03"), "has a BIRTHDATE in the future"),
        (row(2, BIRTHDATE="1800-01-01"), "has a BIRTHDATE more than 150 years ago"),
        (row(2, DEATHDATE="1980-02-28"), "has a DEATHDATE before its BIRTHDATE"),
        (row(2, DEATHDATE="2026-01-03"), "has a DEATHDATE in the future"),
        (row(2, DEATHDATE="soon"), "has a DEATHDATE that is not a date; it is written YYYY-MM-DD"),
        (row(2, LAT="91"), "has a LAT that is not a number between -90 and 90"),
        (row(2, LON="nan"), "has a LON that is not a number between -180 and 180"),
        (row(2, LAST="x" * 1001), "has a field of more than 1,000 characters"),
        (b"p2,1980-02-29\n", "has 2 columns, and the header has 10"),
        (row(2).rstrip() + b",\n", "has 11 columns, and the header has 10"),
        (row(2, LAST="N\0"), "holds a NUL byte"),
        (row(2, LAST="N#").replace(b"#", b"\xff"), "is not UTF-8"),
        (row(2, LAST="N#").replace(b"#", b"\xed\xa0\x80"), "is not UTF-8"),
        (row(2).replace(b"Nguyen", b'"Nguyen'), "closes no quote, or closes one inside a field"),
        (row(2).replace(b"Nguyen", b'"Ngu"yen'), "closes no quote, or closes one inside a field"),
        (row(2, LAST="x" * LONGEST_LINE), f"is a line of more than {LONGEST_LINE:,} characters"),
    ],
)
def test_a_bad_row_is_reported_by_line_and_the_others_are_kept(tmp_path: Path, bad: bytes, what: str) -> None:
    ids, problems = read(tmp_path, HEADER + GOOD + bad + row(3) + row(4))
    assert ids == ["p1", "p3", "p4"]
    assert problems == [f"patients.csv:3: {what}"]


def test_a_quote_that_is_never_closed_costs_one_row(tmp_path: Path) -> None:
    broken = row(2).replace(b"Nguyen", b'"Nguyen')
    many = b"".join(row(n) for n in range(3, 200))
    ids, problems = read(tmp_path, HEADER + broken + many + row(200).replace(b"Nguyen", b'"Nguyen') + row(201))
    assert len(ids) == 198
    assert [problem.split()[0] for problem in problems] == ["patients.csv:2:", "patients.csv:200:"]


def test_two_stray_quotes_do_not_weld_two_patients_together(tmp_path: Path) -> None:
    stray = [row(n).replace(b"Nguyen", b'"Nguyen') for n in (1, 2)]
    ids, problems = read(tmp_path, HEADER + stray[0] + stray[1] + row(3))
    assert ids == ["p3"]
    assert len(problems) == 2


def test_a_line_without_end_fills_no_memory_and_costs_no_other_row(tmp_path: Path) -> None:
    open_quote = row(2).replace(b"Nguyen", b'"Nguyen')
    endless = b"x" * (3 * LONGEST_LINE + 1) + b"\n"
    ids, problems = read(tmp_path, HEADER + row(1) + open_quote + endless + row(4) + b"y" * LONGEST_LINE)
    assert ids == ["p1", "p4"]
    assert [problem.split()[0] for problem in problems] == [f"patients.csv:{line}:" for line in (3, 4, 6)]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "patients.csv is empty"),
        (GOOD, "patients.csv has no header with ID, BIRTHDATE, FIRST, LAST"),
        (b"Id;BIRTHDATE;FIRST;LAST\n", "patients.csv has no header with ID, BIRTHDATE, FIRST, LAST"),
        (b"Id,FIRST,LAST\n", "patients.csv has no header with BIRTHDATE"),
        (HEADER.decode().encode("utf-16"), "patients.csv has no header"),
        (b'"Id,BIRTHDATE', "patients.csv has no header"),
        (b"x" * 3 * LONGEST_LINE, "patients.csv has no header"),
        (b"Id,BIRTHDATE,FIRST,LAST,FIRST\n", "The header of patients.csv names a column twice"),
    ],
)
def test_a_bad_header_stops_the_import_without_quoting_it(tmp_path: Path, content: bytes, sentence: str) -> None:
    with pytest.raises(ExportError, match=sentence) as caught:
        Export(write(tmp_path, content))
    assert "Nguyen" not in str(caught.value)


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="There is no folder"):
        Export(tmp_path / "nowhere")
    (write(tmp_path, HEADER) / "providers.csv").unlink()
    with pytest.raises(ExportError, match=r"There is no providers\.csv in"):
        Export(tmp_path)
    (tmp_path / "providers.csv").mkdir()
    with pytest.raises(ExportError, match=r"providers\.csv cannot be read: Is a directory"):
        Export(tmp_path)


def test_a_column_of_a_strange_name_is_not_quoted(tmp_path: Path) -> None:
    with Export(write(tmp_path, b"Id,BIRTHDATE,FIRST,LAST,\x1b[2J\xff\n")) as export:
        assert homeless(export.patients) == ["a column without a proper name"]


def test_an_organization_keeps_its_numbers_and_reports_what_is_none(tmp_path: Path) -> None:
    content = (
        b"Id,NAME,CITY,PHONE,REVENUE,UTILIZATION\no1,Main,Ulm,030 1,12.5,46\no2,Side,,,1e400,\no3,Hill,,,,-1\no4,,,,,\n"
    )
    problems: list[Problem] = []
    with Export(write(tmp_path, HEADER, organizations=content)) as export:
        [(_, main)] = organizations(export.organizations, problems.append)
    assert main == (
        "o1", "Main", "030 1", {"city": "Ulm"}, {"synthea": {"id": "o1", "revenue": 12.5, "utilization": 46}}
    )  # fmt: skip
    assert [problem.line for problem in problems] == [3, 4, 5]


def test_a_provider_has_an_email_made_of_name_and_id(tmp_path: Path) -> None:
    content = """Id,ORGANIZATION,NAME
2d85c411-b7bb-3133-8903-276c2e31f452,o1,Víctor493 Noriega353
p-1,o1,"O'Neil, Ada"
7d85c411-b7bb-3133-8903-276c2e31f452,o1,大夫
,o1,Nobody
p-2,,Nobody
p-3,o1,
"""
    problems: list[Problem] = []
    with Export(write(tmp_path, HEADER, providers=content.encode())) as export:
        emails = [row.email for _, row in providers(export.providers, problems.append)]
    assert emails == [
        "victor.noriega.2d85c411@providers.example",
        "o.neil.ada.p.1@providers.example",
        "provider.7d85c411@providers.example",
    ]
    assert [problem.what for problem in problems] == ["has no Id", "has no ORGANIZATION", "has no NAME"]


# What breaks readers, more often than chance would bring it.
PIECES = st.sampled_from(
    [b",", b'"', b"\n", b"\r", b"\r\n", b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", "é".encode(), b"p1",
     b"1980-02-29", b"Nguyen", GOOD, row(7), b'"" ', b"\x1a", b"\x85", "\u2028".encode()]
)  # fmt: skip
BYTES = st.lists(st.one_of(PIECES, st.binary(max_size=8)), max_size=60).map(b"".join)


@given(BYTES)
def test_no_bytes_crash_the_reader(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ids, problems = read(Path(folder), HEADER + content + b"\n" + row(999_999))
    assert len(set(ids)) == len(ids)
    for problem in problems:
        assert problem.startswith("patients.csv:")
        assert "Nguyen" not in problem


@given(BYTES)
def test_no_bytes_crash_the_header_check(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), content, providers=content, organizations=content)
        with pytest.raises(ExportError) as caught:
            Export(Path(folder))
    assert "Nguyen" not in str(caught.value)


@given(BYTES.filter(lambda content: b'"' not in content))
def test_without_quotes_no_bytes_cost_the_next_row(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ids, _ = read(Path(folder), HEADER + content + b"\n" + row(999_999))
    assert ids[-1:] == ["p999999"]


NAMES = st.text(min_size=1, max_size=30).filter(
    lambda text: text.strip() and "\0" not in text and len(text.splitlines()) < 5
)


@given(st.lists(st.tuples(NAMES, NAMES, st.dates(date(1900, 1, 1), TODAY)), max_size=20))
def test_what_a_csv_writer_writes_is_read_back(people: list[tuple[str, str, date]]) -> None:
    lines = [row(n, FIRST=a, LAST=b, BIRTHDATE=str(born)) for n, (a, b, born) in enumerate(people)]
    with tempfile.TemporaryDirectory() as folder, Export(write(Path(folder), HEADER + b"".join(lines))) as export:
        found = [patient for _, patient in patients(export.patients, pytest.fail, today=TODAY)]
    assert [(p.first_name, p.last_name, p.date_of_birth) for p in found] == [
        (a.strip(), b.strip(), born) for a, b, born in people
    ]


def test_all_columns_of_a_patient_are_unpacked() -> None:
    assert len(PATIENT_COLUMNS) == 14
