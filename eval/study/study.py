"""What a study is: runs as changes of one run, what is measured of them, in which order, and set beside what.

A study is a Python file with `get_study() -> Study`, as a config is one with `get_config() -> Run`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from cptjax.config import ELASTIC, Branch, Run, called, check_types, to_dict
from cptjax.files import hash_of

HELD_OUT, CKA, DRIFT = EVALUATIONS = "held_out", "cka", "drift"  # beside tasks


@dataclass(frozen=True)
class Arm:
    """One of the runs that a study compares: what `change` makes of the study's run."""

    name: str
    change: Callable[[Run], Run] = lambda run: run


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """Tasks that models are fine-tuned on and scored, as `eval run` does it."""

    names: tuple[str, ...]  # or NAME=FOLDER of your own
    language: str = "en"  # of your own
    protocol: str | None = None  # the task's own without it
    change: Mapping[str, Any] = field(default_factory=dict)  # fields of the protocol
    examples: Mapping[str, int] = field(default_factory=dict)  # how many of a split are drawn
    fine_tunings: int = 1  # of each run and task, with a seed each


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """CKA of arms' layers, as `eval cka` has it; the control is the second of a pair with another seed."""

    pairs: tuple[tuple[str, str], ...]
    samples: int = 500  # texts
    length: int = 512  # tokens of a text


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Arms set beside `against`, in a table of its own; with `gain`, what share of its gain each of them has."""

    title: str
    arms: tuple[str, ...]
    against: str
    gain: str | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """Runs, what is measured of them, and the tables. Every seed is one of masks, weights and the order of the data.

    Arms that begin with the same phases share them: they are trained once, and the other arms are branched off.
    """

    name: str
    question: str  # that the page begins with
    run: Run
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (17, 18, 19, 20, 21)
    comparisons: tuple[Comparison, ...]
    tasks: Tasks | None = None
    likeness: Likeness | None = None
    drift: bool = True  # how far each layer moved, as `eval drift` has it

    def __post_init__(self):
        check_types(self, "")
        names = [arm.name for arm in self.arms]
        for what, items in (("arms", names), ("seeds", self.seeds)):
            if not items or len({*items}) < len(items):
                raise ValueError(f"{self.name}: the {what} of a study must be some, and differ, not {[*items]}")
        if reserved := {*self.task_names} & {*EVALUATIONS}:
            raise ValueError(f"{self.name}: a task cannot be called {reserved.pop()}, which a study measures besides")
        if self.tasks and (not self.tasks.names or self.tasks.fine_tunings < 1):
            raise ValueError(f"{self.name}: tasks must be some, each with at least one fine-tuning")
        if self.likeness and self.likeness.samples < 1:
            raise ValueError(f"{self.name}: likeness.samples is {self.likeness.samples}: at least 1")
        for arm in self.arms:
            if not isinstance(arm.change(self.run), Run):
                raise ValueError(f"{self.name}: the change of {arm.name} gives no Run: does it end with `return`?")
        for name in names:
            if not name.replace("_", "").isalnum():
                raise ValueError(f"{self.name}: the arm {name!r} names folders: letters, digits and _ only")
        used = [name for each in self.comparisons for name in (*each.arms, each.against, each.gain or each.against)]
        used += [name for pair in (self.likeness.pairs if self.likeness else ()) for name in pair]
        if unknown := [name for name in used if name not in names]:
            raise ValueError(f"{self.name}: no arm is called {unknown[0]!r}: there are {', '.join(names)}")

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks, without their folders."""
        return tuple(name.partition("=")[0] for name in self.tasks.names) if self.tasks else ()


def load_study(path: Path) -> Study:
    """The Study of a file. Raises FileNotFoundError or ValueError when it is not one."""
    if not path.is_file():
        raise FileNotFoundError(f"no study {path}: see configs/studies for examples")
    study = called(path, "get_study", lambda get_study: get_study())
    if not isinstance(study, Study):
        raise ValueError(f"{path} must define get_study() -> eval.study.study.Study")
    return study


class Planned(NamedTuple):
    """An arm's run of one seed as if it were trained alone, and the part of it that it trains itself: all, or what
    comes after the first phases, `shared` with the arm `of`."""

    whole: Run
    own: Run
    shared: int
    of: str | None


def plan(study: Study, seed: int, folder_of: Callable[[str], Path]) -> dict[str, Planned]:
    """The runs of a seed by arm, in order; `folder_of` says where an arm's run lies. Raises ValueError for two arms
    that are the same run."""
    planned: dict[str, Planned] = {}
    for arm in study.arms:
        changed = arm.change(study.run)
        whole = replace(changed, name=arm.name, seed=seed, data=replace(changed.data, seed=seed))
        counts = {name: _shared(whole, other.whole) for name, other in planned.items()}
        if twice := [name for name, n in counts.items() if n == len(whole.phases) == len(planned[name].whole.phases)]:
            raise ValueError(f"{study.name}: {arm.name} and {twice[0]} are the same run")
        shared = min(max(counts.values(), default=0), len(whole.phases) - 1)
        of = next((name for name, n in counts.items() if shared and n >= shared), None)
        own = whole if of is None else _branched(whole, planned[of], folder_of(of), shared)
        planned[arm.name] = Planned(whole, own, shared if of else 0, of)
    return planned


def _shared(run: Run, other: Run) -> int:
    """How many phases two runs begin with that are the same."""
    if replace(run, name="", phases=other.phases) != replace(other, name=""):
        return 0
    same = [a == b for a, b in zip(run.phases, other.phases, strict=False)]
    return same.index(False) if False in same else len(same)


def _branched(whole: Run, parent: Planned, folder: Path, shared: int) -> Run:
    """What comes after the first phases of a run, off the end of them in its parent."""
    first = whole.stretches[shared].first
    step = parent.own.stretches[shared - 1 - parent.shared].last
    data = replace(whole.data, first_batch=whole.data.first_batch + first)
    return replace(whole, phases=whole.phases[shared:], data=data, branch=Branch(str(folder), step))


class Unit(NamedTuple):
    """What is computed at once: `Figure.unit`."""

    arm: str
    seed: int
    evaluation: str
    against: str = ""


def units(study: Study) -> list[Unit]:
    """All of a study, each seed whole before the next: what one seed says, the second makes less uncertain. Likeness
    waits for its control, which is another seed: of one seed there is none."""
    ordered, waiting = [], []
    for number, seed in enumerate(study.seeds):
        for arm in study.arms:
            ordered.append(Unit(arm.name, seed, HELD_OUT))
            ordered += [Unit(arm.name, seed, task) for task in study.task_names]
            ordered += [Unit(arm.name, seed, DRIFT)] * study.drift
        waiting += [
            Unit(first, seed, CKA, second) for first, second in (study.likeness.pairs if study.likeness else ())
        ]
        if number:
            ordered, waiting = ordered + waiting, []
    return ordered


def control_seed(study: Study, seed: int) -> int:
    """The seed that a likeness is set beside: the one before, of the first the second."""
    at = study.seeds.index(seed)
    return study.seeds[at - 1 if at else 1]


def fine_tuning_seeds(study: Study, seed: int) -> tuple[int, ...]:
    """Of the fine-tunings of a seed's runs: the same for all arms, others for another seed."""
    times = study.tasks.fine_tunings if study.tasks else 0
    return tuple(seed * times + number for number in range(times))


def of_run(run: Run) -> dict[str, Any]:
    """What decides the numbers of a run, beside its seed, its text and its first weights."""
    told = {name: value for name, value in to_dict(replace(run, seed=0)).items() if name not in ELASTIC}
    return told | {"name": "", "init": None, "held_out": None, "data": {**told["data"], "seed": 0, "stores": None}}


def asked_of(study: Study, unit: Unit) -> str:
    """The hash of what a study asks of a unit, wherever it finds texts, weights and tasks."""
    changes = {arm.name: arm.change for arm in study.arms}
    told: list[Any] = [of_run(changes[arm](study.run)) for arm in (unit.arm, unit.against) if arm]
    if unit.evaluation == CKA:
        assert study.likeness
        told += [study.likeness.samples, study.likeness.length, control_seed(study, unit.seed)]
    elif unit.evaluation in study.task_names:
        assert study.tasks
        own = study.tasks.protocol, dict(study.tasks.change), dict(study.tasks.examples), study.tasks.fine_tunings
        told += [*own, study.tasks.language]
    return hash_of([unit, *told])
