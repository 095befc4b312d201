"""One branch of one tenant shard: what has been ingested, what is durable, what may be read.

Values come in through the engine's open layer, layer files and index parts go out to the store behind `remote`; reads
are answered by the engine. This room decides when to freeze and flush and what the index says; it knows neither tenants
nor where WAL comes from.
"""

from pageserver.timeline.downloads import DownloadCounts, LayerDownloads
from pageserver.timeline.engine import Engine, LayerFacts, OpenLayer, RedoPool, StoreParameters, TimelineStore
from pageserver.timeline.info import ImportProgress, SourceStatus, TimelineInfo
from pageserver.timeline.repository import Repository, check_repository
from pageserver.timeline.residence import (
    DownloadTaskRunsError,
    DownloadTaskState,
    EvictionRefusedError,
    LayerNotFoundError,
)
from pageserver.timeline.state import TimelineState, TimelineStatus
from pageserver.timeline.timeline import Timeline, TimelineIdentity

__all__ = [
    "DownloadCounts",
    "DownloadTaskRunsError",
    "DownloadTaskState",
    "Engine",
    "EvictionRefusedError",
    "ImportProgress",
    "LayerDownloads",
    "LayerFacts",
    "LayerNotFoundError",
    "OpenLayer",
    "RedoPool",
    "Repository",
    "SourceStatus",
    "StoreParameters",
    "Timeline",
    "TimelineIdentity",
    "TimelineInfo",
    "TimelineState",
    "TimelineStatus",
    "TimelineStore",
    "check_repository",
]
