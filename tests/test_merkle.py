"""The Merkle tree: the published vectors, and a slow tree written from the RFC's recursion."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.audit.merkle import (
    Frontier,
    Ranges,
    consistency_ranges,
    inclusion_ranges,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)
from tests.reference import tree_hash

# The vectors of the Certificate Transparency reference implementations.
INPUTS = [
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEAVES = [leaf_hash(bytes.fromhex(text)) for text in INPUTS]

INCLUSION = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
CONSISTENCY = {
    (1, 1): [],
    (1, 8): INCLUSION[0, 8],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}

leaves_of = st.integers(1, 70).map(lambda n: [leaf_hash(bytes([i])) for i in range(n)])


def slow_tree(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962, word for word."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return node_hash(slow_tree(leaves[:k]), slow_tree(leaves[k:]))


def inclusion_proof(index: int, leaves: list[bytes]) -> list[bytes]:
    return hashes_of(inclusion_ranges(index, len(leaves)), leaves)


def consistency_proof(first: int, leaves: list[bytes]) -> list[bytes]:
    return hashes_of(consistency_ranges(first, len(leaves)), leaves)


def hashes_of(ranges: list[tuple[int, int]], leaves: list[bytes]) -> list[bytes]:
    """The leaves pass by a few at a time, as they do when a proof is made."""
    found = Ranges(ranges)
    for start in range(0, len(leaves), 3):
        found.extend(leaves[start : start + 3])
    return found.hashes()


def test_the_published_roots() -> None:
    assert tree_hash([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert [tree_hash(LEAVES[: n + 1]).hex() for n in range(8)] == ROOTS


@pytest.mark.parametrize(("place", "proof"), INCLUSION.items())
def test_the_published_inclusion_proofs(place, proof) -> None:
    index, size = place
    assert [h.hex() for h in inclusion_proof(index, LEAVES[:size])] == proof
    assert verify_inclusion(LEAVES[index], index, size, list(map(bytes.fromhex, proof)), bytes.fromhex(ROOTS[size - 1]))


@pytest.mark.parametrize(("sizes", "proof"), CONSISTENCY.items())
def test_the_published_consistency_proofs(sizes, proof) -> None:
    first, second = sizes
    assert [h.hex() for h in consistency_proof(first, LEAVES[:second])] == proof
    roots = [bytes.fromhex(ROOTS[size - 1]) for size in sizes]
    assert verify_consistency(first, second, *roots, list(map(bytes.fromhex, proof)))


@given(leaves=leaves_of, cuts=st.lists(st.integers(0, 70), max_size=4))
def test_a_tree_that_grows_in_pieces_is_the_tree_of_the_rfc(leaves, cuts) -> None:
    tree, done = Frontier(), 0
    for cut in [*sorted(min(cut, len(leaves)) for cut in cuts), len(leaves)]:
        tree.extend(leaves[done:cut])
        tree = Frontier.from_bytes(tree.size, tree.to_bytes())
        assert tree.root() == slow_tree(leaves[:cut])
        done = cut
    assert tree.size == len(leaves)


@given(leaves=leaves_of, data=st.data())
def test_a_proof_holds_for_its_leaf_and_for_nothing_else(leaves, data) -> None:
    size = len(leaves)
    index = data.draw(st.integers(0, size - 1))
    proof, root = inclusion_proof(index, leaves), tree_hash(leaves)
    assert verify_inclusion(leaves[index], index, size, proof, root)
    assert not verify_inclusion(leaf_hash(b"another"), index, size, proof, root)
    assert not verify_inclusion(leaves[index], index, size, [*proof, root], root)
    assert not verify_inclusion(leaves[index], size, size, proof, root)
    if proof:
        assert not verify_inclusion(leaves[index], index, size, proof[:-1], root)
        assert not verify_inclusion(leaves[index], index, size, proof[::-1], root) or proof == proof[::-1]
    other = data.draw(st.integers(0, size - 1))
    if other != index:
        assert not verify_inclusion(leaves[index], other, size, proof, root)


@given(leaves=leaves_of, data=st.data())
def test_consistency_holds_for_a_prefix_and_for_no_rewritten_one(leaves, data) -> None:
    second = len(leaves)
    first = data.draw(st.integers(1, second))
    proof, roots = consistency_proof(first, leaves), (tree_hash(leaves[:first]), tree_hash(leaves))
    assert verify_consistency(first, second, *roots, proof)
    changed = data.draw(st.integers(0, first - 1))
    rewritten = [*leaves[:changed], leaf_hash(b"rewritten"), *leaves[changed + 1 :]]
    assert not verify_consistency(first, second, tree_hash(rewritten[:first]), roots[1], proof)
    assert not verify_consistency(first, second, roots[0], tree_hash(rewritten), consistency_proof(first, rewritten))
    if first < second:
        assert not verify_consistency(first, second, *roots, [*proof, roots[0]])


def test_a_frontier_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="one hash for each 1"):
        Frontier(3, [b"\0" * 32])
    with pytest.raises(ValueError, match="32-byte"):
        Frontier.from_bytes(1, b"\0" * 31)
