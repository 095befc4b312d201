"""Which store `[remote_storage]` means (remote-storage.md 16), stacked as `storage.py` draws it.

Deviations from Neon's, all forced by the library: an empty `prefix_in_bucket` and an Azure prefix that begins with a
slash (keys that start with `/`) are refused, `max_keys_per_list_response` has no effect (the server's default page
is asked for), and a COPY is made with the bucket's default storage class. `endpoint` is read for Azure and GCS
too: emulators and gateways are reached through it.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, assert_never

from obstore.store import AzureStore, GCSStore, S3Store

from pageserver.clock import Clock
from pageserver.config import InvalidSettingError, RemoteStorage
from pageserver.remote.cloud_store import CloudOptions, CloudStore
from pageserver.remote.local_store import LocalStore
from pageserver.remote.retry import RetryingStorage, single_attempts
from pageserver.remote.storage import ObjectStorage
from pageserver.remote.unreliable import UnreliableStorage
from pageserver.remote.versions import TimeTravelUnsupportedError, VersionedStore

if TYPE_CHECKING:  # these exist in the stubs only
    from obstore.store import ClientConfig, RetryConfig, S3Config

    from pageserver.remote.s3_versions import S3Versions

_MEBIBYTE = 1 << 20
_CONNECT_TIMEOUT = timedelta(seconds=5)
_NO_RETRIES: RetryConfig = {"max_retries": 0}


def open_object_storage(
    settings: RemoteStorage,
    *,
    workdir: Path,
    clock: Clock,
    log: Any,
    failures: int = 0,
    failure_percent: int = 100,
    random: Random | None = None,
) -> RetryingStorage:
    """Return the store, asking nobody yet. `failures` and `failure_percent` are `test_remote_failures` and its
    probability. Raises InvalidSettingError.
    """
    store = open_backend(settings, workdir)
    stats = store.stats if isinstance(store, CloudStore) else None
    if failures > 0:
        log.warning(f"Simulating remote failures for first {failures} attempts of each op")
        store = UnreliableStorage(
            store, attempts=failures, probability_percent=failure_percent, random=random or Random()
        )
    return RetryingStorage(store, clock=clock, log=log, stats=stats)


def open_backend(settings: RemoteStorage, workdir: Path) -> ObjectStorage:
    """Return the store of single attempts that the keys present choose. Raises InvalidSettingError."""
    try:
        match settings.kind:
            case "local":
                assert settings.local_path is not None, "the kind follows from it"
                return LocalStore(workdir / settings.local_path)
            case "s3":
                return _open_s3(settings)
            case "azure":
                return _open_azure(settings)
            case "gcs":
                return _open_gcs(settings)
            case unknown:
                assert_never(unknown)
    except InvalidSettingError:
        raise
    except Exception as error:  # the library raises its own kinds for settings, endpoints and key files alike
        reason = str(error).partition("\n")[0]
        raise InvalidSettingError(f"remote_storage: cannot use {settings.kind}: {reason}") from error


def _open_s3(settings: RemoteStorage) -> CloudStore:
    # botocore takes a third of a second to import: only who needs it waits.
    from pageserver.remote.aws_credentials import AwsCredentials

    assert settings.bucket_name is not None and settings.bucket_region is not None, "the kind follows from them"
    config: S3Config = {"region": settings.bucket_region}
    if settings.endpoint_in_use is not None:
        config["endpoint"] = settings.endpoint_in_use
        config["virtual_hosted_style_request"] = False
    if settings.server_side_encryption is not None:
        config["server_side_encryption"] = settings.server_side_encryption
    if settings.sse_kms_key_id is not None:
        config["sse_kms_key_id"] = settings.sse_kms_key_id
    if settings.sse_bucket_key_enabled is not None:
        config["sse_bucket_key_enabled"] = settings.sse_bucket_key_enabled
    store = S3Store(
        settings.bucket_name,
        config=config,
        client_options=_client_options(settings),
        retry_config=_NO_RETRIES,
        credential_provider=AwsCredentials(),
    )
    name = _name("S3 bucket", settings.bucket_name, settings.endpoint_in_use)
    return CloudStore(
        store,
        name=name,
        prefix=_bucket_prefix(settings),
        options=_options(settings),
        open_versions=lambda: _open_versions(settings, name),
    )


def _open_versions(settings: RemoteStorage, name: str) -> S3Versions:
    from pageserver.remote.s3_versions import S3Options, S3Versions

    assert settings.bucket_name is not None and settings.bucket_region is not None, "the kind follows from them"
    copy_arguments = {
        "StorageClass": settings.upload_storage_class,
        "ServerSideEncryption": settings.server_side_encryption,
        "SSEKMSKeyId": settings.sse_kms_key_id,
        "BucketKeyEnabled": settings.sse_bucket_key_enabled,
    }
    options = S3Options(
        bucket=settings.bucket_name,
        region=settings.bucket_region,
        endpoint=settings.endpoint_in_use,
        timeout_seconds=settings.timeout.nanos / 1e9,
        concurrency=settings.concurrency_limit,
        copy_arguments={key: value for key, value in copy_arguments.items() if value is not None},
    )
    return S3Versions(options, name=name)


def versioned_store(storage: ObjectStorage) -> VersionedStore:
    """Return the half of a store that knows old versions. Raises TimeTravelUnsupportedError."""
    store = single_attempts(storage)
    inner = store.inner if isinstance(store, UnreliableStorage) else store
    if not (isinstance(inner, CloudStore) and inner.has_versions):
        raise TimeTravelUnsupportedError
    return store if isinstance(store, UnreliableStorage) else inner


def _open_azure(settings: RemoteStorage) -> CloudStore:
    assert settings.container_name is not None, "the kind follows from it"
    if settings.storage_account is None:
        raise InvalidSettingError("remote_storage.storage_account: missing; HINT: or set AZURE_STORAGE_ACCOUNT")
    store = AzureStore(
        settings.container_name,
        config={
            "account_name": settings.storage_account,
            **({} if settings.endpoint_in_use is None else {"endpoint": settings.endpoint_in_use}),
        },
        client_options=_client_options(settings),
        retry_config=_NO_RETRIES,
    )
    prefix = settings.prefix_in_container or ""
    if prefix.startswith("/"):
        raise InvalidSettingError("remote_storage.prefix_in_container: must not begin with a slash")
    name = _name("Azure container", settings.container_name, settings.endpoint_in_use or settings.storage_account)
    return CloudStore(store, name=name, prefix=prefix and prefix.rstrip("/") + "/", options=_options(settings))


def _open_gcs(settings: RemoteStorage) -> CloudStore:
    assert settings.bucket_name is not None, "the kind follows from it"
    store = GCSStore(
        settings.bucket_name,
        config={} if settings.endpoint_in_use is None else {"base_url": settings.endpoint_in_use},
        client_options=_client_options(settings),
        retry_config=_NO_RETRIES,
    )
    name = _name("GCS bucket", settings.bucket_name, settings.endpoint_in_use)
    return CloudStore(store, name=name, prefix=_bucket_prefix(settings), options=_options(settings))


def _bucket_prefix(settings: RemoteStorage) -> str:
    prefix = settings.prefix_in_bucket
    if prefix is None:
        return ""
    if not prefix.strip("/"):
        raise InvalidSettingError(
            "remote_storage.prefix_in_bucket: is empty: keys would begin with a slash; HINT: leave it out"
        )
    return prefix.strip("/") + "/"


def _options(settings: RemoteStorage) -> CloudOptions:
    timeout = settings.timeout.nanos / 1e9
    part = settings.put_block_size_mb * _MEBIBYTE
    usual = CloudOptions()
    return CloudOptions(
        concurrency=settings.concurrency_limit,
        timeout_seconds=timeout,
        small_timeout_seconds=min(settings.small_timeout.nanos / 1e9, timeout) if settings.kind == "azure" else timeout,
        multipart_threshold_bytes=part or usual.multipart_threshold_bytes,
        multipart_part_bytes=part or usual.multipart_part_bytes,
        storage_class=settings.upload_storage_class if settings.kind == "s3" else None,
    )


def _client_options(settings: RemoteStorage) -> ClientConfig:
    options: ClientConfig = {
        "timeout": timedelta(microseconds=settings.timeout.nanos // 1000),
        "connect_timeout": _CONNECT_TIMEOUT,
    }
    if (settings.endpoint_in_use or "").startswith("http://"):
        options["allow_http"] = True
    if settings.kind == "azure":
        options["pool_max_idle_per_host"] = str(settings.conn_pool_size)
    return options


def _name(kind: str, bucket: str, place: str | None) -> str:
    return f"{kind} {bucket}" if place is None else f"{kind} {bucket} at {place}"
