"""Generations without a controller: the store itself hands them out (standalone.md 1), and newest-not-above lookups
(remote-storage.md 4.4).

A claim is an object that exactly one process could create. The number is one above all claims *and* all generation
suffixes of the shard's objects, since a bucket that Neon wrote has no claims. Claims are never deleted.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from pageserver.errors import ConflictError, CorruptDataError, RequestError, UnavailableError
from pageserver.ids import Generation, TenantShardId, TimelineId
from pageserver.remote import paths
from pageserver.remote.storage import FetchedObject, ObjectExistsError, ObjectNotFoundError, ObjectStorage

HIGHEST_GENERATION = Generation(0xFFFF_FFFF)
"""Whoever wants the newest of all objects looks with this one."""
_NO_GENERATION = -1
"""Below all of them: 0 is a generation, which a user may ask for; the first one that we give out is 1."""
_CLAIM_ATTEMPTS_MAX = 16
_INDEX_AGE_MAX = timedelta(days=14)
_SUFFIX = re.compile(r"-([0-9a-fA-F]{8})(?:\.json)?$")
_SUFFIX_ONLY = re.compile(r"-([0-9a-fA-F]{8})")


class GenerationTakenError(ConflictError):
    """The wanted generation, or one above it, is claimed already."""

    def __init__(self, *, shard: TenantShardId, wanted: int, highest: int) -> None:
        super().__init__(
            f"generation {wanted:08x} of {shard} cannot be claimed: the highest known is {highest:08x}",
            hint="leave the generation out to get the next free one",
            wanted=wanted,
            highest=highest,
        )


class IndexOutdatedError(CorruptDataError):
    """Fatal: whoever gave us our generation gave a higher one to somebody else long ago."""

    def __init__(self, *, timeline_id: TimelineId, found: Generation, newest: Generation) -> None:
        super().__init__(
            "Index age exceeds threshold and a newer index exists", timeline_id=timeline_id, found=found, newest=newest
        )


class InvalidStoreError(RequestError):
    """The store cannot hand out generations: use another one, or a storage controller."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the store cannot be used without a storage controller: {reason}")


@dataclass(frozen=True, slots=True)
class GenerationClaim:
    """Who claims. `instance` is random for each process start, so that the outcome of an uncertain put can be read
    back.
    """

    node_id: int
    instance: str
    host: str
    claimed_at: str

    def encode(self) -> bytes:
        body = {"node_id": self.node_id, "instance": self.instance, "host": self.host, "claimed_at": self.claimed_at}
        return json.dumps(body, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, content: bytes) -> GenerationClaim:
        """Read what `encode` wrote; further keys are ignored. Raises ValueError."""
        body = json.loads(content)
        try:
            claim = cls(body["node_id"], body["instance"], body["host"], body["claimed_at"])
        except (KeyError, TypeError) as error:
            raise ValueError("not a claim of a generation") from error
        texts = (claim.instance, claim.host, claim.claimed_at)
        if not isinstance(claim.node_id, int) or not all(isinstance(text, str) for text in texts):
            raise ValueError("not a claim of a generation")
        return claim


async def claim_generation(
    storage: ObjectStorage, shard: TenantShardId, claim: GenerationClaim, *, wanted: int | None = None
) -> Generation:
    """Claim the next free generation, or exactly `wanted`. Raises GenerationTakenError, UnavailableError.

    Must happen *before* the index is read: what an older generation writes after our claim may be missed, never what it
    wrote before.

    An object above `wanted` is as good as a claim: whoever attached below it would not see it, and what was
    acknowledged there would be hidden by it at the next start. Objects of `wanted` itself, without a claim, are a
    bucket's that was handed over.
    """
    for _ in range(_CLAIM_ATTEMPTS_MAX):
        highest_claim, highest_object = await _highest_claim(storage, shard), await _highest_object(storage, shard)
        number = max(highest_claim, highest_object, 0) + 1 if wanted is None else wanted
        if number <= highest_claim or number < highest_object:
            raise GenerationTakenError(shard=shard, wanted=number, highest=max(highest_claim, highest_object))
        key = paths.claim_key(shard, Generation(number))
        try:
            await storage.put_if_absent(key, claim.encode())
        except ObjectExistsError:
            if await _is_ours(storage, key, claim):
                return Generation(number)
            continue
        return Generation(number)
    raise UnavailableError(
        f"no generation of {shard} could be claimed in {_CLAIM_ATTEMPTS_MAX} attempts", shard=str(shard)
    )


@dataclass(frozen=True, slots=True)
class GenerationRecord:
    """What the store knows about a shard's generations. `claims` are the newest ones, newest first; a claim whose
    object cannot be understood is None. `highest_claim` and `highest_object` are 0 if there is none.
    """

    claims: Mapping[int, GenerationClaim | None]
    claims_total: int
    highest_claim: int
    highest_object: int

    @property
    def next_generation(self) -> int:
        """The one that the next claim would get, and a controller that takes over must start with, or above."""
        return max(self.highest_claim, self.highest_object) + 1


async def read_generations(storage: ObjectStorage, shard: TenantShardId, *, claims_max: int) -> GenerationRecord:
    """Tell who claimed which generation. Raises UnavailableError."""
    numbers = sorted([number async for number in _claims(storage, shard)], reverse=True)
    claims = {number: await _read_claim(storage, shard, number) for number in numbers[:claims_max]}
    highest_object = max(await _highest_object(storage, shard), 0)
    return GenerationRecord(claims, len(numbers), max(numbers, default=0), highest_object)


async def probe_store(storage: ObjectStorage, instance: str) -> None:
    """Try once what claims rest upon: an exclusive create, and a listing that shows it. Raises InvalidStoreError."""
    key = f"generations/probe-{instance}"
    await storage.put_if_absent(key, b"1")
    try:
        try:
            await storage.put_if_absent(key, b"2")
        except ObjectExistsError:
            pass
        else:
            raise InvalidStoreError("a conditional create of an object that exists succeeded")
        if [item.key async for item in storage.list_objects(key)] != [key]:
            raise InvalidStoreError("an object that was created is not listed")
    finally:
        await storage.delete([key])


async def is_newest_generation(storage: ObjectStorage, shard: TenantShardId, generation: Generation) -> bool:
    """Return whether our claim is the highest: the `validate` of a server that stands alone.

    Claims are never deleted. A store that does not show ours is not the one that we attached from (emptied, or a
    directory where nothing is mounted any more), and what was written there must not be acknowledged either.
    """
    return await _highest_claim(storage, shard) == generation.number


def generation_of_key(key: str) -> Generation:
    """Return the generation in an object's name: at its end, or before `.json`. None if there is none."""
    match = _SUFFIX.search(key)
    return Generation(int(match[1], 16) if match else None)


async def find_generationed(
    storage: ObjectStorage, base_key: str, generation: Generation, *, extension: str = ""
) -> tuple[bytes, Generation]:
    """Return the newest object of `base_key` not above `generation`, and its generation. Raises ObjectNotFoundError.

    Keys are `base_key`, the suffix, `extension`. Source: remote-storage.md 4.4: own generation, the one before, else
    list; at last the name without a suffix.
    """
    found, newest = await _find(storage, base_key, generation, extension)
    return found.content, newest


async def find_index(
    storage: ObjectStorage, shard: TenantShardId, timeline_id: TimelineId, generation: Generation, *, now: datetime
) -> tuple[bytes, Generation]:
    """Return the index that is the truth for `generation`, and the generation that wrote it. Raises
    ObjectNotFoundError, IndexOutdatedError.

    Source: remote-storage.md 4.5: an index that nobody wrote for two weeks, while one of a higher generation exists,
    means that our generation went backwards.
    """
    base_key = paths.index_base_key(shard, timeline_id)
    index, found = await _find(storage, base_key, generation, "")
    if now - index.description.modified_at > _INDEX_AGE_MAX:
        _, newest = await _find(storage, base_key, HIGHEST_GENERATION, "")
        if newest > found:
            raise IndexOutdatedError(timeline_id=timeline_id, found=found, newest=newest)
    return index.content, found


async def _find(
    storage: ObjectStorage, base_key: str, generation: Generation, extension: str
) -> tuple[FetchedObject, Generation]:
    for candidate in (generation, generation.previous()):
        if candidate is None or candidate.number is None:
            continue
        try:
            return await _fetch(storage, base_key + candidate.suffix() + extension), candidate
        except ObjectNotFoundError:
            continue
    if generation.number is not None:
        found = [
            int(match[1], 16)
            async for item in storage.list_objects(base_key)
            if (match := _SUFFIX_ONLY.fullmatch(item.key.removeprefix(base_key).removesuffix(extension)))
            and item.key.endswith(extension)
        ]
        older = [number for number in found if number <= generation.number]
        if older:
            newest = Generation(max(older))
            return await _fetch(storage, base_key + newest.suffix() + extension), newest
    return await _fetch(storage, base_key + extension), Generation(None)


async def _fetch(storage: ObjectStorage, key: str) -> FetchedObject:
    found = await storage.fetch(key)
    assert found is not None, "only a fetch with an etag comes back empty"
    return found


async def _highest_claim(storage: ObjectStorage, shard: TenantShardId) -> int:
    return max([number async for number in _claims(storage, shard)], default=_NO_GENERATION)


async def _claims(storage: ObjectStorage, shard: TenantShardId) -> AsyncIterator[int]:
    prefix = paths.claims_prefix(shard)
    async for item in storage.list_objects(prefix):
        digits = item.key.removeprefix(prefix).removesuffix(".json")
        if re.fullmatch(r"[0-9a-f]{8}", digits):
            yield int(digits, 16)


async def _read_claim(storage: ObjectStorage, shard: TenantShardId, number: int) -> GenerationClaim | None:
    try:
        return GenerationClaim.decode(await storage.get(paths.claim_key(shard, Generation(number))))
    except ValueError:
        return None


async def _highest_object(storage: ObjectStorage, shard: TenantShardId) -> int:
    highest = _NO_GENERATION
    async for item in storage.list_objects(paths.tenant_prefix(shard)):
        if match := _SUFFIX.search(item.key):
            highest = max(highest, int(match[1], 16))
    return highest


async def _is_ours(storage: ObjectStorage, key: str, claim: GenerationClaim) -> bool:
    try:
        body = json.loads(await storage.get(key))
    except (ObjectNotFoundError, ValueError):
        return False
    return isinstance(body, dict) and body.get("instance") == claim.instance
