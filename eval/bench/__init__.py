"""What our code costs, beside its peers, in one run."""

from typing import Any

from cptjax.pool import cores
from cptjax.telemetry import git_commit, versions


def conditions(rounds: int) -> dict[str, Any]:
    """What a measurement was made with: versions, commit, rounds, cores."""
    return {"versions": versions(), "commit": git_commit(), "rounds": rounds, "cores": cores()}
