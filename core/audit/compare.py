"""The log against the list of what was sealed: which records were changed, moved, taken out or put in.

Each is read once. Where they agree, whole slices are compared; where they differ, records are found again by their ids.
Memory grows with what was tampered with, not with the log.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID

from core.audit.merkle import HASH_BYTES
from core.audit.stream import Leaf

__all__ = ["Comparison", "Log"]


@dataclass(frozen=True)
class Entry:
    """A record of the log: its id, the hash of what it says now, and its transaction."""

    id: bytes
    hash: bytes
    transaction_id: int


class Log:
    """The leaves of the records in the order of the tree, with a look ahead."""

    def __init__(self, batches: AsyncIterator[list[Leaf]]) -> None:
        self._batches = batches
        self._leaves: list[Leaf] = []
        self._hashes: list[bytes] = []
        self._at = 0

    async def ahead(self) -> int:
        """How many records can be looked at now; 0 at the end."""
        if self._at == len(self._leaves):
            await self.reach(1)
        return len(self._leaves) - self._at

    async def reach(self, count: int) -> bool:
        """Look ahead so many records; False when there are fewer."""
        while len(self._leaves) - self._at < count:
            batch = await anext(self._batches, None)
            if batch is None:
                return False
            self._leaves = self._leaves[self._at :] + batch
            self._hashes = self._hashes[self._at :] + [leaf.hash for leaf in batch]
            self._at = 0
        return True

    def hashes(self, count: int) -> list[bytes]:
        """The hashes of the next records."""
        return self._hashes[self._at : self._at + count]

    def entry(self) -> Entry:
        """The next record."""
        leaf = self._leaves[self._at]
        return Entry(leaf.id.bytes, leaf.hash, leaf.transaction_id)

    def skip(self, count: int) -> None:
        self._at += count


class Comparison:
    """Give it each list of sealed leaves in turn, then ask for what is left over."""

    def __init__(self, log: Log, archived_before: bytes) -> None:
        """``archived_before``: how an id (UUIDv7) begins before which records may be archived with their month."""
        self._log = log
        self._archived_before = archived_before
        self._archivable = False
        self.archived = 0
        self._awaited: dict[bytes, tuple[int, bytes]] = {}  # sealed, not met in the log so far
        self._strange: dict[bytes, Entry] = {}  # met in the log, not in a list so far
        self._odd: list[tuple[int, bytes, bool]] = []  # met out of step, in the log's order: place, id, changed
        self._twice: list[Entry] = []

    async def leaves(self, start: int, ids: list[UUID], hashes: bytes, *, archivable: bool) -> None:
        """The next sealed leaves, from the place ``start`` of the tree on. ``archivable``: sealed long enough ago."""
        self._archivable = archivable
        log, keys = self._log, [i.bytes for i in ids]
        index: dict[bytes, int] = {}
        met = self._met_before(start, keys, hashes)
        at = 0
        while at < len(keys):
            if at in met:
                at += 1
                continue
            ahead = await log.ahead()
            if not ahead:
                break
            count = min(len(keys) - at, ahead) if not met else 1
            if b"".join(log.hashes(count)) == hashes[at * HASH_BYTES : (at + count) * HASH_BYTES]:
                at += count
                log.skip(count)
                continue
            # One by one up to the first that differs.
            while count and log.hashes(1)[0] == _hash(hashes, at):
                at, count = at + 1, count - 1
                log.skip(1)
            entry = log.entry()
            index = index or {key: place for place, key in enumerate(keys)}
            place = index.get(entry.id, -1)
            if place >= at and place not in met:
                self._await(start, keys, hashes, at, place, met)
                self._meet(start + place, entry, _hash(hashes, place))
                at = place + 1
            elif entry.id in self._awaited:
                self._meet(*self._awaited_entry(entry))
            elif entry.id in self._strange:
                self._twice.append(entry)
            else:
                self._strange[entry.id] = entry
            log.skip(1)
        self._await(start, keys, hashes, at, len(keys), met)

    async def unlisted(self, count: int, until: set[bytes]) -> list[bytes]:
        """The hashes of up to ``count`` records whose list is gone, stopping before a record that is listed later."""
        found: list[bytes] = []
        while len(found) < count and await self._log.ahead():
            entry = self._log.entry()
            if entry.id in until:
                break
            found.append(entry.hash)
            self._log.skip(1)
        return found

    async def finish(self) -> None:
        """Read the rest of the log."""
        while await self._log.ahead():
            entry = self._log.entry()
            if entry.id in self._awaited:
                self._meet(*self._awaited_entry(entry))
            elif entry.id in self._strange:
                self._twice.append(entry)
            else:
                self._strange[entry.id] = entry
            self._log.skip(1)

    def missing(self) -> list[tuple[int, UUID]]:
        """Sealed, and no longer in the log: places and ids."""
        return sorted((place, UUID(bytes=key)) for key, (place, _) in self._awaited.items())

    def strangers(self) -> list[Entry]:
        """In the log, and not sealed."""
        return [*self._strange.values(), *self._twice]

    def changed(self) -> list[tuple[int, UUID, bool]]:
        """Not what was sealed: places, ids, and whether the change moved the record to another place in the order."""
        kept = _longest_rise([place for place, _, _ in self._odd])
        return sorted((place, UUID(bytes=key), place not in kept) for place, key, changed in self._odd if changed)

    def _meet(self, place: int, entry: Entry, sealed: bytes) -> None:
        self._odd.append((place, entry.id, entry.hash != sealed))

    def _awaited_entry(self, entry: Entry) -> tuple[int, Entry, bytes]:
        place, sealed = self._awaited.pop(entry.id)
        return place, entry, sealed

    def _await(self, start: int, keys: list[bytes], hashes: bytes, at: int, end: int, met: set[int]) -> None:
        for place in range(at, end):
            if place in met:
                continue
            if self._archivable and keys[place] < self._archived_before:
                self.archived += 1
            else:
                self._awaited[keys[place]] = (start + place, _hash(hashes, place))

    def _met_before(self, start: int, keys: list[bytes], hashes: bytes) -> set[int]:
        """Which leaves the log showed too early."""
        met: set[int] = set()
        if self._strange:
            for place, key in enumerate(keys):
                if (entry := self._strange.pop(key, None)) is not None:
                    met.add(place)
                    self._meet(start + place, entry, _hash(hashes, place))
        return met


def _hash(hashes: bytes, place: int) -> bytes:
    return hashes[place * HASH_BYTES : (place + 1) * HASH_BYTES]


def _longest_rise(places: list[int]) -> set[int]:
    """The most places that stand in their order: whoever else is not among them has been moved."""
    tails: list[int] = []
    ends: list[int] = []
    before: list[int] = []
    for turn, place in enumerate(places):
        length = bisect_right(tails, place)
        before.append(ends[length - 1] if length else -1)
        tails[length : length + 1] = [place]
        ends[length : length + 1] = [turn]
    kept: set[int] = set()
    turn = ends[-1] if ends else -1
    while turn >= 0:
        kept.add(places[turn])
        turn = before[turn]
    return kept
