"""The migration manager that generated steps use.

Forwards: what hangs on tables goes; what tables need comes; Piccolo's tables and columns change; what hangs on tables
comes; what tables needed goes. Backwards is the mirror of that, statement for statement.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg
from piccolo.apps.migrations.auto.migration_manager import AlterColumnCollection
from piccolo.apps.migrations.auto.migration_manager import MigrationManager as PiccoloMigrationManager
from piccolo.columns import Column, ForeignKey
from piccolo.query.methods.alter import AddConstraint
from piccolo.query.methods.create_index import CreateIndex
from piccolo.table import Table, create_table_class

from core import schema
from core.errors import MigrationError
from core.schema.constraint import Constraint, References
from core.schema.declarations import constraint_of, topological
from core.schema.index import Index
from core.schema.live import LiveTable, live_tables
from core.schema.lock import migrating
from core.schema.object import Kind, SchemaObject
from core.schema.operation import Add, Drop, Operation, Rename, Replace
from core.schema.partition import Partitions
from core.schema.plans import forgetting
from core.schema.quoting import full_name, name_of, qualified, quote_ident, table_name
from core.schema.run import print_step, run_step
from core.schema.statement import Statement
from core.schema.step import Raw, Step
from core.schema.unsafe import findings, refuse_unsafe

__all__ = ["KINDS", "MigrationManager", "create_table"]

KINDS: dict[str, type[SchemaObject]] = {
    cls.kind: cls
    for cls in vars(schema).values()
    if isinstance(cls, type) and issubclass(cls, SchemaObject) and hasattr(cls, "kind")
}


@dataclass
class MigrationManager(PiccoloMigrationManager):
    """Piccolo's, and ``add_policy``, ``drop_index``, ``replace_function`` ... for every kind of declared object."""

    operations: list[Operation] = field(default_factory=list)
    irreversible_because: str = ""
    # Unsafe kinds that somebody agreed to.
    allowed: frozenset[str] = frozenset()

    if TYPE_CHECKING:  # they are defined for each kind, below

        def __getattr__(self, name: str) -> Callable[..., None]: ...

    # -- what a step says ------------------------------------------------------------------------------------------

    @classmethod
    def of(cls, manager: PiccoloMigrationManager) -> MigrationManager:
        """Any manager as one of ours: the steps of Piccolo's own apps get the same transaction and order."""
        if isinstance(manager, cls):
            return manager
        return cls(**{f.name: getattr(manager, f.name) for f in dataclasses.fields(PiccoloMigrationManager)})

    def rename_object(self, old: SchemaObject, name: str) -> None:
        """Give an object another name; it keeps the rest."""
        self.operations.append(Rename(old, name))

    def irreversible(self, reason: str) -> None:
        """Say that the raw steps have no way back, and why. ``backwards`` then stops here with that reason."""
        if not reason.strip():
            raise MigrationError(f"Step {self.migration_id} is irreversible for no reason. Write it down.")
        self.irreversible_because = reason

    def check(self) -> None:
        """Refuse a step without a way back, when it is loaded rather than when the way back is needed."""
        if self.raw and not self.raw_backwards and not self.irreversible_because:
            raise MigrationError(
                f"Step {self.migration_id} has add_raw and no way back. Write manager.add_raw_backwards(...), "
                "or manager.irreversible('why')."
            )
        if not self.wrap_in_transaction:
            raise MigrationError(
                f"Step {self.migration_id} switches its transaction off, so a crash would leave half of it. "
                "Declare Index(concurrently=True) for what cannot run in a transaction."
            )

    def _refuse_irreversible(self) -> None:
        added = [operation.new for operation in self.operations if isinstance(operation, Add)]
        reasons = [self.irreversible_because] if self.irreversible_because else []
        reasons += [
            f"{item.name}: {item.irreversible}"
            for item in added
            if isinstance(item, Statement) and item.backwards is None
        ]
        if reasons:
            raise MigrationError(f"Step {self.migration_id} cannot be undone. {' '.join(reasons)}")

    # -- running it ------------------------------------------------------------------------------------------------

    async def run(self, backwards: bool = False) -> None:
        """Run the step and its bookkeeping row in one transaction; with ``preview`` print the SQL instead."""
        self.check()
        if backwards:
            self._refuse_irreversible()
        async with migrating(locked=not self.preview) as connection:
            step = await self.plan(connection, backwards=backwards)
            if self.preview:
                print_step(step, self.description, await findings(connection, step.statements))
                return
            await refuse_unsafe(connection, step, self.allowed)
            await run_step(connection, step)

    async def plan(self, connection: asyncpg.Connection[Any], *, backwards: bool = False) -> Step:
        """Work out the statements, in order."""
        step = Step(migration_id=self.migration_id, app_name=self.app_name, backwards=backwards)
        live = await live_tables(connection, self._touched())
        pieces = list(self._pieces())
        for piece in reversed(pieces) if backwards else pieces:
            if isinstance(piece, Operation):
                self._plan_operation(step, piece, live, backwards=backwards)
            else:
                step.pieces += await self._collect(piece, backwards=backwards)
        step.pieces = list(forgetting(step.pieces))
        return step

    def _pieces(self) -> Iterator[Operation | Callable[[bool], Any]]:
        """The parts of the step in forward order."""
        early = [op for op in self.operations if op.subject.place < Kind.TABLES]
        late = [op for op in self.operations if op.subject.place > Kind.TABLES]
        made = {op.new.key for op in early if isinstance(op, Add)}
        # An early object that returns in another form leaves before it comes; any other stays until nothing needs it.
        redone = [op for op in early if isinstance(op, Drop) and op.old.key in made]
        done = [op for op in early if isinstance(op, Drop) and op.old.key not in made]
        yield from last_first(op for op in late if isinstance(op, Drop))
        yield from last_first(redone)
        yield from first_first(op for op in early if not isinstance(op, Drop))
        yield from (
            self._run_add_tables,
            self._run_change_table_schema,
            self._run_rename_tables,
            self._run_add_columns,
            self._run_raw,
            self._run_drop_columns,
            self._run_drop_tables,
            self._run_rename_columns,
            self._run_alter_columns,
            self._run_add_constraints,
            self._run_drop_constraints,
        )
        yield from (op for op in late if isinstance(op, Rename))
        yield from first_first(op for op in late if isinstance(op, Add | Replace))
        yield from last_first(done)

    def _touched(self) -> set[str]:
        made = {full_name(table.schema, table.tablename) for table in self.add_tables}
        return {op.subject.table for op in self.operations} - made - {""}

    def _plan_operation(self, step: Step, operation: Operation, live: dict[str, LiveTable], *, backwards: bool) -> None:
        made = operation.creates(backwards=backwards)
        statements = operation.backwards if backwards else operation.forwards
        gone = operation.subject if isinstance(operation, Add | Drop) else None
        if isinstance(gone, Partitions) and gone.table in self._whole_tables():
            return  # part of CREATE TABLE, and gone with the table
        table = live.get(made.table) if made is not None else None
        if made is None or table is None:
            step.pieces += statements()
        elif not table.populated:
            adds = isinstance(operation, Add | Drop) and isinstance(made, References)
            step.pieces += made.create_checked() if adds and isinstance(made, References) else statements()
        elif isinstance(made, Index) and made.concurrently and not table.partitioned:
            step.after.append(made)
        elif isinstance(made, Constraint) and (unchecked := made.create_unchecked()) and not table.partitioned:
            step.pieces += unchecked
            step.after.append(made)
        else:
            step.pieces += statements()

    def _whole_tables(self) -> set[str]:
        return {full_name(table.schema, table.tablename) for table in (*self.add_tables, *self.drop_tables)}

    # -- Piccolo's part: its methods say what they would run -----------------------------------------------------------

    async def _collect(self, part: Callable[[bool], Any], *, backwards: bool) -> list[str | Raw]:
        self._collected: list[str | Raw] = []
        await part(backwards)
        return self._collected

    async def _run_query(self, query: Any) -> None:
        ddl = query.ddl if hasattr(query, "ddl") else str(query)
        self._collected += [ddl] if isinstance(ddl, str) else ddl

    async def _run_raw(self, backwards: bool = False) -> None:
        """After new tables and columns are there, before anything goes or is narrowed."""
        functions = list(reversed(self.raw_backwards)) if backwards else self.raw
        self._collected += [Raw(function) for function in functions]

    async def _run_add_tables(self, backwards: bool = False) -> None:
        tables = {table_name(table): table for table in map(self._new_table, self.add_tables)}
        ordered = [
            tables[name] for name in topological({n: references(t) & set(tables) - {n} for n, t in tables.items()})
        ]
        for table in reversed(ordered) if backwards else ordered:
            self._collected += [f"drop table {name_of(table)}"] if backwards else self._create_table(table)

    def _new_table(self, new: Any) -> type[Table]:
        columns = {c._meta.name: c for c in self.add_columns.columns_for_table_class_name(new.class_name)}
        table = create_table_class(
            class_name=new.class_name,
            class_kwargs={"tablename": new.tablename, "schema": new.schema},
            class_members=columns,
        )
        table._meta.constraints.extend(self.add_constraints.constraints_for_table_class_name(new.class_name))
        return table

    async def _run_rename_tables(self, backwards: bool = False) -> None:
        """Without the classes that are renamed, and whose tables are not."""
        for table in self.rename_tables:
            old, new = table.old_tablename, table.new_tablename
            was, then = (new, old) if backwards else (old, new)
            if old != new:
                name = qualified(full_name(table.schema, was))
                self._collected.append(f"alter table {name} rename to {quote_ident(then)}")

    async def _run_rename_columns(self, backwards: bool = False) -> None:
        """Without those that keep their name in the database."""
        for column in self.rename_columns.rename_columns:
            old, new = column.old_db_column_name, column.new_db_column_name
            was, then = (new, old) if backwards else (old, new)
            if old != new:
                name = qualified(full_name(column.schema, column.tablename))
                self._collected.append(f"alter table {name} rename column {quote_ident(was)} to {quote_ident(then)}")

    async def _run_drop_tables(self, backwards: bool = False) -> None:
        for table in reversed(self.drop_tables) if backwards else self.drop_tables:
            if backwards:
                was = await self.get_table_from_snapshot(
                    table_class_name=table.class_name, app_name=self.app_name, offset=-1
                )
                self._collected += self._create_table(was)
            else:
                self._collected.append(f"drop table {qualified(full_name(table.schema, table.tablename))}")

    def _create_table(self, table: type[Table]) -> list[str]:
        return create_table(table, next((p for p in self._partitions() if p.table == table_name(table)), None))

    def _partitions(self) -> Iterator[Partitions]:
        for operation in self.operations:
            if isinstance(operation.subject, Partitions):
                yield operation.subject

    async def _run_alter_columns(self, backwards: bool = False) -> None:
        """Piccolo's, without the foreign keys that a column leaves to a ``References``."""
        declared = self.alter_columns
        self.alter_columns = AlterColumnCollection([own_changes(change) for change in declared.alter_columns])
        try:
            await super()._run_alter_columns(backwards=backwards)
        finally:
            self.alter_columns = declared


def first_first(operations: Iterator[Operation] | Sequence[Operation]) -> list[Operation]:
    """In creation order; within a rank as the step says."""
    return sorted(operations, key=lambda operation: operation.subject.place)


def last_first(operations: Iterator[Operation] | Sequence[Operation]) -> list[Operation]:
    """In the opposite order; a step lists what it drops last first already."""
    return sorted(operations, key=lambda operation: -operation.subject.place)


def create_table(table: type[Table], partitions: Partitions | None, *, declared: bool = False) -> list[str]:
    """What Piccolo makes of a table: its columns, its indexes on single columns, its own kinds of constraints."""
    columns = ",\n    ".join(column.ddl for column in table._meta.columns)
    by = f" partition by {partitions.by}" if partitions else ""
    statements = [f"create table {name_of(table)} (\n    {columns}\n){by}"]
    for column in table._meta.columns:
        if column._meta.index:
            statements += CreateIndex(table=table, columns=[column], method=column._meta.index_method).ddl
    statements += [
        f"alter table {name_of(table)} {AddConstraint(constraint=constraint).ddl}"
        for constraint in table._meta.constraints
        # A step that Piccolo wrote adds CHECK and UNIQUE here; a declared class has them among its objects.
        if constraint_of(constraint) is None or not declared
    ]
    return statements


def references(table: type[Table]) -> set[str]:
    """The tables that the table's ForeignKey columns refer to."""
    keys = [column for column in table._meta.columns if isinstance(column, ForeignKey)]
    return {table_name(key._foreign_key_meta.resolved_references) for key in keys}


def own_changes(change: Any) -> Any:
    """A column whose DDL has no REFERENCES has no foreign key to change with it."""
    cls = change.column_class
    if cls is None or not issubclass(cls, ForeignKey) or cls.ddl is Column.ddl:
        return change
    dropped = {"on_delete", "on_update", "references", "target_column"}
    return dataclasses.replace(
        change,
        params={k: v for k, v in change.params.items() if k not in dropped},
        old_params={k: v for k, v in change.old_params.items() if k not in dropped},
    )


def define(kind: str, cls: type[SchemaObject]) -> None:
    """Give the manager ``add_<kind>``, ``drop_<kind>`` and ``replace_<kind>``."""

    def add(self: MigrationManager, **fields: Any) -> None:
        self.operations.append(Add(cls(**fields)))

    def drop(self: MigrationManager, **fields: Any) -> None:
        self.operations.append(Drop(cls(**fields)))

    def replace(self: MigrationManager, old: SchemaObject, new: SchemaObject) -> None:
        self.operations.append(Replace(old, new))

    for function in (add, drop, replace):
        function.__name__ = f"{function.__name__}_{kind}"
        setattr(MigrationManager, function.__name__, function)


for _kind, _cls in KINDS.items():
    define(_kind, _cls)
