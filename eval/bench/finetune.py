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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from convert import from_hf
from cptjax.data.tokenizer import Encoder
from cptjax.machine.provenance import versions
from eval.bench.command import FinetuneBench
from eval.bench.compare import OURS, Side
from eval.bench.measure import WARM_UP, in_turns, record
from eval.bench.peer import KINDS, Training, pretrained, shuffled, told
from eval.finetune import Outcome, Run, Setting, finetune, order_of, setting_of, training
from eval.kept import keep_model
from eval.problem import Problem
from eval.protocols import protocol_of
from eval.sweep import prepare
from eval.tasks.registry import chosen
from eval.tasks.splits import SEED
from eval.tasks.task import Example, Task

THEIRS = "transformers"
OTHERS = "others"  # the split of those examples of test that no score is of


def drawn(examples: Sequence[Example], count: int) -> list[Example]:
    """So many of the examples, the same every time."""
    return random.Random(SEED).sample(list(examples), min(count, len(examples)))


# ---- scores


def our_outcomes(folder: Path, problem: Problem, seeds: Sequence[int]) -> Iterator[Outcome]:
    """A training with each seed; the first keeps its parameters, and is asked of the other examples of test too."""
    config, params = from_hf.load(folder)
    fewer = replace(problem, examples={split: problem.examples[split] for split in ("train", "test")})
    for of_seeds, of, keep in ((seeds[:1], problem, True), (seeds[1:], fewer, False)):
        yield from finetune(config, params, Encoder(folder), of, of_seeds, keep=keep)


def their_scores(folder: Path, problem: Problem, seeds: Sequence[int]) -> Callable[[], dict]:
    """A training with each seed, one a call: what it is worth on test, and the mean of its losses."""
    left = iter(seeds)

    def run() -> dict:
        seed = next(left)
        theirs = Training(folder, problem, seed)
        losses = [theirs.step(numbers) for numbers in shuffled(problem, seed)]
        answers, _ = told(theirs.tokenizer, theirs.model, problem, problem.examples["test"])
        return {"score": problem.score("test", answers), "loss": float(np.mean(losses))}

    return run


def their_answers(folder: Path, problem: Problem, examples: Sequence[Example]) -> Callable[[], dict]:
    """What transformers says of examples with the model of a folder."""

    def run() -> dict:
        answers, margins = told(*pretrained(folder, problem), problem, examples)
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


def exported(folder: Path, problem: Problem, outcome: Outcome) -> dict[str, Any]:
    """Of how many examples transformers says the same with a model of ours; where it does not, how near it was to."""
    examples = [*problem.examples["test"], *problem.examples[OTHERS]]
    said = [*outcome.answers["test"], *outcome.answers[OTHERS]]
    with tempfile.TemporaryDirectory() as name:
        keep_model(outcome, problem.labels, folder, Path(name) / "kept")
        (theirs,) = asked(partial(their_answers, Path(name) / "kept", problem, examples))
    different = [
        {"id": example.id, "margin": margin}
        for example, ours, other, margin in zip(examples, said, theirs["answers"], theirs["margins"], strict=True)
        if ours != other
    ]
    return {"examples": len(examples), "same": len(examples) - len(different), "different": different}


# ---- seconds


def our_setting(folder: Path, problem: Problem) -> Setting:
    """What our trainings share."""
    config, params = from_hf.load(folder)
    problem = replace(problem, examples={"train": problem.examples["train"]})
    return setting_of(config, params, Encoder(folder), problem, jax.devices()[:1])


def our_steps(folder: Path, problem: Problem, count: int) -> Callable[[], dict]:
    """One of the first so many steps of our training a call; the first call makes them all, so that every program is
    compiled."""
    setting = our_setting(folder, problem)
    again = partial(training, setting, [Run(SEED, problem.protocol.learning_rate)])
    going: list[Iterator] = []

    def run() -> dict:
        if not going:
            going.append(again())
            return {"losses": [float(loss_R[0]) for _, loss_R in itertools.islice(again(), count)]}
        _, loss_R = jax.block_until_ready(next(going[0]))
        return {"loss": float(loss_R[0])}

    return run


def their_steps(folder: Path, problem: Problem, order: Sequence[Sequence[int]]) -> Callable[[], dict]:
    """A step of their training a call, with the texts of this order."""
    theirs, left = Training(folder, problem, SEED), iter(order)
    return lambda: {"loss": theirs.step(next(left))}


def speed(folder: Path, problem: Problem, rounds: int) -> dict[str, Any]:
    """Seconds of a step of both sides, of the same texts, in turns, and those that compiling took; `ratio` is of the
    medians, below 1 where ours is faster."""
    count = WARM_UP + rounds
    train = our_setting(folder, problem).splits["train"]
    steps = order_of(SEED, train, problem.protocol)[:count]
    order = [[train.texts.texts[piece].example for piece in step] for step in steps]
    made = {OURS: partial(our_steps, folder, problem, count), THEIRS: partial(their_steps, folder, problem, order)}
    sides = {name: Side(make) for name, make in made.items()}
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


def bench(folder: Path, problem: Problem, seeds: int, rounds: int) -> dict[str, Any]:
    """All of a task."""
    outcomes = list(our_outcomes(folder, problem, range(seeds)))
    if diverged := [outcome.seed for outcome in outcomes if outcome.diverged]:
        raise ValueError(f"the loss of seed {diverged[0]} is not finite: give a lower --learning-rate")
    theirs = asked(partial(their_scores, folder, problem, range(seeds)), seeds)
    scores = [problem.score("test", outcome.answers["test"]) for outcome in outcomes]
    losses = [float(outcome.losses.mean()) for outcome in outcomes]
    return {
        "score": compared(scores, [answer["score"] for answer in theirs]),
        "loss": compared(losses, [answer["loss"] for answer in theirs]),  # the mean over a training's steps
        "exported": exported(folder, problem, outcomes[0]),
        "speed": speed(folder, problem, rounds),
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


def run(asked: FinetuneBench) -> None:
    """Print the table and, if asked, write the JSON."""
    if asked.steps < WARM_UP + asked.rounds:
        raise ValueError(f"--rounds {asked.rounds}: of {asked.steps} steps, {asked.steps - WARM_UP} can be timed")
    tasks = chosen(asked.task.split(","))
    if strange := [task for task in tasks if task.kind not in KINDS]:
        raise ValueError(f"{strange[0].name} is {strange[0].kind}: compared are {', '.join(KINDS)}")
    folder = from_hf.find(asked.model)
    print(f"{jax.devices()[0].device_kind}; {asked.seeds} seeds, {asked.steps} steps of {asked.texts} texts")
    heading = f"{'task':14}{'metric':14}{OURS:>17}{THEIRS:>17}{'differ by':>11}{'in SE':>7}{'loss':>7}"
    print(f"{heading}{'s a step':>10}{'theirs':>9}{'ratio':>7}{'compile s':>11}{'exported says same':>20}")
    rows = []
    for task in tasks:
        row = _row(asked, folder, task)
        rows.append(row)
        print(line(row), flush=True)
        record(asked.out, asked.rounds, rows)


def _row(asked: FinetuneBench, folder: Path, task: Task) -> dict[str, Any]:
    changes = {
        "steps": asked.steps,
        "texts_per_step": asked.texts,
        "learning_rate": asked.learning_rate,
        "max_length": 512,
        "selection": "last",
    }
    protocol = protocol_of("cpu", task.kind, changes)
    on = prepare(task, asked.data, protocol, sizes={"train": asked.steps * asked.texts})
    train, test = on.problem.examples["train"], on.problem.examples["test"]
    scored = drawn(test, asked.test_examples)
    ids = {example.id for example in scored}
    others = [example for example in test if example.id not in ids]
    problem = replace(on.problem, examples={"train": train, "test": scored, OTHERS: others})
    row = {"task": task.name, "kind": task.kind, "metric": problem.metric, "model": asked.model, "data": on.data}
    row |= {"train_examples": len(train), "test_examples": len(scored), "steps": asked.steps, "texts": asked.texts}
    row |= {"learning_rate": asked.learning_rate, "protocol_hash": protocol.hash, "seeds": asked.seeds}
    return row | versions(("torch", "transformers")) | bench(folder, problem, asked.seeds, asked.rounds)
