"""Two versions of a page side by side, with the record that made them: what a difference of `redo-diff` looks like.

different: 1663/5/16384 block 7, process, after 0/1A2B3C8 Heap INSERT
  Heap page: 2 bytes differ, the first at 8170: …
  record  Heap INSERT at 0/1A2B3C8, 59 bytes, xid 741; main data 0100…
          block 0: 1663/5/16384 7, data 24 bytes
           ours                                              theirs
  header   lsn 0/1A2B400 flags 0x0000 lower 28 upper 8160 …  lsn …
    8160   items     00 01 …                                 00 02 …
"""

from __future__ import annotations

import struct
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from pageserver.cli.output import make_table
from pageserver.keyspace.key import RelTag
from pageserver.lsn import Lsn
from pageserver.wal.redo_diff import differing_lines

_HEADER: Final = struct.Struct("<IIHHHHHHI")
_LINES_SHOWN: Final = 40
_MAIN_DATA_SHOWN: Final = 128


def print_side_by_side(console: Console, difference: dict[str, Any], record: dict[str, Any] | None) -> None:
    """Print one difference; ``record`` as `decode_wal` gives it."""
    rel, lsn = RelTag(*difference["rel"]), Lsn(difference["lsn"])
    head = f"different: {rel} block {difference['block']}, {difference['witness']}, after the record at {lsn}"
    console.print(head, style="red", highlight=False)
    console.print(f"  {difference['detail']}", highlight=False, soft_wrap=True)
    for line in _describe_record(record):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    ours, theirs = difference["ours"], difference["theirs"]
    lines = list(differing_lines(difference))
    rows = [("", _describe_header(ours), _describe_header(theirs))]
    table = make_table(("offset", "ours", "theirs"), rows)
    for offset, left, right in lines[:_LINES_SHOWN]:
        page = theirs or ours or b""
        table.add_row(Text(f"{offset} {_part(page, offset)}"), _marked(left, right), _marked(right, left))
    console.print(table)
    if len(lines) > _LINES_SHOWN:
        console.print(f"  and {len(lines) - _LINES_SHOWN} lines more")


def _describe_record(record: dict[str, Any] | None) -> list[str]:
    if record is None:
        return ["the record cannot be read again"]
    main = record["main_data"]
    shown = main if len(main) <= _MAIN_DATA_SHOWN else main[:_MAIN_DATA_SHOWN] + "…"
    lines = [
        f"record {record['rmgr']} {record['type']} at {Lsn(record['lsn'])}, {record['length']} bytes, "
        f"xid {record['xid']}; main data {shown or 'none'}"
    ]
    for block in record["blocks"]:
        image = block["image"]
        what = [f"data {block['data_length']} bytes"]
        if block["will_init"]:
            what.append("initialises")
        if image is not None:
            what.append(f"{'image to apply' if image['apply'] else 'after-image'} ({image['compression']})")
        lines.append(f"  block {block['id']}: {block['rel']} {block['block']}, {', '.join(what)}")
    if record["metadata"]:
        lines.append(f"  {record['metadata']}")
    return lines


def _describe_header(page: bytes | None) -> str:
    if page is None:
        return "no page"
    high, low, _, flags, lower, upper, special, _, _ = _HEADER.unpack_from(page)
    items = max(0, lower - _HEADER.size) // 4
    lsn = Lsn(high << 32 | low)
    return f"lsn {lsn} flags {flags:#06x} lower {lower} ({items} items) upper {upper} special {special}"


def _part(page: bytes, offset: int) -> str:
    """Name the part of the page in which a line begins."""
    if len(page) < _HEADER.size:
        return ""
    _, _, _, _, lower, upper, special, _, _ = _HEADER.unpack_from(page)
    if offset < _HEADER.size:
        return "header"
    if offset >= special:
        return "special"
    if offset >= upper:
        return "items"
    return "line pointers" if offset < lower else "hole"


def _marked(line: bytes, other: bytes) -> Text:
    """Return a line in hexadecimal, the bytes that differ in red."""
    text = Text()
    for at, byte in enumerate(line):
        same = at < len(other) and other[at] == byte
        text.append(f"{byte:02x}", style="" if same else "bold red")
        text.append(" ")
    return text
