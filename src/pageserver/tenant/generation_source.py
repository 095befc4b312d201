"""Who hands out generations and knows which are current: a storage controller, or the bucket (standalone.md 1).

The door for tenants; the implementations are `bucket_generations.py` and the room `control`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from pageserver.ids import Generation, TenantShardId
from pageserver.remote.validation import GenerationValidator
from pageserver.tenant.location import LocationConfig


class GenerationSource(GenerationValidator, Protocol):
    """One per server."""

    @property
    def fences_deletions(self) -> bool:
        """Whether the deletion of a whole timeline needs a valid generation. A controller orders deletions itself and
        repeats them; without one, a server that lost a tenant must not delete from it.
        """
        ...

    @property
    def local_data_loss_suspected(self) -> bool:
        """Whether somebody knows tenants of this server while its disk had none."""
        ...

    async def start(self, found: Mapping[TenantShardId, LocationConfig]) -> Mapping[TenantShardId, LocationConfig]:
        """Return how the locations that were found on disk start. One that is left out is removed from this server.

        Attached ones have a generation that nobody else has. Repeats for ever while nobody can say.
        """
        ...

    async def claim(self, shard: TenantShardId, wanted: int | None) -> Generation:
        """Return the generation of an attachment that a user asks for: exactly `wanted`, or the next free one. Raises
        GenerationTakenError, RequestError (a generation must be given), UnavailableError.
        """
        ...
