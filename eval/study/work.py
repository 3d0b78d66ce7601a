"""Doing a study: runs are trained and measured, what is not done yet, in an order that gives the most early.

A unit is one evaluation of one arm and seed. It needs runs, which are trained when they are first needed; its figures
are added to the file all at once, so that a study that was killed goes on with the next. Processes, on machines that
share the folder, may work on it together: each takes the first unit whose runs no other holds. What holds a run ends
with its process.

N layers, the embeddings the first; T texts, D width.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import jax

from convert import from_hf
from convert.to_hf import convert_checkpoint
from cptjax.command.escape import say
from cptjax.config import Run
from cptjax.data.store import Store
from cptjax.files import folder_hashes, hash_of, locked, read_json, write_json
from cptjax.machine.provenance import git_commit
from cptjax.rows import Row, append_rows, drop_cut_line, read_rows
from cptjax.run import checkpoint
from cptjax.run.clock import KINDS
from cptjax.run.events import read_events
from cptjax.run.set_up import trains
from cptjax.train import train
from eval import sweep
from eval.analysis import alike, cka
from eval.analysis.collect import collect, open_model
from eval.analysis.drift import CHANGE, EVERY, WHOLE, drift
from eval.protocols import protocol_of
from eval.study.figures import FIGURES, Figure, check_settings, read_figures
from eval.study.study import (
    CKA,
    DRIFT,
    HELD_OUT,
    Planned,
    Study,
    Tasks,
    Unit,
    asked_of,
    control_seed,
    fine_tuning_seeds,
    of_run,
    plan,
    units,
)
from eval.tasks.registry import chosen

MOVING = (EVERY, "attn", "mlp")  # components of a layer
PAUSE = 1.0  # seconds until a process looks again whether others have left it something
OWN = "study.json"  # of a run folder: what the study trained it with, and whether it diverged


class Number(NamedTuple):
    """A figure without what all of its unit share."""

    part: str
    metric: str
    value: float | None


@dataclass(frozen=True)
class Place:
    """Where a study lies and what it reads."""

    study: Study
    folder: Path
    data: Path | None = None  # that the tasks' folders lie in
    texts: Sequence[str] = ()  # that likeness is measured on

    @property
    def figures(self) -> Path:
        """The file of figures."""
        return self.folder / FIGURES

    def run_folder(self, arm: str, seed: int) -> Path:
        """Of an arm and seed."""
        return self.folder / "runs" / f"{arm}_{seed}"

    def is_trained(self, arm: str, seed: int) -> bool:
        """Whether a run has come to its end."""
        return (self.run_folder(arm, seed) / "run.json").is_file()

    @cached_property
    def starts(self) -> dict[str, Path]:
        """The run folder that each `init` of the arms is, or was converted to."""
        starts = {}
        for init in dict.fromkeys(arm.change(self.study.run).init for arm in self.study.arms):
            if init is None:
                continue
            starts[init] = Path(init).absolute()
            if not (starts[init] / checkpoint.MODEL).is_file():
                now = hash_of(folder_hashes(from_hf.find(init)))
                starts[init] = (self.folder / "starts" / now[:16]).absolute()
                with locked(starts[init].parent, wait=True):
                    if not starts[init].exists():
                        from_hf.convert_folder(init, starts[init])
        return starts

    @cached_property
    def plans(self) -> dict[int, dict[str, Planned]]:
        """The runs, by seed and arm."""
        return {
            seed: plan(self._started, seed, lambda arm, seed=seed: self.run_folder(arm, seed).absolute())
            for seed in self.study.seeds
        }

    @cached_property
    def _started(self) -> Study:
        def started(run: Run) -> Run:
            return replace(run, init=run.init and str(self.starts[run.init]))

        arms = [replace(arm, change=lambda run, change=arm.change: started(change(run))) for arm in self.study.arms]
        return replace(self.study, arms=tuple(arms))

    @cached_property
    def tasks(self) -> dict[str, sweep.Prepared]:
        """The tasks, read and checked."""
        asked = self.study.tasks or Tasks(names=())
        return {
            task.name: sweep.prepare(
                task,
                self.data,
                protocol_of(asked.protocol or task.protocol, task.kind, asked.change),
                (),
                asked.examples,
            )
            for task in chosen(asked.names, asked.language)
        }

    @cached_property
    def contents(self) -> dict[str, str]:
        """The hash of what lies at each path that runs name: stores and first weights."""
        runs = [planned.whole for planned in next(iter(self.plans.values())).values()]
        stores = {path for run in runs for path in (*run.data.shares, *filter(None, [run.held_out]))}
        hashes = {path: Store(path).manifest.fingerprint for path in stores}
        sums = {str(path): checkpoint.find(path, None)[2]["checksums"]["params"] for path in self.starts.values()}
        return hashes | {path: hash_of(of_weights) for path, of_weights in sums.items()}

    def settings(self, unit: Unit) -> str:
        """The hash of all that the figures of a unit depend on."""
        if unit.evaluation == CKA:
            assert self.study.likeness
            likeness = {**asdict(self.study.likeness), "pairs": [], "texts": hash_of([*self.texts])}
            seeds = [unit.seed, control_seed(self.study, unit.seed)]
            return hash_of([*(self.of_run(arm, seed) for arm in (unit.arm, unit.against) for seed in seeds), likeness])
        own = self.of_run(unit.arm, unit.seed)
        if unit.evaluation in (HELD_OUT, DRIFT):
            return own
        on = self.tasks[unit.evaluation]
        return hash_of([own, on.data, on.protocol_hash, fine_tuning_seeds(self.study, unit.seed)])

    def of_run(self, arm: str, seed: int) -> str:
        """The hash of all that decides the numbers of a run, wherever it lies."""
        run = self.plans[seed][arm].whole
        stores = [[self.contents[path], share] for path, share in run.data.stores]
        first, held_out = (path and self.contents[path] for path in (run.init, run.held_out))
        return hash_of([of_run(run), seed, stores, first, held_out])


def work(place: Place, minutes: float | None = None) -> None:
    """Do what is not done yet; with `minutes` begin nothing that would not end in them, by how long the like took.

    Raises ValueError for figures of other settings, and as training and evaluations do, but goes on after a training
    that diverged.
    """
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    if place.study.likeness and not place.texts:
        say("no --texts are given: how alike layers are is not measured", stream=sys.stderr)
        place = replace(place, study=replace(place.study, likeness=None))
    elif place.study.likeness and len(place.study.seeds) == 1:
        say(
            "one seed has no other to set beside it: how alike layers are is measured once there are two",
            stream=sys.stderr,
        )
    elif place.study.likeness and len(place.texts) < cka.LEAST_TEXTS:
        raise ValueError(f"--texts has {len(place.texts)} texts: CKA takes at least {cka.LEAST_TEXTS}")
    _check_frozen(place)
    every = units(place.study)
    settings = {unit: place.settings(unit) for unit in every}
    with locked(place.folder, wait=True):
        drop_cut_line(place.figures, Figure)
    while True:
        check_settings(place.figures, figures := _known(place), settings)
        done, took = {figure.unit for figure in figures}, _took(figures)
        if not (left := [unit for unit in every if unit not in done]):
            return
        with first_free(place, left) as unit:
            usual = mean(took.get((unit or left[0]).evaluation, [0.0]))
            if deadline is not None and time.monotonic() + usual > deadline:
                say(f"{minutes:g} minutes: {len(left)} of {len(every)} are left; the same command goes on")
                return
            if unit is None:
                time.sleep(PAUSE)
                continue
            number = every.index(unit) + 1
            say(f"{unit.evaluation} of {unit.arm}, seed {unit.seed} ({number} of {len(every)})", stream=sys.stderr)
            seconds, numbers = _evaluated(place, unit)
            made = _figures(place.study, unit, settings[unit], seconds, numbers)
            with locked(place.folder, wait=True):
                append_rows(place.figures, made)


@contextlib.contextmanager
def first_free(place: Place, left: Sequence[Unit]) -> Iterator[Unit | None]:
    """The first of some units whose runs no other process holds, which holds them; none where others hold all."""
    for unit in left:
        with contextlib.ExitStack() as held:
            try:
                for arm, seed in _runs_of(place, unit):
                    held.enter_context(locked(place.folder / "held" / f"{arm}_{seed}"))
            except ValueError:  # another does
                continue
            if unit not in {figure.unit for figure in _known(place)}:  # another may just have done it
                yield unit
                return
    yield None


def _known(place: Place) -> list[Figure]:
    with locked(place.folder, wait=True):
        return read_figures(place.figures)


def _runs_of(place: Place, unit: Unit) -> list[tuple[str, int]]:
    """The runs that a unit is of, and those that are trained for it."""
    beside = []
    if unit.evaluation == CKA:
        beside = [(unit.against, seed) for seed in (unit.seed, control_seed(place.study, unit.seed))]
    runs = [(unit.arm, unit.seed), *(run for run in beside if not place.is_trained(*run))]
    for arm, seed in runs:  # which grows
        parent = place.plans[seed][arm].of
        if parent and not place.is_trained(arm, seed) and not place.is_trained(parent, seed):
            runs.append((parent, seed))
    return [*dict.fromkeys(runs)]


def _took(figures: Sequence[Figure]) -> dict[str, list[float]]:
    """Seconds of each unit by evaluation."""
    by_unit = {figure.unit: figure for figure in figures}
    took: dict[str, list[float]] = {}
    for figure in by_unit.values():
        took.setdefault(figure.evaluation, []).append(figure.seconds)
    return took


def _figures(study: Study, unit: Unit, settings: str, seconds: float, numbers: Sequence[Number]) -> list[Figure]:
    cores = len(os.sched_getaffinity(0))
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {cores} cores, jax {jax.__version__}"
    asked, commit = asked_of(study, unit), git_commit()
    return [
        Figure(
            **unit._asdict(),
            **number._asdict(),
            settings=settings,
            asked=asked,
            seconds=round(seconds, 1),
            devices=devices,
            commit=commit,
        )
        for number in numbers
    ]


def _evaluated(place: Place, unit: Unit) -> tuple[float, list[Number]]:
    """Seconds and numbers of a unit, once the runs that it needs are trained. The seconds of training are those of a
    run's first evaluation."""
    try:
        return _measured(place, unit)
    except FloatingPointError as error:
        say(f"{error}: {unit.evaluation} of {unit.arm}, seed {unit.seed} has no numbers", stream=sys.stderr)
        return 0.0, [Number("", "diverged", None)]


def _measured(place: Place, unit: Unit) -> tuple[float, list[Number]]:
    folder = _trained(place, unit.arm, unit.seed)
    if unit.evaluation == HELD_OUT:
        cost = read_json(folder / "run.json")["cost"]
        hours = sum(cost[kind.replace("seconds", "hours")] for kind in KINDS)
        return 3600 * hours, [*_held_out(place.plans[unit.seed][unit.arm], folder)]
    began = time.monotonic()
    if unit.evaluation == CKA:
        seeds = unit.seed, control_seed(place.study, unit.seed)
        others = [_trained(place, unit.against, seed) for seed in seeds]
        began, numbers = time.monotonic(), [*_alike(place, [folder, *others])]
    elif unit.evaluation == DRIFT:
        numbers = [*_moved(folder)]
    else:
        rows, before = _scored(place, unit, folder)
        numbers = [Number(str(row.seed), row.metric, row.value) for row in rows]
        began -= before
    return time.monotonic() - began, numbers


def _trained(place: Place, arm: str, seed: int) -> Path:
    """The folder of a run, trained to its end if it is not yet. Raises ValueError for a folder of other settings,
    FloatingPointError where its training diverged, now or before."""
    planned, folder, own = place.plans[seed][arm], place.run_folder(arm, seed), {"settings": place.of_run(arm, seed)}
    if (folder / "checkpoints").exists() or (folder / OWN).exists():
        told = read_json(folder / OWN) if (folder / OWN).exists() else {}
        if told.get("settings") != own["settings"]:
            raise ValueError(f"{folder} was trained with other settings: give those again, or another --workdir")
        if why := told.get("diverged"):
            raise FloatingPointError(why)
    if not place.is_trained(arm, seed):
        if planned.of:
            _trained(place, planned.of, seed)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / OWN, own)
        try:
            train(planned.own, folder)
        except FloatingPointError as error:
            write_json(folder / OWN, {**own, "diverged": str(error)})
            raise
        jax.clear_caches()  # no other run has these programs
    return folder


def _check_frozen(place: Place) -> None:
    """Raise ValueError where an arm freezes what its model has not: before another is trained."""
    for name, planned in next(iter(place.plans.values())).items():
        run = planned.whole
        config = checkpoint.read_model(Path(run.init)) if run.init else run.model
        assert config  # a run has the one or the other
        for phase in run.phases:
            try:
                trains(replace(config, head="lm"), phase)
            except ValueError as error:
                raise ValueError(f"{place.study.name}: {name}: {error}") from error


def _held_out(planned: Planned, folder: Path) -> Iterator[Number]:
    """Loss and accuracy under each objective, at each step of the whole run that its own part evaluated; and its last
    loss in training."""
    first, events = planned.whole.stretches[planned.shared].first, read_events(folder / "events.jsonl")
    *_, trained = (event for event in events if "loss" in event)
    yield Number(str(first + trained["step"] + 1), "training loss", trained["loss"])
    for event in events:
        for objective, results in event.get("held_out", {}).items():
            for what, value in results.items():
                yield Number(str(first + event["step"]), f"{objective} {what}", value)


def _scored(place: Place, unit: Unit, folder: Path) -> tuple[list[Row], float]:
    """The rows of the task's first metric on test, one of each fine-tuning, and seconds that those took which were made
    before: a kill came between them and the figures."""
    model, path = folder / "model" / folder.name, place.folder / "rows" / f"{folder.name}.jsonl"
    path.parent.mkdir(exist_ok=True)  # a file for each run, which one process holds
    if not model.exists():
        model.parent.mkdir(exist_ok=True)
        convert_checkpoint(folder, model)
    candidate, on = sweep.candidate(str(model)), place.tasks[unit.evaluation]
    drop_cut_line(path)
    job = sweep.Job(candidate, on, fine_tuning_seeds(place.study, unit.seed))
    known = read_rows(path) if path.exists() else []
    if (left := sweep.left(job, known)).seeds:
        list(sweep.do(left, known, path, together=None, keep=None))
    of = (candidate.weights, on.task.name, on.data, on.protocol_hash, "test", on.task.metrics[0])
    rows = [
        row
        for row in read_rows(path)
        if (row.weights, row.task, row.data, row.protocol_hash, row.split, row.metric) == of and row.seed in job.seeds
    ]
    return rows, sum(row.seconds for row in rows if row.seed not in left.seeds)


def _moved(folder: Path) -> Iterator[Number]:
    """The relative change of each layer, its attention and its feed-forward, in each phase that the run has itself."""
    for each in drift(folder):
        if each.measure == CHANGE and each.component in MOVING and each.phase != WHOLE:
            yield Number(f"{each.phase}/{each.layer}", each.component, each.value)


def _alike(place: Place, folders: Sequence[Path]) -> Iterator[Number]:
    """Divergence by layer of the first two models, and the control's, which is the third's and the second's; of both
    estimators, with and without massive dimensions."""
    asked, kept = place.study.likeness, place.folder / "states"
    assert asked
    each = [collect(open_model(str(path)), place.texts, "mean", asked.length, kept).state_NTD for path in folders]
    for figure in alike.both(each)[0]:
        if figure.measure in ("divergence", "control"):
            yield Number(figure.layer, f"{figure.estimator} {figure.measure}, {figure.of}", figure.value)
