"""Start-up and shutdown order: the one place that wires the rooms together (http-api.md 10).

    pid file → sockets bound → store, generations → tenants attach → HTTP answers → page service → signals
    SIGTERM: page service stops accepting → tenants flush and stop → page connections end → deletion lists written →
             HTTP last

No management request is answered before the tenants' generations are claimed: if `GET /v1/status` answers, they are
fresh.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from uvicorn.protocols.http.h11_impl import H11Protocol

from pageserver.clock import Clock, SystemClock
from pageserver.compiled_module import check_compiled_module
from pageserver.config import BuildInfo, InvalidSettingError, RemoteStorage, ServerConfig
from pageserver.control import ControllerGenerations, UpcallClient, read_registration
from pageserver.counts import ServerCounts
from pageserver.disk_errors import DiskGuard
from pageserver.errors import PageServerError, StoppedError
from pageserver.failpoints import Failpoints, FailpointSyntaxError, parse_environment
from pageserver.mgmt import ApiContext, create_app
from pageserver.observe import (
    EventCounts,
    HttpCounts,
    ProcessMetrics,
    Scrapes,
    StartupTimes,
    configure_logging,
    level_of,
    render_metrics,
)
from pageserver.postgres.initdb import Initdb
from pageserver.remote import GenerationClaim, ObjectStorage, RetryingStorage, open_object_storage, paths
from pageserver.remote.adopt_local import adopt_local_store
from pageserver.remote.deletion_queue import DeletionQueue
from pageserver.remote.generations import probe_store
from pageserver.remote.local_store import make_directory_durable, sync_directory
from pageserver.remote.upload_operations import UploadPolicy
from pageserver.serve.page_service import PageServiceRoom
from pageserver.tenant import TenantManager, TenantResources
from pageserver.tenant.bucket_generations import BucketGenerations
from pageserver.tenant.generation_source import GenerationSource
from pageserver.timeline import DownloadCounts
from pageserver.timeline.core_engine import CoreEngine
from pageserver.wal.way_in import PostgresWayIn

LOCAL_STORE_DIRECTORY = "local-storage"
"""Where indices and claims live when there is no `[remote_storage]` (standalone.md 2)."""
EXIT_START_FAILED = 1
EXIT_IMMEDIATE = 111
_BACKLOG = 2048
_BLOCKING_THREADS = 256
"""For work that waits for disks, primaries and stores; made when they are needed. The library's few would be used up by
as many primaries that do not answer, and nothing else would go on.
"""
_STAGE_WARN_SECONDS = 5.0
_DELETION_FLUSH_SECONDS = 5.0


def run(config: ServerConfig, *, version: str) -> int:
    """Run the server until it is told to stop. Returns the exit code (http-api.md 10.3)."""
    os.chdir(config.workdir)
    events = EventCounts()
    log = configure_logging(config.settings.log_format, level=level_of(os.environ.get("RUST_LOG")), events=events)
    for item in config.ignored_items:
        log.warning("ignoring unknown configuration item", path=item)
    launched_at = datetime.now(UTC)
    process = ProcessMetrics(launched_at_millis=round(launched_at.timestamp() * 1000), events=events)
    launch_timestamp = f"{launched_at:%Y-%m-%d %H:%M:%S.%f}000 UTC"
    build = BuildInfo.find()
    log.info(
        f"version: {version} launch_timestamp: {launch_timestamp} build_tag: {build.build_tag}",
        workdir=str(config.workdir),
    )
    try:
        check_compiled_module()
        check_supported(config)
        failpoints = open_failpoints(config, os.environ, log)
        with pid_file(config.workdir / "pageserver.pid"):
            prepare_workdir(config)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_Server(config, build, launch_timestamp, failpoints, log, process).run())
    except (PageServerError, InvalidSettingError, OSError) as error:
        log.critical("cannot start", error=str(error))
        return EXIT_START_FAILED
    except ExceptionGroup as errors:
        log.critical("cannot start", error=str(errors), exc_info=errors)
        return EXIT_START_FAILED
    return 0


def check_supported(config: ServerConfig) -> None:
    """Refuse settings that this release would silently not honour. Raises InvalidSettingError."""
    settings = config.settings
    unsupported = {
        "listen_https_addr": settings.listen_https_addr is not None,
        "listen_grpc_addr": settings.listen_grpc_addr is not None,
        "http_auth_type": settings.http_auth_type != "Trust",
        "pg_auth_type": settings.pg_auth_type != "Trust",
        "enable_tls_page_service_api": settings.enable_tls_page_service_api,
    }
    for key, is_set in unsupported.items():
        if is_set:
            raise InvalidSettingError(f"{key}: not supported yet by this release")
    if settings.control_plane_api is not None and settings.remote_storage is None:
        raise InvalidSettingError("control_plane_api: a storage controller needs [remote_storage]")


def open_failpoints(config: ServerConfig, environment: Mapping[str, str], log: Any) -> Failpoints:
    """Return the server's failpoints, as `FAILPOINTS` configures them. Raises InvalidSettingError."""
    configured = environment.get("FAILPOINTS", "")
    if not config.settings.testing_apis:
        if configured:
            raise InvalidSettingError("FAILPOINTS: failpoints are off; HINT: testing_apis = true switches them on")
        return Failpoints.off()
    failpoints = Failpoints(log)
    log.info("testing_apis is on: whoever reaches the management API can make this server fail")
    try:
        for name, actions in parse_environment(configured):
            failpoints.configure(name, actions)
    except FailpointSyntaxError as error:
        raise InvalidSettingError(f"FAILPOINTS: {error}") from error
    return failpoints


def prepare_workdir(config: ServerConfig) -> None:
    """Create `tenants/` and make what an unclean stop left in it durable: everything read later may be trusted."""
    tenants = paths.tenants_directory(config.workdir)
    make_directory_durable(tenants, config.workdir)
    if not config.settings.no_sync:
        os.sync()


@contextlib.contextmanager
def pid_file(path: Path) -> Iterator[None]:
    """Hold the lock that makes this the only server of the directory. The file is never removed (remote-storage.md
    2.2).
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidSettingError(f"{path}: file is already locked; HINT: another server runs here") from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        os.fsync(descriptor)
        sync_directory(path.parent)
        yield
    finally:
        os.close(descriptor)


def open_storage(config: ServerConfig, clock: Clock, log: Any) -> tuple[RetryingStorage, bool]:
    """Return the store, and whether layers go there too. Raises InvalidSettingError."""
    remote: RemoteStorage | None = config.settings.remote_storage
    local = config.workdir / LOCAL_STORE_DIRECTORY
    if remote is None:
        log.warning("no remote storage configured: the local disk is the only copy", store=str(local))
    storage = open_object_storage(
        remote or RemoteStorage(local_path=LOCAL_STORE_DIRECTORY),
        workdir=config.workdir,
        clock=clock,
        log=log,
        failures=config.settings.test_remote_failures,
        failure_percent=config.settings.test_remote_failures_probability,
    )
    return storage, remote is not None


@contextlib.contextmanager
def naming(key: str, address: str) -> Iterator[None]:
    """Say which setting's address it is that cannot be listened on. Raises InvalidSettingError."""
    try:
        yield
    except OSError as error:
        raise InvalidSettingError(f"{key}: cannot listen on {address}: {error}") from error


def bind(address: str) -> socket.socket:
    """Bind a listening address `host:port` early, so that conflicts show before anything else happens. Clients that
    connect wait until the server is ready to answer. Raises OSError.
    """
    host, _, port = address.rpartition(":")
    family, kind, protocol, _, target = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(target)
        bound.listen(_BACKLOG)
    except BaseException:
        bound.close()
        raise
    return bound


class _Server:
    """One run of the server."""

    def __init__(
        self,
        config: ServerConfig,
        build: BuildInfo,
        launch_timestamp: str,
        failpoints: Failpoints,
        log: Any,
        process: ProcessMetrics,
    ) -> None:
        self._process = process
        self._config = config
        self._build = build
        self._launch_timestamp = launch_timestamp
        self._log = log
        self._failpoints = failpoints
        self._stop = asyncio.Event()

    async def run(self) -> None:
        config, settings, clock = self._config, self._config.settings, SystemClock()
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_BLOCKING_THREADS, "blocking"))
        counts = ServerCounts()
        startup = StartupTimes(clock, counts)
        with naming("listen_http_addr", settings.listen_http_addr):
            http_socket = bind(settings.listen_http_addr)
        # The page service binds its own socket, but only when tenants have been attached and have new generations.
        with naming("listen_pg_addr", settings.listen_pg_addr):
            bind(settings.listen_pg_addr).close()
        startup.begin()
        storage, stores_layers = open_storage(config, clock, self._log)
        engine = CoreEngine(settings, self._log, clock)
        pages = PageServiceRoom(settings, self._log)
        initdb = Initdb(
            pg_installations=settings.pg_installations,
            pg_distrib_dir=settings.pg_distrib_dir,
            superuser=settings.superuser,
            locale=settings.locale,
        )
        way_in = PostgresWayIn(
            workdir=config.workdir,
            node_id=config.node_id,
            image_compression=settings.image_compression,
            initdb=initdb,
            clock=clock,
            log=self._log,
            failpoints=self._failpoints,
        )
        await way_in.remove_leftovers()
        await asyncio.to_thread(engine.remove_leftovers)
        claim = GenerationClaim(
            node_id=config.node_id,
            instance=secrets.token_hex(16),
            host=socket.gethostname(),
            claimed_at=f"{clock.now():%Y-%m-%dT%H:%M:%SZ}",
        )
        client = None if settings.control_plane_api is None else self._open_upcalls(settings.control_plane_api, clock)
        generations: GenerationSource
        if client is None:
            generations = in_bucket = BucketGenerations(storage, claim, clock=clock, log=self._log)
        else:
            generations = self._controller_generations(client)
        disk = DiskGuard(self._log)
        deletions = DeletionQueue(
            config.workdir,
            storage=storage,
            validator=generations,
            clock=clock,
            log=self._log,
            failpoints=self._failpoints,
            disk=disk,
        )
        resources = TenantResources(
            workdir=config.workdir,
            node_id=config.node_id,
            settings=settings,
            storage=storage,
            stores_layers=stores_layers,
            engine=engine,
            pages=pages,
            way_in=way_in,
            generations=generations,
            deletions=deletions,
            downloads=DownloadCounts(),
            clock=clock,
            log=self._log,
            disk=disk,
            failpoints=self._failpoints,
            counts=counts,
            uploads=UploadPolicy.from_environment(
                os.environ,
                limit=100 if settings.remote_storage is None else settings.remote_storage.concurrency_limit,
            ),
        )
        manager = TenantManager(resources)
        if client is None:
            in_bucket.on_stale = manager.demote
        scrapes = Scrapes(
            lambda: render_metrics(
                manager,
                config.ignored_items,
                self._build,
                settings=settings,
                store=storage.stats,
                redo=engine.redo_counts(),
                pages=pages.metrics(),
                caches=engine.cache_counts(),
                reads=engine.read_counts(),
                process=self._process,
                startup=startup,
            ),
            collects_each_time=settings.force_metric_collection_on_scrape,
            counts=self._process.scrapes,
            clock=clock,
            log=self._log,
        )
        context = ApiContext(
            config=config,
            manager=manager,
            clock=clock,
            launch_timestamp=self._launch_timestamp,
            scrapes=scrapes,
            on_panic=self._process.http.panicked,
            log=self._log,
            failpoints=self._failpoints,
        )
        try:
            if client is None:
                await probe_store(storage, claim.instance)
            if stores_layers:
                await self._adopt_local_store(storage, has_controller=client is not None)
            deletions.start()
            await manager.load_from_disk()
            startup.generations_known()
            # Before the first answer: who has seen one may tell this server to stop.
            self._install_signals()
            async with self._serve_http(context, http_socket):
                with naming("listen_pg_addr", settings.listen_pg_addr):
                    await pages.start(manager)
                startup.ready()
                self._log.info("ready", http=settings.listen_http_addr, pg=settings.listen_pg_addr)
                async with _running(scrapes.run(), name="metrics collection"):
                    await self._stop.wait()
                await self._stop_gracefully(manager, pages, deletions)
        finally:
            await deletions.close()
            if client is not None:
                await client.close()
            await asyncio.to_thread(initdb.close)
            await asyncio.to_thread(engine.close)

    async def _adopt_local_store(self, storage: ObjectStorage, *, has_controller: bool) -> None:
        """Move what was kept without remote storage there, if there is anything. Raises InvalidSettingError."""
        root = self._config.workdir / LOCAL_STORE_DIRECTORY
        if not (root / "tenants").is_dir():
            return
        if has_controller:
            raise InvalidSettingError(
                f"control_plane_api: {root} holds timelines whose generations this server gave itself; start once with "
                "[remote_storage] and without a controller, which moves them there"
            )
        await adopt_local_store(root, workdir=self._config.workdir, storage=storage, log=self._log)

    def _open_upcalls(self, base_url: str, clock: Clock) -> UpcallClient:
        settings = self._config.settings
        path = settings.ssl_ca_file
        return UpcallClient(
            base_url,
            token=settings.control_plane_api_token,
            ca_certificates=None if path is None else (self._config.workdir / path).read_text(encoding="ascii"),
            clock=clock,
            log=self._log,
            failpoints=self._failpoints,
        )

    def _controller_generations(self, client: UpcallClient) -> ControllerGenerations:
        config = self._config
        return ControllerGenerations(
            client,
            node_id=config.node_id,
            register=read_registration(
                config.workdir,
                node_id=config.node_id,
                availability_zone=config.settings.availability_zone,
                environment=os.environ,
                log=self._log,
            ),
            emergency_mode=config.settings.control_plane_emergency_mode,
            log=self._log,
        )

    @contextlib.asynccontextmanager
    async def _serve_http(self, context: ApiContext, bound: socket.socket) -> AsyncIterator[None]:
        """Answer requests inside of the block. It is left after everything else, so that states can be asked for to the
        end.
        """
        server = _HttpServer(
            uvicorn.Config(
                create_app(context),
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=5,
                timeout_keep_alive=75,
                http=_counting_protocol(self._process.http),
                server_header=False,
            )
        )
        task = asyncio.get_running_loop().create_task(server.serve(sockets=[bound]), name="http")
        task.add_done_callback(lambda _: self._stop.set())
        try:
            yield
        finally:
            server.should_exit = True
            await task

    async def _stop_gracefully(self, manager: TenantManager, pages: PageServiceRoom, deletions: DeletionQueue) -> None:
        for name, stage in (
            ("page service: stop accepting", pages.stop_accepting),
            ("tenants", manager.shut_down),
            ("page service: connections", pages.stop),
            ("deletion queue", lambda: self._flush_deletions(deletions)),
        ):
            started = asyncio.get_running_loop().time()
            await stage()
            elapsed = asyncio.get_running_loop().time() - started
            log = self._log.warning if elapsed > _STAGE_WARN_SECONDS else self._log.info
            log("completed", stage=name, seconds=round(elapsed, 3))

    async def _flush_deletions(self, deletions: DeletionQueue) -> None:
        """Write what is pending to lists; the next start goes on from there, so nothing is lost if this fails."""
        try:
            async with asyncio.timeout(_DELETION_FLUSH_SECONDS):
                await deletions.flush()
        except (TimeoutError, StoppedError):
            self._log.warning("the deletion queue could not be flushed at shutdown; objects may be leaked")

    def _install_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_requested, number)
        loop.add_signal_handler(signal.SIGQUIT, self._stop_immediately)

    def _stop_requested(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            self._log.info("Already shutting down")
            return
        self._log.info("Got signal. Terminating gracefully in fast shutdown mode", signal=number.name)
        self._stop.set()

    def _stop_immediately(self) -> None:
        self._log.info("Got signal SIGQUIT. Terminating in immediate shutdown mode.")
        os._exit(EXIT_IMMEDIATE)


def _counting_protocol(counts: HttpCounts) -> type[H11Protocol]:
    """Return the library's protocol, which counts its connections."""

    class Counting(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as the library's
            counts.connections += 1
            super().connection_made(transport)

        def send_400_response(self, msg: str) -> None:
            counts.errors["http"] += 1
            super().send_400_response(msg)

    return Counting


@contextlib.asynccontextmanager
async def _running(work: Coroutine[Any, Any, None], *, name: str) -> AsyncIterator[None]:
    """Have something run beside the block, and end with it."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


class _HttpServer(uvicorn.Server):
    """uvicorn without its own signal handling: the order of the shutdown is ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
