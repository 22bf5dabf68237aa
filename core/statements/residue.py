"""Whether a statement can leave anything behind in its session: a setting, a lock, a temporary object, a listener.

Threat: connections serve one tenant after another. Whoever gets a fragment of SQL into a query (a ``QueryString``, an
alias, a raw condition) could leave a trap for the next. So the text itself is judged, whoever wrote it: the parser of
PostgreSQL names what it calls, and what is not known to be harmless costs the connection.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache, wraps
from typing import Any

from pglast.parser import ParseError, parse_sql_json

from core.errors import ProtectedQueryError

__all__ = ["TOO_DEEP", "answers_only", "ends_a_transaction", "is_one_statement", "leaves_nothing"]

LONGEST = 10_000  # characters of a statement of which is kept what it leaves
TOO_DEEP = "Conditions stand in each other too deeply. Write them beside each other, as a | b | c, or use is_in()."

STATEMENTS = frozenset({"SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"})

# What Piccolo and we write, and their harmless neighbours. All they do is answer.
FUNCTIONS = frozenset(
    """
    abs age any_value array_agg array_append array_cat array_length array_position array_prepend array_remove
    array_replace array_to_string avg bit_length bool_and bool_or btrim cardinality ceil ceiling char_length
    coalesce concat concat_ws count date date_bin date_part date_trunc dense_rank encode every extract
    first_value floor format generate_series greatest host initcap json_agg json_array_length json_build_array
    json_build_object json_object_agg jsonb_agg jsonb_array_elements jsonb_array_elements_text
    jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each jsonb_each_text jsonb_extract_path
    jsonb_extract_path_text jsonb_object_agg jsonb_object_keys jsonb_path_exists jsonb_path_query jsonb_set
    jsonb_strip_nulls jsonb_typeof lag last_value lead left length like_escape lower lpad ltrim make_date max
    md5 min mod now nth_value ntile octet_length overlay percent_rank position pow power rank regexp_replace
    repeat replace reverse right round row_number row_to_json rpad rtrim similar_to_escape split_part
    starts_with string_agg string_to_array strpos substr substring sum timezone to_char to_date to_json to_jsonb
    to_number to_timestamp trim trunc unnest upper uuid_extract_timestamp width_bucket
    """.split()  # noqa: SIM905  # read as a list of words
)


def _kept(judge: Callable[[str], bool]) -> Callable[[str], bool]:
    """Keeps the answers about the last statements.

    Threat: requests bring lists of each length, and the texts with them take the process's memory.
    """
    answers = lru_cache(maxsize=4_096)(judge)

    @wraps(judge)
    def answer(sql: str) -> bool:
        return answers(sql) if len(sql) <= LONGEST else judge(sql)

    return answer


@_kept
def leaves_nothing(sql: str) -> bool:
    """True for one SELECT, INSERT, UPDATE, DELETE or MERGE that calls only what is known to be harmless.

    What cannot be parsed, and what is not known, is not harmless.
    """
    statements = _parsed(sql)
    return len(statements) == 1 and set(statements[0]) <= STATEMENTS and _harmless(statements[0])


@_kept
def answers_only(sql: str) -> bool:
    """True when, besides, it calls none of our functions, which record."""
    return leaves_nothing(sql) and "charthold" not in {
        part["String"]["sval"] for name in _named(_parsed(sql)) for part in name
    }


def _named(statement: Any) -> Iterator[list[Any]]:
    left = [statement]
    while left:
        node = left.pop()
        left += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        if isinstance(node, dict) and "funcname" in node:
            yield node["funcname"]


def is_one_statement(sql: str) -> bool:
    """True for one complete statement.

    Threat: a fragment that closes a bracket would end our statement early and go on without its gate and its records.
    """
    return len(_parsed(sql)) == 1


@_kept
def ends_a_transaction(sql: str) -> bool:
    """True for BEGIN, COMMIT, ROLLBACK, SAVEPOINT and their like."""
    return any("TransactionStmt" in statement for statement in _parsed(sql))


def _parsed(sql: str) -> list[dict[str, Any]]:
    try:
        parsed = json.loads(parse_sql_json(sql))
    except ParseError:
        return []
    except RecursionError:
        raise ProtectedQueryError(TOO_DEEP) from None
    return [statement["stmt"] for statement in parsed.get("stmts", ())]


def _harmless(statement: Any) -> bool:
    # Without recursion: conditions may stand in each other by the hundred.
    left = [statement]
    while left:
        node = left.pop()
        if isinstance(node, list):
            left += node
        if not isinstance(node, dict):
            continue
        for key, value in node.items():
            if key == "intoClause":  # SELECT INTO makes a table
                return False
            if key == "funcname" and not _known(value, FUNCTIONS):
                return False
            # An operator with a schema, OPERATOR(x.=), or a statement in a CTE that is none of ours.
            if key == "A_Expr" and len(value["name"]) > 1 and not _known(value["name"], None):
                return False
            if key[0].isupper() and key.endswith("Stmt") and key not in STATEMENTS:
                return False
            left.append(value)
    return True


def _known(name: list[Any], names: frozenset[str] | None) -> bool:
    """Whether a qualified name is one of ours, or one of PostgreSQL's among ``names``."""
    *schema, last = [part["String"]["sval"] for part in name]
    if schema == ["charthold"]:
        return True  # ours; what only the owner may call, only the owner calls
    return schema in ([], ["pg_catalog"]) and (names is None or last in names)
