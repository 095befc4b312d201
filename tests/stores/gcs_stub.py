"""A stub of Google Cloud Storage, written by us because no usable emulator exists in the package registries.

It knows just the calls of the XML API that `obstore` makes, in memory: PUT, GET (ranges, If-None-Match), HEAD, DELETE,
copy by `x-goog-copy-source`, ListObjectsV2 in pages, multipart uploads, and `x-goog-if-generation-match: 0` for a
conditional create. So the tests against it show that our code and the library agree about these calls; that Google's
service answers like this is a belief taken from its documentation.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import uuid
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

TOKEN = "test-token"
"""The bearer token that the stub takes (`GOOGLE_BEARER_TOKEN`)."""
_PAGE_MAX = 1000


@dataclass(frozen=True, slots=True)
class _Object:
    content: bytes
    metadata: dict[str, str]
    modified: str = field(default_factory=lambda: formatdate(usegmt=True))

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.content).hexdigest()}"'


class GcsStub:
    """A server on a free port of the loopback with one lock around everything."""

    ENVIRONMENT: ClassVar[dict[str, str]] = {"GOOGLE_BEARER_TOKEN": TOKEN}

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, _Object]] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.upload_metadata: dict[str, dict[str, str]] = {}
        self.lock = threading.Lock()
        stub = self

        class Handler(_Handler):
            owner = stub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def make_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        self.buckets[name] = {}

    def settings(self, bucket: str, endpoint: str | None = None) -> str:
        """Return `[remote_storage]` in the form of `-c`."""
        return f"{{bucket_name='{bucket}', prefix_in_bucket='/pageserver/v1/', endpoint='{endpoint or self.endpoint}'}}"

    def __enter__(self) -> GcsStub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    owner: GcsStub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        bucket_name, _, key = unquote(url.path).lstrip("/").partition("/")
        with self.owner.lock:
            bucket = self.owner.buckets.get(bucket_name)
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._fail(401, "AuthenticationRequired")
            elif bucket is None:
                self._fail(404, "NoSuchBucket")
            elif not key:
                self._list(bucket_name, bucket, query)
            elif "uploadId" in query or "uploads" in query:
                self._multipart(bucket, key, query, body)
            elif self.command == "PUT":
                self._put(bucket, key, body)
            elif key not in bucket:
                self._fail(404, "NoSuchKey")
            elif self.command == "DELETE":
                del bucket[key]
                self._answer(204)
            else:
                self._get(bucket[key])

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_any

    def _put(self, bucket: dict[str, _Object], key: str, body: bytes) -> None:
        if self.headers.get("x-goog-if-generation-match") == "0" and key in bucket:
            self._fail(412, "PreconditionFailed")
            return
        source = self.headers.get("x-goog-copy-source")
        if source is None:
            bucket[key] = _Object(body, self._metadata())
        else:
            original = bucket.get(unquote(source).partition("/")[2])
            if original is None:
                self._fail(404, "NoSuchKey")
                return
            bucket[key] = _Object(original.content, original.metadata)
        self._answer(200, {"ETag": bucket[key].etag, "x-goog-generation": "1"})

    def _get(self, found: _Object) -> None:
        if self.headers.get("If-None-Match") == found.etag:
            self._answer(304)
            return
        headers = {"ETag": found.etag, "Last-Modified": found.modified, "x-goog-generation": "1", **found.metadata}
        wanted = self.headers.get("Range")
        if wanted is None:
            self._answer(200, headers, found.content)
            return
        start, _, last = wanted.removeprefix("bytes=").partition("-")
        content = found.content[int(start) : int(last) + 1 if last else None]
        end = int(start) + len(content) - 1
        self._answer(206, {**headers, "Content-Range": f"bytes {start}-{end}/{len(found.content)}"}, content)

    def _list(self, name: str, bucket: dict[str, _Object], query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        after = query.get("continuation-token") or query.get("start-after", "")
        size = min(int(query.get("max-keys", _PAGE_MAX)), _PAGE_MAX)
        lines: list[str] = []
        directories: set[str] = set()
        token, last = None, ""
        for key in sorted(key for key in bucket if key.startswith(prefix) and key > after):
            if len(lines) + len(directories) == size:
                token = last
                break
            last = key
            rest, found, _ = key.removeprefix(prefix).partition(delimiter) if delimiter else (key, "", "")
            if found:
                directories.add(prefix + rest + found)
                last = prefix + rest + found + "\uffff"
                continue
            item = bucket[key]
            lines.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>{escape(item.etag)}</ETag><Size>{len(item.content)}</Size></Contents>"
            )
        lines += [f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in sorted(directories)]
        more = "" if token is None else f"<NextContinuationToken>{escape(token)}</NextContinuationToken>"
        self._answer(
            200, {}, f"<ListBucketResult><Name>{name}</Name>{''.join(lines)}{more}</ListBucketResult>".encode()
        )

    def _multipart(self, bucket: dict[str, _Object], key: str, query: dict[str, str], body: bytes) -> None:
        upload = query.get("uploadId", "")
        if "uploads" in query:
            upload = uuid.uuid4().hex
            self.owner.uploads[upload] = {}
            self.owner.upload_metadata[upload] = self._metadata()
            text = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            self._answer(200, {}, text.encode())
        elif self.command == "PUT":
            self.owner.uploads[upload][int(query["partNumber"])] = body
            self._answer(200, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})
        elif self.command == "DELETE":
            self.owner.uploads.pop(upload, None)
            self._answer(204)
        else:
            parts = self.owner.uploads.pop(upload)
            content = b"".join(parts[number] for number in sorted(parts))
            bucket[key] = _Object(content, self.owner.upload_metadata.pop(upload))
            text = f"<ETag>{escape(bucket[key].etag)}</ETag>"
            self._answer(200, {}, f"<CompleteMultipartUploadResult>{text}</CompleteMultipartUploadResult>".encode())

    def _metadata(self) -> dict[str, str]:
        return {name: value for name, value in self.headers.items() if name.lower().startswith("x-goog-meta-")}

    def _fail(self, status: int, code: str) -> None:
        self._answer(status, {}, f"<Error><Code>{code}</Code><Message>as the stub sees it</Message></Error>".encode())

    def _answer(self, status: int, headers: dict[str, str] | None = None, content: bytes = b"") -> None:
        self.send_response_only(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):  # clients may go when they have seen the status
                self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 — the base class names it
        """Say nothing."""
