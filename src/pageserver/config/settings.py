"""Settings of the server: the keys of `pageserver.toml` (http-api.md 9.2) with their defaults, as frozen data.

Only what the parts built so far read is acted upon; the other known keys are checked and kept, so that one file serves
this and Neon's server. Keys of ours: `pg_installations` (a table from major version to an installation's directory),
`redo` (which engine replays PostgreSQL's records: our own with the redo process for the rest, or the process alone),
`redo_programs` (a table from major version to a `postgres` that knows `--wal-redo`, such as Neon's),
`client_page_cache_bytes` (memory for pages as they were answered; default: an eighth of the machine's),
`open_layer_memory_bytes` (memory for values that are not in a layer file yet; the rest goes to ephemeral files),
`testing_apis` (failpoints: for tests only, since anybody who reaches the API may then end the process).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from pageserver.config.durations import Duration
from pageserver.config.tenant import U64, SamplingRatio, TenantOverrides

AuthType = Literal["Trust", "NeonJWT"]
Positive = Annotated[int, Field(gt=0)]

_ENDPOINT_VARIABLES = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "azure": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    "gcs": ("GOOGLE_BASE_URL",),
    "local": (),
}


class _Table(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, arbitrary_types_allowed=True)


class RemoteStorage(_Table):
    """`[remote_storage]` of any kind; the kind follows from the keys present (remote-storage.md 16). Keys of ours:
    `server_side_encryption`, `sse_kms_key_id` and `sse_bucket_key_enabled` (S3's names and values), and `endpoint` for
    Azure and GCS.
    """

    local_path: str | None = None
    bucket_name: str | None = None
    bucket_region: str | None = None
    prefix_in_bucket: str | None = None
    endpoint: Annotated[str, Field(pattern=r"^https?://[^/\s]+")] | None = None
    upload_storage_class: str | None = None
    server_side_encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    sse_kms_key_id: str | None = None
    sse_bucket_key_enabled: bool | None = None
    container_name: str | None = None
    container_region: str | None = None
    storage_account: str | None = Field(default_factory=lambda: os.environ.get("AZURE_STORAGE_ACCOUNT"))
    prefix_in_container: str | None = None
    concurrency_limit: Positive = 100
    max_keys_per_list_response: int | None = None
    conn_pool_size: Annotated[int, Field(ge=0)] = 8
    put_block_size_mb: Annotated[int, Field(ge=0)] = 0
    timeout: Duration = Duration.parse("2m")
    small_timeout: Duration = Duration.parse("30s")

    @property
    def kind(self) -> Literal["local", "s3", "azure", "gcs"]:
        if self.local_path is not None:
            return "local"
        if self.bucket_name is not None and self.bucket_region is not None:
            return "s3"
        if self.container_name is not None and self.container_region is not None:
            return "azure"
        return "gcs"

    @property
    def endpoint_in_use(self) -> str | None:
        """The endpoint of the settings, else of the environment; none is the cloud's own."""
        named = (os.environ.get(variable) for variable in _ENDPOINT_VARIABLES[self.kind])
        return self.endpoint or next(filter(None, named), None)

    @model_validator(mode="after")
    def _some_kind_fits(self) -> RemoteStorage:
        if self.sse_kms_key_id is not None and self.server_side_encryption not in ("aws:kms", "aws:kms:dsse"):
            raise ValueError("sse_kms_key_id needs server_side_encryption = 'aws:kms' or 'aws:kms:dsse'")
        azure = self.container_name is not None and self.container_region is not None
        if self.local_path is None and self.bucket_name is None and not azure:
            raise ValueError("none of local_path, bucket_name, or container_name with container_region is given")
        return self


class MockStatvfs(_Table):
    type: Literal["Success", "Failure"]
    blocksize: U64 | None = None
    total_blocks: U64 | None = None
    name_filter: str | None = None
    mocked_error: str | None = None


class EvictionOrderArgs(_Table):
    highest_layer_count_loses_first: bool = True


class EvictionOrder(_Table):
    type: Literal["RelativeAccessed"] = "RelativeAccessed"
    args: EvictionOrderArgs = EvictionOrderArgs()


class DiskUsageEviction(_Table):
    max_usage_pct: Annotated[int, Field(ge=0, le=100)] = 80
    min_avail_bytes: U64 = 2_000_000_000
    period: Duration = Duration.parse("60s")
    eviction_order: EvictionOrder = EvictionOrder()
    enabled: bool = True
    mock_statvfs: MockStatvfs | None = None


class L0Flush(_Table):
    mode: Literal["direct"] = "direct"
    max_concurrency: Positive | None = None


class PageServicePipelining(_Table):
    mode: Literal["serial", "pipelined"] = "pipelined"
    max_batch_size: Positive = 32
    execution: Literal["concurrent-futures", "tasks"] = "concurrent-futures"
    batching: Literal["uniform-lsn", "scattered-lsn"] = "uniform-lsn"


class GetVectoredConcurrentIo(_Table):
    mode: Literal["sidecar-task", "sequential"] = "sidecar-task"


class TracingExport(_Table):
    endpoint: Annotated[str, Field(pattern="^https?://")]
    protocol: Literal["grpc", "http-binary", "http-json"]
    timeout: Duration


class Tracing(_Table):
    sampling_ratio: SamplingRatio
    export_config: TracingExport

    @model_validator(mode="after")
    def _ratio_is_at_most_one(self) -> Tracing:
        if self.sampling_ratio.denominator < self.sampling_ratio.numerator:
            raise ValueError("sampling_ratio: the denominator must not be below the numerator")
        return self


class PosthogConfig(_Table):
    project_id: str | None = None
    server_api_key: str | None = None
    client_api_key: str | None = None
    private_api_url: str | None = None
    public_api_url: str | None = None
    refresh_interval: Duration | None = None


class TimelineImport(_Table):
    import_job_concurrency: Positive = 32
    import_job_soft_size_limit: Positive = 268_435_456
    import_job_checkpoint_threshold: Positive = 32
    import_job_max_byte_range_size: Positive = 4_194_304


class BasebackupCache(_Table):
    cleanup_period: Duration = Duration.parse("60s")
    max_total_size_bytes: U64 = 1_073_741_824
    max_size_entries: U64 = 10_000
    prepare_channel_size: U64 = 100


def _check_address(address: str) -> str:
    """Refuse what is no `host:port` to listen on."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"{address!r} is no address to listen on; HINT: it looks like 127.0.0.1:9898")
    return address


def _check_compression_level(setting: str) -> str:
    """A level fits 8 bits with a sign (layer-files.md 5.2)."""
    level = setting.removeprefix("zstd(").removesuffix(")")
    if level != setting and not -128 <= int(level) <= 127:
        raise ValueError(f"zstd level {level} is not between -128 and 127")
    return setting


class ServerSettings(_Table):
    """The whole of `pageserver.toml`. Relative paths are relative to the working directory."""

    listen_pg_addr: Annotated[str, AfterValidator(_check_address)] = "127.0.0.1:64000"
    listen_http_addr: Annotated[str, AfterValidator(_check_address)] = "127.0.0.1:9898"
    listen_https_addr: str | None = None
    listen_grpc_addr: str | None = None
    ssl_key_file: str = "server.key"
    ssl_cert_file: str = "server.crt"
    ssl_cert_reload_period: Duration = Duration.parse("60s")
    ssl_ca_file: str | None = None
    availability_zone: str | None = None
    wait_lsn_timeout: Duration = Duration.parse("300s")
    wal_redo_timeout: Duration = Duration.parse("60s")
    superuser: str = "cloud_admin"
    locale: str = "C.UTF-8"
    page_cache_size: Positive = 8192
    client_page_cache_bytes: U64 | None = None
    open_layer_memory_bytes: U64 | None = None
    max_file_descriptors: Positive = 100
    pg_distrib_dir: str | None = None
    pg_installations: dict[str, str] = {}
    redo: Literal["native-first", "process-only"] = "native-first"
    redo_programs: dict[Annotated[str, Field(pattern=r"^1[4-8]$")], str] = {}
    http_auth_type: AuthType = "Trust"
    pg_auth_type: AuthType = "Trust"
    grpc_auth_type: AuthType = "Trust"
    auth_validation_public_key_path: str | None = None
    remote_storage: RemoteStorage | None = None
    tenant_config: dict[str, Any] = {}
    broker_endpoint: str = "http://127.0.0.1:50051"
    broker_keepalive_interval: Duration = Duration.parse("5s")
    log_format: Literal["plain", "json", "test"] = "plain"
    concurrent_tenant_warmup: Positive = 8
    concurrent_tenant_size_logical_size_queries: Positive = 1
    metric_collection_interval: Duration = Duration.parse("10m")
    metric_collection_endpoint: str | None = None
    metric_collection_bucket: RemoteStorage | None = None
    synthetic_size_calculation_interval: Duration = Duration.parse("10m")
    disk_usage_based_eviction: DiskUsageEviction = DiskUsageEviction()
    test_remote_failures: U64 = 0
    test_remote_failures_probability: U64 = 100
    ondemand_download_behavior_treat_error_as_warn: bool = False
    background_task_maximum_delay: Duration = Duration.parse("10s")
    control_plane_api: str | None = None
    control_plane_api_token: str | None = None
    control_plane_emergency_mode: bool = False
    import_pgdata_upcall_api: str | None = None
    import_pgdata_upcall_api_token: str | None = None
    import_pgdata_aws_endpoint_url: str | None = None
    heatmap_upload_concurrency: Positive = 8
    secondary_download_concurrency: Positive = 1
    virtual_file_io_engine: Literal["std-fs", "tokio-epoll-uring"] | None = None
    virtual_file_io_mode: Literal["buffered", "direct", "direct-rw"] = "direct-rw"
    ingest_batch_size: Positive = 100
    max_vectored_read_bytes: Positive = 133_120
    max_get_vectored_keys: Positive = 32
    image_compression: Annotated[
        str, Field(pattern=r"^(disabled|zstd|zstd\(-?\d{1,3}\))$"), AfterValidator(_check_compression_level)
    ] = "zstd(1)"
    timeline_offloading: bool = True
    ephemeral_bytes_per_memory_kb: U64 = 0
    l0_flush: L0Flush | None = None
    no_sync: bool = False
    page_service_pipelining: PageServicePipelining = PageServicePipelining(batching="scattered-lsn")
    get_vectored_concurrent_io: GetVectoredConcurrentIo = GetVectoredConcurrentIo()
    enable_read_path_debugging: bool = False
    validate_wal_contiguity: bool = False
    load_previous_heatmap: bool = True
    generate_unarchival_heatmap: bool = True
    tracing: Tracing | None = None
    enable_tls_page_service_api: bool = False
    dev_mode: bool = False
    posthog_config: PosthogConfig | None = None
    timeline_import_config: TimelineImport = TimelineImport()
    basebackup_cache_config: BasebackupCache | None = None
    image_layer_generation_large_timeline_threshold: U64 = 2_147_483_648
    force_metric_collection_on_scrape: bool = True
    testing_apis: bool = False

    @model_validator(mode="after")
    def _settings_agree(self) -> ServerSettings:
        pipelining = self.page_service_pipelining
        if pipelining.mode == "pipelined" and pipelining.max_batch_size > self.max_get_vectored_keys:
            raise ValueError(
                f"`max_batch_size` ({pipelining.max_batch_size}) must be less than or equal to "
                f"`max_get_vectored_keys` ({self.max_get_vectored_keys})"
            )
        TenantOverrides.parse(self.tenant_config)
        return self

    def tenant_defaults(self) -> TenantOverrides:
        """Return `[tenant_config]`: what every tenant gets unless it overrides it."""
        return TenantOverrides.parse(self.tenant_config)


class ServerConfig(BaseModel):
    """What one server process was started with: where it lives, who it is, its settings, and what the file says that
    nobody knows.
    """

    model_config = ConfigDict(frozen=True)

    workdir: Path
    node_id: int
    settings: ServerSettings
    ignored_items: tuple[str, ...] = ()
