"""`/metrics` of a running server beside what Neon's said: names, types, labels, bounds of histograms."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psycopg

from tests.conftest import MakeServer
from tests.integration.metrics_not_built import NOT_BUILT
from tests.page_server import PageServerProcess

NEON = Path(__file__).parents[3] / "shared" / "vectors" / "neon-pg16" / "http" / "metrics.txt"
TENANT = "4e" * 16
_SAMPLE = re.compile(r"(?P<name>[A-Za-z_:][A-Za-z0-9_:]*)(?:\{(?P<labels>.*)\})? (?P<value>[0-9.]+)")
_LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z +(TRACE|DEBUG|INFO|WARN|ERROR) ")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass
class Family:
    kind: str
    labels: set[str] = field(default_factory=set)
    bounds: set[str] = field(default_factory=set)
    samples: dict[str, float] = field(default_factory=dict)


def parse(text: str) -> dict[str, Family]:
    """Return families by name. Raises AssertionError for lines that are not in the format."""
    families: dict[str, Family] = {}
    current = ""
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, current, kind = line.split()
            assert families.setdefault(current, Family(kind)).kind == kind, line
        elif not line.startswith("#"):
            sample = _SAMPLE.fullmatch(line)
            assert sample is not None, line
            assert re.fullmatch(f"{current}(_bucket|_sum|_count)?", sample["name"]), line
            labels = dict(_LABEL.findall(sample["labels"] or ""))
            families[current].samples[line.rpartition(" ")[0]] = float(sample["value"])
            if "le" in labels:
                families[current].bounds.add(labels.pop("le"))
            families[current].labels |= set(labels)
    return families


def metrics(server: PageServerProcess) -> dict[str, Family]:
    response = httpx.get(f"{server.url}/metrics?use_latest=true", timeout=60)
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    names = re.findall(r"^# TYPE (\S+)", response.text, re.MULTILINE)
    assert names == sorted(set(names)), "families are sorted, and each appears once"
    return parse(response.text)


def test_names_types_labels_and_bounds_are_neons(make_server: MakeServer, server_dir: Path) -> None:
    """Goal: dashboards made for Neon's server find their series here. Method: a server with one timeline that has taken
    WAL, uploaded, and answered a client; then every family of Neon's server is here alike, or listed as not built.
    """
    primary = make_server(16, "primary")
    primary.sql("create table t (id int)")
    with PageServerProcess(server_dir / "ours", settings={"remote_storage": "{local_path='bucket'}"}) as server:
        assert metrics(server)["pageserver_tenant_states_count"].samples.keys() == {
            f'pageserver_tenant_states_count{{state="{state}"}}'
            for state in ("Activating", "Active", "Attaching", "Broken", "Stopping")
        }
        server.pagectl("tenant", "create", TENANT)
        timeline = server.pagectl("timeline", "create", "--primary", primary.conninfo())["timeline_id"]
        path = f"/v1/tenant/{TENANT}/timeline/{timeline}"
        server.wait_for(lambda: server.api("GET", path)["state"] == "Active", 120, "an active timeline")
        primary.sql("insert into t select generate_series(1, 10000)")
        server.wait_for(lambda: wal_records(server) > 10000, 60, "WAL records")
        server.api("PUT", f"{path}/checkpoint")
        read_a_backup(server, timeline)
        ours, neons = metrics(server), parse(NEON.read_text())

        assert sorted(neons.keys() - ours.keys()) == sorted(NOT_BUILT), "the list of what is not built is not true"
        for name in sorted(neons.keys() & ours.keys()):
            assert (name, ours[name].kind) == (name, neons[name].kind)
            assert (name, ours[name].bounds) == (name, neons[name].bounds)
            assert (name, sorted(ours[name].labels)) == (name, sorted(neons[name].labels))
        values_add_up(server, ours, path)

        server.api("PUT", f"/v1/tenant/{TENANT}/location_config", {"mode": "Detached", "tenant_conf": {}})
        after = metrics(server)
        left = [sample for family in after.values() for sample in family.samples if TENANT in sample]
        assert left == [], "a tenant that has gone leaves series"
        for name in ("resident", "remote"):
            only = after[f"pageserver_{name}_physical_size_global"].samples
            assert list(only.values()) == [0]
        server.restart()
        phases = metrics(server)["pageserver_startup_duration_seconds"].samples
        assert len(phases) == 5
        assert metrics(server)["pageserver_startup_is_loading"].samples == {"pageserver_startup_is_loading": 0}
    log = server.log_path.read_text().splitlines()
    assert [line for line in log if not _LOG_LINE.match(line)] == [], "a line has another form"
    assert [line for line in log if re.match(r"\S+ +(WARN|ERROR) ", line)] == [], "somebody must look"


def values_add_up(server: PageServerProcess, ours: dict[str, Family], path: str) -> None:
    """What is said twice is the same, and what was done is counted."""

    def total(name: str) -> float:
        return sum(ours[name].samples.values())

    layers = server.api("GET", f"{path}/layer")["historic_layers"]
    assert total("pageserver_layer_count") == len(layers)
    sizes = sum(layer["layer_file_size"] for layer in layers)
    for name in ("layer_bytes", "resident_physical_size", "remote_physical_size", "visible_physical_size"):
        assert (name, total(f"pageserver_{name}")) == (name, sizes)
    started = ours["pageserver_remote_timeline_client_calls_started"].samples
    finished = ours["pageserver_remote_timeline_client_calls_finished"].samples
    assert list(started.values()) == list(finished.values())
    assert total("pageserver_remote_timeline_client_bytes_finished") == sizes
    assert total("pageserver_walreceiver_active_managers") == 1
    assert total("pageserver_live_connections_started") == 1
    backups = ours["pageserver_basebackup_query_seconds"].samples
    assert backups['pageserver_basebackup_query_seconds_count{result="ok"}'] == 1
    events = ours["libmetrics_tracing_event_count"].samples
    assert events['libmetrics_tracing_event_count{level="info"}'] > 5
    by_label: dict[str, float] = defaultdict(float)
    for sample, value in ours["pageserver_storage_operations_seconds_count"].samples.items():
        by_label[dict(_LABEL.findall(sample))["operation"]] += value
    assert by_label["layer flush"] >= 1
    assert sum(ours["pageserver_page_service_questions_dropped_total"].samples.values()) == 0


def wal_records(server: PageServerProcess) -> float:
    return sum(metrics(server)["pageserver_timeline_wal_records_received"].samples.values())


def read_a_backup(server: PageServerProcess, timeline: str) -> None:
    connection = psycopg.connect(host="127.0.0.1", port=server.pg_port, user="x", dbname="x", autocommit=True)
    with connection, connection.cursor().copy(f"basebackup {TENANT} {timeline}".encode()) as copy:
        assert sum(len(bytes(piece)) for piece in copy) > 1000
