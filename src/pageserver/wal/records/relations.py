"""SMGR: creation and truncation of relation forks (spec wal.md 5.4)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from pageserver.keyspace.key import FSM_FORK, MAIN_FORK, VM_FORK, RelTag
from pageserver.wal.keyspace_writer import KeyspaceWriter

if TYPE_CHECKING:
    from pageserver._core import RelationCreate, RelationTruncate

TRUNCATE_HEAP: Final = 0x1
TRUNCATE_VM: Final = 0x2
TRUNCATE_FSM: Final = 0x4

_FSM_SLOTS_PER_PAGE: Final = 4069
_FSM_TREE_DEPTH: Final = 3
_HEAP_BLOCKS_PER_VM_PAGE: Final = 32672
_HEAP_BLOCKS_PER_VM_BYTE: Final = 4
_VM_BITS_PER_HEAP_BLOCK: Final = 2
_TRUNCATE_VM_RECORD: Final = struct.Struct(">IIQQ")
_WAL_RECORD_VALUE: Final = 1
_TRUNCATE_VM_VARIANT: Final = 7


def create_relation(writer: KeyspaceWriter, detail: RelationCreate) -> None:
    writer.create_relation(RelTag(detail.spc, detail.db, detail.rel, detail.fork), implicit=detail.implicit)


def truncate_relation(writer: KeyspaceWriter, detail: RelationTruncate) -> None:
    """Cut the main fork and its maps. The last page of a map that stays in part loses what lies behind the cut.

    Only the shard that owns that page counts it as staying; another one may see its map one page shorter, which is
    harmless.
    """
    rel = RelTag(detail.spc, detail.db, detail.rel, MAIN_FORK)
    if detail.flags & TRUNCATE_HEAP:
        writer.truncate_relation(rel, detail.blocks)
    if detail.flags & TRUNCATE_FSM:
        _truncate_fsm(writer, rel.with_fork(FSM_FORK), detail.blocks)
    if detail.flags & TRUNCATE_VM:
        _truncate_vm(writer, rel.with_fork(VM_FORK), detail.blocks)


def fsm_page_of_heap_block(block: int) -> int:
    """Return the block of the free space map whose leaf slots begin with, or hold, the slot of a heap block.

    Upper tree pages lie in between: the first leaf page is block 2.
    """
    page = block // _FSM_SLOTS_PER_PAGE
    position = 0
    for _ in range(_FSM_TREE_DEPTH):
        position += page + 1
        page //= _FSM_SLOTS_PER_PAGE
    return position - 1


def encode_truncate_vm(byte: int, bit_offset: int) -> bytes:
    """Return the stored value that clears a visibility-map page from a byte and bit on (wal.md 7)."""
    return _TRUNCATE_VM_RECORD.pack(_WAL_RECORD_VALUE, _TRUNCATE_VM_VARIANT, byte, bit_offset)


def _truncate_fsm(writer: KeyspaceWriter, fsm: RelTag, heap_blocks: int) -> None:
    page = fsm_page_of_heap_block(heap_blocks)
    # The page that stays in part is made anew: the map is a hint, and PostgreSQL finds its way from zeros.
    if heap_blocks % _FSM_SLOTS_PER_PAGE and writer.put_zero_block(fsm, page):
        page += 1
    _cut(writer, fsm, page)


def _truncate_vm(writer: KeyspaceWriter, vm: RelTag, heap_blocks: int) -> None:
    page, in_page = divmod(heap_blocks, _HEAP_BLOCKS_PER_VM_PAGE)
    byte, in_byte = divmod(in_page, _HEAP_BLOCKS_PER_VM_BYTE)
    value = encode_truncate_vm(byte, in_byte * _VM_BITS_PER_HEAP_BLOCK)
    if in_page and writer.put_block_value(vm, page, value):
        page += 1
    _cut(writer, vm, page)


def _cut(writer: KeyspaceWriter, rel: RelTag, blocks: int) -> None:
    size = writer.relation_size(rel)
    if size is not None and size > blocks:
        writer.truncate_relation(rel, blocks)
