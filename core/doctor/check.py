"""What a check says, and the list of checks. A check reads the live database, and compares it with what was declared.

Threat: evidence that leaks. A finding names tables, columns, roles and counts; never a value, never a key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from core.doctor.live import Live

__all__ = ["CHECKS", "RULES", "SPECIFICATIONS", "SYMBOLS", "Check", "Finding", "Notes", "Verdict", "check"]

Verdict = Literal["pass", "warn", "fail", "skipped", "unbuilt"]

# For people who do not see colours, and for paper.
SYMBOLS: dict[str, str] = {"pass": "✓", "warn": "!", "fail": "✗", "skipped": "?", "unbuilt": "○"}

# The safeguards that software can show, 45 CFR, in the order of the rule.
RULES: dict[str, str] = {
    "164.312(a)(1)": "Access control",
    "164.312(a)(2)(i)": "Unique user identification",
    "164.312(a)(2)(ii)": "Emergency access procedure",
    "164.312(a)(2)(iii)": "Automatic logoff",
    "164.312(a)(2)(iv)": "Encryption and decryption",
    "164.312(b)": "Audit controls",
    "164.312(c)(1)": "Integrity",
    "164.312(c)(2)": "Mechanism to authenticate PHI",
    "164.312(d)": "Person or entity authentication",
    "164.312(e)(1)": "Transmission security",
    "164.312(e)(2)(i)": "Integrity controls in transit",
    "164.312(e)(2)(ii)": "Encryption in transit",
    "164.308(a)(1)(ii)(D)": "Activity review",
    "164.308(a)(5)(ii)(B)": "Malicious software: updates",
    "164.316(b)(2)(i)": "Audit log kept six years",
    "164.502(b)": "Minimum necessary",
    "164.524": "Access of individuals to their records",
    "164.528": "Accounting of disclosures",
}

# What the rule calls an implementation specification is required or addressable; the others are standards.
SPECIFICATIONS: dict[str, str] = {
    "164.312(a)(2)(i)": "required",
    "164.312(a)(2)(ii)": "required",
    "164.312(a)(2)(iii)": "addressable",
    "164.312(a)(2)(iv)": "addressable",
    "164.312(c)(2)": "addressable",
    "164.312(e)(2)(i)": "addressable",
    "164.312(e)(2)(ii)": "addressable",
    "164.308(a)(1)(ii)(D)": "required",
    "164.308(a)(5)(ii)(B)": "addressable",
    "164.316(b)(2)(i)": "required",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One verdict. ``subject`` is the object that it is about, named as drift names it; empty: the check as a whole.

    ``mend`` says what to do; ``sql``, where statements alone can do it, does it.
    """

    check: str
    verdict: Verdict
    safeguard: str
    evidence: str
    subject: str = ""
    mend: str = ""
    sql: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return dataclasses.asdict(self) | {"rule": RULES[self.safeguard]}


class Notes:
    """What one check finds, as it finds it."""

    def __init__(self, name: str, safeguard: str) -> None:
        self.name = name
        self.safeguard = safeguard
        self.findings: list[Finding] = []

    def fail(self, evidence: str, *, subject: str = "", mend: str = "", sql: str = "") -> None:
        """The safeguard does not hold."""
        self._add("fail", evidence, subject, mend, sql)

    def warn(self, evidence: str, *, subject: str = "", mend: str = "", sql: str = "") -> None:
        """Nothing is found broken, and somebody should look at this."""
        self._add("warn", evidence, subject, mend, sql)

    def incomplete(self, what: str = "It") -> None:
        """The database was too slow to answer: that is no evidence, neither of a safeguard nor of a hole."""
        self._add(
            "skipped",
            f"{what} was not completed: a question about the data took too long.",
            "",
            f"Give it longer, when the database has less to do: piccolo core doctor --only={self.name} --patience=60",
            "",
        )

    def unbuilt(self, evidence: str, *, mend: str = "") -> None:
        """Charthold does not have it."""
        self._add("unbuilt", evidence, "", mend, "")

    def end(self, evidence: str) -> None:
        """The evidence of a check that neither failed nor warned."""
        if all(finding.verdict == "skipped" for finding in self.findings):
            self._add("pass", evidence, "", "", "")

    def seen(self, evidence: str) -> None:
        """The evidence of a check that did not fail: as true beside warnings."""
        if all(finding.verdict in ("skipped", "warn") for finding in self.findings):
            self._add("pass", evidence, "", "", "")

    def _add(self, verdict: Verdict, evidence: str, subject: str, mend: str, sql: str) -> None:
        self.findings.append(
            Finding(
                check=self.name, verdict=verdict, safeguard=self.safeguard, evidence=evidence,
                subject=subject, mend=mend, sql=sql,
            )
        )  # fmt: skip


@dataclass(frozen=True)
class Check:
    """A name for ``--only``, the safeguard that it is evidence of, and what looks."""

    name: str
    safeguard: str
    run: Look


Look: TypeAlias = "Callable[[Live, Notes], Awaitable[None]]"

CHECKS: dict[str, Check] = {}


def check(safeguard: str) -> Callable[[Look], Look]:
    """Register a check under its function's name."""
    assert safeguard in RULES

    def register(run: Look) -> Look:
        name = run.__name__
        CHECKS[name] = Check(name, safeguard, run)
        return run

    return register
