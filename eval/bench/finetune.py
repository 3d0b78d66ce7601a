"""A fine-tuning of ours beside one of transformers and PyTorch: the scores of as many seeds of each, on the same texts,
and seconds a step, in turns; and of how many texts transformers says with a model of ours what we say.

Heads, order of texts and dropout are drawn by each side for itself. PyTorch's side is `peer.py`, in a process of its
own.

R runs, of which there is one.
"""

import itertools
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from tyro.conf import arg

from convert import from_hf
from cptjax.data.tokenizer import Encoder
from cptjax.machine.provenance import versions
from eval import metrics, sweep
from eval.bench import WARM_UP, Count, TimedBench, in_turns, record
from eval.bench.compare import OURS, Side
from eval.bench.peer import KINDS, Case, Training, pretrained, shuffled, told
from eval.finetune import Outcome, Run, Setting, finetune, order_of, setting_of, training
from eval.kept import keep_model
from eval.protocols import protocol_of
from eval.tasks.registry import chosen
from eval.tasks.splits import SEED
from eval.tasks.task import Answer, Example, Task

THEIRS = "transformers"
LEARNING_RATE = 1e-4


def drawn(examples: Sequence[Example], count: int) -> list[Example]:
    """So many of the examples, the same every time."""
    return random.Random(SEED).sample(list(examples), min(count, len(examples)))


# ---- scores


def our_outcomes(case: Case, seeds: Sequence[int], others: Sequence[Example]) -> Iterator[Outcome]:
    """A training with each seed; the first keeps its parameters, and is asked of the other examples of test too."""
    config, params = from_hf.load(case.model)
    for of_seeds, first in ((seeds[:1], True), (seeds[1:], False)):
        yield from finetune(
            config,
            params,
            Encoder(case.model),
            case.kind,
            case.labels,
            {"train": case.train, "test": case.test, **({"others": others} if first else {})},
            case.protocol,
            of_seeds,
            metric=case.metric,
            keep=first,
        )


def their_scores(case: Case, seeds: Sequence[int]) -> Callable[[], dict]:
    """A training with each seed, one a call: what it is worth on test, and the mean of its losses."""
    left = iter(seeds)

    def run() -> dict:
        seed = next(left)
        theirs = Training(case, seed)
        losses = [theirs.step(numbers) for numbers in shuffled(case, seed)]
        answers, _ = told(theirs.tokenizer, theirs.model, case, case.test)
        return {"score": score(case, answers), "loss": float(np.mean(losses))}

    return run


def score(case: Case, answers: Sequence[Answer]) -> float:
    """What answers of test are worth, 0 to 1."""
    return metrics.score(case.metric, [example.gold for example in case.test], answers, case.labels)


def their_answers(case: Case, folder: Path, examples: Sequence[Example]) -> Callable[[], dict]:
    """What transformers says of examples with the model of a folder."""

    def run() -> dict:
        answers, margins = told(*pretrained(folder, case), case, examples)
        return {"answers": answers, "margins": margins}

    return run


def asked(make: Callable[[], Callable[[], dict]], times: int = 1) -> list[dict]:
    """What a side answers when it is called so often. Raises ChildProcessError with its reason when it does not."""
    side, answers = Side(make), []
    try:
        for _ in range(times):
            side()
            answers.append(side.last)
    finally:
        side.end()
    return answers


def compared(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Values of both, and the difference of their means, also in its standard errors; None with one seed of each."""
    sides = {
        name: {
            "values": list(each),
            "mean": float(np.mean(each)),
            "sd": float(np.std(each, ddof=1)) if each[1:] else None,
        }
        for name, each in ((OURS, ours), (THEIRS, theirs))
    }
    difference, errors = sides[OURS]["mean"] - sides[THEIRS]["mean"], None
    if len(ours) > 1:
        error = float(np.sqrt(sum(np.var(each, ddof=1) / len(each) for each in (ours, theirs))))
        errors = difference / error if error else None
    return {**sides, "difference": difference, "difference_in_errors": errors}


def exported(case: Case, outcome: Outcome, examples: Sequence[Example]) -> dict[str, Any]:
    """Of how many examples transformers says the same with a model of ours; where it does not, how near it was to."""
    said = [*outcome.answers["test"], *outcome.answers["others"]]
    with tempfile.TemporaryDirectory() as name:
        keep_model(outcome, case.labels, case.model, Path(name) / "kept")
        (theirs,) = asked(partial(their_answers, case, Path(name) / "kept", examples))
    different = [
        {"id": example.id, "margin": margin}
        for example, ours, other, margin in zip(examples, said, theirs["answers"], theirs["margins"], strict=True)
        if ours != other
    ]
    return {"examples": len(examples), "same": len(examples) - len(different), "different": different}


# ---- seconds


def our_setting(case: Case) -> Setting:
    """What our trainings of a case share."""
    config, params = from_hf.load(case.model)
    return setting_of(
        config,
        params,
        Encoder(case.model),
        case.kind,
        case.labels,
        {"train": case.train},
        case.protocol,
        metric=case.metric,
        devices=jax.devices()[:1],
    )


def our_steps(case: Case, count: int) -> Callable[[], dict]:
    """One of the first so many steps of our training a call; the first call makes them all, so that every program is
    compiled."""
    setting = our_setting(case)
    again = partial(training, setting, [Run(SEED, case.protocol.learning_rate)])
    going: list[Iterator] = []

    def run() -> dict:
        if not going:
            going.append(again())
            return {"losses": [float(loss_R[0]) for _, loss_R in itertools.islice(again(), count)]}
        _, loss_R = jax.block_until_ready(next(going[0]))
        return {"loss": float(loss_R[0])}

    return run


def their_steps(case: Case, order: Sequence[Sequence[int]]) -> Callable[[], dict]:
    """A step of their training a call, with the texts of this order."""
    theirs, left = Training(case, SEED), iter(order)
    return lambda: {"loss": theirs.step(next(left))}


def speed(case: Case, rounds: int) -> dict[str, Any]:
    """Seconds of a step of both sides, of the same texts, in turns, and those that compiling took; `ratio` is of the
    medians, below 1 where ours is faster."""
    count = WARM_UP + rounds
    train = our_setting(case).splits["train"]
    steps = order_of(SEED, train, case.protocol)[:count]
    order = [[train.texts.texts[piece].example for piece in step] for step in steps]
    sides = {OURS: Side(partial(our_steps, case, count)), THEIRS: Side(partial(their_steps, case, order))}
    try:
        whole = sides[OURS]()
        took = in_turns(sides, rounds)
    finally:
        for side in sides.values():
            side.end()
    for name, each in took.items():
        if "reason" in each:
            raise ChildProcessError(f"{name}: {each['reason']}")
    compiling = whole - count * took[OURS]["median"]
    return {**took, "ratio": took[OURS]["median"] / took[THEIRS]["median"], "compile_seconds": compiling}


# ---- the command


def bench(case: Case, seeds: int, rounds: int, examples: Sequence[Example]) -> dict[str, Any]:
    """All of a task; `examples` are the whole of test, of which a drawn part gives the scores."""
    scored = {example.id for example in case.test}
    others = [example for example in examples if example.id not in scored]
    outcomes = list(our_outcomes(case, range(seeds), others))
    if diverged := [outcome.seed for outcome in outcomes if outcome.diverged]:
        raise ValueError(f"the loss of seed {diverged[0]} is not finite: give a lower --learning-rate")
    theirs = asked(partial(their_scores, case, range(seeds)), seeds)
    scores = [score(case, outcome.answers["test"]) for outcome in outcomes]
    losses = [float(outcome.losses.mean()) for outcome in outcomes]
    return {
        "score": compared(scores, [answer["score"] for answer in theirs]),
        "loss": compared(losses, [answer["loss"] for answer in theirs]),  # the mean over a training's steps
        "exported": exported(case, outcomes[0], [*case.test, *others]),
        "speed": speed(case, rounds),
    }


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    both, times = row["score"], row["speed"]
    scores = "".join(f"{_with_sd(both[side]):>17}" for side in (OURS, THEIRS))
    errors = "".join(
        f"{'' if row[what]['difference_in_errors'] is None else format(row[what]['difference_in_errors'], '.1f'):>7}"
        for what in ("score", "loss")
    )
    seconds = f"{times[OURS]['median']:10.3f}{times[THEIRS]['median']:9.3f}{times['ratio']:7.2f}"
    same = f"{row['exported']['same']:,} of {row['exported']['examples']:,}"
    start = f"{row['task']:14}{row['metric']:14}{scores}{both['difference']:11.4f}{errors}"
    return f"{start}{seconds}{times['compile_seconds']:11.1f}{same:>20}"


def _with_sd(of: dict[str, Any]) -> str:
    return f"{of['mean']:.4f}" + ("" if of["sd"] is None else f" ±{of['sd']:.4f}")


@dataclass(frozen=True, kw_only=True)
class FinetuneBench(TimedBench):
    """A fine-tuning, beside transformers' and PyTorch's."""

    model: str  # folder or Hub id
    task: str  # names of tasks with commas between, or NAME=FOLDER of your own
    data: Annotated[Path | None, arg(metavar="DIR")] = None  # the folder that the tasks' folders lie in
    seeds: Count = 5  # of each side
    steps: Count = 80
    texts: Count = 8  # of a step; train is a draw of as many as make one pass
    learning_rate: float = LEARNING_RATE
    test_examples: Count = 1000  # drawn, for the scores; the exported model is asked of all
    rounds: Count = 30  # steps that are timed

    def work(self) -> None:
        """Print the table and, if asked, write the JSON."""
        if self.steps < WARM_UP + self.rounds:
            raise ValueError(f"--rounds {self.rounds}: of {self.steps} steps, {self.steps - WARM_UP} can be timed")
        tasks = chosen(self.task.split(","))
        if strange := [task for task in tasks if task.kind not in KINDS]:
            raise ValueError(f"{strange[0].name} is {strange[0].kind}: compared are {', '.join(KINDS)}")
        folder = from_hf.find(self.model)
        print(f"{jax.devices()[0].device_kind}; {self.seeds} seeds, {self.steps} steps of {self.texts} texts")
        heading = f"{'task':14}{'metric':14}{OURS:>17}{THEIRS:>17}{'differ by':>11}{'in SE':>7}{'loss':>7}"
        print(f"{heading}{'s a step':>10}{'theirs':>9}{'ratio':>7}{'compile s':>11}{'exported says same':>20}")
        rows = []
        for task in tasks:
            row = self._row(folder, task)
            rows.append(row)
            print(line(row), flush=True)
            record(self.out, self.rounds, rows)

    def _row(self, folder: Path, task: Task) -> dict[str, Any]:
        changes = {
            "steps": self.steps,
            "texts_per_step": self.texts,
            "learning_rate": self.learning_rate,
            "max_length": 512,
            "selection": "last",
        }
        protocol = protocol_of("cpu", task.kind, changes)
        on = sweep.prepare(task, self.data, protocol, sizes={"train": self.steps * self.texts})
        train, test = on.examples["train"], on.examples["test"]
        case = Case(folder, task.kind, on.labels, task.metrics[0], train, drawn(test, self.test_examples), protocol)
        row = {"task": task.name, "kind": task.kind, "metric": case.metric, "model": self.model, "data": on.data}
        row |= {"train_examples": len(train), "test_examples": len(case.test), "steps": self.steps, "texts": self.texts}
        row |= {"learning_rate": self.learning_rate, "protocol_hash": protocol.hash, "seeds": self.seeds}
        return row | versions(("torch", "transformers")) | bench(case, self.seeds, self.rounds, test)
