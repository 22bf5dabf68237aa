"""``new --auto`` writes the whole truth: it sees what was added, removed and changed, and writes the same every time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from piccolo.columns import (
    UUID,
    Array,
    BigInt,
    Bytea,
    Column,
    Decimal,
    Email,
    ForeignKey,
    Integer,
    Numeric,
    Text,
    Varchar,
)  # fmt: skip
from piccolo.constraints import Check as PiccoloCheck
from piccolo.table import Table, create_table_class

from core.columns import BlindIndex, EncryptedDate, EncryptedText
from core.errors import MigrationError
from core.schema import (
    Check,
    Comment,
    Domain,
    Function,
    Grant,
    Index,
    Namespace,
    Partitions,
    Policy,
    PrimaryKey,
    References,
    Role,
    RowSecurity,
    SchemaGrant,
    SchemaObject,
    Statement,
    StorageParameters,
    Trigger,
    Unique,
    objects_of,
)
from tests.schema_app.fixtures import connection, database, project, server  # noqa: F401
from tests.schema_app.project import catalog, changes, table

ROOT = Path(__file__).parent.parent


def function(
    body: str = "return new;", returns: str = "trigger", execute_to: tuple[str, ...] = ("app_toy",)
) -> Function:
    return Function(
        "toy.stamp",
        source=f"""
            -- Why it is there.
            create function toy.stamp() returns {returns} language plpgsql as $$
            begin
                {body}
            end
            $$;
        """,
        execute_to=execute_to,
    )


def shared(**changed: object) -> list:
    """What the toy app shares; a keyword replaces, or with None removes, one of them."""
    objects = {
        "role": Role("app_toy", application=False),
        "namespace": Namespace("toy"),
        "schema_grant": SchemaGrant(schema="toy", to="app_toy"),
        "domain": Domain("toy.code", type="text", check="length(value) < 20"),
        "function": function(),
        "statement": Statement(
            "note", forwards="comment on schema toy is 'one'", backwards="comment on schema toy is null"
        ),
    }
    return [item for item in {**objects, **changed}.values() if item is not None]


def objects(**changed: object) -> list:
    """The same for what hangs on the table."""
    found = {
        "primary_key": PrimaryKey("item_pkey", columns=("id", "code")),
        "unique": Unique("item_code_key", columns=("code", "size"), nulls_distinct=False),
        "check": Check("item_size_positive", condition="size > 0"),
        "index": Index("item_big", columns=("code", "(size + 1) desc"), where="size > 10", include=("note",)),
        "references": References("item_shelf_fkey", columns=("shelf",), to_table="shelf", to_columns=("id",)),
        "trigger": Trigger(
            "stamp", timing="before", events=("insert", "update"), function="toy.stamp", columns=("size",)
        ),
        "row_security": RowSecurity(),
        "policy": Policy("sized", command="select", using="size > 1", to=("app_toy",)),
        "grant": Grant(privileges=("select", "insert"), to="app_toy"),
        "column_grant": Grant(privileges=("update",), to="app_toy", columns=("size",)),
        "comment": Comment("An item's \\ 'quoted'\ntext."),
        "column_comment": Comment("How big.", column="size"),
        "storage": StorageParameters({"fillfactor": 80, "autovacuum_enabled": False}),
    }
    return [item for item in {**found, **changed}.values() if item is not None]


def shelf() -> type[Table]:
    return table("Shelf", [], id=UUID(primary_key=True, default=None), name=Text())


def item(*declared: object) -> type[Table]:
    columns = {"id": BareId(default=None, primary_key=True), "shelf": UUID(default=None), "note": Text(default="")}
    columns |= {"code": Varchar(length=20, default=None), "size": Integer(default=None, null=True)}
    return table("Item", declared, **columns)


async def insert_as_owner(connection, name: str, values: str) -> None:
    """The owner is bound by the policies too, so they are lifted for a moment."""
    await connection.execute(f"""
        alter table {name} no force row level security;
        insert into {name} {values};
        alter table {name} force row level security;
    """)


class BareId(UUID):
    """A key that leaves PRIMARY KEY to the declaration, as tables of tenants do."""

    @property
    def ddl(self) -> str:
        return f'"{self._meta.db_column_name}" uuid not null'


@pytest.fixture
async def declared(project):  # noqa: F811
    project.declare(item(*objects()), shelf(), shared=shared())
    return project


async def test_a_table_is_born_with_all_that_is_declared(declared, connection):
    empty = await catalog(connection)
    source = await declared.new()
    for line in (
        "manager.add_role(", "manager.add_namespace(", "manager.add_domain(", "manager.add_function(",
        "manager.add_statement(", "manager.add_schema_grant(", "manager.add_primary_key(", "manager.add_unique(",
        "manager.add_check(", "manager.add_index(", "manager.add_references(", "manager.add_trigger(",
        "manager.add_row_security(", "manager.add_policy(", "manager.add_grant(", "manager.add_comment(",
        "manager.add_storage_parameters(",
    ):  # fmt: skip
        assert line in source
    await declared.up()
    assert await declared.drift(connection) == []
    full = await catalog(connection)
    await declared.down("all")
    assert changes(empty, await catalog(connection)) == {}
    await declared.up()
    assert changes(full, await catalog(connection)) == {}


async def test_the_second_run_finds_nothing(declared):
    assert await declared.new()
    assert await declared.new() == ""


async def test_sql_of_several_lines_stays_readable(declared):
    source = await declared.new()
    assert 'source="""-- Why it is there.\ncreate function toy.stamp() returns trigger' in source


async def test_tables_stand_in_the_order_of_their_references(declared):
    source = await declared.new()
    assert source.index('class_name="Shelf"') < source.index('class_name="Item"')


CHANGED = {
    "check": Check("item_size_positive", condition="size > 1"),
    "unique": Unique("item_code_key", columns=("code",)),
    "index": Index("item_big", columns=("code",), unique=True),
    "references": References(
        "item_shelf_fkey", columns=("shelf",), to_table="shelf", to_columns=("id",), on_delete="cascade"
    ),
    "trigger": Trigger(
        "stamp", timing="after", events=("insert",), function="toy.stamp", when="new.size > 3", args=("it's", "\\")
    ),
    "row_security": RowSecurity(forced=False),
    "policy": Policy("sized", command="all", using="size > 2", check="size > 3", restrictive=True),
    "grant": Grant(privileges=("select", "delete"), to="app_toy"),
    "column_grant": Grant(privileges=("update",), to="app_toy", columns=("size", "note")),
    "comment": Comment("Another."),
    "column_comment": Comment("Another.", column="size"),
    "storage": StorageParameters({"fillfactor": 70}),
    "primary_key": PrimaryKey("item_pkey", columns=("id",)),
}
SHARED_CHANGED = {
    "domain": Domain("toy.code", type="text", check="length(value) < 30"),
    "function": function("new.size := 1; return new;"),
    "statement": Statement(
        "note", forwards="comment on schema toy is 'two'", backwards="comment on schema toy is null"
    ),
    "schema_grant": SchemaGrant(schema="toy", privileges=("usage", "create"), to="app_toy"),
}


@pytest.mark.parametrize("kind", [*CHANGED, *SHARED_CHANGED])
async def test_a_changed_object_is_seen_and_can_be_undone(declared, connection, kind):
    await declared.new()
    await declared.up()
    before = await catalog(connection)
    if kind in CHANGED:
        declared.declare(item(*objects(**{kind: CHANGED[kind]})), shelf(), shared=shared())
    else:
        declared.declare(item(*objects()), shelf(), shared=shared(**{kind: SHARED_CHANGED[kind]}))
    assert await declared.new()
    await declared.up()
    assert await declared.drift(connection) == []
    after = await catalog(connection)
    assert changes(before, after)
    await declared.down()
    assert changes(before, await catalog(connection)) == {}
    await declared.up()
    assert changes(after, await catalog(connection)) == {}
    assert await declared.new() == ""


@pytest.mark.parametrize("kind", list(CHANGED))
async def test_a_removed_object_is_seen_and_can_be_undone(declared, connection, kind):
    await declared.new()
    await declared.up()
    before = await catalog(connection)
    declared.declare(item(*objects(**{kind: None})), shelf(), shared=shared())
    source = await declared.new()
    assert "manager.drop_" in source
    await declared.up()
    assert await declared.drift(connection) == []
    await declared.down()
    assert changes(before, await catalog(connection)) == {}


async def test_a_removed_table_goes_with_everything_and_comes_back(declared, connection):
    await declared.new()
    await declared.up()
    before = await catalog(connection)
    declared.declare(shelf(), shared=shared())
    await declared.new()
    await declared.up()
    assert await declared.drift(connection) == []
    await declared.down()
    assert changes(before, await catalog(connection)) == {}


async def test_a_function_that_triggers_need_changes_in_place(declared):
    await declared.new()
    declared.declare(item(*objects()), shelf(), shared=shared(function=SHARED_CHANGED["function"]))
    source = await declared.new()
    assert "manager.replace_function(" in source
    assert "manager.drop_function(" not in source


async def test_who_may_call_a_function_changes_in_place(declared, connection):
    await declared.new()
    declared.declare(item(*objects()), shelf(), shared=shared(function=function(execute_to=())))
    assert "manager.replace_function(" in await declared.new()
    await declared.up()
    assert await declared.drift(connection) == []


async def test_a_function_with_another_result_is_made_anew(project, connection):  # noqa: F811
    project.declare(shared=shared())
    await project.new()
    await project.up()
    before = await catalog(connection)
    project.declare(shared=shared(function=function("return 1;", returns="integer")))
    source = await project.new()
    assert "manager.drop_function(" in source
    assert "manager.add_function(" in source
    await project.up()
    assert await project.drift(connection) == []
    await project.down()
    assert changes(before, await catalog(connection)) == {}


async def test_the_condition_of_piccolos_own_check_is_compared(project, connection):  # noqa: F811
    def ward(condition: str) -> type[Table]:
        class Ward(Table, tablename="ward"):
            beds = Integer(default=0)
            beds_known = PiccoloCheck(condition)

        return Ward

    project.declare(ward("beds >= 0"))
    assert "manager.add_check(" in await project.new()
    project.declare(ward("beds >= 1"))
    source = await project.new()
    assert 'condition="beds >= 0"' in source
    assert 'condition="beds >= 1"' in source
    await project.up()
    assert await project.drift(connection) == []
    assert await project.new() == ""


async def test_a_renamed_object_is_renamed(declared, connection):
    await declared.new()
    await declared.up()
    renamed = {
        "primary_key": PrimaryKey("item_key", columns=("id", "code")),
        "policy": Policy("by_size", command="select", using="size > 1", to=("app_toy",)),
        "index": Index("item_large", columns=("code", "(size + 1) desc"), where="size > 10", include=("note",)),
    }
    declared.declare(item(*objects(**renamed)), shelf(), shared=shared())
    source = await declared.new()
    assert source.count("manager.rename_object(") == 3
    assert "manager.drop_" not in source
    before = await catalog(connection)
    await declared.up()
    assert await declared.drift(connection) == []
    await declared.down()
    assert changes(before, await catalog(connection)) == {}


async def test_a_renamed_table_keeps_its_rows_and_its_objects(project, connection):  # noqa: F811
    def named(name: str) -> type[Table]:
        return table(name, objects(primary_key=None, references=None), **columns())

    def columns() -> dict:
        return {
            "code": Varchar(length=20, default=None),
            "size": Integer(default=None, null=True),
            "note": Text(default=""),
        }

    project.declare(named("Item"), shared=shared())
    await project.new()
    await project.up()
    await insert_as_owner(connection, "item", "(code, size, note) values ('a', 3, '')")
    before = await catalog(connection)
    project.declare(named("Thing"), shared=shared())
    source = await project.new(auto_input="y")
    assert "manager.rename_table(" in source
    assert "manager.drop_" not in source
    await project.up()
    await connection.execute("alter table thing no force row level security")
    assert await connection.fetchval("select count(*) from thing") == 1
    await connection.execute("alter table thing force row level security")
    assert (await catalog(connection))["policy"].keys() == {"sized on public.thing"}
    assert await project.new() == ""
    await project.down()
    assert changes(before, await catalog(connection)) == {}


async def test_a_renamed_column_keeps_its_values(project, connection):  # noqa: F811
    def with_column(name: str) -> type[Table]:
        return table(
            "Item",
            [Check("item_positive", condition=f"{name} > 0"), Index("item_sized", columns=(name,))],
            **{"code": Varchar(length=20, default=None), name: Integer(default=None, null=True)},
        )

    project.declare(with_column("size"))
    await project.new()
    await project.up()
    await connection.execute("insert into item (code, size) values ('a', 3)")
    before = await catalog(connection)
    project.declare(with_column("extent"))
    assert "manager.rename_column(" in await project.new(auto_input="y")
    await project.up()  # the index has another column now; either way it is built while there are writers
    assert await project.drift(connection) == []
    assert await connection.fetchval("select extent from item") == 3
    assert await project.new() == ""
    await project.down()
    assert await connection.fetchval("select size from item") == 3
    assert changes(before, await catalog(connection)) == {}


async def test_a_column_of_another_type_has_its_length_digits_and_default_either_way(project, connection):  # noqa: F811
    """Piccolo writes down the parameters that differ; what is made anew takes those that do not, too."""
    code, kind, memo = Varchar(length=60, default="letter"), Varchar(length=60, default=None), Varchar(default=None)
    price, size = Numeric(digits=(8, 3)), Integer(default=0)
    project.declare(table("Item", code=code, kind=kind, memo=memo, price=price, size=size))
    await project.new()
    await project.up()
    before = await catalog(connection)
    code, kind, memo = Text(default="letter"), Email(length=60, default=None), Text(default=None)
    price, size = Decimal(digits=(8, 3)), BigInt(default=0)
    project.declare(table("Item", code=code, kind=kind, memo=memo, price=price, size=size))
    await project.new()
    await project.up()
    assert await project.drift(connection) == []
    assert await project.new() == ""
    await project.down()
    assert changes(before, await catalog(connection)) == {}


async def test_a_column_of_one_name_renamed_in_one_table_is_still_added_in_another(project):  # noqa: F811
    project.declare(table("Item", size=Integer()), table("Shelf", name=Text()))
    await project.new()
    project.declare(table("Item", extent=Integer()), table("Shelf", name=Text(), extent=Integer()))
    source = await project.new(auto_input="y")
    assert "manager.rename_column(" in source
    assert source.count("manager.add_column(") == 1


class Branch(Table):
    above = ForeignKey("Branch", null=True)
    nearest = ForeignKey("tests.test_autogenerate.Branch", null=True)


async def test_a_reference_by_name_is_one_to_the_table(project):  # noqa: F811
    project.declare(Branch)
    assert "class Branch(Table" in await project.new()
    assert await project.new() == ""


async def test_partitioning_is_decided_once(project, connection):  # noqa: F811
    def log(*declared: object) -> type[Table]:
        return table("Log", declared, at=Integer(default=None), note=Text(default=""))

    plain = log()
    assert plain._meta.primary_key is not None

    class Log(Table, tablename="log"):
        id = BareId(primary_key=True, default=None)
        at = Integer(default=None)
        schema_objects = (Partitions("range (at)"), Index("log_at", columns=("at",)))

    project.declare(Log)
    assert "manager.add_partitions(" in await project.new()
    await project.up()
    assert await project.drift(connection) == []
    full = await catalog(connection)
    await project.down()
    await project.up()
    assert changes(full, await catalog(connection)) == {}
    Log.schema_objects = (Partitions("list (at)"), Index("log_at", columns=("at",)))
    with pytest.raises(MigrationError, match="cannot change that"):
        await project.new()
    Log.schema_objects = (Index("log_at", columns=("at",)),)
    with pytest.raises(MigrationError, match="cannot partition log"):
        await project.new()


def test_what_must_not_be_is_refused_where_it_is_written():
    with pytest.raises(MigrationError, match="restrict or cascade"):
        References("a", columns=("b",), to_table="c", to_columns=("d",), on_delete="set null")
    with pytest.raises(MigrationError, match="everybody"):
        Grant(to="public")
    with pytest.raises(MigrationError, match="everybody"):
        Function("f", source="create function f() returns int language sql as 'select 1'", execute_to=("public",))
    with pytest.raises(MigrationError, match="no way back"):
        Statement("s", forwards="select 1")
    with pytest.raises(MigrationError, match="twice"):
        objects_of(table("Item", [Check("a", condition="true"), Check("a", condition="false")]))
    with pytest.raises(MigrationError, match="share a name"):
        objects_of(table("Item", [Index("a", columns=("code",)), Unique("a", columns=("code",))]))
    with pytest.raises(MigrationError, match="both give select"):
        objects_of(table("Item", [Grant(to="r"), Grant(privileges=("insert", "select"), to="r")]))


async def test_two_tables_do_not_share_the_name_of_an_index(project):  # noqa: F811
    project.declare(
        table("Item", [Index("by_code", columns=("code",))]), table("Shelf", [Index("by_code", columns=("code",))])
    )
    with pytest.raises(MigrationError, match="share a name"):
        await project.new()


async def test_foreign_keys_between_plain_tables_order_them(project, connection):  # noqa: F811
    class Band(Table, tablename="band"):
        name = Varchar()

    class Album(Table, tablename="album"):
        band = ForeignKey(references=Band)

    project.declare(Album, Band)
    source = await project.new()
    assert source.index('class_name="Band"') < source.index('class_name="Album"')
    await project.up()
    assert await project.drift(connection) == []
    await project.down()


GENERATE = """
import asyncio, sys, pathlib
import tests.schema_app.project as toy, tests.test_autogenerate as cases
from piccolo.apps.migrations.commands import new
project = toy.Project(pathlib.Path(sys.argv[1]))
extra = [toy.table(f"Extra{n}", n=toy.Integer()) for n in range(6)]
project.declare(cases.item(*cases.objects()), cases.shelf(), *extra, shared=cases.shared())
new.now = lambda: __import__("datetime").datetime(2026, 1, 1)
print(asyncio.run(project.new()))
"""


def test_generated_steps_are_the_same_whatever_the_hash_seed(tmp_path):
    written = set()
    for seed in ("0", "1", "2", "3"):
        done = subprocess.run(
            [sys.executable, "-c", GENERATE, str(tmp_path / seed)],
            capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed},
        )  # fmt: skip
        written.add(done.stdout)
    assert len(written) == 1


async def test_a_step_to_be_written_by_hand_has_its_way_back_prepared(project, connection):  # noqa: F811
    from piccolo.apps.migrations.commands import new

    made = await new._create_new_migration(project.config, description="it's")
    source = Path(made.migration_path).read_text()
    assert "manager.add_raw_backwards(run_backwards)" in source
    await project.up()
    assert await connection.fetchval("select app_name from migration") == "toy"
    await project.down()


async def test_the_command_line_says_a_mistake_in_one_sentence(project):  # noqa: F811
    from piccolo.apps.migrations.commands import new

    project.declare(table("Item", [Check("a", condition="true"), Check("a", condition="false")]))
    with pytest.raises(SystemExit, match="is declared twice"):
        await new._create_new_migration(project.config, auto=True)


async def test_a_statement_that_a_person_wrote_is_not_undone(project, connection):  # noqa: F811
    ours = Statement("ours", forwards="create sequence ours", backwards="drop sequence ours")
    project.declare(table("Item"), shared=[ours])
    await project.new()
    project.write("2000", "manager.add_statement(name='theirs', forwards='create sequence theirs',"
        " backwards='drop sequence theirs')")  # fmt: skip
    await project.up()
    assert await project.new() == ""
    project.declare(table("Item"))
    source = await project.new()
    assert "create sequence ours" in source
    assert "theirs" not in source
    await project.up()
    assert await connection.fetchval("select to_regclass('theirs') is not null and to_regclass('ours') is null")


async def test_a_default_may_hold_quotes(project, connection):  # noqa: F811
    said = 'it\'s "so" \\ or not'

    def item(**more: Column) -> type[Table]:
        return table("Item", note=Text(default=said), tags=Array(Varchar(), default=[said, "b"]), **more)

    project.declare(item())
    await project.new()
    await project.up()
    await connection.execute("insert into item default values")
    project.declare(item(more=Varchar(default=said)))
    await project.new()
    await project.up()
    row = await connection.fetchrow("select note, tags, more from item")
    assert tuple(row) == (said, [said, "b"], said)
    project.declare(table("Item", note=Text(default=said, db_column_name='a"b')))
    with pytest.raises(MigrationError, match="has a quote in its name"):
        await project.new()


# -- encrypted columns ------------------------------------------------------------------------------------------------


def visit(name: str = "Visit", tablename: str = "visit", /, **columns: Column) -> type[Table]:
    return create_table_class(name, class_kwargs={"tablename": tablename}, class_members=columns)


def sealed() -> list[SchemaObject]:
    return [Namespace("charthold"), Domain("charthold.envelope", type="bytea", check="octet_length(value) > 9")]


async def test_an_encrypted_column_is_not_renamed_in_the_database(project):  # noqa: F811
    project.declare(visit(notes=EncryptedText()), shared=sealed())
    await project.new()
    project.declare(visit(remarks=EncryptedText()), shared=sealed())
    with pytest.raises(MigrationError, match=r"remarks = EncryptedText\(db_column_name='notes', \.\.\.\)"):
        await project.new(auto_input="y")
    source = await project.new()
    assert "manager.rename_column(" not in source
    assert source.count("manager.add_column(") == source.count("manager.drop_column(") == 1


async def test_a_table_with_an_encrypted_column_is_not_renamed_in_the_database(project):  # noqa: F811
    project.declare(visit(notes=EncryptedText()), shared=sealed())
    await project.new()
    project.declare(visit("Visit", "appointment", notes=EncryptedText()), shared=sealed())
    with pytest.raises(MigrationError, match=r"class Visit\(..., tablename='visit'\)"):
        await project.new()
    project.declare(visit("Appointment", "appointment", notes=EncryptedText()), shared=sealed())
    with pytest.raises(MigrationError, match=r"class Appointment\(..., tablename='visit'\)"):
        await project.new(auto_input="y")


async def test_what_is_renamed_in_python_only_is_left_alone_in_the_database(project, connection, capsys):  # noqa: F811
    project.declare(visit(notes=EncryptedText(null=True), size=Integer()), shared=sealed())
    await project.new()
    await project.up()
    before = await catalog(connection)
    for renamed in (
        visit(remarks=EncryptedText(null=True, db_column_name="notes"), extent=Integer(db_column_name="size")),
        visit("Seen", remarks=EncryptedText(null=True, db_column_name="notes"), extent=Integer(db_column_name="size")),
        visit("Seen", notes=EncryptedText(null=True), extent=Integer(db_column_name="size")),
    ):
        project.declare(renamed, shared=sealed())
        source = await project.new(auto_input="y")
        assert "manager.rename_" in source
        assert not any(word in source for word in ("manager.alter_", "manager.add_", "manager.drop_"))
        assert await project.new(auto_input="y") == ""
        capsys.readouterr()
        await project.forwards(preview=True)
        assert "rename" not in capsys.readouterr().out
        await project.up()
        assert changes(before, await catalog(connection)) == {}
        assert await project.drift(connection) == []
    await project.down("all")
    await project.up()
    assert changes(before, await catalog(connection)) == {}


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (Text(), EncryptedText()),
        (EncryptedText(), Text()),
        (EncryptedText(), EncryptedDate()),
        (Bytea(), BlindIndex("a")),
    ],
)
async def test_no_column_becomes_encrypted_or_ceases_to_be(project, was, now):  # noqa: F811
    project.declare(visit(notes=was), shared=sealed())
    await project.new()
    project.declare(visit(notes=now), shared=sealed())
    with pytest.raises(MigrationError, match="declare the new column beside the old"):
        await project.new(auto_input="y")


async def test_a_blind_index_under_another_name_is_made_anew(project):  # noqa: F811
    project.declare(visit(notes=EncryptedText(), by_notes=BlindIndex("notes")), shared=sealed())
    await project.new()
    project.declare(visit(notes=EncryptedText(), notes_bidx=BlindIndex("notes")), shared=sealed())
    source = await project.new(auto_input="y")
    assert "manager.rename_column(" not in source
    assert source.count("manager.add_column(") == source.count("manager.drop_column(") == 1
