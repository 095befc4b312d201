"""Paths of redo that records of one kind take, told apart by their main data and block references.

Offsets in main data are those of spec walredo.md 8-14. A record whose page is restored from an image counts as well:
main data does not depend on it. Not to be seen in a record, and so not here: a GiST index that is built with buffering
writes full page images (`XLOG FPI`) like every other build.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.redo.record_types import MAJORS

Blocks = Mapping[int, Mapping[str, Any]]
"""Block references by their id, as `decode_wal` shows them."""

Test = Callable[[bytes, Blocks], bool]

NO_BLOCK = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Variant:
    """One path. `names` are the kinds that can take it, without `+INIT`."""

    rmgr: str
    names: tuple[str, ...]
    text: str
    test: Test
    majors: tuple[int, ...] = MAJORS
    unreachable: str = ""
    """Why workloads of an ordinary size do not reach it; empty if they must."""


def variants_of(major: int) -> list[Variant]:
    """Return the variants that a server of this version can write."""
    return [variant for variant in VARIANTS if major in variant.majors]


def u16(main: bytes, at: int) -> int:
    """Return the little-endian number of two bytes at an offset."""
    return int.from_bytes(main[at : at + 2], "little")


def u32(main: bytes, at: int) -> int:
    """Return the little-endian number of four bytes at an offset."""
    return int.from_bytes(main[at : at + 4], "little")


def _flag(at: int, bit: int) -> Test:
    return lambda main, blocks: bool(main[at] & bit)


def _short(at: int) -> Test:
    return lambda main, blocks: u16(main, at) > 0


def _byte(at: int, value: bool) -> Test:
    return lambda main, blocks: bool(main[at]) == value


def _block(number: int) -> Test:
    return lambda main, blocks: number in blocks


def _gin(at: int, *, data: bool, leaf: bool, root: bool | None = None) -> Test:
    """Flags of GIN INSERT and SPLIT: 1 posting tree, 2 leaf, 4 the root is split."""

    def test(main: bytes, blocks: Blocks) -> bool:
        flags = u16(main, at)
        return bool(flags & 1) == data and bool(flags & 2) == leaf and (root is None or bool(flags & 4) == root)

    return test


def _vacuum_leaf(index: int) -> Test:
    return lambda main, blocks: struct.unpack_from("<4H", main)[index] > 0


_UNTIL_16, _SINCE_17 = (14, 15, 16), (17, 18)
_PRUNES = ("PRUNE_ON_ACCESS", "PRUNE_VACUUM_SCAN")
_SPLITS = ("SPLIT_L", "SPLIT_R")

VARIANTS: tuple[Variant, ...] = (
    # Heap: flags of walredo.md 8.2.
    Variant("Heap", ("INSERT",), "speculative", _flag(2, 0x04)),
    Variant("Heap", ("INSERT",), "clears all-visible", _flag(2, 0x01)),
    Variant("Heap", ("DELETE",), "abort of a speculative insertion", _flag(7, 0x08)),
    Variant("Heap", ("DELETE",), "move to another partition", _flag(7, 0x10)),
    Variant("Heap", ("DELETE",), "clears all-visible", _flag(7, 0x01)),
    Variant("Heap", ("DELETE",), "with the old row's key (logical)", _flag(7, 0x04)),
    Variant("Heap", ("DELETE",), "with the old row (logical)", _flag(7, 0x02)),
    Variant("Heap", ("UPDATE",), "to another page", _block(1)),
    Variant("Heap", ("UPDATE",), "on one page", lambda main, blocks: 1 not in blocks),
    Variant("Heap", ("UPDATE",), "clears all-visible of the old page", _flag(7, 0x01)),
    Variant("Heap", ("UPDATE",), "clears all-visible of the new page", _flag(7, 0x02)),
    *(
        Variant("Heap", (name,), text, _flag(7, bit))
        for name in ("UPDATE", "HOT_UPDATE")
        for text, bit in (
            ("prefix from the old tuple", 0x20),
            ("suffix from the old tuple", 0x40),
            ("with the new row (logical)", 0x10),
        )
    ),
    Variant("Heap", ("LOCK",), "exclusive", _flag(6, 0x04)),
    Variant("Heap", ("LOCK",), "key share", _flag(6, 0x08)),
    Variant("Heap", ("LOCK",), "by a multixact", _flag(6, 0x01)),
    Variant("Heap", ("LOCK",), "clears all-frozen", _flag(7, 0x01)),
    # Heap2.
    Variant("Heap2", ("PRUNE",), "redirects", _short(4), _UNTIL_16),
    Variant("Heap2", ("PRUNE",), "dead line pointers", _short(6), _UNTIL_16),
    *(
        Variant("Heap2", (name,), text, _flag(1, bit), _SINCE_17)
        for name in _PRUNES
        for text, bit in (("redirects", 0x20), ("dead line pointers", 0x40), ("unused line pointers", 0x80))
    ),
    Variant("Heap2", ("PRUNE_VACUUM_SCAN",), "freezes", _flag(1, 0x10), _SINCE_17),
    Variant(
        "Heap2",
        ("PRUNE_VACUUM_SCAN",),
        "prunes and freezes",
        lambda main, blocks: bool(main[1] & 0x10 and main[1] & 0xE0),
        _SINCE_17,
    ),
    Variant("Heap2", ("MULTI_INSERT",), "frozen rows", _flag(0, 0x20)),
    Variant("Heap2", ("MULTI_INSERT",), "clears all-visible", _flag(0, 0x01)),
    # Btree.
    *(
        Variant(
            "Btree",
            (name,),
            text,
            (lambda main, blocks: u32(main, 0) == 0) if text == "leaf" else (lambda main, blocks: u32(main, 0) > 0),
        )
        for name in _SPLITS
        for text in ("leaf", "inner page")
    ),
    *(Variant("Btree", (name,), "in the middle of a posting list", _short(8)) for name in _SPLITS),
    *(Variant("Btree", (name,), "not the rightmost page", _block(2)) for name in _SPLITS),
    Variant("Btree", ("NEWROOT",), "first leaf", lambda main, blocks: u32(main, 4) == 0),
    Variant("Btree", ("NEWROOT",), "after the root's split", lambda main, blocks: u32(main, 4) > 0),
    Variant("Btree", ("NEWROOT",), "third level", lambda main, blocks: u32(main, 4) > 1),
    Variant("Btree", ("DELETE",), "posting lists shrink", lambda main, blocks: u16(main, 6) > 0),
    Variant("Btree", ("VACUUM",), "posting lists shrink", _short(2)),
    Variant("Btree", ("MARK_PAGE_HALFDEAD",), "of a subtree", lambda main, blocks: u32(main, 16) != NO_BLOCK),
    Variant("Btree", ("UNLINK_PAGE", "UNLINK_PAGE_META"), "inner page", lambda main, blocks: u32(main, 8) > 0),
    Variant("Btree", ("UNLINK_PAGE", "UNLINK_PAGE_META"), "leftmost page", lambda main, blocks: u32(main, 0) == 0),
    Variant("Btree", ("UNLINK_PAGE", "UNLINK_PAGE_META"), "leaf's subtree goes on", _block(3)),
    # Hash.
    Variant("Hash", ("ADD_OVFL_PAGE",), "a freed page again", _byte(2, True)),
    Variant("Hash", ("ADD_OVFL_PAGE",), "a page at the end", _byte(2, False)),
    Variant(
        "Hash",
        ("ADD_OVFL_PAGE",),
        "second bitmap page",
        _block(3),
        unreachable="needs 32,768 overflow pages in one index: `make_wal --part large.hash_second_bitmap`",
    ),
    Variant("Hash", ("SPLIT_ALLOCATE_PAGE",), "masks change", _flag(8, 1)),
    Variant("Hash", ("SPLIT_ALLOCATE_PAGE",), "split point changes", _flag(8, 2)),
    Variant("Hash", ("MOVE_PAGE_CONTENTS",), "to the bucket's first page", _byte(2, True)),
    Variant("Hash", ("MOVE_PAGE_CONTENTS",), "to an overflow page", _byte(2, False)),
    Variant("Hash", ("SQUEEZE_PAGE",), "to the bucket's first page", _byte(10, True)),
    Variant("Hash", ("SQUEEZE_PAGE",), "to an overflow page", _byte(10, False)),
    Variant("Hash", ("SQUEEZE_PAGE",), "to the page before", _byte(11, True)),
    Variant("Hash", ("SQUEEZE_PAGE",), "not to the page before", _byte(11, False)),
    Variant("Hash", ("SQUEEZE_PAGE",), "moves tuples", _short(8)),
    Variant(
        "Hash",
        ("SQUEEZE_PAGE",),
        "from the middle of the chain",
        _block(4),
        unreachable="squeezing frees the last page of the chain, always",
    ),
    Variant("Hash", ("SQUEEZE_PAGE",), "first free page changes", _block(6)),
    Variant("Hash", ("DELETE",), "bucket's first page", _byte(1, True)),
    Variant("Hash", ("DELETE",), "overflow page", _byte(1, False)),
    # GIN.
    Variant("Gin", ("INSERT",), "entry tree, leaf", _gin(0, data=False, leaf=True)),
    Variant("Gin", ("INSERT",), "entry tree, inner page", _gin(0, data=False, leaf=False)),
    Variant("Gin", ("INSERT",), "posting tree, leaf", _gin(0, data=True, leaf=True)),
    Variant("Gin", ("INSERT",), "posting tree, inner page", _gin(0, data=True, leaf=False)),
    Variant("Gin", ("SPLIT",), "entry tree, leaf", _gin(24, data=False, leaf=True, root=False)),
    Variant("Gin", ("SPLIT",), "entry tree, inner page", _gin(24, data=False, leaf=False, root=False)),
    Variant("Gin", ("SPLIT",), "entry tree, root that is a leaf", _gin(24, data=False, leaf=True, root=True)),
    Variant("Gin", ("SPLIT",), "entry tree, root", _gin(24, data=False, leaf=False, root=True)),
    Variant("Gin", ("SPLIT",), "posting tree, leaf", _gin(24, data=True, leaf=True, root=False)),
    Variant("Gin", ("SPLIT",), "posting tree, root that is a leaf", _gin(24, data=True, leaf=True, root=True)),
    Variant(
        "Gin",
        ("SPLIT",),
        "posting tree, root that is not a leaf",
        _gin(24, data=True, leaf=False, root=True),
        unreachable="needs a posting tree of 800 leaf pages: `make_wal --part large.gin_high_posting_tree`",
    ),
    Variant("Gin", ("UPDATE_META_PAGE",), "rows go to the list's last page", lambda main, blocks: u32(main, 80) > 0),
    Variant("Gin", ("UPDATE_META_PAGE",), "pages are appended to the list", lambda main, blocks: u32(main, 80) == 0),
    # GiST.
    Variant("Gist", ("PAGE_UPDATE",), "ends a split below", _block(1)),
    Variant("Gist", ("PAGE_UPDATE",), "replaces a tuple", lambda main, blocks: u16(main, 0) == u16(main, 2) == 1),
    Variant("Gist", ("PAGE_UPDATE",), "removes tuples", _short(0)),
    Variant("Gist", ("PAGE_SPLIT",), "leaf", _byte(16, True)),
    Variant("Gist", ("PAGE_SPLIT",), "inner page", _byte(16, False)),
    Variant("Gist", ("PAGE_SPLIT",), "root", lambda main, blocks: blocks[1]["block"] == 0),
    Variant(
        "Gist", ("PAGE_SPLIT",), "inner page, not root", lambda main, blocks: not main[16] and blocks[1]["block"] != 0
    ),
    Variant("Gist", ("PAGE_SPLIT",), "ends a split below", _block(0)),
    Variant("Gist", ("PAGE_SPLIT",), "into three or more", _block(3)),
    # SP-GiST.
    Variant("SPGist", ("ADD_LEAF",), "new page", _byte(0, True)),
    Variant("SPGist", ("ADD_LEAF",), "nulls", _byte(1, True)),
    Variant("SPGist", ("ADD_LEAF",), "replaces a dead tuple", lambda main, blocks: u16(main, 2) == u16(main, 4)),
    Variant("SPGist", ("MOVE_LEAFS",), "to a new page", _byte(2, True)),
    Variant("SPGist", ("MOVE_LEAFS",), "to a page in use", _byte(2, False)),
    Variant("SPGist", ("MOVE_LEAFS",), "replaces a dead tuple", _byte(3, True)),
    Variant("SPGist", ("ADD_NODE",), "in place", lambda main, blocks: 1 not in blocks),
    Variant("SPGist", ("ADD_NODE",), "moved, leaves a redirect", _block(1)),
    Variant("SPGist", ("ADD_NODE",), "moved, parent on a third page", _block(2)),
    Variant("SPGist", ("SPLIT_TUPLE",), "postfix on the same page", _byte(5, True)),
    Variant("SPGist", ("SPLIT_TUPLE",), "postfix on another page", _byte(5, False)),
    Variant("SPGist", ("PICKSPLIT",), "of the root", _byte(0, True)),
    Variant("SPGist", ("PICKSPLIT",), "of a leaf page", _byte(0, False)),
    Variant("SPGist", ("PICKSPLIT",), "to a second leaf page", _block(1)),
    Variant("SPGist", ("PICKSPLIT",), "parent on the inner tuple's page", _byte(12, True)),
    Variant("SPGist", ("PICKSPLIT",), "parent on another page", _block(3)),
    Variant("SPGist", ("PICKSPLIT",), "nulls", _byte(11, True)),
    Variant("SPGist", ("VACUUM_LEAF",), "dead tuples", _vacuum_leaf(0)),
    Variant("SPGist", ("VACUUM_LEAF",), "placeholders", _vacuum_leaf(1)),
    Variant("SPGist", ("VACUUM_LEAF",), "moves", _vacuum_leaf(2)),
    Variant("SPGist", ("VACUUM_LEAF",), "chains again", _vacuum_leaf(3)),
    Variant("SPGist", ("VACUUM_REDIRECT",), "redirects become placeholders", _short(0)),
    Variant("SPGist", ("VACUUM_REDIRECT",), "placeholders are cut off", _short(2)),
    # Storage and logical messages.
    Variant("Storage", ("TRUNCATE",), "to a part", lambda main, blocks: u32(main, 0) > 0),
    Variant("Storage", ("TRUNCATE",), "to nothing", lambda main, blocks: u32(main, 0) == 0),
    Variant("LogicalMessage", ("MESSAGE",), "transactional", _byte(4, True)),
    Variant("LogicalMessage", ("MESSAGE",), "not transactional", _byte(4, False)),
)
