"""Failpoints: named instants at which a test makes the server fail, wait or end (http-api.md 11; remote-storage.md 21).

    actions = term {"->" term}        term = [percent "%"] [count "*"] task ["(" argument ")"]

The code says `await failpoints.fail("before-upload-layer")` where that may happen; the test says what happens there,
with `PUT /v1/failpoints` or `FAILPOINTS=name=actions;name=actions`. Reached, a point does the first of its terms whose
count is not used up and whose percentage hits. Three kinds of points differ in what `return` means:

    fail    raises the point's error                     sleep   `return(ms)` waits so long
    pause   nothing; `pause` is what it is made for

A term `exit` ends the process with code 1 at once, as a crash would: no `finally` runs, nothing is flushed.

One registry belongs to one server and is handed down; what is not told otherwise gets one of its own that is off and
costs a look into an empty dictionary. All calls are made on the event loop, so a change and a point that is reached
never overlap. `docs/failpoints.md` lists where each name lies.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Any

from pageserver.errors import InternalError, RequestError

EXIT_CODE = 1
_TERM = re.compile(r"(?:(\d+(?:\.\d+)?)%)?(?:(\d+)\*)?([a-z]+)(?:\(([^()]*)\))?")


class FailpointSyntaxError(RequestError):
    """400: the actions of a failpoint do not follow the grammar."""


class FailpointsOffError(RequestError):
    """400: this server was started without `testing_apis`."""

    def __init__(self) -> None:
        super().__init__("Cannot manage failpoints because pageserver was compiled without testing APIs")


class FailpointError(InternalError):
    """A test asked for a failure here."""


class FailpointPanicError(RuntimeError):
    """A test asked for a failure that nobody expects: none of our kinds, as a bug would be."""


class Task(Enum):
    """What happens where a point is reached. `delay` keeps a thread busy in Neon; here it waits like `sleep`, since the
    only thread it could block is the one that serves everybody.
    """

    OFF = "off"
    RETURN = "return"
    SLEEP = "sleep"
    PANIC = "panic"
    PRINT = "print"
    PAUSE = "pause"
    YIELD = "yield"
    DELAY = "delay"
    EXIT = "exit"


_NEEDS_MILLISECONDS = {Task.SLEEP, Task.DELAY}


@dataclass(slots=True)
class Term:
    """One term; `left` counts down, None is without end. `percent` is how often it acts."""

    task: Task
    argument: str = ""
    percent: float = 100.0
    left: int | None = None


def parse_actions(text: str) -> list[Term]:
    """Read `1*return->sleep(10)` and the like. Raises FailpointSyntaxError."""
    return [_parse_term(term.strip(), text) for term in text.split("->")]


def parse_environment(text: str) -> list[tuple[str, str]]:
    """Read `name=actions;name=actions`. Raises FailpointSyntaxError."""
    found: list[tuple[str, str]] = []
    for item in filter(None, (item.strip() for item in text.split(";"))):
        name, equals, actions = item.partition("=")
        if not equals or not name.strip():
            raise FailpointSyntaxError(f"failpoint {item!r}: expected name=actions")
        found.append((name.strip(), actions))
    return found


class Failpoints:
    """The failpoints of one server."""

    def __init__(
        self, log: Any, *, random: Random | None = None, end_process: Callable[[int], object] = os._exit
    ) -> None:
        self.is_enabled = True
        self._log = log
        self._random = random or Random()
        self._end_process = end_process
        self._points: dict[str, list[Term]] = {}
        self._changed: dict[str, asyncio.Event] = {}

    @classmethod
    def off(cls) -> Failpoints:
        """Return a registry that takes no configuration."""
        failpoints = cls(None)
        failpoints.is_enabled = False
        return failpoints

    def configure(self, name: str, actions: str) -> None:
        """Set what `name` does from now on; whoever is paused there goes on. Any name is taken.

        Raises: FailpointsOffError, FailpointSyntaxError.
        """
        if not self.is_enabled:
            raise FailpointsOffError
        terms = parse_actions(actions)
        self._log.info(f"cfg failpoint: {name} {actions}")
        if all(term.task is Task.OFF for term in terms):
            self._points.pop(name, None)
        else:
            self._points[name] = terms
        changed = self._changed.pop(name, None)
        if changed is not None:
            changed.set()

    async def fail(
        self, name: str, *, text: str = "failpoint {}", error: Callable[[str], Exception] = FailpointError
    ) -> None:
        """Raise `error` if the point says `return`; `text` is filled with the name."""
        if await self.reach(name) is not None:
            raise error(text.format(name))

    async def pause(self, name: str, *, unless: asyncio.Event | None = None) -> None:
        """Wait as long as the point says `pause`, but not after `unless` is set. Cancellation: safe."""
        await self.reach(name, unless=unless)

    async def sleep(self, name: str) -> None:
        """Wait for the milliseconds of `return(ms)`. Cancellation: safe."""
        argument = await self.reach(name)
        if argument is not None:
            await asyncio.sleep(_milliseconds(argument, name) / 1000)

    async def reach(self, name: str, *, unless: asyncio.Event | None = None) -> str | None:
        """Do what `name` is configured for. Returns the argument of a `return`, None if there is nothing to return."""
        terms = self._points.get(name)
        term = None if terms is None else next(filter(self._acts, terms), None)
        if term is None:
            return None
        match term.task:
            case Task.RETURN:
                return term.argument
            case Task.PAUSE:
                await self._pause(name, unless)
            case Task.SLEEP | Task.DELAY:
                await asyncio.sleep(_milliseconds(term.argument, name) / 1000)
            case Task.YIELD:
                await asyncio.sleep(0)
            case Task.PRINT:
                self._log.info(f"failpoint {name} {term.argument}".rstrip())
            case Task.PANIC:
                raise FailpointPanicError(f"failpoint {name} panic {term.argument}".rstrip())
            case Task.EXIT:
                self._log.info(f"failpoint {name}: exit")
                self._end_process(EXIT_CODE)
            case Task.OFF:
                pass  # a term that says for how long nothing happens: `3*off->exit`
        return None

    def _acts(self, term: Term) -> bool:
        if term.left == 0 or (term.percent < 100 and self._random.uniform(0, 100) >= term.percent):
            return False
        if term.left is not None:
            term.left -= 1
        return True

    async def _pause(self, name: str, unless: asyncio.Event | None) -> None:
        self._log.info(f"at failpoint {name}")
        changed = self._changed.setdefault(name, asyncio.Event())
        waiting = [asyncio.ensure_future(event.wait()) for event in (changed, unless) if event is not None]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)


def _parse_term(text: str, actions: str) -> Term:
    match = _TERM.fullmatch(text)
    if match is None or match[3] not in {task.value for task in Task}:
        raise FailpointSyntaxError(f"failpoint actions {actions!r}: cannot read {text!r}")
    percent, count, task, argument = match.groups()
    term = Term(Task(task), argument or "", float(percent or 100), None if count is None else int(count))
    if term.percent > 100:
        raise FailpointSyntaxError(f"failpoint actions {actions!r}: {percent}% is more than always")
    if term.task in _NEEDS_MILLISECONDS and not term.argument.isdecimal():
        raise FailpointSyntaxError(f"failpoint actions {actions!r}: {task} needs milliseconds")
    return term


def _milliseconds(argument: str, name: str) -> int:
    """Raises FailpointSyntaxError, at the point: only there it is known that `return` needs a time."""
    if not argument.isdecimal():
        raise FailpointSyntaxError(f"failpoint {name} needs return(milliseconds), not return({argument})")
    return int(argument)
