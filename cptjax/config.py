"""What a run is: Run and Phase, how a config file is loaded, overridden and compared.

A config is a Python file with `get_config() -> Run`; every component's own dataclass lives in the
component's file. Anything can be overridden on the command line by its dotted name.
"""

import copy
import fnmatch
import importlib.util
import json
import reprlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_type_hints

import typeguard
import tyro

from cptjax.attention.backends import Case, check_backend
from cptjax.command.errors import reason
from cptjax.command.escape import nearest
from cptjax.command.line import fill
from cptjax.data.batches import Data
from cptjax.dropout import Dropout
from cptjax.objectives import Objective, mlm
from cptjax.optim import AdamW
from cptjax.schedules import Schedule, phase_bounds
from cptjax.shape import ModelConfig, ModernBertConfig, Precision, Remat
from cptjax.sharding import Mesh

MOST = 2**63
EVERY_ITEM = typeguard.CollectionCheckStrategy.ALL_ITEMS  # of a tuple, not only its first
TWIN_MASK_RATE = 0.30  # the matched MLM baseline's first phase, arXiv:2605.12438


@dataclass(frozen=True)
class Phase:
    """A part of a run with one objective and its own learning-rate clock."""

    name: str
    objective: Objective
    tokens: int  # rounded to whole optimiser steps
    schedule: Schedule
    frozen: tuple[str, ...] = ()  # regular expressions on parameter names, such as layers/[0-7]/
    optimizer_state: Literal["keep", "reset"] = "keep"  # at the phase's first step

    def __post_init__(self):
        if self.tokens < 1:
            raise ValueError(f"phase {self.name}: tokens {self.tokens} must be positive")
        if not 0 <= self.schedule.warmup_tokens <= self.tokens:
            raise ValueError(
                f"phase {self.name}: warmup_tokens {self.schedule.warmup_tokens} must lie between 0 and the "
                f"phase's {self.tokens} tokens"
            )


@dataclass(frozen=True)
class Branch:
    """Where a run begins that is branched off another one: with its weights, and its optimiser's moments."""

    folder: str  # of that run
    step: int  # which checkpoint of it


class Stretch(NamedTuple):
    """A phase, with its first step and the one after its last, counted over the run."""

    phase: Phase
    first: int
    last: int


@dataclass(frozen=True)
class Run:
    """Everything that decides a run. Exactly one of `init` and `model` says where weights come from."""

    name: str
    data: Data
    phases: tuple[Phase, ...]
    init: str | None = None  # Hugging Face folder or id, or a run folder of ours
    model: ModelConfig | None = None  # a new model with random weights
    optimizer: AdamW = field(default_factory=AdamW)
    precision: Precision = field(default_factory=Precision)
    seed: int = 17  # masking and random weights; the order of the data has its own, data.seed
    held_out: str | None = None  # token store evaluated during the run
    held_out_rows: int = 64
    sentences: tuple[str, ...] = ()  # with mask tokens, filled at each evaluation
    eval_every: int = 500  # optimiser steps; also at the start and end of every phase
    checkpoint_every: int = 500  # optimiser steps; also at the end of every phase
    keep_checkpoints: int = 2  # the last ones; ends of phases are always kept
    milestone_every: int | None = None  # optimiser steps between checkpoints that are always kept, too
    gradients_every: int | None = None  # optimiser steps between norms of the gradient of each layer in the log
    most_skipped: int = 5  # steps whose loss or gradient is not finite, which change nothing; one more ends the run
    skip_steps: tuple[int, ...] = ()  # whose batches are not trained on; the clocks of phases go on
    mesh: Mesh = field(default_factory=Mesh)
    device_batch_size: int = 8  # rows per device at a time; the global batch is reached by accumulation
    causal_window_counts_self: bool = False  # 64 keys in causal local layers, not 65: see ModernBertConfig
    attention: Literal["auto", "reference", "blockwise", "splash", "cudnn"] = "auto"  # a row of attention.BACKENDS
    dropout: Dropout = field(default_factory=Dropout)  # while training; what is None is as the model's config has it
    remat: Remat = "none"  # what of the activations is recomputed: less memory, more arithmetic; see Encoder
    tensorboard: bool = True  # the log is written for TensorBoard, too
    wandb: str | None = None  # project of Weights & Biases that the log is sent to, too
    branch: tyro.conf.Suppress[Branch | None] = None  # --branch-from and --step of train

    def __post_init__(self):
        check_backend(self.attention, "auto")
        if (self.init is None) == (self.model is None):
            raise ValueError("a run needs either init (a folder or id to start from) or model, and not both")
        if not self.phases:
            raise ValueError("a run needs at least one phase")
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError(f"phase names must differ, not {names}")
        steps = ("eval_every", "checkpoint_every", "keep_checkpoints", "milestone_every", "gradients_every")
        for name in ("held_out_rows", *steps, "device_batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.most_skipped < 0:
            raise ValueError(f"most_skipped is {self.most_skipped}: it must be at least 0")

    @property
    def tokens_per_step(self) -> int:
        """Token positions of one global batch."""
        return self.data.global_batch_size * self.data.sequence_length

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """The phases with their optimiser steps, one after the other."""
        bounds = phase_bounds(tuple(phase.tokens for phase in self.phases), self.tokens_per_step)
        return tuple(Stretch(phase, *ends) for phase, ends in zip(self.phases, bounds, strict=True))

    def attention_case(self, config: ModelConfig, platform: str, capability: str | None = None) -> Case:
        """What decides which backends of attention can work, for a model of this shape on such devices."""
        drops = bool(self.dropout_of(config).attention)
        return Case(platform, self.data.sequence_length, config.head_dim, self.precision.compute, capability, drops)

    def dropout_of(self, config: ModelConfig) -> Dropout:
        """What is dropped in training a model of this shape."""
        return self.dropout.over(config.dropout)


# A run may be resumed with another value of these: none of them decides a number of the result.
ELASTIC = {
    "name",
    "held_out",  # where it lies; that its content is the same is checked by fingerprint
    "sentences",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "most_skipped",
    "milestone_every",
    "gradients_every",
    "mesh",
    "device_batch_size",
    "attention",
    "remat",
    "tensorboard",
    "wandb",
    "data.stores.*.0",  # where a store lies; that its content is the same is checked by fingerprint
}

# And when it goes back to an earlier step (see resume.py) with another value of these, too.
DEPARTING = {"phases.*.schedule.*", "optimizer.*", "skip_steps"}

# A branch has these of the run that it is branched off, and the optimizer, too, if it keeps the moments.
INHERITED = ("init", "model", "causal_window_counts_self")


def mlm_twin(run: Run) -> Run:
    """The matched baseline: causal phases become 30 % masked language modelling, all else is equal."""
    phases = (
        replace(phase, name="mlm", objective=mlm(TWIN_MASK_RATE)) if phase.objective.kind == "clm" else phase
        for phase in run.phases
    )
    if all(phase.objective.kind == "mlm" for phase in run.phases):
        raise ValueError(f"{run.name} has no causal phase that --mlm-twin could replace")
    return replace(run, name=f"{run.name}_mlm_twin", phases=tuple(phases))


def load_config(path: Path) -> Run:
    """The Run of a config file; configs/NAME.py is ours where there is none here. Raises FileNotFoundError or
    ValueError when it is not one."""
    if not path.is_file() and path.parent == Path("configs"):
        ours = importlib.util.find_spec("configs")  # of a clone, or installed with this package
        path = Path(*(ours.submodule_search_locations or [])[:1]) / path.name if ours else path
    if not path.is_file():
        near = nearest(path.name, (other.name for other in path.parent.glob("*.py")))
        raise FileNotFoundError(f"no config file {path}{near}; see configs/ for examples")
    run = called(path, "get_config", _checked)
    if not isinstance(run, Run):
        raise ValueError(f"{path} must define get_config() -> cptjax.config.Run")
    return run


def _checked(get_config: Callable[[], Any]) -> Any:
    run = get_config()
    if isinstance(run, Run):
        check_types(run, "")
    return run


def called(path: Path, name: str, call: Callable[[Callable], Any]) -> Any:
    """What `call` makes of the function of this name in a Python file, None where it has none. Raises ValueError, one
    line, for whatever goes wrong in it."""
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return call(getattr(module, name)) if hasattr(module, name) else None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a config is a program: anything may go wrong in it, and it may call sys.exit
        raise ValueError(f"{path}: {type(error).__name__}: {reason(error)}") from error


def check_types(value: Any, path: str) -> None:
    """Raise TypeError for the first field whose value is not of its declared type, ValueError for a number that is
    infinite, none, or beyond 64 bits."""
    if isinstance(value, int | float) and not abs(value) < MOST:
        raise ValueError(f"{path} is {reprlib.repr(value)}: it must be a number between {-MOST:.1e} and {MOST:.1e}")
    if isinstance(value, tuple):
        for i, item in enumerate(value):
            check_types(item, f"{path}.{i}")
    if not is_dataclass(value):
        return
    hints = get_type_hints(type(value))
    for declared in fields(value):
        item, dotted = getattr(value, declared.name), f"{path}.{declared.name}".removeprefix(".")
        try:
            typeguard.check_type(item, hints[declared.name], collection_check_strategy=EVERY_ITEM)
        except typeguard.TypeCheckError:
            raise TypeError(f"{dotted} is {item!r}, it must be {hints[declared.name]}") from None
        check_types(item, dotted)


def override(run: Run, arguments: Sequence[str]) -> Run:
    """The run with `--field.sub value` arguments applied; another number of layers has the usual kinds of layers if the
    run's model has them.

    Raises ValueError for a field that does not exist or a value of another type.
    """
    if isinstance(run.model, ModernBertConfig) and replace(run.model, layer_types=()) == run.model:
        model = copy.copy(run.model)
        object.__setattr__(model, "layer_types", ())  # as whoever wrote the config left it
        run = replace(run, model=model)
    program, config = "python -m cptjax train CONFIG", (tyro.conf.FlagConversionOff,)
    changed = fill(tyro.conf.AvoidSubcommands[Run], arguments, default=run, prog=program, config=config)
    check_types(changed, "")
    return changed


def to_dict(run: Run) -> dict[str, Any]:
    """The resolved run as JSON would give it back."""
    return json.loads(json.dumps(asdict(run)))


def incompatible_fields(
    before: dict[str, Any], now: dict[str, Any], free: Collection[str] = ELASTIC, path: str = ""
) -> list[str]:
    """What keeps a run from going on under another config: `field: old -> new`, one entry each; `free` may differ."""
    differences = []
    for name in sorted(before.keys() | now.keys()):
        old, new, dotted = before.get(name), now.get(name), f"{path}{name}"
        if old == new or any(fnmatch.fnmatch(dotted, pattern) for pattern in free):
            continue
        if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            old, new = ({str(i): x for i, x in enumerate(items)} for items in (old, new))
        if isinstance(old, dict) and isinstance(new, dict):
            differences += incompatible_fields(old, new, free, f"{dotted}.")
        else:
            differences.append(f"{dotted}: {old} -> {new}")
    return differences
