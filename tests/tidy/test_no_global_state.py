"""Two servers can live in one process: nothing of ours is kept in modules (style.md 3)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2] / "src" / "pageserver"

#: What has a state that changes. A module that makes one when it is imported shares it among all servers.
STATEFUL = {
    *("count", "Counter", "defaultdict", "deque", "OrderedDict", "Queue", "SimpleQueue", "Random"),
    *("Lock", "RLock", "Event", "Condition", "Semaphore", "BoundedSemaphore", "local", "ContextVar", "Thread"),
    *("ThreadPoolExecutor", "WeakValueDictionary", "WeakKeyDictionary", "WeakSet", "bytearray"),
}
CACHES = {"cache", "lru_cache", "cached_property"}
CHANGES = {
    *("add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "remove", "reverse"),
    *("setdefault", "sort", "update"),
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def name_of(node: ast.expr) -> str:
    """Return the last name of what is called or used as a decorator."""
    if isinstance(node, ast.Call):
        return name_of(node.func)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def module_names(tree: ast.Module) -> dict[str, ast.expr | None]:
    """Return what a module, or a class of it, assigns when it is imported."""
    found: dict[str, ast.expr | None] = {}
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]
    for body in bodies:
        for node in body:
            if isinstance(node, ast.Assign):
                found.update({target.id: node.value for target in node.targets if isinstance(target, ast.Name)})
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[node.target.id] = node.value
    return found


def changed_names(function: ast.AST) -> Iterator[str]:
    """Yield the names whose values a function changes in place, unless it has its own of that name."""
    own = {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    for node in ast.walk(function):
        changed: ast.expr | None = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
            changed = node.func.value
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            changed = node.value
        if isinstance(changed, ast.Name) and changed.id not in own:
            yield changed.id


def problems(tree: ast.Module) -> Iterator[str]:
    names = module_names(tree)
    for name, value in names.items():
        if isinstance(value, ast.Call) and name_of(value) in STATEFUL:
            yield f"{name} is a {name_of(value)}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield f"global {', '.join(node.names)}"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from (f"{node.name} is cached" for one in node.decorator_list if name_of(one) in CACHES)
            yield from (f"{node.name} changes {name}" for name in changed_names(node) if name in names)


def test_no_module_keeps_state() -> None:
    """Goal: components come in through constructors, so that servers and tests do not share any. Method: look for
    module-level objects with a state, caches, `global`, and functions that change what a module holds.
    """
    found = {f"{path}: {problem}" for path, tree in modules() for problem in problems(tree)}
    assert found == set()


def test_the_check_sees_what_it_looks_for() -> None:
    bad = """
import asyncio, functools
KNOWN = {}
_lock = asyncio.Lock()
class A:
    seen: set[int] = set()
@functools.cache
def f(): return 1
def g(key):
    global x
    KNOWN[key] = 1
def h(KNOWN): KNOWN.clear()
def i(): KNOWN.clear()
"""
    assert sorted(problems(ast.parse(bad))) == [
        "_lock is a Lock",
        "f is cached",
        "g changes KNOWN",
        "global x",
        "i changes KNOWN",
    ]
