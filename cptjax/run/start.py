"""How a run begins: what its folder says of itself, and the state before its first step."""

import contextlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cptjax.command import errors
from cptjax.command.escape import say
from cptjax.config import Run, to_dict
from cptjax.files import TOKENIZER_FILES, read_json, write_json
from cptjax.machine import hub, processes
from cptjax.model import init_params
from cptjax.run import checkpoint
from cptjax.run.recorder import nothing_spent
from cptjax.run.resume import Resumption, leave_behind
from cptjax.run.set_up import Inputs, Setting, check_tokenizer
from cptjax.run.update import state_shapes, state_shardings
from cptjax.step import TrainState, init_state


class Start(NamedTuple):
    """The state that the loop begins with, what was spent before it, and the departures that led to it."""

    state: TrainState
    spent: dict[str, Any]
    departures: list[dict[str, Any]]


def convert_weights(inputs: Inputs) -> None:
    """Bring what `run.init` names into our own form, beside the run, where it is a Hugging Face folder or id.

    Anew until the run has written its folder, for an attempt that was refused may have left another model there.
    As a user would, and on the CPU: this process has the devices. It may take minutes, so a tokenizer that is not the
    stores' is refused before, by ValueError.
    """
    run = inputs.run
    if inputs.resumption.begun or run.branch or run.init is None or (Path(run.init) / checkpoint.MODEL).exists():
        return
    source = Path(run.init)
    with contextlib.suppress(FileNotFoundError):  # the conversion says what else there is not
        check_tokenizer(inputs, run.init, source if source.is_dir() else hub.fetch(run.init, TOKENIZER_FILES))
    command = errors.own_command("convert", "from-hf", run.init, str(inputs.start), "--overwrite")
    subprocess.run(command, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})


def write_own_files(inputs: Inputs, setting: Setting) -> None:
    """Write what the run folder says of itself: its config and, until it has a checkpoint, its model and tokenizer."""
    run, folder, origin = setting.run, setting.folder, inputs.start
    if not inputs.resumption.candidates:
        # The model's own tokenizer files: a store keeps the same vocabulary, but perhaps less beside it. Only
        # where the model has no more than tokenizer.json does the store know more.
        given = run.branch or run.init
        own = origin / checkpoint.TOKENIZER
        store = Path(next(iter(run.data.shares)))
        tokenizer = own if given and (own / "tokenizer_config.json").is_file() else store / checkpoint.TOKENIZER
        hf_config = origin / checkpoint.HF_CONFIG
        checkpoint.write_model(
            folder,
            setting.model.config,
            tokenizer=tokenizer,
            hf_config=read_json(hf_config) if given and hf_config.is_file() else None,
            origin=_origin(run, origin),
        )
    write_json(folder / "config.json", to_dict(run))


def _origin(run: Run, folder: Path) -> dict[str, Any] | None:
    """Where the first weights come from: what `folder`, the start, or the first run of its line, was converted from, or
    another run."""
    told = folder / checkpoint.ORIGIN
    if run.branch:
        return read_json(told) if told.is_file() else None
    if run.init is None:
        return None
    converted = checkpoint.latest_step(folder) == 0 and told.is_file()
    return read_json(told) if converted else {"source": run.init, "revision": None}


def start(inputs: Inputs, setting: Setting) -> Start:
    """What the loop begins with, from the first that there is: 1 the folder's last whole checkpoint; 2 the state of
    `run.branch`, by a clock that begins anew; 3 the weights of `run.init`; 4 random weights, of the run's `model`."""
    if inputs.resumption.candidates:
        return _go_on(setting, inputs.resumption)
    run = setting.run
    if run.branch:
        with processes.together():
            step, _, facts = checkpoint.find(inputs.start, run.branch.step)
        state = checkpoint.resume(inputs.start, facts, step, state_shapes(setting))
        first = jax.device_put(jax.numpy.int32(0), state.step.sharding)
        return Start(state._replace(step=first), nothing_spent(run), [])
    params = partial(init_params, setting.model, jax.random.key(run.seed))
    shardings = state_shardings(setting)
    if run.init:
        whole = checkpoint.parameter_shapes(setting.model.config)
        with processes.together():
            drawn = whole.keys() - checkpoint.parameter_shapes(checkpoint.read_model(inputs.start)).keys()
        known = {name: where for name, where in shardings.params.items() if name not in drawn}
        _, _, loaded = checkpoint.load_params(inputs.start, shardings=known)
        if drawn and jax.process_index() == 0:
            say(f"{run.init} has no language-model head: a new one is drawn (seed {run.seed})", stream=sys.stderr)

        def complete(loaded):
            fresh = params() if drawn else {}
            return init_state({name: loaded[name] if name in loaded else fresh[name] for name in whole}, setting.tx)

        state = jax.jit(complete, out_shardings=shardings, donate_argnums=0)(loaded)
    else:
        state = jax.jit(lambda: init_state(params(), setting.tx), out_shardings=shardings)()
    return Start(state, nothing_spent(run), [])


def _go_on(setting: Setting, resumption: Resumption) -> Start:
    """The last of the candidates whose arrays are what was saved. Damaged checkpoints are named and set aside, so
    that none is written into; and so, without a word of damage, are those that a departure leaves behind."""
    folder, first = setting.folder, jax.process_index() == 0
    steps = checkpoint.survey(folder)
    damaged = dict(steps.damaged)
    for step, facts in resumption.candidates.items():
        try:
            state = checkpoint.resume(folder, facts, step, state_shapes(setting))
            break
        except checkpoint.DamagedError as error:
            damaged[str(step)] = str(error)
    else:
        raise ValueError(f"{folder} holds no whole checkpoint to go on from ({'; '.join(damaged.values())})")
    departures = [*facts["departures"], *filter(None, [resumption.departure])]
    with processes.together():
        for reason in damaged.values():
            errors.warn_of_damage(f"{reason}; without it the run goes on from step {step}")
    with processes.together():
        if first:
            for name in damaged:
                checkpoint.set_aside(folder / checkpoint.CHECKPOINTS / name, folder)
        if first and resumption.departure is not None:
            leave_behind(folder, [later for later in steps.whole if later > step])
            changed = "; ".join(resumption.departure["changed"]) or "the same config"
            came_after = f"what came after is in {folder / checkpoint.ASIDE}"
            say(f"back to step {step} with {changed}; {came_after}", stream=sys.stderr)
    return Start(state, nothing_spent(setting.run) | facts["spent"], departures)
