"""What this code is: its commit, and the versions of what decides its numbers."""

import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")


def versions() -> dict[str, str]:
    """Versions of the packages that decide numbers."""
    return {name: metadata.version(name) for name in PACKAGES}


def git_commit() -> str | None:
    """Commit of the code, with `+changes` when the tree differs from it; None outside a repository."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(("git", *arguments), cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
