"""Protocols: how a model is fine-tuned and its answers are read, as data, by name and kind of task."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cptjax.command.escape import nearest
from cptjax.config import called
from cptjax.files import typed
from eval.tasks.task import Kind

UNHASHED = {"name", "doubts"}  # no number depends on them


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How one kind of task is fine-tuned."""

    name: str
    learning_rate: float = 2e-5  # the peak
    head_learning_rate: float | None = None  # of what stands on the encoder; None: the same
    weight_decay: float = 0.01  # times the learning rate, as in torch's AdamW; none of norms and biases
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = 1.0  # of the gradients of all parameters together
    warmup: float = 0.0  # share of the steps
    schedule: Literal["linear", "constant"] = "linear"  # after it: down to 0, or as it is
    epochs: int = 10
    steps: int | None = None  # instead of epochs
    texts_per_step: int = 16
    max_length: int = 512  # tokens of a text, special ones included; the model's own limit where that is less
    overlap: int = 128  # tokens that two windows of a longer text share, a quarter of them at most
    evaluate_every: int | None = None  # steps between two looks at dev; None: every epoch
    selection: Literal["best", "last"] = "best"  # of the looks at dev, by the task's first metric
    positive_weights: bool = True  # multi-label: a label's right texts count as much as its wrong ones
    threshold: float | Literal["dev"] = 0.5  # of a probability that makes a label or span; dev: the best one there
    fallback: bool = True  # multi-label: a text without a label gets its likeliest
    markers: Literal["none", "around", "role"] = "around"  # arguments of a relation: @ this @, # that #; or @ROLE$
    token_labels: Literal["first", "every"] = "first"  # entities: the first token of a word has its label, or all
    span_width: int = 64  # of what the span scorer multiplies
    longest_span: int = 40  # words of an entity that the span scorer looks at
    gaps: bool = True  # the span scorer tells entities of several ranges too, where train has any
    lstm_layers: int = 0  # bidirectional, before the span scorer
    lstm_width: int = 400  # of both directions of such a layer together
    span_tags: bool = False  # a chain of tags says which spans the scorer chooses from
    span_dropout: float = 0.0  # of what those layers say, and of what the scorer reads
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of products; auto: float32 on a CPU, else bfloat16
    doubts: tuple[str, ...] = ()  # where it is not known what the original did

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} is {value}: it must be a finite number")
        positive = ("learning_rate", "eps", "epochs", "texts_per_step", "span_width", "longest_span")
        optional = ("head_learning_rate", "clip_norm", "steps", "evaluate_every")
        for name in (*positive, *(name for name in optional if getattr(self, name) is not None)):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0")
        shares = ("warmup", "b1", "b2", "span_dropout", *(["threshold"] if self.threshold != "dev" else []))
        for name in shares:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 0 and below 1")
        if self.lstm_layers < 0 or self.lstm_width < 2 or self.lstm_width % 2:
            raise ValueError(
                f"lstm_layers {self.lstm_layers}, lstm_width {self.lstm_width}: at least 0, and an even number"
            )
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay is {self.weight_decay}: it must be at least 0")
        if self.max_length < 8 or self.overlap < 0:
            raise ValueError(f"max_length {self.max_length}, overlap {self.overlap}: at least 8, and 0")

    @property
    def hash(self) -> str:
        """Of all that numbers depend on."""
        decides = {name: value for name, value in dataclasses.asdict(self).items() if name not in UNHASHED}
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


SOURCE_METRIC = (
    "the published scores are called macro-F1; the authors' code chooses and reports micro-F1 of many labels, weighted "
    "F1 of one"
)
FRENCH_TEXT = Protocol(
    name="french_text",
    learning_rate=2e-5,
    warmup=0.1,
    epochs=15,
    texts_per_step=4,
    max_length=4096,
    doubts=(
        SOURCE_METRIC,
        "in a snapshot of the authors' code the length of texts is the tokenizer's own limit, whatever is configured",
    ),
)
FRENCH_ENTITIES = Protocol(
    name="french_entities", learning_rate=5e-5, warmup=0.1, steps=4000, max_length=1024, evaluate_every=500
)
FRENCH_SPANS = replace(
    FRENCH_ENTITIES,
    name="french_spans",
    head_learning_rate=1e-3,
    clip_norm=10.0,
    gaps=False,
    lstm_layers=3,
    span_tags=True,
    span_dropout=0.4,
    doubts=(
        "the parts of the head are those of nlstruct, which the authors' library follows: how theirs are weighted, and "
        "what the width of the LSTMs counts, is not known",
        "a word is its first token here, the mean of its tokens there",
        "entities of several ranges are not predicted, and so are missed",
    ),
)
ENGLISH_TEXT = Protocol(
    name="english_text",
    learning_rate=5e-5,
    doubts=("the metric of each task is not said; the code the authors follow has weighted F1 and entity F1",),
)
CPU_TEXT = Protocol(name="cpu_text", learning_rate=5e-5, warmup=0.1, epochs=3, max_length=256, overlap=64)

# Sources: arXiv:2605.12438 and the code it names for French; for English arXiv:2506.10896, which the paper says it
# follows. "cpu" is for two cores and minutes.
PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        FRENCH_TEXT,
        replace(FRENCH_TEXT, name="french_single", max_length=2048),
        FRENCH_ENTITIES,
        FRENCH_SPANS,
        ENGLISH_TEXT,
        replace(ENGLISH_TEXT, name="english_entities", epochs=20),
        replace(ENGLISH_TEXT, name="english_spans", epochs=20, head_learning_rate=1e-3),
        CPU_TEXT,
        replace(CPU_TEXT, name="cpu_entities"),
        replace(CPU_TEXT, name="cpu_spans", epochs=6, head_learning_rate=1e-3),
    )
}
ENDINGS: dict[Kind, str] = {"entities": "entities", "nested_entities": "spans"}


def protocol_of(name: str, kind: Kind, changes: Mapping[str, Any] | None = None) -> Protocol:
    """The protocol of this name, or of a family of them ("french", "english", "cpu") for this kind of task, or what a
    Python file's `get_protocol(kind)` gives; with fields changed.

    Raises ValueError for an unknown name or field, or an impossible value; OSError for a file that cannot be read.
    """
    if name.endswith(".py"):
        base = _of_file(Path(name), kind)
    elif (full := name if name in PROTOCOLS else f"{name}_{ENDINGS.get(kind, 'text')}") in PROTOCOLS:
        base = PROTOCOLS[full]
    else:
        asked = f"protocol is {name!r}{nearest(name, PROTOCOLS)}"
        raise ValueError(f"{asked}: it is one of {', '.join(PROTOCOLS)}, or a Python file")
    if not changes:
        return base
    known = {field.name for field in dataclasses.fields(Protocol)}
    if unknown := sorted(changes.keys() - known):
        asked = f"protocols have no {', '.join(unknown)}{nearest(unknown[0], known)}"
        raise ValueError(f"{asked}: there are {', '.join(sorted(known))}")
    return typed(Protocol, {**dataclasses.asdict(base), **changes}, f"protocol {name}")


def _of_file(path: Path, kind: Kind) -> Protocol:
    if not path.is_file():
        raise FileNotFoundError(f"no protocol file {path}")
    protocol = called(path, "get_protocol", lambda get_protocol: get_protocol(kind))
    if not isinstance(protocol, Protocol):
        raise ValueError(f"{path} must define get_protocol(kind) -> eval.protocols.Protocol")
    return protocol
