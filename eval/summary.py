"""What rows say together: means over seeds, differences from a baseline with what chance may be, shares of what a donor
gains, scores of a part.

S seeds, E examples, C counts of one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cptjax.command.escape import nearest
from cptjax.rows import Row, check_comparable, read_rows
from eval.metrics import METRICS
from eval.predictions import Head, Prediction, read_predictions
from eval.statistics import Difference, Gains, Share, average, difference, gains, holm, share

PUBLISHED = Path(__file__).parent / "published.json"
LENGTHS = (64, 256, 1024, 4096)  # tokens: bounds of the bins that documents are scored in
Key = tuple[str, str]  # model and task


@dataclass(frozen=True)
class Answered:
    """What the predictions of one training come to: counts of the task's first metric, and what they are of."""

    head: Head
    ids: tuple[str, ...]
    counts_EC: np.ndarray
    token_E: np.ndarray
    seen: dict[bool, tuple[int, int]]  # gold answers that training had, or had not: right ones, all


@dataclass(frozen=True)
class Results:
    """Rows of one split with, by model, task and seed, what their predictions say, where those are there."""

    rows: list[Row]
    answered: dict[Key, dict[int, Answered]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()  # files of predictions that rows name and that are not there

    @cached_property
    def models(self) -> list[str]:
        """Their names, in the order of the rows."""
        return list(dict.fromkeys(row.model for row in self.rows))

    @cached_property
    def tasks(self) -> dict[str, list[str]]:
        """The metrics of each task, in the order of the rows: the first is the main one."""
        metrics: dict[str, dict[str, None]] = {}
        for row in self.rows:
            metrics.setdefault(row.task, {})[row.metric] = None
        return {task: list(names) for task, names in metrics.items()}

    def values(self, model: str, task: str, metric: str) -> dict[int, float | None]:
        """By seed; None where the training diverged."""
        wanted = (model, task, metric)
        return {row.seed: row.value for row in self.rows if (row.model, row.task, row.metric) == wanted}

    def mean(self, model: str, task: str, metric: str) -> float | None:
        """Over the seeds that did not diverge; None where there is none."""
        values = [value for value in self.values(model, task, metric).values() if value is not None]
        return float(np.mean(values)) if values else None

    def shared(self, models: Sequence[str]) -> list[str]:
        """The tasks whose main metric all of these models have."""
        return [
            task for task, names in self.tasks.items() if all(self.mean(m, task, names[0]) is not None for m in models)
        ]


def read_results(paths: Sequence[Path], split: str) -> Results:
    """What files of rows hold of a split. Raises OSError, or ValueError for files that are cut or damaged, rows that
    must not stand side by side, and predictions that are not of their rows."""
    placed = [(row, path) for path in dict.fromkeys(paths) for row in read_rows(path) if row.split == split]
    if not placed:
        raise ValueError(f"{', '.join(map(str, paths))}: no row is of the split {split!r}")
    first: dict[tuple, Path] = {}
    for row, path in placed:
        if first.setdefault(row.of, path) != path:
            raise ValueError(
                f"{first[row.of]} and {path} hold the same row, of {row.model} on {row.task}: name one of them"
            )
    rows = [row for row, _ in placed]
    check_comparable(rows)
    results = Results(rows)
    answered: dict[Key, dict[int, Answered]] = {}
    missing = []
    for row, path in placed:
        if not row.predictions or row.metric != results.tasks[row.task][0]:
            continue
        if (file := path.parent / row.predictions).exists():
            answered.setdefault((row.model, row.task), {})[row.seed] = _answered(row, file)
        else:
            missing.append(str(file))
    _check_same_examples(answered)
    return Results(rows, answered, tuple(missing))


def _answered(row: Row, path: Path) -> Answered:
    head, predictions = read_predictions(path)
    for name in ("model", "weights", "task", "split", "seed", "protocol_hash"):
        its, told = getattr(head, name), getattr(row, name)
        if its != told:
            raise ValueError(f"{path} is not of the row that names it: its {name} is {its!r}, the row's {told!r}")
    gold, predicted = [each.gold for each in predictions], [each.predicted for each in predictions]
    counts_EC = METRICS[row.metric].count(gold, predicted, head.labels) if row.metric in METRICS else np.zeros((0, 0))
    token_E = np.array([each.tokens for each in predictions])
    return Answered(head, tuple(each.id for each in predictions), counts_EC, token_E, _seen(predictions))


def _seen(predictions: Sequence[Prediction]) -> dict[bool, tuple[int, int]]:
    counts = {True: [0, 0], False: [0, 0]}
    for each in predictions:
        gold, predicted = (answer.spans or answer.labels for answer in (each.gold, each.predicted))
        for answer, was_seen in zip(gold, each.seen or (), strict=False):
            counts[was_seen][0] += answer in predicted
            counts[was_seen][1] += 1
    return {was_seen: (right, all_) for was_seen, (right, all_) in counts.items()}


def _check_same_examples(answered: dict[Key, dict[int, Answered]]) -> None:
    first: dict[str, tuple[str, ...]] = {}
    for (_, task), by_seed in answered.items():
        for each in by_seed.values():
            if first.setdefault(task, each.ids) != each.ids:
                raise ValueError(
                    f"predictions of {task} are of other examples, or in another order: compare each alone"
                )


# ---- beside a baseline


@dataclass(frozen=True)
class Beside:
    """A model less the baseline on a task, or on average over tasks (None)."""

    model: str
    task: str | None
    seeds: int
    measured: float
    interval: tuple[float, float] | None = None  # None: there are no predictions
    p: float | None = None
    p_holm: float | None = None


def beside(results: Results, baseline: str) -> list[Beside]:
    """Each other model less the baseline, task by task, then on average over all the tasks that both have.

    Raises ValueError where no model is called so.
    """
    _check_name(results, baseline)
    others = [model for model in results.models if model != baseline]
    return [each for model in others for each in _beside(results, model, baseline)]


def _check_name(results: Results, name: str) -> None:
    if name not in results.models:
        asked = f"no model is called {name!r}{nearest(name, results.models)}"
        raise ValueError(f"{asked}: the rows are of {', '.join(results.models)}")


def _beside(results: Results, model: str, baseline: str) -> list[Beside]:
    tasks = results.shared([model, baseline])
    compared = {task: _difference(results, model, baseline, task) for task in tasks}
    p_values = {task: each.p for task, (_, each) in compared.items() if isinstance(each, Difference)}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    lines = [_line(model, task, *compared[task], adjusted.get(task)) for task in tasks]
    if len(tasks) < 2:
        return lines
    whole = [each for _, each in compared.values() if isinstance(each, Difference)]
    over = average(whole) if len(whole) == len(tasks) else float(np.mean([each.measured for each in lines]))
    return [*lines, _line(model, None, min(seeds for seeds, _ in compared.values()), over, None)]


def _line(model: str, task: str | None, seeds: int, of: Difference | float, adjusted: float | None) -> Beside:
    if isinstance(of, Difference):
        return Beside(model, task, seeds, of.measured, of.interval, of.p, adjusted)
    return Beside(model, task, seeds, of)


def _difference(results: Results, model: str, baseline: str, task: str) -> tuple[int, Difference | float]:
    """Over the seeds that both have, and how many they are; of the means alone where predictions or such seeds lack."""
    seeds, counts = _paired(results, (model, baseline), task)
    metric, draws_of_its_own = results.tasks[task][0], list(results.tasks).index(task)
    if counts is not None:
        mine_SEC, its_SEC = counts
        return seeds, difference(mine_SEC, its_SEC, METRICS[metric].value, draws_of_its_own)
    means = [results.mean(name, task, metric) or 0.0 for name in (model, baseline)]
    return seeds, means[0] - means[1]


def _paired(results: Results, models: Sequence[str], task: str) -> tuple[int, list[np.ndarray] | None]:
    """How many seeds all of these models have, and the counts of each over them, [S, E, C]; None where predictions or
    such seeds lack."""
    metric = results.tasks[task][0]
    values = [results.values(name, task, metric) for name in models]
    seeds = sorted(seed for seed in values[0] if all(by_seed.get(seed) is not None for by_seed in values))
    files = [results.answered.get((name, task), {}) for name in models]
    if metric in METRICS and seeds and all(seed in by_seed for seed in seeds for by_seed in files):
        return len(seeds), [np.stack([by_seed[seed].counts_EC for seed in seeds]) for by_seed in files]
    return len(seeds), None


# ---- a share of what a donor gains


@dataclass(frozen=True)
class Moved:
    """The share that a model has of what the donor gains over the host, on a task, or on average over tasks (None)."""

    model: str
    task: str | None
    seeds: int
    share: Share


def moved(results: Results, host: str, donor: str) -> list[Moved]:
    """Of each other model, task by task, then of the average over all the tasks that the three have.

    Raises ValueError where no model is called so, or host and donor are one.
    """
    for name in (host, donor):
        _check_name(results, name)
    if host == donor:
        raise ValueError(f"host and donor are both {host}: name two models")
    others = [model for model in results.models if model not in (host, donor)]
    return [each for model in others for each in _moved(results, (model, donor, host))]


def _moved(results: Results, models: tuple[str, str, str]) -> list[Moved]:
    over = {task: _gains(results, models, task) for task in results.shared(models)}
    lines = [Moved(models[0], task, seeds, share([own])) for task, (seeds, own) in over.items()]
    if len(over) < 2:
        return lines
    return [*lines, Moved(models[0], None, min(n for n, _ in over.values()), share([own for _, own in over.values()]))]


def _gains(results: Results, models: tuple[str, str, str], task: str) -> tuple[int, Gains]:
    """As `_difference`, over the seeds that all three have."""
    seeds, counts = _paired(results, models, task)
    metric, draws_of_its_own = results.tasks[task][0], list(results.tasks).index(task)
    if counts is not None:
        mine_SEC, donor_SEC, host_SEC = counts
        return seeds, gains(mine_SEC, donor_SEC, host_SEC, METRICS[metric].value, draws_of_its_own)
    own, donor, host = (results.mean(name, task, metric) or 0.0 for name in models)
    return seeds, Gains(np.array([[own - host], [donor - host]]))


# ---- parts of a test


@dataclass(frozen=True)
class Part:
    """A part of a task's test: its name, how many examples or gold answers it has, the score of each model on it."""

    task: str
    name: str
    size: int
    scores: dict[str, float]


def by_length(results: Results) -> list[Part]:
    """The main metric on documents of up to 64 tokens, up to 256 and so on, mean over seeds. Each model's own tokenizer
    counts, the first model's where they are to be in one bin."""
    parts = []
    for task, names in results.tasks.items():
        models = [model for model in results.models if (model, task) in results.answered]
        if not models or names[0] not in METRICS:
            continue
        token_E = next(iter(results.answered[models[0], task].values())).token_E
        bin_E = np.searchsorted(LENGTHS, token_E)
        for number in np.unique(bin_E):
            scores = {model: _on(results, model, task, bin_E == number) for model in models}
            parts.append(Part(task, _named(int(number)), int((bin_E == number).sum()), scores))
    return parts


def _named(number: int) -> str:
    first = LENGTHS[number - 1] + 1 if number else 0
    return f"{first:,} tokens or more" if number == len(LENGTHS) else f"{first:,} to {LENGTHS[number]:,} tokens"


def _on(results: Results, model: str, task: str, chosen_E: np.ndarray) -> float:
    value = METRICS[results.tasks[task][0]].value
    sums = [each.counts_EC[chosen_E].sum(0) for each in results.answered[model, task].values()]
    return float(np.mean([value(each) for each in sums]))


def by_seen(results: Results) -> list[Part]:
    """The share of gold entities, or labels, that was answered, for those that training texts had and had not."""
    parts = []
    for task in results.tasks:
        models = [model for model in results.models if (model, task) in results.answered]
        for was_seen, name in ((True, "seen in training"), (False, "not seen in training")):
            sizes = {model: next(iter(results.answered[model, task].values())).seen[was_seen][1] for model in models}
            scores = {model: _recall(results.answered[model, task], was_seen) for model in models if sizes[model]}
            if scores:
                parts.append(Part(task, name, max(sizes.values()), scores))
    return parts


def _recall(by_seed: dict[int, Answered], was_seen: bool) -> float:
    counts = [each.seen[was_seen] for each in by_seed.values()]
    return float(np.mean([right / of for right, of in counts if of]))


# ---- what others published


def published() -> dict[str, Any]:
    """Scores in percent that others published, by model and task, and where."""
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))
