"""The report: one page that needs nothing else, for somebody who was not there.

Threat: a name out of the database that is markup. Jinja escapes everything; the page allows no script and no request.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from piccolo.table import Table

from core.access.permissions import COMMANDS, EMERGENCY, ROLES
from core.doctor.check import RULES, SPECIFICATIONS, SYMBOLS
from core.doctor.drawing import activity, diagram
from core.doctor.encryption import LIMIT
from core.doctor.examination import Examination
from core.doctor.identifiers import IDENTIFIERS

__all__ = ["render"]

WORDS = {"pass": "holds", "warn": "review", "fail": "fails", "skipped": "skipped", "unbuilt": "not built"}
MOST = 40  # tenants a table; the rest is counted
ACCESS = {
    "yes": ("●", "yes"),
    "facility": ("◐", "all, or own facilities"),
    "whole": ("◯", "only who sees the whole tenant"),
    "client": ("◔", "one client's, in an emergency"),
    "no": ("·", "no"),
}
KINDS = {"encrypted": "◆", "blind index": "◇", "waived": "△", "unclassified": "✗", "not PHI": "·"}


def render(found: Examination, tables: Sequence[type[Table]]) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"moment": moment, "number": "{:,}".format, "breakable": breakable}
    shown = found.shown
    plotted = shown.get("activity", {"days": 30, "counts": {}})
    return environment.get_template("report.html.jinja").render(
        found=found,
        failures=found.counts()["fail"],
        safeguards=Counter(found.verdict_of(rule) for rule in RULES),
        rules=[
            {"paragraph": rule, "title": title, "verdict": found.verdict_of(rule)}
            | {"specification": SPECIFICATIONS.get(rule, "standard")}
            | {"findings": [finding for finding in found.findings if finding.safeguard == rule]}
            for rule, title in RULES.items()
        ],
        symbols=SYMBOLS,
        words=WORDS,
        access=ACCESS,
        kinds=KINDS,
        roles=(*ROLES, EMERGENCY),
        commands=COMMANDS,
        readers=readers(found),
        bypass=shown.get("bypass", []),
        seals=seals(found),
        matrix=matrix(found),
        phi=phi(found),
        identifiers=identifiers(found),
        keys=sorted(shown.get("keys", []), key=lambda key: -int(key["days"]))[:MOST],
        more_keys=max(0, len(shown.get("keys", [])) - MOST),
        limit=LIMIT,
        token_keys=shown.get("token_keys", []),
        diagram=diagram(tables),
        counted="activity" in shown,
        activity=activity(plotted["counts"], plotted["days"], found.at.date()),
    )


def moment(value: datetime | None) -> str:
    """A time as people read it, in UTC."""
    return f"{value:%d %b %Y, %H:%M} UTC" if value else "never"


def breakable(name: str) -> Markup:
    """A name that a narrow column breaks between its words."""
    return Markup("_<wbr>").join(name.split("_"))  # join() escapes what it joins


def short(table: str) -> str:
    """The table's name without the schema that most have."""
    return table.removeprefix("public.")


def sealed_tables(found: Examination) -> list[str]:
    return sorted({item.table for item in found.shown.get("phi", []) if item.kind == "encrypted"})


def readers(found: Examination) -> dict[str, Any]:
    """Which role of the application may read which table with PHI, as the live policies and grants have it."""
    rows = {row["table"]: row for row in found.shown.get("matrix", []) if row["command"] == "select"}
    tables = [table for table in sealed_tables(found) if table in rows]
    # By role and answer: there is room for six roles and few answers, and a product has any number of tables.
    roles: dict[str, dict[str, list[str]]] = {role: defaultdict(list) for role in (*ROLES, EMERGENCY)}
    for role, answers in roles.items():
        for table in tables:
            answers[rows[table][role] if rows[table]["granted"] else "no"].append(short(table))
    return {
        "tables": list(map(short, tables)),
        "people": found.shown.get("people", {}),
        "roles": roles,
        # Where users who are bound to facilities read the whole tenant's.
        "beyond": sorted({table for answers in roles.values() for table in answers.get("yes", ())}),
    }


def seals(found: Examination) -> dict[str, Any]:
    """The heads, and what is oldest among them: a chain is as good as its weakest link."""
    rows = found.shown.get("seals", [])
    verified = [row["verified_at"] for row in rows]
    sealed = [row["sealed_at"] for row in rows]
    return {
        "rows": sorted(rows, key=lambda row: (row["signature"] is not False, -(row["unsealed"] or 0)))[:MOST],
        "more": max(0, len(rows) - MOST),
        "tenants": len(rows),
        "sealed": sum(at is not None for at in sealed),
        "oldest": min((at for at in sealed if at), default=None),
        "verified": sum(at is not None for at in verified),
        "verified_at": min((at for at in verified if at), default=None),
        "verified_bad": sum(row["verified_good"] is False for row in rows),
        "bad": sum(row["signature"] is False for row in rows),
        "records": sum(row["records"] for row in rows),
        "unsealed": None if any(row["unsealed"] is None for row in rows) else sum(row["unsealed"] for row in rows),
        "looked": found.shown.get("verifications", False),
    }


def matrix(found: Examination) -> dict[str, dict[str, Any]]:
    """Access by table, role and command; a policy without a grant lets nobody in."""
    tables: dict[str, dict[str, Any]] = defaultdict(lambda: {role: {} for role in (*ROLES, EMERGENCY)})
    for row in found.shown.get("matrix", []):
        for role in (*ROLES, EMERGENCY):
            tables[row["table"]][role][row["command"]] = row[role] if row["granted"] else "no"
    return dict(tables)


def phi(found: Examination) -> dict[str, dict[str, Any]]:
    """By table: what is to be told of its columns, and the names of those that hold no PHI."""
    tables: dict[str, dict[str, Any]] = {}
    for item in found.shown.get("phi", []):
        entry = tables.setdefault(item.table, {"told": [], "plain": []})
        if item.kind == "not PHI":
            entry["plain"].append(item.column)
        else:
            entry["told"].append(item)
    return tables


def identifiers(found: Examination) -> list[dict[str, Any]]:
    """The eighteen, and where each is."""
    rows = []
    for key, identifier in IDENTIFIERS.items():
        held = [item for item in found.shown.get("phi", []) if item.identifier == key]
        rows.append(
            {"letter": identifier.letter, "title": identifier.title}
            | {kind: [f"{short(i.table)}.{i.column}" for i in held if i.kind == kind] for kind in KINDS}
        )
    return rows
