"""Families of Neon's page server that this release does not have: why, and which room would have them.

`test_metrics_of_a_server.py` fails when one of these appears, so that the list stays true. Names are given without
`pageserver_` where they have it.
"""

from __future__ import annotations

_REASONS: dict[str, str] = {
    "timeline: logical sizes are not computed": """
        current_logical_size initial_logical_size_drop_calculation initial_logical_size_drop_finished_calculation
        initial_logical_size_finish_calculation initial_logical_size_start_calculation aux_file_estimated_size
        archive_size""",
    "timeline: garbage collection of layers": "pitr_history_size standby_horizon valid_lsn_lease_count",
    "timeline: compaction and its circuit breaker": "circuit_breaker_broken circuit_breaker_unbroken",
    "tenant: the three background loops of a shard and their semaphore": """
        active_storage_operations_count background_loop_semaphore_running_tasks
        background_loop_semaphore_wait_finish_count background_loop_semaphore_wait_seconds
        background_loop_semaphore_wait_start_count background_loop_semaphore_waiting_tasks tenant_task_events""",
    "tenant: eviction by disk usage and by age": """
        disk_usage_based_eviction_collected_layers_total disk_usage_based_eviction_evicted_bytes_total
        disk_usage_based_eviction_evicted_layers_total disk_usage_based_eviction_select_layers_total
        disk_usage_based_eviction_tenant_collected_layers disk_usage_based_eviction_tenant_collection_seconds
        evictions_with_low_residence_duration layer_cancelled_evictions_count layer_completed_evictions
        layer_eviction_held_permit_seconds layer_redownloaded_after layer_started_evictions""",
    "tenant: layers here have no states of their own that could go such ways": """
        layer_assumed_rare_count layer_completed_deletes layer_failed_deletes_count layer_inits_cancelled_count
        layer_started_deletes tenant_manager_unexpected_errors_total""",
    "timeline: the engine does not say which task waits for a download": """
        unexpected_ondemand_downloads_count wait_ondemand_download_seconds_global wait_ondemand_download_seconds_sum""",
    "pagestore: reads and file operations are not counted": """
        deltas_per_read_global get_vectored_seconds io_operations_bytes_total io_operations_seconds layers_per_read
        layers_per_read_amortized_global layers_per_read_batch_global layers_per_read_global scan_seconds
        page_cache_find_victim_calls page_cache_find_victim_iters_total page_cache_read_accesses_total
        page_cache_read_hits_total relsize_snapshot_cache_entries relsize_snapshot_cache_misses
        virtual_file_descriptor_cache_size_max virtual_file_io_engine_kind""",
    "pageserve: not counted yet": """
        page_service_pagestream_batch_wait_time_seconds page_service_pagestream_batch_wait_time_seconds_global
        page_service_pagestream_flush_in_progress_micros""",
    "pageserve: what throttles do is not counted": """
        tenant_throttling_count tenant_throttling_count_accounted_finish
        tenant_throttling_count_accounted_finish_global tenant_throttling_count_accounted_start
        tenant_throttling_count_accounted_start_global tenant_throttling_count_global
        tenant_throttling_wait_usecs_sum tenant_throttling_wait_usecs_sum_global""",
    "serve: there is no cache of base backups": "basebackup_cache_prepare_total basebackup_cache_read_total",
    "wal: safekeepers and the broker": "walreceiver_broker_updates_total walreceiver_candidates_events_total",
    "never: this server has no such part": """
        tokio_epoll_uring_pageserver_thread_local_launch_failures_count
        tokio_epoll_uring_pageserver_thread_local_launch_success_count
        tokio_epoll_uring_slots_submission_queue_depth tokio_epoll_uring_systems_created
        tokio_epoll_uring_systems_destroyed tokio_executor_thread_configured_count""",
    "mgmt: the HTTP server's connections are not counted": """
        http_server_connection_errors_total http_server_connection_started_total""",
}

NOT_BUILT: dict[str, str] = {
    name if name.startswith("http_") else f"pageserver_{name}": reason
    for reason, names in _REASONS.items()
    for name in names.split()
}
