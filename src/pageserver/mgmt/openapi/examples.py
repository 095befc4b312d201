"""Examples of bodies. Tests check each against its schema."""

from __future__ import annotations

from typing import Any

from pageserver.mgmt.openapi.parameters import LAYER, TENANT, TIMELINE

_ANCESTOR = "1d2c8cbe8ed3cd4d3b0ee9e7a0e1b0ac"

TENANT_INFO: dict[str, Any] = {
    "id": TENANT,
    "state": {"slug": "Active"},
    "current_physical_size": 42,
    "attachment_status": {"slug": "attached"},
    "generation": 1,
}
TENANT_DETAILS: dict[str, Any] = {
    **TENANT_INFO,
    "walredo": {"last_redo_at": "2026-02-21T10:02:59.250000Z", "process": {"pid": 4711}},
    "timelines": [TIMELINE],
}
UTILIZATION: dict[str, Any] = {
    "disk_usage_bytes": 120_000_000_000,
    "free_space_bytes": 880_000_000_000,
    "disk_wanted_bytes": 200_000_000_000,
    "disk_usable_pct": 80,
    "shard_count": 10,
    "max_shard_count": 2500,
    "utilization_score": 250_000,
    "captured_at": "2026-02-21T10:02:59.250Z",
}
_TENANT_CONF: dict[str, Any] = {"checkpoint_distance": 8388608, "pitr_interval": "7days"}
LOCATION: dict[str, Any] = {
    "mode": "AttachedSingle",
    "generation": 1,
    "secondary_conf": None,
    "shard_number": 0,
    "shard_count": 0,
    "shard_stripe_size": 2048,
    "tenant_conf": _TENANT_CONF,
}
LOCATIONS: dict[str, Any] = {"tenant_shards": [[TENANT, LOCATION], [_ANCESTOR, None]]}
LOCATION_REQUEST: dict[str, Any] = {"mode": "AttachedSingle", "generation": 1, "tenant_conf": _TENANT_CONF}
LOCATION_ANSWER: dict[str, Any] = {"shards": [{"shard_id": TENANT, "node_id": 1234}], "stripe_size": None}
GENERATIONS: dict[str, Any] = {
    "claims": [
        {
            "generation": 3,
            "node_id": 1234,
            "instance": "0e9f2b1c4d5a69788796a5b4c3d2e1f0",
            "host": "storage-1",
            "claimed_at": "2026-02-21T10:02:59Z",
        }
    ],
    "claims_total": 3,
    "highest_claim": 3,
    "highest_object": 2,
    "next_generation": 4,
}
REMOTE_SHARDS: dict[str, Any] = {"shards": [{"tenant_shard_id": TENANT, "generation": 3, "stripe_size": None}]}
TENANT_CONFIG: dict[str, Any] = {
    "tenant_specific_overrides": _TENANT_CONF,
    "effective_config": {**_TENANT_CONF, "gc_period": "1h", "gc_horizon": 67108864},
}
TENANT_CONFIG_REQUEST: dict[str, Any] = {"tenant_id": TENANT, "gc_period": "30m", "gc_horizon": None}
TIMELINE_INFO: dict[str, Any] = {
    "tenant_id": TENANT,
    "timeline_id": TIMELINE,
    "ancestor_timeline_id": _ANCESTOR,
    "ancestor_lsn": "0/2000028",
    "last_record_lsn": "0/4CF6E00",
    "prev_record_lsn": "0/4CF6D88",
    "applied_gc_cutoff_lsn": "0/2000028",
    "min_readable_lsn": "0/2000028",
    "disk_consistent_lsn": "0/4CF6E00",
    "remote_consistent_lsn": "0/4CF6E00",
    "remote_consistent_lsn_visible": "0/4CF6E00",
    "initdb_lsn": "0/2000028",
    "current_logical_size": 40443904,
    "current_logical_size_is_accurate": True,
    "directory_entries_counts": [0, 0, 0, 0, 0, 0, 0, 0],
    "current_physical_size": 41197568,
    "current_logical_size_non_incremental": None,
    "pitr_history_size": 80702976,
    "within_ancestor_pitr": False,
    "timeline_dir_layer_file_size_sum": None,
    "wal_source_connstr": "host=primary port=5432 user=replicator",
    "last_received_msg_lsn": "0/4CF6E00",
    "last_received_msg_ts": 1795257588000000,
    "pg_version": 16,
    "state": "Active",
    "walreceiver_status": "streaming",
    "is_archived": False,
    "rel_size_migration": "legacy",
    "rel_size_migrated_at": None,
    "is_invisible": False,
    "flavour": "stock",
    "wal_source_error": None,
}
TIMELINE_SOURCE: dict[str, Any] = {
    "flavour": "stock",
    "pg_version": 16,
    "connection": "host=primary port=5432 user=replicator",
    "slot": f"pageserver_{TIMELINE}",
    "system_identifier": "7710566186982188578",
    "pg_tli": 1,
    "slot_state": {
        "restart_lsn": "0/4CF6E00",
        "active": True,
        "wal_status": "reserved",
        "safe_wal_size": None,
        "retained_bytes": 4096,
        "max_slot_wal_keep_size": "-1",
    },
    "gaps": [{"from_lsn": "0/3000148", "start_lsn": "0/4000028", "to_lsn": "0/4000100"}],
    "status": "streaming",
    "error": None,
    "slot_lost": False,
    "last_record_lsn": "0/4CF6E00",
    "durable_lsn": "0/4CF6E00",
}
OFFLOADED: dict[str, Any] = {
    "tenant_id": TENANT,
    "timeline_id": _ANCESTOR,
    "ancestor_timeline_id": TIMELINE,
    "ancestor_retain_lsn": "0/3000000",
    "archived_at": "2026-02-21T10:02:59.250Z",
}
BRANCH_REQUEST: dict[str, Any] = {
    "new_timeline_id": _ANCESTOR,
    "ancestor_timeline_id": TIMELINE,
    "ancestor_start_lsn": "0/3000000",
}
NAME: dict[str, Any] = {"name": "main", "timeline_id": TIMELINE}
KEYSPACE: dict[str, Any] = {
    "keys": [["000000067F00000001000000000000000000", "000000067F00000001000000000000000002"]],
    "sparse_keys": [["620000000000000000000000000000000000", "630000000000000000000000000000000000"]],
    "at_lsn": "0/4CF6E00",
}
GET_PAGE: dict[str, Any] = {
    "page": [0, 0, 0, 0],
    "layers_visited": 3,
    "delta_layers_visited": 2,
    "records": [],
    "img": None,
}
GC_RESULT: dict[str, Any] = {
    "layers_total": 0,
    "layers_needed_by_cutoff": 0,
    "layers_needed_by_pitr": 0,
    "layers_needed_by_branches": 0,
    "layers_needed_by_leases": 0,
    "layers_not_updated": 0,
    "layers_removed": 0,
    "elapsed": 12,
    "cutoff_lsn": "0/3000000",
    "versions_total": 52000,
    "versions_removed": 1200,
}
LAYER_MAP: dict[str, Any] = {
    "in_memory_layers": [{"kind": "Open", "lsn_start": "0/4CF6E01"}],
    "historic_layers": [
        {
            "kind": "Delta",
            "layer_file_name": LAYER,
            "layer_file_size": 8404992,
            "lsn_start": "0/2000029",
            "lsn_end": "0/4CF6E01",
            "remote": False,
            "access_stats": {"access_time": 0, "residence_time": 0, "visible": True},
            "l0": False,
        }
    ],
}
DOWNLOAD_TASK: dict[str, Any] = {
    "task_id": "1",
    "state": "Running",
    "total_layer_count": 120,
    "successful_download_count": 17,
    "failed_download_count": 0,
}
DATA_DIRECTORY: dict[str, Any] = {
    "lsn": "0/4CF6E00",
    "pg_version": 16,
    "pg_tli": 2,
    "data_checksums": True,
    "parts": 4,
    "files": 968,
    "size_bytes": 40443904,
    "tablespaces": [{"oid": 16385, "location": "/srv/space"}],
    "directories": ["base", "base/1", "global"],
    "pg_installation": None,
}
