"""The examples for applications run as they stand."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from piccolo.apps.user.tables import BaseUser

from core import ConfigurationError, list_tenants, set_tenant_status
from core.engine import ChartholdEngine
from core.errors import ScopeError
from core.queries.shape import SHAPES
from core.schema import declarations, objects_of
from core.schema.declarations import shared_objects
from core.tables import Client, Tenant, User, UserActionAuditLog
from piccolo_conf import APP_REGISTRY
from tests.conftest import Clinic
from tests.ledger import create
from tests.test_playground import REPOSITORY, child

PAGE = (REPOSITORY / "docs" / "applications.md").read_text(encoding="utf-8")
CONF, MIDDLEWARE, SIGNING_IN, SHOWN_TO, PYDANTIC, TABLES, BROUGHT, EVERY_TENANT, FIXTURES, BUILDER = re.findall(
    r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL
)
CONFIG = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = session\nasyncio_default_test_loop_scope = session\n"
TESTS = """
from datetime import date
from core.tables import Client, Facility

async def made(clinic):
    site = Facility(name="Main street")
    await site.save()
    return await somebody(clinic, site)

async def test_one(at_work):
    bo = await made(at_work)
    assert await Client.select(Client.id) == [{"id": bo.id}]

async def test_two(at_work):
    assert not await Client.exists()
    await made(at_work)
    assert await Client.count() == 1
"""


def ran(source: str, **names: Any) -> dict[str, Any]:
    """What the example defines."""
    namespace: dict[str, Any] = {"__name__": __name__, **names}
    exec(compile(source, "applications.md", "exec"), namespace)
    return namespace


@dataclass
class SignedIn:
    tenant_id: UUID
    id: UUID


def test_a_project_that_installs_it_has_the_same_configuration() -> None:
    assert ran(CONF)["APP_REGISTRY"].apps == APP_REGISTRY.apps


async def test_a_request_has_a_scope_until_what_it_began_is_done(lakeside: Clinic) -> None:
    seen: list[int] = []

    async def app(request: Any, receive: Any, send: Any) -> None:
        seen.append(await Client.count())
        await asyncio.create_task(later())

    async def later() -> None:
        seen.append(await Client.count())

    async def signed_in(request: Any) -> SignedIn | None:
        return SignedIn(lakeside.tenant, lakeside.admin) if request["user"] else None

    scoped = ran(MIDDLEWARE)["Scoped"](app, signed_in)
    request = {"type": "http", "client": ("127.0.0.1", 1), "user": "ada"}
    await scoped(request, None, None)
    assert seen == [1, 1]
    with pytest.raises(ScopeError, match="No scope is open"):
        await scoped(request | {"user": ""}, None, None)


async def test_who_signs_in_is_found_by_an_address_and_each_attempt_is_on_record(lakeside: Clinic) -> None:
    async def right(user: User, password: str) -> bool:
        return password == "right"

    page = User(email="login@lakeside.example", full_name="Login page", role="system", status="active")
    async with lakeside.as_admin():
        await page.save()
        somebody = await User.objects().get(User.id == lakeside.clinician)
        slug = (await Tenant.objects().first()).slug
    sign_in = ran(SIGNING_IN)["sign_in"]
    asked = somebody.email.upper()
    assert await sign_in("nowhere", asked, "right", page.id, right) is None
    assert await sign_in(slug, "nobody@lakeside.example", "right", page.id, right) is None
    assert await sign_in(slug, asked, "wrong", page.id, right) is None
    assert (await sign_in(slug, asked, "right", page.id, right)).id == somebody.id
    async with lakeside.as_admin():
        log = UserActionAuditLog
        of_theirs = (log.user_id == somebody.id) & log.action_type.is_in(["login", "login_failed"])
        kinds = await log.select(log.action_type).where(of_theirs).order_by(log.occurred_at).output(as_list=True)
    assert kinds == ["login_failed", "login"]


async def test_a_model_of_what_is_given_makes_a_row(lakeside: Clinic) -> None:
    model = ran(PYDANTIC)["ClientIn"]
    assert not {"id", "tenant_id", "created_at", "updated_at", "last_name_folded"} & set(model.model_fields)
    said = model(
        facility_id=lakeside.facility,
        first_name="Cy",
        last_name="Model",
        date_of_birth=date(2000, 1, 1),
    )
    async with lakeside.as_admin():
        cy = Client(**said.model_dump(exclude_unset=True))
        await cy.save()
        assert cy.status == "active"
        assert (cy.tenant_id, cy.created_at) == (lakeside.tenant, None)
        await cy.refresh()
        assert cy.created_at is not None


async def test_a_column_of_ours_is_for_the_roles_that_the_application_names(
    lakeside: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "shown_to", {})  # put back afterwards
    SHAPES.clear()
    ran(SHOWN_TO)
    async with lakeside.as_clinician():
        with pytest.raises(ScopeError, match=r"ssn of client: for admin, billing"):
            await Client.objects().first()
        mine = Client.select(Client.notes).where(Client.id == lakeside.client)
        assert await mine == [{"notes": "afraid of needles"}]
    SHAPES.clear()


async def test_a_catalogue_stands_beside_the_tables_of_tenants(lakeside: Clinic, database: ChartholdEngine) -> None:
    made = ran(TABLES)
    code, diagnosis = made["Code"], made["Diagnosis"]
    await create(database, code, diagnosis)
    async with lakeside.as_admin():
        await code(name="flu").save()
        await diagnosis(client_id=lakeside.client, code_id=1).save()
        assert await diagnosis.select(diagnosis.code_id.name) == [{"code_id.name": "flu"}]


def test_tables_that_piccolo_brings_are_granted_by_the_app_that_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declarations, "_shared", dict(declarations._shared))
    monkeypatch.setattr(BaseUser, "waived", {}, raising=False)
    ran(BROUGHT)
    assert [item.title for item in shared_objects("clinic")] == ["clinic_uses_piccolo_user"]
    assert objects_of(BaseUser) == ()
    assert {c._meta.name for c in BaseUser._meta.columns} > set(BaseUser.waived)


async def test_what_no_migration_can_do_is_done_in_every_tenant_that_is_open(
    lakeside: Clinic, hillside: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    async def phones(clinic: Clinic) -> list[str]:
        async with clinic.as_admin():
            return [row["phone"] or "" for row in await Client.select(Client.phone).order_by(Client.id)]

    for clinic in (lakeside, hillside):
        async with clinic.as_admin():
            for at in range(101):
                await Client(
                    facility_id=clinic.facility,
                    first_name="Cy",
                    last_name=f"{at}",
                    date_of_birth=date(2000, 1, 1),
                    status="active",
                    phone=" 617 555 0101",
                ).save()
    before = await phones(hillside)
    await set_tenant_status(tenant=hillside.tenant, actor=hillside.admin, status="suspended", reason="test")
    await ran(EVERY_TENANT)["tidy_phones"]()
    assert capsys.readouterr().out == "hillside is suspended, and waits until it is open and has an admin\n"
    assert not any(phone.startswith(" ") for phone in await phones(lakeside))
    assert await phones(hillside) == before
    await set_tenant_status(tenant=hillside.tenant, actor=hillside.admin, status="active", reason="test")
    await ran(EVERY_TENANT)["tidy_phones"]()
    assert not any(phone.startswith(" ") for phone in await phones(hillside))


async def test_the_tenants_are_listed_by_the_owner_alone(
    lakeside: Clinic, hillside: Clinic, database: ChartholdEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = {tenant.slug: (tenant.tenant_id, tenant.admin_id) for tenant in await list_tenants()}
    assert listed == {"lakeside": (lakeside.tenant, lakeside.admin), "hillside": (hillside.tenant, hillside.admin)}
    connect = type(database).connect
    monkeypatch.setattr(type(database), "connect", lambda self, *, owner: connect(self, owner=False))
    with pytest.raises(ConfigurationError, match="by the owner of the schema"):
        await list_tenants()


def test_tests_of_an_application_have_a_database_of_their_own_and_roll_back(
    database: ChartholdEngine, tmp_path: Path
) -> None:
    environ = child(None, tmp_path)
    (tmp_path / "test_clinic.py").write_text(
        FIXTURES + BUILDER.replace("\n\n", "\nfrom core.tables import Client\n\n", 1) + TESTS, encoding="utf-8"
    )
    (tmp_path / "pytest.ini").write_text(CONFIG, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_clinic.py"],
        cwd=tmp_path, env=environ, capture_output=True, text=True,
    )  # fmt: skip
    assert "2 passed" in done.stdout, done.stdout
