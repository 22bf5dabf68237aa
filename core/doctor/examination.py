"""Runs the checks, and folds drift into them: what is wrong with an object is told once, by the check about it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import asyncpg

from core import registered
from core.doctor import (
    access,
    application,
    audit,
    authentication,
    coverage,
    encryption,
    indexes,
    individuals,
    integrity,
    isolation,
    minimum,
    outside,
    permissions,
    review,
    transmission,
)
from core.doctor import server as server_checks
from core.doctor.check import CHECKS, RULES, Check, Finding, Notes, Verdict
from core.doctor.live import PATIENCE, Live, here
from core.errors import ChartholdError
from core.schema.drift import Difference, drift
from core.schema.lock import migrating

__all__ = ["DRIFT", "Examination", "check_names", "examine"]

# Imported for the checks that they register.
GROUPS = (
    application,
    access,
    outside,
    permissions,
    minimum,
    isolation,
    encryption,
    indexes,
    coverage,
    audit,
    review,
    individuals,
    integrity,
    authentication,
    transmission,
    server_checks,
)
DRIFT = "drift"
ORDER: tuple[Verdict, ...] = ("fail", "skipped", "warn", "unbuilt", "pass")


@dataclass
class Examination:
    """What one run found."""

    at: datetime
    database: str
    server: str
    findings: list[Finding]
    drift: list[Difference]
    # For the report: rows by name (``matrix``, ``phi``, ``keys``, ``seals``, ...).
    shown: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def counts(self) -> dict[str, int]:
        return {verdict: sum(f.verdict == verdict for f in self.findings) for verdict in ORDER}

    @property
    def failed(self) -> bool:
        return any(finding.verdict == "fail" for finding in self.findings)

    @property
    def skipped(self) -> bool:
        """Something was not looked at to the end, which is no evidence of anything."""
        return any(finding.verdict == "skipped" for finding in self.findings)

    def verdict_of(self, safeguard: str) -> Verdict | None:
        """The worst of the safeguard's verdicts; None when no check of it ran."""
        found = {finding.verdict for finding in self.findings if finding.safeguard == safeguard}
        return next((verdict for verdict in ORDER if verdict in found), None)


def check_names() -> list[str]:
    """What ``--only`` takes."""
    return [DRIFT, *CHECKS]


async def examine(
    only: Sequence[str] = (), *, patience: float = PATIENCE, progress: Callable[[str, int, int], None] | None = None
) -> Examination:
    """Look at the database, as the schema's owner. Changes nothing.

    ``patience``: seconds for one question about the data. ``progress`` is told which check runs, and of how many.
    """
    began, at = time.monotonic(), datetime.now(UTC)
    declared = registered.tables()
    findings: list[Finding] = []
    differences: list[Difference] = []
    async with migrating(locked=False) as connection:
        live = None
        # Drift alone is looked for in any database, one without tenants too.
        if wanted := [item for item in CHECKS.values() if not only or item.name in only]:
            live = await Live.read(connection, declared)
            # From here to the end nothing changes anything.
            await connection.execute(f"set statement_timeout = {max(1, round(patience * 1000))}")
            for number, item in enumerate(wanted):
                if progress:
                    progress(item.name, number, len(wanted) + (not only or DRIFT in only))
                findings += await look(live, item)
        if not only or DRIFT in only:
            await connection.execute("set statement_timeout = 0")
            differences = await drift(connection, declared, registered.shared())
            findings = fold(findings, differences)
        database, server = await here(connection)
    place = {rule: number for number, rule in enumerate(RULES)}
    findings.sort(key=lambda f: (place[f.safeguard], ORDER.index(f.verdict)))
    return Examination(
        at=at,
        database=database,
        server=server,
        findings=findings,
        drift=differences,
        shown=live.shown if live else {},
        seconds=time.monotonic() - began,
    )


async def look(live: Live, item: Check) -> list[Finding]:
    """What one check finds. That it cannot look is a finding too."""
    notes = Notes(item.name, item.safeguard)
    try:
        await item.run(live, notes)
    except ChartholdError as error:
        notes.fail(f"It could not be looked at: {error}")
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedFunctionError, asyncpg.UndefinedColumnError) as error:
        notes.fail(
            f"It could not be looked at, because the schema is not as declared (SQLSTATE {error.sqlstate}).",
            mend="Run the mends of drift first.",
        )
    except asyncpg.QueryCanceledError:
        notes.incomplete()
    except asyncpg.PostgresError as error:
        notes.fail(f"It could not be looked at: {type(error).__name__} (SQLSTATE {error.sqlstate}).")
    return notes.findings


def fold(findings: Iterable[Finding], differences: Sequence[Difference]) -> list[Finding]:
    """The findings, with the mends that drift knows, and one more for each difference that no check has told."""
    by_subject = {f"{d.kind} {d.name}": d for d in differences}
    told: set[str] = set()
    merged: list[Finding] = []
    for finding in findings:
        difference = by_subject.get(finding.subject)
        if difference is not None and finding.verdict == "fail":
            # Once a subject: whoever runs all of the statements would make the same object twice.
            sql = finding.sql or ("" if finding.subject in told else difference.mend)
            told.add(finding.subject)
            merged.append(dataclasses.replace(finding, sql=sql))
        else:
            merged.append(finding)
    notes = Notes(DRIFT, "164.312(a)(1)")
    for subject, difference in by_subject.items():
        if subject not in told:
            what = {"missing": "is declared and missing", "unexpected": "is there and not declared"}
            notes.fail(
                f"The {difference.kind.replace('_', ' ')} {difference.name} "
                f"{what.get(difference.problem, 'is not as declared')}.",
                subject=subject,
                sql=difference.mend,
                mend="" if difference.mend else "Decide by hand: the rows or the meaning are known to you alone.",
            )
    if not differences:
        notes.end("The schema is as declared: tables, columns, keys, policies, triggers, functions and grants.")
    return merged + notes.findings
