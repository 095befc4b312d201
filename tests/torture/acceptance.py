"""The page server beside the torture load, from the import to a server on each restored moment (issue 3, 2-4).

    primary fills its tables ─▶ load starts ─▶ import, killed twice ─▶ moments and kills, at random times of one seed
       ─▶ load ends, primary stops cleanly ─▶ verify ─▶ one flipped byte, verify ─▶ each moment: restore, start, check

The import happens under the load already, so the base copy is never at rest. Kills are SIGKILL of the page server; it
starts again at once, on the same directory, while the load goes on.
"""

from __future__ import annotations

import json
import os
import pwd
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from pageserver.lsn import Lsn
from tests.page_server import PageServerProcess
from tests.postgres.provision import Installation
from tests.postgres.server import PostgresServer, unprivileged_user
from tests.torture.restored import check_restored
from tests.torture.workload import SERVER_SETTINGS, Moment, PgbenchLoad, TortureLoad

KILLED_PHASES: Final = ("copying", "writing layers")
"""Where the import is killed, once in each."""
_IMPORT_TIMEOUT_SECONDS: Final = 180.0
_FOLLOW_TIMEOUT_SECONDS: Final = 180.0
_FIRST_EVENT_SECONDS: Final = 1.0
_BLOCK: Final = 8192
_ACCOUNT_BALANCE_AT: Final = 8
"""Where abalance lies within the data of a pgbench_accounts row: after aid and bid, 4 bytes each."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Combination:
    """One run. `restores` of the `moments` are restored (all, if None); kills count those during the load."""

    major: int
    checksums: bool = False
    full_page_writes: bool = True
    scale: int = 10
    clients: int = 4
    seconds: float = 60.0
    moments: int = 10
    restores: int | None = None
    kills: int = 0
    seed: int = 1
    checkpoint_distance: int = 32 << 20
    pause_seconds: float = 0.0
    """Between two steps of an actor: makes the load lighter."""

    def __str__(self) -> str:
        sums, images = "on" if self.checksums else "off", "on" if self.full_page_writes else "off"
        return f"{self.major}, checksums {sums}, full_page_writes {images}, {self.seconds:g} s, {self.kills} kills"


@dataclass(slots=True)
class Summary:
    """What a run did and found. `verify` is the report of `pagectl verify`; `flipped` that after one flipped byte."""

    combination: Combination
    import_kills: list[str] = field(default_factory=list)
    kills: int = 0
    wal_bytes: int = 0
    steps: dict[str, tuple[int, int]] = field(default_factory=dict)
    verify: dict[str, Any] = field(default_factory=dict)
    flipped: dict[str, Any] = field(default_factory=dict)
    restores: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return all figures; of the reports only their counts."""
        found = asdict(self)
        found["blocks_compared"] = sum(self.verify[verdict] for verdict in ("equal", "masked", "different", "extra"))
        found["flipped"] = {verdict: self.flipped[verdict] for verdict in ("different", "missing", "extra")}
        return found


class VerifyDiffersError(AssertionError):
    """The stopped primary and the timeline are not the same; the text has the first differences."""


def run(combination: Combination, folder: Path, installation: Installation, say: Say = lambda _: None) -> Summary:
    """Run one combination in `folder`, which the servers' user must be able to reach. Nothing keeps running.

    Raises: TortureError, VerifyDiffersError, RestoreDiffersError, ServerError, AssertionError.
    """
    return AcceptanceRun(combination, folder, installation, say).run()


class AcceptanceRun:
    """One run; the steps are its methods in their order."""

    def __init__(self, combination: Combination, folder: Path, installation: Installation, say: Say) -> None:
        self._it = combination
        self._folder = folder
        self._installation = installation
        self._say = say
        self._rng = random.Random(f"acceptance {combination.seed}")
        self._summary = Summary(combination)
        self._timeline = ""
        self._space = folder / "space"
        self._primary = PostgresServer(
            combination.major,
            folder / "primary",
            checksums=combination.checksums,
            settings={**SERVER_SETTINGS, "full_page_writes": "on" if combination.full_page_writes else "off"},
            installation=installation,
        )
        # Small layers and a short time-out, so that kills meet freezing, flushing and publishing; little memory, so
        # that a part of the values lies in ephemeral files.
        self._server = PageServerProcess(
            folder / "pageserver",
            settings={
                "open_layer_memory_bytes": str(combination.checkpoint_distance // 4),
                "tenant_config.checkpoint_distance": str(combination.checkpoint_distance),
                "tenant_config.checkpoint_timeout": "'5s'",
            },
        )

    def run(self) -> Summary:
        with self._primary, self._server:
            moments = self._load_and_follow()
            with self._timed("stop of the primary"):
                self._primary.stop("fast")
            self._verify()
            self._verify_a_flipped_byte()
            for number, moment in enumerate(self._chosen(moments)):
                self._restore(moment, number)
            self._check_that_redo_was_native()
        return self._summary

    # The load.

    def _load_and_follow(self) -> list[Moment]:
        pgbench = PgbenchLoad(scale=self._it.scale, clients=self._it.clients)
        space = empty_directory_for_server(self._space)
        with TortureLoad(
            self._primary,
            seed=self._it.seed,
            pgbench=pgbench,
            tablespace=space,
            pause_seconds=self._it.pause_seconds,
        ) as load:
            with self._timed("fill"):
                load.prepare()
            load.start()
            with self._timed("import"):
                self._import(load)
            with self._timed("load"):
                moments = self._moments_and_kills(load)
                load.stop()
                for moment in moments:
                    moment.checksums()
            self._summary.steps = load.steps()
        self._account_file = str(self._primary.value("SELECT pg_relation_filepath('pgbench_accounts')"))
        self._summary.wal_bytes = Lsn.parse(self._primary.value("SELECT pg_current_wal_lsn()")) - self._first_lsn
        with self._timed("following the rest"):
            self._wait_until_followed()
        return moments

    def _import(self, load: TortureLoad) -> None:
        """Import the primary under load; kill the page server twice while it does."""
        self._first_lsn = Lsn.parse(self._primary.value("SELECT pg_current_wal_lsn()"))
        self._server.pagectl("tenant", "create")
        (tenant,) = self._server.api("GET", "/v1/tenant")
        created = self._server.pagectl("timeline", "create", "--no-wait", "--primary", self._primary.conninfo())
        self._timeline = str(created["timeline_id"])
        self._timeline_path = f"/v1/tenant/{tenant['id']}/timeline/{self._timeline}"
        for phase in KILLED_PHASES if self._it.kills else ():
            self._summary.import_kills.append(self._wait_for_phase(phase))
            self._kill_and_start()
        self._server.wait_for(self._is_readable, _IMPORT_TIMEOUT_SECONDS, "a readable timeline")
        load.check()

    def _wait_for_phase(self, phase: str) -> str:
        """Wait until the import is somewhere in a phase, or over if it was too quick; return where it is."""
        deadline = time.monotonic() + _IMPORT_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            found = self._detail()
            progress = found.get("import") if found else None
            if progress and progress["phase"] == phase:
                time.sleep(self._rng.uniform(0.0, 0.3))
                return phase
            if found and not progress:
                return "over"
            time.sleep(0.02)
        raise AssertionError(f"the import did not come to {phase!r}\n{self._server.log_end()}")

    def _moments_and_kills(self, load: TortureLoad) -> list[Moment]:
        moments: list[Moment] = []
        now = 0.0
        for at, event in self._schedule():
            load.run_for(at - now)
            now = at
            if event == "kill":
                self._kill_and_start()
                self._summary.kills += 1
            elif event == "moment":
                moments.append(load.hold())
                self._say(f"moment at {moments[-1].lsn}, {len(moments[-1].open_prepared)} prepared")
        return moments

    def _schedule(self) -> list[tuple[float, str]]:
        """Return (seconds from the start, event): moments spread evenly, kills anywhere, and the end."""
        end = self._it.seconds
        slot = (end - _FIRST_EVENT_SECONDS) / max(1, self._it.moments)
        moments = [_FIRST_EVENT_SECONDS + (i + self._rng.random()) * slot for i in range(self._it.moments)]
        kills = [self._rng.uniform(_FIRST_EVENT_SECONDS, end) for _ in range(self._it.kills)]
        return sorted([*((at, "moment") for at in moments), *((at, "kill") for at in kills), (end, "end")])

    def _kill_and_start(self) -> None:
        self._say("kill -9 of the page server")
        self._server.kill()
        self._server.start()

    def _detail(self) -> dict[str, Any]:
        """Ask for the timeline. Nothing comes of it while a server that has just started still opens the tenant."""
        try:
            found: dict[str, Any] = self._server.api("GET", self._timeline_path)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 503:
                raise
            return {}
        assert not found.get("wal_source_error"), f"the source stopped: {found.get('wal_source_error')}"
        assert not isinstance(found["state"], dict), f"the timeline broke: {found['state']}"
        return found

    def _has(self, lsn: Lsn) -> bool:
        found = self._detail()
        return bool(found) and Lsn.parse(found["last_record_lsn"]).normalised() >= lsn.normalised()

    def _is_readable(self) -> bool:
        found = self._detail()
        return found.get("state") == "Active" and self._has(Lsn.parse(found["min_readable_lsn"]))

    def _wait_until_followed(self) -> None:
        """Wait for all WAL: the stop of a primary does not wait for a receiver that is not connected."""
        target = Lsn.parse(self._primary.value("SELECT pg_current_wal_flush_lsn()"))
        self._server.wait_for(lambda: self._has(target), _FOLLOW_TIMEOUT_SECONDS, f"wal up to {target}")

    # Comparing.

    def _verify(self) -> None:
        with self._timed("verify"):
            report = self._run_verify()
        self._summary.verify = report
        self._say(f"verify: {json.dumps({key: report[key] for key in report if key != 'differences'})}")
        if any(report[verdict] for verdict in ("different", "missing", "extra", "unsupported")):
            raise VerifyDiffersError(json.dumps(report, indent=1))
        self._server.logical_size(self._timeline_path)

    def _verify_a_flipped_byte(self) -> None:
        """One byte of user data in the stopped directory must be seen, once."""
        path = self._primary.data_dir / self._account_file
        at = offset_of_a_balance(path.read_bytes()[:_BLOCK])
        with flipped_byte(path, at), self._timed("verify of a flipped byte"):
            report = self._run_verify()
        self._summary.flipped = report
        counts = {verdict: report[verdict] for verdict in ("different", "missing", "extra", "unsupported")}
        if counts != {"different": 1, "missing": 0, "extra": 0, "unsupported": 0}:
            raise VerifyDiffersError(f"one byte was flipped at {at} of {self._account_file}: {counts}")
        (difference,) = report["differences"]
        assert (difference["path"], difference["block"]) == (self._account_file, 0), difference

    def _run_verify(self) -> dict[str, Any]:
        arguments = ("verify", "--timeline", self._timeline, "--pgdata", str(self._primary.data_dir))
        report: dict[str, Any] = self._server.pagectl(*arguments, statuses=(0, 1))
        return report

    def _check_that_redo_was_native(self) -> None:
        """No record of a built-in resource manager may have needed the redo process since the last kill; `verify` and
        the restores have read every page meanwhile.
        """
        name = "pageserver_wal_redo_process_records_total"
        sent = {key: value for key, value in self._server.metrics().items() if key.startswith(name)}
        assert len(sent) >= 11 and not any(sent.values()), sent

    # Restoring.

    def _chosen(self, moments: list[Moment]) -> list[Moment]:
        """Return the moments to restore: the last one, the first one, and some between."""
        count = len(moments) if self._it.restores is None else min(self._it.restores, len(moments))
        if count <= 1:
            return moments[-1:] if count else []
        return [moments[round(i * (len(moments) - 1) / (count - 1))] for i in range(count)]

    def _restore(self, moment: Moment, number: int) -> None:
        """Restore a moment and check the server on it; the first one has its tablespace somewhere else."""
        directory, mapped = self._folder / f"restored-{number}", number == 0
        elsewhere = self._folder / "mapped"
        arguments = ["restore", "--timeline", self._timeline, "--lsn", moment.lsn, "--to", str(directory)]
        if mapped:
            arguments += ["--tablespace-mapping", f"{self._space}={elsewhere}"]
        if (user := unprivileged_user()) is not None:
            arguments += ["--run-as", user]
        with self._timed("restores"):
            self._server.pagectl(*arguments)
        restored = PostgresServer(self._it.major, directory, installation=self._installation)
        restored.settings = {"fsync": "off"}  # everything else as the restore wrote it
        with self._timed("checks of restored servers"):
            figures = check_restored(restored, moment, checksums=self._it.checksums, mapped=mapped)
        if mapped:
            assert any(elsewhere.iterdir()), f"nothing was restored into {elsewhere}"
            shutil.rmtree(elsewhere)
        restored.remove()
        self._summary.restores.append(figures.to_json())
        self._say(f"restored: {json.dumps(figures.to_json())}")

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        taken = self._summary.seconds.get(what, 0.0) + time.monotonic() - began
        self._summary.seconds[what] = round(taken, 1)
        self._say(f"{what}: {time.monotonic() - began:.1f} s")


def empty_directory_for_server(path: Path) -> Path:
    """Return a directory that the server may use as a tablespace."""
    path.mkdir(mode=0o700)
    if (user := unprivileged_user()) is not None:
        os.chown(path, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    return path


def offset_of_a_balance(page: bytes) -> int:
    """Return where a heap page of pgbench_accounts holds the balance of a row that is there.

    Source: `storage/bufpage.h` (line pointers from byte 24, up to pd_lower), `access/htup_details.h` (t_hoff).
    """
    for at in range(24, int.from_bytes(page[12:14], "little"), 4):
        pointer = int.from_bytes(page[at : at + 4], "little")
        offset, flags = pointer & 0x7FFF, pointer >> 15 & 3
        if flags == 1:  # LP_NORMAL
            return offset + page[offset + 22] + _ACCOUNT_BALANCE_AT
    raise ValueError("the page holds no row")


@contextmanager
def flipped_byte(path: Path, at: int) -> Iterator[None]:
    """Flip the bits of one byte of a file; put it back afterwards."""

    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 0xFF]))

    flip()
    try:
        yield
    finally:
        flip()
