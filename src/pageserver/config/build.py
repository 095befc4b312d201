"""Which source the running code was built from (metrics.md 2, 8): `git:<commit>` where the package lies in a checkout,
`git-env:<commit>` where the build or the deployment says it by `GIT_VERSION`; a tag by `BUILD_TAG`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """Both with the prefix that says where they come from."""

    revision: str
    build_tag: str

    @classmethod
    def find(cls, environment: Mapping[str, str] = os.environ, package: Path = Path(__file__).parents[1]) -> BuildInfo:
        """Look the commit up. Without a checkout and without variables it is `git:unknown`."""
        named, tag = environment.get("GIT_VERSION"), environment.get("BUILD_TAG")
        return cls(
            revision=f"git-env:{named}" if named else f"git:{_commit_of(package) or 'unknown'}",
            build_tag=f"build_tag-env:{tag}" if tag else "build_tag:",
        )


def _commit_of(package: Path) -> str | None:
    """Return the commit that is checked out where `package` is `src/pageserver`, None if that is no checkout."""
    try:
        git = package.parents[1] / ".git"
        if git.is_file():  # A worktree: the file names the directory of its own.
            git = (git.parent / git.read_text().removeprefix("gitdir:").strip()).resolve()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head
        name = head.removeprefix("ref:").strip()
        common = git / "commondir"
        shared = (git / common.read_text().strip()).resolve() if common.is_file() else git
        for directory in (git, shared):
            if (directory / name).is_file():
                return (directory / name).read_text().strip()
        packed = (line.split() for line in (shared / "packed-refs").read_text().splitlines())
        return next((words[0] for words in packed if len(words) == 2 and words[1] == name), None)
    except OSError:
        return None
