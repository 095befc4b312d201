"""The command `pageserver` runs the server in a working directory (http-api.md 9.1; `-c` and `--init` are ours)."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from pageserver.cli.program import Program
from pageserver.config import BuildInfo, InvalidSettingError, init_workdir, read_config


def version_text() -> str:
    """Return what Neon's server prints, with the number of the release behind it."""
    try:
        number = version("pageserver")
    except PackageNotFoundError:
        number = "unknown"
    return f'{BuildInfo.find().revision} failpoints: true, features: ["testing"], release: {number}'


@click.command(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-D",
    "--workdir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".neon"),
    show_default=True,
    help="Working directory: configuration, layers, pid file.",
)
@click.option("-c", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting; the value is TOML.")
@click.option("--init", is_flag=True, help="Write a default working directory (with the -c settings) and exit.")
@click.option("--enabled-features", is_flag=True, help="Print optional features and exit.")
@click.version_option(version_text(), "-V", "--version", message="%(version)s")
def main(workdir: Path, overrides: tuple[str, ...], init: bool, enabled_features: bool) -> None:
    """Run a page server for PostgreSQL."""
    if enabled_features:
        click.echo('{"features": ["testing"] }')
        return
    try:
        if init:
            init_workdir(workdir, overrides=overrides)
            click.echo(f"working directory is ready: {workdir}")
            return
        config = read_config(workdir, overrides)
    except (InvalidSettingError, OSError) as error:
        raise click.ClickException(str(error)) from error
    from pageserver.server import run

    sys.exit(run(config, version=version_text()))


if __name__ == "__main__":
    main()
