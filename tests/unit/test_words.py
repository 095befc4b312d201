"""The shared words: LSNs, identifiers, errors (spec keyspace.md 9.1, 9.2, 9.4, 10; checklist 33-36, 41)."""

from __future__ import annotations

import pytest

from pageserver.errors import CorruptDataError, LsnTimeoutError, MissingKeyError, PageServerError, UnavailableError
from pageserver.ids import (
    NO_GENERATION,
    Generation,
    IdParseError,
    ShardCount,
    ShardIdentity,
    ShardIdentityError,
    ShardIndex,
    ShardNumber,
    TenantId,
    TenantShardId,
    TimelineId,
)
from pageserver.lsn import Lsn, LsnParseError

TENANT = TenantId.parse("1f359dd625e519a1a4e8d7509690f6fc")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12345678/AAAA5555", 0x12345678AAAA5555),
        ("aaaa/bbbb", 0x0000AAAA0000BBBB),
        ("0/0", 0),
        (" 0/3C490F8 ", 0x3C490F8),
    ],
)
def test_lsn_text_is_read(text: str, value: int) -> None:
    assert Lsn.parse(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "ABCDEFG/12345678",
        "123456789/AAAA5555",
        "12345678/AAAA55550",
        "-1/0",
        "1/-1",
        "1",
        "1/2/3",
        "/1",
        "1/",
        "",
        "1 /2",
    ],
)
def test_text_that_is_no_lsn_is_refused(text: str) -> None:
    with pytest.raises(LsnParseError):
        Lsn.parse(text)


def test_lsn_text_has_no_padding_and_hex_form_has() -> None:
    assert str(Lsn(0x16B3748)) == f"{Lsn(0x16B3748)}" == "0/16B3748"
    assert str(Lsn(0x10000000A)) == "1/A"
    assert Lsn(0x16B3748).to_hex() == "00000000016B3748"
    assert Lsn.from_hex("16b3748") == 0x16B3748
    with pytest.raises(LsnParseError):
        Lsn.from_hex("F12345678AAAA5555")


def test_normalised_lsn_skips_page_headers() -> None:
    assert Lsn(0x1000000).normalised() == 0x1000028
    assert Lsn(0x1002000).normalised() == 0x1002018
    assert Lsn(0x1002019).normalised() == 0x1002020
    assert Lsn(0x1002020).normalised() == 0x1002020
    assert isinstance(Lsn(5) + 3, Lsn)


def test_ids_have_one_text_form_and_read_both_cases() -> None:
    raw = bytes.fromhex("ad50847381e248feaac9876cc71ae418")
    assert str(TimelineId(raw)) == "ad50847381e248feaac9876cc71ae418"
    assert TimelineId.parse("AD50847381E248FEAAC9876CC71AE418") == TimelineId(raw)
    assert TenantId(raw) != TenantId(bytes(16))
    assert TenantId(b"\0" * 16) < TenantId(b"\0" * 15 + b"\1")
    assert repr(TenantId(raw)) == "TenantId(ad50847381e248feaac9876cc71ae418)"
    assert bytes(TenantId.generate(lambda n: b"\7" * n)) == b"\7" * 16
    for bad in ("", "ad50", "g" * 32, "ad50847381e248feaac9876cc71ae418 "):
        with pytest.raises(IdParseError):
            TenantId.parse(bad)


def test_tenant_shard_id_carries_a_suffix_only_if_sharded() -> None:
    sharded = TenantShardId(TENANT, ShardNumber(7), ShardCount(10))
    assert str(sharded) == "1f359dd625e519a1a4e8d7509690f6fc-070a"
    assert TenantShardId.parse(str(sharded)) == sharded
    assert TenantShardId.from_bytes(bytes(sharded)) == sharded
    plain = TenantShardId(TENANT)
    assert str(plain) == str(TENANT)
    assert TenantShardId.parse(str(TENANT)) == plain
    assert bytes(plain) == TENANT.raw + b"\0\0"
    assert (sharded.slug(), plain.slug(), sharded.suffix(), plain.suffix()) == ("070a", "0000", "-070a", "")
    single = TenantShardId(TENANT, ShardNumber(0), ShardCount(1))
    assert str(single).endswith("-0001")
    low, high = TenantShardId.range_of_tenant(TENANT)
    assert low <= plain <= single <= sharded <= high
    with pytest.raises(IdParseError, match="Invalid string length"):
        TenantShardId.parse(str(TENANT) + "-07")


def test_shard_index_is_four_hex_digits_or_two_bytes() -> None:
    index = ShardIndex(ShardNumber(13), ShardCount(17))
    assert (str(index), bytes(index)) == ("0d11", b"\x0d\x11")
    assert ShardIndex.parse("0d11") == index
    for bad in ("d11", "0d111", "0x11"):
        with pytest.raises(IdParseError):
            ShardIndex.parse(bad)


@pytest.mark.parametrize(
    ("number", "count", "stripe", "message"),
    [
        (0, 0, 0, "Invalid shard count"),
        (255, 255, 0, "Invalid shard number"),
        (10, 10, 2048, "Invalid shard number"),
        (0, 1, 0, "Invalid stripe size"),
    ],
)
def test_impossible_shard_identities_are_refused(number: int, count: int, stripe: int, message: str) -> None:
    with pytest.raises(ShardIdentityError, match=message):
        ShardIdentity.new(number, count, stripe)


def test_shard_identity_forms() -> None:
    identity = ShardIdentity.new(254, 255, 2048)
    assert bytes(identity) == b"\xfe\xff\x00\x00\x08\x00\x01"
    assert ShardIdentity.unsharded().stripe_size == 2048
    assert ShardIdentity.unsharded(32768).stripe_size == 32768
    assert ShardIdentity.new(0, 4, 2048).to_json() == {"number": 0, "count": 4, "stripe_size": 2048, "layout": 1}


def test_splitting_gives_every_nth_child() -> None:
    def numbers(number: int, count: int, into: int) -> list[int]:
        shard = TenantShardId(TENANT, ShardNumber(number), ShardCount(count))
        return [child.shard_number for child in shard.split_into(ShardCount(into))]

    assert numbers(1, 2, 8) == [1, 3, 5, 7]
    assert numbers(0, 0, 2) == numbers(0, 1, 2) == [0, 1]
    with pytest.raises(ShardIdentityError):
        numbers(1, 2, 3)


def test_generations_sort_none_first() -> None:
    assert sorted([Generation(2), NO_GENERATION, Generation(0)]) == [NO_GENERATION, Generation(0), Generation(2)]
    assert (Generation(26).suffix(), NO_GENERATION.suffix()) == ("-0000001a", "")
    assert Generation.parse_suffix("0000001a") == Generation(26)


def test_errors_carry_facts_and_say_what_to_do() -> None:
    missing = MissingKeyError(key=bytes(18), lsn=0x16B3748)
    assert isinstance(missing, CorruptDataError) and isinstance(missing, PageServerError)
    assert missing.facts == {"key": bytes(18), "lsn": 0x16B3748}
    assert "0/16B3748" in str(missing)
    late = LsnTimeoutError(lsn=Lsn(16), last_record_lsn=Lsn(8), timeout_seconds=2)
    assert isinstance(late, UnavailableError)
    assert str(late) == "wal up to 0/10 did not arrive within 2 s; last record lsn is 0/8"
    assert str(LsnParseError(text="x")).endswith("HINT: an lsn looks like 0/16B3748")
