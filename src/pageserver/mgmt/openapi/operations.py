"""What each route takes and answers. A new route is one entry here and one row in docs/http-api.md."""

from __future__ import annotations

from dataclasses import dataclass

from pageserver.mgmt.openapi import examples
from pageserver.mgmt.openapi.answers import (
    BYTES,
    BYTES_TYPE,
    JSON_TYPE,
    TAR_TYPE,
    Answer,
    RequestBody,
    answer,
    done,
    empty,
    ref,
    stream,
)
from pageserver.mgmt.openapi.parameters import (
    KEY,
    LSN,
    PG_VERSION,
    TIMELINE,
    TIMESTAMP,
    U64,
    Parameter,
    flag,
    lsn,
)
from pageserver.mgmt.openapi.schemas import list_of, one_of_words, record


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `answers` are those of success and of errors with a body of their own, `errors` the
    statuses with the usual one; what every route of a kind may answer is added in `document`.
    """

    summary: str
    tag: str
    answers: dict[int, Answer]
    errors: tuple[int, ...] = ()
    query: tuple[Parameter, ...] = ()
    body: RequestBody | None = None
    needs_tenant: bool = False
    needs_map: bool = False
    waits_for_active: bool = False
    takes_name: bool = False
    """Whether the timeline of the path may be named instead."""


_T = "/v1/tenant/{tenant_shard_id}"
_TL = _T + "/timeline"
_ONE = _TL + "/{timeline_id}"
_NAME = _T + "/name/{name}"
_PLAIN = "/v1/tenant/{tenant_id}/timeline/{timeline_id}"
_DIRECTORY = _ONE + "/data_directory"

_SIZE = flag("include-non-incremental-logical-size", "Count the logical size", default=False)
_NOT_IN_LAYERS = answer(
    "The timeline has no such layer (a text), or the name is not one of a layer",
    {"anyOf": [{"type": "string"}, ref("Error")]},
    "Layer 3d1f7595b468230304e0b73cecbcb081/8cbe8ed3cd4d3b0ee9e7a0e1b0ac1d2c/… not found",
)
_AT = lsn("lsn", "Where in the log; the end if absent")
_PARTS = Parameter(
    "parts",
    {"type": "integer", "minimum": 1, "maximum": 32, "default": 1},
    4,
    "How many parts to cut the directory into",
)
_TLI = Parameter(
    "tli",
    {"type": "integer", "minimum": 1, "maximum": (1 << 32) - 1},
    2,
    "PostgreSQL's timeline of the restored server",
)

_PROCESS: dict[tuple[str, str], Operation] = {
    ("GET", "/v1/status"): Operation(
        "The node's id", "process", {200: answer("The server answers", ref("Status"), {"id": 1234})}
    ),
    ("GET", "/metrics"): Operation(
        "Metrics in Prometheus' text format",
        "process",
        {
            200: Answer(
                "The text", {"text/plain": ({"type": "string"}, "pageserver_deletion_queue_submitted_total 0\n")}
            )
        },
        query=(Parameter("use_latest", {"type": "boolean"}, True, "Collect now, whatever is cached"),),
    ),
    ("GET", "/swagger.yml"): Operation(
        "This document", "process", {200: Answer("OpenAPI", {"application/yaml": ({}, {"openapi": "3.1.0"})})}
    ),
    ("PUT", "/v1/failpoints"): Operation(
        "For tests: says what happens at named instants",
        "process",
        {200: done("Configured, in order")},
        body=RequestBody(
            list_of(record("A failpoint", name={"type": "string"}, actions={"type": "string"})),
            [{"name": "before-upload-index", "actions": "2*return->off"}],
        ),
    ),
    ("GET", "/v1/utilization"): Operation(
        "How full the server is, at most a second ago",
        "process",
        {200: answer("1,000,000 points are full", ref("Utilization"), examples.UTILIZATION)},
        needs_map=True,
    ),
    ("PUT", "/v1/deletion_queue/flush"): Operation(
        "Writes pending deletions to disk, or carries them out",
        "process",
        {200: done("Done")},
        errors=(503,),
        query=(flag("execute", "Return when the objects are deleted", default=False),),
    ),
}

_TENANTS: dict[tuple[str, str], Operation] = {
    ("GET", "/v1/tenant"): Operation(
        "Attached tenants",
        "tenant",
        {200: answer("All of them", list_of(ref("TenantInfo")), [examples.TENANT_INFO])},
        needs_map=True,
    ),
    ("GET", "/v1/location_config"): Operation(
        "All locations",
        "tenant",
        {200: answer("All of them", ref("LocationConfigList"), examples.LOCATIONS)},
        needs_map=True,
    ),
    ("GET", "/v1/location_config/{tenant_shard_id}"): Operation(
        "One location, null while it changes",
        "tenant",
        {200: answer("The location", {"anyOf": [ref("LocationConfig"), {"type": "null"}]}, examples.LOCATION)},
    ),
    ("GET", _T): Operation(
        "One tenant",
        "tenant",
        {200: answer("The tenant", ref("TenantDetails"), examples.TENANT_DETAILS)},
        query=(flag("activate", "Wait some seconds until it is active", default=True),),
    ),
    ("DELETE", _T): Operation(
        "Deletes a tenant for good, here and in object storage", "tenant", {200: done("Nothing is left")}, errors=(500,)
    ),
    ("PUT", _T + "/location_config"): Operation(
        "Attaches, detaches, changes the mode",
        "tenant",
        {
            200: answer(
                "Durable on local disk; null after Detached",
                {"anyOf": [ref("LocationConfigAnswer"), {"type": "null"}]},
                examples.LOCATION_ANSWER,
            )
        },
        errors=(409, 412),
        query=(
            Parameter("flush_ms", U64, 5000, "How long a server that becomes stale may flush"),
            flag("lazy", "Attach in the background", default=False),
        ),
        body=RequestBody(ref("LocationConfigBody"), examples.LOCATION_REQUEST),
    ),
    ("POST", _T + "/heatmap_upload"): Operation("Uploads the heatmap", "tenant", {200: done("Uploaded")}),
    ("POST", _T + "/reset"): Operation(
        "Attaches anew in the same generation",
        "tenant",
        {200: done("It attaches")},
        errors=(412, 500),
        query=(flag("drop_cache", "Without what is on the local disk", default=False),),
    ),
    ("GET", _T + "/generations"): Operation(
        "Ours: claims of generations in the store, newest first",
        "tenant",
        {200: answer("Claims", ref("Generations"), examples.GENERATIONS)},
        query=(Parameter("limit", {**U64, "default": 100}, 10, "How many claims to show"),),
    ),
    ("PUT", _T + "/time_travel_remote_storage"): Operation(
        "Brings the objects of a shard that is not here back to how they were",
        "tenant",
        {200: done("Done; attach it now")},
        errors=(409, 500),
        query=(
            Parameter("travel_to", TIMESTAMP, "2026-02-21T10:02:59Z", "The moment", is_required=True),
            Parameter(
                "done_if_after",
                TIMESTAMP,
                "2026-02-22T08:00:00Z",
                "When the first attempt began: what is newer is done already",
                is_required=True,
            ),
        ),
    ),
    ("GET", "/v1/tenant/{tenant_id}/scan_remote_storage"): Operation(
        "Shards of an unsharded id in the bucket, attached or not",
        "tenant",
        {200: answer("What was found", ref("RemoteShards"), examples.REMOTE_SHARDS)},
    ),
    ("GET", _T + "/config"): Operation(
        "Overrides, and what is in effect",
        "tenant",
        {200: answer("Settings", ref("TenantConfigAnswer"), examples.TENANT_CONFIG)},
    ),
    ("PUT", "/v1/tenant/config"): Operation(
        "Replaces all overrides",
        "tenant",
        {200: done("Durable on local disk")},
        errors=(412,),
        body=RequestBody(ref("TenantConfigBody"), examples.TENANT_CONFIG_REQUEST),
        needs_tenant=True,
        waits_for_active=True,
    ),
    ("PATCH", "/v1/tenant/config"): Operation(
        "Changes single overrides; null removes one",
        "tenant",
        {200: done("Durable on local disk")},
        errors=(412,),
        body=RequestBody(ref("TenantConfigBody"), examples.TENANT_CONFIG_REQUEST),
        needs_tenant=True,
        waits_for_active=True,
    ),
    ("POST", _T + "/wait_lsn"): Operation(
        "Waits until timelines have ingested LSNs",
        "tenant",
        {
            200: done("All are there"),
            202: done("Not in time"),
            404: answer(
                "The tenant is not here; or, with `null`, none of the timelines is",
                {"anyOf": [ref("Error"), {"type": "null"}]},
                None,
            ),
        },
        body=RequestBody(ref("WaitLsnBody"), {TIMELINE: "0/4CF6E00", "timeout": {"secs": 1, "nanos": 0}}),
    ),
}

_TIMELINES: dict[tuple[str, str], Operation] = {
    ("POST", _TL): Operation(
        "Creates a timeline: branches, follows a primary, or starts anew with initdb",
        "timeline",
        {201: answer("It exists, durably", ref("TimelineInfo"), examples.TIMELINE_INFO)},
        errors=(406, 409, 412, 429, 500, 501),
        body=RequestBody(ref("TimelineCreateBody"), examples.BRANCH_REQUEST),
        waits_for_active=True,
    ),
    ("GET", _TL): Operation(
        "All timelines",
        "timeline",
        {200: answer("All of them", list_of(ref("TimelineInfo")), [examples.TIMELINE_INFO])},
        query=(_SIZE,),
        waits_for_active=True,
    ),
    ("GET", _T + "/timeline_and_offloaded"): Operation(
        "All timelines, offloaded ones apart",
        "timeline",
        {
            200: answer(
                "All of them",
                ref("TimelinesAndOffloaded"),
                {"timelines": [examples.TIMELINE_INFO], "offloaded": [examples.OFFLOADED]},
            )
        },
        query=(_SIZE,),
        waits_for_active=True,
    ),
    ("GET", _ONE): Operation(
        "One timeline",
        "timeline",
        {200: answer("The timeline", ref("TimelineInfo"), examples.TIMELINE_INFO)},
        query=(_SIZE,),
        waits_for_active=True,
    ),
    ("DELETE", _ONE): Operation(
        "Deletes a timeline for good; repeat until 404",
        "timeline",
        {202: done("The decision is durable")},
        errors=(409, 412),
        waits_for_active=True,
    ),
    ("PUT", _ONE + "/archival_config"): Operation(
        "Archives, or brings back",
        "timeline",
        {200: done("Durable in object storage")},
        errors=(408, 409, 412),
        body=RequestBody(ref("ArchivalBody"), {"state": "Archived"}),
        waits_for_active=True,
    ),
    ("PUT", _ONE + "/offload"): Operation(
        "Lets go of an archived timeline",
        "timeline",
        {200: done("Offloaded")},
        errors=(408, 409, 412),
        waits_for_active=True,
    ),
    ("POST", _ONE + "/preserve_initdb_archive"): Operation(
        "Copies the archive of initdb to the name that outlives the timeline",
        "timeline",
        {200: done("Copied")},
        errors=(412,),
    ),
    ("GET", _ONE + "/keyspace"): Operation(
        "Ranges of keys that exist",
        "read",
        {200: answer("The ranges", ref("KeySpace"), examples.KEYSPACE)},
        errors=(408,),
        query=(lsn("at_lsn", "Where in the log; the end if absent"),),
        waits_for_active=True,
    ),
    ("GET", _ONE + "/getpage"): Operation(
        "The value of one key; raw with `Accept: application/octet-stream`",
        "read",
        {
            200: Answer(
                "The value",
                {JSON_TYPE: (ref("GetPage"), examples.GET_PAGE), BYTES_TYPE: (BYTES, None)},
            )
        },
        errors=(408,),
        query=(
            Parameter("key", KEY, "000000067F00000001000000AE0000000000", "36 hexadecimal digits", is_required=True),
            _AT,
        ),
        waits_for_active=True,
    ),
    ("GET", _ONE + "/get_lsn_by_timestamp"): Operation(
        "The LSN of a moment",
        "read",
        {200: answer("The LSN", ref("LsnByTimestamp"), {"lsn": "0/4CF6E00", "kind": "present"})},
        errors=(501,),
        query=(
            Parameter("timestamp", TIMESTAMP, "2026-02-21T10:02:59Z", "RFC 3339 with Z", is_required=True),
            flag("with_lease", "Keep it readable", default=False),
        ),
        waits_for_active=True,
    ),
    ("GET", _ONE + "/get_timestamp_of_lsn"): Operation(
        "The moment of an LSN",
        "read",
        {200: answer("The moment", TIMESTAMP, "2026-02-21T10:02:59.250000000Z")},
        errors=(408, 412),
        query=(lsn("lsn", "Where in the log", is_required=True),),
        waits_for_active=True,
    ),
    ("PUT", _ONE + "/checkpoint"): Operation(
        "Freezes, flushes, uploads",
        "timeline",
        {200: done("Done")},
        errors=(501,),
        query=(
            flag("force_l0_compaction", "Not built yet", default=False),
            flag("force_repartition", "Not built yet", default=False),
            flag("force_image_layer_creation", "Not built yet", default=False),
            flag("wait_until_flushed", "Return when it is durable", default=True),
        ),
        waits_for_active=True,
    ),
    ("PUT", _ONE + "/do_gc"): Operation(
        "Removes versions (object repository)",
        "timeline",
        {200: answer("What was removed", ref("GcResult"), examples.GC_RESULT)},
        errors=(501,),
        body=RequestBody(ref("GcBody"), {"gc_horizon": 67108864}),
        waits_for_active=True,
    ),
}

_NAMES: dict[tuple[str, str], Operation] = {
    ("GET", _T + "/name"): Operation(
        "Ours: names of timelines",
        "name",
        {200: answer("All names", record("Names", names=list_of(ref("TimelineName"))), {"names": [examples.NAME]})},
        waits_for_active=True,
    ),
    ("GET", _NAME): Operation(
        "Ours: which timeline is called so",
        "name",
        {200: answer("The timeline", ref("TimelineName"), examples.NAME)},
        waits_for_active=True,
    ),
    ("PUT", _NAME): Operation(
        "Ours: calls a timeline so",
        "name",
        {200: answer("Durable", ref("TimelineName"), examples.NAME)},
        body=RequestBody(ref("NameBody"), {"timeline_id": TIMELINE}),
        waits_for_active=True,
    ),
    ("POST", _NAME + "/rename"): Operation(
        "Ours: changes a name",
        "name",
        {200: answer("Durable", ref("TimelineName"), {**examples.NAME, "name": "trunk"})},
        body=RequestBody(ref("RenameBody"), {"new_name": "trunk"}),
        waits_for_active=True,
    ),
    ("DELETE", _NAME): Operation(
        "Ours: takes the name away", "name", {200: done("The timeline stays")}, waits_for_active=True
    ),
}

_LAYERS: dict[tuple[str, str], Operation] = {
    ("GET", _ONE + "/layer"): Operation(
        "The layer map",
        "layer",
        {200: answer("The layers", ref("LayerMap"), examples.LAYER_MAP)},
        query=(
            Parameter(
                "reset", one_of_words("NoReset", "AllStats"), "NoReset", "Whether to forget statistics of access"
            ),
        ),
        waits_for_active=True,
    ),
    ("GET", _ONE + "/layer/{layer_file_name}"): Operation(
        "Brings a layer to this disk",
        "layer",
        {200: done("It is here now"), 304: empty("It was here"), 400: _NOT_IN_LAYERS},
        waits_for_active=True,
    ),
    ("DELETE", _ONE + "/layer/{layer_file_name}"): Operation(
        "Removes a layer from this disk",
        "layer",
        {200: done("It is gone"), 304: empty("It was not here"), 400: _NOT_IN_LAYERS},
        errors=(412,),
        waits_for_active=True,
    ),
    ("POST", _ONE + "/download_remote_layers"): Operation(
        "Begins to bring all layers",
        "layer",
        {
            202: answer("The task", ref("DownloadTask"), examples.DOWNLOAD_TASK),
            409: answer(
                "The task that runs already", {"anyOf": [ref("DownloadTask"), ref("Error")]}, examples.DOWNLOAD_TASK
            ),
        },
        body=RequestBody(ref("DownloadLayersBody"), {"max_concurrent_downloads": 8}),
        waits_for_active=True,
    ),
    ("GET", _ONE + "/download_remote_layers"): Operation(
        "How far bringing all layers is",
        "layer",
        {200: answer("The task", ref("DownloadTask"), examples.DOWNLOAD_TASK)},
        waits_for_active=True,
    ),
}

_FILES: dict[tuple[str, str], Operation] = {
    ("PUT", _PLAIN + "/import_basebackup"): Operation(
        "Makes a timeline of a base backup in a tar",
        "import",
        {200: done("Imported")},
        errors=(500,),
        query=(
            lsn("base_lsn", "Where the backup starts", is_required=True),
            lsn("end_lsn", "Where it ends", is_required=True),
            Parameter("pg_version", PG_VERSION, 16, "Major version", is_required=True),
            Parameter("flavour", one_of_words("neon", "stock"), "stock", "Whose server it was"),
        ),
        body=RequestBody(BYTES, None, BYTES_TYPE, is_required=False),
        waits_for_active=True,
    ),
    ("PUT", _PLAIN + "/import_wal"): Operation(
        "Adds WAL in a tar to it",
        "import",
        {200: done("Ingested and flushed")},
        errors=(500,),
        query=(
            Parameter("start_lsn", LSN, "0/2000028", "Where the timeline stands", is_required=True),
            lsn("end_lsn", "Where it shall stand", is_required=True),
        ),
        body=RequestBody(BYTES, None, BYTES_TYPE, is_required=False),
        waits_for_active=True,
    ),
    ("GET", _ONE + "/source"): Operation(
        "Ours: where a timeline's WAL comes from, and what the primary retains for it",
        "source",
        {200: answer("The source", ref("TimelineSource"), examples.TIMELINE_SOURCE)},
        waits_for_active=True,
        takes_name=True,
    ),
    ("PUT", _ONE + "/source"): Operation(
        "Ours: has a timeline go on from another primary",
        "source",
        {200: answer("It does, durably", ref("TimelineInfo"), examples.TIMELINE_INFO)},
        errors=(412,),
        body=RequestBody(ref("SourceBody"), {"conninfo": "host=primary port=5432 user=replicator"}),
        waits_for_active=True,
        takes_name=True,
    ),
    ("POST", _ONE + "/source/resync"): Operation(
        "Ours: takes a new base backup into a timeline whose slot is lost",
        "source",
        {202: answer("It has begun; the timeline tells how far it is", ref("TimelineInfo"), examples.TIMELINE_INFO)},
        errors=(412,),
        body=RequestBody(ref("ResyncBody"), {"force": False}),
        waits_for_active=True,
        takes_name=True,
    ),
    ("GET", _DIRECTORY): Operation(
        "Ours: what a restored data directory consists of",
        "restore",
        {200: answer("The manifest", ref("DataDirectory"), examples.DATA_DIRECTORY)},
        errors=(408,),
        query=(_AT, _PARTS, _TLI),
        waits_for_active=True,
        takes_name=True,
    ),
    ("GET", _DIRECTORY + "/part/{part}"): Operation(
        "Ours: one part of it",
        "restore",
        {200: stream("A tar; one that breaks off was cut short by an error", TAR_TYPE)},
        errors=(408,),
        query=(_AT, _PARTS, _TLI),
        waits_for_active=True,
        takes_name=True,
    ),
    ("GET", _DIRECTORY + "/verify/{part}"): Operation(
        "Ours: one part, to be compared with a stopped server's",
        "restore",
        {200: stream("Frames of blocks", BYTES_TYPE)},
        errors=(408,),
        query=(_AT, _PARTS),
        waits_for_active=True,
        takes_name=True,
    ),
}

OPERATIONS: dict[tuple[str, str], Operation] = {**_PROCESS, **_TENANTS, **_TIMELINES, **_NAMES, **_LAYERS, **_FILES}
