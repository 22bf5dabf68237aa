"""A process that serves requests does not grow; and the benchmarks say what they measured."""

from __future__ import annotations

import gc
from uuid import uuid4
from xml.etree import ElementTree as ET

import pytest

from bench.chart import bars, lines
from bench.compare import OURS, PLAIN, RAW, Rows, chart, judged, name_of
from bench.memory import held, resident, serve
from bench.population import Clinic, make_tenants
from core.engine import ChartholdEngine

TENANTS = 5


@pytest.fixture(scope="module")
async def clinics(database: ChartholdEngine) -> list[Clinic]:
    return await make_tenants(1, TENANTS)


async def test_requests_leave_nothing_behind_in_python(clinics: list[Clinic]) -> None:
    await serve(clinics, range(100))  # caches fill, statements are prepared
    grown, lines = await held(clinics, first=100, requests=400)
    assert grown < 64 * 1024, lines


@pytest.mark.slow
@pytest.mark.timeout(1_200)
async def test_ten_thousand_requests_leave_the_process_as_large_as_it_was(clinics: list[Clinic]) -> None:
    await serve(clinics, range(10_000, 11_000))
    gc.collect()
    before = resident()
    await serve(clinics, range(11_000, 20_000))
    gc.collect()
    assert resident() - before < 5  # MB


def test_what_is_deleted_is_asked_for_by_nobody_else_and_new_names_are_not_searched() -> None:
    ids = [uuid4() for _ in range(20)]
    durable, relaxed = Rows(ids, 5), Rows(ids, 5, share=1)
    doomed = {*durable.doomed, *relaxed.doomed}
    assert len(doomed) == 10
    assert not doomed & {durable.id() for _ in range(50)}
    assert not {durable.name() for _ in range(50)} & {name_of(n) for n in durable.some(100)}


def test_a_comparison_is_judged_by_ratios_and_drawn() -> None:
    latency = {"get": {RAW: 0.1, PLAIN: 0.2, OURS: 0.17}, "insert_1000": {RAW: 20, PLAIN: 100, OURS: 70}}
    rows = judged(latency, {"get": {RAW: 9_000, PLAIN: 2_000, OURS: 3_100}}, 16)
    assert [row["ok"] for row in rows] == [True, False, True]
    assert "0.85 x" in chart(rows)


def test_charts_are_svg() -> None:
    ET.fromstring(bars("a < b", ["one", "two"], [("get & find", [0.9, 1.4], "0.9 x")], "unit"))
    ET.fromstring(lines("growth", [("clients", [10, 1_000], {"get": [0.4, 0.5]})]))
