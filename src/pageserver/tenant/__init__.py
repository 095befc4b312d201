"""Who is attached here and how: tenant shards, their locations and states, and the timelines that they hold.

Requests of the management API come in, open timelines and files in the store go out. This room knows lifecycles; it
reads no WAL (the way in is handed to it as an object) and answers no client.
"""

from pageserver.tenant.creation_rules import (
    AncestorNotActiveError,
    BranchRefusedError,
    CreationInProgressError,
    DifferentParametersError,
)
from pageserver.tenant.location import Attached, AttachMode, LocationConfig, Secondary
from pageserver.tenant.manager import TenantManager
from pageserver.tenant.resources import PageRegistry, TenantFacts, TenantResources
from pageserver.tenant.source_slot import RootParameters, SourceSlot
from pageserver.tenant.state import TenantStatus
from pageserver.tenant.tenant import Tenant
from pageserver.tenant.tenant_errors import FencedError
from pageserver.tenant.way_in import WalSource, WayIn

__all__ = [
    "AncestorNotActiveError",
    "AttachMode",
    "Attached",
    "BranchRefusedError",
    "CreationInProgressError",
    "DifferentParametersError",
    "FencedError",
    "LocationConfig",
    "PageRegistry",
    "RootParameters",
    "Secondary",
    "SourceSlot",
    "Tenant",
    "TenantFacts",
    "TenantManager",
    "TenantResources",
    "TenantStatus",
    "WalSource",
    "WayIn",
]
