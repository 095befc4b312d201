"""Page clients while their tenant is attached anew wait, and get their pages (page-service.md 6, tenants.md 3.3)."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pageserver.keyspace.key import RelTag
from pageserver.lsn import Lsn
from tests.integration.test_page_service import message, read_until
from tests.page_server import PageServerProcess
from tests.unit.tenant.test_neon_bucket import TIMELINE, VECTOR, unpack
from tests.unit.world import TENANT

_GENERATIONS = range(2, 12)


def test_a_client_gets_every_page_while_its_tenant_is_attached_again_and_again(tmp_path: Path) -> None:
    """Goal: no answer is an error and none is wrong. A connection may end, as its timeline does; then there is another
    one at once.
    """
    with (VECTOR / "pages.jsonl").open() as file:
        pages = [json.loads(next(file)) for _ in range(200)]
    bucket = unpack(tmp_path / "bucket")
    settings = {"remote_storage": f"{{local_path='{bucket}'}}"}
    with PageServerProcess(tmp_path / "pageserver", settings=settings) as server:
        attach(server, _GENERATIONS[0])
        reader = Reader(server.pg_port, pages)
        reader.wait_for(1)
        for generation in _GENERATIONS[1:]:
            attach(server, generation)
            reader.wait_for(reader.answered + 20)
        reader.end()
        assert reader.connections <= len(_GENERATIONS), "nobody is turned away while a slot changes"
        assert not reader.wrong
        assert reader.answered > 20 * len(_GENERATIONS[1:])


def attach(server: PageServerProcess, generation: int) -> None:
    body = {"mode": "AttachedSingle", "generation": generation, "tenant_conf": {}}
    server.api("PUT", f"/v1/tenant/{TENANT}/location_config", body)


@dataclass
class Reader:
    """Reads pages one after the other in a thread until `end`; `wrong` tells what it got instead."""

    port: int
    pages: list[dict[str, Any]]
    answered: int = 0
    connections: int = 0
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait_for(self, answered: int) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self.answered >= answered or self.wrong, 60), "no page comes"

    def end(self) -> None:
        self._stop = True
        self._thread.join(60)

    def _run(self) -> None:
        try:
            while not self._stop:
                self._read_through_one_connection()
        except Exception as error:
            self.wrong.append(repr(error))
        with self._news:
            self._news.notify_all()

    def _read_through_one_connection(self) -> None:
        self.connections += 1
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            start = struct.pack(">I", 196608) + b"user\0test\0\0"
            connection.sendall(struct.pack(">I", len(start) + 4) + start)
            read_until(connection, b"Z")
            query = f"pagestream_v3 {TENANT} {TIMELINE}\0".encode()
            connection.sendall(b"Q" + struct.pack(">I", len(query) + 4) + query)
            tag, payload = message(connection)
            while tag == b"W" or not self._stop:
                page = self.pages[self.answered % len(self.pages)]
                connection.sendall(request(page))
                tag, payload = message(connection)
                if tag == b"E":
                    # The connection ends with its timeline; what it says is for the next one.
                    if b"not found" in payload:
                        self.wrong.append(payload.decode(errors="replace"))
                        self._stop = True
                    return
                if payload[0] != 102 or hashlib.sha256(payload[-8192:]).hexdigest() != page["sha256"]:
                    self.wrong.append(f"{tag!r} {payload[:200]!r} for {page}")
                    self._stop = True
                    return
                with self._news:
                    self.answered += 1
                    self._news.notify_all()


def request(page: dict[str, Any]) -> bytes:
    tag, lsn = RelTag.parse(page["rel"]), int(Lsn.parse(page["lsn"]))
    body = struct.pack(">BQQQIIIBI", 2, 1, lsn, lsn, tag.spcnode, tag.dbnode, tag.relnode, page["fork"], page["block"])
    return b"d" + struct.pack(">I", len(body) + 4) + body
