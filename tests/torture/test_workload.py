"""The torture load itself: it runs, holds still, and its sums mean something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.postgres.server import PostgresServer
from tests.torture.acceptance import empty_directory_for_server
from tests.torture.workload import SERVER_SETTINGS, PgbenchLoad, TortureError, TortureLoad, table_sums


@pytest.mark.parametrize("major", [15, 18])
def test_the_load_runs_holds_still_and_is_summed_up(
    major: int, make_server: Callable[..., PostgresServer], server_dir: Path
) -> None:
    """Goal: every actor works on this version, and a moment's sums are of that moment.

    Method: a short run with two moments; after the last barrier nothing is written any more, so the sums of the
    snapshots must equal those of the server after a crash and its recovery.
    """
    server = make_server(major, settings=SERVER_SETTINGS)
    space = empty_directory_for_server(server_dir / "space")
    with TortureLoad(server, seed=major, pgbench=PgbenchLoad(scale=1, clients=2), tablespace=space) as load:
        load.prepare()
        load.start()
        load.run_for(6)
        first = load.hold()
        load.run_for(3)
        load.stop()
        last = load.hold()
        assert all(steps > 0 for steps, _ in load.steps().values()), load.steps()
        assert all(refused < steps for steps, refused in load.steps().values()), load.steps()
        first_sums, last_sums = first.checksums(), last.checksums()
    assert first_sums["postgres"]["public.pgbench_history"] != last_sums["postgres"]["public.pgbench_history"]
    assert last.open_prepared
    server.crash()
    server.start()
    assert table_sums(server) == last_sums


def test_a_barrier_takes_a_prepared_transaction_that_is_the_newest_of_all_and_no_open_one(
    make_server: Callable[..., PostgresServer],
) -> None:
    """Goal: what may rest at a barrier is told from what is being written.

    Method: no writer runs; a transaction is prepared, with no later one that ended; then another one stays open.
    """
    server = make_server(15, settings=SERVER_SETTINGS)
    with TortureLoad(server, seed=1) as load, server.connect() as connection:
        connection.execute("CREATE TABLE t (id int)")
        connection.execute("BEGIN")
        connection.execute("INSERT INTO t VALUES (1)")
        connection.execute("PREPARE TRANSACTION 'newest'")
        moment = load.hold()
        assert moment.open_prepared == ["newest"]
        assert "public.t" in moment.checksums()["postgres"]
        connection.execute("BEGIN")
        connection.execute("INSERT INTO t VALUES (2)")
        with pytest.raises(TortureError, match="something wrote"):
            load.hold()
        connection.execute("ROLLBACK")
        connection.execute("ROLLBACK PREPARED 'newest'")
