"""The rooms of `src/pageserver` are stacked; imports only go towards the ground (docs/architecture.md)."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2] / "src" / "pageserver"

#: Floors from the ground up. Rooms on one floor do not import each other.
FLOORS: list[set[str]] = [
    {"lsn", "ids", "errors", "clock", "counts", "disk_errors", "failpoints", "turns", "_core"},
    {"config", "postgres", "keyspace", "compiled_module"},
    {"remote"},
    {"repository"},
    {"timeline"},
    {"tenant"},
    {"wal", "serve"},
    {"mgmt", "control", "observe"},
    {"server"},
    {"cli"},
]
#: Imports inside of one floor that are wanted, with the reason.
SAME_FLOOR = {
    ("ids", "errors"): "words may use each other",
    ("ids", "lsn"): "words may use each other",
    ("lsn", "errors"): "words may use each other",
    ("errors", "lsn"): "words may use each other",
    ("errors", "ids"): "words may use each other",
    ("failpoints", "errors"): "words may use each other",
    ("disk_errors", "errors"): "words may use each other",
    ("postgres", "keyspace"): "file names in a data directory are those of relation tags",
}


def floor(room: str) -> int:
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    raise AssertionError(f"{room} has no floor: add it to FLOORS and to docs/architecture.md")


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                parts = name.name.split(".")
                if parts[0] == "pageserver" and len(parts) > 1:
                    yield node.lineno, parts[1]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            parts = node.module.split(".")
            if parts[0] == "pageserver":
                if len(parts) > 1:
                    yield node.lineno, parts[1]
                else:
                    for name in node.names:
                        yield node.lineno, name.name


def test_imports_only_go_towards_the_ground() -> None:
    """Goal: a room can be read without the ones above it. Method: parse every import and compare floors."""
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room in {"__init__", "__main__"}:
            continue
        for line, other in imported_rooms(path):
            if other == room or (room, other) in SAME_FLOOR:
                continue
            if floor(other) >= floor(room):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_every_module_says_what_it_is_for() -> None:
    """Goal: a newcomer can read the tree by its first lines. Method: each module has a docstring."""
    missing = [
        str(path.relative_to(ROOT))
        for path in sorted(ROOT.rglob("*.py"))
        if ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert not missing, missing
