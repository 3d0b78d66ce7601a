"""What a card asks of run.json, field by field: a run.json with other fields or types is refused by name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from cptjax.files import read_json, typed
from cptjax.run.record import Origin

# Each number within what the unit that the card gives it allows.
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, le=1e18)]
Count = Annotated[int, Field(ge=0, le=10**18)]
Some = Annotated[int, Field(ge=1, le=10**18)]


@dataclass(frozen=True)
class Measured:
    """Of held-out text under one objective."""

    loss: Amount
    accuracy: Share


@dataclass(frozen=True)
class Objective:
    """Of a phase."""

    kind: Literal["clm", "mlm"]
    mask_mode: Literal["causal", "bidirectional"]
    mask_rate: Share


@dataclass(frozen=True)
class Schedule:
    """Of a phase."""

    peak: Amount
    warmup_tokens: Amount
    shape: Literal["constant", "one_minus_sqrt"]
    final_ratio: Amount


@dataclass(frozen=True)
class Phase:
    """What it was told and what it spent."""

    name: str
    objective: Objective
    schedule: Schedule
    frozen: list[str]
    steps: Count
    last_step: Count
    tokens: Amount
    targets: Amount
    held_out_before: dict[str, Measured] | None  # by the phase whose objective it is
    held_out: dict[str, Measured] | None


@dataclass(frozen=True)
class Corpus:
    """A token store, and how much of it was shown."""

    name: str
    share: Annotated[float, Field(ge=1e-12, le=1e18)]  # of any scale: what counts is their ratio
    share_shown: Share
    documents: Count
    tokens: Count
    epochs: Amount


@dataclass(frozen=True)
class Model:
    """Its shape."""

    parameters: Some
    num_hidden_layers: Some
    hidden_size: Some
    num_attention_heads: Some
    vocab_size: Some
    max_position_embeddings: Some
    causal_window_counts_self: bool


@dataclass(frozen=True)
class Optimizer:
    """AdamW."""

    b1: Share
    b2: Share
    eps: Amount
    weight_decay: Amount
    clip_norm: Amount | None


@dataclass(frozen=True)
class Precision:
    """Types of numbers."""

    compute: Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Seeds:
    """Of the draws."""

    masks_and_weights: int
    data: int


@dataclass(frozen=True)
class Cost:
    """Hours and energy."""

    hours: Amount
    device_hours: Amount
    kilowatt_hours: Amount | None
    energy_by: str
    step_kilowatt_hours: Amount | None = None  # the rest are not of all versions
    waiting_hours: Amount = 0.0
    evaluation_hours: Amount = 0.0
    saving_hours: Amount = 0.0
    compiling_hours: Amount = 0.0


@dataclass(frozen=True)
class Departure:
    """A step that the run went back to, and the settings that it then changed."""

    step: Count
    changed: list[str]


@dataclass(frozen=True)
class Recorded:
    """All that a card asks; run.json holds more."""

    origin: Origin | None
    model: Model
    phases: list[Phase]
    data: list[Corpus]
    sequence_length: Some
    global_batch_size: Some
    tokens_per_step: Some
    optimizer: Optimizer
    precision: Precision
    seeds: Seeds
    cost: Cost
    commit: str | None
    versions: dict[str, str]
    python: str
    device: str
    devices: Some
    departures: tuple[Departure, ...] = ()  # not of all versions

    def __post_init__(self):
        names = {phase.name for phase in self.phases}
        for phase in self.phases:
            for found in (phase.held_out_before, phase.held_out):
                if found is not None and (lacking := names - found.keys()):
                    raise ValueError(f"phases: an evaluation in {phase.name} lacks {', '.join(sorted(lacking))}")


def read_recorded(path: Path) -> dict[str, Any]:
    """run.json with every field that a card asks for. Raises as `read_json`, and ValueError naming a wrong field."""
    record = read_json(path)
    typed(Recorded, record, str(path), unknown="ignore")
    return record
