"""The environment is read once and checked: a value that cannot be is one sentence that says which could."""

from __future__ import annotations

import base64
import re

import pytest

import core.settings
from core import ConfigurationError
from core.settings import VARIABLES, Settings

KEY = base64.b64encode(bytes(32)).decode()
SERVER = {"DATABASE_URL": "postgres://app@db/clinic", "CHARTHOLD_MASTER_KEY": KEY}


def test_an_empty_environment_is_the_embedded_server() -> None:
    read = Settings.from_environ({})
    assert (read.embedded, read.named_by, read.owner_named_by) == (True, None, None)
    assert (read.scope_seconds, read.pool_size, read.durable_reads, read.bind_backend) == (900, 10, True, True)


def test_an_error_names_the_variable_by_which_somebody_connects() -> None:
    assert Settings.from_environ(SERVER).owner_named_by == "DATABASE_URL"
    both = Settings.from_environ(SERVER | {"DATABASE_OWNER_URL": "postgres://owner@db/clinic"})
    assert (both.named_by, both.owner_named_by) == ("DATABASE_URL", "DATABASE_OWNER_URL")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("CHARTHOLD_POOL_SIZE", "0", "must be a whole number from 1 to 10,000"),
        ("CHARTHOLD_POOL_SIZE", "1.9", "must be a whole number from 1 to 10,000"),
        ("CHARTHOLD_POOL_SIZE", "-3", "must be a whole number from 1 to 10,000"),
        ("CHARTHOLD_POOL_SIZE", "٣", "must be a whole number from 1 to 10,000"),
        ("CHARTHOLD_SCOPE_SECONDS", "100000", "must be a whole number from 1 to 86,400, not '100000'"),
        ("CHARTHOLD_TOKEN_GENERATION", "0", "must be a whole number from 1 to 1,000,000"),
        ("CHARTHOLD_SHRED_DAYS", "inf", "must be a whole number from 0 to 36,500"),
        ("CHARTHOLD_SHRED_DAYS", "9" * 5_000, "must be a whole number from 0 to 36,500"),
        ("CHARTHOLD_POOL_SECONDS", "0", "must be a number from 0.001 to 1,000,000"),
        ("CHARTHOLD_KEY_CACHE_SECONDS", "inf", "must be a number from 0 to 1,000,000"),
        ("CHARTHOLD_LOCK_TIMEOUT", "nan", "must be a number from 0 to 1,000,000"),
        ("CHARTHOLD_STATEMENT_TIMEOUT", "soon", "must be a number from 0 to 1,000,000, not 'soon'"),
        ("CHARTHOLD_READ_RECORDS", "lazy", "must be one of durable, relaxed, not 'lazy'"),
        ("CHARTHOLD_BIND_BACKEND", "yes", "must be one of on, off, not 'yes'"),
        ("CHARTHOLD_ROLE_PREFIX", "Clinic-", "must match"),
        ("CHARTHOLD_MASTER_KEY", "c2hvcnQ=", "must be 32 bytes in base64"),
        ("CHARTHOLD_RETIRED_MASTER_KEYS", f"{KEY},short", "must be 32 bytes in base64"),
        ("CHARTHOLD_RETIRED_SEAL_KEYS", f"{'a' * 64},{'a' * 63}", "takes public keys of 64 hexadecimal digits"),
        ("CHARTHOLD_HOME", "~no-such-user/x", "this machine knows no such home"),
        ("CHARTHOLD_SCOPE_SECOND", "60", "there is no such setting. Did you mean CHARTHOLD_SCOPE_SECONDS?"),
        ("CHARTHOLD_COLOUR", "blue", "there is no such setting. There are CHARTHOLD_HOME, CHARTHOLD_MASTER_KEY"),
        ("DATABASE_URL", "postgres://app@db/clinic", "CHARTHOLD_MASTER_KEY is not set"),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_a_sentence(name: str, value: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as refused:
        Settings.from_environ({name: value})
    assert name in str(refused.value) or name == "DATABASE_URL"
    assert "c2hvcnQ" not in str(refused.value)


def test_keys_and_urls_are_not_shown() -> None:
    shown = repr(Settings.from_environ(SERVER))
    assert KEY not in shown
    assert "postgres://" not in shown
    assert repr(bytes(32)) not in shown


def test_what_is_written_above_the_settings_is_what_is_read() -> None:
    described = re.findall(r"^\| ``(CHARTHOLD_\w+)``", core.settings.__doc__ or "", re.MULTILINE)
    assert described == list(VARIABLES)
