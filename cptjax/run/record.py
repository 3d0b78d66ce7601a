"""run.json: what a finished run was, complete enough to write its model card from nothing else.

It names stores by their folder's last name and holds no other path, so it can travel with the model.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from cptjax.config import Run, Stretch
from cptjax.data.store import Manifest
from cptjax.files import read_json, typed
from cptjax.machine import provenance
from cptjax.run.checkpoint import ORIGIN, parameter_shapes
from cptjax.run.clock import KINDS
from cptjax.shape import ModelConfig

JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Origin:
    """Where the first weights come from: a folder, or a Hub id and its commit."""

    source: str
    revision: str | None


def describe_run(
    run: Run,
    model: ModelConfig,
    folder: Path,
    *,
    spent: Mapping[str, Any],
    departures: Sequence[Mapping[str, Any]],
    epochs: Mapping[str, float],
    tokens: Mapping[str, float],
    fill: Mapping[str, float],
    energy_by: str,
    attention: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of run.json. `spent` are the run's totals; `epochs`, `tokens` and `fill` are by store folder."""
    return {
        "name": run.name,
        "origin": _origin(folder / ORIGIN),
        "model": {**asdict(model), "parameters": parameter_count(model)},
        "phases": [describe_phase(stretch, spent["phases"][stretch.phase.name]) for stretch in run.stretches],
        "data": [
            {
                "name": Path(store).resolve().name,
                "share": share,
                "share_shown": tokens[store] / sum(tokens.values()),
                "tokens_shown": tokens[store],
                "epochs": epochs[store],
                "packing_fill": fill[store],
                **_of_manifest(Manifest.read(store)),
            }
            for store, share in run.data.shares.items()
        ],
        "sequence_length": run.data.sequence_length,
        "global_batch_size": run.data.global_batch_size,
        "tokens_per_step": run.tokens_per_step,
        "optimizer": asdict(run.optimizer),
        "precision": asdict(run.precision),
        "attention": dict(attention),
        "seeds": {"masks_and_weights": run.seed, "data": run.data.seed},
        "departures": list(departures),
        "spent": {name: value for name, value in spent.items() if name != "phases"},
        "cost": cost(spent, energy_by),
        "commit": provenance.git_commit(),
        "versions": provenance.versions(),
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }


def describe_phase(stretch: Stretch, sums: Mapping[str, Any]) -> dict[str, Any]:
    """What a phase was told, what it spent, and the evaluations at step 0 and last made in it."""
    phase, first, last = stretch
    return {
        "name": phase.name,
        "objective": asdict(phase.objective),
        "schedule": asdict(phase.schedule),
        "frozen": list(phase.frozen),
        "optimizer_state": phase.optimizer_state,
        "steps": last - first,
        "last_step": last,
        **sums,
    }


def cost(spent: Mapping[str, Any], energy_by: str) -> dict[str, Any]:
    """Hours in optimiser steps, and in all else by its kind; device hours in steps; energy of all of it, and of the
    steps, where all of it was read, on one host."""
    whole = spent["metered"] and jax.process_count() == 1
    if energy_by.startswith("NVML") and not whole:
        energy_by = "not measured in all of the run and by all of its processes"
    return {
        **{kind.replace("seconds", "hours"): spent[kind] / 3600 for kind in KINDS},
        "device_hours": spent["device_seconds"] / 3600,
        "kilowatt_hours": spent["joules"] / JOULES_PER_KWH if whole else None,
        "step_kilowatt_hours": spent["step_joules"] / JOULES_PER_KWH if whole else None,
        "energy_by": energy_by,
    }


def parameter_count(model: ModelConfig) -> int:
    """Numbers in a model, a tied table counted once."""
    return sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(model)))


def _origin(path: Path) -> dict[str, Any] | None:
    """A Hub id and its commit, or the last name of a local folder and no commit; None: from random weights."""
    if not path.is_file():
        return None
    found = typed(Origin, read_json(path), str(path), unknown="ignore")
    return asdict(found if found.revision is not None else Origin(Path(found.source).name, None))


def _of_manifest(manifest: Manifest) -> dict[str, Any]:
    return {
        "documents": manifest.documents,
        "tokens": manifest.tokens,
        "text_bytes": manifest.text_bytes,
        "dropped": manifest.dropped,
        "sources": [source.name for source in manifest.sources],
        "fingerprint": manifest.fingerprint,
    }
