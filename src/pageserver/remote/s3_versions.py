"""Old versions in S3, by requests that botocore signs: `obstore` neither lists nor copies them.

Imported only when somebody travels in time. Calls block and are attempted once; `CloudStore` runs them in worker
threads under its permits. Source: S3's API reference (ListObjectVersions, CopyObject); remote-storage.md 15, 18.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from pageserver.remote.storage import StoreRefusedError, StoreUnavailableError, UnknownOutcomeError
from pageserver.remote.versions import ObjectVersion

_CONNECT_SECONDS_MAX: Final = 5.0
_REFUSED_STATUS: Final = (400, 401, 403, 404, 405, 501)


@dataclass(frozen=True, slots=True)
class S3Options:
    """Where the bucket is, and with what copies are made."""

    bucket: str
    region: str
    endpoint: str | None
    timeout_seconds: float
    concurrency: int
    copy_arguments: dict[str, Any]
    """Encryption and storage class, as CopyObject takes them."""


class S3Versions:
    """One bucket. Keys here are whole ones, with the configured prefix."""

    def __init__(self, options: S3Options, *, name: str) -> None:
        self._options = options
        self._name = name
        style = {} if options.endpoint is None else {"s3": {"addressing_style": "path"}}
        self._client: Any = botocore.session.Session().create_client(
            "s3",
            region_name=options.region,
            endpoint_url=options.endpoint,
            config=Config(
                retries={"total_max_attempts": 1},
                connect_timeout=_CONNECT_SECONDS_MAX,
                read_timeout=options.timeout_seconds,
                max_pool_connections=options.concurrency,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                **style,
            ),
        )

    def list_page(self, prefix: str, after: dict[str, str]) -> tuple[list[ObjectVersion], dict[str, str] | None]:
        """Return a page of versions, of each key the newest first, and what asks for the next one; none at the end.

        Raises: StoreUnavailableError, StoreRefusedError.
        """
        answer = self._call("list_object_versions", prefix, writes=False, Prefix=prefix, **after)
        items = [(item, False) for item in answer.get("Versions", ())]
        items += [(item, True) for item in answer.get("DeleteMarkers", ())]
        # The two lists lose the order among each other; which one is the newest is told.
        items.sort(key=lambda each: (each[0]["Key"], not each[0].get("IsLatest")))
        found = [ObjectVersion(item["Key"], item["VersionId"], item["LastModified"], gone) for item, gone in items]
        if not answer.get("IsTruncated"):
            return found, None
        names = (("KeyMarker", "NextKeyMarker"), ("VersionIdMarker", "NextVersionIdMarker"))
        return found, {name: answer[following] for name, following in names if answer.get(following)}

    def copy(self, version: ObjectVersion) -> None:
        """Copy a version over its key. Raises: StoreUnavailableError, UnknownOutcomeError, StoreRefusedError."""
        source = {"Bucket": self._options.bucket, "Key": version.key, "VersionId": version.version_id}
        arguments = {"Key": version.key, "CopySource": source, **self._options.copy_arguments}
        self._call("copy_object", version.key, writes=True, **arguments)

    def _call(self, operation: str, key: str, *, writes: bool, **arguments: Any) -> Any:
        try:
            return getattr(self._client, operation)(Bucket=self._options.bucket, **arguments)
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
            kind = StoreRefusedError if status in _REFUSED_STATUS else StoreUnavailableError
            raise kind(f"{self._name} refuses {operation}: {error}", operation=operation, key=key) from error
        except NoCredentialsError as error:
            raise StoreRefusedError(f"cannot get AWS credentials: {error}", operation=operation, key=key) from error
        except BotoCoreError as error:
            kind = UnknownOutcomeError if writes else StoreUnavailableError
            raise kind(f"{self._name}: {operation} failed: {error}", operation=operation, key=key) from error
