"""Whether the compiled module and the Python files beside it belong together.

Whoever updates a checkout without `make build` has new Python and an old module; what is missing then shows only when a
request needs it. `_core.pyi` is the contract between the two, so its checksum tells.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pageserver import _core
from pageserver.errors import InternalError

_STUB: Final = Path(__file__).with_name("_core.pyi")


class OutdatedModuleError(InternalError):
    """The compiled module is of another state of the sources."""


def check_compiled_module(stub: Path = _STUB) -> None:
    """Raise OutdatedModuleError if the module was compiled for another contract than `stub`. Where an installation
    leaves stubs out, nothing can be compared.
    """
    if not stub.exists():
        return
    compiled_for = getattr(_core, "compiled_stub_crc32c", int)()
    if compiled_for != _core.crc32c(stub.read_bytes()):
        raise OutdatedModuleError(
            f"{_core.__file__} was compiled for another release than the Python files beside it", hint="make build"
        )
