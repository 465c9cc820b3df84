"""What this is: the version, written here only, and the commit that the running files come from."""

import os
from functools import lru_cache
from pathlib import Path

VERSION = "0.1.0"

COMMIT_VARIABLE = "LARDER_COMMIT_ID"
_COMMIT_CHARACTERS = 9


@lru_cache(maxsize=1)
def commit_id() -> str:
    """The commit, shortened: from LARDER_COMMIT_ID (an image without .git), else from the checkout; or ""."""
    return (os.environ.get(COMMIT_VARIABLE) or _checked_out(Path(__file__).parent.parent / ".git"))[:_COMMIT_CHARACTERS]


def _checked_out(git_dir: Path) -> str:
    """The full id that HEAD stands for, "" where there is no readable checkout (a worktree's .git is a file)."""
    try:
        if git_dir.is_file():
            git_dir = git_dir.parent / git_dir.read_text().removeprefix("gitdir:").strip()
        head = (git_dir / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head
        return _resolve(git_dir, head.removeprefix("ref:").strip())
    except OSError:
        return ""


def _resolve(git_dir: Path, reference: str) -> str:
    common_file = git_dir / "commondir"
    common = git_dir / common_file.read_text().strip() if common_file.exists() else git_dir
    for directory in (git_dir, common):
        if (directory / reference).exists():
            return (directory / reference).read_text().strip()
    lines = (common / "packed-refs").read_text().splitlines()
    return next((line.split()[0] for line in lines if line.endswith(f" {reference}")), "")
