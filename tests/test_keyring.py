"""Tenant keys and their providers: one unwrap for all who wait, closed when the provider fails, silent about keys."""

import asyncio
import base64
import contextlib
import contextvars
import gc
import json
import multiprocessing
import pickle
import stat
import time
import uuid
import weakref

import pytest

from core.crypto.datakey import DataKey
from core.crypto.envelope import MissingKeyError
from core.crypto.keyring import Keyring, TenantKeys, WrappedKey, new_data_key
from core.crypto.kms import LocalProvider, development_key, master_key, provider_from_settings
from core.crypto.values import Kind
from core.errors import ConfigurationError, KeyProviderError, ScopeError
from core.settings import Settings
from tests.test_envelope import told
from tests.vectors import independent, make

VECTORS = json.loads(make.PATH.read_text())
MASTER = b"master key of the tests, 32 byte"
TENANT, OTHER, ROW = uuid.UUID(int=1), uuid.UUID(int=2), uuid.UUID(int=3)


class Clock:
    """Time that passes when told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Store:
    """Wrapped keys of tenants, and how often they were asked for."""

    def __init__(self):
        self.rows = {}
        self.loads = 0
        self.gate = None

    async def load(self, tenant_id):
        self.loads += 1
        if self.gate is not None:
            await self.gate.wait()
        return list(self.rows.get(tenant_id, []))


class Provider(LocalProvider):
    """The local provider, which counts, waits and fails as it is told."""

    def __init__(self):
        super().__init__(MASTER)
        self.unwraps = 0
        self.failure = None
        self.delay = 0.0

    async def unwrap(self, tenant_id, wrapped, *, version):
        self.unwraps += 1
        await asyncio.sleep(self.delay)
        if self.failure is not None:
            raise self.failure
        return await super().unwrap(tenant_id, wrapped, version=version)


class World:
    def __init__(self, **options):
        self.clock, self.store, self.provider = Clock(), Store(), Provider()
        self.keyring = Keyring(self.provider, self.store.load, clock=self.clock, **options)

    async def provision(self, tenant_id, version=1, status="current"):
        key = await self.keyring.make_key(tenant_id, version, status)
        self.store.rows.setdefault(tenant_id, []).append(key)
        return key


@pytest.fixture
async def world():
    world = World()
    await world.provision(TENANT)
    return world


# -- the cache ---------------------------------------------------------------------------------------------------


async def test_a_second_request_is_answered_from_the_cache(world):
    assert world.keyring.cached(TENANT) is None
    keys = await world.keyring.for_tenant(TENANT)
    assert await world.keyring.for_tenant(TENANT) is keys
    assert world.keyring.cached(TENANT) is keys
    assert (world.store.loads, world.provider.unwraps) == (1, 1)


async def test_concurrent_requests_share_one_unwrap(world):
    world.provider.delay = 0.01
    found = await asyncio.gather(*(world.keyring.for_tenant(TENANT) for _ in range(200)))
    assert len(set(map(id, found))) == 1
    assert (world.store.loads, world.provider.unwraps) == (1, 1)


async def test_a_cancelled_request_does_not_cancel_the_others(world):
    world.store.gate = asyncio.Event()
    first, *others = [asyncio.create_task(world.keyring.for_tenant(TENANT)) for _ in range(5)]
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    assert first.cancelled()
    world.store.gate.set()
    assert len(set(map(id, await asyncio.gather(*others)))) == 1
    assert world.store.loads == 1


async def test_a_load_that_nobody_waits_for_any_more_fails_without_a_noise(world, caplog):
    world.store.gate = asyncio.Event()
    world.provider.failure = RuntimeError("down")
    waiter = asyncio.create_task(world.keyring.for_tenant(TENANT))
    await asyncio.sleep(0)
    waiter.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiter
    world.store.gate.set()
    await asyncio.sleep(0.01)
    gc.collect()
    assert not caplog.records
    assert world.keyring.cached(TENANT) is None


async def test_keys_are_dropped_when_their_time_is_up(world):
    keys = await world.keyring.for_tenant(TENANT)
    world.clock.now = 299.9
    assert world.keyring.cached(TENANT) is keys
    world.clock.now = 300.0
    assert world.keyring.cached(TENANT) is None
    assert await world.keyring.for_tenant(TENANT) is not keys


async def test_use_does_not_prolong_the_time(world):
    for now in range(0, 300, 50):
        world.clock.now = float(now)
        await world.keyring.for_tenant(TENANT)
    assert world.store.loads == 1
    world.clock.now = 300.0
    assert world.keyring.cached(TENANT) is None


async def test_the_time_starts_before_the_load():
    world = World()
    await world.provision(TENANT)
    world.store.gate = asyncio.Event()
    waiter = asyncio.create_task(world.keyring.for_tenant(TENANT))
    await asyncio.sleep(0.001)
    world.clock.now = 200.0
    world.store.gate.set()
    await waiter
    world.clock.now = 300.0
    assert world.keyring.cached(TENANT) is None


async def test_the_least_recently_used_tenant_makes_room():
    world = World(most=2)
    tenants = [uuid.UUID(int=n) for n in range(10, 13)]
    for tenant in tenants:
        await world.provision(tenant)
    await world.keyring.for_tenant(tenants[0])
    await world.keyring.for_tenant(tenants[1])
    world.keyring.cached(tenants[0])
    await world.keyring.for_tenant(tenants[2])
    assert [world.keyring.cached(tenant) is not None for tenant in tenants] == [True, False, True]


async def test_a_cache_of_no_seconds_keeps_nothing():
    world = World(seconds=0)
    await world.provision(TENANT)
    await world.keyring.for_tenant(TENANT)
    assert world.keyring.cached(TENANT) is None
    assert not world.keyring._entries
    await world.keyring.for_tenant(TENANT)
    assert world.store.loads == 2


async def test_a_forgotten_tenant_is_loaded_again(world):
    await world.keyring.for_tenant(TENANT)
    world.keyring.forget(TENANT)
    assert world.keyring.cached(TENANT) is None


async def test_keys_that_were_forgotten_while_loading_are_not_kept(world, caplog):
    world.store.gate = asyncio.Event()
    waiter = asyncio.create_task(world.keyring.for_tenant(TENANT))
    await asyncio.sleep(0)
    world.keyring.forget(TENANT)
    world.store.gate.set()
    assert isinstance(await waiter, TenantKeys)
    assert world.keyring.cached(TENANT) is None
    assert not caplog.records  # the loop logs what a callback raises


async def test_nothing_holds_the_keys_of_a_forgotten_tenant(world):
    keys = await world.keyring.for_tenant(TENANT)
    keys.row("client", (("a", Kind.TEXT),)).seal_many([(ROW, ("x",))])
    keys.blind("client.a/folded/n1", make.SPECS[1][1], "x")
    gc.disable()  # freed at once, not at some later collection
    try:
        data_key = keys._versions[1]

        class Watched(DataKey):
            __slots__ = ("__weakref__",)

        watched = Watched(TENANT, 1, new_data_key())
        reference = weakref.ref(watched)
        view = TenantKeys(TENANT, [(WrappedKey(1, b""), watched)])
        view.row("client", (("a", Kind.TEXT),)).seal_many([(ROW, ("x",))])
        del watched, view, keys, data_key
        assert reference() is None
    finally:
        gc.enable()


def test_one_keyring_serves_several_event_loops():
    world = World()
    asyncio.run(world.provision(TENANT))

    async def abandoned():
        world.store.gate = asyncio.Event()
        task = asyncio.create_task(world.keyring.for_tenant(TENANT))
        await asyncio.sleep(0)
        task.cancel()  # the load itself ends with the loop

    asyncio.run(abandoned())
    world.store.gate = None
    keys = asyncio.run(world.keyring.for_tenant(TENANT))
    assert asyncio.run(world.keyring.for_tenant(TENANT)) is keys
    world.clock.now = 1e6
    assert asyncio.run(world.keyring.for_tenant(TENANT)) is not keys


def test_two_loops_at_once_do_not_wait_for_each_other():
    world = World()
    asyncio.run(world.provision(TENANT))
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()

    async def start():
        world.store.gate = asyncio.Event()
        task = asyncio.create_task(world.keyring.for_tenant(TENANT))
        await asyncio.sleep(0)
        return task, world.store.gate

    try:
        task, gate = first.run_until_complete(start())
        world.store.gate = None
        assert second.run_until_complete(world.keyring.for_tenant(TENANT)) is world.keyring.cached(TENANT)

        async def finish():
            gate.set()
            return await task

        assert isinstance(first.run_until_complete(finish()), TenantKeys)
    finally:
        first.close()
        second.close()


# -- failure -----------------------------------------------------------------------------------------------------


async def test_a_failing_provider_closes_new_tenants_while_cached_ones_go_on(world):
    await world.provision(OTHER)
    keys = await world.keyring.for_tenant(TENANT)
    world.provider.failure = ConnectionError(f"could not reach the service with {MASTER!r}")
    with pytest.raises(KeyProviderError, match="ConnectionError") as caught:
        await world.keyring.for_tenant(OTHER)
    assert "master key of the tests" not in told(caught.value)
    assert await world.keyring.for_tenant(TENANT) is keys
    world.clock.now = 300.0
    with pytest.raises(KeyProviderError):
        await world.keyring.for_tenant(TENANT)


async def test_a_failure_reaches_everybody_and_is_not_kept(world):
    world.provider.failure = ConnectionError()
    failed = await asyncio.gather(*(world.keyring.for_tenant(TENANT) for _ in range(5)), return_exceptions=True)
    assert [type(error) for error in failed] == [KeyProviderError] * 5
    assert world.provider.unwraps == 1
    world.provider.failure = None
    assert isinstance(await world.keyring.for_tenant(TENANT), TenantKeys)


async def test_a_provider_that_does_not_wrap_fails_in_silence():
    class Broken(Provider):
        async def wrap(self, tenant_id, plaintext, *, version):
            self.seen = plaintext
            raise RuntimeError(f"could not wrap {plaintext.hex()}")

    provider = Broken()
    with pytest.raises(KeyProviderError, match="could not wrap key 1 .*RuntimeError") as caught:
        await Keyring(provider, lambda _: None).make_key(TENANT)
    assert provider.seen.hex() not in told(caught.value)
    assert repr(provider.seen) not in told(caught.value)


async def test_one_version_that_does_not_unwrap_closes_the_tenant(world):
    await world.provision(TENANT, 2)
    bad = world.store.rows[TENANT][0]
    world.store.rows[TENANT][0] = WrappedKey(1, bad.wrapped[:-1] + b"\0")
    with pytest.raises(KeyProviderError, match="Key 1 "):
        await world.keyring.for_tenant(TENANT)


async def test_a_provider_that_hangs_is_given_up():
    world = World(unwrap_seconds=0.01)
    await world.provision(TENANT)
    world.provider.delay = 60
    with pytest.raises(KeyProviderError, match="TimeoutError"):
        await world.keyring.for_tenant(TENANT)


async def test_a_provider_that_unwraps_something_else_is_refused(world):
    class Wrong(Provider):
        async def unwrap(self, tenant_id, wrapped, *, version):
            return b"sixteen byte key"

    with pytest.raises(KeyProviderError, match="32 bytes") as caught:
        await Keyring(Wrong(), world.store.load).for_tenant(TENANT)
    assert "sixteen byte key" not in told(caught.value)


async def test_a_tenant_without_keys_is_told_apart_from_a_failure(world):
    with pytest.raises(MissingKeyError, match="never provisioned") as caught:
        await world.keyring.for_tenant(OTHER)
    assert caught.value.version is None


async def test_a_refused_scope_is_refused_for_itself_only(world):
    """Who asked first may not read keys; the others wait for the same load, and may."""
    allowed = contextvars.ContextVar("allowed", default=True)
    plain_load = world.store.load

    async def load(tenant_id):
        await asyncio.sleep(0.001)
        if not allowed.get():
            raise ScopeError("not in this scope")
        return await plain_load(tenant_id)

    keyring = Keyring(world.provider, load)

    async def ask(may):
        allowed.set(may)
        return await keyring.for_tenant(TENANT)

    asked = await asyncio.gather(ask(False), ask(True), ask(False), ask(True), return_exceptions=True)
    assert [type(answer) for answer in asked[1::2]] == [TenantKeys] * 2
    assert isinstance(asked[0], ScopeError)
    assert world.provider.unwraps == 1


# -- versions ----------------------------------------------------------------------------------------------------


async def test_a_version_made_after_the_load_is_found(world):
    await world.keyring.for_tenant(TENANT)
    await world.provision(TENANT, 2)
    assert (await world.keyring.for_tenant(TENANT)).versions == (1,)
    assert (await world.keyring.for_tenant(TENANT, version=2)).versions == (1, 2)
    assert world.store.loads == 2
    await world.keyring.for_tenant(TENANT, version=1)
    assert world.store.loads == 2


async def test_a_load_from_before_the_version_is_not_believed(world):
    world.store.gate = asyncio.Event()
    early = asyncio.create_task(world.keyring.for_tenant(TENANT))
    await asyncio.sleep(0)

    async def late():
        world.clock.now = 1.0
        return await world.keyring.for_tenant(TENANT, version=2)

    waiting = asyncio.create_task(late())
    await asyncio.sleep(0)
    stale = list(world.store.rows[TENANT])
    fresh = [*stale, await world.keyring.make_key(TENANT, 2)]
    answers = iter([stale, fresh])
    world.store.rows = {TENANT: stale}

    class Answers(dict):
        def get(self, tenant_id, default):
            return next(answers)

    world.store.rows = Answers()
    world.store.gate.set()
    assert (await early).versions == (1,)
    assert (await waiting).versions == (1, 2)


async def test_a_version_that_does_not_exist_is_not_looked_for_in_a_storm(world):
    await world.keyring.for_tenant(TENANT)
    for _ in range(20):
        with pytest.raises(MissingKeyError):
            await world.keyring.for_tenant(TENANT, version=99)
    assert world.store.loads == 2
    world.clock.now = 1.0
    with pytest.raises(MissingKeyError):
        await world.keyring.for_tenant(TENANT, version=99)
    assert world.store.loads == 3
    assert world.keyring.cached(TENANT) is not None


async def test_rows_stay_readable_and_findable_through_a_rotation(world):
    """Two processes, one of them with keys cached from a step before: each reads and finds what the other wrote."""
    label, spec = make.SPECS[1][1].label("client", "i"), make.SPECS[1][1]
    statuses = [("current", None), ("current", "next"), ("previous", "current"), ("retired", "current")]
    first, second = world.store.rows[TENANT][0], await world.keyring.make_key(TENANT, 2)
    material = {
        1: await world.provider.unwrap(TENANT, first.wrapped, version=1),
        2: await world.provider.unwrap(TENANT, second.wrapped, version=2),
    }

    def step(old, new):
        rows = [(1, old)] + ([(2, new)] if new else [])
        return TenantKeys(TENANT, [(WrappedKey(v, b"", s), DataKey(TENANT, v, material[v])) for v, s in rows])

    views = [step(*status) for status in statuses]
    for before, after in zip(views[:-1], views[1:], strict=True):
        for writer, reader in ((before, after), (after, before)):
            if writer is before and reader is views[-1]:
                continue  # before the last step all digests were made again under the current version
            assert writer.blind(label, spec, "Nguyen") in reader.blind_all(label, spec, "NGUYEN")
            if 2 in reader.versions or writer.current_version == 1:
                envelope = writer.sealer("client", "x", Kind.TEXT).seal(ROW, "Nguyen")
                assert reader.sealer("client", "x", Kind.TEXT).open(ROW, envelope) == "Nguyen"
    assert [view.current_version for view in views] == [1, 1, 2, 2]
    assert [view.search_versions for view in views] == [(1,), (2, 1), (2, 1), (2,)]


async def test_keys_of_an_uncommitted_tenant_open_without_the_cache(world):
    key = await world.keyring.make_key(OTHER)
    keys = await world.keyring.open_keys(OTHER, [key])
    assert keys.sealer("client", "x", Kind.TEXT).open(ROW, keys.sealer("client", "x", Kind.TEXT).seal(ROW, "a")) == "a"
    assert world.keyring.cached(OTHER) is None


async def test_two_data_keys_are_never_the_same(world):
    assert len({new_data_key() for _ in range(1_000)}) == 1_000
    one, two = await world.keyring.make_key(TENANT, 1), await world.keyring.make_key(TENANT, 1)
    assert one.wrapped != two.wrapped


# -- the local provider ------------------------------------------------------------------------------------------


async def test_wrapped_keys_move_to_a_new_master_key():
    old = Keyring(LocalProvider(MASTER), lambda _: None)
    key = await old.make_key(TENANT)
    both = LocalProvider(b"n" * 32, (MASTER,))
    new = Keyring(both, lambda _: None)
    moved = await new.rewrap(TENANT, key)
    assert (moved.version, moved.status) == (key.version, key.status)
    assert moved.kek == both.describe()["kek"] != key.kek == both.describe()["retired"]
    envelope = (await old.open_keys(TENANT, [key])).sealer("t", "c", Kind.TEXT).seal(ROW, "x")
    alone = Keyring(LocalProvider(b"n" * 32), lambda _: None)
    assert (await alone.open_keys(TENANT, [moved])).sealer("t", "c", Kind.TEXT).open(ROW, envelope) == "x"
    with pytest.raises(KeyProviderError, match=f"{key.kek}.*CHARTHOLD_RETIRED_MASTER_KEYS"):
        await alone.open_keys(TENANT, [key])


async def test_a_wrapped_key_is_bound_to_its_tenant_and_version():
    provider = LocalProvider(MASTER)
    wrapped = await provider.wrap(TENANT, b"k" * 32, version=1)
    assert await provider.unwrap(TENANT, wrapped, version=1) == b"k" * 32
    for tenant, version in ((OTHER, 1), (TENANT, 2)):
        with pytest.raises(KeyProviderError):
            await provider.unwrap(tenant, wrapped, version=version)
    for bit in range(len(wrapped) * 8):
        flipped = bytearray(wrapped)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(KeyProviderError):
            await provider.unwrap(TENANT, bytes(flipped), version=1)


async def test_wrapped_vectors_follow_the_specification():
    vector = VECTORS["wrapped_keys"]
    master, good = bytes.fromhex(vector["master_key"]), vector["unwraps"]
    provider = LocalProvider(bytes(32), (master,))
    assert provider.describe()["retired"] == vector["kek_id"] == LocalProvider(master).describe()["kek"]
    for read in (
        lambda v: provider.unwrap(uuid.UUID(v["tenant"]), bytes.fromhex(v["wrapped"]), version=v["version"]),
        lambda v: _at_once(independent.unwrap([master], v["tenant"], v["version"], bytes.fromhex(v["wrapped"]))),
    ):
        assert (await read(good)).hex() == good["data_key"]
    for case in vector["refused"]:
        with pytest.raises(KeyProviderError):
            await provider.unwrap(uuid.UUID(case["tenant"]), bytes.fromhex(case["wrapped"]), version=case["version"])
        with pytest.raises(independent.Refused):
            independent.unwrap([master], case["tenant"], case["version"], bytes.fromhex(case["wrapped"]))


async def _at_once(value):
    return value


@pytest.mark.parametrize("bad", [b"", b"short", b"x" * 33, "x" * 32])
async def test_keys_of_another_length_are_refused_in_silence(bad):
    with pytest.raises(ConfigurationError):
        LocalProvider(bad)
    with pytest.raises(ConfigurationError) as caught:
        LocalProvider(MASTER, (bad,))
    assert "master key of the tests" not in told(caught.value)
    if isinstance(bad, bytes):
        with pytest.raises(KeyProviderError):
            await LocalProvider(MASTER).wrap(TENANT, bad, version=1)


async def test_a_provider_and_a_keyring_show_no_key(world):
    await world.keyring.for_tenant(TENANT)
    for thing in (world.keyring, LocalProvider(MASTER), world.store.rows[TENANT][0]):
        shown = repr(thing) + str(thing)
        assert "master key" not in shown
        assert "\\x" not in shown
    assert MASTER.decode() not in json.dumps(LocalProvider(MASTER).describe())
    for thing in (world.keyring, LocalProvider(MASTER)):
        with pytest.raises(TypeError):
            pickle.dumps(thing)


# -- the development key -----------------------------------------------------------------------------------------


def test_the_development_key_is_made_once_and_only_its_owner_reads_it(tmp_path):
    home = tmp_path / "new" / "home"
    key = development_key(home)
    assert len(key) == 32
    assert development_key(home) == key
    assert stat.S_IMODE((home / "master.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert base64.b64decode((home / "master.key").read_bytes()) == key
    assert [file.name for file in home.iterdir()] == ["master.key"]


def _make_in_another_process(home, start, results):
    while time.time() < start:
        pass
    results.put(development_key(home))


def test_several_processes_at_once_get_the_same_key(tmp_path):
    context = multiprocessing.get_context("spawn")
    results, start = context.Queue(), time.time() + 3
    workers = [context.Process(target=_make_in_another_process, args=(tmp_path, start, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    keys = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join(60)
    assert len(keys) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["master.key"]


def test_eight_threads_at_once_get_the_same_key_again_and_again(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        for attempt in range(50):
            assert len(set(pool.map(development_key, [tmp_path / str(attempt)] * 8))) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o777])
def test_a_key_that_others_may_read_is_refused(tmp_path, mode):
    development_key(tmp_path)
    (tmp_path / "master.key").chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        development_key(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not base64!", base64.b64encode(b"short"), base64.b64encode(b"x" * 33)])
def test_a_damaged_key_is_refused_and_never_replaced(tmp_path, content):
    path = tmp_path / "master.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="32 bytes") as caught:
        development_key(tmp_path)
    assert path.read_bytes() == content
    assert not content or content.decode() not in told(caught.value)


def test_a_link_in_place_of_the_key_is_refused(tmp_path):
    development_key(tmp_path / "elsewhere")
    (tmp_path / "master.key").symlink_to(tmp_path / "elsewhere" / "master.key")
    with pytest.raises(ConfigurationError):
        development_key(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "master.key").mkdir()
    with pytest.raises(ConfigurationError):
        development_key(tmp_path / "folder")
    (tmp_path / "dangling").mkdir()
    (tmp_path / "dangling" / "master.key").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError):
        development_key(tmp_path / "dangling")


def test_a_home_that_cannot_be_made_is_explained(tmp_path):
    (tmp_path / "home").write_text("a file")
    with pytest.raises(ConfigurationError, match="CHARTHOLD_HOME"):
        development_key(tmp_path / "home" / "below")


def test_the_settings_choose_the_provider(tmp_path):
    configured = Settings(home=tmp_path, master_key=MASTER, retired_master_keys=(b"o" * 32,))
    assert provider_from_settings(configured).describe() == LocalProvider(MASTER, (b"o" * 32,)).describe()
    assert not list(tmp_path.iterdir())
    own = provider_from_settings(Settings(home=tmp_path)).describe()["kek"]
    assert own == LocalProvider(development_key(tmp_path)).describe()["kek"]
    assert master_key(Settings(home=tmp_path)) == development_key(tmp_path)


def test_a_configured_server_never_gets_a_development_key(tmp_path):
    with pytest.raises(ConfigurationError, match="CHARTHOLD_MASTER_KEY"):
        provider_from_settings(Settings(home=tmp_path, database_url="postgresql://db/x"))
    assert not list(tmp_path.iterdir())
