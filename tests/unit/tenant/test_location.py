"""`config-v1`, to the byte (tenants.md 1.3)."""

import pytest

from pageserver.config import TenantOverrides
from pageserver.ids import Generation, ShardIdentity
from pageserver.tenant import Attached, AttachMode, LocationConfig, Secondary
from pageserver.tenant.location import LocationConfigError

EXAMPLE = """\
# This file contains a specific per-tenant's config.
#  It is read in case of pageserver restart.
[mode.Attached]
generation = 3
attach_mode = "Single"

[shard]
number = 1
count = 4
stripe_size = 2048
layout = 1

[tenant_conf]
gc_horizon = 42
pitr_interval = "7days"
"""


def test_the_example_is_written_byte_for_byte() -> None:
    assert len(EXAMPLE) == 267
    location = LocationConfig(
        Attached(Generation(3), AttachMode.SINGLE),
        ShardIdentity.new(1, 4, 2048),
        TenantOverrides.parse({"gc_horizon": 42, "pitr_interval": "7 days"}),
    )
    assert location.encode() == EXAMPLE
    assert LocationConfig.decode(EXAMPLE).encode() == EXAMPLE


def test_secondary_nested_and_unknown_settings_survive() -> None:
    overrides = TenantOverrides.parse(
        {"eviction_policy": {"kind": "OnlyImitiate", "period": "1m", "threshold": "2h"}, "future key": {"a": [1, "x"]}}
    )
    location = LocationConfig(Secondary(warm=True), ShardIdentity.unsharded(), overrides)
    again = LocationConfig.decode(location.encode())
    assert again.to_api() == location.to_api()
    assert again.overrides.to_document() == overrides.to_document()
    assert again.mode == Secondary(warm=True)


@pytest.mark.parametrize("text", ["", "[mode.Attached]", "[mode.Attached]\ngeneration=1\nattach_mode='Odd'", "x="])
def test_a_damaged_config_is_refused(text: str) -> None:
    with pytest.raises(LocationConfigError):
        LocationConfig.decode(text)


@pytest.mark.parametrize(
    "change",
    [
        ("generation = 3", "generation = 3.5"),
        ("generation = 3", "generation = true"),
        ("generation = 3", "generation = '3'"),
        ("number = 1", "number = 1.0"),
        ("stripe_size = 2048", "stripe_size = 1.5"),
        ("layout = 1", "layout = 255"),
        ('generation = 3\nattach_mode = "Single"', ""),
        ('[mode.Attached]\ngeneration = 3\nattach_mode = "Single"', "[mode.Secondary]\nwarm = 'yes'"),
    ],
)
def test_values_of_other_types_are_refused(change: tuple[str, str]) -> None:
    """Goal: a file that says what cannot be leaves its tenant unloaded, instead of stopping the server later on."""
    assert change[0] in EXAMPLE
    with pytest.raises(LocationConfigError):
        LocationConfig.decode(EXAMPLE.replace(*change))
