"""Everything that can be checked of a run before its first step, and what stays the same through it.

Nothing is written here.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import optax

from cptjax import sharding
from cptjax.attention.backends import choose
from cptjax.attention.check import verify
from cptjax.config import Phase, Run, to_dict
from cptjax.data.packing import PACKING_VERSION
from cptjax.data.store import Manifest, Store, check_one_tokenizer
from cptjax.families import encoder
from cptjax.machine import host
from cptjax.model import Encoder
from cptjax.objectives import Vocabulary
from cptjax.optim import freeze_mask, make_optimizer
from cptjax.run import agreement, boards, checkpoint, memory
from cptjax.run.branch import lineage
from cptjax.run.resume import Resumption, check_inputs_unchanged, find_resumption
from cptjax.run.sentences import Sentences, read
from cptjax.shape import ModelConfig, ModernBertConfig, parameter_names
from cptjax.step import chunk_positions


@dataclass(frozen=True)
class Inputs:
    """What a run finds: the checkpoints in its folder, the runs that it is branched off, the devices, and the manifests
    of its stores."""

    run: Run
    folder: Path
    steps: dict[int, dict[str, Any]]  # of whole checkpoints, and their facts
    resumption: Resumption
    parents: list[dict[str, Any]]
    mesh: jax.sharding.Mesh
    manifests: dict[str, Manifest]

    @property
    def start(self) -> Path:
        """The run folder that its first weights lie in, or will: its own once it has a checkpoint."""
        if self.resumption.candidates:
            return self.folder
        return Path(self.run.branch.folder) if self.run.branch else starting_folder(self.run, self.folder)

    def check_unchanged(self) -> None:
        """Raise ValueError where another run has worked in the folder since: between that look and its lock."""
        if checkpoint.survey(self.folder).whole != self.steps:
            raise ValueError(f"another run has worked in {self.folder} meanwhile: give the same command again")


def open_inputs(run: Run, folder: Path, from_step: int | None = None) -> Inputs:
    """What a run finds. Raises ValueError for devices, rows or stores that do not fit, and as `find_resumption` and
    `lineage`."""
    steps = checkpoint.survey(folder).whole
    resumption = find_resumption(folder, to_dict(run), from_step)
    if resumption.candidates:  # then no parent is read again
        parents = next(iter(resumption.candidates.values())).get("parents", [])
    else:
        parents = lineage(run) if run.branch else []
    mesh = sharding.make_mesh(run.mesh)
    micro_batches(run, mesh)
    stores = [*run.data.shares, *filter(None, [run.held_out])]
    return Inputs(run, folder, steps, resumption, parents, mesh, {store: Manifest.read(store) for store in stores})


def starting_folder(run: Run, folder: Path) -> Path:
    """Where the weights of `run.init` lie in our own form: there, or converted beside the run."""
    given = Path(run.init or "")
    return given if (given / checkpoint.MODEL).exists() else folder / "init"


@dataclass(frozen=True)
class Setting:
    """What stays the same through a run: its model on its mesh, and the vocabulary of its data."""

    run: Run
    folder: Path
    mesh: jax.sharding.Mesh
    model: Encoder
    vocabulary: Vocabulary
    tx: optax.GradientTransformationExtraArgs  # of all phases
    decides: dict[str, Any]  # all that decides its numbers, as the facts of a checkpoint hold it
    attention: dict[str, Any]  # what `choose_attention` found
    sentences: Sentences | None = None  # of the run, as rows

    @property
    def micro_batches(self) -> int:
        """Micro-batches per optimiser step on this mesh."""
        return micro_batches(self.run, self.mesh)

    @property
    def chunk(self) -> int:
        """Positions of each row whose logits exist at once."""
        return chunk_positions(self.run.device_batch_size, self.model.config.vocab_size)


def without_text(run: Run, config: ModelConfig, mesh: jax.sharding.Mesh, vocabulary: Vocabulary) -> Setting:
    """The setting of a run whose text is not here, on devices that need not be: for what its steps cost."""
    device = mesh.devices.flat[0]
    case = run.attention_case(config, device.platform, host.capability(device))
    backend, reason = choose(case, run.attention)
    model = encoder(config, run.precision, backend, run.remat, sharding.pin_rows)
    attention = {"backend": backend, "reason": reason}
    return Setting(run, Path(), mesh, model, vocabulary, make_optimizer(run.optimizer), {}, attention)


def set_up(inputs: Inputs) -> Setting:
    """Check everything that can be checked before the first step.

    A run that has a checkpoint knows its own model: what it began from is not read again. Raises ValueError for a
    run that cannot work here, or contradicts its folder.
    """
    run, mesh, manifests = inputs.run, inputs.mesh, inputs.manifests
    given = bool(inputs.resumption.candidates or run.branch or run.init)  # weights, and a tokenizer beside them
    config = checkpoint.read_model(inputs.start) if given or run.model is None else run.model
    config = to_train(run, config)
    check_tokenizer(inputs, inputs.start, inputs.start / checkpoint.TOKENIZER if given else None)
    for store, each in manifests.items():
        if each.vocab_size > config.vocab_size:
            raise ValueError(
                f"the tokenizer of {store} has {each.vocab_size} ids, the model only {config.vocab_size}: "
                "use the model's own tokenizer"
            )
    manifest = next(iter(manifests.values()))
    ids = manifest.mask_token_id, manifest.special_token_ids, manifest.pad_token_id
    sentences = None
    if run.sentences:
        folder = Path(next(iter(run.data.shares))) / checkpoint.TOKENIZER
        sentences = read(run.sentences, folder, run.data.sequence_length)
    if run.wandb is not None and jax.process_index() == 0:
        boards.check_wandb()
    attention = choose_attention(run, config)
    _check_memory(run, config, mesh, attention["backend"])
    decides = {
        "config": to_dict(run),
        "model": asdict(config),
        "stores": {store: Store(store).manifest.fingerprint for store in run.data.shares},
        "held_out": None if run.held_out is None else Store(run.held_out).manifest.fingerprint,
        "packing": PACKING_VERSION,
        "parents": inputs.parents,
    }
    for step, facts in inputs.resumption.candidates.items():
        check_inputs_unchanged(inputs.folder, step, facts, decides)
    model = encoder(config, run.precision, attention["backend"], run.remat, sharding.pin_rows)
    vocabulary = Vocabulary(manifest.vocab_size, *ids)
    tx = make_optimizer(run.optimizer)
    return Setting(run, inputs.folder, mesh, model, vocabulary, tx, decides, attention, sentences)


def to_train(run: Run, config: ModelConfig) -> ModelConfig:
    """The shape that training gives a model: with the language-model head, and windows as the run has them. Raises
    ValueError for a model that cannot be trained so: by its head, its positions, or what phases freeze of it."""
    if config.head == "classifier":
        raise ValueError(f"{run.init} is a fine-tuned classifier: start from the encoder it was made from")
    if run.data.sequence_length > config.longest_document:
        raise ValueError(
            f"data.sequence_length {run.data.sequence_length} is longer than the model's {config.longest_document} "
            "positions"
        )
    config = replace(config, head="lm")
    for phase in run.phases:
        trains(config, phase)
    if not run.causal_window_counts_self:
        return config
    if not isinstance(config, ModernBertConfig):
        raise ValueError(f"causal_window_counts_self is about local layers: a {config.model_type} has none")
    return replace(config, causal_window_counts_self=True)


def micro_batches(run: Run, mesh: sharding.AnyMesh) -> int:
    """Micro-batches per optimiser step. Raises ValueError when the batch cannot be cut so."""
    spread = sharding.row_devices(mesh)
    at_once = run.device_batch_size * spread
    if run.data.global_batch_size % at_once:
        raise ValueError(
            f"data.global_batch_size {run.data.global_batch_size} is not a multiple of device_batch_size "
            f"{run.device_batch_size} times the {spread} devices that rows are spread over: "
            f"{-(-run.data.global_batch_size // at_once) * at_once} would be"
        )
    return run.data.global_batch_size // at_once


def check_tokenizer(inputs: Inputs, model: Path | str, tokenizer: Path | None) -> None:
    """Raise ValueError where the stores of a run, or the tokenizer of the model that it begins with, are of two
    tokenizers, or of one that cannot do what a phase asks."""
    said = {store: manifest.vocabulary for store, manifest in inputs.manifests.items()}
    if tokenizer is not None:
        said[f"the model {model}"] = checkpoint.own_vocabulary(tokenizer)
    check_one_tokenizer(said)
    for store, manifest in inputs.manifests.items():
        if manifest.mask_token_id is None and any(phase.objective.kind == "mlm" for phase in inputs.run.phases):
            raise ValueError(f"the tokenizer of {store} has no mask token, which an mlm phase needs")


def _check_memory(run: Run, config: ModelConfig, mesh: jax.sharding.Mesh, backend: str) -> None:
    """Raise ValueError when a step certainly needs more memory than there is: compiling it would take minutes."""
    device = mesh.local_devices[0]
    place = memory.Place(mesh, device.platform, backend)
    available = host.device_memory(device)
    total = sum(memory.needed(run, config, place, run.device_batch_size).values())
    if available is not None and total > memory.MARGIN * available:
        raise ValueError(memory.shortage(run, config, place, available, device.device_kind))


def choose_attention(run: Run, config: ModelConfig) -> dict[str, Any]:
    """The attention backend, the reason for it, and by how much it errs on this device under each mask of the run.

    A kernel that `auto` would take is left, and the reason says so, when it is wrong here. On a CPU, where the tests
    are run, nothing is measured. Raises ValueError for a backend that cannot work here, or that is wrong here.
    """
    case = run.attention_case(config, jax.default_backend(), host.capability(jax.local_devices()[0]))
    masks = {
        f"{kind}, {mode}": config.mask_spec(kind, mode)
        for mode in dict.fromkeys(phase.objective.mask_mode for phase in run.phases)
        for kind in dict.fromkeys(config.layer_types)
    }
    sizes = config.num_attention_heads, config.head_dim, run.precision.compute
    failed: dict[str, str] = {}
    while True:
        backend, reason = choose(case, run.attention, failed)
        try:
            errors = {name: verify(backend, spec, *sizes) for name, spec in masks.items() if case.platform != "cpu"}
            break
        except ValueError as error:
            if run.attention != "auto":
                raise ValueError(f"attention {backend} {error}: choose another with --attention") from error
            failed[backend] = str(error)
    return {"backend": backend, "reason": reason, "errors": errors}


def trains(config: ModelConfig, phase: Phase) -> Any:
    """The freeze mask of a phase. Raises ValueError for a pattern that fits no parameter."""
    names = names_of(config)
    pooler = ("pooler/",) if "pooler" in names else ()  # no objective here reaches it
    return freeze_mask(names, phase.frozen + pooler)


def names_of(config: ModelConfig) -> Any:
    """The parameter tree with the tuple of names (`shape.parameter_names`) of each leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: tuple(parameter_names(config, checkpoint.path_keys(path))),
        checkpoint.parameter_shapes(config),
    )


def shared(inputs: Inputs, setting: Setting) -> dict[str, Any]:
    """What must be the same in all processes of a run, beside what `agreement.of_run` gives."""
    run, resumption = inputs.run, inputs.resumption
    return {
        **(agreement.of_start(inputs.start) if resumption.candidates or run.branch or run.init else {}),
        "model": asdict(setting.model.config),
        "attention_backend": setting.attention["backend"],
        "goes_on_from": list(resumption.candidates),
        "departs": resumption.departure is not None,
    }
