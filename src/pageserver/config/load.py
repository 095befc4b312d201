"""Reading a working directory's configuration: `identity.toml`, `pageserver.toml`, and `-c key=value` over it
(http-api.md 9.1).

Errors in known keys stop the start and name the key. Unknown keys never do: the file and the binary are rolled out and
back separately; they are returned as `ignored_items` for a warning and a metric each.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import ValidationError

from pageserver.config.settings import ServerConfig, ServerSettings
from pageserver.config.tenant import TenantOverrides, TenantSettings
from pageserver.config.validation import InvalidSettingError, describe

DEFAULT_NODE_ID = 1
_STORE_KINDS = {"local_path": "local", "bucket_name": "bucket", "container_name": "container"}
DEFAULT_SETTINGS_TEXT = """\
# Settings of this page server. Everything has a default; docs/operations.md tells about running a server.
listen_pg_addr = '127.0.0.1:64000'
listen_http_addr = '127.0.0.1:9898'

# 'native-first': the server replays WAL itself, and a PostgreSQL process what it does not know. 'process-only': the
# process replays everything, slowly.
# redo = 'native-first'

# Where layers and indices are kept for good. Without this table, this directory is the only copy.
# [remote_storage]
# local_path = 'bucket'

# Where to find PostgreSQL, by major version (for WAL redo of what the server does not replay itself).
# [pg_installations]
# 16 = '/usr/lib/postgresql/16'

# Programs to take for that process, by major version: a postgres that knows --wal-redo, such as Neon's.
# [redo_programs]
# 16 = '/opt/neon/v16/bin/postgres'
"""


def read_config(workdir: Path, overrides: Sequence[str] = ()) -> ServerConfig:
    """Read the configuration of `workdir`, with `-c` overrides on top. Raises InvalidSettingError, OSError."""
    workdir = workdir.resolve()
    settings_path = workdir / "pageserver.toml"
    document = _read_toml(settings_path)
    for override in overrides:
        document = _merged(document, parse_override(override))
    settings = parse_settings(document)
    return ServerConfig(
        workdir=workdir,
        node_id=_read_identity(workdir / "identity.toml"),
        settings=settings,
        ignored_items=tuple(find_ignored_items(document, settings)),
    )


def parse_settings(document: Mapping[str, Any]) -> ServerSettings:
    """Check a parsed `pageserver.toml`. Raises InvalidSettingError naming the key."""
    try:
        return ServerSettings.model_validate(document)
    except ValidationError as error:
        raise InvalidSettingError(describe(error)) from error


def parse_override(text: str) -> dict[str, Any]:
    """Parse one `-c` argument: `key = value` in TOML, dotted keys allowed. Raises InvalidSettingError."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidSettingError(
            f"cannot parse override {text!r}: {error}; HINT: write key=value in TOML, with quotes around texts"
        ) from error


def find_ignored_items(document: Mapping[str, Any], settings: ServerSettings) -> list[str]:
    """Return the dotted paths of all scalar leaves of the file that the server does not know, sorted."""
    written = settings.model_dump(mode="json", exclude_unset=True)
    tenant = TenantOverrides.parse(settings.tenant_config)
    written["tenant_config"] = tenant.known()
    known = set(_leaves(written, ""))
    for name, table in document.get("tenant_config", {}).items():
        if name in TenantSettings.model_fields and not isinstance(table, Mapping):
            known.update(_leaves({name: table}, "tenant_config"))
    return sorted(set(_leaves(document, "")) - known)


def init_workdir(workdir: Path, *, node_id: int = DEFAULT_NODE_ID, overrides: Sequence[str] = ()) -> None:
    """Write a default working directory (`--init`, an extension of ours). Existing files are kept. Raises OSError.

    `overrides` become settings of the new file. Raises InvalidSettingError before anything is written.
    """
    settings = tomlkit.parse(DEFAULT_SETTINGS_TEXT)
    for override in overrides:
        _update(settings, parse_override(override))
    text = tomlkit.dumps(settings)
    parse_settings(tomllib.loads(text))
    workdir.mkdir(parents=True, exist_ok=True)
    for name, content in (("identity.toml", f"id={node_id}\n"), ("pageserver.toml", text)):
        try:
            with (workdir / name).open("x", encoding="utf-8") as file:
                file.write(content)
        except FileExistsError:
            continue


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InvalidSettingError(
            f"could not read {path}: no such file; HINT: pageserver --init -D {path.parent} writes one"
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettingError(f"could not parse {path}: {error}") from error


def _read_identity(path: Path) -> int:
    """Read the node id. Source: remote-storage.md 2.2: missing, unreadable or not a plain file means no start."""
    if not path.is_file():
        raise InvalidSettingError(f"Pageserver could not read identity file: {path}: no such file")
    node_id = _read_toml(path).get("id")
    if not isinstance(node_id, int) or isinstance(node_id, bool) or node_id < 0:
        raise InvalidSettingError(f"Pageserver could not read identity file: {path}: id must be an unsigned integer")
    return node_id


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = {} if _is_another_store(base, over) else dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _is_another_store(base: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    """Return whether both describe object storage, of different kinds: the keys present choose the kind, so a mixture
    of two could be one that nobody asked for.
    """
    kinds = [{_STORE_KINDS[key] for key in table if key in _STORE_KINDS} for table in (base, over)]
    return all(kinds) and kinds[0].isdisjoint(kinds[1])


def _update(base: MutableMapping[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        below = base.get(key)
        if isinstance(below, MutableMapping) and isinstance(value, Mapping):
            _update(below, value)
        else:
            base[key] = value


def _leaves(value: object, path: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _leaves(below, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _leaves(below, f"{path}.[{index}]")
    else:
        yield path
