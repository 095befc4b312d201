"""Settings: a working directory's files and the command line come in, frozen data goes out.

This room reads files and never acts on what they say. Components (clocks, stores, sockets) are made elsewhere.
"""

from pageserver.config.build import BuildInfo
from pageserver.config.durations import Duration
from pageserver.config.load import init_workdir, parse_override, parse_settings, read_config
from pageserver.config.memory import client_page_cache_bytes, open_layer_memory_bytes
from pageserver.config.settings import RemoteStorage, ServerConfig, ServerSettings
from pageserver.config.tenant import RepositoryKind, TenantOverrides, TenantSettings, Throttle
from pageserver.config.validation import InvalidSettingError

__all__ = [
    "BuildInfo",
    "Duration",
    "InvalidSettingError",
    "RemoteStorage",
    "RepositoryKind",
    "ServerConfig",
    "ServerSettings",
    "TenantOverrides",
    "TenantSettings",
    "Throttle",
    "client_page_cache_bytes",
    "init_workdir",
    "open_layer_memory_bytes",
    "parse_override",
    "parse_settings",
    "read_config",
]
