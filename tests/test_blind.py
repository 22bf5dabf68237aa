"""Blind indexes: what is equal to a person has one digest, what is not has another, and no key is shared."""

import hashlib
import hmac
import json
import unicodedata
import uuid
from datetime import date, datetime
from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.crypto.blind import BlindSpec, IndexKey, fold
from core.crypto.datakey import DataKey
from core.crypto.tenantkeys import TenantKeys, WrappedKey
from core.errors import ConfigurationError, ProtectedQueryError
from tests.reference import normalised
from tests.test_envelope import SECRET, told
from tests.vectors import independent, make

VECTORS = json.loads(make.PATH.read_text())
KEY = IndexKey(b"k" * 32)
TENANT = uuid.UUID(int=1)
FOLDED, EXACT = BlindSpec("folded"), BlindSpec("exact")
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
latin = st.text(st.characters(min_codepoint=32, max_codepoint=0x17F), max_size=20)


@given(key=st.binary(min_size=32, max_size=32), message=st.binary(max_size=200))
@settings(database=None)
def test_the_prepared_states_give_hmac_sha256(key, message):
    prepared = IndexKey(key)
    assert prepared.mac(message) == hmac.digest(key, message, "sha256") == prepared.mac(message)


# -- folding -----------------------------------------------------------------------------------------------------


@given(text=texts)
@example("\u00b4\u1ffd\u1fef")
@example("\u0130\u0131\u1e9e\u0345\u03c2")
@settings(max_examples=1_500, deadline=None, database=None)
def test_folding_agrees_with_the_specification_and_with_itself(text):
    folded = fold(text)
    assert folded == independent.fold(text)
    assert fold(folded) == folded
    assert fold(text.upper()) == fold(text.lower()) == folded
    for form in ("NFC", "NFD"):
        assert fold(unicodedata.normalize(form, text)) == folded
    assert fold(f"  {text}\u3000") == folded


def test_folding_holds_for_every_character():
    for point in (*range(0xD800), *range(0xE000, 0x20000)):
        text = f"a{chr(point)}b"
        assert fold(fold(text)) == fold(text) == independent.fold(text), hex(point)


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("nguyen", "Nguyễn"),
        ("dang", "ĐẶNG"),
        ("o'brien", "O\u2019Brien"),
        ("o'brien", "O\u00b4Brien"),
        ("jean-luc", "Jean\u2010Luc"),
        ("strasse", "Straße"),
        ("ipek", "İPEK"),
        ("ipek", "ipek"),
        ("lodz", "Łódź"),
        ("soren", "Søren"),
        ("van der berg", " van  der\tBerg\n"),
        ("full", "ＦＵＬＬ"),
        ("fi", "ﬁ"),
    ],
)
def test_a_name_is_found_as_it_is_typed(typed, stored):
    assert FOLDED.digest(KEY, typed) == FOLDED.digest(KEY, stored)
    assert FOLDED.matches(stored, typed)


@pytest.mark.parametrize(("one", "other"), [("か", "が"), ("कि", "कु"), ("ab", "a b"), ("a-b", "ab"), ("1", "2")])
def test_what_other_scripts_tell_apart_stays_apart(one, other):
    assert FOLDED.digest(KEY, one) != FOLDED.digest(KEY, other)


# -- kinds -------------------------------------------------------------------------------------------------------


def test_exact_tells_case_and_spaces_apart_but_not_forms_of_one_character():
    assert normalised(EXACT, "é") == normalised(EXACT, "e\u0301") != normalised(EXACT, "e")
    assert normalised(EXACT, "A") != normalised(EXACT, "a")
    assert normalised(EXACT, "a ") != normalised(EXACT, "a")
    assert normalised(EXACT, "") == b""


@given(number=st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=3))
@settings(database=None)
def test_equal_numbers_have_one_form(number):
    assert normalised(EXACT, number) == normalised(EXACT, number.normalize()) == independent.number(number)
    assert normalised(EXACT, Decimal(f"{number:.9f}")) == normalised(EXACT, number)
    if number == int(number):
        assert normalised(EXACT, int(number)) == normalised(EXACT, number)


@given(one=st.integers(), other=st.decimals(allow_nan=False, allow_infinity=False))
@settings(database=None)
def test_different_numbers_have_different_forms(one, other):
    assert (normalised(EXACT, one) == normalised(EXACT, other)) == (one == other)


@given(text=latin, length=st.integers(1, 6))
@settings(max_examples=500, database=None)
def test_a_prefix_index_finds_what_starts_with_it(text, length):
    prefix = BlindSpec("prefix", length=length)
    digest = prefix.digest(KEY, text)
    assert (digest is None) == (len(fold(text)) < length)
    if digest is not None:
        assert prefix.digest(KEY, fold(text)[:length] + "zzz") == digest


def test_last_digits_ignore_everything_else():
    last = BlindSpec("last", length=4)
    assert normalised(last, "123-45-6789") == normalised(last, "(6 7) 8.9") == b"6789"
    assert normalised(last, "６７８９") == b"6789"
    assert normalised(last, "12-3") is None
    assert BlindSpec("last", length=10).matches("+1 617 555 0100", "(617) 555-0100")


def test_year_and_month():
    born = date(980, 2, 9)
    assert normalised(BlindSpec("year"), born) == normalised(BlindSpec("year"), 980) == b"0980"
    assert normalised(BlindSpec("month"), born) == normalised(BlindSpec("month"), "0980-02") == b"0980-02"


def test_a_compound_index_keeps_its_parts_apart():
    pair = BlindSpec("compound", parts=(FOLDED, FOLDED))
    assert pair.digest(KEY, ("ab", "c")) != pair.digest(KEY, ("a", "bc"))
    assert pair.digest(KEY, ("ab", "")) != pair.digest(KEY, ("", "ab"))
    assert pair.digest(KEY, ("Ána", " Li")) == pair.digest(KEY, ["ana", "LI"])
    assert pair.digest(KEY, ("a", None)) is None
    nested = BlindSpec("compound", parts=(pair, BlindSpec("exact")))
    assert nested.digest(KEY, (("a", "b"), date(2000, 1, 1))) is not None


def test_null_has_no_digest():
    for _, spec, _ in make.SPECS:
        assert normalised(spec, None) is None
        assert spec.digest(KEY, None) is None
        assert not spec.matches(None, None)


@pytest.mark.parametrize("bits", range(8, 129, 8))
def test_a_digest_has_the_bits_that_were_declared(bits):
    assert BlindSpec("exact", bits).digest(KEY, "a") == hmac.digest(b"k" * 32, b"a", hashlib.sha256)[: bits // 8]


def test_false_positives_of_a_short_digest_are_told_apart_after_opening():
    short = BlindSpec("folded", 8)
    collisions = [n for n in range(2_000) if short.digest(KEY, f"name {n}") == short.digest(KEY, "name 0")]
    assert len(collisions) > 1
    assert [n for n in collisions if short.matches(f"name {n}", "NAME 0")] == [0]


# -- keys --------------------------------------------------------------------------------------------------------


def keys(tenant, *versions):
    return TenantKeys(tenant, [(WrappedKey(v, b""), DataKey(tenant, v, b"\x01" * 32)) for v in versions])


def test_no_two_indexes_tenants_versions_kinds_or_lengths_share_a_key():
    specs = [EXACT, FOLDED, BlindSpec("prefix", length=1), BlindSpec("prefix", length=2), BlindSpec("last", length=1)]
    specs += [BlindSpec("compound", parts=(EXACT, FOLDED)), BlindSpec("compound", parts=(FOLDED, EXACT))]
    digests = [
        keys(tenant, 1, 2).index(spec.label(table, column), version).mac(b"x")
        for tenant in (TENANT, uuid.UUID(int=2))
        for version in (1, 2)
        for spec in specs
        for table, column in (("client", "a"), ("client", "b"), ("facility", "a"))
    ]
    assert len(set(digests)) == len(digests)


def test_a_label_takes_plain_names_only():
    assert FOLDED.label("client", "last_name_index") == "client.last_name_index/folded/n1"
    for table, column in (("a.b", "c"), ("a", "b/c"), ("", "c")):
        with pytest.raises(ConfigurationError):
            FOLDED.label(table, column)


def test_tenant_keys_digest_under_the_current_version_and_search_under_all():
    both = keys(TENANT, 1, 2)
    label = FOLDED.label("client", "i")
    assert both.blind(label, FOLDED, "Nguyen") == FOLDED.digest(both.index(label, 2), "nguyen")
    assert both.blind_all(label, FOLDED, "nguyen") == [FOLDED.digest(both.index(label, v), "nguyen") for v in (2, 1)]
    assert both.blind_all(label, FOLDED, None) == []
    assert both.blind(label, FOLDED, None) is None


# -- the committed vectors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["folds"], ids=lambda vector: ascii(vector["text"]))
def test_a_fold_vector_holds(vector):
    assert fold(vector["text"]) == independent.fold(vector["text"]) == vector["folded"]


@pytest.mark.parametrize("vector", VECTORS["blind_indexes"], ids=lambda vector: vector["label"])
def test_an_index_vector_follows_the_specification(vector):
    held = VECTORS["key"]
    key = independent.index_key(bytes.fromhex(held["data_key"]), held["tenant"], held["version"], vector["label"])
    assert key.hex() == vector["index_key"]
    for row in vector["digests"]:
        normalised = independent.normalise(vector["kind"], vector["length"], vector["parts"], row["type"], row["value"])
        assert (None if normalised is None else normalised.hex()) == row["normalised"]
        if normalised is None:
            assert row["digest"] is None
        else:
            assert independent.mac(key, normalised)[: vector["bits"] // 8].hex() == row["digest"]


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "soundex"},
        {"kind": "exact", "bits": 0},
        {"kind": "exact", "bits": 12},
        {"kind": "exact", "bits": 136},
        {"kind": "exact", "length": 3},
        {"kind": "prefix"},
        {"kind": "prefix", "length": 0},
        {"kind": "last", "length": -1},
        {"kind": "compound"},
        {"kind": "folded", "parts": (EXACT,)},
    ],
)
def test_a_wrong_declaration_is_refused(wrong):
    with pytest.raises(ConfigurationError):
        BlindSpec(**wrong)


REFUSED = [
    (FOLDED, 5),
    (FOLDED, date(2000, 1, 1)),
    (FOLDED, [SECRET]),
    (FOLDED, SECRET + "\ud800"),
    (EXACT, {"a": SECRET}),
    (EXACT, True),
    (EXACT, datetime(2000, 1, 1)),
    (EXACT, Decimal("NaN")),
    (EXACT, 1.5),
    pytest.param(EXACT, 10**5000, id="too large"),
    (BlindSpec("year"), "1980"),
    (BlindSpec("year"), 0),
    (BlindSpec("month"), SECRET),
    (BlindSpec("month"), "1980-13"),
    (BlindSpec("month"), 5),
    (BlindSpec("last", length=4), 6789),
    (BlindSpec("compound", parts=(FOLDED, EXACT)), (SECRET,)),
    (BlindSpec("compound", parts=(FOLDED, EXACT)), SECRET),
    (BlindSpec("compound", parts=(FOLDED, EXACT)), (SECRET, object())),
]


@pytest.mark.parametrize(("spec", "value"), REFUSED)
def test_a_value_that_does_not_fit_is_refused_and_not_told(spec, value):
    label = spec.label("client", "i")
    for call in (
        lambda: spec.digest(KEY, value),
        lambda: spec.matches(value, value),
        lambda: keys(TENANT, 1).blind(label, spec, value),
        lambda: keys(TENANT, 1).blind_all(label, spec, value),
    ):
        with pytest.raises(ProtectedQueryError) as caught:
            call()
        assert SECRET not in told(caught.value)
