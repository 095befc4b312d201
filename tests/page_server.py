"""A page server process of ours for tests: started in a directory, asked over HTTP and `pagectl`, stopped or killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from tests.ports import free_port

SOURCES = Path(__file__).parents[1] / "src"
_START_TIMEOUT_SECONDS = 60.0
_POLL_SECONDS = 0.05


class PageServerProcess:
    """One page server. The workdir outlives `stop` and `kill`, so `start` again is a restart."""

    def __init__(self, workdir: Path, *, settings: dict[str, str] | None = None) -> None:
        self.workdir = workdir
        self.http_port, self.pg_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.log_path = workdir.with_name(f"{workdir.name}.log")
        self._settings = {
            "listen_http_addr": f"'127.0.0.1:{self.http_port}'",
            "listen_pg_addr": f"'127.0.0.1:{self.pg_port}'",
            **(settings or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        _run("pageserver", "-D", str(workdir), "--init")

    def __enter__(self) -> PageServerProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_running():
            self.stop()

    def start(self, *, more: dict[str, str] | None = None) -> None:
        """Start, with more settings if any, and wait until it answers.

        Raises AssertionError with the end of its log if it does not.
        """
        assert self._process is None, "it runs already"
        settings = {**self._settings, **(more or {})}
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pageserver.cli.pageserver", "-D", str(self.workdir), *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
            )
        self.wait_for(self._answers, _START_TIMEOUT_SECONDS, "an answer")

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_seconds: float = 60.0) -> int:
        """Send a signal and wait for the end. Returns the exit code."""
        assert self._process is not None, "it does not run"
        self._process.send_signal(number)
        try:
            code = self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(
                f"{number.name} did not end it within {timeout_seconds:g} s\n{self._threads()}\n{self.log_end()}"
            ) from error
        self._process = None
        return code

    def _threads(self) -> str:
        """Return what the kernel says of each thread: name, state, what it waits for."""
        lines = []
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
            lines.append(f"{status['Name']}: {status['State']}, {(task / 'wchan').read_text()}")
        return "\n".join(lines)

    def restart(self, *, more: dict[str, str] | None = None) -> None:
        """Stop orderly and start again."""
        self.stop()
        self.start(more=more)

    def wait_for_end(self, timeout_seconds: float) -> int:
        """Wait until it ends by itself. Returns the exit code."""
        assert self._process is not None, "it does not run"
        code = self._process.wait(timeout_seconds)
        self._process = None
        return code

    def kill(self) -> None:
        """Kill it as a crash would."""
        self.stop(signal.SIGKILL)

    @property
    def pid(self) -> int:
        assert self._process is not None, "it does not run"
        return self._process.pid

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the management API. Raises httpx.HTTPStatusError."""
        with httpx.Client(base_url=self.url, timeout=60) as client:
            response = client.request(method, path, json=body)
            response.raise_for_status()
            return response.json()

    def metrics(self) -> dict[str, float]:
        """Return the samples of `/metrics` by name with labels."""
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    def logical_size(self, timeline_path: str) -> int:
        """Return the size that ingest keeps up to date, which must be that of a count; while no WAL comes."""
        flags = "include-non-incremental-logical-size=true&force-await-initial-logical-size=true"
        for _ in range(10):
            found = self.api("GET", f"{timeline_path}?{flags}")
            assert found["current_logical_size_is_accurate"], found
            if found["current_logical_size"] == found["current_logical_size_non_incremental"]:
                break
            time.sleep(0.1)  # the last records were just being counted
        assert found["current_logical_size"] == found["current_logical_size_non_incremental"], found
        return int(found["current_logical_size"])

    def pagectl(self, *arguments: str, statuses: Collection[int] = (0,)) -> Any:
        """Run `pagectl --json` and return what it printed.

        Raises AssertionError with its message if it ends with another status than expected.
        """
        return pagectl("--url", self.url, *arguments, statuses=statuses)

    def wait_for(self, condition: Callable[[], bool], timeout_seconds: float, what: str) -> None:
        """Wait until a condition holds. Raises AssertionError with the end of the log."""
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            assert self.is_running(), f"the page server ended while waiting for {what}\n{self.log_end()}"
            assert time.monotonic() < deadline, f"no {what} within {timeout_seconds} s\n{self.log_end()}"
            time.sleep(_POLL_SECONDS)

    def log_end(self) -> str:
        return self.log_path.read_text(errors="replace")[-4000:]

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return bool(self.api("GET", "/v1/status"))
        return False


def pagectl(*arguments: str, statuses: Collection[int] = (0,)) -> Any:
    """Run `pagectl --json` without a server of ours and return what it printed.

    Raises AssertionError with its message if it ends with another status than expected.
    """
    return json.loads(_run("pagectl", "--json", *arguments, statuses=statuses))


def _run(command: str, *arguments: str, statuses: Collection[int] = (0,)) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"pageserver.cli.{command}", *arguments],
        capture_output=True,
        text=True,
        env=_environment(),
        timeout=600,
        check=False,
    )
    ended = f"{command} {' '.join(arguments)}: status {done.returncode}: {done.stdout}{done.stderr}"
    assert done.returncode in statuses, ended
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SOURCES), "PYTHONUNBUFFERED": "1"}
