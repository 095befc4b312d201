"""Shapes of JSON objects (http-api.md 4.2, 5). Objects that answer may gain keys, so none of them is closed."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from pageserver.config.tenant import TenantSettings
from pageserver.mgmt import models
from pageserver.mgmt.openapi.answers import Json, ref
from pageserver.mgmt.openapi.parameters import BOOLEAN, ID, LSN, PG_VERSION, SHARD_ID, TIMELINE_NAME, U32, U64

TEXT: Json = {"type": "string"}
_REF_TEMPLATE = "#/components/schemas/{model}"


def or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def list_of(schema: Json) -> Json:
    return {"type": "array", "items": schema}


def record(description: str, optional: Json | None = None, /, **required: Json) -> Json:
    """Return the schema of an object: keys that are always there, and `optional` ones."""
    return {
        "type": "object",
        "description": description,
        "properties": {**required, **(optional or {})},
        "required": list(required),
    }


def one_of_words(*words: str) -> Json:
    return {"type": "string", "enum": list(words)}


_REASON = record("Why", reason=TEXT, backtrace=TEXT)

_LAYER = {
    "layer_file_name": TEXT,
    "layer_file_size": U64,
    "lsn_start": LSN,
    "remote": BOOLEAN,
    "access_stats": record(
        "Milliseconds since the epoch; 0 is unknown", access_time=U64, residence_time=U64, visible=BOOLEAN
    ),
}

_ANSWERS: dict[str, Json] = {
    "Error": record("Every error", msg=TEXT),
    "Status": record("The node", id=U64),
    "Utilization": record(
        "How full the server is",
        disk_usage_bytes=U64,
        free_space_bytes=U64,
        disk_wanted_bytes=U64,
        disk_usable_pct=U32,
        shard_count=U32,
        max_shard_count=U32,
        utilization_score=U64,
        captured_at=TEXT,
    ),
    "TenantState": record(
        "State of a tenant",
        {"data": {}},
        slug=one_of_words("Attaching", "Activating", "Active", "Stopping", "Broken"),
    ),
    "AttachmentStatus": record(
        "Follows from the state", {"data": {}}, slug=one_of_words("maybe", "attached", "failed")
    ),
    "TenantInfo": record(
        "A tenant",
        {"gc_blocking": TEXT},
        id=SHARD_ID,
        state=ref("TenantState"),
        current_physical_size=or_null(U64),
        attachment_status=ref("AttachmentStatus"),
        generation=U32,
    ),
    "TenantDetails": {
        "allOf": [
            ref("TenantInfo"),
            record(
                "A tenant with its timelines",
                walredo=or_null(
                    record("WAL redo", last_redo_at=or_null(TEXT), process=or_null(record("Process", pid=U32)))
                ),
                timelines=list_of(ID),
            ),
        ]
    },
    "LocationConfig": record(
        "How a tenant is attached",
        mode=one_of_words("AttachedSingle", "AttachedMulti", "AttachedStale", "Secondary"),
        generation=or_null(U32),
        secondary_conf=or_null(record("Of a secondary", warm=BOOLEAN)),
        shard_number=U32,
        shard_count=U32,
        shard_stripe_size=U32,
        tenant_conf=record("Overrides of settings"),
    ),
    "LocationConfigList": record(
        "All locations: pairs of id and configuration, null for one that is changing",
        tenant_shards=list_of(
            {"type": "array", "prefixItems": [SHARD_ID, or_null(ref("LocationConfig"))], "minItems": 2}
        ),
    ),
    "LocationConfigAnswer": record(
        "The shards that are attached now",
        shards=list_of(record("Shard", shard_id=SHARD_ID, node_id=U64)),
        stripe_size=or_null(U32),
    ),
    "TenantConfigAnswer": record(
        "Settings of a tenant",
        tenant_specific_overrides=record("What the tenant sets"),
        effective_config=record("What is in effect", checkpoint_distance=U64, gc_period=TEXT, pitr_interval=TEXT),
    ),
    "Generations": record(
        "Claims of generations in the store",
        claims=list_of(
            record(
                "A claim; null where its object does not decode",
                generation=U32,
                node_id=or_null(U64),
                instance=or_null(TEXT),
                host=or_null(TEXT),
                claimed_at=or_null(TEXT),
            )
        ),
        claims_total=U64,
        highest_claim=or_null(U32),
        highest_object=or_null(U32),
        next_generation=or_null(U32),
    ),
    "RemoteShards": record(
        "What a bucket has of a tenant",
        shards=list_of(record("Shard", tenant_shard_id=SHARD_ID, generation=or_null(U32), stripe_size=or_null(U32))),
    ),
    "TimelineInfo": record(
        "A timeline",
        {
            "image_consistent_lsn": LSN,
            "flavour": one_of_words("stock", "neon"),
            "wal_source_error": or_null(TEXT),
            "wal_source_paused": TEXT,
            "read_only": BOOLEAN,
            "names": list_of(TEXT),
            "gaps": list_of(ref("HistoryGap")),
            "import": record("How far the base copy is", phase=TEXT, bytes_done=U64, bytes_total=U64),
        },
        tenant_id=SHARD_ID,
        timeline_id=ID,
        ancestor_timeline_id=or_null(ID),
        ancestor_lsn=or_null(LSN),
        last_record_lsn=LSN,
        prev_record_lsn=or_null(LSN),
        applied_gc_cutoff_lsn=LSN,
        min_readable_lsn=LSN,
        disk_consistent_lsn=LSN,
        remote_consistent_lsn=LSN,
        remote_consistent_lsn_visible=LSN,
        initdb_lsn=LSN,
        current_logical_size=U64,
        current_logical_size_is_accurate=BOOLEAN,
        directory_entries_counts=list_of(U64),
        current_physical_size=or_null(U64),
        current_logical_size_non_incremental=or_null(U64),
        pitr_history_size=U64,
        within_ancestor_pitr=BOOLEAN,
        timeline_dir_layer_file_size_sum=or_null(U64),
        wal_source_connstr=or_null(TEXT),
        last_received_msg_lsn=or_null(LSN),
        last_received_msg_ts=or_null(U64),
        pg_version=PG_VERSION,
        state={"anyOf": [one_of_words("Loading", "Active", "Stopping"), record("Broken", Broken=_REASON)]},
        walreceiver_status=TEXT,
        is_archived=BOOLEAN,
        rel_size_migration=one_of_words("legacy", "migrating", "migrated"),
        rel_size_migrated_at=or_null(LSN),
        is_invisible=BOOLEAN,
    ),
    "HistoryGap": record("A stretch that never came; both ends can be read", from_lsn=LSN, start_lsn=LSN, to_lsn=LSN),
    "TimelineSource": record(
        "Where a timeline's WAL comes from; the keys of its document, if it has one, and what is known now",
        {
            "slot": or_null(TEXT),
            "system_identifier": or_null(TEXT),
            "gaps": list_of(ref("HistoryGap")),
            "neon_until_lsn": LSN,
            "slot_state_error": TEXT,
            "slot_state": or_null(
                record(
                    "The slot as its server sees it; sizes in bytes",
                    restart_lsn=or_null(LSN),
                    active=BOOLEAN,
                    wal_status=or_null(TEXT),
                    safe_wal_size=or_null({"type": "integer"}),
                    retained_bytes=or_null({"type": "integer"}),
                    max_slot_wal_keep_size=TEXT,
                )
            ),
        },
        flavour=one_of_words("stock", "neon"),
        connection=or_null(TEXT),
        status=TEXT,
        error=or_null(TEXT),
        slot_lost=BOOLEAN,
        last_record_lsn=LSN,
        durable_lsn=LSN,
    ),
    "OffloadedTimelineInfo": record(
        "An archived timeline that is not loaded",
        tenant_id=SHARD_ID,
        timeline_id=ID,
        ancestor_timeline_id=or_null(ID),
        ancestor_retain_lsn=or_null(LSN),
        archived_at=TEXT,
    ),
    "TimelinesAndOffloaded": record(
        "All timelines", timelines=list_of(ref("TimelineInfo")), offloaded=list_of(ref("OffloadedTimelineInfo"))
    ),
    "TimelineName": record("What a timeline is called", name=TEXT, timeline_id=ID),
    "KeySpace": record(
        "Half-open ranges of keys",
        keys=list_of({"type": "array", "items": TEXT, "minItems": 2, "maxItems": 2}),
        sparse_keys=list_of({"type": "array", "items": TEXT, "minItems": 2, "maxItems": 2}),
        at_lsn=LSN,
    ),
    "GetPage": record(
        "The value of a key",
        page=list_of({"type": "integer", "minimum": 0, "maximum": 255}),
        layers_visited=U64,
        delta_layers_visited=U64,
        records={"type": "array"},
        img={},
    ),
    "LsnByTimestamp": record(
        "Where the log was at a moment",
        {"valid_until": TEXT},
        lsn=LSN,
        kind=one_of_words("present", "future", "past", "nodata"),
    ),
    "GcResult": record(
        "What garbage collection did",
        {"cutoff_lsn": LSN, "versions_total": U64, "versions_removed": U64},
        layers_total=U64,
        layers_needed_by_cutoff=U64,
        layers_needed_by_pitr=U64,
        layers_needed_by_branches=U64,
        layers_needed_by_leases=U64,
        layers_not_updated=U64,
        layers_removed=U64,
        elapsed=U64,
    ),
    "LayerMap": record(
        "Layers in memory, and historic ones",
        in_memory_layers=list_of(
            record("In memory", {"lsn_end": LSN}, kind=one_of_words("Open", "Frozen"), lsn_start=LSN)
        ),
        historic_layers=list_of(
            {
                "oneOf": [
                    record("Delta", kind={"const": "Delta"}, **_LAYER, lsn_end=LSN, l0=BOOLEAN),
                    record("Image", kind={"const": "Image"}, **_LAYER),
                ]
            }
        ),
    ),
    "DownloadTask": record(
        "How far bringing all layers is",
        task_id=TEXT,
        state=one_of_words("Running", "Completed", "ShutDown"),
        total_layer_count=U64,
        successful_download_count=U64,
        failed_download_count=U64,
    ),
    "DataDirectory": record(
        "What a restored data directory consists of",
        lsn=LSN,
        pg_version=PG_VERSION,
        pg_tli=U32,
        data_checksums=BOOLEAN,
        parts=U32,
        files=U64,
        size_bytes=U64,
        tablespaces=list_of(record("Tablespace", oid=U32, location=TEXT)),
        directories=list_of(TEXT),
        pg_installation=or_null(TEXT),
    ),
}


def component_schemas() -> dict[str, Json]:
    """Return all schemas by name: answers, and the models that requests are read with."""
    schemas = dict(_ANSWERS)
    for model in (
        models.LocationConfigBody,
        models.TimelineCreateBody,
        models.GcBody,
        models.NameBody,
        models.RenameBody,
        models.ArchivalBody,
        models.SourceBody,
        models.ResyncBody,
        models.DownloadLayersBody,
        models.WaitTimeout,
        TenantSettings,
    ):
        schemas |= _of_model(model)
    settings = schemas.pop("TenantSettings")
    conf: Json = {
        "type": "object",
        "description": "Settings of one tenant; null is the same as an absent key. Unknown keys are kept and ignored.",
        "properties": {name: or_null(schema) for name, schema in settings["properties"].items()},
    }
    schemas["TenantConfig"] = conf
    schemas["TenantConfigBody"] = {
        "type": "object",
        "description": "A tenant, and its settings",
        "properties": {"tenant_id": ID, **conf["properties"]},
        "required": ["tenant_id"],
        "additionalProperties": False,
    }
    schemas["LocationConfigBody"]["properties"]["tenant_conf"] = ref("TenantConfig")
    schemas["TimelineCreateBody"]["properties"] |= {
        "new_timeline_id": ID,
        "ancestor_timeline_id": or_null(ID),
        "ancestor_start_lsn": or_null(LSN),
        "existing_initdb_timeline_id": or_null(ID),
        "pg_version": or_null(PG_VERSION),
        "name": or_null(TIMELINE_NAME),
    }
    schemas["NameBody"]["properties"]["timeline_id"] = ID
    schemas["RenameBody"]["properties"]["new_name"] = TIMELINE_NAME
    schemas["WaitLsnBody"] = {
        "type": "object",
        "description": "LSNs by timeline, and for how long to wait",
        "properties": {"timeout": ref("WaitTimeout")},
        "required": ["timeout"],
        "patternProperties": {"^[0-9A-Fa-f]{32}$": LSN},
        "additionalProperties": False,
    }
    return dict(sorted(schemas.items()))


def _of_model(model: type[BaseModel]) -> dict[str, Json]:
    """Return the schemas of a model and of those that it is made of."""
    schema: dict[str, Any] = model.model_json_schema(ref_template=_REF_TEMPLATE)
    parts: dict[str, Json] = schema.pop("$defs", {})
    return {**parts, model.__name__: schema}
