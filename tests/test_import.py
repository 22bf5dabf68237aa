"""The import against a real database: nothing is doubled, nothing good is lost, and no PHI is printed or stored."""

from __future__ import annotations

import asyncio
import json
import shutil
import uuid
from pathlib import Path

import asyncpg
import pytest

from core import ScopeError, find_tenant, provision_tenant, scope
from core.commands import family
from core.commands.import_synthea import import_export, import_synthea
from core.engine import ChartholdEngine
from core.provision import find_admin
from core.synthea import load as loading
from core.synthea.load import Loaded, load
from core.synthea.reader import Export
from core.tables import Client, Facility, User, UserActionAuditLog

pytestmark = pytest.mark.usefixtures("database")

HEADER = "Id,BIRTHDATE,DEATHDATE,SSN,FIRST,LAST,ADDRESS,CITY\n"


def slug() -> str:
    return f"t{uuid.uuid4().hex[:12]}"


def patient(number: int, *, last: str = "Nguyen", died: str = "") -> str:
    return f"00000000-0000-0000-0000-{number:012d},1980-02-29,{died},999-17-5017,Ana,{last},1 Main Street,Ulm\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "organizations.csv").write_text("Id,NAME,CITY,ADDRESS\no1,Main,Ulm,1 A\no2,Side,Ulm,2 B\n")
    (tmp_path / "providers.csv").write_text("Id,ORGANIZATION,NAME\np-1,o2,Ada Byron\n")
    (tmp_path / "patients.csv").write_text(HEADER + patient(1) + patient(2, died="2020-01-01"))
    return tmp_path


async def admin_scope(of: str):
    tenant = await find_tenant(of)
    assert tenant is not None
    return scope(tenant=tenant.tenant_id, actor=await find_admin(tenant.tenant_id), reason="test")


async def counts(of: str) -> tuple[int, int, int]:
    async with await admin_scope(of):
        return await Facility.count(), await User.count() - 1, await Client.count()


async def loaded(folder: Path, into: str) -> Loaded:
    tenant = await find_tenant(into)
    if tenant is None:
        await provision_tenant(slug=into, name="Test", admin_email=f"admin@{into}.example")
        tenant = await find_tenant(into)
        assert tenant is not None
    with Export(folder) as export:
        return await load(export, tenant=tenant.tenant_id, actor=await find_admin(tenant.tenant_id))


async def test_the_sample_is_loaded_whole_and_again_without_doubles(capsys: pytest.CaptureFixture[str]) -> None:
    here = slug()
    for new in (True, False):
        assert await import_export(tenant=here) == 0
        out = capsys.readouterr()
        assert out.out.startswith("63 facilities, 166 users beside the admin, 27 clients\n")
        assert ("made now" in out.out, "left as it is" in out.out) == (new, not new)
        assert "No home in patients.csv: DRIVERS, PASSPORT" in out.out
        assert out.err == ""
        assert await counts(here) == (63, 166, 27)


async def test_what_has_a_home_is_kept(sample: Path) -> None:
    here = slug()
    await loaded(sample, here)
    async with await admin_scope(here):
        site = await Facility.objects().get(Facility.name == "STURDY MEMORIAL HOSPITAL")
        assert site is not None
        assert (site.kind, site.phone, site.status) == ("hospital", "5082225200", "active")
        assert json.loads(site.address)["zip"] == "02703"
        assert json.loads(site.settings)["synthea"]["id"] == "5e765f2b-e908-3888-9fc7-df2cb87beb58"
        user = await User.objects().get(User.email == "ludivina.steuber.0f4db68f@providers.example")
        assert user is not None
        assert (user.full_name, user.role, user.status) == ("Ludivina Steuber", "clinician", "active")
        assert user.facility_scope == [site.id]
        client = await Client.objects().get(Client.mrn == "3edac2e3-d223-6fae-d515-daf96ef6bc76")
        assert client is not None
        assert (client.first_name, client.last_name, client.ssn) == ("Maynard46", "Mosciski958", "999-17-5017")
        assert str(client.date_of_birth) == "2014-10-06"
        assert client.address == {
            "street": "784 Stamm Lock Unit 46", "city": "Somerville", "state": "Massachusetts",
            "county": "Middlesex County", "zip": "02155", "lat": 42.36877442769006, "lon": -71.15168585038569,
        }  # fmt: skip


async def test_a_provider_sees_the_clients_of_the_own_facility_only(sample: Path) -> None:
    here = slug()
    await loaded(sample, here)
    async with await admin_scope(here) as opened:
        rows = await Client.select(Client.facility_id)
        facility = rows[0]["facility_id"]
        mine = sum(row["facility_id"] == facility for row in rows)
        users = await User.select(User.id, User.facility_scope)
    user = next(user["id"] for user in users if user["facility_scope"] == [facility])
    async with scope(tenant=opened.tenant, actor=user, reason="test"):
        assert await Client.count() == mine < 27


async def test_no_phi_of_the_sample_rests_in_plain_text(sample: Path, owner: asyncpg.Connection) -> None:
    await loaded(sample, slug())
    stored = ""
    for table in ("client", "user_action_audit_log"):
        stored += str(await owner.fetchval(f"select string_agg(t::text, ' ') from {table} as t"))
    assert "client" in stored
    lines = [line.split(",") for line in (sample / "patients.csv").read_text().splitlines()[1:]]
    phi = {value for line in lines for value in (line[3], line[8], line[16])}
    assert len(phi) > 70
    assert [value for value in phi if value in stored] == []


async def test_deathdate_makes_a_client_deceased(folder: Path) -> None:
    here = slug()
    await loaded(folder, here)
    async with await admin_scope(here):
        assert sorted(row["status"] for row in await Client.select(Client.status)) == ["active", "deceased"]


async def test_what_is_there_is_left_as_it_is(folder: Path) -> None:
    here = slug()
    await loaded(folder, here)
    async with await admin_scope(here):
        await Client.update({Client.last_name: "Changed"}, force=True)
        await User.update({User.full_name: "Changed"}).where(User.role == "clinician")
        await Facility.update({Facility.name: "Renamed"}).where(Facility.name == "Main")
    (folder / "patients.csv").write_text(HEADER + patient(1) + patient(3))
    result = await loaded(folder, here)
    assert (result.facilities.existing, result.users.existing) == (2, 1)
    assert (result.clients.created, result.clients.existing) == (1, 1)
    async with await admin_scope(here):
        assert sorted(row["last_name"] for row in await Client.select(Client.last_name)) == ["Changed"] * 2 + ["Nguyen"]
        assert await Facility.exists().where(Facility.name == "Renamed")


async def test_a_first_import_opens_no_phi(folder: Path) -> None:
    here = slug()
    await loaded(folder, here)
    async with await admin_scope(here):
        assert await UserActionAuditLog.count().where(UserActionAuditLog.action_type == "read") == 0


async def test_facilities_of_one_name_are_told_apart_by_their_place(folder: Path) -> None:
    lines = ["o1,Main,Ulm,1 A", "o2,Main,Ulm,2 B", "o3,Main,Ulm,2 B", "o4,Main,Ulm,2 B", "o5,Main,,"]
    (folder / "organizations.csv").write_text("Id,NAME,CITY,ADDRESS\n" + "\n".join(lines))
    here = slug()
    for _ in range(2):
        result = await loaded(folder, here)
        assert result.problems == []
        async with await admin_scope(here):
            names = await Facility.select(Facility.name).output(as_list=True)
        assert sorted(names) == ["Main", "Main ()", "Main (2 B, Ulm)", "Main (Ulm)", "Main (o4)"]


async def test_a_facility_made_by_hand_is_found_by_its_name(folder: Path) -> None:
    here = slug()
    made = await provision_tenant(slug=here, name="Test", admin_email="a@test.example")
    async with scope(tenant=made.tenant_id, actor=made.admin_id, reason="test"):
        await Facility(name="Side").save()
    result = await loaded(folder, here)
    assert (result.facilities.created, result.facilities.existing) == (1, 1)
    assert await counts(here) == (2, 1, 2)


async def test_rows_that_the_database_refuses_are_found_one_by_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "BATCH", 40)
    make = loading._client

    def spoilt(row, facilities):
        client = make(row, facilities)
        if row.id.endswith(("17", "30")):
            client.status = "unknown"
        return client

    monkeypatch.setattr(loading, "_client", spoilt)
    (folder / "patients.csv").write_text(HEADER + "".join(patient(n) for n in range(100)))
    here = slug()
    result = await loaded(folder, here)
    assert [str(problem) for problem in result.problems] == [
        "patients.csv:19: is refused by the database: client_status_known",
        "patients.csv:32: is refused by the database: client_status_known",
    ]
    assert (result.clients.created, result.clients.skipped) == (98, 2)
    assert (await counts(here))[2] == 98


async def test_a_refused_organization_takes_its_providers_with_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = loading._facility

    def spoilt(row, name):
        facility = make(row, name)
        facility.kind = "unknown" if row.id == "o2" else facility.kind
        return facility

    monkeypatch.setattr(loading, "_facility", spoilt)
    result = await loaded(folder, slug())
    assert [str(problem) for problem in result.problems] == [
        "organizations.csv:3: is refused by the database: facility_kind_known",
        "providers.csv:2: has an ORGANIZATION that no loaded organization has as its Id",
    ]
    assert result.clients.created == 2


async def test_two_imports_at_once_double_nothing(folder: Path) -> None:
    (folder / "patients.csv").write_text(HEADER + "".join(patient(n) for n in range(300)))
    here = slug()
    (folder / "providers.csv").write_text("Id,ORGANIZATION,NAME\n")
    await loaded(folder, here)
    (folder / "patients.csv").write_text(HEADER + "".join(patient(n) for n in range(900)))
    results = await asyncio.gather(loaded(folder, here), loaded(folder, here))
    assert all(result.problems == [] for result in results)
    assert sum(result.clients.created for result in results) == 600
    assert (await counts(here))[2] == 900


async def test_a_failure_of_the_whole_is_not_blamed_on_rows(folder: Path) -> None:
    here = slug()
    made = await provision_tenant(slug=here, name="Test", admin_email="a@test.example")
    async with scope(tenant=made.tenant_id, actor=made.admin_id, reason="test"):
        reader = User(email="r@test.example", full_name="R", role="auditor", status="active")
        await reader.save()
    with Export(folder) as export, pytest.raises(ScopeError, match="may not do that"):
        await load(export, tenant=made.tenant_id, actor=reader.id)
    assert await counts(here) == (0, 1, 0)


async def test_a_stopped_import_keeps_what_was_committed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BATCH", 10)
    (folder / "patients.csv").write_text(HEADER + "".join(patient(n) for n in range(1_000)))
    here = slug()
    await provision_tenant(slug=here, name="Test", admin_email="a@test.example")
    running = asyncio.create_task(loaded(folder, here))
    while (await counts(here))[2] < 20:
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    kept = (await counts(here))[2]
    assert 20 <= kept < 1_000
    result = await loaded(folder, here)
    assert (result.clients.created, result.clients.existing) == (1_000 - kept, kept)


# -- the command ---------------------------------------------------------------------------------------------------


async def test_skipped_rows_are_reported_and_the_status_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "patients.csv").write_text(HEADER + patient(1) + patient(2, last="") + patient(1) + patient(4))
    assert await import_export(str(folder), slug(), quiet=True) == family.SKIPPED == 3
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err == "patients.csv:3: has no LAST name\npatients.csv:4: has the Id of a row before it\n"


async def test_quiet_is_silent(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await import_export(str(folder), slug(), quiet=True) == 0
    assert capsys.readouterr() == ("", "")


async def test_json_is_all_that_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "patients.csv").write_text(HEADER + patient(1) + patient(2, last=""))
    here = slug()
    assert await import_export(str(folder), here, json=True) == 3
    out = capsys.readouterr()
    assert out.err == ""
    result = json.loads(out.out)
    assert result["tenant"] == here
    assert result["holds"] == {"facilities": 2, "users_beside_the_admin": 1, "clients": 1}
    assert result["clients"] == {"created": 1, "existing": 0, "skipped": 1}
    assert result["skipped"] == [{"file": "patients.csv", "line": 3, "what": "has no LAST name"}]


async def test_the_actor_is_named_by_email_or_id(folder: Path, owner: asyncpg.Connection) -> None:
    here = slug()
    made = await provision_tenant(slug=here, name="Test", admin_email="a@test.example")
    async with scope(tenant=made.tenant_id, actor=made.admin_id, reason="test"):
        second = User(email="b@test.example", full_name="B", role="admin", status="active")
        await second.save()
    for actor in ("B@test.example", str(second.id)):
        assert await import_export(str(folder), here, actor=actor, quiet=True) == 0
    by = await owner.fetch(
        "select distinct user_id from user_action_audit_log where tenant_id = $1 and table_name = 'client'"
        " and action_type = 'insert'",
        made.tenant_id,
    )
    assert [row["user_id"] for row in by] == [second.id]


def run(*args: str, **kwargs: object) -> int:
    """The command as the command line calls it; its exit status."""
    with pytest.raises(SystemExit) as caught:
        import_synthea(*args, **kwargs)
    return int(caught.value.code or 0)


@pytest.mark.parametrize(
    ("args", "kwargs", "sentence"),
    [
        (("/nowhere",), {}, "There is no folder /nowhere."),
        ((), {"tenant": "Bad Slug"}, "--tenant takes a slug"),
        ((), {"tenant": True}, "--tenant needs a value"),
        ((), {"json": "yes"}, "--json is said or left out"),
        ((), {"tenannt": "x"}, "import_synthea has no option --tenannt. It takes --directory, --tenant,"),
        ((), {"tenant": "all"}, "This is done to one tenant at a time."),
        (("one", "two"), {}, "import_synthea takes one argument beside its options, and got 2, as in: piccolo core"),
        (("one",), {"directory": "two"}, "import_synthea got directory twice"),
        (("-h",), {}, "Options begin with --"),
    ],
)
async def test_a_mistake_is_one_sentence_and_status_2(
    args: tuple[str, ...], kwargs: dict[str, object], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = await asyncio.to_thread(run, *args, **kwargs)
    assert status == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.startswith(sentence)
    assert out.err.count("\n") == 1


async def test_a_bad_header_stops_before_a_tenant_is_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "patients.csv").write_text(patient(1))
    here = slug()
    assert await asyncio.to_thread(run, str(folder), tenant=here) == 2
    assert "patients.csv has no header" in capsys.readouterr().err
    assert await find_tenant(here) is None


async def test_an_export_without_organizations_has_no_place_for_its_patients(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "organizations.csv").write_text("Id,NAME\n")
    assert await asyncio.to_thread(run, str(folder), tenant=slug()) == 2
    assert "the patients have no facility" in capsys.readouterr().err
    (folder / "patients.csv").write_text(HEADER)
    (folder / "providers.csv").write_text("Id,ORGANIZATION,NAME\n")
    assert await import_export(str(folder), slug(), quiet=True) == 0


async def test_a_database_without_tables_says_what_to_run(
    database: ChartholdEngine, owner: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    was, empty = database.database, f"charthold_empty_{uuid.uuid4().hex[:12]}"
    await owner.execute(f"create database {empty}")
    await database.use(empty)
    try:
        assert await asyncio.to_thread(run, tenant=slug()) == 2
        assert "piccolo migrations forwards core" in capsys.readouterr().err
    finally:
        await database.use(was)
        await owner.execute(f"drop database {empty} with (force)")


async def test_a_suspended_tenant_is_not_loaded_into(folder: Path, owner: asyncpg.Connection) -> None:
    here = slug()
    made = await provision_tenant(slug=here, name="Test", admin_email="a@test.example")
    await owner.execute(
        "update charthold.tenant_directory set status = 'suspended' where tenant_id = $1", made.tenant_id
    )
    with pytest.raises(family.Failure, match="is suspended"):
        await import_export(str(folder), here)


def test_ctrl_c_is_a_sentence_and_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    @family.command(stopped="Stopped. All is well.")
    async def work() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        work()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "Stopped. All is well.\n"


def test_an_unexpected_error_shows_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    @family.command()
    def work() -> None:
        raise ValueError("Nguyen")

    with pytest.raises(SystemExit) as caught:
        work()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("This should not happen: ValueError.")


def test_the_shipped_sample_carries_its_licence_note(sample: Path) -> None:
    note = (sample.parent / "README.md").read_text()
    assert "Apache License 2.0" in note
    assert sorted(path.name for path in sample.iterdir()) == ["organizations.csv", "patients.csv", "providers.csv"]


def test_a_folder_with_a_tilde_is_the_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, folder / "inner")
    monkeypatch.setenv("HOME", str(folder))
    from core.commands.import_synthea import _folder

    assert _folder("~/inner") == folder / "inner"
    assert _folder("sample") != Path("sample")
    assert _folder("./sample") == Path("sample")
