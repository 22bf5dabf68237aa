"""What a verification found, as data and as sentences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

from core.plural import plural

__all__ = ["Finding", "Kind", "Report"]

Kind = Literal["changed", "reordered", "missing", "added", "unnamed", "head", "heads_missing", "list", "rewritten"]

SENTENCES: dict[Kind, str] = {
    "changed": "Record {record} (leaf {leaf}) is not what was sealed.",
    "reordered": "Record {record} (leaf {leaf}) is not what was sealed, and moved to another place in the order.",
    "missing": "Record {record} (leaf {leaf}) was sealed and is gone.",
    "added": "Record {record} was added among records that were sealed before.",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was sealed. ``leaf`` is a place in the tree, counted from 0."""

    kind: Kind
    record: UUID | None = None
    leaf: int | None = None
    says: str = ""

    def __str__(self) -> str:
        return self.says or SENTENCES[self.kind].format(record=self.record, leaf=self.leaf)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "record": str(self.record) if self.record else None,
            "leaf": self.leaf,
            "says": str(self),
        }


@dataclass
class Report:
    """A tenant's log, verified."""

    tenant: UUID
    heads: int = 0
    tree_size: int = 0
    root_hash: bytes = b""
    unsealed: int = 0
    archived: int = 0
    exported_heads: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.findings

    def found(self, kind: Kind, says: str = "", *, record: UUID | None = None, leaf: int | None = None) -> None:
        self.findings.append(Finding(kind, record, leaf, says))

    def summary(self) -> str:
        """One line."""
        said = f"{plural(self.tree_size, 'record')} under {plural(self.heads, 'head')}"
        if self.archived:
            said += f", {self.archived} of them archived"
        if self.exported_heads:
            said += f", {plural(self.exported_heads, 'exported head')}"
        said += f", {self.unsealed} not sealed yet"
        return f"{said}: {'as they were sealed' if self.good else plural(len(self.findings), 'finding')}."

    def to_json(self) -> dict[str, Any]:
        return {
            "tenant": str(self.tenant),
            "good": self.good,
            "heads": self.heads,
            "tree_size": self.tree_size,
            "root_hash": self.root_hash.hex(),
            "unsealed": self.unsealed,
            "archived": self.archived,
            "exported_heads": self.exported_heads,
            "findings": [finding.to_json() for finding in self.findings],
        }
