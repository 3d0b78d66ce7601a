"""The loop: phases in order, one batch and one update at a time; run it again to go on.

Everything a step needs is a function of (run, step), so a run killed anywhere and started by the same
command gives the numbers of an undisturbed one.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cptjax import sharding
from cptjax.attention.backends import choose
from cptjax.attention.check import verify
from cptjax.command.errors import warn_of_damage
from cptjax.command.escape import say
from cptjax.command.signals import Signals, Stopped
from cptjax.config import Phase, Run, to_dict
from cptjax.data.batches import Batches, held_out_batches
from cptjax.data.packing import PACKING_VERSION
from cptjax.data.store import Manifest, Store, check_one_tokenizer
from cptjax.files import locked, read_json, write_json
from cptjax.machine import host, processes
from cptjax.model import ModernBert, init_params
from cptjax.objectives import Vocabulary
from cptjax.optim import freeze_mask, make_optimizer
from cptjax.run import agreement, checkpoint, memory
from cptjax.run.clock import COMPILING, EVALUATION, SAVING, WAITING, Clock
from cptjax.run.recorder import Recorder, nothing_spent
from cptjax.run.resume import Resumption, check_inputs_unchanged, find_resumption, leave_behind
from cptjax.schedules import learning_rate
from cptjax.shape import ModelConfig, parameter_names
from cptjax.step import TrainState, chunk_positions, eval_step, init_state, loss_and_counts, train_step


@dataclass(frozen=True)
class Setting:
    """What stays the same through a run: its model on its mesh, and the vocabulary of its data."""

    run: Run
    folder: Path
    model: ModernBert
    vocabulary: Vocabulary
    mesh: jax.sharding.Mesh
    decides: dict[str, Any]  # all that decides its numbers, as the facts of a checkpoint hold it
    resumption: Resumption
    attention: dict[str, Any]  # what `choose_attention` found

    @property
    def micro_batches(self) -> int:
        """Micro-batches per optimiser step on this mesh."""
        return micro_batches(self.run, self.mesh)

    @property
    def chunk(self) -> int:
        """Positions of each row whose logits exist at once."""
        return chunk_positions(self.run.device_batch_size, self.model.config.vocab_size)


def train(run: Run, folder: Path, from_step: int | None = None) -> Path:
    """Train `run` in `folder`, or go on with what is there; returns the folder.

    With `from_step` it goes back to the checkpoint of that step, from where schedules and the optimizer may be
    others. Raises ValueError for a run that cannot work here or contradicts the folder, FloatingPointError when
    the loss or the gradient stops being finite, OSError when the disk refuses a checkpoint, Stopped when a
    signal asked for an end, after the step at hand was saved (of several processes, at once).
    """
    with processes.together():
        setting = set_up(run, folder, from_step)
    processes.compare(lambda: _shared(setting))
    with contextlib.ExitStack() as held:
        with processes.together():
            if jax.process_index() == 0:
                held.enter_context(locked(folder))
                write_own_files(setting)
        held.enter_context(jax.set_mesh(setting.mesh))
        held.enter_context(run.precision.products())
        return _train(setting, held.enter_context(Signals()))


def _shared(setting: Setting) -> dict[str, Any]:
    """What must be the same in all processes of a run."""
    run, resumption = setting.run, setting.resumption
    goes_on = {"goes_on_from": list(resumption.candidates), "departs": resumption.departure is not None}
    start = setting.folder if resumption.candidates or run.init is None else starting_folder(run, setting.folder)
    chosen = {"model": asdict(setting.model.config), "attention_backend": setting.attention["backend"]}
    return {**agreement.of_run(run), **agreement.of_start(start), **chosen, **goes_on}


def check_inputs(run: Run) -> tuple[jax.sharding.Mesh, dict[str, Manifest]]:
    """The mesh and the manifests of all stores. Raises ValueError for devices, rows or stores that do not fit."""
    mesh = sharding.make_mesh(run.mesh)
    micro_batches(run, mesh)
    manifests = {store: Manifest.read(store) for store in run.data.shares}
    if run.held_out is not None:
        manifests[run.held_out] = Manifest.read(run.held_out)
    return mesh, manifests


def micro_batches(run: Run, mesh: sharding.AnyMesh) -> int:
    """Micro-batches per optimiser step. Raises ValueError when the batch cannot be cut so."""
    spread = sharding.row_devices(mesh)
    if run.data.global_batch_size % (run.device_batch_size * spread):
        raise ValueError(
            f"data.global_batch_size {run.data.global_batch_size} is not a multiple of device_batch_size "
            f"{run.device_batch_size} times the {spread} devices that rows are spread over"
        )
    return run.data.global_batch_size // (run.device_batch_size * spread)


def set_up(run: Run, folder: Path, from_step: int | None = None) -> Setting:
    """Check everything that can be checked before the first step; nothing is written.

    A run that has a checkpoint knows its own model: what `run.init` names is not read again.
    """
    resumption = find_resumption(folder, to_dict(run), from_step)
    started = bool(resumption.candidates)
    mesh, manifests = check_inputs(run)
    origin = folder if started else starting_folder(run, folder)
    config = checkpoint.read_model(origin) if started or run.model is None else run.model
    if config.head == "classifier":
        raise ValueError(f"{run.init} is a fine-tuned classifier: start from the encoder it was made from")
    config = replace(
        config, head="lm", causal_window_counts_self=config.causal_window_counts_self or run.causal_window_counts_self
    )
    if run.data.sequence_length > config.max_position_embeddings:
        raise ValueError(
            f"data.sequence_length {run.data.sequence_length} is longer than the model's "
            f"max_position_embeddings {config.max_position_embeddings}"
        )
    _check_vocabulary(run, config, manifests, origin if started or run.init else None)
    manifest = next(iter(manifests.values()))
    ids = manifest.mask_token_id, manifest.special_token_ids, manifest.pad_token_id
    vocabulary = Vocabulary(manifest.vocab_size, *ids)
    attention = choose_attention(run, config)
    _check_memory(run, config, mesh, attention["backend"])
    model = ModernBert(config, run.precision, attention["backend"], run.remat, sharding.pin_rows)
    for phase in run.phases:
        _trains(config, phase)
    decides = {
        "config": to_dict(run),
        "model": asdict(config),
        "stores": {store: Store(store).manifest.fingerprint for store in run.data.shares},
        "held_out": None if run.held_out is None else Store(run.held_out).manifest.fingerprint,
        "packing": PACKING_VERSION,
    }
    for step, facts in resumption.candidates.items():
        check_inputs_unchanged(folder, step, facts, decides)
    return Setting(run, folder, model, vocabulary, mesh, decides, resumption, attention)


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


def write_own_files(setting: Setting) -> None:
    """Write what the run folder says of itself: its config and, until it has a checkpoint, its model and tokenizer."""
    run, folder = setting.run, setting.folder
    if not setting.resumption.candidates:
        # The model's own tokenizer files: a store keeps the same vocabulary, but perhaps less beside it. Only
        # where the model has no more than tokenizer.json does the store know more.
        origin = starting_folder(run, folder)
        own = origin / checkpoint.TOKENIZER
        store = Path(next(iter(run.data.shares)))
        tokenizer = own if run.init and (own / "tokenizer_config.json").is_file() else store / checkpoint.TOKENIZER
        hf_config = origin / checkpoint.HF_CONFIG
        checkpoint.write_model(
            folder,
            setting.model.config,
            tokenizer=tokenizer,
            hf_config=read_json(hf_config) if run.init and hf_config.is_file() else None,
            origin=_origin(run, origin),
        )
    write_json(folder / "config.json", to_dict(run))


def _origin(run: Run, folder: Path) -> dict[str, Any] | None:
    """Where the first weights come from: what `folder`, the start, was converted from, or another run."""
    if run.init is None:
        return None
    converted = checkpoint.latest_step(folder) == 0 and (folder / checkpoint.ORIGIN).is_file()
    return read_json(folder / checkpoint.ORIGIN) if converted else {"source": run.init, "revision": None}


def starting_folder(run: Run, folder: Path) -> Path:
    """Where the weights of `run.init` lie in our own form: there, or converted beside the run."""
    given = Path(run.init or "")
    return given if (given / checkpoint.MODEL).exists() else folder / "init"


def _check_vocabulary(run: Run, config: ModelConfig, manifests: dict[str, Manifest], origin: Path | None) -> None:
    said = {store: manifest.vocabulary for store, manifest in manifests.items()}
    if origin is not None:
        said[f"the model {origin}"] = checkpoint.own_vocabulary(origin)
    check_one_tokenizer(said)
    for store, manifest in manifests.items():
        if manifest.vocab_size > config.vocab_size:
            raise ValueError(
                f"the tokenizer of {store} has {manifest.vocab_size} ids, the model only {config.vocab_size}: "
                "use the model's own tokenizer"
            )
        if manifest.mask_token_id is None and any(phase.objective.kind == "mlm" for phase in run.phases):
            raise ValueError(f"the tokenizer of {store} has no mask token, which an mlm phase needs")


def start(setting: Setting, tx) -> tuple[TrainState, dict[str, Any], list[dict[str, Any]]]:
    """How a run starts, in this order: 1 the folder's last whole checkpoint; 2 the weights of `run.init`;
    3 random weights, only when the run names a `model`. Returns the state, what was spent before it, and the
    departures that led to it."""
    if setting.resumption.candidates:
        return _go_on(setting, tx)
    run = setting.run
    params = partial(init_params, setting.model, jax.random.key(run.seed))
    shardings = _state_shardings(setting, tx)
    if run.init:
        origin = starting_folder(run, setting.folder)
        whole = checkpoint.parameter_shapes(setting.model.config)
        with processes.together():
            drawn = whole.keys() - checkpoint.parameter_shapes(checkpoint.read_model(origin)).keys()
        known = {name: where for name, where in shardings.params.items() if name not in drawn}
        _, _, loaded = checkpoint.load_params(origin, shardings=known)
        if drawn and jax.process_index() == 0:
            say(f"{run.init} has no language-model head: a new one is drawn (seed {run.seed})", stream=sys.stderr)

        def complete(loaded):
            fresh = params() if drawn else {}
            return init_state({name: loaded[name] if name in loaded else fresh[name] for name in whole}, tx)

        state = jax.jit(complete, out_shardings=shardings, donate_argnums=0)(loaded)
    else:
        state = jax.jit(lambda: init_state(params(), tx), out_shardings=shardings)()
    return state, nothing_spent(run), []


def _go_on(setting: Setting, tx) -> tuple[TrainState, dict[str, Any], list[dict[str, Any]]]:
    """The last of the candidates whose arrays are what was saved. Damaged checkpoints are named and set aside, so
    that none is written into; and so, without a word of damage, are those that a departure leaves behind."""
    folder, resumption, first = setting.folder, setting.resumption, jax.process_index() == 0
    steps = checkpoint.survey(folder)
    damaged = dict(steps.damaged)
    for step, facts in resumption.candidates.items():
        try:
            state = checkpoint.resume(folder, facts, step, state_shapes(setting, tx))
            break
        except checkpoint.DamagedError as error:
            damaged[str(step)] = str(error)
    else:
        raise ValueError(f"{folder} holds no whole checkpoint to go on from ({'; '.join(damaged.values())})")
    departures = [*facts["departures"], *filter(None, [resumption.departure])]
    with processes.together():
        for reason in damaged.values():
            warn_of_damage(f"{reason}; without it the run goes on from step {step}")
    with processes.together():
        if first:
            for name in damaged:
                checkpoint.set_aside(folder / checkpoint.CHECKPOINTS / name, folder)
        if first and resumption.departure is not None:
            leave_behind(folder, [later for later in steps.whole if later > step])
            changed = "; ".join(resumption.departure["changed"]) or "the same config"
            came_after = f"what came after is in {folder / checkpoint.ASIDE}"
            say(f"back to step {step} with {changed}; {came_after}", stream=sys.stderr)
    return state, facts["spent"], departures


def compile_phase(setting: Setting, phase: Phase, first: int, last: int, tx) -> Callable:
    """The jitted update of one phase: (state, batch) -> (state, metrics); the state is donated."""
    run = setting.run
    update = partial(
        train_step,
        loss_fn=partial(
            loss_and_counts,
            model=setting.model,
            objective=phase.objective,
            vocabulary=setting.vocabulary,
            chunk=setting.chunk,
        ),
        tx=tx,
        rate_fn=lambda step: learning_rate(phase.schedule, step - first, last - first, run.tokens_per_step),
        trains=_trains(setting.model.config, phase),
        seed=run.seed,
        micro_batches=setting.micro_batches,
    )
    return jax.jit(
        update,
        donate_argnums=0,
        out_shardings=(_state_shardings(setting, tx), None),
        compiler_options=host.xla_options(setting.mesh.devices.flat[0].platform),
    )


def _trains(config: ModelConfig, phase: Phase) -> Any:
    """The freeze mask of a phase. Raises ValueError for a pattern that fits no parameter."""
    names = jax.tree_util.tree_map_with_path(
        lambda path, _: tuple(parameter_names(config, tuple(entry.key for entry in path))),
        checkpoint.parameter_shapes(config),
    )
    return freeze_mask(names, phase.frozen)


def state_shapes(setting: Setting, tx) -> TrainState:
    """Shape, type and place on the mesh of every array of the training state."""
    shapes = jax.eval_shape(lambda params: init_state(params, tx), checkpoint.parameter_shapes(setting.model.config))
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        sharding.shard_tree(setting.mesh, shapes),
    )


def _state_shardings(setting: Setting, tx) -> TrainState:
    return jax.tree.map(lambda x: x.sharding, state_shapes(setting, tx))


def make_evaluate(
    setting: Setting, clock: Clock, signals: Signals
) -> Callable[[Any], dict[str, dict[str, float]] | None]:
    """params -> {objective: {loss, accuracy}} on the held-out store, for every objective of the run; None when a
    signal asks for an end."""
    run = setting.run
    held_out = run.held_out
    if held_out is None:
        return lambda params: {}
    objectives = {phase.name: phase.objective for phase in run.phases}
    steps = {
        name: clock.compiled(
            jax.jit(
                partial(
                    eval_step,
                    model=setting.model,
                    objective=objective,
                    vocabulary=setting.vocabulary,
                    seed=run.seed,
                    chunk=setting.chunk,
                )
            )
        )
        for name, objective in objectives.items()
    }
    rows = run.device_batch_size * sharding.row_devices(setting.mesh)
    own_rows = sharding.own_rows(setting.mesh, rows)

    def evaluate(params) -> dict[str, dict[str, float]] | None:
        totals = {name: np.zeros(3) for name in steps}
        batches = held_out_batches(held_out, run.data.sequence_length, rows, run.held_out_rows, own_rows)
        for index, batch in enumerate(batches):
            if signals.asked is not None:
                return None
            placed = sharding.put(batch, setting.mesh, rows)
            for name, step in steps.items():
                totals[name] += np.asarray(step(params, placed, jnp.int32(index)))
        return {
            name: {"loss": float(loss / max(count, 1.0)), "accuracy": float(correct / max(count, 1.0))}
            for name, (loss, correct, count) in totals.items()
        }

    return evaluate


def _train(setting: Setting, signals: Signals) -> Path:
    run, folder = setting.run, setting.folder
    with processes.together():
        batches = Batches(run.data)
    state, spent, departures = start(setting, make_optimizer(run.optimizer, run.phases[0].schedule.peak))
    stream = batches.stream(int(state.step), sharding.own_rows(setting.mesh, run.data.global_batch_size))
    saver = checkpoint.Saver(folder, run.keep_checkpoints, tuple(last for _, last in run.bounds))
    recorder = Recorder(
        run,
        setting.model.config,
        folder,
        setting.mesh,
        attention=setting.attention,
        kept={**setting.decides, "departures": departures},
        step=int(state.step),
        spent=spent,
    )
    evaluate = make_evaluate(setting, recorder.clock, signals)
    try:
        try:
            for phase, (first, last) in zip(run.phases, run.bounds, strict=True):
                if int(state.step) <= last:
                    state = _train_phase(setting, phase, first, last, state, stream, saver, evaluate, recorder, signals)
        finally:
            with recorder.clock.doing(WAITING):
                stream.close()
            with recorder.clock.doing(SAVING):
                saver.close()
    except BaseException:
        recorder.abandon()
        raise
    recorder.close(batches)
    return folder


def _train_phase(
    setting: Setting,
    phase: Phase,
    first: int,
    last: int,
    state: TrainState,
    stream: Iterator[dict[str, np.ndarray]],
    saver: checkpoint.Saver,
    evaluate: Callable,
    recorder: Recorder,
    signals: Signals,
) -> TrainState:
    """The steps of a phase that are not made yet: next batch, update, then the actions that are due."""
    run, clock = setting.run, recorder.clock
    tx = make_optimizer(run.optimizer, phase.schedule.peak)
    with clock.doing(COMPILING):
        update = clock.compiled(compile_phase(setting, phase, first, last, tx))

    def evaluate_if_due(done: int) -> None:
        if (done in (0, last) or done % run.eval_every == 0) and recorder.spent["evaluated"] != done:
            with recorder.doing(EVALUATION):
                results = evaluate(state.params)
            if results is not None:  # else it is due when the run goes on
                recorder.held_out(done, phase, results)

    evaluate_if_due(int(state.step))
    if int(state.step) == first and phase.optimizer_state == "reset":
        with clock.doing(COMPILING):
            fresh = jax.jit(tx.init, out_shardings=_state_shardings(setting, tx).opt_state)
            state = state._replace(opt_state=fresh(state.params))
    for step in range(int(state.step), last):
        batch = sharding.put(clock.fetch(stream), setting.mesh, run.data.global_batch_size)
        state, metrics = update(state, batch)
        recorder.step(step, phase, metrics)
        signals.began(remember=jax.process_count() == 1)
        done = step + 1
        evaluate_if_due(done)
        if done == last or done % run.checkpoint_every == 0 or signals.asked is not None:
            with recorder.doing(SAVING):
                saver.save(done, state, recorder.facts())
            recorder.saved(done, phase)
            if signals.asked is not None:
                raise Stopped(signals.asked, f" at step {done}, saved")
    return state
