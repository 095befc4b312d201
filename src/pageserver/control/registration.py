"""Who we are, as the deployment's `metadata.json` says it, for the controller's registry (http-api.md 6;
remote-storage.md 2.2).
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pageserver.config import InvalidSettingError
from pageserver.remote.json_fields import parse_object, required, required_uint

METADATA_NAME = "metadata.json"
NODE_IP_VARIABLE = "HADRON_NODE_IP_ADDRESS"


def read_registration(
    workdir: Path, *, node_id: int, availability_zone: str | None, environment: Mapping[str, str], log: Any
) -> dict[str, Any] | None:
    """Return the object `register`, or None where registration is done elsewhere: no file, or one that does not parse.

    Raises OSError (the file cannot be read), InvalidSettingError (no availability zone; a node address that is none).
    """
    try:
        content = (workdir / METADATA_NAME).read_bytes()
    except FileNotFoundError:
        log.warning("no metadata.json: this node is not registered with the storage controller by itself")
        return None
    try:
        return _registration(json.loads(content), node_id, availability_zone, environment, log)
    except InvalidSettingError:
        raise
    except (ValueError, TypeError) as error:
        log.error("metadata.json does not parse: this node is not registered", error=str(error))
        return None


def _registration(
    document: object, node_id: int, availability_zone: str | None, environment: Mapping[str, str], log: Any
) -> dict[str, Any]:
    fields = parse_object(document, METADATA_NAME)
    register = {
        "node_id": node_id,
        "listen_pg_addr": _text(fields, "host"),
        "listen_pg_port": required_uint(fields, "port", bits=16),
        "listen_grpc_addr": _text(fields, "grpc_host") if fields.get("grpc_host") is not None else None,
        "listen_grpc_port": _optional_port(fields, "grpc_port"),
        "listen_http_addr": _text(fields, "http_host"),
        "listen_http_port": required_uint(fields, "http_port", bits=16),
        "listen_https_port": _optional_port(fields, "https_port"),
    }
    zone = fields.get("availability_zone_id")
    if not isinstance(zone, str):
        log.warning("metadata.json has no availability_zone_id, using the setting availability_zone")
        zone = availability_zone
    if zone is None:
        raise InvalidSettingError("availability_zone: neither metadata.json nor the configuration gives one")
    register["availability_zone_id"] = zone
    register["node_ip_addr"] = _node_address(environment)
    return register


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = required(fields, name)
    if not isinstance(value, str):
        raise ValueError(f"field `{name}` is not a text: {value!r}")
    return value


def _optional_port(fields: Mapping[str, Any], name: str) -> int | None:
    return None if fields.get(name) is None else required_uint(fields, name, bits=16)


def _node_address(environment: Mapping[str, str]) -> str | None:
    text = environment.get(NODE_IP_VARIABLE)
    if text is None:
        return None
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise InvalidSettingError(f"{NODE_IP_VARIABLE}: {text!r} is not an IP address") from error
