"""A primary under the torture load, and the page server that follows it: one machine after the other, over one bucket.

    with Follower(folder, plan, bucket) as follower:
        follower.begin()                   load starts, the timeline is imported under it
        moment = follower.hold()           a barrier with checksums
        follower.lose_machine()            SIGKILL, and the working directory is gone
        follower.attach_new_machine()      an empty one, and what the bucket says
        follower.check_restored(lsn)       a server on that position; on a moment, with its checksums
        follower.end()                     load and primary stop, `verify` is clean

What was acknowledged is what the primary's slot says: a physical slot's restart_lsn is the flush position of its
standby.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import httpx

from pageserver.lsn import Lsn
from tests.page_server import PageServerProcess
from tests.postgres.provision import provision
from tests.postgres.server import PostgresServer, unprivileged_user
from tests.survival.bucket import Bucket
from tests.torture.restored import RestoreDiffersError
from tests.torture.workload import SERVER_SETTINGS, Moment, PgbenchLoad, TortureLoad, table_sums

WAIT_SECONDS: Final = 300.0
"""For anything to happen at all, on a machine that is busy with something else."""
_POLL_SECONDS: Final = 0.05
_COMPLAINT: Final = re.compile(r"\b(?:ERROR|PANIC|WARNING):", re.MULTILINE)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class FollowerPlan:
    """How heavy the load is, and how often the page server makes something durable."""

    major: int = 16
    seed: int = 1
    checkpoint_distance: int = 1 << 20
    pause_seconds: float = 1.0
    transactions_per_second: int = 20
    remote_storage: str | None = None
    """`[remote_storage]` of the page servers, if it is not simply that of the bucket."""
    settings: dict[str, str] = field(default_factory=dict)
    """More settings of the page servers."""
    new_machine: Callable[[Path, dict[str, str]], PageServerProcess] = lambda workdir, settings: PageServerProcess(
        workdir, settings=settings
    )


class Acknowledgements:
    """Watches a slot; counts how often the flush position that the primary was told has moved."""

    def __init__(self, primary: PostgresServer, slot: str) -> None:
        self._primary = primary
        self._slot = slot
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._watch, name="acknowledgements")
        self._seen: list[Lsn] = []
        self._thread.start()

    @property
    def count(self) -> int:
        """At least so many: two between two looks count as one."""
        if self._failure is not None:
            raise self._failure
        return len(self._seen)

    def highest(self) -> Lsn:
        """Ask for the highest flush position that the primary was told."""
        return Lsn.parse(
            self._primary.value("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = %s", (self._slot,))
        )

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        try:
            with self._primary.connect() as connection:
                while not self._stop.wait(_POLL_SECONDS):
                    row = connection.execute(
                        "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = %s", (self._slot,)
                    ).fetchone()
                    if row is None or row[0] is None:
                        continue
                    lsn = Lsn.parse(str(row[0]))
                    if not self._seen or lsn != self._seen[-1]:
                        self._seen.append(lsn)
        except BaseException as error:
            if not self._stop.is_set():
                self._failure = error


class Follower:
    """See the module. Everything is stopped when the block is left."""

    def __init__(self, folder: Path, plan: FollowerPlan, bucket: Bucket, say: Say) -> None:
        self.folder = folder
        self.plan = plan
        self.bucket = bucket
        self.say = say
        self.rng = random.Random(f"survival {plan.seed}")
        self.moments: list[Moment] = []
        self.tenant = ""
        self.timeline = ""
        self.verified: dict[str, Any] = {}
        self._installation = provision(plan.major)
        self.primary = PostgresServer(
            plan.major, folder / "primary", settings=SERVER_SETTINGS, installation=self._installation
        )
        self._stack = ExitStack()
        self._machines = 0
        self._restored = 0

    def __enter__(self) -> Follower:
        self._stack.enter_context(self.primary)
        self.load = self._stack.enter_context(
            TortureLoad(
                self.primary,
                seed=self.plan.seed,
                pgbench=PgbenchLoad(1, 1, self.plan.transactions_per_second),
                pause_seconds=self.plan.pause_seconds,
            )
        )
        self._stack.callback(self._stop_machine)
        self.machine = self._make_machine()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    # The course of a run.

    def begin(self) -> None:
        """Start the load, import the primary under it."""
        self.load.prepare()
        self.machine.start()
        self.load.start()
        self.machine.pagectl("tenant", "create")
        self.wait_for(self._tenant_is_active, "an active tenant")
        created = self.machine.pagectl("timeline", "create", "--no-wait", "--primary", self.primary.conninfo())
        self.timeline = str(created["timeline_id"])
        self.wait_for(self._is_readable, "a readable timeline")
        self.acknowledgements = Acknowledgements(self.primary, f"pageserver_{self.timeline}")
        self._stack.callback(self.acknowledgements.close)

    def hold(self) -> Moment:
        """Note a moment with its checksums."""
        self.moments.append(self.load.hold())
        return self.moments[-1]

    def lose_machine(self) -> Lsn:
        """Kill the page server as a crash would, and delete all it has. Return what it had acknowledged."""
        self.machine.kill()
        shutil.rmtree(self.machine.workdir)
        return self.acknowledgements.highest()

    def attach_new_machine(self) -> dict[str, Any]:
        """Start another page server on an empty disk and attach the tenant; return the first that it says of the
        timeline.
        """
        self.machine = self._make_machine()
        self.machine.start()
        self.machine.pagectl("tenant", "create", self.tenant)
        self.wait_for(lambda: bool(self.detail()), "the timeline")
        return self.detail()

    def restart(self) -> None:
        """Kill the page server and start it again on what its disk has."""
        self.machine.kill()
        self.machine.start()

    def end(self) -> None:
        """Stop the load, follow the rest, stop the primary cleanly, compare. Raises AssertionError if anything
        differs.
        """
        self.load.stop()
        for moment in self.moments:
            moment.checksums()
        end = self.wait_until_followed()
        self.say(f"the load has ended, {end} is followed")
        self.acknowledgements.close()
        self.primary.stop("fast")
        arguments = ("verify", "--timeline", self.timeline, "--pgdata", str(self.primary.data_dir))
        report = self.machine.pagectl(*arguments, statuses=(0, 1))
        counts = {key: value for key, value in report.items() if isinstance(value, int)}
        if any(report[verdict] for verdict in ("different", "missing", "extra", "unsupported")):
            raise AssertionError(f"verify: {json.dumps(report, indent=1)[:5000]}")
        self.machine.logical_size(self.timeline_path)
        self.verified = counts
        self.say(f"verify: {json.dumps(counts)}")

    # Looking.

    @property
    def timeline_path(self) -> str:
        return f"/v1/tenant/{self.tenant}/timeline/{self.timeline}"

    def detail(self) -> dict[str, Any]:
        """Ask for the timeline; nothing comes of it while the server still opens the tenant."""
        try:
            found: dict[str, Any] = self.machine.api("GET", self.timeline_path)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 503:
                raise
            return {}
        assert not found.get("wal_source_error"), f"the source stopped: {found['wal_source_error']}"
        assert not isinstance(found["state"], dict), f"the timeline broke: {found['state']}"
        return found if found["state"] == "Active" else {}

    def wait_until_followed(self) -> Lsn:
        """Wait until the page server has all WAL that there is now; return how far that is."""
        target = Lsn.parse(self.primary.value("SELECT pg_current_wal_flush_lsn()"))
        self.wait_for(lambda: self._has(target), f"wal up to {target}")
        return target

    def wait_for_acknowledgements(self, count: int) -> None:
        """Wait until the count of acknowledgements has come so far, under load."""
        deadline = time.monotonic() + WAIT_SECONDS
        while self.acknowledgements.count < count:
            self.load.run_for(0.1)
            assert self.machine.is_running(), f"the page server ended\n{self.machine.log_end()}"
            assert time.monotonic() < deadline, (
                f"no {count} acknowledgements, {self.acknowledgements.count}: {self.detail()}\n{self.machine.log_end()}"
            )

    def wait_until_acknowledged(self, lsn: Lsn) -> None:
        """Wait until the primary was told that everything up to a position is durable."""
        self.wait_for(lambda: self.acknowledgements.highest() >= lsn, f"acknowledgement of {lsn}")

    # Restoring.

    def check_restored(self, lsn: Lsn, moment: Moment | None = None) -> None:
        """Restore a position and start an unmodified server on it. Of a moment, the sums of all tables and the
        prepared transactions must be those of the primary; of another position, all tables can be read.

        Raises RestoreDiffersError, ServerError.
        """
        self._restored += 1
        directory = self.folder / f"restored-{self._restored}"
        arguments = ["restore", "--timeline", self.timeline, "--lsn", str(lsn), "--to", str(directory)]
        if (user := unprivileged_user()) is not None:
            arguments += ["--run-as", user]
        self.machine.pagectl(*arguments)
        restored = PostgresServer(self.plan.major, directory, installation=self._installation)
        restored.settings = {"fsync": "off", "autovacuum": "off"}
        restored.start()
        try:
            sums = table_sums(restored)
            if moment is not None:
                expected = moment.checksums()
                if sums != expected:
                    wrong = [
                        f"{database}.{table}"
                        for database in sorted(expected.keys() | sums.keys())
                        for table in sorted(expected.get(database, {}).keys() | sums.get(database, {}).keys())
                        if expected.get(database, {}).get(table) != sums.get(database, {}).get(table)
                    ]
                    raise RestoreDiffersError(f"restored at {lsn}: {wrong} differ")
                prepared = [str(gid) for (gid,) in restored.sql("SELECT gid FROM pg_prepared_xacts ORDER BY gid")]
                if prepared != moment.open_prepared:
                    raise RestoreDiffersError(f"restored at {lsn}: open are {prepared}, were {moment.open_prepared}")
            assert sums["postgres"], "a server without tables says nothing"
            restored.stop("fast")
            if complaint := _COMPLAINT.search(restored.log_text()):
                raise RestoreDiffersError(f"the restored server complains: {restored.log_text()[complaint.start() :]}")
        finally:
            restored.remove()

    # Private.

    def _make_machine(self) -> PageServerProcess:
        self._machines += 1
        settings = {
            "remote_storage": self.plan.remote_storage or self.bucket.settings(),
            "tenant_config.checkpoint_distance": str(self.plan.checkpoint_distance),
            "tenant_config.checkpoint_timeout": "'5s'",
            "open_layer_memory_bytes": str(self.plan.checkpoint_distance // 2),
            **self.plan.settings,
        }
        return self.plan.new_machine(self.folder / f"machine-{self._machines}", settings)

    def _stop_machine(self) -> None:
        if self.machine.is_running():
            self.machine.stop()

    def _has(self, lsn: Lsn) -> bool:
        found = self.detail()
        return bool(found) and Lsn.parse(found["last_record_lsn"]).normalised() >= lsn.normalised()

    def _tenant_is_active(self) -> bool:
        (tenant,) = self.machine.api("GET", "/v1/tenant")
        self.tenant = str(tenant["id"])
        return bool(tenant["state"]["slug"] == "Active")

    def _is_readable(self) -> bool:
        try:
            found = self.detail()
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 404:
                raise
            return False
        return bool(found) and self._has(Lsn.parse(found["min_readable_lsn"]))

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait under load, if it runs."""

        def holds() -> bool:
            self.load.check()
            return condition()

        self.machine.wait_for(holds, WAIT_SECONDS, what)
