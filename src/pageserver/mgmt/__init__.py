"""The HTTP management API: requests of controllers, tools and people come in, JSON goes out (http-api.md 1 to 5).

One file per group of routes. Bodies, codes and texts are Neon's; what this room decides is only how a request is read
and how an error is told.
"""

from pageserver.mgmt.app import create_app
from pageserver.mgmt.context import ApiContext

__all__ = ["ApiContext", "create_app"]
