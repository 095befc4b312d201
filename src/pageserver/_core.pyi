"""The compiled engine. Keys are 18 raw bytes, LSNs are integers, ids 16 raw bytes. Work releases the GIL.

Errors are those of ``pageserver.errors``. Each group of names here has a file of the same name in
``crates/pagecore-py/src``.
"""

from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, TypeAlias, final, type_check_only

# contract.rs

def compiled_stub_crc32c() -> int:
    """Return the CRC-32C of this file as it was when the module was compiled."""

# crc.rs

def crc32c(data: bytes, start: int = 0) -> int:
    """Return the CRC-32C of ``data``; ``start`` is the CRC of what came before it, 0 at the beginning."""

# verify.rs

def read_blocks_each(
    store: TimelineStore, spc: int, db: int, rel: int, fork: int, first: int, count: int, lsn: int
) -> tuple[bytes, dict[int, str]]:
    """Read pages one by one, even if some cannot be made: all pages, and by block number why one is zeros.

    A reason is ``unsupported`` (no redo process for a record that only it knows) or ``error: ...``.
    """

def compare_blocks(
    ours: bytes, theirs: bytes, fork: int, first_block: int, failed: dict[int, str]
) -> list[tuple[int, str, str, str, str]]:
    """Compare consecutive pages of a relation fork, a timeline's with a data directory's; either may be shorter.

    Returns (block, page kind, verdict, reason, detail) for each block. Verdicts: ``equal``, ``masked`` (with a reason),
    ``different``, ``missing`` (only ours), ``extra`` (only theirs), ``unsupported``. ``failed`` names blocks that the
    timeline could not make, and why. Source: spec stock.md 4, walredo.md 16.
    """

# wal.rs

@final
class DecodedWal:
    """What the offline tool shows of a piece of WAL."""

    @property
    def records(self) -> list[dict[str, Any]]:
        """One dictionary a record: ``lsn`` (start), ``lsn_end``, ``rmgr``, ``rmid``, ``info``, ``type`` (name of the
        record), ``xid``, ``prev``, ``length``, ``origin``, ``top_xid``, ``main_data`` (hexadecimal), ``blocks``,
        ``values``, ``metadata``.

        ``blocks``: ``id``, ``rel`` (text), ``block``, ``will_init``, ``data_length`` and ``image`` (None, or ``apply``,
        ``compression``, ``length``, ``hole_offset``, ``hole_length``). ``values``: ``key`` (hexadecimal), ``kind``
        (``image`` or ``record``), ``will_init``, ``length``. ``metadata``: None, or a text.
        """

    @property
    def lsn_end(self) -> int:
        """End of the last complete record, where decoding can go on."""

    @property
    def error(self) -> str | None:
        """Why decoding stopped early; zeros behind the last record are ``invalid xl_tot_len 0``."""

def decode_wal(data: bytes, *, pg_version: int, flavour: str, start_lsn: int, limit: int | None = None) -> DecodedWal:
    """Decode records from ``data``, whose first byte lies at ``start_lsn``: a record's start, or the start of a page.

    ``flavour`` is ``neon`` or ``stock``. A record that is incomplete at the end of the data is not shown.
    Source: spec wal.md 1-3.
    """

# ingest.rs

@final
class RelationCreate:
    """Create a relation fork with size 0 (wal.md 4.4, 5.4).

    ``implicit``: no CREATE was seen, a block of it comes next. The store did not find the fork; if the directories know
    it nevertheless, tell its size with ``WalIngest.remember_rel_size`` and write nothing.
    """

    spc: int
    db: int
    rel: int
    fork: int
    implicit: bool

@final
class RelationTruncate:
    """SMGR TRUNCATE (wal.md 5.4). ``flags``: 1 heap, 2 visibility map, 4 free space map."""

    spc: int
    db: int
    rel: int
    blocks: int
    flags: int

@final
class DatabaseCreate:
    """CREATE DATABASE by copying files (wal.md 5.5); ``WalIngest.copy_relation`` copies the blocks."""

    db: int
    tablespace: int
    source_db: int
    source_tablespace: int

@final
class DatabaseDrop:
    db: int
    tablespaces: list[int]

@final
class TablespaceCreate:
    """Stock timelines only (stock.md 2)."""

    oid: int
    path: bytes

@final
class TablespaceDrop:
    oid: int

@final
class SlruZeroPage:
    """Make a page of zeros (wal.md 4.5). ``slru`` is the number of the kind (keyspace.md 3).

    ``implicit``: before the base copy is consistent, a record changes a page that is not there (wal.md 9.3); the page
    must exist when ``run`` is called again, or it is asked for again.
    """

    slru: int
    page: int
    implicit: bool

@final
class ClogTruncate:
    """Both the checkpoint's fields and the segments are Python's to change (wal.md 5.6)."""

    page: int
    oldest_xid: int
    oldest_xid_db: int

@final
class TransactionEnd:
    """A commit or abort that drops relations, ends a prepared transaction, or has an origin (wal.md 5.2).

    The CLOG records are written already, as for every commit and abort: what is left are steps 2 to 4.
    ``relations`` are (tablespace, database, relation), all forks of which go.
    """

    committed: bool
    prepared: bool
    xid: int
    time: int
    subxacts: list[int]
    relations: list[tuple[int, int, int]]
    origin: int
    origin_lsn: int

@final
class TransactionPrepare:
    """``data`` is the state file without its CRC. ``nextXid`` has already passed ``xid``."""

    xid: int
    data: bytes

@final
class MultixactTruncate:
    oldest_multi_db: int
    start_offset: int
    end_offset: int
    start_member: int
    end_member: int

@final
class RelationMapUpdate:
    db: int
    tablespace: int
    data: bytes

@final
class CheckpointTaken:
    """A checkpoint record (wal.md 6); ``checkpoint`` are its 88 bytes, not the stored value."""

    shutdown: bool
    checkpoint: bytes

@final
class ParameterChange:
    max_connections: int
    max_worker_processes: int
    max_wal_senders: int
    max_prepared_xacts: int
    max_locks_per_xact: int
    wal_level: int
    wal_log_hints: bool
    track_commit_timestamp: bool

@final
class EndOfRecovery:
    """``wal_level`` is None before PostgreSQL 17."""

    time: int
    tli: int
    prev_tli: int
    wal_level: int | None

@final
class BackupEnd:
    """From here on the copy that was begun at ``start_lsn`` is consistent; nothing to write."""

    start_lsn: int

@final
class AuxFilePut:
    """Empty content deletes the file (wal.md 5.9). Neon's flavour, shard 0 only."""

    path: str
    content: bytes

@final
class OriginSet:
    """``origin_lsn`` 0: the origin was dropped (wal.md 5.10)."""

    origin: int
    origin_lsn: int

RareDetail: TypeAlias = (
    RelationCreate
    | RelationTruncate
    | DatabaseCreate
    | DatabaseDrop
    | TablespaceCreate
    | TablespaceDrop
    | SlruZeroPage
    | ClogTruncate
    | TransactionEnd
    | TransactionPrepare
    | MultixactTruncate
    | RelationMapUpdate
    | CheckpointTaken
    | ParameterChange
    | EndOfRecovery
    | BackupEnd
    | AuxFilePut
    | OriginSet
)

@final
class RareRecord:
    """A record that only Python can apply, since it decides about directories.

    Everything before it is committed, so the store shows the state it applies to. Commits and aborts without further
    effects, new multixacts, RUNNING_XACTS, NEXTOID and all block changes never come here.
    """

    @property
    def kind(self) -> str:
        """Name of the class of ``detail``."""

    @property
    def detail(self) -> RareDetail: ...
    @property
    def lsn(self) -> int:
        """End of the record: the LSN of everything it writes."""

    @property
    def xid(self) -> int: ...
    @property
    def rmid(self) -> int: ...
    @property
    def info(self) -> int:
        """All eight bits."""

    @property
    def origin(self) -> int: ...
    @property
    def main_data(self) -> bytes: ...

@type_check_only
class IngestTarget(Protocol):
    """A timeline in Python that takes WAL (``pageserver.repository.ObjectTimeline``). Unsharded only.

    What its methods raise comes out of the ``WalIngest`` that called them. Values are encoded (layer-files.md 10).
    """

    @property
    def pg_version(self) -> int: ...
    @property
    def flavour(self) -> str: ...
    @property
    def last_record_lsn(self) -> int: ...
    def find(self, key: bytes, lsn: int) -> bytes | None:
        """Return the value at or below ``lsn``, also of what ``put_values`` stored; None if there is none."""

    def get_many(self, keys: list[bytes], lsn: int) -> list[bytes | None]:
        """Return pages to copy."""

    def listed_rel_size(self, spc: int, db: int, rel: int, fork: int, lsn: int) -> int | None:
        """Return the blocks of a fork that the directories know, else None."""

    def put_values(self, values: list[tuple[bytes, int, bytes]]) -> None:
        """Store (key, LSN, value) of a record that is not complete yet; not readable by others."""

    def commit_values(self, values: list[tuple[bytes, int, bytes]], record_lsns: list[int]) -> None:
        """Store values, and pass the ends of these records, in order."""

    def open_layer(self) -> _OpenLayer | None: ...

class _OpenLayer(Protocol):
    @property
    def size_bytes(self) -> int: ...
    @property
    def lsn_start(self) -> int: ...

@final
class WalIngest:
    """WAL bytes become values in the open layer of one timeline (wal.md 4, keyspace.md 11).

    The only writer of its timeline; used by one thread at a time. After an error it is of no more use: make a new one
    from ``last_record_lsn``.
    """

    def __new__(
        cls,
        store: TimelineStore | IngestTarget,
        *,
        start_lsn: int,
        checkpoint: bytes,
        system_identifier: int | None,
        check_prev: bool,
        tolerant_until: int,
        checkpoint_distance: int,
    ) -> WalIngest:
        """Expect the byte at ``start_lsn``, ``Lsn.normalised()`` of the store's last record, first.

        ``system_identifier`` and ``check_prev`` are the extra checks for stock primaries (wal.md 1.4). Below
        ``tolerant_until`` a base copy is not consistent yet (wal.md 9.3).
        """

    tolerant_until: int
    checkpoint: bytes
    """The 88 bytes; setting them writes them at the LSN of the rare record, changed or not."""

    def feed(self, chunk: bytes) -> None:
        """Append bytes of the stream."""

    def run(self) -> RareRecord | str:
        """Take complete records until one of them is Python's, or there is a reason to pause.

        Returns ``need-input`` (everything is committed), ``roll`` (committed, and the open layer is beyond
        ``checkpoint_distance``: freeze it, call again), or a record to apply before the next call.
        Raises: CorruptDataError (the WAL is wrong), StoppedError, errors of the store.
        """

    def abandon(self) -> None:
        """End in the middle of a record that cannot be applied, and remove what it has stored: the open layer can be
        frozen, and the record may come again, to another ``WalIngest``.
        """

    def commit(self) -> None:
        """Make what was applied readable and advance ``last_record_lsn``. ``run`` does it often enough by itself."""

    @property
    def lsn(self) -> int:
        """End of the last record taken."""

    @property
    def fed_until(self) -> int:
        """LSN of the next byte that ``feed`` expects."""

    @property
    def page_tli(self) -> int | None:
        """PostgreSQL's timeline id in the last page header seen."""

    @property
    def records(self) -> int:
        """Records taken so far."""

    @property
    def ignored_vm_clears(self) -> int:
        """Visibility-map clears that named a map page beyond the map's end (wal.md 5.3)."""

    @property
    def growth(self) -> tuple[int, int]:
        """LSN of the last commit, and by how many bytes all forks have grown until then since this object was made."""

    # While a RareRecord is being applied. Writes get its LSN; reads see them, and everything before.

    def get(self, key: bytes) -> bytes | None:
        """Return the value of any key, None if there is none."""

    def put(self, key: bytes, image: bytes) -> None:
        """Write an image. The later of two images of a key that is no block's wins."""

    def put_value(self, key: bytes, encoded_value: bytes) -> None:
        """Write an encoded value (layer-files.md 10), such as a record for a visibility-map page."""

    def rel_size(self, spc: int, db: int, rel: int, fork: int) -> int | None:
        """Return the size of a fork in blocks, None if it does not exist."""

    def set_rel_size(self, spc: int, db: int, rel: int, fork: int, blocks: int) -> None:
        """Write the size of a fork; it exists from now on."""

    def remember_rel_size(self, spc: int, db: int, rel: int, fork: int, blocks: int) -> None:
        """Take note of the size of a fork that exists already, without writing it."""

    def forget_rel(self, spc: int, db: int, rel: int, fork: int) -> None:
        """Take note that a fork does not exist any more."""

    def forget_database(self, spc: int, db: int) -> None:
        """Take note that no fork of this database exists any more. ``growth`` counts only what ``forget_rel`` named."""

    def copy_relation(self, source: tuple[int, int, int, int], target: tuple[int, int, int, int], blocks: int) -> None:
        """Write an image of each local block of ``source``, as it is now, to the same block of ``target``.

        Both are (tablespace, database, relation, fork). Does not write the size.
        """

    def set_slru_size(self, kind: int, segno: int, blocks: int) -> None:
        """Write the size of an SLRU segment."""

    def forget_slru(self, kind: int, segno: int) -> None:
        """Take note that a segment does not exist any more."""

# redo.rs

class _RedoCommand(Protocol):
    """How to start a WAL redo process; ``pageserver.postgres.redo_scratch.RedoCommand`` is one."""

    @property
    def argv(self) -> Sequence[str]:
        """Program and arguments; ``{scratch}`` becomes the process's copy of the template, ``{tenant}`` the tenant."""

    @property
    def env(self) -> Mapping[str, str]:
        """The whole environment."""

    @property
    def uid(self) -> int | None: ...
    @property
    def gid(self) -> int | None: ...
    @property
    def scratch_template(self) -> Path | None:
        """A directory; every process gets a copy beside it, owned by ``uid``."""

    @property
    def knows_neon_records(self) -> bool:
        """The program understands heap records in the layouts of Neon's computes."""

_Histogram: TypeAlias = tuple[list[float], list[int], float]

@final
class RedoMetrics:
    """What is counted about redo processes; one for the server, shared by all pools."""

    def __new__(cls) -> RedoMetrics: ...
    def snapshot(self) -> dict[str, int | dict[str, int] | _Histogram]:
        """Return the values by metric name (walredo.md 4.2), and ``pageserver_wal_redo_process_records_total``: the
        records sent to processes, by resource manager.

        Counters are integers, or integers by label value. Histograms are (upper bounds, cumulative counts with the
        total at the end, sum).
        """

@final
class RedoPool:
    """The WAL redo processes of one tenant: none before the first request, then normally one."""

    def __new__(
        cls,
        *,
        tenant: str,
        timeout_seconds: float,
        command: Callable[[int, bool], _RedoCommand],
        log: Callable[[str, dict[str, Any]], None] | None = None,
        metrics: RedoMetrics | None = None,
        process_only: bool = False,
    ) -> RedoPool:
        """``command(pg_version, hint_bits_logged)`` is asked before each start, in the thread of the request that
        needs the process; what it raises becomes the reason why there is none. ``hint_bits_logged``: the source of the
        WAL has data checksums or wal_log_hints.

        ``log(event, fields)`` gets ``started``, ``stopped``, ``received output`` (a line on standard error), ``failed``
        and ``retried walredo succeeded``, from any thread. Neither may call back into the pool.

        ``timeout_seconds`` is that of one exchange (``wal_redo_timeout``). ``process_only``: the stores that use the
        pool have it replay all records of PostgreSQL that change relation blocks, instead of those alone that they do
        not know.
        """

    def is_running(self) -> bool:
        """Say whether a process is ready to be used."""

    def pid(self) -> int | None:
        """Return the id of the current process."""

    def idle_seconds(self) -> float | None:
        """Return how long ago the last request came; None if there was none."""

    def stop_if_idle(self, idle_seconds: float) -> bool:
        """Stop the process if there was no request for so long; say whether one was stopped. Blocks for its end."""

    def shutdown(self) -> None:
        """Start no process any more, kill and reap those that run. Requests in flight and later ones fail."""

    def redo(
        self,
        *,
        key: bytes,
        lsn: int,
        pg_version: int,
        hint_bits_logged: bool,
        base: tuple[int, bytes] | None,
        records: list[tuple[int, bytes]],
    ) -> bytes:
        """Replay ``records`` (end LSN, bytes; ascending) over ``base`` (LSN, page); for tests and tools, the store has
        its own way. ``lsn`` is for messages only.

        Shape: 8192 bytes. Raises: RequestError (no records, not a relation block, a base of another length),
        UnavailableError (no process, or it timed out three times), CorruptDataError (it refused the records or died of
        them), StoppedError.
        """

# redo_page.rs

def redo_page(
    *,
    key: bytes,
    lsn: int,
    pg_version: int,
    flavour: str,
    hint_bits_logged: bool,
    values: list[tuple[int, bytes]],
    redo: RedoPool | None = None,
) -> bytes:
    """Make the value of ``key`` as of ``lsn`` from (LSN, encoded value), newest first, as a store would (walredo.md 1).

    Raises: CorruptDataError (a value does not decode, a record does not fit, there is no base for the records),
    UnavailableError (a record that only the redo process knows, and there is none).
    """

def stamp_checksums(pages: bytes, first_block: int) -> bytes:
    """Return consecutive pages with PostgreSQL's checksums. Raises: RequestError (not whole pages)."""

# python_store.rs

@type_check_only
class PageReader(Protocol):
    """A timeline in Python that answers the page service; called from many threads."""

    def get(self, key: bytes, lsn: int) -> bytes: ...
    def rel_exists(self, spc: int, db: int, rel: int, fork: int, lsn: int) -> bool: ...
    def rel_size_or_last(self, spc: int, db: int, rel: int, fork: int, lsn: int) -> int: ...
    def db_size(self, spc: int, db: int, lsn: int) -> int | None:
        """Return the size in blocks, None if there is no such database."""

    def slru_pages(self, kind: int, segno: int, lsn: int) -> list[bytes]: ...

@final
class PageBridge:
    """Lets ``PageService`` serve a timeline that Python keeps. Reads take the GIL; waiting for an LSN does not."""

    def __new__(
        cls, source: PageReader, *, last_record_lsn: int, disk_consistent_lsn: int, gc_cutoff_lsn: int
    ) -> PageBridge: ...
    def tell(self, last_record_lsn: int, disk_consistent_lsn: int, gc_cutoff_lsn: int) -> None:
        """Take note of the LSNs as they are now; wakes who waits for one of them."""

    def shutdown(self) -> None:
        """End all waits; later reads are told that the timeline is shutting down."""

# redo_diff.rs

@final
class RedoDiff:
    """The differential prover: makes every page version that a log describes, and compares it with witnesses. Blocks
    without the GIL.
    """

    def __new__(
        cls,
        *,
        pg_version: int,
        start_lsn: int,
        system_identifier: int,
        hint_bits_logged: bool,
        scratch: str,
        base: list[tuple[int, int, int, int, int, str]] | None,
        pool: RedoPool | None,
        threads: int,
        differences_max: int,
    ) -> RedoDiff:
        """Begin at a record's start. ``base``: (tablespace, database, relation, fork, segment, path) of each file that
        held pages at ``start_lsn``; None if nothing is known of them. ``scratch``: path of a file that must not exist
        yet; it has no name any more when this returns. ``pool``: asked by ``threads`` threads for each version, alone.

        Raises: RequestError (unsupported version), UnavailableError (the scratch file cannot be made).
        """

    def feed(self, wal: bytes) -> tuple[int, str] | None:
        """Take the next bytes of the WAL and compare all that its complete records describe.

        Returns: (LSN, problem) if no record can be cut there: the end of the log, or damage. Raises: CorruptDataError
        (a record whose checksum is right does not decode), UnavailableError (a file cannot be read or written).
        """

    @property
    def lsn_end(self) -> int:
        """End of the last record taken."""

    def compare_files(self, files: list[tuple[int, int, int, int, int, str]]) -> None:
        """Compare every page that a record touched and that is known with the files of a cleanly stopped server."""

    def report(self) -> dict[str, Any]:
        """Return what was found so far.

        ``kinds``: for each (``rmid``, ``info``) ``rmgr``, ``type`` and the counts ``records``, ``versions``,
        ``compared`` (versions that a witness saw), ``different`` (contradictions, of each witness), ``unsupported``,
        ``without_base``. ``witnesses``: ``compared`` and ``different`` of ``engine`` (records it refused),
        ``process``, ``image``, ``file``. ``files``: ``equal``, ``masked`` by reason, ``unknown``. ``process_given_up``:
        why the process was not asked to the end, or None. ``differences``: the first one of each page, in the order
        of the log, with ``witness``, ``rel``, ``block``, ``rmid``, ``info``, ``lsn`` and ``lsn_end`` of the record,
        ``detail``, ``ours`` and ``theirs`` (bytes or None), ``lines`` (offsets of the 16-byte lines that differ).
        """

# redo_chains.rs

@final
class RedoChains:
    """Chains of records of one source, to be replayed again and again: for benchmarks and tests."""

    def __new__(
        cls,
        chains: Sequence[tuple[bytes, tuple[int, bytes] | None, Sequence[tuple[int, bytes]]]],
        *,
        pg_version: int,
        hint_bits_logged: bool,
    ) -> RedoChains:
        """Take chains: a key, a base (LSN, page) or None where the first record makes the page, and records (end LSN,
        bytes), ascending.
        """

    def __len__(self) -> int: ...
    def pages(self, pool: RedoPool | None = None) -> list[bytes]:
        """Return the page of each chain: by ``pool``, or natively. Raises: as `RedoPool.redo`; CorruptDataError."""

    def seconds(self, *, threads: int, rounds: int, pool: RedoPool | None = None) -> float:
        """Make the page of each chain ``rounds`` times, the chains shared out among threads, and return what that took.

        Raises: as `pages`.
        """

# store.rs

@final
class Caches:
    """What the whole process shares: caches of index blocks of layer files (8 KiB each) and of reconstructed pages, and
    the memory for values that are not in a layer file yet (beyond it they go to ephemeral files).
    """

    def __new__(cls, *, block_cache_bytes: int, page_cache_bytes: int, value_memory_bytes: int) -> Caches: ...
    def stats(self) -> dict[str, tuple[int, int, int, int]]:
        """Return hits, misses, entries and weight in bytes of ``blocks`` and ``pages``."""

    def reads(self) -> dict[str, tuple[list[int], list[int], int]]:
        """Return bounds, counts (one more, not cumulative) and sum of what reads that went to layers cost: ``layers``
        visited per read, all of a batch for each; ``layers_of_batch``; ``layers_amortized``, shared among the reads;
        ``deltas``, records applied per page.
        """

@final
class LayerInfo:
    """One layer file. ``name`` is the logical name, ``kind`` is ``delta`` or ``image``; ranges exclude their ends."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def key_start(self) -> bytes: ...
    @property
    def key_end(self) -> bytes: ...
    @property
    def lsn_start(self) -> int: ...
    @property
    def lsn_end(self) -> int: ...
    @property
    def file_size(self) -> int: ...
    @property
    def is_l0(self) -> bool: ...
    @property
    def is_resident(self) -> bool:
        """Say whether the file is on this disk now."""

@final
class OpenLayerInfo:
    """The layer that takes writes now."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def lsn_start(self) -> int: ...
    @property
    def age_seconds(self) -> float: ...

@final
class TimelineStore:
    """The storage of one timeline: open and frozen layers, layer files, reads.

    Decides nothing by itself: it freezes, flushes, adds and removes layers when told. Safe for many threads; methods
    release the GIL while they work, and those that touch the disk belong into a worker thread.
    Raises, in every method: StoppedError (after ``shutdown``), CorruptDataError (a damaged layer, named in the facts),
    UnavailableError (the disk fails or is full).
    """

    def __new__(
        cls,
        *,
        directory: str | PathLike[str],
        tenant_id: bytes,
        timeline_id: bytes,
        shard: tuple[int, int, int],
        pg_version: int,
        flavour: str,
        hint_bits_logged: bool,
        data_checksums: bool,
        last_record_lsn: int,
        prev_record_lsn: int,
        disk_consistent_lsn: int,
        gc_cutoff_lsn: int,
        next_open_layer_at: int,
        ancestor: TimelineStore | None,
        ancestor_lsn: int,
        redo: RedoPool | None,
        caches: Caches,
        download: Callable[[str], None] | None = None,
        neon_until_lsn: int = 0,
    ) -> TimelineStore:
        """Open an empty store; ``add_layers`` tells it what layers there are.

        Records that end at or below ``neon_until_lsn`` are Neon's, whatever ``flavour`` says: another source took over
        there.

        ``download`` brings a layer, given by its logical name, to the path it was added with. It is called by threads
        that read, several at once for one layer, and blocks; without it all layers must be on this disk.

        ``shard`` is number, count and stripe size in pages. ``flavour`` is ``neon`` or ``stock``. The first open layer
        starts at ``next_open_layer_at``: disk_consistent_lsn + 1 after a load, the timeline's first LSN when it is new.
        """

    @property
    def last_record_lsn(self) -> int: ...
    @property
    def prev_record_lsn(self) -> int: ...
    @property
    def disk_consistent_lsn(self) -> int: ...
    @property
    def gc_cutoff_lsn(self) -> int: ...
    def record_lsns(self) -> tuple[int, int]:
        """Return last and previous record LSN of one moment."""

    def set_origin(
        self,
        *,
        flavour: str,
        neon_until_lsn: int,
        hint_bits_logged: bool,
        data_checksums: bool,
    ) -> None:
        """Have another source feed the timeline from now on; nothing may be ingested meanwhile."""

    def set_gaps(self, gaps: Sequence[tuple[int, int]]) -> None:
        """Let the page service refuse reads between the two ends of each gap; the ends themselves can be read."""

    def set_relation_directory_v2_from(self, lsn: int) -> None:
        """Let the second form of relation directory decide what exists, for reads from ``lsn`` on."""

    def resume_at(self, lsn: int) -> None:
        """Make ``lsn`` the last record. Image layers of everything at ``lsn`` are in the map already, and everything
        before is flushed. Raises: RequestError (is not so, or ``lsn`` is not beyond the last record).
        """

    def set_gc_cutoff(self, lsn: int) -> None:
        """Move the applied cutoff forward; the page service refuses reads below it."""

    def hold_reads(self) -> None:
        """Let the page service refuse all reads until ``release_reads``: a base copy is not consistent yet."""

    def release_reads(self, cutoff: int) -> None:
        """End ``hold_reads``: reads from ``cutoff`` on are legal."""

    def set_disk_consistent_lsn(self, lsn: int) -> None:
        """Move it forward, for what is durable without a flush (image layers of an import, a shard without data)."""

    def advance(self, lsn: int) -> None:
        """Make ``lsn`` the end of the last record, for what does not come from WAL."""

    def wait_lsn(self, lsn: int, timeout_seconds: float) -> bool:
        """Block until ``last_record_lsn`` reaches ``lsn``; False at the time-out. Raises: StoppedError."""

    def add_layers(self, layers: Sequence[tuple[str, str | PathLike[str], int]]) -> None:
        """Add many files as one step: name, path, size."""

    def remove_layers(self, names: list[str], *, delete_files: bool = False) -> None:
        """Take layers out of the map, and their files from the disk; reads that use them go on."""

    def evict_layers(self, names: list[str]) -> None:
        """Remove the files of layers, not the layers: the next read downloads them. Raises: NotFoundError, RequestError
        (there is no ``download``).
        """

    def layers(self) -> list[LayerInfo]:
        """Return all layer files, images first, by key and LSN."""

    def get(self, key: bytes, lsn: int) -> bytes:
        """Return the value as of ``lsn``, inclusive. Raises: MissingKeyError, UnavailableError (no redo process)."""

    def get_with_cost(self, key: bytes, lsn: int) -> tuple[bytes, int, int]:
        """Like ``get``, with how many layers were visited, and how many of them were not image layers."""

    def layers_per_read(self) -> tuple[list[int], list[int], int]:
        """Return bounds, counts (one more, not cumulative) and sum of layers visited per read."""

    def get_many(self, keys: list[bytes], lsn: int) -> list[bytes | None]:
        """Return a value for each key, None where there is none."""

    def scan(self, start: bytes, end: bytes, lsn: int) -> list[tuple[bytes, bytes]]:
        """Return what exists in a range of the sparse keyspace, in key order; removed keys are left out."""

    def read_blocks(
        self, spc: int, db: int, rel: int, fork: int, first: int, count: int, lsn: int, *, stamp_checksums: bool
    ) -> bytes:
        """Return ``count`` pages of a fork, zeros from its end on. Raises: NotFoundError (no such fork)."""

    def rel_exists(self, spc: int, db: int, rel: int, fork: int, lsn: int) -> bool: ...
    def rel_size(self, spc: int, db: int, rel: int, fork: int, lsn: int) -> int | None:
        """Return the size in blocks; None if the relation does not exist, 0 for an absent fork 1 or 2."""

    def db_size(self, spc: int, db: int, lsn: int) -> int | None:
        """Return the blocks of all forks of all relations; None if there is no such database."""

    def slru_segment(self, kind: int, segno: int, lsn: int) -> bytes:
        """Return the pages of a segment, 8192 bytes each. Raises: MissingKeyError (no such segment)."""

    def open_layer(self) -> OpenLayerInfo | None: ...
    def frozen_layers(self) -> int: ...
    def freeze(self) -> int | None:
        """End the open layer behind the last record; return its exclusive end, None if nothing is open.

        While a rare record is being applied it waits, 10 s at most. Raises: LsnTimeoutError.
        """

    def flush_oldest(self, generation: int | None) -> LayerInfo | None:
        """Write the oldest frozen layer to an L0 file, put that in its place, advance ``disk_consistent_lsn``.

        Returns None if nothing is frozen. On an error the layer stays frozen, and the call may be repeated.
        """

    def put_images(self, lsn: int, items: list[tuple[bytes, bytes]]) -> None:
        """Write images that do not come from WAL to the open layer, and advance to ``lsn`` if it is new."""

    def write_image_layer(
        self,
        key_start: bytes,
        key_end: bytes,
        lsn: int,
        pieces: list[tuple[str, bytes, bytes] | tuple[str, bytes, str, int, int]],
        generation: int | None,
        compression: str,
    ) -> LayerInfo:
        """Write an image layer and add it to the map. Pieces come in ascending order of keys.

        A piece is ``("bytes", key, value)`` or ``("file", first_key, path, offset, blocks)``: consecutive blocks of a
        data file for consecutive keys. ``compression`` is ``disabled``, ``zstd`` or ``zstd(<level>)``. What the range
        covers and the pieces do not hold does not exist at ``lsn``.
        """

    def create_image_layer(
        self,
        key_start: bytes,
        key_end: bytes,
        lsn: int,
        *,
        dense: list[tuple[bytes, bytes]],
        sparse: list[tuple[bytes, bytes]],
        generation: int | None,
        compression: str,
    ) -> LayerInfo | None:
        """Write an image layer of what the timeline holds at ``lsn`` and add it to the map; None if that is nothing.

        ``dense`` are ranges in which every key exists, ``sparse`` ranges to scan; together ascending.
        """

    def shutdown(self) -> None:
        """End all waits; later reads and writes raise StoppedError."""

def layer_summary(path: str | PathLike[str]) -> dict[str, Any]:
    """Return what a layer file says about itself: ``name``, ``kind``, ``tenant_id``, ``timeline_id``, ``key_start``,
    ``key_end``, ``lsn_start``, ``lsn_end``, ``index_start_block``, ``index_root_block``, ``file_size``.
    """

def layer_entries(
    path: str | PathLike[str],
    *,
    key_start: bytes | None = None,
    key_end: bytes | None = None,
    limit: int | None = None,
) -> list[tuple[bytes, int, bool, int, int]]:
    """Return entries of a layer file in order: key, LSN, will_init, offset of the blob, stored length with header."""

def layer_check(path: str | PathLike[str]) -> int:
    """Read and decode everything in a layer file, index and values; return how many values it has. Raises
    CorruptDataError, which names the file and what is wrong with it.
    """

def layer_value(path: str | PathLike[str], key: bytes, lsn: int) -> bytes:
    """Return one stored value: an encoded value (layer-files.md 10) of a delta, the bytes themselves of an image."""

# serve.rs

@final
class BackupRequest:
    """What a client asked for with ``basebackup`` or ``fullbackup`` (page-service.md 6.1)."""

    @property
    def tenant_id(self) -> bytes: ...
    @property
    def shard(self) -> tuple[int, int]:
        """Number and count."""

    @property
    def timeline_id(self) -> bytes: ...
    @property
    def lsn(self) -> int | None:
        """Waited for, and not below the GC cutoff. None: the last record, now."""

    @property
    def prev_lsn(self) -> int | None:
        """Given with ``fullbackup`` only."""

    @property
    def full(self) -> bool: ...
    @property
    def gzip(self) -> bool: ...
    @property
    def replica(self) -> bool: ...

@final
class BackupSink:
    """Where the bytes of the archive go. End it with ``finish`` or ``fail``; a sink that is dropped before is an error
    for the client.
    """

    def write(self, chunk: bytes) -> None:
        """Append to the archive. Blocks while the client is slow: call it in a worker thread.

        Raises: StoppedError (the client is gone, or the timeline is shutting down: stop making the archive).
        """

    def finish(self) -> None:
        """The archive is complete. Blocks and raises like ``write``."""

    def fail(self, kind: str, message: str) -> None:
        """End with an error in place of the rest. ``kind``: ``error``, ``not_found``, ``shutdown`` or ``reconnect``.

        Before the first ``write`` it is an ordinary error of the command. May block like ``write``.
        """

@final
class LeaseAnswer:
    """Takes the answer to ``lease lsn``, once. Dropped without an answer, the client is told ``shutdown``."""

    def grant(self, valid_until_millis: int) -> None:
        """Milliseconds since 1970."""

    def refuse(self) -> None:
        """The LSN is too old."""

    def fail(self, kind: str, message: str) -> None:
        """``kind`` as in ``BackupSink.fail``."""

@final
class StatusAnswer:
    """Takes the words about a timeline's WAL receiver, once. Dropped or late, ``Not active`` stands in for them."""

    def give(self, status: str) -> None: ...

@type_check_only
class PageServiceHandler(Protocol):
    """What the page service asks. Methods are called in the event loop and must return at once."""

    def backup(self, request: BackupRequest, sink: BackupSink) -> None:
        """Begin to make the archive, elsewhere."""

    def lease(
        self, tenant_id: bytes, shard: tuple[int, int], timeline_id: bytes, lsn: int, answer: LeaseAnswer
    ) -> None:
        """Decide, tell ``ServedTimeline.set_leases``, then answer. The LSN is as it came, not normalised."""

    def activate(self, tenant_id: bytes, shard: tuple[int, int]) -> None:
        """A request waits for this shard, which is not active yet: let it jump the queue."""

    def receiver_status(
        self, tenant_id: bytes, shard: tuple[int, int], timeline_id: bytes, answer: StatusAnswer
    ) -> None:
        """Say what the WAL receiver is doing: the end of the time-out message (page-service.md 3.3)."""

    def log(self, level: str, text: str) -> None:
        """``level``: ``info``, ``warning``, ``error`` or ``critical``."""

@final
class ServedTimeline:
    """A timeline that is, or was, served."""

    def set_leases(self, leases: dict[int, int], grace_until_millis: int) -> None:
        """Replace what may be read below the GC cutoff: LSN to expiry in milliseconds since 1970; until
        ``grace_until_millis`` everything (page-service.md 3.4).
        """

    def wait_left(self, timeout_seconds: float) -> bool:
        """After closing: wait until no read uses the timeline any more. False on time-out. Blocks."""

    def metrics(self) -> dict[str, Any]:
        """``get_page_started``, ``get_page_seconds`` and ``batch_wait_seconds`` (histograms as in
        ``PageService.metrics``), ``batch_sizes``, ``batch_breaks``, ``throttled_requests``, ``flush_micros``; waits for
        an LSN: ``wait_lsn_started``, ``wait_lsn_finished``, ``wait_lsn_micros``.
        """

@final
class PageService:
    """The libpq page service (page-service.md 1-4). Serves without ever taking the GIL; see ``PageServiceHandler``.

    Order of stopping (4.7): ``stop_accepting``; set all shards to ``Stopping`` and close their timelines, waiting with
    ``ServedTimeline.wait_left``; ``stop``.
    """

    def __new__(
        cls,
        *,
        listen: str,
        handler: PageServiceHandler,
        event_loop: AbstractEventLoop,
        worker_threads: int = 2,
        read_timeout_seconds: float = 600.0,
        wait_lsn_timeout_seconds: float = 300.0,
        max_batch_size: int = 32,
        batching: str = "scattered-lsn",
        allow_test_messages: bool = False,
        questions_max: int = 1024,
    ) -> PageService:
        """``listen`` is a numeric address with a port; port 0: a free one. ``max_batch_size`` 1 is the serial mode.

        ``batching``: ``scattered-lsn`` or ``uniform-lsn`` (4.3). Each pagestream has a thread of its own besides the
        ``worker_threads``, which serve log-in, commands and backups.
        """

    def start(self) -> int:
        """Bind, begin to accept, return the port. Raises: OSError."""

    def stop_accepting(self) -> None:
        """Take no new connections; existing ones go on."""

    def stop(self, timeout_seconds: float) -> bool:
        """End all connections at their next message boundary; what is ready gets 500 ms to be sent. Blocks.

        False: some were still inside a read at the end of the time.
        """

    def set_shard(self, tenant_id: bytes, shard: tuple[int, int, int], state: str, reason: str = "") -> None:
        """Add a shard (number, count, stripe size) or change its state: ``InTransition``, ``Attaching``,
        ``Activating``, ``Active``, ``Stopping``, ``Broken`` (with its reason).
        """

    def remove_shard(self, tenant_id: bytes, shard: tuple[int, int]) -> list[ServedTimeline]:
        """Forget a shard; closes and returns the timelines it still had."""

    def set_throttle(
        self, tenant_id: bytes, shard: tuple[int, int], throttle: tuple[int, int, float, int] | None
    ) -> bool:
        """Set initial, max, refill interval in seconds, refill amount (page-service.md 4.5). False: no such shard."""

    def attach_timeline(
        self, tenant_id: bytes, shard: tuple[int, int], timeline_id: bytes, store: TimelineStore | PageBridge
    ) -> ServedTimeline:
        """Serve the timeline from now on. One of that id that was served before is closed.

        Raises: NotFoundError (the shard was not set).
        """

    def close_timeline(
        self,
        tenant_id: bytes,
        shard: tuple[int, int],
        timeline_id: bytes,
        *,
        reconnect: bool = False,
        state: str | None = None,
    ) -> ServedTimeline | None:
        """Serve it no more: waits end, clients are told ``shutdown`` (or ``reconnect``), running reads go on.

        ``state`` (such as ``Loading``) is what later requests are told; None: the timeline is gone. Returns None if it
        was not served.
        """

    def live_connections(self) -> int: ...
    def metrics(self) -> dict[str, Any]:
        """Counters since the start: ``connections_started``, ``connections_finished``, ``misrouted_requests``,
        ``flush_micros``, ``wait_lsn_micros``, ``wait_lsn_seconds`` (a histogram as below); by name ``commands``,
        ``requests_started``, ``outcomes``, ``batch_breaks``, ``questions_dropped`` (more than ``questions_max`` waited
        for the event loop); ``batch_sizes`` (how many batches had 1, 2, … members); ``throttle``, and
        ``throttle_of_shards`` by (tenant id, number, count): started, finished, throttled requests, microseconds
        waited; ``request_seconds`` by kind: ``bounds_micros``, ``counts`` (one more than bounds, not cumulative),
        ``sum_micros``.
        """
