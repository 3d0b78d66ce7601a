"""The loop: phases in order; a batch, an update, then the actions that are due. Run it again to go on.

Everything a step needs is a function of (run, step), so a run killed anywhere and started by the same
command gives the numbers of an undisturbed one.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

from cptjax import sharding
from cptjax.command.signals import Signals, Stopped
from cptjax.config import Run, Stretch
from cptjax.data.batches import Batches
from cptjax.files import locked
from cptjax.machine import processes
from cptjax.machine.wire import Wire
from cptjax.run import agreement
from cptjax.run.checkpoint import Saver
from cptjax.run.clock import COMPILING, EVALUATION, SAVING, WAITING
from cptjax.run.evaluate import make_evaluate
from cptjax.run.recorder import Recorder
from cptjax.run.set_up import Inputs, Setting, open_inputs, set_up, shared
from cptjax.run.sizing import Pace, few, in_words, pace_here, time_left, where
from cptjax.run.start import convert_weights, start, write_own_files
from cptjax.run.update import compile_gradients, compile_update, fresh_optimizer
from cptjax.step import TrainState


def train(run: Run, folder: Path, from_step: int | None = None) -> Path:
    """Train `run` in `folder`, or go on with what is there; returns the folder.

    With `from_step` it goes back to the checkpoint of that step, from where schedules and the optimizer may be
    others. Raises ValueError for a run that cannot work here or contradicts the folder, FloatingPointError when
    the loss or the gradient stops being finite, OSError when the disk refuses a checkpoint, Stopped when a
    signal asked for an end, after a step that all processes had come to was saved.
    """
    with Signals() as signals, processes.watched(signals) as wire:
        return _train_together(run, folder, from_step, signals, wire)


def _train_together(run: Run, folder: Path, from_step: int | None, signals: Signals, wire: Wire) -> Path:
    first = jax.process_index() == 0
    with processes.together():
        inputs = open_inputs(run, folder, from_step)
    processes.compare(lambda: agreement.of_run(run))  # before anything is written
    with processes.together():
        if first:
            convert_weights(inputs)
    with processes.together():
        setting = set_up(inputs)
        pace = pace_here(run, setting.model.config)  # before there is a mesh
    processes.compare(lambda: shared(inputs, setting))
    with contextlib.ExitStack() as held:
        with processes.together():
            if first:
                held.enter_context(locked(folder))
                inputs.check_unchanged()
                write_own_files(inputs, setting)
        held.enter_context(jax.set_mesh(setting.mesh))
        held.enter_context(run.precision.products())
        return _train(inputs, setting, pace, signals, wire)


class Moment(NamedTuple):
    """Where the loop stands: `done` steps are made, the last of them in this stretch."""

    stretch: Stretch
    done: int
    state: TrainState
    metrics: dict[str, jax.Array]  # of the last step; empty before the first of this process


Action = Callable[[Moment], None]


def _train(inputs: Inputs, setting: Setting, pace: Pace | None, signals: Signals, wire: Wire) -> Path:
    run = setting.run
    with processes.together():
        batches = Batches(run.data)
    state, spent, departures = start(inputs, setting)
    stream = batches.stream(int(state.step), sharding.own_rows(setting.mesh, run.data.global_batch_size))
    ends = tuple(stretch.last for stretch in run.stretches)
    saver = Saver(setting.folder, run.keep_checkpoints, ends, run.milestone_every, wire.fail)
    done = int(state.step)
    says = [*in_words(run, batches, setting.micro_batches), *few(run), *where(run, done, setting.folder)]
    says += time_left(run, setting.model.config, done, setting.mesh.size, pace)
    recorder = Recorder(setting, departures, done, spent, says)
    clock = recorder.clock
    wire.excuse = lambda: clock.kind in (COMPILING, SAVING)
    record, evaluate, save = actions(setting, recorder, saver, signals, wire)
    with recorder, clock.closing(SAVING, saver), clock.closing(WAITING, stream):
        for stretch in run.stretches:
            if int(state.step) > stretch.last:
                continue
            with recorder.doing(COMPILING):
                update = clock.compiled(compile_update(setting, stretch))
                gradients = clock.compiled(compile_gradients(setting, stretch.phase))
            evaluate(Moment(stretch, int(state.step), state, {}))
            if int(state.step) == stretch.first and stretch.phase.optimizer_state == "reset":
                with recorder.doing(COMPILING):
                    state = fresh_optimizer(setting, state)
            for step in range(int(state.step), stretch.last):
                batch = sharding.put(clock.fetch(stream), setting.mesh, run.data.global_batch_size)
                if run.gradients_every and step % run.gradients_every == 0:
                    with recorder.doing(EVALUATION):
                        norms = jax.device_get(gradients(state, batch))
                    recorder.gradients(step, stretch.phase, norms)
                state, metrics = update(state, batch)
                for action in (record, evaluate, save):
                    action(Moment(stretch, step + 1, state, metrics))
    recorder.close(batches)
    return setting.folder


def actions(
    setting: Setting, recorder: Recorder, saver: Saver, signals: Signals, wire: Wire
) -> tuple[Action, Action, Action]:
    """What is done after each step where it is due, by clocks of its own: record, evaluate, save."""
    run = setting.run
    measure = make_evaluate(setting, recorder.clock, wire)

    def record(moment: Moment) -> None:
        recorder.step(moment.done - 1, moment.stretch.phase, moment.metrics)
        signals.began(remember=jax.process_count() == wire.count)
        wire.meet()

    def evaluate(moment: Moment) -> None:
        stretch, done, state, _ = moment
        if (done in (0, stretch.last) or done % run.eval_every == 0) and recorder.spent["evaluated"] != done:
            with recorder.doing(EVALUATION):
                measured = measure(state.params)
            if measured is not None:  # else it is due when the run goes on
                recorder.evaluated(done, stretch.phase, *measured)

    def save(moment: Moment) -> None:
        stretch, done, state, _ = moment
        due = any(done % every == 0 for every in (run.checkpoint_every, run.milestone_every) if every)
        if due or done == stretch.last or wire.asked is not None:
            with recorder.doing(SAVING):
                saver.save(done, state, recorder.facts())
            recorder.saved(done, stretch.phase)
            if (signum := wire.meet()) is not None:
                raise Stopped(signum, f" at step {done}, saved")

    return record, evaluate, save
