"""Loads an export into a tenant: new rows in batches, known rows left as they are, bad rows reported and skipped."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

import asyncpg

from core.errors import ProtectedQueryError, SealedValueError
from core.scope import Scope, scope
from core.synthea.reader import CsvFile, Export, ExportError, Problem, Report
from core.synthea.rows import Organization, Patient, Provider, homeless, organizations, patients, providers
from core.tables import Client, Facility, TenantTable, User

__all__ = ["Count", "Loaded", "load"]

BATCH = 1_000
# While the database works on one batch, the next one is read and sealed.
IN_FLIGHT = 3

# The errors that one row causes. Any other, a lost connection or a missing right, is the same for all rows.
OF_A_ROW = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.DataError,
    asyncpg.ProgramLimitExceededError,
    SealedValueError,
    ProtectedQueryError,
)
# What tells that somebody else loaded the same row in the meantime.
LOADED_ALREADY = ("client_mrn_key", "app_user_email_key")

Row = TypeVar("Row")
Numbered = tuple[int, Row]


@dataclass
class Count:
    """How many rows of a file were new, were there already, or were skipped."""

    created: int = 0
    existing: int = 0
    skipped: int = 0


@dataclass
class Loaded:
    """What an import did. ``columns`` are those that no entity has a home for, by file."""

    facilities: Count = field(default_factory=Count)
    users: Count = field(default_factory=Count)
    clients: Count = field(default_factory=Count)
    problems: list[Problem] = field(default_factory=list)
    columns: dict[str, list[str]] = field(default_factory=dict)


async def load(
    export: Export,
    *,
    tenant: UUID,
    actor: UUID,
    report: Report = lambda _: None,
    progress: Callable[[CsvFile], None] = lambda _: None,
) -> Loaded:
    """Load an export; ``actor`` is an admin. It opens scopes of its own, so it is called outside of any.

    - An organization is found again by its Id in ``settings``, or by its name where a facility has no such Id; a
      provider by the e-mail made of name and Id; a patient by the MRN, which is its Id. What is found is not changed.
    - A patient's record names no organization: the facility is chosen by a checksum of the patient's Id.
    - Each batch of 1,000 rows is one transaction, and stays whatever happens to the next. When the database refuses a
      batch, it is halved until the bad rows are alone.
    """
    loading = _Loading(tenant, actor, report, progress)
    loading.loaded.columns = {file.name: homeless(file) for file in export.files}
    await loading.organizations(export.organizations)
    await loading.providers(export.providers)
    await loading.patients(export.patients)
    order = [file.name for file in export.files]
    loading.loaded.problems.sort(key=lambda problem: (order.index(problem.file), problem.line))
    return loading.loaded


class _Loading:
    def __init__(self, tenant: UUID, actor: UUID, report: Report, progress: Callable[[CsvFile], None]) -> None:
        self.tenant = tenant
        self.actor = actor
        self.loaded = Loaded()
        self._report = report
        self._progress = progress
        # By organization Id, in the order of the file.
        self._facilities: dict[str, UUID] = {}

    def _scope(self) -> Scope:
        # One a batch: an import may take longer than a scope may live.
        return scope(tenant=self.tenant, actor=self.actor, reason="import of a Synthea export")

    # -- organizations ---------------------------------------------------------------------------------------------

    async def organizations(self, file: CsvFile) -> None:
        async with self._scope():
            there = await Facility.select(Facility.id, Facility.name, Facility.status, Facility.settings).output(
                load_json=True
            )
        by_synthea: dict[str, UUID] = {}
        by_name: dict[str, UUID] = {}
        for row in there:
            synthea = row["settings"].get("synthea")
            if isinstance(synthea, dict) and isinstance(synthea.get("id"), str):
                by_synthea[synthea["id"]] = row["id"]
            elif row["status"] == "active":
                by_name[row["name"]] = row["id"]
        taken = {row["name"] for row in there if row["status"] == "active"}

        async def store(batch: Sequence[Numbered[Organization]]) -> None:
            count, new = self.loaded.facilities, []
            for line, organization in batch:
                known = by_synthea.get(organization.id) or by_name.pop(organization.name, None)
                if known:
                    self._facilities[organization.id] = known
                    count.existing += 1
                    continue
                name = _free_name(organization, taken)
                taken.add(name)
                row = _facility(organization, name)
                self._facilities[organization.id] = row.id
                new.append((line, row))
            refused = await self._insert(Facility, new, file, count)
            for line, organization in batch:
                if line in refused:
                    del self._facilities[organization.id]

        # One at a time: the names of the next batch depend on those of the last.
        await self._in_batches(organizations(file, self._skipping(self.loaded.facilities)), store, file, at_once=1)

    # -- providers -------------------------------------------------------------------------------------------------

    async def providers(self, file: CsvFile) -> None:
        count = self.loaded.users
        skip = self._skipping(count)
        emails: set[str] = set()

        async def store(batch: Sequence[Numbered[Provider]]) -> None:
            async with self._scope():
                there = await User.select(User.email).where(User.email.is_in([p.email for _, p in batch]))
            known = {row["email"] for row in there}
            new: list[Numbered[User]] = []
            for line, provider in batch:
                facility = self._facilities.get(provider.organization)
                if facility is None:
                    skip(Problem(file.name, line, "has an ORGANIZATION that no loaded organization has as its Id"))
                elif provider.email in emails:
                    skip(Problem(file.name, line, "has the name and the first 8 digits of the Id of a row before it"))
                else:
                    emails.add(provider.email)
                    if provider.email in known:
                        count.existing += 1
                    else:
                        new.append((line, _user(provider, facility)))
            await self._insert(User, new, file, count)

        # One at a time, for the e-mails.
        await self._in_batches(providers(file, skip), store, file, at_once=1)

    # -- patients --------------------------------------------------------------------------------------------------

    async def patients(self, file: CsvFile) -> None:
        count = self.loaded.clients
        facilities = list(self._facilities.values())
        async with self._scope():
            nobody_yet = not await Client.exists()

        async def store(batch: Sequence[Numbered[Patient]]) -> None:
            known: set[str] = set()
            if not nobody_yet:
                async with self._scope():
                    there = await Client.select(Client.mrn).where(Client.mrn.is_in([p.id for _, p in batch]))
                known = {row["mrn"] for row in there}
                count.existing += len(known)
            new = [(line, _client(p, facilities)) for line, p in batch if p.id not in known]
            await self._insert(Client, new, file, count)

        rows = patients(file, self._skipping(count))
        if not facilities:
            rows = _without_facility(rows)
        await self._in_batches(rows, store, file, at_once=IN_FLIGHT)

    # -- batches ---------------------------------------------------------------------------------------------------

    def _skipping(self, count: Count) -> Report:
        def skip(problem: Problem) -> None:
            count.skipped += 1
            self.loaded.problems.append(problem)
            self._report(problem)

        return skip

    async def _in_batches(
        self,
        rows: Iterator[Numbered[Row]],
        store: Callable[[Sequence[Numbered[Row]]], Awaitable[None]],
        file: CsvFile,
        *,
        at_once: int,
    ) -> None:
        """Store the rows in batches, a few of them at once. The first failure stops the rest."""
        running: set[asyncio.Task[None]] = set()
        try:
            while batch := list(islice(rows, BATCH)):
                running.add(asyncio.ensure_future(store(batch)))
                await asyncio.sleep(0)  # so that it is on its way while the next one is read
                if len(running) >= at_once:
                    running = await _first_of(running)
                self._progress(file)
            while running:
                running = await _first_of(running)
            self._progress(file)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _insert(
        self, table: type[TenantTable], rows: Sequence[Numbered[Any]], file: CsvFile, count: Count
    ) -> set[int]:
        """Insert the rows, in halves when the database refuses them together. Returns the lines it refused for good."""
        if not rows:
            return set()
        try:
            async with self._scope():
                await table.insert(*(row for _, row in rows))
        except OF_A_ROW as error:
            if len(rows) > 1:
                half = len(rows) // 2
                refused = await self._insert(table, rows[:half], file, count)
                return refused | await self._insert(table, rows[half:], file, count)
            if getattr(error, "constraint_name", None) in LOADED_ALREADY:
                count.existing += 1
                return set()
            line = rows[0][0]
            self._skipping(count)(Problem(file.name, line, f"is refused by the database: {_reason(error)}"))
            return {line}
        count.created += len(rows)
        return set()


async def _first_of(running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    done, rest = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return rest


def _without_facility(rows: Iterator[Numbered[Patient]]) -> Iterator[Numbered[Patient]]:
    for row in rows:
        raise ExportError(
            "No row of organizations.csv could be loaded, so the patients have no facility. Mend that file first."
        )
        yield row  # a generator, so that a file without patients is no error


def _reason(error: Exception) -> str:
    """The constraint that said no. The text of an error may quote the row."""
    constraint = getattr(error, "constraint_name", None)
    state = getattr(error, "sqlstate", None)
    return str(constraint or (f"SQLSTATE {state}" if state else type(error).__name__))


def _free_name(organization: Organization, taken: set[str]) -> str:
    """The name, with the city, the street or the Id behind it where another active facility has the name."""
    name, place = organization.name, organization.address
    city = place.get("city", "")
    for tried in (name, f"{name} ({city})", f"{name} ({place.get('street', '')}, {city})"):
        if tried not in taken:
            return tried
    return f"{name} ({organization.id})"


def _facility(organization: Organization, name: str) -> Facility:
    # The file does not tell kinds apart; the name of a hospital does.
    kind = "hospital" if "hospital" in name.lower() else "clinic"
    return Facility(
        name=name,
        kind=kind,
        phone=organization.phone,
        address=organization.address,
        settings=organization.settings,
    )


def _user(provider: Provider, facility: UUID) -> User:
    return User(
        email=provider.email,
        full_name=provider.name,
        role="clinician",
        status="active",
        facility_scope=[facility],
    )


def _client(patient: Patient, facilities: Sequence[UUID]) -> Client:
    return Client(
        facility_id=facilities[zlib.crc32(patient.id.encode()) % len(facilities)],
        status="deceased" if patient.deceased else "active",
        first_name=patient.first_name,
        last_name=patient.last_name,
        date_of_birth=patient.date_of_birth,
        ssn=patient.ssn,
        mrn=patient.id,
        address=patient.address,
    )
