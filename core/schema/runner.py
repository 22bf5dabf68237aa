"""Piccolo's ``migrations`` commands, on our terms: one migrator at a time, as the owner, one transaction a step.

The commands are looked up in Piccolo's modules, and ``install`` puts ours there. ``piccolo_app.py`` calls it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import asyncpg
from piccolo.apps.migrations.auto.migration_manager import MigrationManager as PiccoloMigrationManager
from piccolo.apps.migrations.commands import backwards as piccolo_backwards
from piccolo.apps.migrations.commands import base as piccolo_base
from piccolo.apps.migrations.commands import check as piccolo_check
from piccolo.apps.migrations.commands import clean as piccolo_clean
from piccolo.apps.migrations.commands import forwards as piccolo_forwards
from piccolo.apps.migrations.commands import new as piccolo_new
from piccolo.apps.migrations.commands.base import MigrationResult
from piccolo.apps.migrations.tables import Migration
from piccolo.conf.apps import AppConfig

from core.errors import MigrationError
from core.plural import plural
from core.schema import autogenerate
from core.schema.branches import refuse_branches
from core.schema.defaults import quote_defaults
from core.schema.live import live_tables
from core.schema.lock import migrating, owner
from core.schema.loss import agree_to_loss, refuse_dependents, tables_that_go
from core.schema.migration import MigrationManager
from core.schema.mistakes import say_mistakes
from core.schema.operation import Add
from core.schema.refusal import EXPLAINED, one_sentence, refused
from core.schema.replay import SchemaSnapshot
from core.schema.run import run_after, terminated
from core.schema.sealed import reindexed
from core.schema.step import Step
from core.schema.unfinished import unfinished

__all__ = ["after_forwards", "install"]


def install() -> None:
    """Put the differ, the template, the lock and the bookkeeping in place of Piccolo's. Calling it twice is fine."""
    new: Any = piccolo_new
    new.SchemaDiffer = autogenerate.SchemaDiffer
    new.SchemaSnapshot = SchemaSnapshot
    new.AutoMigrationManager = autogenerate.AutoMigrationManager
    new.JINJA_ENV = autogenerate.JINJA_ENV
    if not hasattr(new._create_new_migration, "__wrapped__"):
        new._create_new_migration = one_sentence(new._create_new_migration)
    quote_defaults()
    say_mistakes()
    base: Any = piccolo_base.BaseMigrationManager
    base.create_migration_table = create_migration_table
    forwards: Any = piccolo_forwards.ForwardsMigrationManager
    forwards.run = run
    forwards.run_migrations = run_forwards
    backwards: Any = piccolo_backwards.BackwardsMigrationManager
    backwards.run = run
    backwards.run_migrations_backwards = run_backwards
    check: Any = piccolo_check.CheckMigrationManager
    if not hasattr(check, "statuses_without_owner"):
        check.statuses_without_owner = check.get_migration_statuses
        check.get_migration_statuses = get_migration_statuses
        check.run = one_sentence(check.run)
    clean: Any = piccolo_clean.CleanMigrationManager
    clean.run = one_sentence(run_clean)
    # A heading is a comment, so that --preview of all apps is still SQL.
    for module in (piccolo_forwards, piccolo_backwards):
        module.print_heading = heading  # type: ignore[attr-defined]  # each imports it by name


def heading(text: str) -> None:
    print(f"-- {text}")


def table_statements() -> list[str]:
    """Piccolo's bookkeeping table, with one row a step."""
    return [
        *Migration.create_table(if_not_exists=True).ddl,
        "create unique index if not exists migration_app_name_name on public.migration (app_name, name)",
    ]


async def table_exists(connection: asyncpg.Connection[Any]) -> bool:
    return bool(await connection.fetchval("select to_regclass('public.migration') is not null"))


async def create_migration_table(self: Any) -> bool:  # noqa: ARG001  # a method of Piccolo's manager
    """Make the bookkeeping table, under the lock. True if it was not there."""
    async with migrating() as connection:
        if await table_exists(connection):
            return False
        async with connection.transaction():
            for statement in table_statements():
                await connection.execute(statement)
        return True


async def get_migration_statuses(self: Any) -> Any:
    """What ``piccolo migrations check`` prints, read as the owner."""
    with owner():
        return await self.statuses_without_owner()


async def run_clean(self: Any) -> None:
    """``piccolo migrations clean``: forget the steps whose files are gone, under the lock and as the owner."""
    app_config = self.get_app_config(app_name=self.app_name)
    modules = self.get_migration_modules(app_config.resolved_migrations_folder_path)
    async with migrating() as connection:
        ran = await steps_run(connection, self.app_name)
        gone = sorted({*ran} - {*self.get_migration_ids(modules)})
        if not gone:
            print("No migrations exist in the table, which aren't also in modules.")
        elif self.auto_agree or agreed(f"These steps are recorded, and have no file: {', '.join(gone)}. Forget them?"):
            await connection.execute(
                "delete from public.migration where app_name = $1 and name = any($2)", self.app_name, gone
            )
            print(f"Forgotten: {', '.join(gone)}")


async def run(self: Any) -> MigrationResult:
    """``forwards`` or ``backwards`` of one app."""
    app_config = self.get_app_config(app_name=self.app_name)
    if isinstance(self, piccolo_forwards.ForwardsMigrationManager):
        return await run_forwards(self, app_config)
    return await run_backwards(self, app_config)


@contextlib.asynccontextmanager
async def session(self: Any) -> AsyncIterator[asyncpg.Connection[Any]]:
    """The migrator's connection, with the lock unless nothing will be written, and the bookkeeping table there."""
    async with migrating(locked=not self.preview) as connection:
        if not self.preview:
            await create_migration_table(self)
        elif not await table_exists(connection):
            print("\n".join(terminated(statement) for statement in table_statements()))
        yield connection


async def steps_run(connection: asyncpg.Connection[Any], app_name: str) -> list[str]:
    """The names of the steps that have run, in the order in which they did."""
    if not await table_exists(connection):
        return []
    rows = await connection.fetch("select name from public.migration where app_name = $1 order by id", app_name)
    return [row["name"] for row in rows]


async def refuse_encoding(connection: asyncpg.Connection[Any]) -> None:
    """Threat: in another encoding the steps run and most works, until a record cannot be sealed or a name written."""
    encoding = await connection.fetchval("select current_setting('server_encoding')")
    if encoding != "UTF8":
        raise MigrationError(
            f"The database's encoding is {encoding}, and Charthold needs UTF8. Make it anew: "
            "create database ... template template0 encoding 'UTF8'"
        )


def say(self: Any, text: str) -> None:
    """Tell the user; in a preview everything but SQL is a comment."""
    print(f"-- {text}" if self.preview else text)


async def load(module: Any) -> MigrationManager | None:
    """Replay a step's file and check it. None for a step without a manager, which Piccolo allows."""
    response = await module.forwards()
    if not isinstance(response, PiccoloMigrationManager):
        return None
    manager = MigrationManager.of(response)
    if isinstance(response, MigrationManager):
        manager.check()
    return manager


_settled: dict[str, Callable[[], Awaitable[None]]] = {}


def after_forwards(app_name: str, settle: Callable[[], Awaitable[None]]) -> None:
    """What an app needs that no step can hold, because it depends on the configuration or on the day.

    It runs whenever ``forwards`` has left nothing to run, under the migrator's lock, and must bear repetition.
    """
    _settled[app_name] = settle


async def run_forwards(self: Any, app_config: AppConfig) -> MigrationResult:
    """Run what has not run yet, and finish what was left unfinished."""
    try:
        async with session(self) as connection:
            result = await _forwards(self, app_config, connection)
            settle = _settled.get(app_config.app_name)
            if result.success and settle and not self.preview and not self.fake:
                modules = self.get_migration_modules(app_config.resolved_migrations_folder_path)
                if set(self.get_migration_ids(modules)) == set(await steps_run(connection, app_config.app_name)):
                    await settle()
            return result
    except EXPLAINED as error:
        return refused(error)


async def _forwards(self: Any, app_config: AppConfig, connection: asyncpg.Connection[Any]) -> MigrationResult:
    already_ran = await steps_run(connection, app_config.app_name)
    if not already_ran:
        await refuse_encoding(connection)
    if self.migration_id in already_ran:
        message = f"🏁 Migration {self.migration_id} has already been run"
        say(self, message)
        return MigrationResult(success=True, message=message)
    modules = self.get_migration_modules(app_config.resolved_migrations_folder_path)
    waiting = sorted(set(self.get_migration_ids(modules)) - set(already_ran))
    # All are loaded before the first runs: a step that is refused stops the others too.
    managers = {name: await load(modules[name]) for name in sorted(modules)}

    ran = [manager for name in already_ran if (manager := managers.get(name)) is not None]
    refuse_branches(app_config.app_name, ran, [manager for name in waiting if (manager := managers[name]) is not None])
    problem = await finish(self, connection, ran, [managers[name] for name in waiting])
    say(self, f"👍 {plural(len(already_ran), 'migration')} already complete")
    if not waiting and problem:
        raise problem
    if not waiting:
        message = "🏁 No migrations need to be run"
        say(self, message)
        return MigrationResult(success=True, message=message)
    say(self, f"⏩ {plural(len(waiting), 'migration')} not yet run")

    subset = chosen(self.migration_id, waiting)
    if subset is None:
        message = f"{self.migration_id} is unrecognised. Name a step that waits, 1 or all: {', '.join(waiting)}"
        print(message, file=sys.stderr)
        return MigrationResult(success=False, message=message)
    if (
        self.fake
        and not self.preview
        and len(subset) > 1
        and not agreed(f"--fake records {len(subset)} steps without running them.")
    ):
        return MigrationResult(success=False, message="Migration stopped")

    say(self, f"🚀 Running {plural(len(subset), 'migration')}:")
    for name in subset:
        await _run_one(self, connection, managers[name] or MigrationManager(), name, app_config.app_name)
    if problem:
        # The steps may have mended what stood in the way.
        now = [managers[name] for name in (*already_ran, *subset) if name in managers]
        if problem := await finish(self, connection, now, [managers[name] for name in waiting if name not in subset]):
            raise problem
    return MigrationResult(success=True, message="Migration succeeded")


def chosen(step: str, waiting: Sequence[str]) -> Sequence[str] | None:
    """The steps to run: all, the next one, or those up to the one that is named; None when none of them is."""
    if step == "all":
        return waiting
    if step == "1":
        return waiting[:1]
    return waiting[: waiting.index(step) + 1] if step in waiting else None


async def _run_one(
    self: Any, connection: asyncpg.Connection[Any], manager: MigrationManager, name: str, app_name: str
) -> None:
    """Run one step, or only record it with ``--fake``."""
    manager.migration_id, manager.app_name, manager.preview = name, app_name, self.preview
    if self.fake or manager.fake:
        bookkeeping = Step(migration_id=name, app_name=app_name).bookkeeping
        if self.preview:
            print(terminated(bookkeeping))
        else:
            await connection.execute(bookkeeping)
        say(self, f"  - {name}: faked! ⏭️")
        return
    try:
        await manager.run()
    except MigrationError as error:
        if app_name == "core" or await connection.fetchval("select to_regnamespace('charthold') is not null"):
            raise
        raise MigrationError(f"The steps of core come first. Run: piccolo migrations forwards core. {error}") from None
    say(self, f"  - {name} ok! ✔️")
    tables = await live_tables(connection, reindexed(manager))
    for table in (table for table, live in sorted(tables.items()) if live.populated):
        say(self, f"    Searches miss older rows of {table} until you run: piccolo core reindex")


async def finish(
    self: Any,
    connection: asyncpg.Connection[Any],
    ran: Sequence[MigrationManager | None],
    waiting: Sequence[MigrationManager | None],
) -> MigrationError | None:
    """Do what earlier steps left to be done; what could not be done is told, and stops no step that waits.

    An object that a waiting step drops or changes is left to it: rows may violate a constraint that is to go.
    """
    objects = SchemaSnapshot([manager for manager in ran if manager]).objects()
    changed = {op.old.key for manager in waiting if manager for op in manager.operations if not isinstance(op, Add)}
    left = await unfinished(connection, [item for item in objects if item.key not in changed])
    if not left:
        return None
    say(self, f"Finishing {plural(len(left), 'statement')} that an earlier run left behind")
    if self.preview:
        print("\n".join(terminated(statement) for statement in left))
        return None
    problem: MigrationError | None = None
    for statement in left:
        try:
            await run_after(connection, [statement])
        except MigrationError as error:
            print(error, file=sys.stderr)
            problem = problem or error
    return problem


async def run_backwards(self: Any, app_config: AppConfig) -> MigrationResult:
    """Undo the last steps, last first."""
    try:
        async with session(self) as connection:
            return await _backwards(self, app_config, connection)
    except EXPLAINED as error:
        return refused(error)


async def _backwards(self: Any, app_config: AppConfig, connection: asyncpg.Connection[Any]) -> MigrationResult:
    ran = await steps_run(connection, app_config.app_name)
    if not ran:
        message = "🏁 No migrations to reverse!"
        say(self, message)
        return MigrationResult(success=True, message=message)
    earliest = {"all": ran[0], "1": ran[-1]}.get(self.migration_id, self.migration_id)
    if earliest not in ran:
        message = f"Unrecognized migration name - must be one of {ran}"
        print(message, file=sys.stderr)
        return MigrationResult(success=False, message=message)
    modules = self.get_migration_modules(app_config.resolved_migrations_folder_path)
    subset = list(reversed(ran[ran.index(earliest) :]))
    if missing := [name for name in subset if name not in modules]:
        message = (
            f"The files of these steps are gone, so they cannot be reversed: {', '.join(missing)}. Bring them back "
            f"from version control; piccolo migrations clean {app_config.app_name} only forgets that they ran."
        )
        print(message, file=sys.stderr)
        return MigrationResult(success=False, message=message)
    if not (self.preview or self.auto_agree or agreed(f"Reverse {plural(len(subset), 'migration')}?")):
        print("Not proceeding.", file=sys.stderr)
        return MigrationResult(success=False, message="Not proceeding.")
    managers = {name: await load(modules[name]) for name in subset}
    undone = [manager for manager in managers.values() if manager is not None]
    going = tables_that_go(undone)
    allowed: frozenset[str] = frozenset()
    if not self.preview:
        await refuse_dependents(connection, undone, going)
        allowed = await agree_to_loss(connection, going, ask=not self.auto_agree)
    for name in subset:
        manager = managers[name] or MigrationManager(migration_id=name, app_name=app_config.app_name)
        manager.migration_id, manager.app_name, manager.preview = name, app_config.app_name, self.preview
        manager.allowed = allowed
        await manager.run(backwards=True)
        if self.clean and not self.preview and modules[name].__file__:
            os.unlink(modules[name].__file__)  # noqa: PTH108  # what --clean asks for
        say(self, f"  - {name} [backwards] ok! ✔️")
    return MigrationResult(success=True)


def agreed(question: str) -> bool:
    return input(f"{question} Continue? [y/N] ").lower() == "y"
