"""Object store servers of the tests: versitygw (S3) and azurite (Azure Blob Storage) as processes on free ports.

Each has an `endpoint`, the settings and the environment that a page server needs to reach it, and makes buckets. Data
outlives `stop` and `kill`. Azurite loses data when it is killed, so it is always stopped orderly.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import signal
import socket
import subprocess
import time
from email.utils import formatdate
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import botocore.session
import httpx
from botocore.config import Config

from tests.ports import free_port
from tests.stores.provision import provision_azurite, provision_minio, provision_versitygw

_START_TIMEOUT_SECONDS = 60.0
_STOP_TIMEOUT_SECONDS = 20.0
_POLL_SECONDS = 0.05

AZURITE_ACCOUNT = "devstoreaccount1"
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account that every Azurite has; its key is public."""


class StoreServer:
    """A server process; subclasses say which."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    def command(self) -> list[str]:
        """Return the command line."""
        raise NotImplementedError

    @property
    def endpoint(self) -> str:
        """URL that clients are told."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> StoreServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.stop()

    def start(self) -> None:
        """Start and wait until it accepts connections. Raises AssertionError with its output if it does not."""
        assert self._process is None, "it runs already"
        log_path = self.directory.with_name(f"{self.directory.name}.log")
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(self.command(), stdout=log, stderr=subprocess.STDOUT, cwd=self.directory)
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while not self._accepts():
            ended = self._process.poll() is not None
            assert not ended and time.monotonic() < deadline, (
                f"{self.command()[0]} did not start: {log_path.read_text()}"
            )
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """Stop it orderly and wait for its end."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None, "it does not run"
        self._process.send_signal(number)
        try:
            self._process.wait(_STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _accepts(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


class S3Server(StoreServer):
    """versitygw over a directory: a bucket is a folder, an object a file."""

    ACCESS_KEY = "test-access-key"
    SECRET_KEY = "test-secret-key"
    REGION = "us-east-1"
    ENVIRONMENT: ClassVar[dict[str, str]] = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}

    def __init__(self, directory: Path, *, keeps_versions: bool = False) -> None:
        super().__init__(directory)
        self._program = provision_versitygw()
        self._keeps_versions = keeps_versions

    def command(self) -> list[str]:
        for folder in ("buckets", "metadata", "versions"):
            (self.directory / folder).mkdir(exist_ok=True)
        keys = ["--access", self.ACCESS_KEY, "--secret", self.SECRET_KEY, "--region", self.REGION]
        # Metadata beside the objects: not every file system of a test machine has extended attributes. With them there
        # a copy over a deletion marker would stay a marker.
        sidecar = ["--sidecar", str(self.directory / "metadata")]
        versions = ["--versioning-dir", str(self.directory / "versions")]
        posix = ["posix", *(versions if self._keeps_versions else sidecar), str(self.directory / "buckets")]
        return [str(self._program), *keys, "--port", f"127.0.0.1:{self.port}", "--keep-alive", "--quiet", *posix]

    def make_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        (self.directory / "buckets" / name).mkdir()

    def client(self) -> Any:
        """Return a client of botocore, for what our own store does not do."""
        session = botocore.session.Session()
        session.set_credentials(self.ACCESS_KEY, self.SECRET_KEY)
        config = Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required")
        return session.create_client("s3", region_name=self.REGION, endpoint_url=self.endpoint, config=config)

    def keep_versions(self, bucket: str) -> None:
        """Switch versioning of a bucket on."""
        self.client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})

    def correct_version_times(self, bucket: str) -> None:
        """Have all versions tell when they were written, as S3's do.

        versitygw tells when a version was superseded, and of a deletion marker when the object before it was written.
        The version's id, a ULID, begins with the right time.
        """
        objects, versions = self.directory / "buckets" / bucket, self.directory / "versions" / bucket
        ids = {path: path.name for path in versions.rglob("*") if path.is_file()}
        for path in (each for each in objects.rglob("*") if each.is_file()):
            (attribute,) = (name for name in os.listxattr(path) if name.endswith("version-id"))
            ids[path] = os.getxattr(path, attribute).decode()
        for path, version_id in ids.items():
            seconds = _milliseconds_of_ulid(version_id) / 1000
            os.utime(path, (seconds, seconds))

    def settings(self, bucket: str, endpoint: str | None = None) -> str:
        """Return `[remote_storage]` in the form of `-c`."""
        return (
            f"{{bucket_name='{bucket}', bucket_region='{self.REGION}', prefix_in_bucket='pageserver/v1', "
            f"endpoint='{endpoint or self.endpoint}'}}"
        )


class MinioServer(S3Server):
    """MinIO: the same protocol, written by others."""

    def __init__(self, directory: Path) -> None:
        StoreServer.__init__(self, directory)
        self._program = provision_minio()

    def command(self) -> list[str]:
        # `env` since the program takes its keys from nowhere else.
        keys = [f"MINIO_ROOT_USER={self.ACCESS_KEY}", f"MINIO_ROOT_PASSWORD={self.SECRET_KEY}"]
        address = ["--address", f"127.0.0.1:{self.port}"]
        return ["env", *keys, "MINIO_BROWSER=off", str(self._program), "server", "--quiet", *address, str(self._data)]

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def make_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        (self._data / name).mkdir(parents=True)

    def correct_version_times(self, bucket: str) -> None:
        """They are right already."""


def _milliseconds_of_ulid(text: str) -> int:
    """Return the time in a ULID: its first ten characters, in Crockford's base 32."""
    value = 0
    for character in text[:10]:
        value = value * 32 + "0123456789ABCDEFGHJKMNPQRSTVWXYZ".index(character)
    return value


class AzureServer(StoreServer):
    """azurite's blob service."""

    ENVIRONMENT: ClassVar[dict[str, str]] = {
        "AZURE_STORAGE_ACCESS_KEY": AZURITE_KEY,
        "AZURE_STORAGE_ACCOUNT": AZURITE_ACCOUNT,
    }

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._azurite = provision_azurite()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/{AZURITE_ACCOUNT}"

    def command(self) -> list[str]:
        place = ["--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--location", str(self.directory)]
        return [
            str(self._azurite.node),
            str(self._azurite.script),
            "--silent",
            "--skipApiVersionCheck",
            "--disableTelemetry",
            *place,
        ]

    def make_bucket(self, name: str) -> None:
        """Make an empty container, with a request signed by the account's key."""
        version, date = "2021-08-06", formatdate(usegmt=True)
        resource = f"/{AZURITE_ACCOUNT}/{AZURITE_ACCOUNT}/{name}\nrestype:container"
        signed = f"PUT{chr(10) * 12}x-ms-date:{date}\nx-ms-version:{version}\n{resource}"
        digest = hmac.new(base64.b64decode(AZURITE_KEY), signed.encode(), hashlib.sha256).digest()
        headers = {
            "x-ms-date": date,
            "x-ms-version": version,
            "Authorization": f"SharedKey {AZURITE_ACCOUNT}:{base64.b64encode(digest).decode()}",
        }
        httpx.put(f"{self.endpoint}/{name}?restype=container", headers=headers).raise_for_status()

    def settings(self, container: str, endpoint: str | None = None) -> str:
        """Return `[remote_storage]` in the form of `-c`."""
        return (
            f"{{container_name='{container}', container_region='us', storage_account='{AZURITE_ACCOUNT}', "
            f"prefix_in_container='pageserver/v1', endpoint='{endpoint or self.endpoint}'}}"
        )


def s3_server(directory: Path, *, keeps_versions: bool = False) -> S3Server:
    """Return versitygw, or MinIO where the environment says `TEST_S3=minio`."""
    if os.environ.get("TEST_S3") == "minio":
        return MinioServer(directory)
    return S3Server(directory, keeps_versions=keeps_versions)
