"""What this code is: its commit, and the versions of what decides its numbers."""

import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from cptjax import __version__

SOURCES = tuple(f":/{package}/*.py" for package in ("cptjax", "configs", "convert", "eval"))  # as git names them
PACKAGES = ("cptjax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str | None]:
    """Versions of packages, by default of those that decide numbers; None of one that is not there."""
    return {name: _version(name) for name in packages}


def _version(package: str) -> str | None:
    if package == "cptjax":
        return __version__  # of this code, whatever is installed beside it
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Commit of the code, with `+changes` when a file that git keeps differs from it, or a source is new: runs and
    stores that lie beside it are no part of the code. None where git does not keep it: outside a repository, or
    installed inside of somebody else's."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ("git", *arguments)
        return subprocess.run(command, cwd=here.parent, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        changes = git("status", "--porcelain", "--untracked-files=no")
        new = git("ls-files", "--others", "--exclude-standard", "--", *SOURCES)
        return git("rev-parse", "HEAD") + ("+changes" if changes or new else "")
    except (OSError, subprocess.CalledProcessError):
        return None
