"""The Merkle tree of RFC 6962, section 2.1 (the same as RFC 9162, section 2.1). Bytes only.

Threat: whoever may rewrite the log may rewrite what is computed from it. A root says all leaves and their order, so one
signed root of 32 bytes makes every change show. Leaves and nodes are hashed under different first bytes: else a node
could be passed off as a record.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Self

__all__ = [
    "HASH_BYTES",
    "Frontier",
    "Range",
    "Ranges",
    "consistency_ranges",
    "inclusion_ranges",
    "leaf_hash",
    "node_hash",
    "verify_consistency",
    "verify_inclusion",
]

HASH_BYTES = 32
EMPTY = sha256(b"").digest()

Range = tuple[int, int]


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf's data."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a node over its two children."""
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of a growing tree: the hash of each perfect subtree, the largest first.

    There is one for each 1 in ``size``. It is all that appending needs, so a tree of any size grows in O(log n) memory.
    """

    __slots__ = ("hashes", "size")

    def __init__(self, size: int = 0, hashes: Iterable[bytes] = ()) -> None:
        self.size = size
        self.hashes = list(hashes)
        if size < 0 or len(self.hashes) != size.bit_count():
            raise ValueError("A frontier has one hash for each 1 in the tree's size.")

    @classmethod
    def from_bytes(cls, size: int, data: bytes) -> Self:
        """What ``to_bytes`` gave, for a tree of that size."""
        if len(data) % HASH_BYTES:
            raise ValueError("A frontier is a row of 32-byte hashes.")
        return cls(size, (data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)))

    def to_bytes(self) -> bytes:
        return b"".join(self.hashes)

    def copy(self) -> Frontier:
        return Frontier(self.size, self.hashes)

    def append(self, leaf: bytes) -> None:
        """Add the hash of one leaf."""
        self.extend((leaf,))

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Add the hashes of leaves, in order."""
        stack, size = self.hashes, self.size
        for leaf in leaves:
            node, rest = leaf, size
            while rest & 1:  # each trailing 1 is a perfect subtree of this node's height, waiting for its sibling
                node = sha256(b"\x01" + stack.pop() + node).digest()
                rest >>= 1
            stack.append(node)
            size += 1
        self.size = size

    def root(self) -> bytes:
        """The tree's hash."""
        if not self.hashes:
            return EMPTY
        node = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            node = node_hash(left, node)
        return node


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """Which subtrees, as ranges of leaves, an inclusion proof consists of: PATH(m, D[n]), the lowest first."""
    if not 0 <= index < size:
        raise ValueError("The leaf is not in the tree.")
    found: list[Range] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            found.append((middle, end))
            end = middle
        else:
            found.append((start, middle))
            start = middle
    return found[::-1]


def consistency_ranges(first: int, second: int) -> list[Range]:
    """Which subtrees a consistency proof consists of: PROOF(m, D[n]), the lowest first."""
    if not 0 < first <= second:
        raise ValueError("A tree of one leaf or more grows into one of its size or larger.")
    found: list[Range] = []
    start, end, whole = 0, second, True
    while first != end:
        middle = start + _split(end - start)
        if first <= middle:
            found.append((middle, end))
            end = middle
        else:
            found.append((start, middle))
            start, whole = middle, False
    if not whole:
        found.append((start, end))
    return found[::-1]


class Ranges:
    """The hashes of ranges of leaves, which do not overlap, while all leaves pass by in order."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._trees = {part: Frontier() for part in ranges}
        self._passed = 0

    def extend(self, leaves: Sequence[bytes]) -> None:
        """The next leaves."""
        for (start, end), tree in self._trees.items():
            tree.extend(leaves[max(start - self._passed, 0) : max(end - self._passed, 0)])
        self._passed += len(leaves)

    def hashes(self) -> list[bytes]:
        """The hash of each range."""
        return [tree.root() for tree in self._trees.values()]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """RFC 9162, section 2.1.3.2: true when the leaf hash stands at ``index`` of the tree of that size and root."""
    if not 0 <= index < size:
        return False
    fn, sn, node = index, size - 1, leaf
    for sibling in proof:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            node = node_hash(sibling, node)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            node = node_hash(node, sibling)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and node == root


def verify_consistency(first: int, second: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]) -> bool:
    """RFC 9162, section 2.1.4.2: true when the second tree holds the first one's leaves, unchanged and in front."""
    if not 0 < first <= second:
        return False
    if first == second:
        return not proof and first_root == second_root
    path = [first_root, *proof] if first.bit_count() == 1 else list(proof)
    if not path:
        return False
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            new = node_hash(new, sibling)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and old == first_root and new == second_root


def _split(size: int) -> int:
    """The largest power of two below ``size``: where RFC 6962 parts a tree."""
    return 1 << (size - 1).bit_length() - 1
