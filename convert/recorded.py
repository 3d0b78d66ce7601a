"""What a card asks of run.json, field by field: a run.json with other fields or types is refused by name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cptjax.files import read_json, typed
from cptjax.record import Origin


@dataclass(frozen=True)
class Measured:
    """Of held-out text under one objective."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class Objective:
    """Of a phase."""

    kind: Literal["clm", "mlm"]
    mask_mode: str
    mask_rate: float


@dataclass(frozen=True)
class Schedule:
    """Of a phase."""

    peak: float
    warmup_tokens: float
    shape: str
    final_ratio: float


@dataclass(frozen=True)
class Phase:
    """What it was told and what it spent."""

    name: str
    objective: Objective
    schedule: Schedule
    frozen: list[str]
    steps: int
    last_step: int
    tokens: float
    targets: float
    held_out_before: dict[str, Measured] | None  # by the phase whose objective it is
    held_out: dict[str, Measured] | None


@dataclass(frozen=True)
class Corpus:
    """A token store, and how much of it was shown."""

    name: str
    share: float
    documents: int
    tokens: int
    epochs: float


@dataclass(frozen=True)
class Model:
    """Its shape."""

    parameters: int
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    vocab_size: int
    max_position_embeddings: int
    causal_window_counts_self: bool


@dataclass(frozen=True)
class Optimizer:
    """AdamW."""

    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip_norm: float | None


@dataclass(frozen=True)
class Precision:
    """Types of numbers."""

    params: str
    compute: str


@dataclass(frozen=True)
class Seeds:
    """Of the draws."""

    masks_and_weights: int
    data: int


@dataclass(frozen=True)
class Cost:
    """Hours and energy."""

    hours: float
    device_hours: float
    kilowatt_hours: float | None
    energy_by: str
    step_kilowatt_hours: float | None = None  # the rest are not of all versions
    waiting_hours: float = 0.0
    evaluation_hours: float = 0.0
    saving_hours: float = 0.0
    compiling_hours: float = 0.0


@dataclass(frozen=True)
class Departure:
    """A step that the run went back to, and the settings that it then changed."""

    step: int
    changed: list[str]


@dataclass(frozen=True)
class Recorded:
    """All that a card asks; run.json holds more."""

    origin: Origin | None
    model: Model
    phases: list[Phase]
    data: list[Corpus]
    sequence_length: int
    global_batch_size: int
    tokens_per_step: int
    optimizer: Optimizer
    precision: Precision
    seeds: Seeds
    cost: Cost
    commit: str | None
    versions: dict[str, str]
    python: str
    device: str
    devices: int
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
