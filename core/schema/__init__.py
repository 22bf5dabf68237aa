"""Declarations of database objects beside Piccolo's tables, and the migrations that are generated from them."""

from core.schema.comment import Comment
from core.schema.constraint import Check, Constraint, PrimaryKey, References, Unique
from core.schema.declarations import objects_of, register_shared, shared_objects
from core.schema.domain import Domain
from core.schema.function import Function
from core.schema.grant import Grant, SchemaGrant
from core.schema.index import Index
from core.schema.namespace import Namespace
from core.schema.object import SchemaObject
from core.schema.partition import Partitions, StorageParameters
from core.schema.policy import Policy, RowSecurity
from core.schema.role import Role, application_login
from core.schema.statement import Statement
from core.schema.trigger import Trigger

__all__ = [
    "Check",
    "Comment",
    "Constraint",
    "Domain",
    "Function",
    "Grant",
    "Index",
    "Namespace",
    "Partitions",
    "Policy",
    "PrimaryKey",
    "References",
    "Role",
    "RowSecurity",
    "SchemaGrant",
    "SchemaObject",
    "Statement",
    "StorageParameters",
    "Trigger",
    "Unique",
    "application_login",
    "objects_of",
    "register_shared",
    "shared_objects",
]
