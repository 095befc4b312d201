"""What every benchmark needs: a place on disk, a primary, a page server, and facts about the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.page_server import PageServerProcess
from tests.postgres.provision import Installation, provision
from tests.postgres.server import PostgresServer

ROOT = Path(__file__).parents[1]
MAJOR = 16


@dataclass(frozen=True, slots=True)
class Report:
    """Prints result lines; what is the same in all of them is said here."""

    machine: Mapping[str, Any]
    version: str
    command: str

    @staticmethod
    def of_this_run() -> Report:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return Report(
            _machine(), described.stdout.strip() or "unknown", f"python -m bench {' '.join(sys.argv[1:])}".strip()
        )

    def line(self, benchmark: str, **figures: Any) -> None:
        """Print one result, with the load of the machine at this moment."""
        where = {"machine": self.machine, "load_1m": round(os.getloadavg()[0], 2)}
        print(
            json.dumps({"benchmark": benchmark, **figures, **where, "version": self.version, "command": self.command}),
            flush=True,
        )


def note(text: str) -> None:
    """Say on stderr what is going on; stdout is for results."""
    print(f"# {text}", file=sys.stderr, flush=True)


def _machine() -> dict[str, Any]:
    models = [line.split(":", 1)[1] for line in _proc("cpuinfo") if line.startswith("model name")]
    memory = next((int(line.split()[1]) for line in _proc("meminfo") if line.startswith("MemTotal")), 0)
    return {
        "cpu": models[0].strip() if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / (1 << 20), 1),
        "kernel": platform.release(),
    }


def _proc(name: str) -> list[str]:
    path = Path("/proc") / name
    return path.read_text().splitlines() if path.exists() else []


@contextmanager
def work_directory() -> Iterator[Path]:
    """A temporary directory that the unprivileged user of the PostgreSQL servers can enter."""
    with tempfile.TemporaryDirectory(prefix="pageserver-bench-") as name:
        base = Path(name)
        base.chmod(0o755)
        yield base


def installation() -> Installation:
    return provision(MAJOR, progress=note)


@contextmanager
def primary(base: Path, *, scale: int, settings: Mapping[str, str]) -> Iterator[PostgresServer]:
    """A stock PostgreSQL with pgbench's tables, vacuumed and checkpointed."""
    note(f"PostgreSQL {MAJOR}, pgbench scale {scale}")
    server = PostgresServer(MAJOR, base / "primary", installation=installation(), settings=settings)
    with server:
        server.pgbench("-i", "-q", "-s", str(scale))
        server.sql("checkpoint")
        yield server


@contextmanager
def page_server(base: Path) -> Iterator[PageServerProcess]:
    """Our server with its default settings."""
    with PageServerProcess(base / "pageserver") as server:
        yield server


def peak_rss_bytes(pid: int) -> int:
    """Return the highest resident size of a process since `forget_peak_rss`."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM in /proc/PID/status")


def forget_peak_rss(pid: int) -> None:
    """Start measuring the peak anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def lsn_number(text: str) -> int:
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)
