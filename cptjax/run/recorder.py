"""What the loop tells of itself: sums, clock, log and terminal, and run.json at the end.

The sums stand in every checkpoint, so a run that goes on knows them whatever became of its log.
"""

import contextlib
import copy
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import jax

from cptjax.command.bar import bar
from cptjax.command.escape import say
from cptjax.config import Phase, Run, to_dict
from cptjax.data.batches import Batches
from cptjax.files import naming, write_json
from cptjax.machine import devices, provenance
from cptjax.machine.energy import EnergyMeter
from cptjax.run import checkpoint, events, plots
from cptjax.run.boards import Board, TensorBoard, WeightsAndBiases
from cptjax.run.clock import COMPILING, EVALUATION, KINDS, SAVING, STEPS, WAITING, Clock
from cptjax.run.memory import flops_per_token
from cptjax.run.record import Sums, describe_run
from cptjax.run.sentences import Filled
from cptjax.run.set_up import Setting

COUNTED = tuple(field.name for field in fields(Sums))


def nothing_spent(run: Run) -> dict[str, Any]:
    """The sums of a run before its first step: of all of it, and of each phase."""
    zeros = dict.fromkeys(COUNTED, 0.0)
    results = {"held_out_before": None, "held_out": None}  # at step 0, and last
    return {
        **zeros,
        "device_seconds": 0.0,  # of steps
        "metered": True,  # whether the energy of all of it was read
        "evaluated": -1,  # steps made before the last evaluation
        "skipped": [],  # steps that changed nothing
        "phases": {phase.name: {**zeros, **results} for phase in run.phases},
    }


class Recorder:
    """Reads each step's metrics one step late, so that the device never waits, and keeps the sums.

    As a context it leaves a run that fails with what is written.
    """

    def __init__(
        self,
        setting: Setting,
        departures: Sequence[Mapping[str, Any]],
        step: int,
        spent: dict[str, Any],
        says: Sequence[str] = (),  # before the first step
    ):
        run, folder, mesh, attention = setting.run, setting.folder, setting.mesh, setting.attention
        self._setting, self._departures, self._start, self.spent = setting, list(departures), step, spent
        self._pending: Any = None
        self._saved: list[int] = []  # the last step that was given to be saved: it may not be on the disk yet
        self._first = jax.process_index() == 0
        boards: list[Board] = []
        if self._first and run.tensorboard:
            boards.append(TensorBoard(folder, step))
        if self._first and run.wandb is not None:
            boards.append(WeightsAndBiases(folder, run.wandb, run.name, to_dict(run), len(departures)))
        self._log = events.EventLog(folder, step, self._first, spent["evaluated"], boards)
        logged = [event for event in events.read_events(folder / "events.jsonl") if "loss" in event]
        self._losses = deque(((event["phase"], event["loss"]) for event in logged), maxlen=plots.BEFORE)
        self._energy = EnergyMeter(mesh.local_devices)
        self.clock = Clock(self._energy.joules)
        self._say("attention: {backend} ({reason})".format(**attention))
        self._say(f"dropout: {run.dropout_of(setting.model.config)}")
        for line in says:
            self._say(line)
        self._bar = bar(run.stretches[-1].last, "step", done=step, leave=True, hidden=not self._first)

    def _say(self, text: str) -> None:
        if self._first:
            with contextlib.suppress(OSError):  # a terminal that is gone ends no run
                say(text)

    def _add(self, phase: Phase, amounts: Mapping[str, float]) -> None:
        for sums in (self.spent, self.spent["phases"][phase.name]):
            for name, amount in amounts.items():
                sums[name] += amount

    def _take(self, phase: Phase, *kinds: str) -> dict[str, float]:
        taken = self.clock.take(*kinds)
        self._add(phase, taken)
        self.spent["device_seconds"] += taken.get(STEPS, 0.0) * self._setting.mesh.size
        self.spent["metered"] &= self.clock.metered
        return {kind: taken[kind] for kind in kinds}

    def step(self, step: int, phase: Phase, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics of a step just dispatched; write those of the step before it."""
        self.clock.watch(metrics["loss"])
        self.flush()
        self._pending = (step, phase, metrics, self._take(phase, WAITING, COMPILING))

    def flush(self) -> None:
        """Wait for the last step and write its event. Raises FloatingPointError when it is not finite and was skipped
        beyond the run's limit."""
        if self._pending is None:
            return
        step, phase, metrics, before = self._pending
        self._pending = None
        values = {name: float(value) for name, value in metrics.items()}
        if values.pop("skipped"):
            self._skipped(step, phase, values)
            return
        seconds = self._take(phase, STEPS)[STEPS]
        if values["overflow"] and not self.spent["overflow"]:
            self._say(
                f"step {step}: {values['overflow']:.0f} chosen positions beyond the mask budget were not trained on"
            )
        self._add(phase, {name: values[name] for name in ("tokens", "targets", "overflow")})
        event = {"step": step, "phase": phase.name, **values, STEPS: seconds, **_some(before)}
        event |= {"tokens_per_s": values["tokens"] / seconds, **self._speed(values, phase, seconds)}
        del event["keys"]
        before = [loss for name, loss in self._losses if name == phase.name]
        event |= {"spike": True} if plots.spikes([*before, values["loss"]]) else {}
        self._losses.append((phase.name, values["loss"]))
        self._log.write(event)
        share = {"mfu": f"{event['mfu']:.0%}"} if "mfu" in event else {}
        self._bar.set_postfix(
            {"phase": phase.name, "loss": f"{values['loss']:.3f}", "rate": f"{values['learning_rate']:.1e}"}
            | {"tokens/s": f"{event['tokens_per_s']:,.0f}"}
            | share,
            refresh=False,
        )
        self._bar.update()

    def _skipped(self, step: int, phase: Phase, values: Mapping[str, float]) -> None:
        """Tell of a step that changed nothing."""
        run = self._setting.run
        asked, said = step in run.skip_steps, f"loss {values['loss']}, gradient norm {values['grad_norm']}"
        why = "one of skip_steps" if asked else said
        self.spent["skipped"] = [*self.spent["skipped"], step]
        self._log.write({"step": step, "phase": phase.name, "skipped": why, **self._take(phase, STEPS)})
        self._bar.update()
        bad = [step for step in self.spent["skipped"] if step not in run.skip_steps]
        if asked or len(bad) <= run.most_skipped:
            self._say(f"step {step} ({phase.name}) changed nothing: {why}")
            return
        # What was saved since the first of them may hold weights that give no better.
        steps = {*checkpoint.survey(self._setting.folder).whole, *self._saved}
        saved = max((step for step in steps if step <= bad[0]), default=None)
        number = run.phases.index(phase)
        advice = (
            "none, begin again with another rate and another --workdir"
            if saved is None
            else f"step {saved}; --from-step {saved} goes on from there with another rate, such as "
            f"--phases.{number}.schedule.peak {phase.schedule.peak / 2:g}, or without some batches, as --skip-steps "
            f"{' '.join(map(str, bad))}"
        )
        raise FloatingPointError(
            f"{said} at step {step} (phase {phase.name}); last good checkpoint: {advice}; such steps changed nothing: "
            f"{', '.join(map(str, bad))}"
        )

    def _speed(self, values: dict[str, float], phase: Phase, seconds: float) -> dict[str, float]:
        """Model FLOP/s and, on a device whose peak is known, the share of it (MFU)."""
        tokens = max(values["tokens"], 1.0)
        mode, keys = phase.objective.mask_mode, values["keys"] / tokens
        flops = flops_per_token(self._setting.model.config, mode, keys, values["targets"] / tokens)
        flops = tokens * sum(flops.values())
        speed = {"model_tflops_per_s": flops / seconds / 1e12}
        if (peak := devices.peak_flops(jax.devices()[0].device_kind)) is not None:
            speed["mfu"] = flops / seconds / (peak * jax.device_count())
        return speed

    @contextlib.contextmanager
    def doing(self, kind: str) -> Iterator[None]:
        """An action between two steps: the last one is over, and the clock of steps stands still."""
        self.flush()
        if kind == COMPILING:  # it takes longest where nothing was shown yet
            self._bar.set_description_str("compiling")
        with self.clock.doing(kind):
            yield
        self._bar.set_description_str("", refresh=False)

    def gradients(self, step: int, phase: Phase, norms: Mapping[str, Any]) -> None:
        """Write the norms of the gradient of a step, of each part of the model; None: it is not finite."""
        told = {name: float(norm) if math.isfinite(norm) else None for name, norm in norms.items()}
        took = self._take(phase, EVALUATION, COMPILING)
        self._log.write({"step": step, "phase": phase.name, "gradients": told, **_some(took)})

    def evaluated(self, step: int, phase: Phase, held_out: dict[str, dict[str, float]], filled: Filled) -> None:
        """Write an evaluation made before `step`, and of what is no number only that."""
        numbers = {name: results for name, results in held_out.items() if all(map(math.isfinite, results.values()))}
        if strange := [name for name in held_out if name not in numbers]:
            self._say(f"step {step} ({phase.name}) held out: {', '.join(strange)} is no number")
        held_out = numbers
        if any(not math.isfinite(share) for masks in filled.values() for words in masks for _, share in words):
            filled = {}
        took = self._take(phase, EVALUATION, COMPILING)
        self.spent["evaluated"] = step
        if held_out or strange:
            sums = self.spent["phases"][phase.name]
            sums["held_out"] = held_out
            if step == 0:
                sums["held_out_before"] = held_out
        if not held_out and not filled:
            return
        flat = {f"held_out/{name}/{what}": x for name, r in held_out.items() for what, x in r.items()}
        words = {"filled": filled} if filled else {}
        self._log.write({"step": step, "phase": phase.name, "held_out": held_out, **words, **flat, **_some(took)})
        results = ", ".join(f"{name} loss {r['loss']:.3f} accuracy {r['accuracy']:.3f}" for name, r in held_out.items())
        best = ", ".join(plots.best_word(mask) for masks in filled.values() for mask in masks)
        told = {"held out": results, "filled": best}
        self._say(f"step {step} ({phase.name}) {'; '.join(f'{what}: {x}' for what, x in told.items() if x)}")
        if self._first and step > 0:  # before it there is nothing to see, and matplotlib takes a second
            with self.clock.doing(EVALUATION), contextlib.suppress(OSError):  # at the end it is raised
                self._draw()

    def _draw(self) -> None:
        folder = self._setting.folder
        plots.plot(events.read_events(folder / "events.jsonl"), folder / "plot.png", self._setting.run.name)

    def saved(self, step: int, phase: Phase) -> None:
        """Write what a checkpoint of `step` took, and the plot before it: that it has not in its own sums."""
        self._log.write({"step": step, "phase": phase.name, **_some(self._take(phase, SAVING, EVALUATION))})
        self._log.flush()
        self._saved = [step]

    def facts(self) -> dict[str, Any]:
        """What is kept beside a checkpoint: a copy, for it is written while the run goes on."""
        return {
            **self._setting.decides,
            "departures": self._departures,
            "spent": copy.deepcopy(self.spent),
            "commit": provenance.git_commit(),
        }

    def close(self, batches: Batches) -> None:
        """Write run.json and the plot. Raises OSError when the disk refuses; the run is saved then, too."""
        run, folder = self._setting.run, self._setting.folder
        last = run.stretches[-1].last
        self._take(run.phases[-1], *KINDS)
        self._bar.close()
        self._log.close()
        if not self._first or (self._start == last and (folder / "run.json").is_file()):  # it had ended before
            return
        record = describe_run(
            run,
            self._setting.model.config,
            folder,
            spent=self.spent,
            departures=self._departures,
            parents=self._setting.decides["parents"],
            epochs=batches.epochs(last),
            tokens=batches.tokens(last),
            fill=batches.fill,
            by_source=batches.by_source(),
            energy_by=self._energy.method,
            attention=self._setting.attention,
        )
        with naming(folder / "run.json"):
            write_json(folder / "run.json", asdict(record))
        self._draw()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        if kind is not None:
            self._bar.close()
            self._log.abandon()


def _some(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in seconds.items() if value}
