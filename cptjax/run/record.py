"""run.json: what a finished run was, complete enough to write its model card from nothing else.

`Record` is all of it, field by field. It names stores by their folder's last name and holds no other path, so it can
travel with the model.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import jax
from pydantic import Field

from cptjax.config import Run, Stretch
from cptjax.data.store import Described, Manifest
from cptjax.dropout import Dropout
from cptjax.families import NETWORKS, shape_of
from cptjax.files import read_json, typed
from cptjax.machine import provenance
from cptjax.objectives import Objective
from cptjax.optim import AdamW
from cptjax.run.checkpoint import ORIGIN, parameter_shapes
from cptjax.run.clock import KINDS
from cptjax.schedules import Schedule
from cptjax.shape import ModelConfig, Precision

JOULES_PER_KWH = 3.6e6

# Each number within what its unit allows.
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, le=1e18)]
Count = Annotated[int, Field(ge=0, le=10**18)]
Some = Annotated[int, Field(ge=1, le=10**18)]

# A model is its shape, of whichever family, and its size.
MODELS: dict[type[ModelConfig], Any] = {
    shape: make_dataclass("Model", [("parameters", Some, 1)], bases=(shape,), frozen=True) for shape in NETWORKS
}
Model = TypeVar("Model", bound=ModelConfig)


@dataclass(frozen=True)
class Origin:
    """Where the first weights come from: a folder, or a Hub id and its commit."""

    source: str
    revision: str | None


@dataclass(frozen=True)
class Measured:
    """The loss, in nats, and the accuracy on held-out text under one objective."""

    loss: Amount
    accuracy: Share


@dataclass(frozen=True)
class Told:
    """What a phase was told to do."""

    name: str
    objective: Objective
    schedule: Schedule
    frozen: tuple[str, ...]
    optimizer_state: Literal["keep", "reset"]
    steps: Count
    last_step: Count


@dataclass(frozen=True)
class Sums:
    """What a run or a phase spent: tokens by kind, seconds by the kinds of `clock`, joules."""

    tokens: Amount
    targets: Amount
    overflow: Amount  # positions chosen beyond the mask budget
    seconds: Amount
    waiting_seconds: Amount
    evaluation_seconds: Amount
    saving_seconds: Amount
    compiling_seconds: Amount
    joules: Amount
    step_joules: Amount


@dataclass(frozen=True)
class Results:
    """Evaluations by the phase whose objective it is: the one at step 0, and the last made in a phase."""

    held_out_before: dict[str, Measured] | None
    held_out: dict[str, Measured] | None


@dataclass(frozen=True)
class Phase(Results, Sums, Told):
    """What a phase was told, what it spent, and its evaluations."""


@dataclass(frozen=True)
class Spent(Sums):
    """The sums of a whole run."""

    device_seconds: Amount  # of steps
    metered: bool  # whether the energy of all of it was read
    evaluated: Annotated[int, Field(ge=-1, le=10**18)]  # steps made before the last evaluation
    skipped: tuple[Count, ...]  # steps that changed nothing: not finite, or left out


@dataclass(frozen=True)
class ShownSource(Described):
    """A source of a token store: what the store holds of it, and its share of all tokens that were shown."""

    documents: Count
    tokens: Count
    share_shown: Share


@dataclass(frozen=True)
class Corpus:
    """A token store, and how much of it was shown."""

    name: str
    share: Annotated[float, Field(ge=1e-12, le=1e18)]  # of any scale: what counts is their ratio
    share_shown: Share
    tokens_shown: Amount
    epochs: Amount
    packing_fill: Share
    documents: Count
    tokens: Count
    text_bytes: Count
    dropped: dict[str, Count]  # documents by reason
    sources: list[ShownSource | str]  # runs of before they were described have names
    fingerprint: str


@dataclass(frozen=True)
class Attention:
    """The backend of attention, why it, and by how much it erred on this device, by mask."""

    backend: str
    reason: str
    errors: dict[str, dict[str, Amount]]


@dataclass(frozen=True)
class Seeds:
    """The seeds of a run's draws."""

    masks_and_weights: int
    data: int


@dataclass(frozen=True)
class Departure:
    """A step that the run went back to, when, and the settings that it then changed."""

    step: Count
    time: str
    changed: list[str]


@dataclass(frozen=True)
class Read:
    """A token store that a parent read."""

    name: str
    share: Annotated[float, Field(ge=1e-12, le=1e18)]
    fingerprint: str


@dataclass(frozen=True)
class Parent:
    """The run that another one was branched off, and all that it was by then."""

    folder: str  # its last name
    name: str
    step: Count
    facts_sha256: str  # as they stand in its checkpoint
    phases: list[Phase]
    departures: list[Departure]
    data: list[Read]
    spent: Spent


@dataclass(frozen=True)
class Cost:
    """Hours in optimiser steps, and in all else by its kind; device hours in steps; energy of all, and of the steps."""

    hours: Amount
    waiting_hours: Amount
    evaluation_hours: Amount
    saving_hours: Amount
    compiling_hours: Amount
    device_hours: Amount
    kilowatt_hours: Amount | None
    step_kilowatt_hours: Amount | None
    energy_by: str


@dataclass(frozen=True)
class Record(Generic[Model]):
    """All that run.json holds; `Model` is one of MODELS."""

    name: str
    origin: Origin | None
    model: Model
    phases: list[Phase]
    data: list[Corpus]
    sequence_length: Some
    global_batch_size: Some
    tokens_per_step: Some
    optimizer: AdamW
    precision: Precision
    dropout: Dropout  # no share is None
    attention: Attention
    seeds: Seeds
    first_batch: Count  # batches passed over before the first step
    departures: list[Departure]
    parents: list[Parent]  # the first run of its line first
    spent: Spent
    cost: Cost
    commit: str | None
    versions: dict[str, str | None]  # None: not installed
    python: str
    device: str
    devices: Some
    processes: Some

    def __post_init__(self):
        names = {phase.name for phase in self.phases}
        for phase in self.phases:
            for results in (phase.held_out_before, phase.held_out):
                if results is not None and (lacking := names - results.keys()):
                    raise ValueError(f"phases: an evaluation in {phase.name} lacks {', '.join(sorted(lacking))}")
                if results is not None and (strange := results.keys() - names):
                    raise ValueError(f"phases: an evaluation in {phase.name} is of no phase: {min(strange)}")


def record_of(written: Mapping[str, Any]) -> Any:
    """The Record that a run.json should be: of the family that it names. Raises ValueError for one that is unknown."""
    model = written.get("model")
    return Record[MODELS[shape_of(model.get("model_type") if isinstance(model, dict) else None)]]


def describe_run(
    run: Run,
    model: ModelConfig,
    folder: Path,
    *,
    spent: Mapping[str, Any],
    departures: Sequence[Mapping[str, Any]],
    parents: Sequence[Mapping[str, Any]],
    epochs: Mapping[str, float],
    tokens: Mapping[str, float],
    fill: Mapping[str, float],
    by_source: Mapping[str, Sequence[tuple[int, int, float]]],
    energy_by: str,
    attention: Mapping[str, Any],
) -> Record:
    """The content of run.json. `spent` are the run's totals; `epochs`, `tokens`, `fill` and `by_source`
    are by store folder, as `Batches` has them."""
    return Record(
        name=run.name,
        origin=_origin(folder / ORIGIN),
        model=MODELS[type(model)](**asdict(model), parameters=parameter_count(model)),
        phases=[_phase(stretch, spent["phases"][stretch.phase.name]) for stretch in run.stretches],
        data=[
            Corpus(
                name=Path(store).resolve().name,
                share=share,
                tokens_shown=tokens[store],
                epochs=epochs[store],
                packing_fill=fill[store],
                **_of_manifest(Manifest.read(store), tokens[store] / sum(tokens.values()), by_source[store]),
            )
            for store, share in run.data.shares.items()
        ],
        sequence_length=run.data.sequence_length,
        global_batch_size=run.data.global_batch_size,
        tokens_per_step=run.tokens_per_step,
        optimizer=run.optimizer,
        precision=run.precision,
        dropout=run.dropout_of(model),
        attention=Attention(**attention),
        seeds=Seeds(masks_and_weights=run.seed, data=run.data.seed),
        first_batch=run.data.first_batch,
        departures=[Departure(**departure) for departure in departures],
        parents=[typed(Parent, parent, "the checkpoint's facts: parents") for parent in parents],
        spent=Spent(**{name: value for name, value in spent.items() if name != "phases"}),
        cost=_cost(spent, energy_by),
        commit=provenance.git_commit(),
        versions=provenance.versions(),
        python=platform.python_version(),
        device=jax.devices()[0].device_kind,
        devices=jax.device_count(),
        processes=jax.process_count(),
    )


def _phase(stretch: Stretch, sums: Mapping[str, Any]) -> Phase:
    phase, first, last = stretch
    told = {name: getattr(phase, name) for name in ("name", "objective", "schedule", "frozen", "optimizer_state")}
    return Phase(**told, steps=last - first, last_step=last, **sums)


def _cost(spent: Mapping[str, Any], energy_by: str) -> Cost:
    """Energy is told where all of it was read, on one host."""
    whole = spent["metered"] and jax.process_count() == 1
    if energy_by.startswith("NVML") and not whole:
        energy_by = "not measured in all of the run and by all of its processes"
    return Cost(
        **{kind.replace("seconds", "hours"): spent[kind] / 3600 for kind in KINDS},
        device_hours=spent["device_seconds"] / 3600,
        kilowatt_hours=spent["joules"] / JOULES_PER_KWH if whole else None,
        step_kilowatt_hours=spent["step_joules"] / JOULES_PER_KWH if whole else None,
        energy_by=energy_by,
    )


def parameter_count(model: ModelConfig) -> int:
    """Numbers in a model, a tied table counted once."""
    return sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(model)))


def _origin(path: Path) -> Origin | None:
    """A Hub id and its commit, or the last name of a local folder and no commit; None: from random weights."""
    if not path.is_file():
        return None
    origin = typed(Origin, read_json(path), str(path), unknown="ignore")
    return origin if origin.revision is not None else Origin(Path(origin.source).name, None)


def _of_manifest(manifest: Manifest, share_shown: float, by_source: Sequence[tuple[int, int, float]]) -> dict[str, Any]:
    return {
        "share_shown": share_shown,
        "documents": manifest.documents,
        "tokens": manifest.tokens,
        "text_bytes": manifest.text_bytes,
        "dropped": manifest.dropped,
        "sources": [
            ShownSource(source.name, documents, tokens, share_shown * share, **source.said)
            for source, (documents, tokens, share) in zip(manifest.sources, by_source, strict=True)
        ],
        "fingerprint": manifest.fingerprint,
    }
