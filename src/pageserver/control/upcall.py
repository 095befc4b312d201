"""The client of the storage controller's upcall API (http-api.md 6).

Every request is a POST with a JSON body, repeated without limit until it is answered: a connection that fails, a status
of 400 and above and a body that does not decode are all reasons to try again. A caller that wants to stop cancels.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from pageserver.clock import Clock
from pageserver.config import InvalidSettingError
from pageserver.errors import PageServerError, UnavailableError
from pageserver.failpoints import Failpoints
from pageserver.ids import Generation, TenantShardId
from pageserver.remote.backoff import retry_for_ever
from pageserver.remote.json_fields import parse_object, required, required_uint

VALIDATE_SHARDS_MAX = 128
"""The controller does database work for each shard of a request."""
MODES = ("AttachedSingle", "AttachedMulti", "AttachedStale", "Secondary", "Detached")
_TIMEOUT_SECONDS = 30.0
_T = TypeVar("_T")


class UpcallError(UnavailableError):
    """The controller did not answer, or not in its form. It is asked again."""


@dataclass(frozen=True, slots=True)
class ReAttachedTenant:
    """How the controller wants one shard to start here. `generation` is None for a secondary; `stripe_size` is 0 if the
    answer leaves it out: the stored one stays.
    """

    shard: TenantShardId
    generation: Generation | None
    mode: str
    stripe_size: int

    @classmethod
    def decode(cls, value: object) -> ReAttachedTenant:
        fields = parse_object(value, "re-attached tenant")
        mode = required(fields, "mode")
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}")
        return cls(
            shard=TenantShardId.parse(str(required(fields, "id"))),
            generation=None if fields.get("gen") is None else Generation(required_uint(fields, "gen", bits=32)),
            mode=mode,
            stripe_size=0 if fields.get("stripe_size") is None else required_uint(fields, "stripe_size", bits=32),
        )


class UpcallClient:
    """One per server. `close` when it is no longer needed."""

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None,
        ca_certificates: str | None,
        clock: Clock,
        log: Any,
        failpoints: Failpoints | None = None,
    ) -> None:
        """`ca_certificates` is PEM text with additional roots. Raises InvalidSettingError."""
        context = ssl.create_default_context()
        if ca_certificates is not None:
            try:
                context.load_verify_locations(cadata=ca_certificates)
            except (ssl.SSLError, ValueError) as error:
                raise InvalidSettingError(f"ssl_ca_file: the certificates cannot be read: {error}") from error
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._base_url = base_url if base_url.endswith("/") else f"{base_url}/"
        self._http = httpx.AsyncClient(verify=context, headers=headers, timeout=_TIMEOUT_SECONDS)
        self._clock = clock
        self._log = log
        self._never = asyncio.Event()
        self._failpoints = failpoints or Failpoints.off()

    async def close(self) -> None:
        await self._http.aclose()

    async def re_attach(
        self, *, node_id: int, register: Mapping[str, Any] | None, empty_local_disk: bool
    ) -> Sequence[ReAttachedTenant]:
        """Register this process and return all shards that it shall have."""
        await self._failpoints.sleep("control-plane-client-re-attach")
        body: dict[str, Any] = {"node_id": node_id}
        if register is not None:
            body["register"] = dict(register)
        body["empty_local_disk"] = empty_local_disk
        return await self._ask("re-attach", body, lambda tenants: [ReAttachedTenant.decode(each) for each in tenants])

    async def validate(self, generations: Mapping[TenantShardId, Generation]) -> dict[TenantShardId, bool]:
        """Return for each shard whether its generation is current. A shard that the answer leaves out is left out."""
        valid: dict[TenantShardId, bool] = {}
        asked = list(generations.items())
        for first in range(0, len(asked), VALIDATE_SHARDS_MAX):
            chunk = asked[first : first + VALIDATE_SHARDS_MAX]
            await self._failpoints.sleep("control-plane-client-validate-sleep")
            body = {"tenants": [{"id": str(shard), "gen": generation.number} for shard, generation in chunk]}
            valid.update(await self._ask("validate", body, _decode_validity))
        return valid

    async def _ask(self, method: str, body: Mapping[str, Any], decode: Callable[[Sequence[Any]], _T]) -> _T:
        return await retry_for_ever(
            lambda: self._ask_once(method, body, decode),
            what="storage controller upcall",
            stop=self._never,
            clock=self._clock,
            log=self._log,
        )

    async def _ask_once(self, method: str, body: Mapping[str, Any], decode: Callable[[Sequence[Any]], _T]) -> _T:
        try:
            response = await self._http.post(self._base_url + method, json=body)
        except httpx.HTTPError as error:
            raise UpcallError(f"{method}: {type(error).__name__}: {error}") from error
        if response.status_code >= 400:
            raise UpcallError(f"{method}: the controller answered {response.status_code}: {response.text[:200]}")
        try:
            return decode(_tenants(response.json()))
        except (PageServerError, ValueError, TypeError) as error:
            raise UpcallError(f"{method}: the answer does not decode: {error}") from error


def _tenants(answer: object) -> Sequence[Any]:
    tenants = parse_object(answer, "the answer").get("tenants")
    if not isinstance(tenants, list):
        raise ValueError("the answer has no `tenants`")
    return tenants


def _decode_validity(tenants: Sequence[Any]) -> dict[TenantShardId, bool]:
    valid: dict[TenantShardId, bool] = {}
    for tenant in tenants:
        fields = parse_object(tenant, "validated tenant")
        is_valid = fields.get("valid")
        if not isinstance(is_valid, bool):
            raise ValueError("field `valid` is not a truth value")
        valid[TenantShardId.parse(str(required(fields, "id")))] = is_valid
    return valid
