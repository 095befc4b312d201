"""`docs/http-api.md` lists the routes of the server, no more and no fewer, with tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi.routing import APIRoute

from pageserver.mgmt.routes import ROUTERS

ROOT = Path(__file__).parents[2]
FILES = {
    "A": "tests/unit/mgmt/test_archival_http.py",
    "C": "tests/unit/mgmt/test_creation_http.py",
    "D": "tests/unit/mgmt/test_openapi.py",
    "F": "tests/unit/mgmt/test_failpoints_http.py",
    "H": "tests/unit/mgmt/test_http.py",
    "L": "tests/unit/mgmt/test_layer_routes.py",
    "N": "tests/unit/mgmt/test_name_routes.py",
    "O": "tests/integration/test_object_repository_with_real_histories.py",
    "P": "tests/unit/mgmt/test_conformance.py",
    "R": "tests/integration/test_restore_and_verify.py",
    "S": "tests/integration/test_source_changes.py",
    "T": "tests/stores/test_time_travel.py",
}
ROW = re.compile(r"\| (?P<method>[A-Z]+) `(?P<path>[^`]+)`[^|]* \| [^|]+ \| (?P<tests>[^|]+) \|")
TEST = re.compile(r"([A-Z]) `(test_\w+)`")


def rows() -> list[re.Match[str]]:
    lines = (ROOT / "docs" / "http-api.md").read_text().partition("\n## ")[0].splitlines()
    table = [line for line in lines if line.startswith("| ") and not line.startswith("| route")]
    found = [ROW.fullmatch(line) for line in table]
    return [row for row in found if row is not None] if all(found) else []


def shape(path: str) -> str:
    """Return a path with parameters that have no names, since the document shortens them."""
    return re.sub(r"\{\w+\}", "{}", path.removeprefix("/v1"))


def test_all_routes_are_listed() -> None:
    built = sorted(
        (method, shape(route.path))
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute) and route.include_in_schema
        for method in route.methods or ()
    )
    assert sorted((row["method"], shape(row["path"])) for row in rows()) == built


def test_their_tests_exist() -> None:
    sources = {letter: (ROOT / file).read_text() for letter, file in FILES.items()}
    for row in rows():
        named = TEST.findall(row["tests"])
        assert named, row["path"]
        for letter, test in named:
            assert f"def {test}(" in sources[letter], test
