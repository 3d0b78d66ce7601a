"""A run that begins with the state of another one: which step of it, whether it fits, and what is told of it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cptjax.config import INHERITED, Branch, Run, incompatible_fields, to_dict
from cptjax.files import hash_of
from cptjax.run import checkpoint
from cptjax.schedules import phase_bounds


def branched(run: Run, folder: Path | None, step: int | None) -> Run:
    """The run, branched off a step of another one where both are given. Raises ValueError for one without the other."""
    if step is None and folder is not None:
        raise ValueError(f"--branch-from {folder} needs --step, one of {list(checkpoint.survey(folder).whole)}")
    if folder is None and step is not None:
        raise ValueError(f"--step {step} is for --branch-from; --from-step goes back in the run's own folder")
    return run if folder is None or step is None else replace(run, branch=Branch(str(folder), step))


def lineage(run: Run) -> list[dict[str, Any]]:
    """The runs that led to the step that `run` is branched off, the first one first, as `record.Parent` has them.

    Raises FileNotFoundError for a step that is not there, ValueError for a folder that is no run, a checkpoint that is
    damaged and, field by field, a run of another model or optimizer.
    """
    assert run.branch is not None
    folder, step = Path(run.branch.folder), run.branch.step
    _, _, facts = checkpoint.find(folder, step)
    if "opt_state" not in facts["checksums"]:
        raise ValueError(f"{folder} is a converted model, not a run: give it as --init")
    _check_inherited(run, folder, facts["config"])
    return [*facts.get("parents", []), _parent(folder, facts)]


def _check_inherited(run: Run, folder: Path, config: Mapping[str, Any]) -> None:
    keeps = run.phases[0].optimizer_state == "keep"
    names, now = [*INHERITED, *["optimizer"] * keeps], to_dict(run)
    changed = incompatible_fields({name: config[name] for name in names}, {name: now[name] for name in names}, ())
    if changed:
        moments = any(field.startswith("optimizer.") for field in changed)
        raise ValueError(
            f"{folder} holds a run of another model or optimizer ({'; '.join(changed)}): give the old values"
            + ", or the optimizer's moments are not kept: --phases.0.optimizer-state reset" * moments
        )


def _parent(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    config, step, spent = facts["config"], facts["step"], facts["spent"]
    data = config["data"]
    bounds = phase_bounds(
        tuple(phase["tokens"] for phase in config["phases"]), data["global_batch_size"] * data["sequence_length"]
    )
    return {
        "folder": folder.resolve().name,
        "name": config["name"],
        "step": step,
        "facts_sha256": hash_of(facts),
        "phases": [  # begun by then
            {**phase, **spent["phases"][phase["name"]], "steps": min(last, step) - first, "last_step": min(last, step)}
            for phase, (first, last) in zip(config["phases"], bounds, strict=True)
            if first < step
        ],
        "departures": facts["departures"],
        "data": [
            {"name": Path(store).resolve().name, "share": share, "fingerprint": facts["stores"][store]}
            for store, share in data["stores"]
        ],
        "spent": {name: amount for name, amount in spent.items() if name != "phases"},
    }
