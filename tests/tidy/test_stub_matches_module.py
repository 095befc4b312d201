"""`_core.pyi` is the contract with the compiled module: it must say exactly what is there."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_stub_matches_the_compiled_module() -> None:
    """Goal: callers can trust the stub. Method: mypy's stubtest; exceptions are listed with reasons in the
    allowlist.
    """
    allowlist = Path(__file__).with_name("stubtest_allowlist.txt")
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy.stubtest",
            "pageserver._core",
            "--allowlist",
            str(allowlist),
            "--ignore-unused-allowlist",
        ],
        cwd=ROOT,
        env={"MYPYPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
