"""Families of Neon's page server that this release does not have: why, and which room would have them.

`test_metrics_of_a_server.py` fails when one of these appears, so that the list stays true. Names are given without
`pageserver_` where they have it.
"""

from __future__ import annotations

_REASONS: dict[str, str] = {
    "timeline: sizes of aux files and of branches in their ancestor's history": "aux_file_estimated_size archive_size",
    "tenant: the three background loops of a shard and their semaphore": """
        active_storage_operations_count background_loop_semaphore_running_tasks
        background_loop_semaphore_wait_finish_count background_loop_semaphore_wait_seconds
        background_loop_semaphore_wait_start_count background_loop_semaphore_waiting_tasks tenant_task_events""",
    "timeline: how long an evicted layer was away is not looked at": "layer_redownloaded_after",
    "timeline: the engine does not say which task waits for a download": """
        wait_ondemand_download_seconds_global wait_ondemand_download_seconds_sum""",
    "pagestore: times of reads, and file operations, are not counted": """
        get_vectored_seconds io_operations_bytes_total io_operations_seconds scan_seconds page_cache_find_victim_calls
        page_cache_find_victim_iters_total page_cache_read_accesses_total page_cache_read_hits_total
        relsize_snapshot_cache_entries relsize_snapshot_cache_misses virtual_file_descriptor_cache_size_max
        virtual_file_io_engine_kind""",
    "never: this server has no such part": "tokio_executor_thread_configured_count",
}

NOT_BUILT: dict[str, str] = {
    f"pageserver_{name}": reason for reason, names in _REASONS.items() for name in names.split()
}
