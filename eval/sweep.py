"""Models by tasks by seeds to rows: what is done is not done again, and parts of a sweep add up to the whole.

What trains together is a job. Its rows are added all at once, when it has ended: one that a kill cut leaves none, and
is done again from its beginning.

E examples of a split.
"""

import itertools
import random
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np

from convert import from_hf
from cptjax.data.tokenizer import Encoder, cautions, load_tokenizer
from cptjax.files import check_free, hash_of, naming, sha256
from cptjax.machine.provenance import git_commit, versions
from cptjax.rows import Row, append_rows
from eval import baseline, metrics
from eval.finetune import Look, Outcome, finetune
from eval.kept import keep_model
from eval.predictions import Head, Prediction, Seen, write_predictions
from eval.problem import Problem
from eval.protocols import Protocol
from eval.tasks import guards, registry
from eval.tasks.splits import SEED
from eval.tasks.task import Answer, Kind, Task

HUB_KINDS: dict[Kind, str] = {  # the Hub's names
    "single_label": "text-classification",
    "multi_label": "text-classification",
    "relation": "text-classification",
    "entities": "token-classification",
    "nested_entities": "token-classification",
    "multiple_choice": "multiple-choice",
}
SIZE = re.compile(r"(train|dev|test)=([1-9][0-9]*)")
SCORED = ("dev", "test")  # splits


@dataclass(frozen=True)
class Candidate:
    """A model to be measured: its folder, None for the baseline, and what its rows say of it."""

    name: str
    folder: Path | None
    weights: str  # hashes
    tokenizer: str
    notes: tuple[str, ...] = ()  # what a reader of its numbers should know


def candidate(model: str) -> Candidate:
    """The model of a folder or Hub id, or the baseline by its name. Raises as `from_hf.find` and `from_hf.read_shape`
    do, and ValueError for no name, and for a model without a tokenizer or with another model's."""
    if not model:
        raise ValueError("a model has no name: --model takes folders or Hub ids with one comma between")
    if model == baseline.NAME:
        return Candidate(model, None, hash_of(model), hash_of(model))
    folder = from_hf.find(model)
    if not (tokenizer := folder / "tokenizer.json").is_file():
        raise ValueError(f"{model} has no tokenizer.json: a model is measured with its own")
    files = from_hf.weight_files(folder)
    from_hf.check_tokenizer(folder, from_hf.read_shape(folder).vocab_size)
    weights = hash_of({path.name: sha256(path) for path in files})
    notes = tuple(cautions(folder, load_tokenizer(folder)))
    return Candidate(model.rstrip("/").split("/")[-1], folder, weights, sha256(tokenizer), notes)


def candidates(models: Sequence[str]) -> list[Candidate]:
    """These models. Raises ValueError for two of one name, whose rows nobody could tell apart."""
    each = [candidate(model) for model in models]
    for first, second in itertools.combinations(each, 2):
        if first.name == second.name:
            raise ValueError(f"two models are called {first.name}: rename one of their folders")
    return each


@dataclass(frozen=True, eq=False)
class Prepared:
    """A task as it is trained on and scored here."""

    task: Task
    problem: Problem
    data: str  # hash of the examples
    learning_rates: tuple[float, ...]  # the best on dev counts
    notes: tuple[str, ...]  # what a reader of its numbers should know

    @property
    def protocol_hash(self) -> str:
        """Of all that numbers depend on beside data, model and seed."""
        own = self.problem.protocol.hash
        return hash_of([own, self.learning_rates]) if self.learning_rates else own


def sizes_of(text: str | None) -> dict[str, int]:
    """How many examples of each split --examples names. Raises ValueError where it says something else."""
    if text is None:
        return {}
    sizes = {split: int(size) for split, size in SIZE.findall(text)}
    if not sizes or text != ",".join(f"{split}={size}" for split, size in sizes.items()):
        raise ValueError(f"--examples {text!r}: it is train=1000,dev=200,test=500, or some of them, each above 0")
    return sizes


def prepare(
    task: Task,
    data: Path | None,
    protocol: Protocol,
    rates: Sequence[float] = (),
    sizes: Mapping[str, int] = MappingProxyType({}),
) -> Prepared:
    """Read a task, of a split in `sizes` a draw of so many examples. Raises as `registry.load` does."""
    examples = dict(registry.load(task, data))
    labels = registry.labels_of(task, examples)
    notes = [*task.doubts, *protocol.doubts, *guards.data_notes(task, examples)]
    for split, size in sizes.items():
        if size < (whole := len(examples[split])):
            examples[split] = random.Random(SEED).sample(examples[split], size)
            notes.append(f"{size:,} of {whole:,} texts of {split}")
    problem = Problem(task.kind, labels, examples, protocol, task.metrics[0])
    return Prepared(task, problem, registry.data_hash(examples), tuple(rates), tuple(notes))


@dataclass(frozen=True, eq=False)
class Job:
    """What trains together: the seeds of one model on one task."""

    model: Candidate
    on: Prepared
    seeds: tuple[int, ...]


def jobs(
    models: Sequence[Candidate], tasks: Sequence[Prepared], seeds: Sequence[int], part: tuple[int, int]
) -> list[Job]:
    """The jobs of part I of N, counted from 1: the whole sweep in an order, cut in N stretches of as many seeds."""
    number, parts = part
    whole = list(itertools.product(tasks, models, seeds))
    first, last = (len(whole) * i // parts for i in (number - 1, number))
    grouped = itertools.groupby(whole[first:last], key=lambda unit: unit[:2])
    return [Job(model, on, tuple(unit[2] for unit in units)) for (on, model), units in grouped]


def left(job: Job, rows: Iterable[Row], keep: Path | None = None) -> Job:
    """The job without the seeds whose rows are all there, and whose models are where they are to be kept."""
    of = (job.model.name, job.model.weights, job.on.task.name, job.on.data, job.on.protocol_hash)
    own = [row for row in rows if (row.model, row.weights, row.task, row.data, row.protocol_hash) == of]
    known = {(row.seed, row.split, row.metric) for row in own}
    wanted = list(itertools.product(SCORED, job.on.task.metrics))
    lost = {
        row.seed for row in own if row.value is not None and not all(p.exists() for p in _kept(job, row.seed, keep))
    }
    return replace(
        job, seeds=tuple(seed for seed in job.seeds if seed in lost or {(seed, *each) for each in wanted} - known)
    )


def check_kept(jobs: Iterable[Job], keep: Path | None) -> None:
    """Raise OSError where a model that is to be kept would take the place of something else."""
    for job in jobs:
        for path in (path for seed in job.seeds for path in _kept(job, seed, keep)):
            with naming(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
            check_free(path, markers=(from_hf.SINGLE, from_hf.INDEX), overwrite=True)


def _kept(job: Job, seed: int, keep: Path | None) -> list[Path]:
    """Where the model of a seed is kept, if it is."""
    return [keep / f"{job.model.name}_{job.on.task.name}_{seed}"] if keep and job.model.folder else []


@dataclass(frozen=True, eq=False)
class Answers:
    """What one seed gave."""

    seed: int
    learning_rate: float
    seconds: float
    of: Mapping[str, Sequence[Answer]]  # by split; nothing where the training diverged
    scores: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)  # by split, of labels of texts
    tokens: Mapping[str, np.ndarray] = field(default_factory=dict)  # by split, of each example
    truncated: Mapping[str, np.ndarray] = field(default_factory=dict)
    looks: tuple[Look, ...] = ()
    notes: tuple[str, ...] = ()


def do(
    job: Job, known: Iterable[Row], out: Path, *, together: int | None, keep: Path | None
) -> Iterator[Sequence[Row]]:
    """Train and score the seeds of a job; of each its predictions are written, then its rows added to `out`, all at
    once, but for those `known`. Gives the rows of each seed once they are there."""
    there = {row.of for row in known}
    for answers in _baseline(job) if job.model.folder is None else _trained(job, together, keep):
        rows = list(_rows(job, answers, out))
        append_rows(out, [row for row in rows if row.of not in there])
        yield rows


def _baseline(job: Job) -> list[Answers]:
    """What the baseline says, with each seed the same."""
    problem, began = job.on.problem, time.perf_counter()
    train = problem.examples["train"]
    said = {split: baseline.answers(problem.kind, train, problem.examples[split]) for split in SCORED}
    seconds = (time.perf_counter() - began) / len(job.seeds)
    return [Answers(seed, 0.0, seconds, said) for seed in job.seeds]


def _trained(job: Job, together: int | None, keep: Path | None) -> Iterator[Answers]:
    """What fine-tuned models say, each as soon as it is trained; where rates are tuned, once all are."""
    on, folder = job.on, job.model.folder
    assert folder is not None
    config, params = from_hf.load(folder)
    outcomes = finetune(
        config,
        params,
        Encoder(folder),
        on.problem,
        job.seeds,
        on.learning_rates,
        at_once=together,
        devices=jax.devices(),
        keep=keep is not None,
    )
    for outcome in _at_best_rate(list(outcomes)) if on.learning_rates else outcomes:
        for path in _kept(job, outcome.seed, keep) if not outcome.diverged else []:
            keep_model(outcome, on.problem.labels, folder, path, overwrite=True)
        yield _answers(outcome, _ceiling(job, outcome))


def _at_best_rate(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those at the learning rate that is best on dev, as a mean over seeds."""
    rates = sorted({outcome.learning_rate for outcome in outcomes})
    best = max(rates, key=lambda rate: _on_dev([x for x in outcomes if x.learning_rate == rate]))
    return [outcome for outcome in outcomes if outcome.learning_rate == best]


def _on_dev(outcomes: Sequence[Outcome]) -> float:
    """The mean of the scores on dev of what was chosen there, 0 for a run that diverged."""
    return float(np.mean([0.0 if x.diverged or x.chosen is None else x.chosen.score for x in outcomes]))


def _answers(outcome: Outcome, notes: tuple[str, ...]) -> Answers:
    if outcome.diverged:
        notes = (*notes, "the training diverged: its loss was not finite")
    return Answers(
        outcome.seed,
        outcome.learning_rate,
        outcome.seconds,
        outcome.answers,
        outcome.scores,
        {split: texts.tokens_E for split, texts in outcome.texts.items()},
        {split: texts.truncated_E for split, texts in outcome.texts.items()},
        outcome.looks,
        notes,
    )


def _ceiling(job: Job, outcome: Outcome) -> tuple[str, ...]:
    """What no answer of the head can reach, where entities do not end where the tokenizer's words do."""
    problem = job.on.problem
    best = outcome.head.best_answers(outcome.texts["test"], problem.examples["test"])
    gold = problem.gold("test")
    if not (missed := sum(len({*g.spans} - {*b.spans}) for g, b in zip(gold, best, strict=True))):
        return ()
    count = sum(len(g.spans) for g in gold)
    told = f"{missed:,} of {count:,} entities of test are not words of this tokenizer"
    return (f"{told}: {problem.metric} is at most {problem.score('test', best):.4f}",)


def predictions_folder(out: Path) -> Path:
    """The folder beside a file of rows that holds what they count."""
    return out.with_name(f"{out.stem}_predictions")


def _rows(job: Job, answers: Answers, out: Path) -> Iterator[Row]:
    """A seed's rows, once its predictions are written; of one that diverged without a value."""
    on, model, task, problem = job.on, job.model, job.on.task, job.on.problem
    commit, used = git_commit(), {name: version for name, version in versions().items() if version is not None}
    for split in SCORED:
        gold, path = problem.gold(split), ""
        if answers.of:
            name = f"{model.name}_{task.name}_{on.protocol_hash[:8]}_{answers.seed}_{split}.jsonl"
            path = str(Path(predictions_folder(out).name) / name)
            write_predictions(out.parent / path, *_predictions(job, answers, split))
        for metric in task.metrics:
            yield Row(
                model=model.name,
                weights=model.weights,
                tokenizer=model.tokenizer,
                task=task.name,
                kind=HUB_KINDS[task.kind],
                data=on.data,
                split=split,
                metric=metric,
                value=metrics.score(metric, gold, answers.of[split], problem.labels) if answers.of else None,
                seed=answers.seed,
                protocol=problem.protocol.name,
                protocol_hash=on.protocol_hash,
                examples=len(gold),
                truncated=float(np.mean(answers.truncated.get(split, 0.0))),
                learning_rate=answers.learning_rate,
                tuned={"learning_rate": list(on.learning_rates)} if on.learning_rates else {},
                notes=[*model.notes, *on.notes, *answers.notes],
                versions=used,
                commit=commit,
                seconds=answers.seconds,
                predictions=path,
            )


def _predictions(job: Job, answers: Answers, split: str) -> tuple[Head, list[Prediction]]:
    on, problem, scores = job.on, job.on.problem, answers.scores.get(split)
    examples = problem.examples[split]
    head = Head(
        model=job.model.name,
        weights=job.model.weights,
        task=on.task.name,
        kind=on.task.kind,
        language=on.task.language,
        split=split,
        seed=answers.seed,
        protocol=problem.protocol.name,
        protocol_hash=on.protocol_hash,
        labels=problem.labels,
        examples=len(examples),
        curve=tuple((look.step, look.score) for look in answers.looks),
    )
    zeros, seen = np.zeros(len(examples), int), Seen(problem.examples["train"])
    tokens, truncated = answers.tokens.get(split, zeros), answers.truncated.get(split, zeros)
    return head, [
        Prediction(
            id=example.id,
            text=example.text,
            second=example.second,
            choices=example.choices,
            gold=example.gold,
            predicted=answers.of[split][number],
            scores=None if scores is None else dict(scores[number]),
            tokens=int(tokens[number]),
            truncated=bool(truncated[number]),
            seen=seen(example),
        )
        for number, example in enumerate(examples)
    ]
