"""Which code is running: the release and, in a clone, the commit."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def code_version() -> str:
    """Return such as 0.1.0+628d9d6, with `.changed` where files differ from the commit."""
    try:
        release = version("symmbfn")
    except PackageNotFoundError:
        release = "0"
    commit = _git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return release
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"{release}+{commit}{'.changed' if changed else ''}"


def _git(*arguments: str) -> str:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
