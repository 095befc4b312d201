"""The storage controller: who it says we are, which generations it hands out, and whether they are still current.

Requests go out over HTTP (http-api.md 6), decisions about tenants come back. Without a controller the bucket does the
same (`tenant/bucket_generations.py`, standalone.md 1).
"""

from pageserver.control.generations import ControllerGenerations
from pageserver.control.registration import read_registration
from pageserver.control.upcall import UpcallClient

__all__ = ["ControllerGenerations", "UpcallClient", "read_registration"]
