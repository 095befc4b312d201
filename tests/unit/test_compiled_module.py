"""A compiled module that does not belong to the Python files is noticed at the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageserver import compiled_module
from pageserver.compiled_module import OutdatedModuleError, check_compiled_module


def test_the_module_of_this_checkout_fits() -> None:
    check_compiled_module()


def test_a_module_of_another_state_is_refused_with_a_hint(tmp_path: Path) -> None:
    stub = tmp_path / "_core.pyi"
    stub.write_bytes(compiled_module._STUB.read_bytes() + b"\ndef newer() -> int: ...\n")
    with pytest.raises(OutdatedModuleError, match=r"compiled for another release.*HINT: make build"):
        check_compiled_module(stub)


def test_without_a_stub_nothing_is_compared(tmp_path: Path) -> None:
    check_compiled_module(tmp_path / "_core.pyi")
