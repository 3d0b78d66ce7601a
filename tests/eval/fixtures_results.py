"""Rows with their predictions, as a sweep leaves them: two models, an entity task and one of several labels a text."""

from pathlib import Path

import numpy as np

from cptjax.rows import Row, append_rows
from eval.metrics import METRICS
from eval.predictions import Head, Prediction, write_predictions
from eval.tasks.task import Answer, Span
from tests.conftest import evaluation_row

EVIL = "<script>document.title = 'taken'</script>"
METRICS_OF = {"quaero_emea": ("entity_f1", "span_f1_partial"), "mine": ("micro_f1", "macro_f1")}
KIND = {"quaero_emea": ("entities", "token-classification"), "mine": ("multi_label", "text-classification")}


def entities(random: np.random.Generator, right: float, number: int) -> Prediction:
    """A text of two entities, each answered with this chance: otherwise too short, of the other label, or not."""
    words = f"toux {number} 🫀 et fièvre {EVIL}"  # a character that is two in JavaScript
    gold = (Span(((0, 4),), "DISO"), Span(((len(words.split(" et ")[0]) + 4, words.index(" <")),), "PHEN"))
    answered = []
    for span in gold:
        if random.random() < right:
            answered.append(span)
        elif (error := random.integers(3)) == 0:
            answered.append(Span(((span.start, span.end - 1),), span.label))
        elif error == 1:
            answered.append(Span(span.ranges, "DISO" if span.label == "PHEN" else "PHEN"))
    if random.random() > right:
        answered.append(Span(((5, 6),), "DISO"))
    return Prediction(
        id=f"{number}",
        text=words,
        gold=Answer(spans=gold),
        predicted=Answer(spans=tuple(sorted(answered))),
        tokens=40 if number % 2 else 400,
        seen=(True, False),
    )


def labels(random: np.random.Generator, right: float, number: int) -> Prediction:
    """A text of the label a or b, answered with this chance."""
    gold = "ab"[number % 2]
    answer = gold if random.random() < right else "ab"[1 - number % 2]
    scores = {name: 0.75 if name == answer else 0.25 for name in "ab"}
    return Prediction(
        id=f"{number}",
        text=f"texte {number} {EVIL}",
        gold=Answer(labels=(gold,)),
        predicted=Answer(labels=(answer,)),
        tokens=10,
        scores=scores,
    )


def sweep(folder: Path, models: dict[str, float], *, tasks=tuple(METRICS_OF), seeds=3, examples=40) -> Path:
    """A file of rows of these models, each with its share of right answers."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    for (model, right), task, seed in ((m, t, s) for m in models.items() for t in tasks for s in range(seeds)):
        random = np.random.default_rng([seed, len(model), int(1000 * right)])
        make = entities if KIND[task][0] == "entities" else labels
        predictions = [make(random, right, number) for number in range(examples)]
        append_rows(path, rows_of(folder, model, task, seed, predictions))
    return path


def rows_of(folder: Path, model: str, task: str, seed: int, predictions: list[Prediction]) -> list[Row]:
    """The predictions written beside the rows, and the rows."""
    name = f"predictions/{model}.{task}.{seed}.jsonl"
    names = ("DISO", "PHEN") if task == "quaero_emea" else ("a", "b")
    head = Head(
        model=model,
        weights=model,
        task=task,
        kind=KIND[task][0],
        language="fr",
        split="test",
        seed=seed,
        protocol="french",
        protocol_hash="0",
        labels=names,
        examples=len(predictions),
        curve=((10, 0.25), (20, 0.5)),
    )
    write_predictions(folder / name, head, predictions)
    answers = [each.gold for each in predictions], [each.predicted for each in predictions]
    return [
        evaluation_row(
            model=model,
            weights=model,
            task=task,
            kind=KIND[task][1],
            metric=metric,
            value=float(METRICS[metric].value(METRICS[metric].count(*answers, names).sum(0))),
            seed=seed,
            predictions=name,
            protocol="french",
            truncated=0.125 if task == "mine" else 0.0,
            notes=["counts of <b>train</b> are few"] if task == "mine" else [],
        )
        for metric in METRICS_OF[task]
    ]
