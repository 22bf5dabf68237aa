"""``piccolo core doctor``: which safeguards hold on the live database, each with its evidence and its mend."""

from __future__ import annotations

import contextlib
import json as jsonlib
import os
import shutil
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from core import registered
from core.commands.bar import bar
from core.commands.family import FOUND, SKIPPED, Failure, command, console
from core.doctor import PATIENCE, RULES, SPECIFICATIONS, Examination, Finding, Verdict, check_names, examine
from core.doctor.report import render
from core.settings import MOST_SECONDS

__all__ = ["FORMAT", "as_json", "doctor"]

FORMAT = "charthold.doctor.v1"
INDENT = " " * 10


@command()
async def doctor(
    *, only: str = "", report: str = "", patience: float = PATIENCE, json: bool = False, quiet: bool = False
) -> int:
    """Look for the safeguards of 45 CFR 164.312 on the live database: each with its evidence, and what mends it.

    Looks as the schema's owner, and changes nothing. docs/doctor.md tells what each check looks at, and describes the
    JSON. What fails counts for the exit status, and what was not looked at to the end; warnings and what is not built
    do not.

    Examples: piccolo core doctor
              piccolo core doctor --report=safeguards.html
              piccolo core doctor --only=drift,row_security --json

    :param only:
        Names of checks, comma-separated; all when left out. They stand in front of each line.
    :param report:
        Write a page for a compliance officer to this file: HTML that needs nothing else, for screen and paper.
    :param patience:
        Seconds that one question about the data may take; what takes longer is skipped, which is neither pass nor fail.

    """
    if not 0 < patience <= MOST_SECONDS:
        raise Failure(f"--patience takes a number of seconds above 0, at most {MOST_SECONDS:,}.")
    with bar("looking", show=not quiet) as progress:
        found = await examine(_names(only), patience=patience, progress=progress)
    if report:
        _write(Path(report), render(found, registered.tables()))
    if json:
        print(jsonlib.dumps(as_json(found), indent=2, default=str))
    else:
        _print(found, quiet=quiet)
        if report and not quiet:
            console().print(f"\nThe report is in {report}.")
    return FOUND if found.failed else SKIPPED if found.skipped else 0


def _names(only: str) -> list[str]:
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in names if name not in check_names()]
    if unknown:
        raise Failure(f"There is no check {', '.join(unknown)}. --only takes {', '.join(check_names())}.")
    return names


def _write(path: Path, page: str) -> None:
    """Write it whole, or leave the file that was there: a disk may be full."""
    in_place = path.exists() and not path.is_file()  # such as /dev/stdout
    target = path.resolve()  # which may be on another disk than the link to it
    beside = path if in_place else target.with_name(f".{path.name}.{os.getpid()}")
    try:
        if not in_place:
            beside.touch(exist_ok=False)  # nor is it a link that somebody else left there
            if target.exists():
                shutil.copymode(target, beside)
        beside.write_text(page, encoding="utf-8")
        if not in_place:
            beside.replace(target)
    except OSError as error:
        if not in_place:
            with contextlib.suppress(OSError):
                beside.unlink()
        raise Failure(f"{path} cannot be written: {error.strerror}.") from None


def as_json(found: Examination) -> dict[str, Any]:
    """The document that ``--json`` prints; docs/doctor.md describes its fields."""
    return {
        "format": FORMAT,
        "at": found.at.isoformat(timespec="seconds"),
        "database": found.database,
        "server": found.server,
        "seconds": round(found.seconds, 3),
        "verdict": "fail" if found.failed else "skipped" if found.skipped else "pass",
        "counts": found.counts(),
        "safeguards": [
            {"paragraph": rule, "title": title, "verdict": found.verdict_of(rule)}
            | {"specification": SPECIFICATIONS.get(rule, "standard")}
            for rule, title in RULES.items()
        ],
        "findings": [finding.as_dict() for finding in found.findings],
        "drift": [difference.as_dict() for difference in found.drift],
        "phi": [asdict(item) for item in found.shown.get("phi", [])],
        "matrix": found.shown.get("matrix", []),
        "keys": found.shown.get("keys", []),
        "seals": found.shown.get("seals", []),
    }


def _print(found: Examination, *, quiet: bool) -> None:
    out = console()
    for rule, title in RULES.items():
        told = ("fail", "skipped") if quiet else get_args(Verdict)
        findings = [f for f in found.findings if f.safeguard == rule and f.verdict in told]
        if not findings:
            continue
        kind = f" ({SPECIFICATIONS[rule]})" if rule in SPECIFICATIONS else ""
        out.print(f"\n{rule} {title}{kind}: {found.verdict_of(rule)}")
        for finding in findings:
            for line in _lines(finding):
                out.print(_wrapped(line, out.width) if out.is_terminal else line)
            for line in finding.sql.splitlines() if finding.verdict != "pass" else ():
                out.print(f"{INDENT}{line}")  # as it is: to be copied
    if not quiet:
        counts = ", ".join(f"{n} {verdict}" for verdict, n in found.counts().items() if n or verdict != "skipped")
        out.print(f"\n{counts}; {found.seconds:.1f} s.")


def _lines(finding: Finding) -> list[str]:
    verdict = finding.verdict.upper() if finding.verdict == "fail" else finding.verdict
    evidence = f"  {verdict:8}{finding.check}: {finding.evidence}"
    return [evidence, f"{INDENT}{finding.mend}"] if finding.mend and finding.verdict != "pass" else [evidence]


def _wrapped(line: str, width: int) -> str:
    return textwrap.fill(line, width, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False)
