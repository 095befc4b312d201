"""Programs that end when their work is done, without taking the interpreter apart.

The library that speaks to object stores keeps threads of its own. Now and then one of them still holds Python objects
when the interpreter goes, and the process aborts: `pagectl scrub` printed its whole report and ended with signal 6. A
program has nothing left to do then but to write out what it printed, so it does that and ends.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any, Final, NoReturn

import click

from pageserver.errors import PageServerError

_STOPPED_BY: Final = (signal.SIGTERM, signal.SIGHUP)


class Program(click.Command):
    """A command that is called as a program, rather than by its `main`, ends the process."""

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        try:
            self.main(*args, **kwargs)
        except SystemExit as ended:
            end_process(ended.code)
        end_process(0)


class ProgramGroup(Program, click.Group):
    """The same for a group of commands. What stops it leaves nothing half done behind, and errors are told in a line.

    SIGTERM and SIGHUP unwind the stack as an error does, so that what a command began is removed, and end the process
    with 128 and the signal's number.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        for number in _STOPPED_BY:
            signal.signal(number, _unwind)
        super().__call__(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (PageServerError, OSError) as error:
            raise click.ClickException(str(error)) from error


def _unwind(number: int, _frame: FrameType | None) -> NoReturn:
    # Another signal must not break off what this one has removed.
    for another in _STOPPED_BY:
        signal.signal(another, signal.SIG_IGN)
    raise SystemExit(128 + number)


def end_process(code: object) -> NoReturn:
    """End as `sys.exit` would: None is success, a number is the status, anything else is a message."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    status = code or 0
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            status = status or 1
    os._exit(status)
