"""The command `pagectl`: tables for people, `--json` for programs; a module with `register` for each group of
commands.
"""

from __future__ import annotations

import importlib

import click

from pageserver.cli.client import DEFAULT_URL, ApiClient, Session
from pageserver.cli.output import make_console
from pageserver.cli.program import ProgramGroup

COMMAND_MODULES = (
    "status",
    "tenant",
    "tenant_location",
    "timeline",
    "timeline_log",
    "server_state",
    "timeline_source",
    "page",
    "layer",
    "index_part",
    "wal",
    "restore",
    "verify",
    "redo_diff",
    "scrub",
)
"""Modules of `pageserver.cli`; each has `register(group)`, which adds its commands."""


@click.group(cls=ProgramGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--url", envvar="PAGESERVER_URL", default=DEFAULT_URL, show_default=True, help="The server's HTTP API.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.pass_context
def main(context: click.Context, url: str, as_json: bool) -> None:
    """Look at and steer a page server."""
    client = ApiClient(url)
    context.call_on_close(client.close)
    context.obj = Session(client=client, as_json=as_json, console=make_console())


def take_json_anywhere(group: click.Group) -> None:
    """Let `--json` stand behind every command, too."""
    for command in group.commands.values():
        if isinstance(command, click.Group):
            take_json_anywhere(command)
        elif all("--json" not in parameter.opts for parameter in command.params):
            command.params.append(
                click.Option(
                    ["--json"],
                    is_flag=True,
                    expose_value=False,
                    callback=_print_json,
                    help="Print JSON instead of tables.",
                )
            )


def _print_json(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Session).as_json = True


for _name in COMMAND_MODULES:
    importlib.import_module(f"pageserver.cli.{_name}").register(main)
take_json_anywhere(main)

if __name__ == "__main__":
    main()
