"""A tenant's PHI ends with its keys: after a request, a wait and a typed slug, and nothing else changes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from core import ChartholdError, ScopeError, shredding
from core.audit.canonical import RECORD_SQL
from core.audit.recorded import DESTROYED
from core.audit.seal import seal
from core.audit.verify import verify
from core.commands.rotate_keys import rotate_keys
from core.commands.shred_tenant import shred_tenant
from core.engine import ChartholdEngine
from core.ids import uuid7
from core.provision import find_tenant
from core.rotation import Target, key_lock
from core.settings import settings
from core.shredding import cancel, due, request, shred
from core.tables import Client, Tenant
from tests.conftest import IN_ITS_FILES, Clinic, make_clinic
from tests.test_rotation import cut_off, older_transaction, on_disk


@pytest.fixture
async def clinic(database: ChartholdEngine) -> Clinic:
    return await make_clinic(f"clinic-{uuid7().hex[-12:]}")


@pytest.fixture
async def target(clinic: Clinic, owner: asyncpg.Connection) -> Target:
    slug = await owner.fetchval("select slug from tenant where id = $1", clinic.tenant)
    return Target(clinic.tenant, slug, clinic.admin)


@pytest.fixture
def no_wait() -> Iterator[None]:
    os.environ["CHARTHOLD_SHRED_DAYS"] = "0"
    settings.cache_clear()
    yield
    del os.environ["CHARTHOLD_SHRED_DAYS"]
    settings.cache_clear()


async def steps(owner: asyncpg.Connection, clinic: Clinic) -> list[str]:
    rows = await owner.fetch(
        "select new_values ->> 'step' as step, user_id from user_action_audit_log"
        " where tenant_id = $1 and action_type = 'key_shredding' order by occurred_at",
        clinic.tenant,
    )
    assert {row["user_id"] for row in rows} <= {clinic.admin}
    return [row["step"] for row in rows]


async def a_month_later(owner: asyncpg.Connection, clinic: Clinic) -> None:
    await owner.execute(
        "update charthold.tenant_directory set shred_requested_at = shred_requested_at - interval '31 days'"
        " where tenant_id = $1",
        clinic.tenant,
    )


async def test_nothing_happens_before_its_time(clinic: Clinic, target: Target, owner: asyncpg.Connection) -> None:
    with pytest.raises(ChartholdError, match="Ask first"):
        await shred(target)
    when = await request(target)
    assert await due(target) == when
    with pytest.raises(ChartholdError, match=f"from {when:%Y-%m-%d %H:%M} UTC on, not before"):
        await shred(target)
    with pytest.raises(ChartholdError, match="wait to be destroyed already"):
        await request(target)
    async with clinic.as_clinician():
        assert await Client.select(Client.last_name) == [{"last_name": "Nguyen"}]
    await cancel(target)
    with pytest.raises(ChartholdError, match="Nobody asked"):
        await cancel(target)
    with pytest.raises(ChartholdError, match="Ask first"):
        await shred(target)
    assert await steps(owner, clinic) == ["requested", "withdrawn"]


@IN_ITS_FILES
async def test_a_shredded_tenants_phi_opens_nowhere_and_its_log_is_what_it_was(
    clinic: Clinic, target: Target, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    other = await make_clinic(f"other-{uuid7().hex[-12:]}")
    records = f"select id, {RECORD_SQL} as bytes from user_action_audit_log where tenant_id = $1 order by id"
    async with clinic.as_admin():
        await seal()
    before = {row["id"]: row["bytes"] for row in await owner.fetch(records, clinic.tenant)}
    wrapped = await owner.fetchval("select wrapped from tenant_key where tenant_id = $1", clinic.tenant)
    envelope = await owner.fetchval("select last_name from client where id = $1", clinic.client)
    await request(target)
    await a_month_later(owner, clinic)
    done = await shred(target)
    assert (done.versions, done.swept) == ((1,), True)
    assert (await find_tenant(target.slug)).status == "closed"
    assert await steps(owner, clinic) == ["requested", "destroyed"]

    async with clinic.as_admin():
        with pytest.raises(ChartholdError, match="keys were destroyed"):
            await Client.select(Client.last_name)
        with pytest.raises(ChartholdError, match="keys were destroyed"):
            await Client.objects().get(Client.last_name == "nguyen")
        (born,) = await Client(id=clinic.client, _exists_in_db=True).history()
        assert (born.action, born.new["last_name"], born.new["status"]) == ("insert", DESTROYED, "active")
        # What is not PHI is still there: who was a client, when, and the log.
        assert await Client.select(Client.id, Client.status) == [{"id": clinic.client, "status": "active"}]
        assert await Tenant.select(Tenant.status) == [{"status": "closed"}]
    async with clinic.as_clinician():
        with pytest.raises(ScopeError, match="suspended or closed"):
            await Client.select(Client.id)
    assert await owner.fetchval("select last_name from client where id = $1", clinic.client) == envelope
    assert not on_disk(wrapped)
    for row in await owner.fetch(
        "select old_values::text as old, new_values::text as new from user_action_audit_log where tenant_id = $1",
        clinic.tenant,
    ):
        assert wrapped.hex() not in f"{row['old']}{row['new']}"

    after = {row["id"]: row["bytes"] for row in await owner.fetch(records, clinic.tenant)}
    assert after.items() >= before.items(), "no record of before has changed"
    async with clinic.as_admin():
        report = await verify()
    assert report.good, report.summary()

    async with other.as_clinician():
        assert await Client.select(Client.last_name) == [{"last_name": "Nguyen"}]
    for again in (shred, request, cancel):
        with pytest.raises(ChartholdError, match="destroyed already"):
            await again(target)


@IN_ITS_FILES
async def test_who_was_killed_before_the_keys_were_gone_from_the_file_runs_it_again(
    clinic: Clinic, target: Target, owner: asyncpg.Connection, no_wait: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = await owner.fetchval("select wrapped from tenant_key where tenant_id = $1", clinic.tenant)
    await request(target)
    await cut_off(shred, target, monkeypatch=monkeypatch)
    assert (await find_tenant(target.slug)).status == "closed"
    await owner.execute("checkpoint")
    assert on_disk(wrapped)
    async with older_transaction(owner):
        monkeypatch.setattr("core.rotation.owner.PATIENCE", 0.2)
        with pytest.raises(ChartholdError, match="destroyed already.*VACUUM FULL tenant_key"):
            await shred_tenant.__wrapped__(target.slug, confirm=target.slug)
    with pytest.raises(ChartholdError, match="destroyed already; nothing of its PHI opens.$"):
        await shred_tenant.__wrapped__(target.slug, confirm=target.slug)
    assert not on_disk(wrapped)
    assert await steps(owner, clinic) == ["requested", "destroyed"]


async def test_a_process_with_cached_keys_opens_until_its_cache_ends(
    clinic: Clinic, target: Target, database: ChartholdEngine, no_wait: None
) -> None:
    async with clinic.as_admin():
        await Client.select(Client.last_name)
        cached = database.keyring._entries[clinic.tenant]
        await request(target)
        await shred(target)
        database.keyring._entries[clinic.tenant] = cached  # as in another process
        assert await Client.select(Client.last_name) == [{"last_name": "Nguyen"}]
        cached.expires = 0
        with pytest.raises(ChartholdError, match="keys were destroyed"):
            await Client.select(Client.last_name)


async def test_a_tenant_can_neither_ask_for_it_nor_hasten_it(clinic: Clinic, target: Target) -> None:
    await request(target)
    async with clinic.as_admin():
        for sql in (
            "update charthold.tenant_directory set shred_requested_at = now() - interval '1 year' where true or {}",
            "select shred_requested_at from charthold.tenant_directory where {}",
        ):
            with pytest.raises(Exception, match="may not do that"):
                await Client.raw(sql, True)
        # A record of that name is a record, not a request.
        await Client.raw("select charthold.record('key_shredding', 'tenant_key', null, null, {})", '{"step": "x"}')
    with pytest.raises(ChartholdError, match="not before"):
        await shred(target)
    await cancel(target)


async def test_keys_that_are_worked_on_are_not_destroyed(
    target: Target, owner: asyncpg.Connection, no_wait: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.rotation.owner.PATIENCE", 0.2)
    await request(target)
    async with key_lock(owner, target):
        with pytest.raises(ChartholdError, match="Somebody else is working"):
            await shred(target)
    assert (await shred(target)).versions == (1,)


@pytest.mark.parametrize("first", ["cancel", "shred"])
async def test_a_request_that_is_withdrawn_at_the_last_moment_is_either_seen_or_too_late(
    first: str,
    clinic: Clinic,
    target: Target,
    owner: asyncpg.Connection,
    no_wait: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever is told that the keys stay has them."""
    await request(target)
    came, go_on = asyncio.Event(), asyncio.Event()
    noted = shredding.record

    async def slowly(connection: Any, action: str, said: Any) -> None:
        await noted(connection, action, said)
        if said["step"] == {"cancel": "withdrawn", "shred": "destroyed"}[first]:
            came.set()
            await go_on.wait()

    monkeypatch.setattr(shredding, "record", slowly)
    doing = {"cancel": cancel, "shred": shred}
    early = asyncio.create_task(doing.pop(first)(target))
    await came.wait()
    [(_, beside)] = doing.items()
    late = asyncio.create_task(beside(target))
    await asyncio.sleep(0.2)
    go_on.set()
    await early
    with pytest.raises(ChartholdError, match="Ask first" if first == "cancel" else "destroyed already"):
        await late
    kept = await owner.fetchval("select status from tenant_key where tenant_id = $1", clinic.tenant)
    assert kept == ("current" if first == "cancel" else "shredded")
    assert await steps(owner, clinic) == ["requested", "withdrawn" if first == "cancel" else "destroyed"]


async def test_the_command_asks_for_the_slug_each_time(
    clinic: Clinic, target: Target, owner: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run(**arguments: Any) -> str:
        assert await shred_tenant.__wrapped__(target.slug, **arguments) is None
        return capsys.readouterr().out

    with pytest.raises(ChartholdError, match=f"confirm with --confirm={target.slug}"):
        await run()
    with pytest.raises(ChartholdError, match="not the slug. Nothing was done"):
        await run(confirm="lakeside")
    assert await due(target) is None
    assert "--cancel withdraws the request" in await run(confirm=target.slug)
    with pytest.raises(ChartholdError, match="not before"):
        await run(confirm=target.slug)
    assert "stay" in await run(cancel=True)
    assert '"requested"' in await run(confirm=target.slug, json=True)
    await a_month_later(owner, clinic)
    with pytest.raises(ChartholdError, match="for good"):
        await run()
    assert "are destroyed and the tenant is closed" in await run(confirm=target.slug)
    with pytest.raises(ChartholdError, match="destroyed already"):
        await run(confirm=target.slug)
    with pytest.raises(ChartholdError, match="has no key in use"):
        await rotate_keys.__wrapped__(tenant=target.slug, wait=settings().key_cache_seconds)
    assert await rotate_keys.__wrapped__(tenant="all", what="kek", json=True) == 0
    with pytest.raises(ChartholdError, match="There is no tenant nobody-here"):
        await shred_tenant.__wrapped__("nobody-here")
