"""Which source is running (metrics.md 2)."""

from pathlib import Path

from pageserver.config import BuildInfo

_COMMIT = "7a55c0f08740fd29f91ff46bd0568cdf8fe8eb2c"


def test_the_deployment_or_the_checkout_tells_the_commit(tmp_path: Path) -> None:
    package = tmp_path / "src" / "pageserver"
    assert BuildInfo.find({}, package) == BuildInfo("git:unknown", "build_tag:")
    named = BuildInfo.find({"GIT_VERSION": _COMMIT, "BUILD_TAG": "42"}, package)
    assert named == BuildInfo(f"git-env:{_COMMIT}", "build_tag-env:42")
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert BuildInfo.find({}, package).revision == "git:unknown", "no commit yet"
    (git / "packed-refs").write_text(f"# pack-refs with: peeled\n{_COMMIT} refs/heads/main\n")
    assert BuildInfo.find({}, package).revision == f"git:{_COMMIT}"
    (git / "refs" / "heads" / "main").write_text("8" * 40 + "\n")
    assert BuildInfo.find({}, package).revision == f"git:{'8' * 40}"
    (git / "HEAD").write_text("9" * 40 + "\n")
    assert BuildInfo.find({}, package).revision == f"git:{'9' * 40}"


def test_a_worktree_has_a_head_of_its_own(tmp_path: Path) -> None:
    own = tmp_path / "repository" / "worktrees" / "other"
    (tmp_path / "repository" / "refs" / "heads").mkdir(parents=True)
    own.mkdir(parents=True)
    (tmp_path / "repository" / "refs" / "heads" / "other").write_text(f"{_COMMIT}\n")
    (own / "HEAD").write_text("ref: refs/heads/other\n")
    (own / "commondir").write_text("../..\n")
    package = tmp_path / "checkout" / "src" / "pageserver"
    package.mkdir(parents=True)
    (tmp_path / "checkout" / ".git").write_text(f"gitdir: {own}\n")
    assert BuildInfo.find({}, package).revision == f"git:{_COMMIT}"
