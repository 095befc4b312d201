"""Which answers of the 500s are prescribed: the table "Server errors" of docs/http-api.md."""

from __future__ import annotations

import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "http-api.md"
HEADING = "## Server errors"
_ROW = re.compile(r"\| (?P<routes>.+?) \| (?P<codes>[0-9, ]+) \| (?P<why>.+) \|")
_ROUTE = re.compile(r"(?P<method>[A-Z]+) `(?P<path>[^`]+)`")
EVERY_TENANT_ROUTE = "every route with `{t}`"


def shape(path: str) -> str:
    """Return a path with parameters that have no names, since the document shortens them."""
    return re.sub(r"\{\w+\}", "{}", path.removeprefix("/v1"))


def prescribed() -> dict[tuple[str, str], set[int]]:
    """Return codes by method and shape of the path; those of every tenant route under ("*", "*").

    Raises AssertionError for a row that does not read.
    """
    section = DOCUMENT.read_text().partition(HEADING)[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| route")]
    assert rows, f"no table under {HEADING}"
    found: dict[tuple[str, str], set[int]] = {}
    for line in rows:
        row = _ROW.fullmatch(line)
        assert row is not None, line
        codes = {int(code) for code in row["codes"].split(",")}
        routes = [("*", "*")] if EVERY_TENANT_ROUTE in row["routes"] else _named(row["routes"])
        for route in routes:
            found.setdefault(route, set()).update(codes)
    return found


def is_prescribed(codes: dict[tuple[str, str], set[int]], method: str, path: str, status: int) -> bool:
    """Return whether a route may answer so. `path` is the route's, with parameters in braces."""
    everywhere = codes.get(("*", "*"), set()) if "{tenant" in path else set()
    return status in codes.get((method, shape(path)), set()) | everywhere


def _named(text: str) -> list[tuple[str, str]]:
    routes = [(route["method"], shape(route["path"])) for route in _ROUTE.finditer(text)]
    assert routes, text
    return routes
