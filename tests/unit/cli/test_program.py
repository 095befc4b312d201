"""How a program ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.page_server import SOURCES


@pytest.mark.parametrize(
    ("body", "status", "output", "errors"),
    [
        ("click.echo('done')", 0, "done\n", ""),
        ("print('part'); raise SystemExit(3)", 3, "part\n", ""),
        ("raise click.ClickException('no')", 1, "", "Error: no\n"),
        ("sys.exit('why')", 1, "", "why\n"),
    ],
)
def test_a_program_ends_with_its_status_and_all_that_it_printed(
    body: str, status: int, output: str, errors: str
) -> None:
    """Into pipes, which are not flushed line by line. What the interpreter would still do at its end is not done."""
    program = f"""
import atexit, sys
import click
from pageserver.cli.program import Program

@click.command(cls=Program)
def main():
    atexit.register(print, "taken apart")
    {body}

main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(SOURCES)},
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, output, errors)


def test_the_commands_are_programs() -> None:
    for name in ("pagectl", "pageserver"):
        done = subprocess.run(
            [sys.executable, "-m", f"pageserver.cli.{name}", "--help"],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(SOURCES)},
            timeout=60,
            check=False,
        )
        assert done.returncode == 0
        assert "Usage:" in done.stdout
